"""The fused kernel against plain float32 numpy: rollout, distance and entropy over float16 attention in memory.

Run with ATTLAS_SHARED naming a folder with `models/deit_tiny_patch16_224.safetensors` and `images/`, so that the
attention is real: `python benchmarks/kernel.py [--images 48] [--rounds 7] [--threads 2]`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from attlas.analysis import formulas
from attlas.analysis.kernels.fused import Reducer
from attlas.exporter.spec import GraphSpec, Recipe, Weights

GRID, PIXELS = (14, 14), (16, 16)
SPEC = GraphSpec(
    model="deit_tiny_patch16_224",
    tag="",
    weights=Weights("checkpoint", ""),
    dtype="float32",
    image_size=(224, 224),
    recipe=Recipe((248, 248), (224, 224), "center", "bicubic", (0.5,) * 3, (0.5,) * 3),
    patch_size=PIXELS,
    grid=GRID,
    prefix=("class",),
    pooling="class",
    layers=tuple(range(12)),
    depth=12,
    heads=3,
    attention_kind="probability",
    position="absolute",
    outputs=(),
)


def real_attention(shared: Path, images: int) -> np.ndarray:
    """(layer, image, head, query, key), float32, of deit_tiny over the folder's first pictures."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    timm.layers.set_fused_attn(False)
    model = timm.create_model(SPEC.model, pretrained=False)
    model.load_state_dict(load_file(shared / "models" / f"{SPEC.model}.safetensors"))
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    found: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, given, out: found.append(out.numpy()))
    files = sorted((shared / "images").iterdir())[:images]
    parts = []
    with torch.inference_mode():
        for start in range(0, len(files), 8):
            found.clear()
            model(torch.stack([transform(Image.open(f).convert("RGB")) for f in files[start : start + 8]]))
            parts.append(np.stack(found))
    return np.concatenate(parts, axis=1)


def plain(layers: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """What people write: one image after another, float32, the class row through the layers' head means."""
    distances = np.asarray(formulas.patch_distances(GRID, PIXELS), np.float32)
    eye = np.eye(SPEC.tokens, dtype=np.float32)
    far, spread, maps = [], [], []
    for image in range(len(layers[0])):
        a = np.stack([layer[image] for layer in layers]).astype(np.float32)
        far.append((a[..., 1:, 1:] * distances).sum(-1).mean(-1))
        spread.append(-(a * np.log(np.maximum(a, np.float32(1e-30)))).sum(-1).mean(-1))
        m = a.mean(1) + eye
        m /= m.sum(-1, keepdims=True)
        row = m[-1][0]
        for layer in m[-2::-1]:
            row = row @ layer
        maps.append(row[1:].reshape(GRID))
    return np.stack(far), np.stack(spread), np.stack(maps)


def seconds(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, in interleaved rounds after one for warming up."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=48)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    wide = real_attention(Path(os.environ["ATTLAS_SHARED"]), chosen.images)
    layers = [np.ascontiguousarray(a, np.float16) for a in wide]
    single = [np.ascontiguousarray(a, np.float32) for a in wide]
    codes = [np.round(255 * np.sqrt(a)).astype(np.uint8) for a in wide]
    reducer = Reducer(SPEC)
    size = sum(a.nbytes for a in layers) / 1e9

    def threaded(given: list[np.ndarray]) -> Callable[[], object]:
        cuts = np.array_split(np.arange(chosen.images), chosen.threads)
        parts = [[a[cut[0] : cut[-1] + 1] for a in given] for cut in cuts]
        return lambda: list(threads.map(reducer, parts))

    with ThreadPoolExecutor(chosen.threads) as threads:
        names = ["plain float32 numpy", "kernel, 1 thread", f"kernel, {chosen.threads} threads"]
        names += [f"the same, {dtype}" for dtype in ("float32", "uint8")]
        calls = [lambda: plain(layers), lambda: reducer(layers), *(threaded(g) for g in (layers, single, codes))]
        found = seconds(chosen.rounds, *calls)
    print(f"{chosen.images} images, {size:.2f} GB as float16, medians of {chosen.rounds} interleaved rounds")
    for name, taken in zip(names, found, strict=True):
        print(f"{name:24} {size / taken:6.2f} GB/s of float16   {found[0] / taken:5.1f} x numpy")

    exact = np.stack(layers, 1).astype(np.float64)
    references = {
        "distance": formulas.distance(exact, GRID, PIXELS),
        "distance_renormalized": formulas.distance_renormalized(exact, GRID, PIXELS),
        "entropy": formulas.entropy(exact),
        "entropy_patch": formulas.entropy_patch(exact, 1),
        "prefix_mass": formulas.prefix_mass(exact, 1),
        "rollout": formulas.rollout([exact[:, layer] for layer in range(12)], GRID),
    }
    got = reducer(layers)
    for name, value in references.items():
        print(f"{name:24} off float64 by {np.abs(got[name] - value).max() / np.abs(value).max():.1e} of its maximum")


if __name__ == "__main__":
    main()
