"""Maps and pictures as they are printed: grids of cells in colours on one scale, alone, in rows and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from .data import Panel, Row
from .style import COLOURS, NARROW, WIDE, style

__all__ = ["Panel", "Row", "map_grid", "mosaic", "objects", "picture_rows"]

Floats = npt.NDArray[np.floating[Any]]


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
    with style():
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
    with style():
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
    with style():
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
                image = ax.imshow(values, cmap="viridis", vmin=min(0.0, *(float(m.min()) for _, m in matrices)), vmax=1)
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
    with style():
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
