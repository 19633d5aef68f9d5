"""What a card gives: parity first, then images per second beside PyTorch with hooks and beside the card's own limits.

    python benchmarks/gpu.py                          # CUDA, the four models, random weights made sharp
    python benchmarks/gpu.py --checkpoints FOLDER     # FOLDER/MODEL.safetensors where it is there
    python benchmarks/gpu.py --provider cpu --quick   # the same code on a machine without a card, tiny counts

Under ten minutes by its own clock. Prints Markdown. A run goes from pictures in memory to a store on a RAM disk
(`--place`), with the statistics in the graph, and has as many images as inference alone does in `--seconds`. Where the
provider does not work, or its attention is not the CPU's, nothing is measured. So far it has run on CPUs only.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnxruntime as ort
from attlas.analysis.kernels.fused import Reducer
from attlas.engine.contents import Choices, Contents
from attlas.engine.keep import Keep
from attlas.engine.runtime.decode import decode
from attlas.engine.runtime.graph import read_spec
from attlas.engine.runtime.providers import cores
from attlas.engine.runtime.session import Session
from attlas.engine.sources import BaseSource, Item

MODELS = (
    "deit_tiny_patch16_224",
    "vit_base_patch32_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
)
DTYPES = ("float32", "float16")
PICTURES = 64  # different ones; a run repeats them
PARITY = 4  # images of the comparison with the CPU
STORE_BYTES = 16e9  # the most that a run stores
MINUTES = 8.0  # after these no further row is begun
# Largest row total variation from the CPU beyond which no speed is worth a line. PyTorch itself is 1.2e-4 from float64.
BOUNDS = {"float32": 5e-3, "float16": 0.3}


@dataclass(frozen=True)
class Repeated(BaseSource):
    """A source of `count` pictures in memory: a few, again and again."""

    encoded: Sequence[bytes]
    count: int
    name: str = "noise"
    others: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def items(self) -> Sequence[Item]:
        return [Item(f"{i:07d}.jpg", "", len(self.encoded[i % len(self.encoded)]), 0) for i in range(self.count)]

    def read(self, item: Item) -> bytes:
        return self.encoded[int(item.key[:7]) % len(self.encoded)]


def pictures() -> list[bytes]:
    """JPEGs of ImageNet's usual size, with structure."""
    from PIL import Image

    found = []
    for seed in range(PICTURES):
        small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


# -- models ------------------------------------------------------------------------------------------------------------


def build(name: str, checkpoints: Path | None, folder: Path) -> tuple[Any, Path]:
    """Timm's model with taps on, and the file of its weights: given ones, or random ones with sharp attention."""
    import timm
    import torch
    from safetensors.torch import load_file, save_file

    timm.layers.set_fused_attn(False)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    given = checkpoints / f"{name}.safetensors" if checkpoints else None
    if given is not None and given.is_file():
        model.load_state_dict(load_file(given))
        return model, given
    sharpen(model)
    path = folder / f"{name}.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def sharpen(model: Any) -> None:
    """Scale queries and keys until the mean entropy is below 0.6 of uniform attention's: uniform maps prove nothing."""
    import torch

    maps = tap(model)
    noise = torch.randn(2, 3, 224, 224)
    for _ in range(12):
        maps.clear()
        with torch.inference_mode():
            model(noise)
        entropy = np.mean([float(-(a * a.clamp_min(1e-30).log()).sum(-1).mean()) for a in maps])
        if entropy < 0.6 * np.log(maps[0].shape[-1]):
            break
        with torch.no_grad():
            for block in model.blocks:
                width = block.attn.qkv.weight.shape[0] // 3
                block.attn.qkv.weight[: 2 * width] *= 1.5
    untap(model)


def tap(model: Any) -> list[Any]:
    """A list that every forward pass fills with the attention of its layers."""
    maps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: maps.append(out))
    return maps


def untap(model: Any) -> None:
    for block in model.blocks:
        block.attn.attn_drop._forward_hooks.clear()


# -- measurements ------------------------------------------------------------------------------------------------------


def rate(step: Callable[[], int], seconds: float) -> float:
    """Images per second of a step that returns how many it did, after two to warm up."""
    step(), step()
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        done += step()
    return done / spent


