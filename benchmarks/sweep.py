"""Export every timm model with global attention over patches, and say for each whether the graph is the model.

Each name is built with at most `--depth` blocks and random weights. Random weights give uniform attention, which any
wrong graph would reproduce, so queries are scaled until the mean entropy of each layer is about half of ln N. The
graph, with norms where the model's blocks have them, is traced with two pictures and compared with PyTorch on batches
of 1 and 3. Every name appends one JSON line to `--results`; names that stand there already are skipped, so it can
be stopped and run again. `--table` writes the lines as a Markdown table.

    python benchmarks/sweep.py --results sweep.jsonl --table sweep.md [PATTERN...]
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import gc
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from attlas.errors import AttlasError, UsageError
from attlas.exporter.libraries.build import build
from attlas.exporter.libraries.protocol import Model
from attlas.exporter.libraries.timm.build import MODULES
from attlas.exporter.taps.attention import Taps
from attlas.exporter.taps.facts import describe
from attlas.exporter.taps.pictures import pictures
from attlas.exporter.taps.tapped import Tapped
from attlas.exporter.trace.export import export_model
from attlas.exporter.trace.parity import check
from torch.onnx._internal.exporter._registration import ONNXRegistry

# A map of more tokens costs gigabytes and proves nothing more: such models are swept at a smaller picture.
MOST_TOKENS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--results", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--depth", type=int, default=2, help="blocks of each model; 0 for all")
    parser.add_argument("--first", action="store_true", help="only the first matching name of each module")
    parser.add_argument("--minutes", type=float, default=60, help="start no name after this many")
    parser.add_argument(
        "--jobs", type=int, default=1, help="names at a time, a process each; a name keeps one core busy"
    )
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    done = {line["model"] for line in read(options.results)}
    names: list[tuple[str, str]] = []
    for module in sorted(MODULES, key=lambda m: len(timm.list_models(module=m))):  # small families first
        found = [n for n in timm.list_models(module=module) if any(fnmatch.fnmatch(n, p) for p in options.patterns)]
        names += [(module, name) for name in (found[:1] if options.first else found) if name not in done]
    context = multiprocessing.get_context("spawn")
    with options.results.open("a") as file, context.Pool(options.jobs, prepare, maxtasksperchild=40) as pool:
        for line in pool.imap_unordered(swept, [(module, name, options.depth, deadline) for module, name in names]):
            if line is None:
                continue
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{line['model']}: {line.get('error') or line['row_max']}", flush=True)
    if options.table:
        options.table.write_text(table(read(options.results)), encoding="utf-8")


def prepare() -> None:
    """Keep torch's table of ONNX translations, which it makes anew for each export in a fifth of a small one's time."""
    torch.set_num_threads(1)
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def swept(task: tuple[str, str, int, float]) -> dict[str, Any] | None:
    """The line of one name; None where no time is left to begin it."""
    module, name, depth, deadline = task
    if time.monotonic() > deadline:
        return None
    line = {"module": module, **sweep(name, depth)}
    gc.collect()
    return line


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sweep(name: str, depth: int) -> dict[str, Any]:
    """One line of results: the facts the spec states, the figures of both batches, or the error."""
    started = time.process_time()
    line: dict[str, Any] = {"model": name}
    try:
        built = small(name, depth)
        taps = Taps(built)
        line["entropy"] = round(sharpen(built, taps), 3)
        facts, layers = describe(built, taps), tuple(range(taps.depth))
        try:
            tapped = Tapped(built, taps, facts, layers, norms=True)
        except UsageError as error:
            line["without_norms"] = str(error)
            tapped = Tapped(built, taps, facts, layers)
        with tempfile.TemporaryDirectory() as folder:
            result = export_model(built, Path(folder) / "model.onnx", norms=tapped.branches is not None)
            alone = check(result.path, result.spec, tapped.run, images=1)
        spec, parity = result.spec, result.parity
        line |= {
            "prefix": list(spec.prefix),
            "pooling": spec.pooling,
            "grid": list(spec.grid),
            "heads": spec.heads,
            "kind": spec.attention_kind,
            "position": spec.position,
            "image_size": list(spec.image_size),
            "outputs": list(dict.fromkeys(o.name.partition(".")[0] for o in spec.outputs)),
            "row_mean": max(parity.row_mean, alone.row_mean),
            "row_max": max(parity.row_max, alone.row_max),
            "head": parity.head / parity.head_scale,
            "top1": parity.top1,
            "norm_max": parity.norm_max,
        }
    except AttlasError as error:
        line["error"] = str(error)
    except Exception as error:  # a sweep goes on; the line says what happened
        line["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    line["core_seconds"] = round(time.process_time() - started, 1)
    return line


def small(name: str, depth: int) -> Model:
    """Build the model with few blocks, at its own picture size or at one that keeps the maps small."""
    kwargs: dict[str, Any] = {"depth": depth} if depth else {}
    try:
        built = build(name, random_init=True, model_args=kwargs)
    except AttlasError as error:
        if "num_kv_heads" not in str(error):
            raise
        # Such a family states its key heads block by block: one block with fewer keys than queries, one without.
        kwargs["num_kv_heads"] = [4 if i % 2 else None for i in range(depth)]
        built = build(name, random_init=True, model_args=kwargs)
    facts = describe(built, Taps(built, name))
    if facts.tokens <= MOST_TOKENS:
        return built
    # Twenty-four patches an edge: projectors that merge two or three of them divide it.
    return build(name, random_init=True, img_size=24 * facts.patch_size[0], model_args=kwargs)


def sharpen(built: Model, taps: Taps, target: float = 0.5) -> float:
    """Scale every layer's queries until its mean entropy is `target` times ln N; the mean that was reached."""
    images = torch.from_numpy(pictures(1, built.image_size)).permute(0, 3, 1, 2) / 127.5 - 1
    places = dict(enumerate([*taps.owners.values(), *([owner] for owner in taps.parts.class_owners)]))
    mixings: list[Any] = [part for owners in places.values() for owner in owners for part in mixing_of(owner)]
    for mixing in mixings:  # heads that talk: random mixing alone would leave next to nothing of what it mixes
        mixing.weight.data += torch.eye(len(mixing.weight))
    low, high, factor = (dict.fromkeys(places, start) for start in (-4.0, 14.0, 0.0))
    reached: dict[int, float] = {}
    for _ in range(9):
        for layer, owners in places.items():
            middle = (low[layer] + high[layer]) / 2
            for owner in owners:
                scale_queries(owner, 2 ** (middle - factor[layer]))
            factor[layer] = middle
        with torch.no_grad(), taps.recording() as seen:
            built.module(images)
        for layer, a in enumerate([*(seen.maps[layer][0] for layer in taps.owners), *seen.class_maps]):
            a = a.clamp_min(1e-30)
            a = a / a.sum(-1, keepdim=True)
            reached[layer] = float(-(a * a.log()).sum(-1).mean()) / math.log(a.shape[-1])
            (low if reached[layer] > target else high)[layer] = factor[layer]
    return sum(reached.values()) / len(reached)


