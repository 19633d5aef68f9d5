"""`attlas judge` against plain classification by onnxruntime: forwards a second, and core milliseconds a forward.

    python benchmarks/judge.py CHECKPOINT IMAGES [--count 167] [--rounds 3] [--steps 16] [--fill mean]

The maps need gradients; the pictures are judged by the graph of the same weights without them, as a user would who is
told that one with gradients computes its logits at less than half the speed.

The plain graph is the timm model as torch exports it: no attention outputs, fused attention, normalised float32 input.
It runs in the best of three ways (both cores on one picture, on batches of 8, a core each on single pictures) on
pictures that are ready in memory: before and after every round of judging, --plain pictures each time. A round is
compared with the better of the means of what stands around it, since the machine may do something else, too.

deit_tiny_patch16_224, 8 pictures, 2 cores, two rounds (2026-11-27):

| who | forwards/s | core ms a forward |
|---|---|---|
| attlas judge | 63.7 67.2 | 29.9 28.3 |
| plain, 2 cores on one picture | 16.3 51.7 43.5 | 61.7 38.6 45.8 |
| plain, 2 cores on 8 | 36.5 57.9 47.4 | 39.4 34.5 42.1 |
| plain, a core each on one | 67.1 61.3 63.5 | 29.3 32.5 31.4 |

0.99 and 1.08 of the best plain way's rate, 1.08 of its pictures a core second.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnxruntime
import timm
import torch
from attlas.engine.runtime.providers import cores
from safetensors.torch import load_file

MODEL, MAPS = "deit_tiny_patch16_224", ["rollout", "readout_map:layer=11", "chefer", "gradient_rollout"]


def plain_graph(checkpoint: Path, path: Path) -> None:
    """The classifier alone."""
    model = timm.create_model(MODEL).eval()
    model.load_state_dict(load_file(checkpoint))
    example = torch.zeros(2, 3, 224, 224)
    torch.onnx.export(
        model, (example,), path, dynamo=True, input_names=["x"], dynamic_shapes=({0: "batch"},), verbose=False
    )


def classify(path: Path, pictures: int, threads: int, batch: int, workers: int) -> tuple[float, float]:
    """Pictures a second, and core milliseconds a picture, of so many pictures."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    session.run(None, {"x": x})
    began, used = time.perf_counter(), cpu()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: session.run(None, {"x": x}), range(-(-pictures // batch))))
    scale = pictures / (batch * -(-pictures // batch))
    return pictures / (time.perf_counter() - began) / scale, 1000 * (cpu() - used) * scale / pictures


def cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--gradients", type=Path, help="graph exported with --gradients; by default exported first")
    parser.add_argument("--graph", type=Path, help="graph without; by default exported first")
    parser.add_argument("--count", type=int, default=167)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=400, help="pictures in each way, between rounds of judging")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--fill", default="mean")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as place:
        bench(Path(place), options)


def bench(place: Path, options: argparse.Namespace) -> None:
    derived, graph = options.gradients or place / "gradients.onnx", options.graph or place / "deit.onnx"
    store = place / "s.zarr"
    for path, given, gradients in ((derived, options.gradients, True), (graph, options.graph, False)):
        if given is None:
            attlas.export(MODEL, path, checkpoint=options.checkpoint, gradients=gradients)
    plain_graph(options.checkpoint, place / "plain.onnx")
    keep = ("attention", "gradient_mean", "gradient_positive")
    attlas.run(derived, options.images, store, keep=keep, limit=options.count)
    attlas.analyze(store, ["rollout", "readout_map", "chefer", "gradient_rollout"])
    ways = {
        f"plain, {cores()} cores on one picture": (cores(), 1, 1),
        f"plain, {cores()} cores on 8": (cores(), 8, 1),
        "plain, a core each on one": (1, 1, cores()),
    }
    rows: dict[str, list[Any]] = {name: [] for name in ways}
    mine: list[tuple[float, float]] = []

    def around() -> None:
        for name, way in ways.items():
            rows[name].append(classify(place / "plain.onnx", options.plain, *way))

    around()
    for _ in range(options.rounds):
        used: list[float] = []  # at the first picture and after every unit: what is computed before is not judging
        result = attlas.judge(
            store,
            graph,
            options.images,
            maps=MAPS,
            steps=options.steps,
            fill=options.fill,
            overwrite=True,
            progress=lambda _now, used=used: used.append(cpu()),  # type: ignore[misc]
        )
        count = result.forwards
        mine.append((count / result.judging, 1000 * (used[-1] - used[0]) / count))
        around()
    print(f"{result.images} images, {count} forwards a round, load {os.getloadavg()[0]:.1f}\n")
    print("| who | forwards/s | core ms a forward |\n|---|---|---|")
    for name, found in ({"attlas judge": mine} | rows).items():
        print(f"| {name} | {' '.join(f'{a:.1f}' for a, _ in found)} | {' '.join(f'{b:.1f}' for _, b in found)} |")
    rates, cores_s = [], []
    for i, (rate, core) in enumerate(mine):
        beside = [np.mean(rows[name][i : i + 2], axis=0) for name in ways]
        rates.append(rate / max(r for r, _ in beside))
        cores_s.append(min(c for _, c in beside) / core)
    spread = " ".join(f"{one:.2f}" for one in rates)
    print(f"\nagainst the best plain way: {statistics.median(rates):.2f} of its rate ({spread}), ", end="")
    print(f"{statistics.median(cores_s):.2f} of its pictures a core second")


if __name__ == "__main__":
    main()
