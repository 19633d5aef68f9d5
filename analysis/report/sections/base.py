"""What an exhibit is: a figure with its numbers, its caption and its words for who cannot see it."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store import Store
from ..facts import Facts
from ..plots import charts as figures

__all__ = [
    "Absent",
    "Cell",
    "Exhibit",
    "Summary",
    "analyze_first",
    "depth_exhibit",
    "extent",
    "keep",
    "more",
    "no_rollout",
    "row_name",
    "summary",
    "where",
]

Floats = npt.NDArray[np.floating[Any]]
Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A figure and everything that goes with it.

    Attributes:
        name: its files' name.
        title: a short heading.
        caption: HTML; states n, unit and formula.
        alt: what it shows, in words.
        draw: gives the matplotlib figure, narrow (True) or as wide as it is printed (False).
        columns, rows: its numbers, as the CSV beside it has them.
        methods: the paragraphs of the methods section that it needs.
        wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[bool], Any]
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    methods: tuple[str, ...] = ()
    wide: bool = True


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that this store cannot give, and why: HTML."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A dataset-level statistic: (layer, head) or (layer, head, prefix), with its 95 % interval."""

    mean: Floats
    low: Floats
    high: Floats


def summary(store: Store, name: str) -> Summary | None:
    """The dataset's mean of a statistic and its interval, or None where the store has neither."""
    if f"{name}_mean" not in store:
        return None
    mean = store.read(f"{name}_mean").astype(np.float64)
    bounds = store.read(f"{name}_interval").astype(np.float64)
    known = set(store.dims(f"{name}_mean"))
    axis = next(i for i, dim in enumerate(store.dims(f"{name}_interval")) if dim not in known)
    low, high = np.moveaxis(bounds, axis, 0)
    return Summary(mean, low, high)


def depth_exhibit(
    facts: Facts, name: str, title: str, panels: list[figures.Depth], text: str, methods: tuple[str, ...], unit: str
) -> Exhibit:
    """A figure of statistics (layer, head), its numbers and its words; `text` begins the caption."""
    rows: list[tuple[Cell, ...]] = [
        (p.title, int(layer), head, float(p.mean[i, head]), float(p.low[i, head]), float(p.high[i, head]),
         "" if p.reference is None else p.reference)
        for p in panels
        for i, layer in enumerate(p.layers)
        for head in range(p.mean.shape[1])
    ]  # fmt: skip
    alt = f"{title}, {facts.n}. " + " ".join(_told(p, unit) for p in panels)
    return Exhibit(
        name=name, title=title, alt=alt,
        caption=f"{text} A dot is one head's mean over images, its bar the 95 % bootstrap interval over images (often "
        f"smaller than the dot), the pale line the mean over heads. {facts.n}.",
        draw=lambda narrow: figures.depth(panels, narrow=narrow),
        columns=("statistic", "layer", "head", "mean", "low", "high", "uniform"), rows=rows,
        methods=(*methods, "bootstrap"), wide=len(panels) > 1,
    )  # fmt: skip


def _told(panel: figures.Depth, unit: str) -> str:
    """A depth panel in words: its first and its last layer."""

    def span(values: Floats) -> str:
        there = values[np.isfinite(values)]
        return f"{there.min():.3g} to {there.max():.3g} {unit}" if there.size else "no value"

    first, last = panel.layers[0], panel.layers[-1]
    uniform = "" if panel.reference is None else f"; uniform attention {panel.reference:.4g} {unit}"
    return (
        f"{panel.title}: heads of layer {first} from {span(panel.mean[0])}, of layer {last} from "
        f"{span(panel.mean[-1])}{uniform}."
    )


# -- words ------------------------------------------------------------------------------------------------------------


def extent(store: Store) -> tuple[int, int]:
    """(height, width) in input pixels that the patch grid covers."""
    (rows, columns), (height, width) = store.spec.grid, store.spec.patch_size
    return rows * height, columns * width


def where(values: Floats) -> str:
    """The place of a map's largest value, in words that count from 1."""
    y, x = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return f"row {int(y) + 1}, column {int(x) + 1}"


def row_name(store: Store) -> str:
    """What the readout row is called in a caption."""
    return {
        "class": "class token's attention", "mean": "mean attention of the patches", "pool": "the pool's attention",
        "distilled": "class and distillation token's mean attention",
    }[store.spec.readout]  # fmt: skip


def analyze_first(facts: Facts) -> str:
    """Which command makes what the store lacks: HTML."""
    return f"The store has no dataset statistics; <code>attlas analyze {html.escape(facts.name)}</code> makes them."


def more(facts: Facts, names: str) -> str:
    """Which command adds statistics that are made on request: HTML."""
    return f"<code>attlas analyze {html.escape(facts.name)} {names}</code> adds it, in one pass over the attention."


def keep(store: Store, array: str, what: str) -> str:
    """Which choice of the run would have kept `what`: HTML."""
    kept = ", ".join(store.attrs.get("kept", {}).get("keep", ())) or "none"
    return f"This run kept {html.escape(kept)}; <code>attlas run --keep {array}</code> would have kept {what} too."


def no_rollout(store: Store, facts: Facts | None) -> str:
    """Why there is no rollout: HTML; with `facts` the dataset's, without a single image's."""
    spec = store.spec
    if spec.layers != tuple(range(spec.depth)):
        return (
            f"Rollout follows all {spec.depth} blocks, and this graph gives {len(spec.layers)} of them; an "
            "<code>attlas export</code> without <code>--layers</code> gives all."
        )
    return keep(store, "attention", "what rollout needs") if facts is None else analyze_first(facts)
