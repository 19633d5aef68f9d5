"""Check that an export fits into this machine's memory before anything is built, so that the process is not killed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...errors import AttlasError
from .summary import Summary

__all__ = ["COMPARED", "at_once", "available", "needed", "pictures_of", "refuse_too_large"]

# Measured, see docs/exporter.md: the libraries; the weights in the model, in onnxruntime's session, and as this packs
# them for its products (or in float64, for a model that is compared so).
_LIBRARIES, _COPIES = 0.9e9, 3.0
# A block's maps while it is computed: scores, what is added to them, and what softmax gives, with a copy to compare.
_IN_A_BLOCK = 4
# Backward, all blocks' maps are kept, in PyTorch and in onnxruntime.
_KEPT_FOR_GRADIENTS = 4

# Maps of the compared pictures are kept for a few blocks at a time, so that a model with many tokens fits: so many
# bytes, or a sixth of the free memory if that is more, in onnxruntime and in PyTorch each. If one block takes more than
# LARGEST_BLOCK, one picture is compared.
AT_ONCE, LARGEST_BLOCK = 1.0e9, 1.0e9
COMPARED = 3  # pictures, of others; not 2, because a graph is traced with 2


def at_once() -> float:
    """Bytes of maps that the comparison may hold at a time, twice."""
    return max(AT_ONCE, (available() or 0.0) / 6)


def pictures_of(heads: int, tokens: int) -> int:
    """How many pictures a graph is compared on."""
    return COMPARED if COMPARED * 4 * heads * tokens**2 <= LARGEST_BLOCK else 1


def needed(summary: Summary, layers: Collection[int] | None = None, *, gradients: bool = False) -> float:
    """Approximate peak memory of the export, in bytes.

    Args:
        summary: the model.
        layers: the blocks whose maps are outputs; all by default.
        gradients: whether there are gradients by them.
    """
    weights = 4 * summary.parameters
    block = 4 * summary.heads * summary.tokens**2 * pictures_of(summary.heads, summary.tokens)
    depth = summary.depth if layers is None else len(set(layers))
    each = block * (2 if gradients else 1)
    held = 2 * min(depth * each, max(AT_ONCE, each))
    # The first look, at two pictures, is always at all blocks, one after the other.
    working = _IN_A_BLOCK * max(block, 2 * 4 * summary.heads * summary.tokens**2)
    kept = _KEPT_FOR_GRADIENTS * summary.depth * block if gradients else 0
    return _LIBRARIES + _COPIES * weights + held + working + kept


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


def refuse_too_large(summary: Summary, layers: Collection[int] | None = None, *, gradients: bool = False) -> None:
    """Refuse an export that needs too much memory; arguments as for `needed`.

    Raises:
        AttlasError: it needs more memory than is free.
    """
    wanted, left = needed(summary, layers, gradients=gradients), available()
    if left is not None and wanted > left:
        raise AttlasError(
            f"{summary.name}: exporting it takes about {wanted / 1e9:.1f} GB of memory "
            f"({summary.parameters / 1e6:.0f} M weights, {summary.tokens} tokens), and {left / 1e9:.1f} GB are free; "
            "free some, or export it on a larger machine: the graph runs anywhere"
        )
