"""Figures as they are printed: the one module that knows matplotlib.

Every function takes plain numbers and gives a matplotlib figure 3.25 (narrow) or 6.75 inches wide. Equal numbers give
equal bytes: nothing depends on the clock, on installed fonts or on a user's matplotlibrc.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from .panels import Depth, Line, Measure, Panel, Row, Scatter
from .vectors import shrunk

__all__ = [
    "NARROW", "WIDE", "Depth", "Line", "Measure", "Panel", "Row", "Scatter", "curves", "depth", "map_grid",
    "measures", "mosaic", "objects", "picture_rows", "scatter", "sorted_heads", "stacked", "svg", "write",
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


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def svg(figure: Any) -> str:
    """The figure as SVG, text as outlines so that it looks alike everywhere, as small as keeps it sharp."""
    target = io.BytesIO()
    with _style():
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return shrunk(target.getvalue().decode())


def write(figure: Any, folder: Path, name: str) -> None:
    """`name.pdf` with embedded TrueType fonts, `name.svg` with text as outlines, and `name.png` at 300 dpi."""
    with _style():
        for path, options in (
            (folder / f"{name}.pdf", {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}}),
            (folder / f"{name}.svg", {"metadata": {"Date": None, "Creator": None}}),
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


def _ticks(layers: Sequence[int]) -> list[int]:
    step = -(-len(layers) // 12)
    return [int(layer) for layer in layers][::step]


def curves(lines: Sequence[Line], title: str, unit: str, reference: float | None, *, narrow: bool = False) -> Any:
    """Stores over relative depth: faint dots for heads, a line for their mean, a band for its interval."""
    with _style():
        figure = Figure(figsize=(NARROW, 2.75 + 0.16 * len(lines)), layout="constrained")
        ax = figure.subplots()
        colours = iter(SERIES * 4)
        for line in lines:
            colour = QUIET if line.baseline else next(colours)
            if line.heads is not None and not line.baseline:
                places = np.repeat(line.x, line.heads.shape[1])
                ax.plot(places, line.heads.ravel(), "o", ms=1.8, mew=0, color=colour, alpha=0.35)
            ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.25, lw=0)
            marker, style = "o" if line.x.size == 1 else "", ":" if line.baseline else "-"
            ax.plot(line.x, line.mean, color=colour, lw=1.5, ls=style, marker=marker, label=line.label)
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
    with _style():
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
    with _style():
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


def mosaic(
    values: Floats,
    label: str,
    names: tuple[str, str],
    *,
    ticks: tuple[Sequence[int], Sequence[int]] | None = None,
    limits: tuple[float, float] | None = None,
    root: bool = False,
    narrow: bool = False,
) -> Any:
    """Many small maps on one scale, (row, column, y, x), with what rows and columns count at the margins."""
    down, across, height, width = values.shape
    gap = max(1, round(0.08 * max(height, width)))
    whole = np.full((down * (height + gap) - gap, across * (width + gap) - gap), np.nan)
    for (row, column), one in ((at, values[at]) for at in np.ndindex(down, across)):
        top, left = row * (height + gap), column * (width + gap)
        whole[top : top + height, left : left + width] = one
    page = NARROW if narrow else WIDE
    left, right, foot, head = 0.36, 0.04, 0.62, 0.06
    wide = page - left - right
    tall = wide * whole.shape[0] / whole.shape[1]
    if tall > 7.2:  # a printed page ends
        wide, tall = wide * 7.2 / tall, 7.2
    scale = _scale(limits or _limits([whole]), root)
    with _style():
        figure = Figure(figsize=(page, tall + foot + head))
        total = tall + foot + head
        ax = figure.add_axes((left / page, foot / total, wide / page, tall / total))
        image = ax.imshow(whole, cmap=COLOURS, norm=scale)
        counts = ticks or (range(down), range(across))
        for axis, numbers, step, edge in (
            (ax.yaxis, counts[0], height + gap, height), (ax.xaxis, counts[1], width + gap, width)
        ):  # fmt: skip
            skip = max(1, -(-len(numbers) * 8 // (round(72 * (tall if axis is ax.yaxis else wide)))))
            places = [n * step + (edge - 1) / 2 for n in range(len(numbers))]
            axis.set_ticks(places[::skip], [str(n) for n in numbers][::skip])
        ax.tick_params(length=0, pad=1.5)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_ylabel(names[0], labelpad=2)
        ax.set_xlabel(names[1], labelpad=1.5)
        bar = figure.add_axes((left / page, 0.27 / total, min(2.56, wide) / page, 0.075 / total))
        _bar(figure, bar, image, label, root)
    return figure


def objects(panel: Panel, matrices: Sequence[tuple[str, Floats]], *, narrow: bool = False) -> Any:
    """A picture with its numbered boxes, and matrices of the cosine between them."""
    page, count = NARROW if narrow else WIDE, 1 + len(matrices)
    gap, margin, foot, head = 0.34, 0.04, 0.5, 0.2
    columns = 1 if narrow else count
    edge = min((page - 2 * margin - (columns - 1) * gap) / columns, 2.2)
    tall = edge * panel.size[0] / panel.size[1]
    heights = [tall, *[edge] * len(matrices)] if narrow else [max(tall, edge)]
    total = sum(heights) + len(heights) * head + foot + (0.25 * (len(heights) - 1) if narrow else 0)
    with _style():
        figure = Figure(figsize=(page, total))
        image = None
        top = total
        for place, (title, values) in enumerate([(panel.title, None), *matrices]):
            if place == 0 or narrow:
                top -= head + (0.25 if place and narrow else 0)
            left = margin + (0.2 if values is not None and narrow else 0) + (0 if narrow else place * (edge + gap))
            size = tall if values is None else edge
            ax = figure.add_axes((left / page, (top - size) / total, edge / page, size / total))
            ax.set_title(title, loc="left", fontweight="bold", pad=3, fontsize=7.5)
            if values is None:
                _draw_panel(ax, panel, None)
            else:
                image = ax.imshow(values, cmap="viridis", vmin=min(0.0, min(m.min() for _, m in matrices)), vmax=1)
                numbers = [str(n + 1) for n in range(len(values))]
                ax.set_xticks(range(len(values)), numbers)
                ax.set_yticks(range(len(values)), numbers)
                ax.tick_params(length=0)
                for (y, x), value in np.ndenumerate(values if len(values) <= 8 else values[:0]):
                    ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6,
                            color="black" if value > 0.6 else "white")  # fmt: skip
            if narrow:
                top -= size
        bar = figure.add_axes(((margin + 0.2) / page, 0.28 / total, min(2.0, page - 0.5) / page, 0.075 / total))
        _bar(figure, bar, image, "cosine", False)
    return figure


def picture_rows(
    rows: Sequence[Row],
    headings: Sequence[str],
    labels: Sequence[str | None],
    *,
    narrow: bool = False,
    root: Sequence[bool] = (),
    shared: bool = False,
) -> Any:
    """Rows of panels under column headings; a column with a label is a map with one scale and a colour bar.

    `root` says of each column whether its colours follow square roots, as in `map_grid`; `shared`, that all maps have
    one scale.
    """
    width = NARROW if narrow else WIDE
    count, (height, across) = len(headings), rows[0].panels[0].size
    gap, title, margin = 0.12, 0.24, 0.04
    tight = narrow or count > 4  # headings and units take two lines
    head, foot = 0.32 if tight else 0.22, 0.66 if tight else 0.55
    small = 6 if narrow and count < 5 else 5 if narrow else 7
    edge = min((width - 2 * margin - (count - 1) * gap) / count, 2.2)
    roots = [*root, *[False] * count]
    tall = edge * height / across
    total = head + len(rows) * (tall + title) + foot + margin
    maps = [[r.panels[c].values for r in rows] if labels[c] else [] for c in range(count)]
    if shared:
        everything = [values for one in maps for values in one]
        maps = [everything if one else one for one in maps]
    scales = [_scale(_limits(one), roots[c]) if one else None for c, one in enumerate(maps)]
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
            heading = heading if tight else heading.replace("\n", " ")
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
                _bar(figure, bar, images[column], label, roots[column], wrap=tight, small=narrow and count > 4)
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
        for number, (top, left, bottom, right) in enumerate(panel.boxes, 1):
            ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="#5eead4", lw=1.2))
            ax.text(left + 2, top + 2, str(number), color="black", fontsize=6.5, va="top",
                    bbox={"fc": "#5eead4", "ec": "none", "pad": 0.8})  # fmt: skip
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


def _bar(figure: Any, ax: Any, image: Any, label: str, root: bool, *, wrap: bool = False, small: bool = False) -> None:
    bar = figure.colorbar(image, cax=ax, orientation="horizontal")
    bar.outline.set_visible(False)
    ticks = _root_ticks(*image.get_clim())[:: 2 if small else 1]
    bar.locator = FixedLocator(ticks) if root else MaxNLocator(3 if small else 5)
    bar.formatter = FuncFormatter(lambda value, place: f"{value:g}")
    bar.minorticks_off()
    bar.update_ticks()
    ax.tick_params(length=2, pad=1.5, labelsize=5 if small else 6.5)
    text = f"{label}, {'root' if small else 'square-root'} scale" if root else label
    ax.set_xlabel(text.replace(", ", ",\n") if wrap else text, fontsize=5 if small else 6.5, labelpad=1.5, loc="left")


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
