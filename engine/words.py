"""What a run says of itself: lines for a person, and the same as data for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Estimate
    from .runner import Progress, RunResult

__all__ = [
    "amount", "duration", "estimate_lines", "outcome_data", "outcome_lines", "plan_data", "plan_lines", "progress_line",
]  # fmt: skip


def progress_line(now: Progress) -> str:
    """How far a run is."""
    left = "" if now.left is None else f", {duration(now.left)} left"
    return (
        f"{now.done:,}/{now.total:,} images, {now.rate:.1f} images/s, "
        f"{amount(now.bytes_rate)}/s, mostly {now.limit}{left}"
    )


def estimate_lines(estimate: Estimate) -> list[str]:
    """What a run is going to be: images, bytes, and a warning where the disk is too small."""
    lines = [
        f"{estimate.images:,} images"
        + (f" of {estimate.total:,}, evenly spread" if estimate.images < estimate.total else "")
        + f", {amount(estimate.bytes_raw)} raw, about {amount(estimate.bytes_expected)} stored"
        + (f", {amount(estimate.bytes_free)} free" if estimate.bytes_free is not None else "")
    ]
    left = estimate.bytes_expected * (1 - estimate.done / estimate.plan.units)
    if estimate.bytes_free is not None and left > estimate.bytes_free:
        lines.append("warning: that is more than is free; keep less (--keep, --layers, --store-dtype) or --limit")
    if estimate.others:
        lines.append("left out: " + ", ".join(f"{n:,} {why}" for why, n in sorted(estimate.others.items())))
    return lines


def plan_data(result: RunResult) -> dict[str, Any]:
    """`plan_lines` for a program."""
    estimate = result.estimate
    return {
        "images": estimate.images, "images_found": estimate.total, "left_out": estimate.others,
        "bytes_raw": estimate.bytes_raw, "bytes_expected": estimate.bytes_expected, "bytes_free": estimate.bytes_free,
        "batch": estimate.plan.batch, "images_per_unit": estimate.plan.unit, "units": estimate.plan.units,
        "units_done": estimate.done,
    }  # fmt: skip


def _unreadable(path: Any, most: int = 5) -> list[str]:
    """The first images that could not be read, and why."""
    from .sources.items import shown
    from .store import Store

    store = Store(path)
    keys, errors = store.read("path"), store.read("error")
    found = [i for i, why in enumerate(errors) if why][: most + 1]
    return [f"  {shown(keys[i])}: {errors[i]}" for i in found[:most]] + (["  ..."] if len(found) > most else [])


def plan_lines(result: RunResult) -> list[str]:
    """What a dry run tells."""
    plan = result.estimate.plan
    return [
        *estimate_lines(result.estimate),
        f"{plan.units:,} units of {plan.unit} images, batches of {plan.batch}; {result.estimate.done:,} units are done",
    ]


def outcome_data(result: RunResult) -> dict[str, Any]:
    """`outcome_lines` for a program."""
    return {
        "path": str(result.path), "images": result.images, "done": result.done, "errors": result.errors,
        "finished": result.finished, "seconds": round(result.seconds, 3),
        "images_per_second": round(result.done / result.seconds, 2) if result.seconds else None,
        "stages": {name: round(value, 3) for name, value in result.stages.items()}, "provider": result.provider,
        "labelled": result.labelled, "top1": result.top1, "top5": result.top5, "notes": list(result.notes),
    }  # fmt: skip


def outcome_lines(result: RunResult) -> list[str]:
    """What a run was: rate, right classes, what could not be read, what is left."""
    if result.done:
        rate = f"{result.done:,} images in {duration(result.seconds)}, {result.done / result.seconds:.1f} images/s"
    else:
        rate = "nothing was left to do"
    lines = [f"{result.path}: {rate}, {result.provider.removesuffix('ExecutionProvider')}"]
    if result.labelled:
        lines.append(
            f"top-1 {result.top1}/{result.labelled} ({result.top1 / result.labelled:.1%}), "
            f"top-5 {result.top5}/{result.labelled} ({result.top5 / result.labelled:.1%})"
        )
    if result.errors:
        lines.append(f"{result.errors:,} images could not be read; the store's `error` says why")
        lines += _unreadable(result.path)
    if not result.finished:
        lines.append("not finished: other shards, or the same command, do the rest")
    return lines


def amount(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
