"""Differences between groups against how sure they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..numbers import Floats
from .style import ACCENT, FAINT, INK, POINTS, QUIET, dashed

__all__ = ["Volcano"]

BAND = 0.085  # of the height, for each line of names


@dataclass(frozen=True, slots=True)
class Volcano:
    """Tests of one statistic: points above the dashed line in colour, names above all points.

    Attributes:
        title: its name; `unit`: what stands at the axis.
        x: (point), differences.
        y: (point), -log10 of their q values.
        counts: (point), which are called a difference; `threshold`: the y from which they are.
        names: (index, name) of the few that are named.
    """

    title: str
    unit: str
    x: Floats
    y: Floats
    counts: npt.NDArray[np.bool_]
    threshold: float
    names: tuple[tuple[int, str], ...] = ()
    colour: str = ACCENT
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    def height(self, width: float) -> float:
        """Inches."""
        return 2.75

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the difference in its unit, y is -log10 of q."""
        _draw(ax, self)


def _draw(ax: Any, panel: Volcano) -> None:
    for which, colour, size in ((~panel.counts, POINTS, 1.6), (panel.counts, panel.colour, 2.4)):
        many = panel.x.size > 3000
        style = {"ms": size, "mew": 0, "color": colour, "alpha": 0.8, "rasterized": many}
        (points,) = ax.plot(panel.x[which], panel.y[which], "o", **style, clip_on=False)  # q = 1 lies on the axis
        points.set_in_layout(False)  # of no point at all the size is unbounded
    dashed(ax, panel.threshold)
    ax.axvline(0, color=FAINT, lw=0.8, zorder=0)
    reach = 1.12 * float(np.abs(panel.x).max()) or 1.0
    highest = max(float(panel.y.max()), panel.threshold)
    # Names have lines of their own above the highest point, so that none hides what it names.
    count = len(panel.names)
    top = 1.06 * highest / (1 - count * BAND)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(0, top)
    for line, (index, name) in enumerate(sorted(panel.names, key=lambda one: -panel.y[one[0]])):
        x, y = float(panel.x[index]), float(panel.y[index])
        height = top * (1 - (line + 0.6) * BAND)
        ax.plot([x, x], [y + 0.015 * top, height], color=QUIET, lw=0.5, zorder=1)
        ax.plot([x], [y], "o", ms=4, mfc="none", mec=INK, mew=0.6)
        left = x <= 0
        ax.annotate(
            name,
            (x, height),
            (3 if left else -3, 0),
            textcoords="offset points",
            fontsize=6.5,
            va="center",
            ha="left" if left else "right",
        )
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.set_xlabel(panel.unit)
    ax.set_ylabel("−log₁₀ q")
