"""Stores over relative depth, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..numbers import Floats
from .style import NARROW, dashed, style

__all__ = ["Line", "curves"]


@dataclass(frozen=True, slots=True)
class Line:
    """One store in a comparison, or the difference of two.

    Attributes:
        label: in the legend.
        colour: its own in every figure.
        x: (layer), relative depth.
        mean, low, high: (layer), over heads and images, with its interval.
        heads: (layer, head), or None.
        baseline: whether it is drawn dotted, as what knows nothing.
    """

    label: str
    colour: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    heads: Floats | None = None
    baseline: bool = False


def curves(lines: Sequence[Line], title: str, axis: str, reference: float | None, *, narrow: bool = False) -> Any:
    """A line for each mean, a band for its interval, pale dots for heads."""
    with style():
        figure = Figure(figsize=(NARROW, 2.75 + 0.16 * len(lines)), layout="constrained")
        ax = figure.subplots()
        for line in lines:
            if line.heads is not None and not line.baseline:
                places = np.repeat(line.x, line.heads.shape[1])
                ax.plot(places, line.heads.ravel(), "o", ms=1.8, mew=0, color=line.colour, alpha=0.35)
            ax.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.25, lw=0)
            marker, dash = "o" if line.x.size == 1 else "", ":" if line.baseline else "-"
            ax.plot(line.x, line.mean, color=line.colour, lw=1.5, ls=dash, marker=marker, label=line.label)
        if reference is not None:
            dashed(ax, reference)
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("relative depth, (layer + 1) / blocks")
        ax.set_ylabel(axis)
        ax.set_xlim(0, 1.03)
        if all(np.nanmin(line.low, initial=0.0) >= 0 for line in lines):
            ax.set_ylim(bottom=0)
        figure.legend(loc="outside lower left", frameon=False, ncols=1, handlelength=1.8, borderpad=0.1)
    return figure
