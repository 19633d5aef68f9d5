"""A statistic by depth: a dot for each head with its interval, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..numbers import Floats, mean_of
from .style import ACCENT, FAINT, PAPER, QUIET, dashed, layer_ticks

__all__ = ["Depth"]


@dataclass(frozen=True, slots=True)
class Depth:
    """One statistic of every head, by layer: dots with bars, a pale line for their mean, uniform attention dashed.

    Attributes:
        title: its name.
        unit: what stands at the axis.
        layers: (layer), the blocks' indices.
        mean, low, high: (layer, head).
        reference: what uniform attention gives, or None where that has no meaning; `reference_label` says so.
        inner: (bound, layer, head), a narrower band inside low and high, or None.
        colour: of its dots.
    """

    title: str
    unit: str
    layers: Sequence[int]
    mean: Floats
    low: Floats
    high: Floats
    reference: float | None = None
    reference_label: str = ""
    inner: Floats | None = None
    colour: str = ACCENT
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    @property
    def nothing(self) -> npt.NDArray[np.bool_]:
        """(layer, head): 0 in every image, with an interval for what another image could add."""
        return np.asarray((self.mean == 0) & (self.low == 0) & (self.high > 0))

    def height(self, width: float) -> float:
        """Inches."""
        return 2.45

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the layer, y the statistic in its unit."""
        _draw(ax, self)


def _draw(ax: Any, panel: Depth) -> None:
    heads = panel.mean.shape[1]
    # Heads stand side by side within their layer, in order of their index: intervals would hide one another.
    offset = np.linspace(-0.28, 0.28, heads) if heads > 1 else np.zeros(1)
    x = (np.asarray(panel.layers, float)[:, None] + offset).ravel()
    size = 3.2 if heads <= 8 else 2.2
    ax.plot(panel.layers, mean_of(panel.mean, axis=1), color=FAINT, lw=1.4, zorder=2)
    if panel.inner is not None:
        lines = {"colors": panel.colour, "alpha": 0.9}
        ax.vlines(x, panel.low.ravel(), panel.high.ravel(), lw=0.7, **lines)
        ax.vlines(x, *panel.inner.reshape(2, -1), lw=2.6 if heads <= 8 else 1.4, **lines)
        ax.plot(x, panel.mean.ravel(), "o", ms=0.55 * size, mfc=PAPER, mec=panel.colour, mew=0.5, zorder=4)
    else:
        nothing = panel.nothing
        ax.vlines(x[nothing.ravel()], 0, panel.high[nothing], lw=0.9, color=FAINT, zorder=1)
        bars = np.stack([panel.mean - panel.low, panel.high - panel.mean]).clip(min=0)
        bars[:, nothing] = 0
        ax.errorbar(
            x,
            panel.mean.ravel(),
            yerr=np.nan_to_num(bars.reshape(2, -1)),
            fmt="o",
            ms=size,
            mew=0,
            color=panel.colour,
            ecolor=panel.colour,
            elinewidth=0.9,
            alpha=0.9,
            zorder=3,
        )
    ax.set_title(panel.title, loc="left", fontweight="bold")
    if panel.reference is not None:
        dashed(ax, panel.reference)
        # Beside the axis' label, where no title is too long for it.
        ax.annotate(
            f"- - {panel.reference_label}",
            (1, 0),
            (0, -16.5),
            "axes fraction",
            "offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=QUIET,
        )
    ax.set_ylabel(panel.unit)
    ax.set_xlabel("layer", loc="left")
    # A mean without an interval is drawn too. Pale bars may leave the axes: of few images they would hide all others.
    ends = (panel.low, panel.mean, panel.high[~panel.nothing])
    known = np.concatenate([values[np.isfinite(values)] for values in ends])
    lowest, highest = float(known.min(initial=0.0)), float(known.max(initial=0.0))
    ax.set_ylim(1.08 * lowest, 1.08 * max(panel.reference or 0.0, highest))
    ax.set_xlim(min(panel.layers) - 0.6, max(panel.layers) + 0.6)
    ax.set_xticks(layer_ticks(panel.layers))
