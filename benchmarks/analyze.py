"""`attlas analyze` over a store on disk against its limit, and what each further statistic costs.

    python benchmarks/analyze.py STORE.zarr [--images 1200] [--rounds 5] [--threads 2]

A store with that many images is made beside it from copies of STORE's chunks, in a folder that is removed again, and
read once, so that it lies in the page cache. In interleaved rounds: reading and decoding alone, the kernel of the
default statistics alone over the same bytes in memory, and `analyze` of a store without statistics. The limit is
1 / (1 / read + 1 / kernel). With `--memory` peak memory over 500 and 5,000 images of a small model is measured instead.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from attlas.analysis.catalog import CATALOG, resolved
from attlas.analysis.kernels import views
from attlas.analysis.kernels.fused import Reducer, seen
from attlas.analysis.kernels.layer import Layer
from attlas.analysis.statistic import Statistic, context
from attlas.analysis.statistics import analyze
from attlas.analysis.statistics.chunks import Chunks
from attlas.analysis.statistics.partials import attention_of, check, kept_layers
from attlas.engine.store.store import ArraySpec, Store
from attlas.errors import AttlasError
from attlas.exporter.spec import GraphSpec, Recipe, Weights


def enlarged(source: Store, path: Path, images: int, unit: int) -> Store:
    """A store of that many images, all of it done, whose attention repeats that of `source`."""
    from attlas.engine.plan import Plan

    name, spec, batch = attention_of(source), source.spec, source.plan.batch
    plan = Plan(images=images // batch * batch, batch=batch, unit=max(1, unit // batch) * batch, sample=(), identity={})
    array = source.array(name)
    matrix = ArraySpec(
        name, source.dims(name), (plan.images, *array.shape[1:]), array.chunks, str(array.dtype), array.fill_value
    )
    valid = ArraySpec("valid", ("image",), (plan.images,), (plan.unit,), "bool", False)
    arrays, values = [matrix, valid], {"valid": np.ones(plan.images, np.bool_)}
    if "pool_attention" in source:
        raise SystemExit("a store of a model with attention pooling is not repeated here")
    made = Store.create(path, spec, plan, arrays, values=values, attrs={"kept": source.attrs["kept"]})
    whole = source.plan.images // batch
    for chunk in range(plan.images // batch):
        for layer in kept_layers(source):
            rest = (spec.layers.index(layer), 0, 0, 0)
            place = made.chunk_path(name, (chunk, *rest))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.chunk_path(name, (chunk % whole, *rest)), place)
    for k in range(plan.units):
        made.mark_done(k)
    return made


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of one call: on the clock, and of processors, which others on the machine do not lengthen."""
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def forget(store: Store, metadata: bytes) -> None:
    """Make the store what it was before it was analysed."""
    assert isinstance(store.path, Path)
    for name in Store(store.path).attrs.get("analyzed", ()):
        shutil.rmtree(store.path / name)
    (store.path / "zarr.json").write_bytes(metadata)


def said(times: Sequence[float], size: float) -> str:
    """Median rate and its spread."""
    rates = sorted(size / t for t in times)
    return f"{statistics.median(rates):6.2f} GB/s ({rates[0]:.2f} to {rates[-1]:.2f})"


def against_the_limit(store: Store, rounds: int, threads: int) -> None:
    """Read alone, kernel alone, and both in `analyze`."""
    name, layers, spec = attention_of(store), kept_layers(store), store.spec
    places = [spec.layers.index(layer) for layer in layers]
    array = store.array(name)
    size = array.nbytes / array.shape[1] * len(layers) / 1e9
    units = range(store.plan.units)
    reducer = Reducer(spec, layers=layers)
    chunks = Chunks(store, name)
    first = next(store.plan.batches(0))
    held = {place: chunks.read(first, place).copy() for place in places}

    def read(k: int) -> None:
        chunks = Chunks(store, name)
        for batch in store.plan.batches(k):
            for place in reversed(places):
                chunks.read(batch, place)

    def compute(k: int) -> None:
        view = Layer(spec)
        for batch in store.plan.batches(k):
            reduction = reducer.begin(len(batch))
            for place in reversed(places):
                raw = held[place][: len(batch)]
                reduction.add(raw)
                view.take(seen(raw))
                np.add.reduce(view.query_peaks(), axis=0, dtype=np.float64)
            reduction.results()

    def every(work: Callable[[int], None]) -> Callable[[], object]:
        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, units))

        return run

    calls = {"read and decode": every(read), "kernel": every(compute)}
    calls["analyze"] = lambda: analyze(store.path, workers=threads)
    assert isinstance(store.path, Path)
    metadata = (store.path / "zarr.json").read_bytes()
    taken: dict[str, list[float]] = {what: [] for what in calls}
    spent: dict[str, list[float]] = {what: [] for what in calls}
    for turn in range(rounds + 1):
        for what, call in calls.items():
            took = seconds(call)
            forget(store, metadata)
            if turn:
                taken[what].append(took[0])
                spent[what].append(took[1])
    middle = {what: statistics.median(times) for what, times in taken.items()}
    print(f"{store.plan.images} images, {size:.2f} GB as {array.dtype}, {threads} threads, {rounds} interleaved rounds")
    for what, times in taken.items():
        print(f"{what:32} {said(times, size)}")
    limit = middle["read and decode"] + middle["kernel"]
    shares = [a / limit for a in taken["analyze"]]
    print(f"{'limit, 1/(1/read + 1/kernel)':32} {size / limit:6.2f} GB/s")
    print(f"share of the limit {limit / middle['analyze']:.3f} ({1 / max(shares):.3f} to {1 / min(shares):.3f})")
    cpu = {what: statistics.median(times) for what, times in spent.items()}
    share = (cpu["read and decode"] + cpu["kernel"]) / cpu["analyze"]
    print("processor seconds per GB: " + ", ".join(f"{what} {t / size:.3f}" for what, t in cpu.items()))
    print(f"share of the limit in processor seconds {share:.3f}")


