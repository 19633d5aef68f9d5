"""Cells on a sheet: pictures, maps over them, matrices and likeliest classes, in rows under headings."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..report.numbers import Floats
from ..report.plots.overlay import Look, chosen, grid_lines, overlay
from ..report.plots.sheet import Sheet, scale_of
from ..report.plots.style import ACCENT, COLOURS, FAINT, INK, QUIET, WIDE, style
from .subject import probability

__all__ = ["Block", "Cell", "Place", "bars", "image", "matrix", "over", "photograph", "sheet"]

type Place = tuple[float, float, float, float]  # left, right, bottom, top, in inches
type Pixels = npt.NDArray[np.uint8]

MARGIN, GAP, LABEL, HEADING, LINE, BOLD = 0.1, 0.1, 0.2, 0.3, 0.13, 0.17
TALLEST = 4.5  # inches of one cell
LEAST = 0.75  # of the aspect of a list of classes: their lines need room


@dataclass(frozen=True, slots=True)
class Cell:
    """Something `aspect` times as high as wide, with a label above it."""

    label: str
    aspect: float
    draw: Callable[[Sheet, Place], None]


@dataclass(frozen=True, slots=True)
class Block:
    """Cells in columns, under a heading and a few sentences."""

    cells: Sequence[Cell]
    columns: int
    heading: str = ""
    words: str = ""
    largest: float = WIDE

    @property
    def edge(self) -> float:
        """The width of a cell in inches."""
        across = (WIDE - 2 * MARGIN - (self.columns - 1) * GAP) / self.columns
        return min(across, self.largest, TALLEST / max((cell.aspect for cell in self.cells), default=1.0))

    @property
    def rows(self) -> list[Sequence[Cell]]:
        """The cells of each row."""
        return [self.cells[at : at + self.columns] for at in range(0, len(self.cells), self.columns)]

    @property
    def lines(self) -> list[str]:
        """The sentences, cut to the sheet's width."""
        return textwrap.wrap(self.words, 130)

    @property
    def headed(self) -> float:
        """The height of the heading."""
        return HEADING + BOLD * (len(_wrapped(self.heading, 96)) - 1) if self.heading else 0.0

    @property
    def height(self) -> float:
        """Of all of it, in inches."""
        tall = sum(max(c.aspect for c in row) * self.edge + _above(row, self.edge) + GAP for row in self.rows)
        return tall + self.headed + (LINE * len(self.lines) + 0.06 if self.words else 0)


def _above(row: Sequence[Cell], edge: float) -> float:
    """The height of the labels over a row of cells."""
    most = max(len(_label(cell, edge)) for cell in row)
    return LABEL + LINE * (most - 1) if most else 0.0


def _label(cell: Cell, edge: float) -> list[str]:
    """A label in lines as wide as its cell: what tells cells apart, such as layer and head, stands at its end."""
    return _wrapped(cell.label, max(12, int(edge * 19)))


def _wrapped(text: str, length: int) -> list[str]:
    return textwrap.wrap(text, length)


def sheet(title: str, facts: str, blocks: Sequence[Block], foot: str = "", key: str = "maximum") -> Any:
    """A figure as wide as a page: what it is of, the blocks, and how colours are read.

    Args:
        title: in bold.
        facts: under it, quiet.
        blocks: from top to bottom.
        foot: a sentence beside the key of colours; "" for neither.
        key: where the key's colours end; "" for no key.
    """
    lines, titles, told = _wrapped(foot, 100), _wrapped(title, 92), _wrapped(facts, 134)
    head = 0.47 + BOLD * (len(titles) - 1) + LINE * (len(told) - 1)
    tail = max(0.34, LINE * len(lines) + 0.12) if foot else 0.0
    with style():
        tall = MARGIN + head + sum(b.height for b in blocks) + tail
        figure = Figure(figsize=(WIDE, tall))
        page = Sheet(figure.add_axes((0, 0, 1, 1)), lambda _width: tall)
        for at, line in enumerate(titles):
            page.text(MARGIN, MARGIN + 0.1 + at * BOLD, line, 9, fontweight="bold", color=INK)
        for at, line in enumerate(told):
            page.text(MARGIN, MARGIN + 0.29 + (len(titles) - 1) * BOLD + at * LINE, line, 7, color=QUIET)
        top = MARGIN + head
        for block in blocks:
            _draw(page, block, top)
            top += block.height
        if foot:
            if key:
                _key(page, top + 0.04, key)
            left = MARGIN + (1.3 + 0.045 * len(key) if key else 0.0)
            for at, line in enumerate(lines):
                page.text(left, top + 0.08 + at * LINE, line, 6.5, color=QUIET)
        page.done()
    return figure


def _draw(page: Sheet, block: Block, top: float) -> None:
    for at, line in enumerate(_wrapped(block.heading, 96)):
        page.text(MARGIN, top + 0.12 + at * BOLD, line, 8.5, fontweight="bold", color=INK)
    top += block.headed
    for line in block.lines:
        page.text(MARGIN, top + 0.05, line, 7, color=QUIET)
        top += LINE
    top += 0.06 if block.words else 0
    edge = block.edge
    for row in block.rows:
        top += _above(row, edge)
        for at, cell in enumerate(row):
            left = MARGIN + at * (edge + GAP)
            lines = _label(cell, edge)
            for at_line, line in enumerate(lines, 1 - len(lines)):
                page.text(left, top - 0.09 + at_line * LINE, line, 7, color=INK)
            cell.draw(page, (left, left + edge, top + cell.aspect * edge, top))
        top += max(c.aspect for c in row) * edge + GAP


