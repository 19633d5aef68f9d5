"""A map laid over its picture: the one way in which attlas draws attention on pixels.

The picture loses its colours where the map is low and takes the map's where it is high, so that colour on the page
means attention and nothing else, and what is there can still be recognised.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from ..numbers import Floats
from .sheet import MARK, limits_of, scale_of
from .style import COLOURS

__all__ = ["OPACITY", "Look", "blended", "chosen", "colours_of", "grid_lines", "outline", "overlay", "resized"]

type Look = Literal["overlay", "side"]
type Pixels = npt.NDArray[np.uint8]
type Place = tuple[float, float, float, float]

OPACITY = 0.8  # of the colours where the map is highest
VEIL = 0.55  # and where it is lowest: dark enough that the rest of the picture steps back
BRIGHT, SHADE = "#fefefe", "#010101"  # over a picture: alike on light and dark pages


def overlay(
    ax: Any,
    picture: Pixels,
    values: Floats,
    *,
    limit: float | None = None,
    opacity: float = OPACITY,
    style: Look = "overlay",
    root: bool = False,
    mask: npt.NDArray[np.bool_] | None = None,
    patch: tuple[int, int] | None = None,
    printed: str | None = "{:.3g}",
    extent: Place | None = None,
    size: float = 6.5,
) -> Any:
    """Draw a map on its picture, or with `style="side"` the map alone in its own cells.

    Args:
        ax: matplotlib's Axes.
        picture: (row, column, 3) uint8, the crop that the model saw.
        values: (rows, columns) of patches; NaN leaves the picture as it is.
        limit: the value of the brightest colour; the map's own maximum by default. Give one to compare maps.
        opacity: of the colours where the map is highest, from 0 to 1.
        style: `overlay`, or `side` for the map beside its picture.
        root: colours follow the square roots of the values, where a few large ones would leave the rest dark.
        mask: (rows, columns); these patches are outlined and all others step back (`formulas.mass_mask`).
        patch: (row, column) of a chosen patch, which is framed.
        printed: how the map's maximum is written into its corner, such as "max {:.1f} × uniform"; None for nothing.
        extent: (left, right, bottom, top) in the Axes' data; by default the Axes hold this map alone.
        size: of the printed text, in points.

    Returns:
        What a colour bar takes.
    """
    alone = extent is None
    place = extent or (0.0, float(values.shape[1]), float(values.shape[0]), 0.0)
    scale = colours_of(values, limit, root=root)
    colours = mpl.cm.ScalarMappable(scale, COLOURS)
    options: dict[str, Any] = {"extent": place, "aspect": "auto"}
    if style == "side":
        cells = values if mask is None else np.where(mask, values, np.nan)
        ax.imshow(cells, cmap=COLOURS, norm=scale, **options)
    else:
        ax.imshow(blended(picture, values, scale, opacity=opacity, mask=mask), **options)
    if mask is not None:
        outline(ax, mask, place)
    if patch is not None:
        chosen(ax, patch, values.shape, place)
    if printed is not None and np.isfinite(values).any():
        _print(ax, printed.format(float(np.nanmax(values))), place, size)
    if alone:
        ax.set_aspect(picture.shape[0] / picture.shape[1] * values.shape[1] / values.shape[0])
        ax.set_axis_off()
    return colours


def colours_of(values: Floats, limit: float | None = None, *, root: bool = False) -> Any:
    """The scale of a map's colours, matplotlib's Normalize: from 0 to its maximum, or to a given limit."""
    low, high = limits_of([values])
    return scale_of((low, high if limit is None else max(limit, low + 1e-12)), root)


def blended(
    picture: Pixels,
    values: Floats,
    scale: Any,
    *,
    opacity: float = OPACITY,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Pixels:
    """The overlay itself: (row, column, 3) uint8, as large as the picture.

    Args:
        picture: (row, column, 3) uint8.
        values: (rows, columns); resized smoothly.
        scale: matplotlib's Normalize of the values.
        opacity: of the colours where the map is highest.
        mask: (rows, columns); other patches show the picture alone, dark and grey.
    """
    known = np.isfinite(values)
    smooth = resized(np.where(known, values, 0.0), picture.shape[:2])
    share = np.asarray(scale(smooth).filled(0.0), np.float64).clip(0, 1)[..., None]
    colour = mpl.colormaps[COLOURS](share[..., 0])[..., :3]
    bright = picture.astype(np.float64) / 255
    grey = np.einsum("yxc,c->yx", bright, (0.299, 0.587, 0.114))[..., None]
    # The map's colour is lit by the picture: what is there stays visible where the map is high.
    lit = colour * (0.6 + 0.55 * grey)
    alpha = opacity * (VEIL + (1 - VEIL) * share)
    made = (1 - alpha) * grey + alpha * lit
    if mask is not None:
        made = np.where(_cells(mask, picture.shape[:2])[..., None], made, 0.5 * grey)
    made = np.where(_cells(known, picture.shape[:2])[..., None], made, bright)
    return (made.clip(0, 1) * 255).round().astype(np.uint8)


def resized(values: Floats, size: tuple[int, int]) -> Floats:
    """A map (rows, columns) at the pixels of its picture, `size` = (height, width): cubic, within the map's range."""
    down, across = (_cubic(n, edge) for n, edge in zip(values.shape, size, strict=True))
    # So small that BLAS would spend more on waking its threads.
    smooth: Floats = np.einsum("yc,xc->yx", np.einsum("yr,rc->yc", down, values), across)
    return smooth.clip(values.min(), values.max())


