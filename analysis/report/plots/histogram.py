"""Counts of tokens by one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..numbers import Floats

__all__ = ["Counts", "Histogram"]


@dataclass(frozen=True, slots=True)
class Counts:
    """One kind of token: its name, its colour, which is its own in every figure, and its counts (bin)."""

    label: str
    colour: str
    values: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many tokens of each kind have a number between two edges; both scales are logarithmic.

    Attributes:
        title: above it.
        unit: what stands at the axis.
        edges: (bin + 1), ascending, above 0.
        parts: what is counted.
    """

    title: str
    unit: str
    edges: Floats
    parts: Sequence[Counts]
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    def height(self, width: float) -> float:
        """Inches."""
        return 2.45 + 0.16 * len(self.parts)

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the number in its unit, y how many tokens have it."""
        counted = np.flatnonzero(np.sum([part.values for part in self.parts], axis=0))
        low, high = counted[0], counted[-1] + 1
        edges = self.edges[low : high + 1]
        for part in sorted(self.parts, key=lambda part: -int(part.values.sum())):
            values = part.values[low:high]
            ax.stairs(values, edges, fill=True, color=part.colour, alpha=0.35)
            ax.stairs(values, edges, color=part.colour, lw=1.1, label=part.label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7)
        ax.set_title(self.title, loc="left", fontweight="bold")
        ax.set_xlabel(self.unit)
        ax.set_ylabel("tokens")
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.23), "borderaxespad": 0}
        ax.legend(**place, frameon=False, handlelength=1.8, borderpad=0.1)