def _key(page: Sheet, top: float, high: str) -> None:
    """The colours from 0 to each map's printed maximum, or to what `high` says."""
    left = MARGIN + 0.12
    place = {"extent": (left, left + 0.9, top + 0.08, top), "aspect": "auto"}
    page.ax.imshow(np.linspace(0, 1, 256)[None], cmap=COLOURS, **place)
    page.text(MARGIN, top + 0.04, "0", 6.5, color=QUIET)
    page.text(MARGIN + 1.06, top + 0.04, high, 6.5, color=QUIET)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# -- cells -------------------------------------------------------------------------------------------------------------


def photograph(
    label: str, pixels: Pixels, grid: tuple[int, int] | None = None, patch: tuple[int, int] | None = None
) -> Cell:
    """The crop, with its patches and a chosen one where they are given."""

    def draw(page: Sheet, place: Place) -> None:
        page.ax.imshow(pixels, extent=place, aspect="auto")
        if grid is not None and patch is not None:
            chosen(page.ax, patch, grid, place)
        elif grid is not None:
            grid_lines(page.ax, grid, place)

    return Cell(label, pixels.shape[0] / pixels.shape[1], draw)


def over(
    label: str, pixels: Pixels | None, values: Floats, shape: tuple[int, int], *, look: Look = "overlay", **options: Any
) -> Cell:
    """A map over its picture, or in its own cells where there is no picture; `options` as of `overlay`."""

    def draw(page: Sheet, place: Place) -> None:
        bare = pixels is None or look == "side"
        ground = np.zeros((*shape, 3), np.uint8) if pixels is None else pixels
        overlay(page.ax, ground, values, style="side" if bare else "overlay", extent=place, **options)

    return Cell(label, shape[0] / shape[1], draw)


def image(label: str, pixels: Pixels) -> Cell:
    """Pixels as they are."""

    def draw(page: Sheet, place: Place) -> None:
        page.ax.imshow(pixels, extent=place, aspect="auto")

    return Cell(label, pixels.shape[0] / pixels.shape[1], draw)


def matrix(
    label: str,
    values: Floats,
    lines: int = 0,
    limits: tuple[float, float] | None = None,
    colours: str = COLOURS,
    *,
    linear: bool = False,
    aspect: float = 1.0,
    printed: str = "",
) -> Cell:
    """Numbers in rows and columns, the first `lines` of which stand apart, and wider (if negative, of rows alone).

    Colours end at the largest 0.5 %, for a diagonal would leave the rest black. `printed` stands in the corner.
    """
    low, high = limits or (0.0, float(np.nanquantile(values, 0.995)) or 1.0)

    def draw(page: Sheet, place: Place) -> None:
        scale = Normalize(low, high) if linear else scale_of((low, high), True)
        left, right, bottom, top = place
        for rows, above, below in _apart(len(values), abs(lines)):
            for columns, before, after in _apart(values.shape[1], max(lines, 0)):
                across = (left + (right - left) * before, left + (right - left) * after)
                down = (top + (bottom - top) * below, top + (bottom - top) * above)
                options = {"extent": (*across, *down), "aspect": "auto", "cmap": colours, "norm": scale}
                page.ax.imshow(values[rows, columns], **options)
        if printed:
            box = {"fc": "#010101", "ec": "none", "alpha": 0.6, "pad": 1.6}
            page.text(left + 0.05, bottom - 0.09, printed, 6, color="#fefefe", bbox=box)

    return Cell(label, aspect, draw)


def _apart(count: int, first: int) -> list[tuple[slice, float, float]]:
    """Rows in one piece, or the first ones apart and so wide that they are seen; with each piece's begin and end."""
    if not first:
        return [(slice(None), 0.0, 1.0)]
    edge, gap = min(max(first / count, 0.02 * first), 0.4), 0.012
    return [(slice(0, first), 0.0, edge), (slice(first, None), edge + gap, 1.0)]


def bars(label: str, shares: Sequence[tuple[str, float]], aspect: float) -> Cell:
    """Classes with their probabilities."""

    def draw(page: Sheet, place: Place) -> None:
        left, right, bottom, top = place
        step = min((bottom - top) / max(len(shares), 1), 0.34)
        for at, (name, share) in enumerate(shares):
            y, weight = top + at * step, "bold" if at == 0 else "normal"
            page.text(left, y + 0.07, _cut(name, int((right - left) * 14)), 7, color=INK, fontweight=weight)
            page.text(right, y + 0.07, probability(share), 7, color=INK, ha="right", fontweight=weight)
            page.ax.add_patch(Rectangle((left, y + 0.155), right - left, 0.035, color=FAINT, lw=0))
            page.ax.add_patch(Rectangle((left, y + 0.155), (right - left) * share, 0.035, color=ACCENT, lw=0))

    return Cell(label, max(aspect, LEAST), draw)
