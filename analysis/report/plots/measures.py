"""Means of several maps with their intervals, measure by measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .style import ACCENT, FAINT, QUIET

__all__ = ["Measure"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of several maps: (label, mean, low, high) each, in a line; the last `baselines` of them are grey."""

    title: str
    values: tuple[tuple[str, float, float, float], ...]
    baselines: int = 0
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = True

    def height(self, width: float) -> float:
        """Inches."""
        return 0.75 + 0.2 * len(self.values)

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the measure, y the maps."""
        count = len(self.values)
        for place, (_, mean, low, high) in enumerate(self.values):
            colour = QUIET if place >= count - self.baselines else ACCENT
            ax.plot([low, high], [place, place], color=colour, lw=1.2)
            ax.plot([mean], [place], "o", color=colour, ms=4)
        ax.set_yticks(range(count), [label for label, *_ in self.values])
        ax.set_ylim(count - 0.4, -0.6)
        highest = max(float(np.fmax(mean, high)) for _, mean, _, high in self.values)  # one image has no bar
        ax.set_xlim(0, max(0.05, 1.1 * highest))
        ax.set_title(self.title, loc="left", fontweight="bold")
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=FAINT, lw=0.5)
        ax.set_axisbelow(True)
