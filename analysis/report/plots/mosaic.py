"""Many small maps on one scale, without a gap that a title would need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..numbers import Floats
from .sheet import Sheet, limits_of, scale_of
from .style import COLOURS

__all__ = ["Mosaic"]

LEFT, RIGHT, FOOT, HEAD = 0.36, 0.04, 0.62, 0.06
TALLEST = 7.2  # inches: a printed page ends


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Maps (row, column, y, x), with what rows and columns count at the margins.

    Attributes:
        values: the maps.
        label: of the colour bar.
        names: what rows and what columns are.
        ticks: the numbers of rows and of columns.
        limits: of the colours; by default from 0 to the largest value.
        root: colours follow the values' square roots.
    """

    values: Floats
    label: str
    names: tuple[str, str]
    ticks: tuple[Sequence[int], Sequence[int]]
    limits: tuple[float, float] | None = None
    root: bool = False
    sheet: ClassVar[bool] = True
    named_once: ClassVar[bool] = False

    @property
    def _gap(self) -> int:
        edge: int = max(self.values.shape[2:])
        return max(1, round(0.08 * edge))

    def _layout(self, width: float) -> tuple[float, float]:
        """(width, height) of all maps together, in inches."""
        down, across = (n * (edge + self._gap) - self._gap
                        for n, edge in zip(self.values.shape[:2], self.values.shape[2:], strict=True))  # fmt: skip
        wide = min(width - LEFT - RIGHT, TALLEST * across / down)
        return wide, wide * down / across

    def height(self, width: float) -> float:
        """Inches."""
        return self._layout(width)[1] + FOOT + HEAD

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes, which become a sheet with ticks of its own."""
        sheet = Sheet(ax, self.height)
        wide, tall = self._layout(sheet.width)
        height, width = self.values.shape[2:]
        whole = _tiled(self.values, self._gap)
        inner = sheet.inset(LEFT, HEAD, wide, tall)
        image = inner.imshow(whole, cmap=COLOURS, norm=scale_of(self.limits or limits_of([whole]), self.root))
        _count(inner.yaxis, self.ticks[0], height + self._gap, height, tall)
        _count(inner.xaxis, self.ticks[1], width + self._gap, width, wide)
        inner.tick_params(length=0, pad=1.5)
        for side in inner.spines.values():
            side.set_visible(False)
        inner.set_ylabel(self.names[0], labelpad=2)
        inner.set_xlabel(self.names[1], labelpad=1.5)
        sheet.bar(image, (LEFT, HEAD + tall + FOOT - 0.345, min(2.56, wide)), self.label, self.root)
        sheet.done()


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
