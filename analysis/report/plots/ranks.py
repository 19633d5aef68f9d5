"""Heads sorted within their layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import matplotlib as mpl
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from ..numbers import Floats
from .style import DEPTHS, dashed

__all__ = ["Ranks"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """A line for each layer over its heads in ascending order, coloured from the first layer to the last.

    Attributes:
        layers: (layer), the blocks' indices.
        values: (layer, rank), ascending.
        unit: what stands at the axis.
        reference: what uniform attention gives.
    """

    layers: Sequence[int]
    values: Floats
    unit: str
    reference: float
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    def height(self, width: float) -> float:
        """Inches."""
        return 2.6

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the head's rank, y the statistic in its unit."""
        first, last = min(self.layers), max(self.layers)
        scale = Normalize(first, max(last, first + 1))
        size = 2.4 if self.values.shape[1] <= 16 else 1.2
        for layer, heads in zip(self.layers, self.values, strict=True):
            ax.plot(range(heads.size), heads, color=mpl.colormaps[DEPTHS](scale(layer)), lw=1.1, marker="o", ms=size)
        dashed(ax, self.reference)
        ax.set_ylim(bottom=0)
        ax.set_xlim(-0.4, self.values.shape[1] - 0.6)
        ax.set_xlabel("heads, sorted")
        ax.set_ylabel(self.unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = ax.figure.colorbar(ScalarMappable(scale, DEPTHS), ax=ax, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("layer", fontsize=7)
        bar.locator = MaxNLocator(6, integer=True)
