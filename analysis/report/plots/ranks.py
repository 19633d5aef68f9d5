"""Heads sorted within their layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..numbers import Floats
from .style import NARROW, dashed, style

__all__ = ["ranks"]


def ranks(layers: Sequence[int], values: Floats, unit: str, reference: float) -> Any:
    """A line for each layer over its heads in ascending order: (layer, rank), coloured from first layer to last."""
    with style():
        figure = Figure(figsize=(NARROW, 2.6), layout="constrained")
        ax = figure.subplots()
        scale = Normalize(min(layers), max(max(layers), min(layers) + 1))
        for layer, heads in zip(layers, values, strict=True):
            ax.plot(range(heads.size), heads, color=mpl.colormaps["viridis"](scale(layer)), lw=1.1, marker="o", ms=2)
        dashed(ax, reference)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("heads, sorted")
        ax.set_ylabel(unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=ax, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("layer", fontsize=7)
        bar.locator = MaxNLocator(6, integer=True)
    return figure
