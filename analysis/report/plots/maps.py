"""Maps on one scale, row after row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .overlay import overlay
from .sheet import Panel, Sheet, is_narrow, limits_of, scale_of, thinned

__all__ = ["Maps", "Panel", "across"]

GAP, TITLE, FOOT, MARGIN = 0.09, 0.19, 0.52, 0.04
LARGEST = 2.6  # inches: a few maps are not blown up to the page's width


def across(count: int) -> tuple[int, int]:
    """In how many columns so many layers stand, on a wide page and on a narrow one."""
    return (6 if count <= 12 else 8), 4


@dataclass(frozen=True, slots=True)
class Maps:
    """Maps under their titles, alone or over their pictures; a colour bar below them all.

    Attributes:
        panels: the maps.
        label: of the colour bar.
        columns: on a wide page and on a narrow one.
        limits: of the colours; by default from 0 to the largest value of all.
        root: colours follow the values' square roots, where a few large ones would leave the rest black.
    """

    panels: Sequence[Panel]
    label: str
    columns: tuple[int, int] = (1, 1)
    limits: tuple[float, float] | None = None
    root: bool = False
    sheet: ClassVar[bool] = True
    named_once: ClassVar[bool] = False

    def _layout(self, width: float) -> tuple[int, float, float]:
        """Columns, a map's width, and from one row to the next, in inches."""
        height, wide = self.panels[0].size
        columns = min(self.columns[is_narrow(width)], len(self.panels))
        edge = min((width - 2 * MARGIN - (columns - 1) * GAP) / columns, LARGEST)
        return columns, edge, edge * height / wide + self._title + 0.05

    @property
    def _title(self) -> float:
        return TITLE if any(panel.title for panel in self.panels) else 0.0

    def height(self, width: float) -> float:
        """Inches."""
        columns, _, step = self._layout(width)
        return -(-len(self.panels) // columns) * step - 0.05 + FOOT + MARGIN

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes, which become a sheet without ticks."""
        sheet = Sheet(ax, self.height)
        columns, edge, step = self._layout(sheet.width)
        scale = scale_of(self.limits or limits_of([p.values for p in self.panels]), self.root)
        for place, panel in enumerate(self.panels):
            row, column = divmod(place, columns)
            left, top = MARGIN + column * (edge + GAP), MARGIN + row * step
            if panel.under is None:
                image = sheet.panel(panel, left, top + self._title, edge, scale)
            else:
                image = _over(sheet, panel, (left, left + edge, top + step - 0.05, top + self._title), scale, self.root)
            sheet.text(left + edge / 2, top + 0.6 * TITLE, panel.title, 7, ha="center")
        where = (MARGIN + 0.04, sheet.height - FOOT + 0.145, min(2.56, sheet.width - 0.6))
        sheet.bar(image, where, self.label, self.root)
        sheet.done()


def _over(sheet: Sheet, panel: Panel, extent: tuple[float, float, float, float], scale: Any, root: bool) -> Any:
    """A map over its picture; all share one scale, and each says its own maximum."""
    assert panel.under is not None
    picture = thinned(panel.under, extent[1] - extent[0])
    options: dict[str, Any] = {"limit": scale.vmax, "root": root, "patch": panel.mark, "extent": extent}
    image = overlay(sheet.ax, picture, panel.values, printed="max {:.3g}", size=5.5, **options)
    image.set_norm(scale)
    return image