def mixing_of(owner: torch.nn.Module) -> list[torch.nn.Module]:
    return [getattr(owner, name) for name in ("proj_l", "proj_w") if hasattr(owner, name)]


def scale_queries(owner: Any, factor: float) -> None:
    if hasattr(owner, "scale"):
        owner.scale = owner.scale * factor
    else:  # its queries are normalised, and their gain is the scale
        owner.q_norm.weight.data.mul_(factor)


def table(lines: list[dict[str, Any]]) -> str:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["module"]].append(line)
    good = [line for line in lines if "error" not in line]
    took = [line["core_seconds"] for line in lines]
    rows = [
        f"{len(good)} of {len(lines)} names export with parity; timm {timm.__version__}, torch {torch.__version__}, "
        f"{date.today()}.",
        f"A name took {statistics.median(took):.0f} core seconds (median), {max(took):.0f} at most, all together "
        f"{sum(took) / 60:.0f} core minutes.",
        "",
    ]
    rows += ["| module | names tried | parity | worst mean row variation | worst row | with norms | worst norm |"]
    rows += ["|---|---|---|---|---|---|---|"]
    for module, group in groups.items():
        fine = [line for line in group if "error" not in line]
        worst = [f"{max((line[k] for line in fine), default=math.nan):.1e}" for k in ("row_mean", "row_max")]
        tried = f"{len(group)} of {len(timm.list_models(module=module))}"
        norms = [line["norm_max"] for line in fine if line.get("norm_max") is not None]
        worst += [str(len(norms)), f"{max(norms):.1e}"] if norms else ["", ""]
        rows.append(f"| {module} | {tried} | {len(fine)} | {' | '.join(worst)} |")
    misses = [f"- `{line['model']}`: {line['error']}" for line in lines if "error" in line]
    return "\n".join([*rows, "", *(["Misses:", "", *misses, ""] if misses else [])])


if __name__ == "__main__":
    main()
