"""Pictures with their maps laid over them: a row for each picture, a column for each kind of map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..numbers import Floats
from .overlay import overlay
from .sheet import Panel, Sheet, is_narrow, thinned

__all__ = ["Column", "Pictures", "Row"]

GAP, TITLE, MARGIN, LARGEST, FOOT = 0.12, 0.24, 0.04, 2.2, 0.45
GREY = 190  # of a picture that a store does not hold

type Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Row:
    """One picture.

    Attributes:
        title: a line of text above it.
        pixels: (row, column, 3) uint8, or None where the store does not hold it.
        maps: a map (y, x) for each column.
        under: the picture under each map; by default the one above.
    """

    title: str
    pixels: Pixels | None
    maps: tuple[Floats, ...]
    under: tuple[Pixels | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A kind of map: its heading, the unit of its printed maximum, and whether colours follow square roots."""

    heading: str
    unit: str = ""
    root: bool = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Every map has its own scale, from 0 to its maximum, which is printed on it.

    Attributes:
        rows, columns: what is shown; before the first column stands the picture itself, where all rows have one.
        size: (height, width) that a picture stands for, which gives its shape.
        grid: (rows, columns) of patches drawn over the picture, or None.
        first: the heading of the picture itself.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    first: str = "input and\npatch grid"
    sheet: ClassVar[bool] = True
    named_once: ClassVar[bool] = False

    @property
    def _pictured(self) -> bool:
        return all(row.pixels is not None for row in self.rows)

    def _layout(self, width: float) -> tuple[float, float, float]:
        """A picture's width, from one row to the next, and the head's height, in inches."""
        count = len(self.columns) + self._pictured
        edge = min((width - 2 * MARGIN - (count - 1) * GAP) / max(count, 1), LARGEST)
        tight = is_narrow(width) or count > 4  # headings take two lines
        return edge, edge * self.size[0] / self.size[1] + TITLE, 0.32 if tight else 0.22

    def height(self, width: float) -> float:
        """Inches."""
        _, step, head = self._layout(width)
        return head + len(self.rows) * step + (FOOT if self.columns else 0.05) + MARGIN

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes, which become a sheet without ticks."""
        sheet = Sheet(ax, self.height)
        narrow, (edge, step, head) = is_narrow(sheet.width), self._layout(sheet.width)
        lefts = [MARGIN + at * (edge + GAP) for at in range(len(self.columns) + self._pictured)]
        small = 5 if narrow and len(lefts) > 4 else 6 if narrow else 7
        headings = [self.first] * self._pictured + [column.heading for column in self.columns]
        for left, heading in zip(lefts, headings, strict=True):
            text = heading if head > 0.3 else heading.replace("\n", " ")
            sheet.text(left, MARGIN + head / 2, text, small, fontweight="bold")
        for place, row in enumerate(self.rows):
            top = MARGIN + head + place * step
            sheet.text(MARGIN, top + 0.55 * TITLE, _shortened(row.title, 54 if narrow else 100), 6.5 if narrow else 7.5)
            if self._pictured and row.pixels is not None:
                sheet.panel(Panel("", row.pixels, self.size, self.grid), lefts[0], top + TITLE, edge)
            under = row.under or (row.pixels,) * len(row.maps)
            bottom = top + TITLE + edge * self.size[0] / self.size[1]
            for left, column, values, own in zip(lefts[self._pictured :], self.columns, row.maps, under, strict=True):
                _over(sheet, column, values, own, (left, left + edge, bottom, top + TITLE), small - 1)
        if self.columns:
            left = lefts[self._pictured] + 0.03
            where = (left, sheet.height - FOOT + 0.12, min(2.2, sheet.width - left - MARGIN))
            sheet.ends(where, ("0", "largest of the map"))
        sheet.done()


def _over(
    sheet: Sheet,
    column: Column,
    values: Floats,
    under: Pixels | None,
    extent: tuple[float, float, float, float],
    size: float,
) -> None:
    """A map over its picture, its maximum printed on it."""
    overlay(
        sheet.ax,
        np.full((*values.shape, 3), GREY, np.uint8) if under is None else thinned(under, extent[1] - extent[0]),
        values,
        style="side" if under is None else "overlay",
        root=column.root,
        printed=f"max {{:.3g}} {column.unit}".rstrip() if extent[1] - extent[0] > 0.9 else "{:.3g}",
        extent=extent,
        size=size,
    )


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
