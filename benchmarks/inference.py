"""Whether intervals cover their mean, and q values keep false discoveries rare, by simulation.

    python benchmarks/inference.py [--store STORE.zarr ...] [--only coverage|discoveries] [--values distance entropy]

The values are skewed ones of known distributions, and every scalar statistic of each store. Without --store, and with
ATTLAS_SHARED naming a folder of `models/` and `images/`, a store of deit_tiny with norms and gradients is made first.

Images are drawn from a store's with replacement, so that its means are the truth. `coverage` is the share of all
samples, layers and heads whose interval holds it, in percent: n = 6 / 20 / 100; the standard error is over samples,
since heads of one sample are alike. `discoveries` labels images at random: P(any) is how often one q is at most 0.05.
FDR and power are with every fifth group (at least one) shifted in a third of the entries, by 5 standard errors of a
group's mean: the share of what is found in the other entries, and the share of shifted (group, entry) pairs that is
found. `Welch` is P(any) of Welch's test with the same adjustment. The latest tables are in docs/statistics.md.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attlas
import numpy as np
from attlas.analysis.catalog import CATALOG, held
from attlas.analysis.statistics import differences
from attlas.analysis.statistics.differences import benjamini_hochberg, group_differences, welch
from attlas.analysis.statistics.inference import interval
from attlas.analysis.statistics.moments import Moments
from attlas.engine.store.store import Store

RANGES = {"one in 20 not 0": (0.0, 1.0)}
DESIGNS = ((2, 400), (10, 80), (100, 8), (166, 5), (1000, 50))
SIZES, LEVEL, SHIFT, BLOCK = (6, 20, 100), 0.05, 5.0, 50


def made(folder: Path) -> list[Path]:
    """Two stores of trained weights, with gradients of the logit and of the loss: every scalar statistic is in one."""
    shared = Path(os.environ["ATTLAS_SHARED"])
    weights = shared / "models" / "deit_tiny_patch16_224.safetensors"
    scalars = [one.name for one in CATALOG.values() if one.scalar]
    of_loss = [name for name in scalars if name in ("head_importance_loss", "head_importance_michel")]
    stores = []
    targets: dict[Literal["logit", "loss"], list[str]] = {
        "logit": [name for name in scalars if name not in of_loss],
        "loss": of_loss,
    }
    for of, names in targets.items():
        graph, store = folder / f"{of}.onnx", folder / f"{of}.zarr"
        attlas.export("deit_tiny_patch16_224", graph, checkpoint=weights, norms=of == "logit", gradients=of)
        attlas.run(graph, shared / "images", store, keep=("attention", "gradient"), target="label", reducer=None)
        attlas.analyze(store, names)
        stores.append(store)
    return stores


def populations(stores: list[Path]) -> Iterator[tuple[str, Any]]:
    """(name, (image, entry) values), of which images are drawn."""
    random = np.random.default_rng(0)
    common = random.normal(size=(100_000, 1))  # heads of one image are alike
    noise = (common + random.normal(size=(100_000, 24))) / np.sqrt(2)
    yield "normal", noise
    yield "log-normal", np.exp(noise)
    yield "a third not 0", np.where(noise > 0.43, np.exp(noise), 0)
    yield "one in 20 not 0", np.where(noise > 1.64, 1.0, 0)
    for path in stores:
        store = Store(path)
        valid = store.read("valid").astype(bool) & store.done_images
        for one in held(store):
            if one.scalar and one.name in store:
                values = store.read(one.name)[valid].astype(np.float64).reshape(int(valid.sum()), -1)
                if (varies := values.std(axis=0) > 0).any():
                    yield one.name, values[:, varies]


# -- intervals --------------------------------------------------------------------------------------------------------


def students(values: Any, within: Any) -> tuple[Any, Any]:
    """Student's interval alone; as wide as nothing where all values are equal."""
    from scipy.special import stdtrit

    n, mean = len(values), values.mean(axis=0)
    half = stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def coverage(name: str, population: Any, samples: int) -> str:
    """Cells, each of every n: coverage of both intervals, its standard error, and how wide the second is."""
    mean, within = population.mean(axis=0), CATALOG[name].within if name in CATALOG else RANGES.get(name)
    cells: dict[str, list[str]] = {"t": [], "ours": [], "error": [], "width": []}
    for n in SIZES:
        random, widths = np.random.default_rng(1), []
        found: dict[str, list[Any]] = {"t": [], "ours": []}
        for _ in range(samples // BLOCK):
            values = population[random.integers(0, len(population), (n, BLOCK))]
            for kind, (low, high) in {
                "t": students(values, within),
                "ours": interval(values, within=within),
            }.items():  # what has no interval, NaN, is not covered
                found[kind].append(((low <= mean) & (mean <= high)).mean(axis=1))
            widths.append(np.nanmedian((high - low) / population.std(axis=0)))
        for kind, parts in found.items():
            cells[kind].append(f"{100 * np.mean(parts):.1f}")
        cells["error"].append(f"{100 * np.std(found['ours']) / math.sqrt(np.size(found['ours'])):.1f}")
        cells["width"].append(f"{np.mean(widths):.2f}")
    return " | ".join(" / ".join(cell) for cell in cells.values())


# -- discoveries ------------------------------------------------------------------------------------------------------


def by_welch(values: Any, groups: Any, count: int) -> Any:
    """The q values that earlier versions had."""
    parts = [Moments.of(values[groups == g]) for g in range(count)]
    whole = Moments.of(values)
    rest = []
    for part in parts:
        n = whole.count - part.count
        mean = (whole.count * whole.mean - part.count * part.mean) / n
        second = whole.second - part.second - (part.mean - mean) ** 2 * part.count * n / whole.count
        rest.append(Moments(n, mean, np.maximum(second, 0)))
    return benjamini_hochberg(np.stack([welch(*pair).p for pair in zip(parts, rest, strict=True)]))


def by_chance(values: Any, count: int, size: int, labellings: int, random: Any) -> float:
    """How often one q is at most 0.05 with random labels: the p values of `group_differences`, of many labellings.

    What random groups of these images give does not depend on the labels, and is drawn once for all of them.
    """
    off = values - values.mean(axis=0)
    off = off[:, off.std(axis=0) > 0] / off.std(axis=0)[off.std(axis=0) > 0]
    entries = off.shape[1]
    sums = [off[random.permutation(len(off))].reshape(count, size, entries).sum(axis=1) for _ in range(labellings)]
    observed = np.abs(np.concatenate(sums)) / differences._deviation(size, len(off))
    needed = math.ceil(count * entries / differences.FINEST)
    p, _ = differences._exceeded(observed, off.astype(np.float32), min(size, len(off) - size), needed, 0)
    return float(np.mean([benjamini_hochberg(one).min() <= LEVEL for one in np.split(p, labellings)]))


def discoveries(population: Any, count: int, size: int, draws: tuple[int, int], labellings: int) -> str:
    """P(any), FDR and power, the first two with their standard error, and P(any) of Welch's test.

    `draws` are the samples of images for P(any), each of so many `labellings`, and for FDR and power.
    """
    random, entries = np.random.default_rng(2), population.shape[1]
    groups = np.repeat(np.arange(count), size)
    shifted = np.zeros((count, entries), bool)
    shifted[:: 5 if count > 5 else count, : max(1, entries // 3)] = True
    false, found, anything, before = [], [], [], []
    for _ in range(draws[0]):
        values = population[random.integers(0, len(population), count * size)]
        anything.append(by_chance(values, count, size, labellings, random))
        if count <= 166:
            before.append(np.nanmin(by_welch(values, groups, count), initial=1) <= LEVEL)
    for _ in range(draws[1]):
        values = population[random.integers(0, len(population), count * size)]
        moved = values + shifted[groups] * population.std(axis=0) * SHIFT / np.sqrt(size)
        hits = group_differences(moved, groups, seed=int(random.integers(2**31))).q <= LEVEL
        false.append(float(hits[:, ~shifted.any(axis=0)].sum()) / max(1, int(hits.sum())))
        found.append(hits[shifted].mean())
    old, share = f"{np.mean(before):.2f}" if before else "", float(np.mean(anything))
    # Labellings of one sample share their random groups, so that errors are over samples.
    errors = np.std(anything) / math.sqrt(draws[0]), np.std(false) / math.sqrt(draws[1])
    return f"{share:.3f} ± {errors[0]:.3f} | {np.mean(false):.3f} ± {errors[1]:.3f} | {np.mean(found):.2f} | {old}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, nargs="*", default=[])
    parser.add_argument("--only", choices=["coverage", "discoveries"])
    parser.add_argument("--values", nargs="*", help="only these, by name")
    parser.add_argument("--groups", type=int, nargs="*", help="only designs of so many groups")
    parser.add_argument("--samples", type=int, default=1000, help="of each n")
    parser.add_argument("--draws", type=int, nargs=2, default=(20, 20), help="samples of images: P(any), FDR and power")
    parser.add_argument("--labellings", type=int, default=50, help="of each sample for P(any)")
    parser.add_argument("--entries", type=int, help="only so many layers and heads of each statistic, by chance")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make = not options.store and "ATTLAS_SHARED" in os.environ
        chosen = made(Path(folder)) if make else options.store
        all_values = [p for p in populations(chosen) if not options.values or p[0] in options.values]
    if options.only != "discoveries":
        print("| values | Student's t | `interval` | standard error | width, deviations |\n|---|---|---|---|---|")
        for name, population in all_values:
            print(f"| {name} | {coverage(name, population, options.samples)} |", flush=True)
    if options.only != "coverage":
        print("| values | groups | P(any) | FDR | power | Welch |\n|---|---|---|---|---|---|")
        for count, size in (design for design in DESIGNS if not options.groups or design[0] in options.groups):
            for name, population in all_values:
                some = np.random.default_rng(3).permutation(population.shape[1])[: options.entries]
                cells = discoveries(population[:, some], count, size, tuple(options.draws), options.labellings)
                print(f"| {name} | {count} × {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
