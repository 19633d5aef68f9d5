"""What storing attention costs: codecs, ways to write a chunk, dtypes by size and by the error of each statistic.

    python benchmarks/storage.py GRAPH.onnx IMAGES --count 64

Where zarrs is installed (`pip install zarrs`), its codec pipeline is among the ways to write.

Speeds are of one thread, in uncompressed bytes per second of wall time; each codec is timed in turn, five rounds,
medians. Errors are relative to float32 attention: max|x - y| / max|y| over one image, the worst image.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from attlas.analysis import formulas
from attlas.analysis.kernels.fused import Reducer
from attlas.engine import Session
from attlas.engine.plan import make_plan
from attlas.engine.sources import Folder
from attlas.engine.store.schema import CODECS as CHOICES
from attlas.engine.store.store import ArraySpec, Store
from attlas.exporter.spec import GraphSpec
from numcodecs import Blosc, blosc

FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
CODECS = {
    "none": None,
    "lz4, level 1, bitshuffle (default)": Blosc("lz4", 1, Blosc.BITSHUFFLE),
    "lz4, level 5, bitshuffle": Blosc("lz4", 5, Blosc.BITSHUFFLE),
    "lz4, level 5, shuffle": Blosc("lz4", 5, Blosc.SHUFFLE),
    "zstd, level 1, bitshuffle": Blosc("zstd", 1, Blosc.BITSHUFFLE),
    "zstd, level 3, bitshuffle": Blosc("zstd", 3, Blosc.BITSHUFFLE),
    "blosclz, level 5, bitshuffle": Blosc("blosclz", 5, Blosc.BITSHUFFLE),
}


def codecs(chunks: list[np.ndarray]) -> None:
    blosc.set_nthreads(1)
    raw = sum(c.nbytes for c in chunks)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in CODECS}
    sizes = {}
    for _ in range(5):
        for name, codec in CODECS.items():
            start = time.perf_counter()
            packed = [c.tobytes() if codec is None else codec.encode(c) for c in chunks]
            middle = time.perf_counter()
            for one in packed:
                np.frombuffer(one, np.uint8).copy() if codec is None else codec.decode(one)
            rounds[name].append((middle - start, time.perf_counter() - middle))
            sizes[name] = sum(len(p) for p in packed)
    print("| codec | of raw | write GB/s | read GB/s |\n|---|---|---|---|")
    for name, times in rounds.items():
        write, read = (raw / statistics.median(t[i] for t in times) / 1e9 for i in (0, 1))
        print(f"| {name} | {sizes[name] / raw:.2f} | {write:.2f} | {read:.2f} |")


def choices(forms: dict[str, list[np.ndarray]], images: int) -> None:
    """What `--codec` offers, with the checksum, chunk after chunk as in a run: CPU time of one thread."""
    print("\n| stored | codec | of raw | write, core ms per image | GB/s | read, core ms per image | GB/s |")
    print("|---|---|---|---|---|---|---|")
    for form, chunks in forms.items():
        raw, out = sum(c.nbytes for c in chunks), np.empty_like(chunks[0])
        for name, codecs in CHOICES.items():
            settings = codecs[0].get("configuration", {})
            shuffle = Blosc.BITSHUFFLE if chunks[0].itemsize > 1 else Blosc.NOSHUFFLE
            codec = Blosc(settings["cname"], settings["clevel"], shuffle) if settings else None
            times, size = [], 0
            for _ in range(5):
                write = read = 0.0
                size = 0
                for chunk in chunks:
                    start = time.thread_time()
                    data = chunk.reshape(-1).view(np.uint8) if codec is None else codec.encode(chunk)
                    google_crc32c.value(data)
                    middle = time.thread_time()
                    google_crc32c.value(data)
                    part = out[: len(chunk)]
                    np.copyto(part, chunk) if codec is None else codec.decode(data, out=part)
                    write, read = write + middle - start, read + time.thread_time() - middle
                    size += len(data)
                times.append((write, read))
            found = [statistics.median(t[i] for t in times) for i in (0, 1)]
            cells = " | ".join(f"{t / images * 1e3:.2f} | {raw / t / 1e9:.2f}" for t in found)
            print(f"| {form} | {name} | {size / raw:.2f} | {cells} |")


def ways(chunks: list[np.ndarray], folder: Path, spec: GraphSpec) -> None:
    """One chunk after the other, from one thread: by zarr's own pipeline, by zarrs', and as a run does."""
    raw, shape = sum(c.nbytes for c in chunks), chunks[0].shape
    template = ArraySpec(
        "a", ("image", "head", "query", "key"), (len(chunks) * shape[0], *shape[1:]), shape, "float16", np.nan
    )
    pipelines = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarr, fused": FUSED, "the run's own": ""}
    if importlib.util.find_spec("zarrs"):
        importlib.import_module("zarrs")  # registers itself

        pipelines["zarrs"] = "zarrs.ZarrsCodecPipeline"
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for _ in range(5):
        for name, pipeline in pipelines.items():
            shutil.rmtree(folder, ignore_errors=True)
            plan = make_plan(template.shape[0], layer_bytes=1, image_bytes=1, identity={}, batch=shape[0])
            settings = {"codec_pipeline.path": pipeline, "threading.max_workers": 1} if pipeline else {}
            with zarr.config.set(settings):
                store = Store.create(folder, spec, plan, [template], values={}, attrs={})
                array = store.array("a")
                before, start = time.process_time(), time.perf_counter()
                for i, chunk in enumerate(chunks):
                    if pipeline:
                        array[i * shape[0] : (i + 1) * shape[0]] = chunk
                    else:
                        store.write("a", i * shape[0], chunk)
                rounds[name].append((time.perf_counter() - start, time.process_time() - before))
    print("\n| chunks written by | GB/s | core ms per 10 MB |\n|---|---|---|")
    for name, times in rounds.items():
        wall, cpu = (statistics.median(t[i] for t in times) for i in (0, 1))
        print(f"| {name} | {raw / wall / 1e9:.2f} | {cpu / raw * 1e10:.1f} |")


def error(found: np.ndarray, true: np.ndarray) -> float:
    """max|x - y| / max|y| per image; the worst image."""
    axes = tuple(range(1, true.ndim))
    difference = np.nanmax(np.abs(found.astype(np.float64) - true), axis=axes)
    return float((difference / np.nanmax(np.abs(true), axis=axes)).max())


def dtypes(session: Session, layers: list[np.ndarray]) -> None:
    """The default statistics and a rollout that discards, from each stored form."""
    spec = session.spec
    codec = Blosc("lz4", 1, Blosc.BITSHUFFLE)
    codes = [np.round(255 * np.sqrt(a)).astype(np.uint8) for a in layers]
    forms: dict[str, tuple[list[Any], list[Any]]] = {
        "float32": ([a.astype(np.float32) for a in layers], layers),
        "float16": ([a.astype(np.float16) for a in layers],) * 2,
        "uint8": ([np.asarray(formulas.decode_codes(c), np.float32) for c in codes], codes),
    }
    reducer = Reducer(spec)
    truth = reducer(layers)
    names = [t.name for t in reducer.templates if t.name != "rows_without_patch_mass"]
    print(f"\n| dtype | bytes of float16 raw | {' | '.join(names)} | row total variation |")
    print(f"|---|---|{'---|' * (len(names) + 1)}")
    raw = sum(a.nbytes for a in layers) / 2
    for name, (values, stored) in forms.items():
        found = reducer(values)
        size = sum(len(codec.encode(np.ascontiguousarray(s))) for s in stored) / raw
        errors = [f"{error(found[n], truth[n].astype(np.float64)):.1e}" for n in names]
        rows = max(
            float((np.abs(v.astype(np.float32) - a).sum(-1) / 2).max()) for v, a in zip(values, layers, strict=True)
        )
        print(f"| {name} | {size:.2f} | {' | '.join(errors)} | {rows:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    session = Session(options.graph)
    source = Folder.scan(options.images)
    paths = [options.images / item.key for item in source.items[: options.count]]
    attention = session(paths)["attention"]
    layers = [np.ascontiguousarray(attention[:, layer]) for layer in range(attention.shape[1])]
    chunks = [np.ascontiguousarray(a[i : i + 16]).astype(np.float16) for a in layers for i in range(0, len(a), 16)]
    codecs(chunks)
    codes = [np.round(255 * np.sqrt(c.astype(np.float32))).astype(np.uint8) for c in chunks]
    choices({"float16": chunks, "uint8 codes": codes}, len(attention))
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as place:
        ways(chunks, Path(place) / "store.zarr", session.spec)
    dtypes(session, layers)


if __name__ == "__main__":
    main()
