"""Maps on one scale, row after row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .sheet import Panel, Sheet, limits_of, scale_of
from .style import NARROW, WIDE, style

__all__ = ["Panel", "maps"]

GAP, TITLE, FOOT, MARGIN = 0.09, 0.19, 0.52, 0.04
LARGEST = 2.6  # inches: a few maps are not blown up to the page's width


def maps(
    panels: Sequence[Panel],
    label: str,
    *,
    columns: int,
    narrow: bool = False,
    limits: tuple[float, float] | None = None,
    root: bool = False,
) -> Any:
    """Maps under their titles, a colour bar below them all.

    Colours follow the values, or with `root` their square roots, where a few large ones would leave the rest black.
    """
    width = NARROW if narrow else WIDE
    height, across = panels[0].size
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    edge = min((width - 2 * MARGIN - (columns - 1) * GAP) / columns, LARGEST)
    tall = edge * height / across
    step = tall + TITLE + 0.05
    total = rows * step - 0.05 + FOOT + MARGIN
    scale = scale_of(limits or limits_of([p.values for p in panels]), root)
    with style():
        sheet = Sheet(width, total)
        for place, panel in enumerate(panels):
            row, column = divmod(place, columns)
            left, top = MARGIN + column * (edge + GAP), MARGIN + row * step
            image = sheet.panel(panel, left, top + TITLE, edge, scale)
            sheet.text(left + edge / 2, top + 0.6 * TITLE, panel.title, 7, ha="center")
        sheet.bar(image, (MARGIN + 0.04, total - FOOT + 0.145, min(2.56, width - 0.6)), label, root)
    return sheet.figure