def parity(graph: Path, provider: str, images: list[Any]) -> tuple[str, float, float]:
    """The provider in use, and mean and largest row total variation of its attention from the CPU's."""
    session = Session(graph, provider=provider)
    ours = session(images)["attention"].astype(np.float64)
    theirs = Session(graph, provider="cpu")(images)["attention"].astype(np.float64)
    variation = np.abs(ours - theirs).sum(-1) / 2
    return session.provider, float(variation.mean()), float(variation.max())


def inference(graph: Path, provider: str, batch: int, keep: str | None, seconds: float) -> float:
    """Images per second of black batches, two threads: nothing fetched but logits, or what `keep` fetches."""
    spec = read_spec(graph)
    chosen = Keep.choose(spec, (keep or "none",), None, "float16")
    contents = Contents.derive(spec, Choices(chosen, Reducer, "graph"))
    appended = contents.appended(accelerator=True) if keep is not None else None
    wanted = contents.wanted(appended=True)
    session = Session(graph, provider=provider, wanted=wanted, appended=appended)
    sets = [(session.pixels(batch), session.buffers(batch)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:

        def step() -> int:
            list(pool.map(lambda own: session.run_into(own[0], own[1], batch), sets))
            return 2 * batch

        return rate(step, seconds)


def whole(graph: Path, source: Repeated, place: Path, provider: str, batch: int, keep: str) -> tuple[float, str]:
    """Images per second of a whole run, and the stage that took most of the workers' time."""
    store = place / "bench.zarr"
    shutil.rmtree(store, ignore_errors=True)
    marks: list[tuple[int, float]] = []
    result = attlas.run(
        graph,
        source,
        store,
        keep=(keep,),
        provider=provider,
        batch_size=batch,
        statistics="graph",
        progress=lambda progress: marks.append((progress.done, time.perf_counter())),
    )
    shutil.rmtree(store)
    # From when the graph is loaded to the last unit: a real run is long against its start.
    speed = (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])
    return speed, max(result.stages, key=lambda stage: result.stages[stage])


def torch_rate(model: Any, dtype: str, batch: int, device: str, fetch: bool, seconds: float) -> float:
    """Images per second of PyTorch with hooks; with `fetch` attention comes to the host as float16."""
    import torch

    model = model.to(device, getattr(torch, dtype))
    maps = tap(model)
    pixels = torch.zeros(batch, 3, 224, 224, device=device, dtype=getattr(torch, dtype))

    def step() -> int:
        maps.clear()
        with torch.inference_mode():
            model(pixels)
            if fetch:
                for a in maps:
                    a.half().cpu()
        if device != "cpu":
            torch.cuda.synchronize()
        return batch

    try:
        return rate(step, seconds)
    finally:
        maps.clear()
        untap(model)
        model.to("cpu", torch.float32)
        if device != "cpu":
            torch.cuda.empty_cache()


def copy_speed(graph: Path, provider: str, seconds: float) -> tuple[float, str]:
    """Bytes per second from the device into the host memory that runs use, and what copies."""
    session = Session(graph, provider=provider)
    device = session._device or "cpu"
    shape = (256, 2**20)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.uint8, device, 0)
    array = session._copies.host(shape, "uint8")

    def step() -> int:
        session._copies.download(array, value)
        return array.nbytes

    return rate(step, seconds), type(session._copies).__name__


def disk_speed(place: Path, blocks: int = 16) -> float:
    """Bytes per second of plain files of 16 MiB, from as many threads as there are cores."""
    data = np.random.default_rng(0).bytes(2**24)

    def write(number: int) -> None:
        (place / f"block{number}").write_bytes(data)

    start = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(blocks)))
    spent = time.perf_counter() - start
    for number in range(blocks):
        (place / f"block{number}").unlink()
    return blocks * len(data) / spent


def decode_speed(encoded: Sequence[bytes], recipe: Any, seconds: float) -> float:
    """Images per second of reading pictures on all cores."""
    with ThreadPoolExecutor(cores()) as pool:

        def step() -> int:
            return len(list(pool.map(lambda data: decode(data, recipe)[0], encoded)))

        return rate(step, seconds)


# -- the table ---------------------------------------------------------------------------------------------------------


def card(provider: str) -> str:
    """The card's name and driver, or the processor's."""
    if provider != "cpu" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return found.splitlines()[0]
    return f"{platform.machine()} CPU"


