"""The result of a run, and what is said of it: as lines for the user, or as data for a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..words import counted
from .amounts import alone_line, duration, estimate_lines
from .job import Estimate
from .sources.items import shown
from .store.storage import Url
from .store.store import Store

__all__ = ["RunResult", "outcome_data", "outcome_lines", "plan_data", "plan_lines"]


@dataclass(frozen=True, slots=True, repr=False)
class RunResult:
    """The result of a run.

    Attributes:
        path: path or URL of the store.
        images: number of images in the plan; `done`: done by this run; `errors`: unreadable, in the whole store.
        seconds: wall time of this run; `stages`: the workers' seconds by stage.
        alone: images per second that each stage could have done alone, the slowest first, which was the limit.
        provider: onnxruntime's name of the execution provider, `OpenVINO` or `OpenVINO, bfloat16`.
        labelled: images whose label matches a class; `top1`, `top5`: how many of them are classified correctly.
        finished: whether every unit of the store is done (with `shard`, other processes may still have to do theirs).
        notes: lines that the user should read: a resume with other versions, statistics that are left out.
    """

    path: Path | Url
    images: int
    done: int
    errors: int
    seconds: float
    stages: dict[str, float]
    alone: dict[str, float]
    provider: str
    labelled: int
    top1: int
    top5: int
    finished: bool
    estimate: Estimate
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        planned = not self.provider  # nothing was to be written, or nothing is yet
        return "\n".join([f"{self.path}: planned", *plan_lines(self)] if planned else outcome_lines(self, named=0))


def plan_data(result: RunResult) -> dict[str, Any]:
    """`plan_lines` for a program."""
    estimate = result.estimate
    return {
        "images": estimate.images,
        "images_found": estimate.total,
        "left_out": estimate.others,
        "bytes_raw": estimate.bytes_raw,
        "bytes_expected": estimate.bytes_expected,
        "bytes_free": estimate.bytes_free,
        "batch": estimate.plan.batch,
        "inferred_at_once": estimate.plan.at_once,
        "images_per_unit": estimate.plan.unit,
        "units": estimate.plan.units,
        "units_done": estimate.done,
    }


def _unreadable(path: Path | Url, most: int) -> list[str]:
    """The first images that could not be read, and why."""
    store = Store(path)
    keys, errors = store.read("path"), store.read("error")
    found = [i for i, why in enumerate(errors) if why][: most + 1]
    return [f"  {shown(keys[i])}: {errors[i]}" for i in found[:most]] + (["  ..."] if len(found) > most else [])


def plan_lines(result: RunResult) -> list[str]:
    """The result of a dry run, as lines."""
    plan = result.estimate.plan
    at_once = f", {plan.at_once} inferred at once" if plan.at_once != plan.batch else ""
    return [
        *estimate_lines(result.estimate),
        f"{counted(plan.units, 'unit')} of {counted(plan.unit, 'image')}, batches of {plan.batch}{at_once}; "
        f"{result.estimate.done:,} done",
    ]


def outcome_data(result: RunResult) -> dict[str, Any]:
    """`outcome_lines` for a program."""
    return {
        "path": str(result.path),
        "images": result.images,
        "done": result.done,
        "errors": result.errors,
        "finished": result.finished,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.done / result.seconds, 2) if result.seconds else None,
        "stages": {name: round(value, 3) for name, value in result.stages.items()},
        "alone": result.alone,
        "limit": next(iter(result.alone), None),
        "provider": result.provider,
        "labelled": result.labelled,
        "top1": result.top1,
        "top5": result.top5,
        "notes": list(result.notes),
    }


def outcome_lines(result: RunResult, named: int = 5) -> list[str]:
    """The result of a run, as lines: rate, what limited it, accuracy, unreadable images (some named), what is left."""
    if result.done:
        speed = f"{result.done / result.seconds:.1f} images/s"
        rate = f"{counted(result.done, 'image')} in {duration(result.seconds)}, {speed}"
    else:
        rate = "nothing was left to do"
    lines = [f"{result.path}: {rate}, {result.provider.removesuffix('ExecutionProvider')}"]
    if result.alone:
        lines.append(alone_line(result.alone))
    if result.labelled:
        lines.append(
            f"top-1 {result.top1}/{result.labelled} ({result.top1 / result.labelled:.1%}), "
            f"top-5 {result.top5}/{result.labelled} ({result.top5 / result.labelled:.1%})"
        )
    if result.errors:
        lines.append(f"{counted(result.errors, 'image')} could not be read; the store's `error` says why")
        lines += _unreadable(result.path, named) if named else []
    if not result.finished:
        lines.append("not finished: other shards, or the same command, do the rest")
    return lines
