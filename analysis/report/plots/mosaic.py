"""Many small maps on one scale, without a gap that a title would need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..numbers import Floats
from .sheet import Sheet, limits_of, scale_of
from .style import COLOURS, NARROW, WIDE, style

__all__ = ["mosaic"]

LEFT, RIGHT, FOOT, HEAD = 0.36, 0.04, 0.62, 0.06
TALLEST = 7.2  # inches: a printed page ends


def mosaic(
    values: Floats,
    label: str,
    names: tuple[str, str],
    *,
    ticks: tuple[Sequence[int], Sequence[int]],
    limits: tuple[float, float] | None = None,
    root: bool = False,
    narrow: bool = False,
) -> Any:
    """Maps (row, column, y, x), with what rows and columns count at the margins."""
    height, width = values.shape[2:]
    gap = max(1, round(0.08 * max(height, width)))
    whole = _tiled(values, gap)
    page = NARROW if narrow else WIDE
    wide = page - LEFT - RIGHT
    wide = min(wide, TALLEST * whole.shape[1] / whole.shape[0])
    tall = wide * whole.shape[0] / whole.shape[1]
    scale = scale_of(limits or limits_of([whole]), root)
    with style():
        sheet = Sheet(page, tall + FOOT + HEAD)
        ax = sheet.inset(LEFT, HEAD, wide, tall)
        image = ax.imshow(whole, cmap=COLOURS, norm=scale)
        _count(ax.yaxis, ticks[0], height + gap, height, tall)
        _count(ax.xaxis, ticks[1], width + gap, width, wide)
        ax.tick_params(length=0, pad=1.5)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_ylabel(names[0], labelpad=2)
        ax.set_xlabel(names[1], labelpad=1.5)
        sheet.bar(image, (LEFT, HEAD + tall + FOOT - 0.345, min(2.56, wide)), label, root)
    return sheet.figure


def _tiled(values: Floats, gap: int) -> Floats:
    """All maps as one, with gaps of NaN between them."""
    down, across, height, width = values.shape
    whole = np.full((down * (height + gap) - gap, across * (width + gap) - gap), np.nan)
    for row, column in np.ndindex(down, across):
        top, left = row * (height + gap), column * (width + gap)
        whole[top : top + height, left : left + width] = values[row, column]
    return whole


def _count(axis: Any, numbers: Sequence[int], step: int, edge: int, inches: float) -> None:
    """A number at the middle of each map, or of every few where they would touch."""
    skip = max(1, -(-len(numbers) * 8 // round(72 * inches)))
    places = [n * step + (edge - 1) / 2 for n in range(len(numbers))]
    axis.set_ticks(places[::skip], [str(n) for n in numbers][::skip])