def bench(name: str, options: argparse.Namespace, encoded: list[bytes], place: Path) -> list[list[str]]:
    """The rows of one model, one for each dtype, and its parity on stderr as it comes."""
    model, weights = build(name, options.checkpoints, place)
    rows = []
    device = "cpu" if options.provider == "cpu" else "cuda"
    for dtype in DTYPES:
        if time.perf_counter() - options.started > 60 * MINUTES:
            print(f"{name} {dtype}: left out for want of time", file=sys.stderr, flush=True)
            continue
        graph = place / f"{name}.{dtype}.onnx"
        attlas.export(name, graph, checkpoint=weights, dtype=dtype)
        spec = read_spec(graph)
        images = [decode(data, spec.recipe)[0] for data in encoded[:PARITY]]
        provider, mean, worst = parity(graph, options.provider, images)
        print(f"{name} {dtype}: {provider}, row total variation {mean:.1e} / {worst:.1e}", file=sys.stderr, flush=True)
        if not worst < BOUNDS[dtype]:
            sys.exit(f"{name} {dtype}: differs from the CPU by {worst:.1e}: nothing was measured")
        seconds, batch = options.seconds, options.batch
        alone = inference(graph, options.provider, batch, None, seconds / 4)
        small = inference(graph, options.provider, batch, "none", seconds / 4)
        fetched = inference(graph, options.provider, batch, "attention", seconds / 4)
        image_bytes = len(spec.layers) * spec.heads * spec.tokens**2 * 2
        free = min(STORE_BYTES, shutil.disk_usage(place).free / 2)
        most = max(2 * batch, int(alone * seconds))
        full, full_limit = whole(
            graph,
            Repeated(encoded, min(most, max(batch, int(free / image_bytes)))),
            place,
            options.provider,
            batch,
            "attention",
        )
        none, none_limit = whole(graph, Repeated(encoded, most), place, options.provider, batch, "none")
        hooks = torch_rate(model, dtype, batch, device, False, seconds / 4)
        hooks_fetched = torch_rate(model, dtype, batch, device, True, seconds / 4)
        rows.append(
            [
                name,
                dtype,
                f"{mean:.1e} / {worst:.1e}",
                f"{alone:.0f}",
                f"{small:.0f}",
                f"{fetched:.0f}",
                f"{none:.0f} ({none_limit})",
                f"{full:.0f} ({full_limit})",
                f"{hooks:.0f}",
                f"{hooks_fetched:.0f}",
                f"{none / hooks_fetched:.1f} / {full / hooks_fetched:.1f}",
            ]
        )
        graph.unlink()
    return rows


HEAD = [
    "model",
    "graph",
    "row total variation from the CPU, mean / largest",
    "inference alone",
    "and statistics",
    "and attention to the host",
    "run, statistics and prefix rows (limit)",
    "run, full float16 store (limit)",
    "PyTorch, hooks",
    "and attention to the host",
    "runs against that",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--checkpoints", type=Path, help="a folder of MODEL.safetensors")
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"), help="where stores are written: a RAM disk")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run, at the rate of inference alone")
    parser.add_argument("--quick", action="store_true", help="one small model, tiny counts: to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch, options.seconds = options.models[:1], 2, 0.4
    if not os.access(options.place, os.W_OK):
        options.place = Path(tempfile.gettempdir())
    encoded = pictures()
    rows: list[list[str]] = []
    options.started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="attlas-gpu-", dir=options.place) as folder:
        place = Path(folder)
        try:
            for name in options.models:
                rows += bench(name, options, encoded, place)
        except attlas.AttlasError as error:
            sys.exit(str(error))
        graph = place / "limits.onnx"
        spec = attlas.export("deit_tiny_patch16_224", graph, random_init=True).spec
        copied, how = copy_speed(graph, options.provider, options.seconds / 4)
        decoded = decode_speed(encoded, spec.recipe, options.seconds / 4)
        written = disk_speed(place)
    print(
        f"{card(options.provider)}, {cores()} cores, onnxruntime {ort.__version__}, {datetime.date.today()}, "
        f"batches of {options.batch}, images/s; {time.perf_counter() - options.started:.0f} s in all\n"
    )
    for row in [HEAD, ["---"] * len(HEAD), *rows]:
        print(f"| {' | '.join(row)} |")
    print(
        f"\nLimits: device to host {copied / 1e9:.1f} GB/s ({how}), {options.place} {written / 1e9:.1f} GB/s, "
        f"decoding {decoded:.0f} images/s on all cores."
    )


if __name__ == "__main__":
    main()
