"""Figures as they are printed: the one module that knows matplotlib.

Every function takes plain numbers and gives a matplotlib figure 3.25 (narrow) or 6.75 inches wide. Equal numbers give
equal bytes: nothing depends on the clock, on installed fonts or on a user's matplotlibrc.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

__all__ = [
    "NARROW", "WIDE", "Depth", "Line", "Panel", "Row", "curves", "depth", "map_grid", "picture_rows", "sorted_heads",
    "stacked", "svg", "write",
]  # fmt: skip

NARROW, WIDE = 3.25, 6.75  # one and two columns of a printed page, inches

INK, QUIET, FAINT = "#1f2328", "#6b7280", "#d5d9de"
ACCENT = "#2b5c8a"
# Okabe & Ito's colours, which readers with any colour vision tell apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a00")
COLOURS = "magma"  # perceptually uniform, and monotone in lightness when printed in grey

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.labelsize": 7.5, "axes.titlesize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.titlepad": 6, "pdf.fonttype": 42,
    "svg.fonttype": "path", "svg.hashsalt": "attlas", "image.interpolation": "none",
}  # fmt: skip

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Depth:
    """One statistic of every head, by layer.

    Attributes:
        title: its name.
        unit: what stands at the axis.
        layers: (layer), the blocks' indices.
        mean, low, high: (layer, head).
        reference: what uniform attention gives; `reference_label` says so.
    """

    title: str
    unit: str
    layers: Sequence[int]
    mean: Floats
    low: Floats
    high: Floats
    reference: float
    reference_label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One map or picture.

    Attributes:
        title: above it, may be empty.
        values: (y, x) numbers, or (row, column, 3) uint8 for a picture.
        grid: (rows, columns) of patches to draw over a picture, or None.
        size: (height, width) it stands for, which gives its shape on paper.
        mark: (y, x) of a cell to frame, or None; `lines`: after how many rows and columns a line is drawn, 0 for none.
    """

    title: str
    values: npt.NDArray[Any]
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    mark: tuple[int, int] | None = None
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A line of text and the panels under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One store in a comparison: its mean over heads with an interval, (layer) each, and its heads (layer, head)."""

    label: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    heads: Floats


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def svg(figure: Any) -> bytes:
    """The figure as SVG, text as outlines so that it looks alike everywhere."""
    target = io.BytesIO()
    with _style():
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def write(figure: Any, folder: Path, name: str) -> None:
    """`name.pdf` with embedded TrueType fonts, and `name.png` at 300 dpi."""
    with _style():
        for path, options in (
            (folder / f"{name}.pdf", {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}}),
            (folder / f"{name}.png", {"dpi": 300, "metadata": {"Software": None}}),
        ):
            figure.savefig(path, **options)


def depth(panels: Sequence[Depth], *, narrow: bool = False) -> Any:
    """Statistics by depth, a panel each: a dot per head with its interval, a line for their mean, uniform dashed."""
    columns = 1 if narrow or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    width = NARROW if columns == 1 else WIDE
    with _style():
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
    ax.axhline(panel.reference, color=QUIET, lw=0.9, ls=(0, (4, 3)), zorder=1)
    ax.plot(panel.layers, _nanmean(panel.mean), color=FAINT, lw=1.4, zorder=2)
    bars = np.stack([panel.mean - panel.low, panel.high - panel.mean]).clip(min=0)
    ax.errorbar(
        x.ravel(), panel.mean.ravel(), yerr=np.nan_to_num(bars.reshape(2, -1)), fmt="o", ms=size, mew=0, color=ACCENT,
        ecolor=ACCENT, elinewidth=0.9, alpha=0.9, zorder=3,
    )  # fmt: skip
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.set_title(f"- - {panel.reference_label}", loc="right", fontsize=7, color=QUIET)
    ax.set_ylabel(panel.unit)
    ax.set_xlabel("layer")
    highest = np.nanmax(panel.high) if np.isfinite(panel.high).any() else 0.0
    ax.set_ylim(0, 1.08 * max(panel.reference, float(highest), 1e-12))
    ax.set_xlim(min(panel.layers) - 0.6, max(panel.layers) + 0.6)
    ax.set_xticks(_ticks(panel.layers))


def _ticks(layers: Sequence[int]) -> list[int]:
    step = -(-len(layers) // 12)
    return [int(layer) for layer in layers][::step]


def curves(lines: Sequence[Line], title: str, unit: str, reference: float | None, *, narrow: bool = False) -> Any:
    """Stores over relative depth: faint dots for heads, a line for their mean, a band for its interval."""
    with _style():
        figure = Figure(figsize=(NARROW, 2.75 + 0.16 * len(lines)), layout="constrained")
        ax = figure.subplots()
        for number, line in enumerate(lines):
            colour = SERIES[number % len(SERIES)]
            ax.plot(
                np.repeat(line.x, line.heads.shape[1]), line.heads.ravel(), "o", ms=1.8, mew=0, color=colour, alpha=0.35
            )
            ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.25, lw=0)
            marker = "o" if line.x.size == 1 else ""
            ax.plot(line.x, line.mean, color=colour, lw=1.5, marker=marker, label=line.label)
        if reference is not None:
            ax.axhline(reference, color=QUIET, lw=0.9, ls=(0, (4, 3)))
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("relative depth, (layer + 1) / blocks")
        ax.set_ylabel(unit)
        ax.set_xlim(0, 1.03)
        ax.set_ylim(bottom=0)
        figure.legend(loc="outside lower left", frameon=False, ncols=1, handlelength=1.4, borderpad=0.1)
    return figure


def sorted_heads(layers: Sequence[int], values: Floats, unit: str, reference: float) -> Any:
    """A line a layer over its heads in ascending order: (layer, rank), the colour from the first layer to the last."""
    with _style():
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
    with _style():
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


def map_grid(
    panels: Sequence[Panel],
    label: str,
    *,
    columns: int,
    narrow: bool = False,
    limits: tuple[float, float] | None = None,
    root: bool = False,
) -> Any:
    """Maps on one scale, row after row, with a colour bar under them.

    Colours follow the values, or with `root` their square roots, where a few large ones would leave the rest black.
    """
    width = NARROW if narrow else WIDE
    height, across = panels[0].size
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    gap, title, foot, margin = 0.09, 0.19, 0.52, 0.04
    # A few panels are not blown up to the page's width.
    edge = min((width - 2 * margin - (columns - 1) * gap) / columns, 2.6)
    tall = edge * height / across
    total = rows * (tall + title) + (rows - 1) * 0.05 + foot + margin
    scale = _scale(limits or _limits([p.values for p in panels]), root)
    with _style():
        figure = Figure(figsize=(width, total))
        for place, panel in enumerate(panels):
            row, column = divmod(place, columns)
            left, bottom = margin + column * (edge + gap), total - margin - (row + 1) * (tall + title) - row * 0.05
            ax = figure.add_axes((left / width, bottom / total, edge / width, tall / total))
            image = _draw_panel(ax, panel, scale)
            ax.set_title(panel.title, fontsize=7, pad=2.5)
        bar = figure.add_axes(((margin + 0.04) / width, 0.3 / total, min(2.56, width - 0.6) / width, 0.075 / total))
        _bar(figure, bar, image, label, root)
    return figure


def picture_rows(
    rows: Sequence[Row],
    headings: Sequence[str],
    labels: Sequence[str | None],
    *,
    narrow: bool = False,
    root: Sequence[bool] = (),
) -> Any:
    """Rows of panels under column headings; a column with a label is a map with one scale and a colour bar.

    `root` says of each column whether its colours follow square roots, as in `map_grid`.
    """
    width = NARROW if narrow else WIDE
    count, (height, across) = len(headings), rows[0].panels[0].size
    gap, title, margin = 0.12, 0.24, 0.04
    head, foot, small = (0.32, 0.66, 6) if narrow else (0.22, 0.55, 7)
    edge = min((width - 2 * margin - (count - 1) * gap) / count, 2.2)
    roots = [*root, *[False] * count]
    tall = edge * height / across
    total = head + len(rows) * (tall + title) + foot + margin
    scales = [
        _scale(_limits([r.panels[c].values for r in rows]), roots[c]) if labels[c] else None for c in range(count)
    ]
    with _style():
        figure = Figure(figsize=(width, total))
        images: dict[int, Any] = {}
        for place, row in enumerate(rows):
            bottom = total - margin - head - (place + 1) * (tall + title)
            figure.text(
                margin / width, (bottom + tall + 0.06) / total, _shortened(row.title, 54 if narrow else 100),
                fontsize=6.5 if narrow else 7.5, va="bottom",
            )  # fmt: skip
            for column, panel in enumerate(row.panels):
                left = margin + column * (edge + gap)
                ax = figure.add_axes((left / width, bottom / total, edge / width, tall / total))
                images[column] = _draw_panel(ax, panel, scales[column])
        for column, (heading, label) in enumerate(zip(headings, labels, strict=True)):
            left = margin + column * (edge + gap)
            heading = heading if narrow else heading.replace("\n", " ")
            figure.text(
                left / width,
                (total - margin - head / 2) / total,
                heading,
                fontweight="bold",
                fontsize=small,
                va="center",
            )
            if label:
                bar = figure.add_axes(
                    ((left + 0.03) / width, (foot - 0.22) / total, (edge - 0.06) / width, 0.075 / total)
                )
                _bar(figure, bar, images[column], label, roots[column], wrap=narrow)
    return figure


def _draw_panel(ax: Any, panel: Panel, scale: Any) -> Any:
    height, width = panel.size
    extent = (0, width, height, 0)
    if panel.values.ndim == 3:
        image = ax.imshow(_thinned(panel.values), extent=extent)
        if panel.grid is not None:
            rows, columns = panel.grid
            ax.set_xticks(np.arange(1, columns) * width / columns)
            ax.set_yticks(np.arange(1, rows) * height / rows)
            ax.grid(color="white", lw=0.3, alpha=0.55)
    else:
        image = ax.imshow(panel.values, extent=extent, cmap=COLOURS, norm=scale)
        y, x = height / panel.values.shape[0], width / panel.values.shape[1]
        if panel.mark is not None:
            corner = (panel.mark[1] * x, panel.mark[0] * y)
            ax.add_patch(Rectangle(corner, x, y, fill=False, ec="#5eead4", lw=0.9))
        if panel.lines:
            ax.axhline(panel.lines * y, color="white", lw=0.4)
            ax.axvline(panel.lines * x, color="white", lw=0.4)
    if panel.grid is None:
        ax.set_axis_off()
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def _bar(figure: Any, ax: Any, image: Any, label: str, root: bool, *, wrap: bool = False) -> None:
    bar = figure.colorbar(image, cax=ax, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.locator = FixedLocator(_root_ticks(*image.get_clim())) if root else MaxNLocator(5)
    bar.formatter = FuncFormatter(lambda value, place: f"{value:g}")
    bar.minorticks_off()
    bar.update_ticks()
    ax.tick_params(length=2, pad=1.5, labelsize=6.5)
    text = f"{label}, square-root scale" if root else label
    ax.set_xlabel(text.replace(", ", ",\n") if wrap else text, fontsize=6.5, labelpad=1.5, loc="left")


def _scale(limits: tuple[float, float], root: bool) -> Any:
    return PowerNorm(0.5, *limits) if root else Normalize(*limits)


def _root_ticks(low: float, high: float) -> list[float]:
    """Round numbers that lie about evenly on a square-root scale from `low` to `high`."""
    steps = [low + (high - low) * share**2 for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    ticks = [float(f"{value:.1g}") for value in steps]
    return sorted({tick for tick in ticks if low <= tick <= high})


def _limits(values: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    """From 0, so that twice the colour's distance is twice the value; below it where values are negative."""
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    if not finite.size:
        return 0.0, 1.0
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return low, high if high > low else low + 1.0


def _thinned(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Means of blocks of a picture, so that none is embedded with more than some 320 pixels across."""
    step = -(-picture.shape[1] // 320)
    if step == 1:
        return picture
    rows, columns = (n // step * step for n in picture.shape[:2])
    blocks = picture[:rows, :columns].reshape(rows // step, step, columns // step, step, 3)
    thinned: npt.NDArray[Any] = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return thinned


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _nanmean(values: Floats) -> Floats:
    """Mean over heads, NaN where no head has a value, without numpy's warning about it."""
    there = np.isfinite(values)
    count = there.sum(axis=1)
    total: Floats = np.where(there, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
