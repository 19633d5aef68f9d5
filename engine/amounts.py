"""Format bytes, times and the estimate of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..words import counted, left_out

if TYPE_CHECKING:
    from .job import Estimate

__all__ = ["alone_line", "amount", "duration", "estimate_lines"]


def amount(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """A time as text, such as `45 s` or `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def alone_line(alone: Mapping[str, float]) -> str:
    """What each stage of a run could have done alone, as text; the slowest, which comes first, was the limit."""
    rates = ", ".join(f"{name} {rate:,.0f}" if rate >= 100 else f"{name} {rate:.1f}" for name, rate in alone.items())
    return f"{next(iter(alone))} was the limit; each stage alone, images/s: {rates}"


def estimate_lines(estimate: Estimate) -> list[str]:
    """The estimate of a run: images, bytes, and a warning if the disk is too small."""
    lines = [
        counted(estimate.images, "image")
        + (f" of {estimate.total:,}, evenly spread" if estimate.images < estimate.total else "")
        + f", {amount(estimate.bytes_raw)} raw, about {amount(estimate.bytes_expected)} stored"
        + (f", {amount(estimate.bytes_free)} free" if estimate.bytes_free is not None else "")
    ]
    left = estimate.bytes_expected * (1 - estimate.done / estimate.plan.units)
    if estimate.bytes_free is not None and left > estimate.bytes_free:
        lines.append("warning: that is more than is free; keep less (--keep, --layers, --store-dtype) or --limit")
    if estimate.others:
        lines.append(f"left out: {left_out(estimate.others)}")
    return lines
