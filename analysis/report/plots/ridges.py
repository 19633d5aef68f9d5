"""Distributions of single queries: a curve for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..numbers import Floats
from .style import ACCENT, FAINT, INK, QUIET, SERIES, layer_ticks

__all__ = ["Ridges"]


@dataclass(frozen=True, slots=True)
class Ridges:
    """How the values of all queries are distributed: a curve for each layer, its middle 80 % dark, medians marked.

    NaN where nothing was counted.

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
    colour: str = ACCENT
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = True

    def height(self, width: float) -> float:
        """Inches: a row for each layer and one for uniform attention, never taller than a printed page."""
        return min(0.24 * (len(self.layers) + 1), 7.0) + 0.62

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the statistic in its unit, y the layer."""
        _draw(ax, self)


def _draw(ax: Any, panel: Ridges) -> None:
    layers, foot = panel.layers, len(panel.layers)
    size = max(0.9, 2.2 - foot / 24)
    lines = [
        (place, panel.shares[place], panel.bands[:, place], panel.heads[place], panel.colour) for place in range(foot)
    ]
    lines.append((foot, panel.uniform, panel.uniform_bands, np.empty(0), QUIET))
    for place, values, (low, middle, high), heads, colour in lines:
        ax.axhline(place, color=FAINT, lw=0.6, zorder=0)
        if not np.isfinite(values).all():
            continue
        # Up is the smaller number: the first layer stands at the top.
        heights = 0.74 * values / values.max()
        counted = np.flatnonzero(values)
        for start, stop, shade in ((panel.edges[counted[0]], panel.edges[counted[-1] + 1], 0.28), (low, high, 0.62)):
            x, y = _cut(panel.edges, heights, start, stop)
            ax.fill([x[0], *x, x[-1]], [place, *(place - y), place], color=colour, alpha=shade, lw=0)
        top = _cut(panel.edges, heights, middle, panel.edges[-1])[1][0]
        ax.vlines(middle, place - top, place, color=INK, lw=1.1)
        ax.plot(heads, np.full(heads.size, place + 0.13), "o", ms=size, mew=0, color=SERIES[1], alpha=0.85)
    drawn = np.flatnonzero(np.vstack([np.nan_to_num(panel.shares), panel.uniform]).max(axis=0) > 0)
    ax.set_xlim(0, 1.02 * panel.edges[drawn[-1] + 1])
    ax.set_ylim(foot + 0.3, -0.9)
    shown = layer_ticks(layers)
    ax.set_yticks([*(list(layers).index(layer) for layer in shown), foot], [*map(str, shown), "uniform"])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.set_xlabel(panel.unit)
    ax.set_ylabel("layer")


def _cut(edges: Floats, heights: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """The part of a stepped curve from `low` to `high`: x and y of its corners."""
    inner = edges[(edges > low) & (edges < high)]
    x = np.concatenate([[low], np.repeat(inner, 2), [high]])
    bins = np.searchsorted(edges, np.concatenate([[low], inner]), side="right") - 1
    return x, np.repeat(heights[bins.clip(0, heights.size - 1)], 2)
