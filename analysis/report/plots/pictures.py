"""Pictures with their maps: a row for each picture, a column for each kind of map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .sheet import Panel, Sheet, limits_of, scale_of
from .style import NARROW, WIDE, style

__all__ = ["Column", "Panel", "Row", "pictures"]

GAP, TITLE, MARGIN, LARGEST = 0.12, 0.24, 0.04, 2.2


@dataclass(frozen=True, slots=True)
class Row:
    """A line of text and the panels under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """What stands in a column: its heading, the unit at its colour bar ("" for pictures), and its scale."""

    heading: str
    unit: str = ""
    root: bool = False


def pictures(rows: Sequence[Row], columns: Sequence[Column], *, narrow: bool = False, shared: bool = False) -> Any:
    """Every column of maps has a scale of its own, or with `shared` all have one."""
    width = NARROW if narrow else WIDE
    count, (height, across) = len(columns), rows[0].panels[0].size
    tight = narrow or count > 4  # headings and units take two lines
    head, foot = 0.32 if tight else 0.22, 0.66 if tight else 0.55
    tiny = narrow and count > 4
    edge = min((width - 2 * MARGIN - (count - 1) * GAP) / count, LARGEST)
    step = edge * height / across + TITLE
    total = head + len(rows) * step + foot + MARGIN
    scales = _scales(rows, columns, shared)
    with style():
        sheet = Sheet(width, total)
        for place, row in enumerate(rows):
            top = MARGIN + head + place * step
            sheet.text(MARGIN, top + 0.55 * TITLE, _shortened(row.title, 54 if narrow else 100), 6.5 if narrow else 7.5)
            images = [
                sheet.panel(panel, MARGIN + at * (edge + GAP), top + TITLE, edge, scales[at])
                for at, panel in enumerate(row.panels)
            ]
        for at, column in enumerate(columns):
            left = MARGIN + at * (edge + GAP)
            heading = column.heading if tight else column.heading.replace("\n", " ")
            sheet.text(left, MARGIN + head / 2, heading, 5 if tiny else 6 if narrow else 7, fontweight="bold")
            if column.unit:
                sheet.bar(
                    images[at],
                    (left + 0.03, total - foot + 0.145, edge - 0.06),
                    column.unit,
                    column.root,
                    size=5 if tiny else 6.5,
                    wrap=tight,
                )
    return sheet.figure


def _scales(rows: Sequence[Row], columns: Sequence[Column], shared: bool) -> list[Any]:
    """Of each column of maps; None for pictures."""
    maps = [[row.panels[at].values for row in rows] if column.unit else [] for at, column in enumerate(columns)]
    if shared:
        everything = [values for one in maps for values in one]
        maps = [everything if one else one for one in maps]
    return [scale_of(limits_of(one), c.root) if one else None for one, c in zip(maps, columns, strict=True)]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