def further(store: Store, threads: int, names: Sequence[str]) -> None:
    """Each further statistic by itself: seconds per GB of stored attention, reading left out."""
    name, spec, layers = attention_of(store), store.spec, kept_layers(store)
    places = [spec.layers.index(layer) for layer in layers]
    chunks = Chunks(store, name)
    batch = next(store.plan.batches(0))
    held = [seen(chunks.read(batch, place).copy()) for place in places]
    size = sum(a.nbytes for a in held) / 1e9
    print("\n| statistic | seconds per GB, all threads | GB/s |\n|---|---|---|")
    for one in resolved(names) or [s for s in CATALOG.values() if {"layer", "batch", "follow"} & set(s.kernels)]:
        try:
            check(store, one)
        except AttlasError:
            continue

        def work(_: int, one: Statistic = one) -> None:
            view, row = Layer(spec), Reducer(spec).start(1)[0]
            total = None if one.rows else np.zeros(one.shape(spec)[1:])
            for codes in reversed(held):
                view.take(codes)
                if "batch" in one.kernels:
                    found = views.BATCH[one.kernels["batch"]](view)
                    if total is not None:
                        total += np.add.reduce(found, axis=0, dtype=np.float64)
                    continue
                for image in range(len(codes)):
                    view.show(image)
                    if "follow" in one.kernels:
                        found = views.FOLLOW[one.kernels["follow"]](view, row)
                    elif "layer" in one.kernels:
                        found = views.LAYER[one.kernels["layer"]](view)
                    else:
                        found = one({**context(spec), "attention": view.attention})
                    if total is not None:
                        total += found

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
            count = 4 * threads
            times = [seconds(lambda: list(pool.map(work, range(count))))[1] for _ in range(3)]  # noqa: B023
        cost = statistics.median(times) / threads / (count * size)
        print(f"| `{one.name}` | {cost:.2f} | {1 / cost:.1f} |")


def small_store(path: Path, images: int) -> None:
    """A store of a small model with random attention, written a batch at a time."""
    from attlas.engine.plan import Plan

    spec = GraphSpec(
        model="vit_small_test",
        tag="",
        weights=Weights("random", "0"),
        dtype="float32",
        image_size=(112, 112),
        recipe=Recipe((112, 112), (112, 112), "center", "bicubic", (0.5,) * 3, (0.5,) * 3),
        patch_size=(16, 16),
        grid=(7, 7),
        prefix=("class",),
        pooling="class",
        layers=(0, 1, 2),
        depth=3,
        heads=3,
        attention_kind="probability",
        position="absolute",
        outputs=(),
    )
    plan = Plan(images=images, batch=16, unit=64, sample=(), identity={})
    shape, chunks = (images, 3, 3, 50, 50), (16, 1, 3, 50, 50)
    dims = ("image", "layer", "head", "query", "key")
    label = np.array([f"class {i % 10}" for i in range(images)], dtype=np.dtypes.StringDType())
    arrays = [
        ArraySpec("attention", dims, shape, chunks, "float16", np.nan),
        ArraySpec("valid", ("image",), (images,), (64,), "bool", False),
        ArraySpec("label", ("image",), (images,), (images,), "str", ""),
    ]
    values = {"valid": np.ones(images, np.bool_), "label": label}
    store = Store.create(path, spec, plan, arrays, values=values, attrs={"kept": {"layers": [0, 1, 2]}})
    a = np.random.default_rng(0).dirichlet(np.ones(50), (16, 3, 50)).astype(np.float16)
    for k in range(plan.units):
        for batch in plan.batches(k):
            for layer in range(3):
                store.write("attention", batch.start, a[: len(batch), None], slice(layer, layer + 1))
        store.mark_done(k)


def memory(folder: Path) -> None:
    """Peak memory of a process that analyses 500 and 5,000 images, with every kind of result."""
    found = {}
    for images in (500, 5000):
        path = folder / f"{images}.zarr"
        small_store(path, images)
        done = subprocess.run(
            [sys.executable, __file__, str(path), "--peak"], capture_output=True, text=True, check=True
        )
        found[images] = float(done.stdout)
        print(f"{images:6} images: peak {found[images]:.1f} MB")
    print(f"5,000 against 500: {found[5000] / found[500]:.3f}")


def peak(path: Path) -> None:
    analyze(path, by="label")
    analyze(path, ["received_attention", "entropy_histogram", "offset_map_mean", "attention_matrix_mean"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("store", type=Path, nargs="?")
    options.add_argument("--images", type=int, default=1200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--unit", type=int, help="images of a unit; as many as STORE's")
    options.add_argument("--names", default="", help="further statistics, comma-separated; all by default, `none`")
    options.add_argument("--memory", action="store_true")
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.peak:
        peak(chosen.store)
        return
    with tempfile.TemporaryDirectory(prefix="attlas-analyze-") as folder:
        if chosen.memory:
            memory(Path(folder))
            return
        source = Store(chosen.store)
        store = enlarged(source, Path(folder) / "large.zarr", chosen.images, chosen.unit or source.plan.unit)
        against_the_limit(store, chosen.rounds, chosen.threads)
        if chosen.names != "none":
            further(store, chosen.threads, [name for name in chosen.names.split(",") if name])


if __name__ == "__main__":
    main()
