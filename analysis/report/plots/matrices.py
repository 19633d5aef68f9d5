"""A picture with numbered boxes, and matrices of how alike what they hold is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..numbers import Floats
from .sheet import Panel, Sheet
from .style import NARROW, WIDE, style

__all__ = ["Panel", "matrices"]

GAP, MARGIN, FOOT, HEAD, LARGEST = 0.34, 0.04, 0.62, 0.2, 2.2
WRITTEN = 8  # of so many objects the numbers still fit their cells


def matrices(panel: Panel, tables: Sequence[tuple[str, Floats]], *, narrow: bool = False) -> Any:
    """The picture, and a matrix of cosines under each title."""
    page, count = NARROW if narrow else WIDE, 1 + len(tables)
    columns = 1 if narrow else count
    edge = min((page - 2 * MARGIN - (columns - 1) * GAP) / columns, LARGEST)
    heights = [edge * panel.size[0] / panel.size[1], *[edge] * len(tables)]
    tall = sum(h + HEAD + GAP for h in heights) - GAP if narrow else max(heights) + HEAD
    low = min(0.0, *(float(values.min()) for _, values in tables))
    with style():
        sheet, top = Sheet(page, tall + FOOT), 0.0
        for place, (title, height) in enumerate(zip([panel.title, *(t for t, _ in tables)], heights, strict=True)):
            left = MARGIN + (0 if narrow else place * (edge + GAP)) + (0.2 if narrow and place else 0)
            sheet.text(left, top + HEAD / 2, title, 7.5, fontweight="bold")
            if place:
                image = _matrix(sheet.inset(left, top + HEAD, edge, edge), tables[place - 1][1], low)
            else:
                sheet.panel(panel, left, top + HEAD, edge)
            top += height + HEAD + GAP if narrow else 0
        sheet.bar(image, (MARGIN + 0.2, tall + FOOT - 0.355, min(2.0, page - 0.5)), "cosine")
    return sheet.figure


def _matrix(ax: Any, values: Floats, low: float) -> Any:
    image = ax.imshow(values, cmap="viridis", vmin=low, vmax=1)
    numbers = [str(n + 1) for n in range(len(values))]
    ax.set_xticks(range(len(values)), numbers)
    ax.set_yticks(range(len(values)), numbers)
    ax.tick_params(length=0)
    for (y, x), value in np.ndenumerate(values if len(values) <= WRITTEN else values[:0]):
        ax.text(
            x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color="#010101" if value > 0.6 else "#fefefe"
        )
    return image
