"""Means of several maps with their intervals, measure by measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import ACCENT, FAINT, NARROW, QUIET, WIDE, style

__all__ = ["Measure", "measures"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of several maps: (label, mean, low, high) each; the last `baselines` of them are no model's."""

    title: str
    values: tuple[tuple[str, float, float, float], ...]
    baselines: int = 0


def measures(panels: Sequence[Measure], *, narrow: bool = False) -> Any:
    """A panel for each measure, a line of text for each map; baselines are grey."""
    columns = 1 if narrow else len(panels)
    rows = -(-len(panels) // columns)
    count = len(panels[0].values)
    with style():
        figure = Figure(figsize=(NARROW if narrow else WIDE, rows * (0.75 + 0.2 * count)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=not narrow).ravel()
        for ax, panel in zip(axes, panels, strict=True):
            for place, (_, mean, low, high) in enumerate(panel.values):
                colour = QUIET if place >= count - panel.baselines else ACCENT
                ax.plot([low, high], [place, place], color=colour, lw=1.2)
                ax.plot([mean], [place], "o", color=colour, ms=4)
            ax.set_yticks(range(count), [label for label, *_ in panel.values])
            ax.set_ylim(count - 0.4, -0.6)
            highest = max(float(np.fmax(mean, high)) for _, mean, _, high in panel.values)  # one image has no bar
            ax.set_xlim(0, max(0.05, 1.1 * highest))
            ax.set_title(panel.title, loc="left", fontweight="bold")
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x", color=FAINT, lw=0.5)
            ax.set_axisbelow(True)
    return figure
