"""A picture with numbered boxes, and matrices of how alike what they hold is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..numbers import Floats
from .sheet import Panel, Sheet, is_narrow

__all__ = ["Matrices", "Panel"]

GAP, MARGIN, FOOT, HEAD, LARGEST = 0.34, 0.04, 0.62, 0.2, 2.2
WRITTEN = 8  # of so many objects the numbers still fit their cells


@dataclass(frozen=True, slots=True)
class Matrices:
    """The picture, and a matrix of cosines under each title."""

    panel: Panel
    tables: Sequence[tuple[str, Floats]]
    sheet: ClassVar[bool] = True
    named_once: ClassVar[bool] = False

    def _heights(self, width: float) -> tuple[float, list[float]]:
        """A matrix' edge, and the height of the picture and of each matrix, in inches."""
        columns = 1 if is_narrow(width) else 1 + len(self.tables)
        edge = min((width - 2 * MARGIN - (columns - 1) * GAP) / columns, LARGEST)
        return edge, [edge * self.panel.size[0] / self.panel.size[1], *[edge] * len(self.tables)]

    def height(self, width: float) -> float:
        """Inches."""
        heights = self._heights(width)[1]
        tall = sum(h + HEAD + GAP for h in heights) - GAP if is_narrow(width) else max(heights) + HEAD
        return tall + FOOT

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes, which become a sheet with ticks of its own."""
        sheet, top = Sheet(ax, self.height), 0.0
        narrow, (edge, heights) = is_narrow(sheet.width), self._heights(sheet.width)
        low = min(0.0, *(float(values.min()) for _, values in self.tables))
        for place, (title, height) in enumerate(
            zip([self.panel.title, *(t for t, _ in self.tables)], heights, strict=True)
        ):
            left = MARGIN + (0 if narrow else place * (edge + GAP)) + (0.2 if narrow and place else 0)
            sheet.text(left, top + HEAD / 2, title, 7.5, fontweight="bold")
            if place:
                image = _matrix(sheet.inset(left, top + HEAD, edge, edge), self.tables[place - 1][1], low)
            else:
                sheet.panel(self.panel, left, top + HEAD, edge)
            top += height + HEAD + GAP if narrow else 0
        sheet.bar(image, (MARGIN + 0.2, sheet.height - 0.355, min(2.0, sheet.width - 0.5)), "cosine")
        sheet.done()


def _matrix(ax: Any, values: Floats, low: float) -> Any:
    image = ax.imshow(values, cmap="viridis", vmin=low, vmax=1)
    numbers = [str(n + 1) for n in range(len(values))]
    ax.set_xticks(range(len(values)), numbers)
    ax.set_yticks(range(len(values)), numbers)
    ax.tick_params(length=0)
    for (y, x), value in np.ndenumerate(values if len(values) <= WRITTEN else values[:0]):
        colour = "#010101" if value > 0.6 else "#fefefe"
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    return image
