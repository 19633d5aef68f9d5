"""A sheet of paper, measured in inches from its top left corner, on which maps, pictures and words are put.

Maps of one figure share one pair of axes: a pair for each would cost more time than all their cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from .style import COLOURS, NARROW

__all__ = ["Box", "Panel", "Sheet", "is_narrow", "limits_of", "scale_of", "thinned"]

type Box = tuple[float, float, float, float]

MARK, LINES = "#5eead4", "#fefefe"  # what is drawn over pictures looks alike on light and dark pages
# Across a picture: no report shows more where it is large, nor where it is less than so many inches.
PIXELS, FEW, SMALL = 320, 160, 1.15


@dataclass(frozen=True, slots=True)
class Panel:
    """One map or picture.

    Attributes:
        title: above it, may be empty.
        values: (y, x) numbers, or (row, column, 3) uint8 for a picture.
        size: (height, width) it stands for, which gives its shape on paper.
        grid: (rows, columns) of patches to draw over a picture, or None.
        mark: (y, x) of a cell to frame, or None.
        lines: after how many rows and columns a line is drawn, 0 for none.
        boxes: (top, left, bottom, right) frames in units of `size`, counted in their order.
        under: (row, column, 3) uint8, the picture that a map lies over, or None for the map alone.
    """

    title: str
    values: npt.NDArray[Any]
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    mark: tuple[int, int] | None = None
    lines: int = 0
    boxes: tuple[Box, ...] = ()
    under: npt.NDArray[np.uint8] | None = None


class Sheet:
    """Matplotlib's Axes as a sheet, measured in inches: as wide as they are, and `height` of that width tall.

    Axes that are too low get a smaller sheet, whose words keep their size.
    """

    def __init__(self, ax: Any, height: Callable[[float], float]) -> None:
        self.ax, box, dpi = ax, ax.get_window_extent(), ax.figure.dpi
        self.width = float(box.width / dpi)
        self.height = height(self.width)
        ax.set_axis_off()
        ax.set_xlim(0, self.width)
        ax.set_ylim(self.height, 0)

    def done(self) -> None:
        """An inch is as long down as across, whatever was drawn."""
        self.ax.set_aspect("equal", adjustable="box", anchor="NW")

    def text(self, left: float, top: float, text: str, size: float, **options: Any) -> None:
        """Words, from their left edge and the middle of their line."""
        self.ax.text(left, top, text, fontsize=size, **{"va": "center"} | options)

    def panel(self, panel: Panel, left: float, top: float, width: float, scale: Any = None) -> Any:
        """A map or picture `width` inches wide."""
        height = width * panel.size[0] / panel.size[1]
        place = {"extent": (left, left + width, top + height, top), "aspect": "auto"}
        if panel.values.ndim == 3:
            image = self.ax.imshow(thinned(panel.values, width), **place)
        else:
            image = self.ax.imshow(panel.values, cmap=COLOURS, norm=scale, **place)
        self._marks(panel, left, top, width, height)
        return image

    def _marks(self, panel: Panel, left: float, top: float, width: float, height: float) -> None:
        """What is drawn over a map or picture."""
        rows, columns = panel.values.shape[:2]
        if panel.grid is not None:
            down, across = (np.arange(1, n) / n for n in panel.grid)
            self._lines(down, across, (left, top, width, height), lw=0.3, alpha=0.55)
        if panel.lines:
            down, across = (np.array([panel.lines / n]) for n in (rows, columns))
            self._lines(down, across, (left, top, width, height), lw=0.4)
        if panel.mark is not None:
            y, x = height / rows, width / columns
            corner = (left + panel.mark[1] * x, top + panel.mark[0] * y)
            self.ax.add_patch(Rectangle(corner, x, y, fill=False, ec=MARK, lw=0.9))
        inch = width / panel.size[1]
        for number, (up, start, bottom, end) in enumerate(panel.boxes, 1):
            corner = (left + start * inch, top + up * inch)
            self.ax.add_patch(
                Rectangle(corner, (end - start) * inch, (bottom - up) * inch, fill=False, ec=MARK, lw=1.2)
            )
            self.ax.text(
                corner[0] + 0.02,
                corner[1] + 0.02,
                str(number),
                color="#010101",
                fontsize=6.5,
                va="top",
                bbox={"fc": MARK, "ec": "none", "pad": 0.8},
            )

    def _lines(
        self, down: npt.NDArray[Any], across: npt.NDArray[Any], place: tuple[float, ...], **options: Any
    ) -> None:
        """White lines at shares of a panel's height and width."""
        left, top, width, height = place
        lines = [[(left, top + y * height), (left + width, top + y * height)] for y in down]
        lines += [[(left + x * width, top), (left + x * width, top + height)] for x in across]
        self.ax.add_collection(LineCollection(lines, colors=LINES, **options), autolim=False)

    def inset(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of their own on the sheet."""
        w, h = self.width, self.height
        return self.ax.inset_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def ends(self, place: tuple[float, float, float], words: tuple[str, str]) -> None:
        """A bar of all colours at (left, top, width), with words at its ends: every map has its own numbers."""
        left, top, width = place
        extent = (left, left + width, top + 0.075, top)
        self.ax.imshow(np.linspace(0, 1, 256)[None], cmap=COLOURS, extent=extent, aspect="auto")
        for at, word, side in zip((left, left + width), words, ("left", "right"), strict=True):
            self.text(at, top + 0.17, word, 6.5, ha=side)

    def bar(
        self,
        image: Any,
        place: tuple[float, float, float],
        label: str,
        root: bool = False,
    ) -> None:
        """A colour bar at (left, top, width), its scale and its label under it."""
        left, top, width = place
        ax = self.inset(left, top, width, 0.075)
        bar = self.ax.figure.colorbar(image, cax=ax, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.locator = FixedLocator(_root_ticks(*image.get_clim())) if root else MaxNLocator(5)
        bar.formatter = FuncFormatter(lambda value, place: f"{value:g}")
        bar.minorticks_off()
        bar.update_ticks()
        ax.tick_params(length=2, pad=1.5, labelsize=6.5)
        ax.set_xlabel(f"{label}, square-root scale" if root else label, fontsize=6.5, labelpad=1.5, loc="left")


def is_narrow(width: float) -> bool:
    """Whether so many inches are a column or a phone, where words take two lines and maps fewer columns."""
    return width < NARROW + 0.5


def scale_of(limits: tuple[float, float], root: bool) -> Any:
    """Colours that follow the values, or with `root` their square roots."""
    return PowerNorm(0.5, *limits) if root else Normalize(*limits)


def limits_of(values: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    """From 0, so that twice the colour's distance is twice the value; below it where values are negative."""
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    if not finite.size:
        return 0.0, 1.0
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return low, high if high > low else low + 1.0


def _root_ticks(low: float, high: float) -> list[float]:
    """Round numbers that lie about evenly on a square-root scale from `low` to `high`."""
    steps = [low + (high - low) * share**2 for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    ticks = [float(f"{value:.1g}") for value in steps]
    return sorted({tick for tick in ticks if low <= tick <= high})


def thinned(picture: npt.NDArray[np.uint8], inches: float) -> npt.NDArray[np.uint8]:
    """Means of blocks of a picture that has more pixels than a report shows where it is so many inches wide."""
    step = -(-picture.shape[1] // (FEW if inches < SMALL else PIXELS))
    if step == 1:
        return picture
    rows, columns = (n // step * step for n in picture.shape[:2])
    blocks = picture[:rows, :columns].reshape(rows // step, step, columns // step, step, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