@functools.cache
def _cubic(count: int, edge: int) -> Floats:
    """(edge, count): how much of each of `count` cells each of `edge` pixels takes (Catmull-Rom, edges repeated)."""
    at = (np.arange(edge) + 0.5) * count / edge - 0.5
    first, weights = np.floor(at).astype(int), np.zeros((edge, count))
    t = at - first
    shares = (
        t * (-1 + t * (2 - t)) / 2,
        (2 + t * t * (3 * t - 5)) / 2,
        t * (1 + t * (4 - 3 * t)) / 2,
        t * t * (t - 1) / 2,
    )
    for step, share in enumerate(shares, -1):
        np.add.at(weights, (np.arange(edge), (first + step).clip(0, count - 1)), share)
    return weights


def _cells(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask of patches at the pixels of its picture."""
    rows, columns = ((np.arange(edge) * n) // edge for n, edge in zip(mask.shape, size, strict=True))
    found: npt.NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return found


# -- what is drawn over it ---------------------------------------------------------------------------------------------


def outline(ax: Any, mask: npt.NDArray[np.bool_], extent: Place, *, lw: float = 0.9) -> None:
    """A line between the patches of a mask and the others."""
    left, right, bottom, top = extent
    y, x = (bottom - top) / mask.shape[0], (right - left) / mask.shape[1]
    edged = np.pad(mask, 1)
    lines = [
        [(left + c * x, top + r * y), (left + (c + 1) * x, top + r * y)]
        for r, c in np.argwhere(edged[1:, 1:-1] != edged[:-1, 1:-1])
    ]
    lines += [
        [(left + c * x, top + r * y), (left + c * x, top + (r + 1) * y)]
        for r, c in np.argwhere(edged[1:-1, 1:] != edged[1:-1, :-1])
    ]
    ax.add_collection(LineCollection(lines, colors=MARK, lw=lw, capstyle="projecting"), autolim=False)


def chosen(ax: Any, patch: tuple[int, int], grid: tuple[int, ...], extent: Place) -> None:
    """The frame of a chosen patch: bright with a dark rim, so that it stands out on any map."""
    left, right, bottom, top = extent
    y, x = (bottom - top) / grid[0], (right - left) / grid[1]
    corner = (left + patch[1] * x, top + patch[0] * y)
    for colour, width in ((SHADE, 2.6), (MARK, 1.3)):
        ax.add_patch(Rectangle(corner, x, y, fill=False, ec=colour, lw=width, joinstyle="miter"))


def grid_lines(ax: Any, grid: tuple[int, int], extent: Place) -> None:
    """Fine lines between the patches."""
    left, right, bottom, top = extent
    lines = [[(left, y), (right, y)] for y in np.linspace(top, bottom, grid[0] + 1)[1:-1]]
    lines += [[(x, bottom), (x, top)] for x in np.linspace(left, right, grid[1] + 1)[1:-1]]
    ax.add_collection(LineCollection(lines, colors=BRIGHT, lw=0.3, alpha=0.5), autolim=False)


def _print(ax: Any, text: str, extent: Place, size: float) -> None:
    """Text in the lower left corner, on a dark ground."""
    left, _, bottom, _ = extent
    ax.annotate(
        text,
        (left, bottom),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=size,
        color=BRIGHT,
        va="bottom",
        bbox={"fc": SHADE, "ec": "none", "alpha": 0.6, "pad": 1.6},
    )
