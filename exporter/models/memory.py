"""Check that an export fits into this machine's memory before anything is built, so that the process is not killed."""

from __future__ import annotations

from pathlib import Path

from ...errors import AttlasError
from ..spec import LARGEST_FILE
from .summary import Summary

__all__ = ["available", "needed", "refuse_too_large"]

# Measured, see docs/models.md: the libraries; copies of the weights, two of them by protobuf if they go into the file
# itself; the maps of the compared pictures, in PyTorch and in onnxruntime, as float32.
_LIBRARIES = 0.8e9
_COPIES_INSIDE, _COPIES_BESIDE = 4.5, 3.0
_MAPS = 14


def needed(summary: Summary) -> float:
    """Approximate peak memory of the export, in bytes."""
    weights = 4 * summary.parameters
    copies = _COPIES_INSIDE if weights <= LARGEST_FILE else _COPIES_BESIDE
    return _LIBRARIES + copies * weights + _MAPS * summary.attention_bytes


def available() -> float | None:
    """Free bytes of memory, in the machine and its container; None if neither reports it."""
    left = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        left.append(sum(1024.0 * int(lines[key].split()[0]) for key in ("MemAvailable", "SwapFree")))
    except (OSError, KeyError, ValueError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        # The container counts its cache of files as used memory.
        limit, used = (float((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left.append(limit - used + float(cached["inactive_file"]))
    except (OSError, KeyError, ValueError):
        pass
    return min(left, default=None)


def refuse_too_large(summary: Summary) -> None:
    """Refuse an export that needs too much memory.

    Raises:
        AttlasError: it needs more memory than is free.
    """
    wanted, left = needed(summary), available()
    if left is not None and wanted > left:
        raise AttlasError(
            f"{summary.name}: exporting it takes about {wanted / 1e9:.1f} GB of memory "
            f"({summary.parameters / 1e6:.0f} M weights, {summary.tokens} tokens), and {left / 1e9:.1f} GB are free; "
            "free some, or export it on a larger machine: the graph runs anywhere"
        )
