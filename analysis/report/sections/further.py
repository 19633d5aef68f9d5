"""What else a store holds: every statistic that has no figure of its own, the user's own and others' parameters too."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from ....engine.store.store import Store
from ...catalog import summed
from ...statistic import Statistic
from ..numbers import Floats, between, why_empty
from ..plots.canvas import Plot
from ..plots.depth import Depth
from ..plots.maps import Maps, across
from ..plots.mosaic import Mosaic
from ..plots.sheet import Panel
from ..plots.style import colour_of
from ..text.markup import code, literal
from .base import Absent, Context, Figure, Part, Table, extent, summary, where
from .depth import depth_figure, drawn_as_shares, uniform_of

__all__ = ["further", "further_maps"]

MASSES = {"self_mass", "neighbour_mass", "rest_mass"}
# Maps that have a figure elsewhere on the page.
SHOWN = {"rollout", "score_matrix", "score_matrix_mean", "received_attention"}
MAPS = (("y", "x"), ("layer", "y", "x"), ("layer", "head", "y", "x"))


def further(context: Context) -> Iterator[Part]:
    """One number a head or layer by depth; one number a model in a table."""
    store = context.store
    shown = MASSES if drawn_as_shares(store) else set()
    found = [one for one in summed(store) if one.scalar and not one.default and one.name not in shown]
    by_layer = [one for one in found if "layer" in one.dims]
    panels = [panel for one in by_layer if (panel := _panel(store, one)) is not None]
    if panels:
        words = "; ".join(_words(one) for one in by_layer if one.name in {panel.title for panel in panels})
        text = f"Of every head or of the layer; dashed: uniform attention. {words}."
        names = tuple(panel.title for panel in panels)
        yield depth_figure(context, "further", "Further statistics by depth", panels, text, names, "")
    rows = [row for one in found if "layer" not in one.dims for row in _rows(store, one)]
    if rows:
        caption = f"Further statistics of the whole model. {context.facts.n}."
        yield Table(caption, ("statistic", "in words", "unit", "mean", "95 % interval"), rows)


def _panel(store: Store, one: Statistic) -> Depth | None:
    """A statistic with a layer axis; what is beside it, heads or prefix tokens, are dots."""
    found, layers = summary(store, one.name), store.spec.layers
    if found is None:
        return None
    axis = one.dims.index("layer")
    mean, low, high = (np.moveaxis(v, axis, 0).reshape(len(layers), -1) for v in (found.mean, found.low, found.high))
    words = textwrap.fill(textwrap.shorten(one.words, 110, placeholder=" …"), 38) if one.units == "1" else one.units
    even, colour = uniform_of(store, one), colour_of(one.name)
    return Depth(one.name, _unset(words), layers, mean, low, high, *even, colour=colour)


def _unset(text: str) -> str:
    """Words that matplotlib sets as they are: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _rows(store: Store, one: Statistic) -> Iterator[tuple[str, ...]]:
    """A statistic without a layer axis: a row for each of its numbers."""
    found = summary(store, one.name)
    if found is None:
        return
    for at, mean in np.ndenumerate(found.mean):
        place = ", ".join(f"{dim} {i}" for dim, i in zip(one.dims, at, strict=True))
        within = between(float(found.low[at]), float(found.high[at]), ".4g")
        yield f"{one.name} {place}".strip(), one.words, one.units, f"{mean:.4g}", within


def _words(one: Statistic) -> str:
    return f"{code(one.name)}: {literal(one.words)} [{literal(one.units)}]" if one.words else code(one.name)


# -- maps -------------------------------------------------------------------------------------------------------------


def further_maps(context: Context) -> Iterator[Part]:
    """Mean maps: of the grid, of every layer, or of every head."""
    store = context.store
    for one in summed(store):
        if one.dims in MAPS and one.name not in SHOWN:
            yield _maps(context, one, store.read(one.sum_name).astype(np.float64))


def _maps(context: Context, one: Statistic, values: Floats) -> Figure | Absent:
    store, layers = context.store, context.store.spec.layers
    title = f"Mean map: {one.name}"
    if reason := why_empty(values):
        return Absent(title, f"In {code(one.sum_name)} {reason}.")
    label = f"mean over images{'' if one.units == '1' else f', {_unset(one.units)}'}"
    lead = ("", "one for each layer, ", "one for every head (down) and layer (across), ")[len(one.dims) - 2]
    peak = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(values)), values.shape))
    of = "".join(f" of {dim} {layers[i] if dim == 'layer' else i}" for dim, i in zip(one.dims[:-2], peak, strict=False))
    return Figure(
        name=f"map_{re.sub(r'[^\w.-]', '_', one.name)}",
        title=title,
        wide=len(one.dims) > 2,
        caption=f"{_words(one)}. Mean over images, {lead}on one scale. {context.facts.n}.",
        alt=f"The largest value, {values[peak]:.3g}, is at {where(values[peak[:-2]])}{of}.",
        plots=[_drawn(store, values, layers, label)],
        columns=(*one.dims, "mean"),
        rows=[(*_cell(one, at, layers), float(value)) for at, value in np.ndenumerate(values)],
        methods=(one.name,),
    )


def _cell(one: Statistic, at: tuple[int, ...], layers: Sequence[int]) -> tuple[int, ...]:
    """An index as the numbers beside a figure have it: layers by their number in the model."""
    return (layers[at[0]], *at[1:]) if one.dims[0] == "layer" else at


def _drawn(store: Store, values: Floats, layers: Sequence[int], label: str) -> Plot:
    root = bool(np.nanmin(values) >= 0)  # colours of what has a sign cannot follow roots
    if values.ndim == 4:
        ticks = (range(values.shape[1]), layers)
        return Mosaic(values.swapaxes(0, 1), label, ("head", "layer"), ticks, root=root)
    if values.ndim == 2:
        return Maps([Panel("", values, extent(store))], label)
    panels = [Panel(f"layer {layer}", v, extent(store)) for layer, v in zip(layers, values, strict=True)]
    return Maps(panels, label, across(len(panels)), root=root)
