"""What a figure is drawn from: plain numbers with their titles, before any drawing library sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Box", "Depth", "Line", "Measure", "Panel", "Ridges", "Row", "Scatter"]

Floats = npt.NDArray[np.floating[Any]]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Depth:
    """One statistic of every head, by layer.

    Attributes:
        title: its name.
        unit: what stands at the axis.
        layers: (layer), the blocks' indices.
        mean, low, high: (layer, head).
        reference: what uniform attention gives, or None where that has no meaning; `reference_label` says so.
        inner: (bound, layer, head), a narrower band inside low and high, or None.
    """

    title: str
    unit: str
    layers: Sequence[int]
    mean: Floats
    low: Floats
    high: Floats
    reference: float | None = None
    reference_label: str = ""
    inner: Floats | None = None


@dataclass(frozen=True, slots=True)
class Ridges:
    """How the values of all queries are distributed, a row for each layer; NaN where nothing was counted.

    Attributes:
        title: the statistic's name.
        unit: what stands at the axis.
        layers: (layer), the blocks' indices.
        edges: (bin + 1), of the bins, in the unit.
        shares: (layer, bin) of the queries, each row's sum 1.
        bands: (low, median, high; layer), in the unit.
        heads: (layer, head), the median of each head alone.
        uniform: (bin), what uniform attention gives; `uniform_bands`: (low, median, high) of it.
    """

    title: str
    unit: str
    layers: Sequence[int]
    edges: Floats
    shares: Floats
    bands: Floats
    heads: Floats
    uniform: Floats
    uniform_bands: Floats


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
    """

    title: str
    values: npt.NDArray[Any]
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    mark: tuple[int, int] | None = None
    lines: int = 0
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A line of text and the panels under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One store in a comparison: its mean over heads with an interval, (layer) each, and its heads (layer, head).

    A baseline is drawn quietly.
    """

    label: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    heads: Floats | None = None
    baseline: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """Differences `x` against how sure they are, `y` (point), which of them count, and a few with (index, name)."""

    title: str
    unit: str
    x: Floats
    y: Floats
    counts: npt.NDArray[np.bool_]
    threshold: float
    names: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of several maps: (label, mean, low, high) each; the last `baselines` of them are no model's."""

    title: str
    values: tuple[tuple[str, float, float, float], ...]
    baselines: int = 0
