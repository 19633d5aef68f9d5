"""What every plot is, and how plots become a figure: each draws on one Axes, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from matplotlib.figure import Figure

from .style import Widths, style

__all__ = ["Plot", "composed"]


class Plot(Protocol):
    """Numbers that know how to draw themselves.

    Attributes:
        sheet: it fills its Axes to the edges with pictures or maps; else it is a chart with ticks and labels around.
        named_once: charts side by side share the words at their left axis.
    """

    sheet: ClassVar[bool]
    named_once: ClassVar[bool]

    def height(self, width: float) -> float:
        """Inches that it needs where it is `width` inches wide."""

    def draw(self, ax: Any) -> None:
        """Draw on matplotlib's Axes."""


def composed(plots: Sequence[Plot], columns: int, widths: Widths, *, narrow: bool) -> Any:
    """A figure of plots, charts in up to `columns` columns, as wide as a page or, `narrow`, as one of its columns."""
    columns = 1 if narrow else min(columns, len(plots))
    rows = -(-len(plots) // columns)
    alone = narrow or (columns == 1 and not plots[0].sheet)
    width = widths.narrow if alone else widths.wide
    height = rows * max(plot.height(width / columns) for plot in plots)
    with style():
        figure = Figure(figsize=(width, height))
        if plots[0].sheet:
            plots[0].draw(figure.add_axes((0, 0, 1, 1)))
            return figure
        figure.set_layout_engine("constrained", h_pad=0.08)  # between an axis' label and the next title
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for ax in axes[len(plots) :]:
            ax.remove()
        for place, (plot, ax) in enumerate(zip(plots, axes, strict=False)):
            plot.draw(ax)
            if plot.named_once and place % columns:
                ax.tick_params(labelleft=False)
                ax.set_ylabel("")
    return figure
