"""Several stores or groups by depth, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..numbers import Floats
from .style import dashed

__all__ = ["Curves", "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """One store or group, or the difference of two.

    Attributes:
        label: in the legend.
        colour: its own in every figure.
        x: (layer), depth.
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


@dataclass(frozen=True, slots=True)
class Curves:
    """A line for each mean, a band for its interval, pale dots for heads, and a legend below.

    Attributes:
        title: above them.
        unit: what stands at the axis.
        lines: what is drawn.
        reference: what uniform attention gives, or no difference; None for no line.
        depth: what stands at the x axis; up to `end`, from 0.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    reference: float | None
    depth: str = "relative depth, (layer + 1) / blocks"
    end: float = 1.03
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    def height(self, width: float) -> float:
        """Inches."""
        return 2.45 + 0.16 * len(self.lines)

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the depth, y the statistic in its unit."""
        for line in self.lines:
            if line.heads is not None and not line.baseline:
                places = np.repeat(line.x, line.heads.shape[1])
                ax.plot(places, line.heads.ravel(), "o", ms=1.8, mew=0, color=line.colour, alpha=0.35)
            ax.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.25, lw=0)
            marker, dash = "o" if line.x.size == 1 else "", ":" if line.baseline else "-"
            ax.plot(line.x, line.mean, color=line.colour, lw=1.5, ls=dash, marker=marker, label=line.label)
        if self.reference is not None:
            dashed(ax, self.reference)
        ax.set_title(self.title, loc="left", fontweight="bold")
        ax.set_xlabel(self.depth)
        ax.set_ylabel(self.unit)
        ax.set_xlim(min(0.0, self.end - 1.03), self.end)
        if all(np.nanmin(line.low, initial=0.0) >= 0 for line in self.lines):
            ax.set_ylim(bottom=0)
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.23), "borderaxespad": 0}
        ax.legend(**place, frameon=False, ncols=1, handlelength=1.8, borderpad=0.1)
