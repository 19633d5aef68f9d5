"""Plots as they are printed: numbers over depth, over one another, and by layer.

Every function, here and in `rasters`, takes plain numbers and gives a matplotlib figure 3.25 (narrow) or 6.75 inches
wide. Equal numbers give equal bytes: nothing depends on the clock, on installed fonts or on a user's matplotlibrc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .data import Depth, Line, Measure, Ridges, Scatter
from .style import ACCENT, FAINT, INK, NARROW, QUIET, SERIES, WIDE, style

__all__ = [
    "Depth", "Line", "Measure", "Ridges", "Scatter", "curves", "depth", "measures", "ridges", "scatter",
    "sorted_heads", "stacked",
]  # fmt: skip

Floats = npt.NDArray[np.floating[Any]]


def depth(panels: Sequence[Depth], *, narrow: bool = False) -> Any:
    """Statistics by depth, a panel each: a dot per head with its interval, a line for their mean, uniform dashed."""
    columns = 1 if narrow or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    width = NARROW if columns == 1 else WIDE
    with style():
        figure = Figure(figsize=(width, 2.45 * rows), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_depth(ax, panel)
    return figure


def _draw_depth(ax: Any, panel: Depth) -> None:
    heads = panel.mean.shape[1]
    # Heads stand side by side within their layer, in order of their index: intervals would hide one another.
    offset = np.linspace(-0.28, 0.28, heads) if heads > 1 else np.zeros(1)
    x = np.asarray(panel.layers, float)[:, None] + offset
    size = 3.2 if heads <= 8 else 2.2
    ax.plot(panel.layers, _nanmean(panel.mean), color=FAINT, lw=1.4, zorder=2)
    if panel.inner is not None:
        lines = {"colors": ACCENT, "alpha": 0.9}
        ax.vlines(x.ravel(), panel.low.ravel(), panel.high.ravel(), lw=0.7, **lines)
        ax.vlines(x.ravel(), *panel.inner.reshape(2, -1), lw=2.6 if heads <= 8 else 1.4, **lines)
        ax.plot(x.ravel(), panel.mean.ravel(), "o", ms=0.55 * size, mfc="white", mec=ACCENT, mew=0.5, zorder=4)
    else:
        bars = np.stack([panel.mean - panel.low, panel.high - panel.mean]).clip(min=0)
        ax.errorbar(
            x.ravel(), panel.mean.ravel(), yerr=np.nan_to_num(bars.reshape(2, -1)), fmt="o", ms=size, mew=0,
            color=ACCENT, ecolor=ACCENT, elinewidth=0.9, alpha=0.9, zorder=3,
        )  # fmt: skip
    ax.set_title(panel.title, loc="left", fontweight="bold")
    if panel.reference is not None:
        ax.axhline(panel.reference, color=QUIET, lw=0.9, ls=(0, (4, 3)), zorder=1)
        ax.set_title(f"- - {panel.reference_label}", loc="right", fontsize=7, color=QUIET)
    ax.set_ylabel(panel.unit)
    ax.set_xlabel("layer")
    highest = np.nanmax(panel.high) if np.isfinite(panel.high).any() else 0.0
    ax.set_ylim(0, 1.08 * max(panel.reference or 0.0, float(highest), 1e-12))
    ax.set_xlim(min(panel.layers) - 0.6, max(panel.layers) + 0.6)
    ax.set_xticks(_ticks(panel.layers))


def ridges(panels: Sequence[Ridges], *, narrow: bool = False) -> Any:
    """Distributions of queries, a panel each: a curve a layer, its middle 80 % dark, its median, each head's median."""
    columns = 1 if narrow else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    # A row for each layer and one for uniform attention, never taller than a printed page.
    tall = min(0.24 * (len(panels[0].layers) + 1), 7.0)
    with style():
        figure = Figure(figsize=(NARROW if columns == 1 else WIDE, rows * (tall + 0.62)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=True):
            _draw_ridges(ax, panel)
        for ax in np.delete(axes, slice(None, None, columns)):  # layers are named once a line
            ax.tick_params(labelleft=False)
            ax.set_ylabel("")
    return figure


def _draw_ridges(ax: Any, panel: Ridges) -> None:
    layers, foot = panel.layers, len(panel.layers)
    size = max(0.9, 2.2 - foot / 24)
    lines = [(place, panel.shares[place], panel.bands[:, place], panel.heads[place], ACCENT) for place in range(foot)]
    lines.append((foot, panel.uniform, panel.uniform_bands, np.empty(0), QUIET))
    for place, values, (low, middle, high), heads, colour in lines:
        ax.axhline(place, color=FAINT, lw=0.6, zorder=0)
        if not np.isfinite(values).all():
            continue
        # Up is the smaller number: the first layer stands at the top.
        heights = 0.74 * values / values.max()
        counted = np.flatnonzero(values)
        for start, stop, shade in ((panel.edges[counted[0]], panel.edges[counted[-1] + 1], 0.28), (low, high, 0.62)):
            x, y = _cut(panel.edges, heights, start, stop)
            ax.fill([x[0], *x, x[-1]], [place, *(place - y), place], color=colour, alpha=shade, lw=0)
        top = _cut(panel.edges, heights, middle, panel.edges[-1])[1][0]
        ax.vlines(middle, place - top, place, color=INK, lw=1.1)
        ax.plot(heads, np.full(heads.size, place + 0.13), "o", ms=size, mew=0, color=SERIES[1], alpha=0.85)
    drawn = np.flatnonzero(np.vstack([np.nan_to_num(panel.shares), panel.uniform]).max(axis=0) > 0)
    ax.set_xlim(0, 1.02 * panel.edges[drawn[-1] + 1])
    ax.set_ylim(foot + 0.3, -0.9)
    shown = _ticks(layers)
    ax.set_yticks([*(list(layers).index(layer) for layer in shown), foot], [*map(str, shown), "uniform"])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.set_xlabel(panel.unit)
    ax.set_ylabel("layer")


def _cut(edges: Floats, heights: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """The part of a stepped curve from `low` to `high`: x and y of its corners."""
    inner = edges[(edges > low) & (edges < high)]
    x = np.concatenate([[low], np.repeat(inner, 2), [high]])
    bins = np.searchsorted(edges, np.concatenate([[low], inner]), side="right") - 1
    return x, np.repeat(heights[bins.clip(0, heights.size - 1)], 2)


def _ticks(layers: Sequence[int]) -> list[int]:
    step = -(-len(layers) // 12)
    return [int(layer) for layer in layers][::step]


def curves(lines: Sequence[Line], title: str, unit: str, reference: float | None, *, narrow: bool = False) -> Any:
    """Stores over relative depth: faint dots for heads, a line for their mean, a band for its interval."""
    with style():
        figure = Figure(figsize=(NARROW, 2.75 + 0.16 * len(lines)), layout="constrained")
        ax = figure.subplots()
        colours = iter(SERIES * 4)
        for line in lines:
            colour = QUIET if line.baseline else next(colours)
            if line.heads is not None and not line.baseline:
                places = np.repeat(line.x, line.heads.shape[1])
                ax.plot(places, line.heads.ravel(), "o", ms=1.8, mew=0, color=colour, alpha=0.35)
            ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.25, lw=0)
            marker, dash = "o" if line.x.size == 1 else "", ":" if line.baseline else "-"
            ax.plot(line.x, line.mean, color=colour, lw=1.5, ls=dash, marker=marker, label=line.label)
        if reference is not None:
            ax.axhline(reference, color=QUIET, lw=0.9, ls=(0, (4, 3)))
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("relative depth, (layer + 1) / blocks")
        ax.set_ylabel(unit)
        ax.set_xlim(0, 1.03)
        if all(np.nanmin(line.low, initial=0.0) >= 0 for line in lines):
            ax.set_ylim(bottom=0)
        figure.legend(loc="outside lower left", frameon=False, ncols=1, handlelength=1.8, borderpad=0.1)
    return figure


def scatter(panels: Sequence[Scatter], *, narrow: bool = False) -> Any:
    """A difference against -log10 of its q value, a panel each; the points above the dashed line count."""
    columns = 1 if narrow or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(NARROW if columns == 1 else WIDE, 2.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes, panels, strict=False):
            for which, colour, size in ((~panel.counts, "#b6bcc4", 1.6), (panel.counts, ACCENT, 2.4)):
                ax.plot(panel.x[which], panel.y[which], "o", ms=size, mew=0, color=colour, alpha=0.8,
                        rasterized=panel.x.size > 3000)  # fmt: skip
            ax.axhline(panel.threshold, color=QUIET, lw=0.9, ls=(0, (4, 3)))
            ax.axvline(0, color=FAINT, lw=0.8, zorder=0)
            reach = 1.12 * max(float(np.nanmax(np.abs(panel.x), initial=0.0)), 1e-12)
            ax.set_xlim(-reach, reach)
            ax.set_ylim(0, 1.12 * max(float(np.nanmax(panel.y, initial=0.0)), panel.threshold))
            top, last = ax.get_ylim()[1], np.inf
            for index, name in sorted(panel.names, key=lambda one: -panel.y[one[0]]):
                right = bool(panel.x[index] > 0)
                last = min(float(panel.y[index]), last - 0.055 * top)  # names of neighbours would hide one another
                ax.annotate(name, (panel.x[index], last), (-4 if right else 4, 0), fontsize=6, va="center",
                            textcoords="offset points", ha="right" if right else "left")  # fmt: skip
            ax.set_title(panel.title, loc="left", fontweight="bold")
            ax.set_xlabel(panel.unit)
            ax.set_ylabel("−log₁₀ q")
    return figure


def measures(panels: Sequence[Measure], *, narrow: bool = False) -> Any:
    """Means with their intervals, a line of text each, a panel a measure; baselines are grey."""
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
            ax.set_xlim(0, max(0.05, 1.1 * max(high for *_, high in panel.values)))
            ax.set_title(panel.title, loc="left", fontweight="bold")
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x", color=FAINT, lw=0.5)
            ax.set_axisbelow(True)
    return figure


def sorted_heads(layers: Sequence[int], values: Floats, unit: str, reference: float) -> Any:
    """A line a layer over its heads in ascending order: (layer, rank), the colour from the first layer to the last."""
    with style():
        figure = Figure(figsize=(NARROW, 2.6), layout="constrained")
        ax = figure.subplots()
        scale = Normalize(min(layers), max(max(layers), min(layers) + 1))
        for layer, heads in zip(layers, values, strict=True):
            ax.plot(range(heads.size), heads, color=mpl.colormaps["viridis"](scale(layer)), lw=1.1, marker="o", ms=2)
        ax.axhline(reference, color=QUIET, lw=0.9, ls=(0, (4, 3)))
        ax.set_ylim(bottom=0)
        ax.set_xlabel("heads, sorted")
        ax.set_ylabel(unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=ax, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("layer", fontsize=7)
        bar.locator = MaxNLocator(6, integer=True)
    return figure


def stacked(layers: Sequence[int], parts: Mapping[str, Floats], unit: str) -> Any:
    """Shares by layer, one upon another: (layer) each."""
    with style():
        figure = Figure(figsize=(NARROW, 2.9), layout="constrained")
        ax = figure.subplots()
        base = np.zeros(len(layers))
        for colour, (label, values) in zip(SERIES, parts.items(), strict=False):
            ax.bar(layers, values, 0.82, bottom=base, color=colour, label=label, alpha=0.85)
            base = base + values
        ax.set_ylim(0, 1)
        ax.set_xticks(_ticks(layers))
        ax.set_xlabel("layer")
        ax.set_ylabel(unit)
        figure.legend(
            loc="outside upper left", frameon=False, ncols=2, handlelength=1, columnspacing=1.2, borderpad=0.1
        )
    return figure


def _nanmean(values: Floats) -> Floats:
    """Mean over heads, NaN where no head has a value, without numpy's warning about it."""
    there = np.isfinite(values)
    count = there.sum(axis=1)
    total: Floats = np.where(there, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
