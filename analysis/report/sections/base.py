"""What sections are made of: figures with their numbers and words, lines on what is missing, tables and lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....engine.store.store import Store
from ..facts import Facts
from ..numbers import Floats, why_empty
from ..plots.canvas import Plot, composed
from ..plots.style import STYLES, Widths

__all__ = [
    "Absent",
    "Cell",
    "Context",
    "Figure",
    "Listing",
    "Part",
    "Section",
    "Summary",
    "Table",
    "analyze_first",
    "extent",
    "keep",
    "more",
    "no_rollout",
    "row_name",
    "summary",
    "where",
]

type Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Context:
    """What a section is given.

    Attributes:
        store: whose figures are drawn; `facts`: about it.
        examples: how many pictures are shown.
        images: the folder of the original images, or None.
        boxes: a COCO file of objects in them, or None.
    """

    store: Store
    facts: Facts
    examples: int = 0
    images: str | os.PathLike[str] | None = None
    boxes: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and everything that goes with it.

    Attributes:
        name: its files' name.
        title: a short heading.
        caption: rich text; states n, unit and formula.
        alt: what it shows, in words.
        plots: what is drawn, each on Axes of its own; a sheet stands alone.
        columns, rows: its numbers, as the CSV beside it has them.
        methods: the definitions that it needs, and the statistics that it shows.
        wide: whether it takes the page's whole width.
        across: how many plots stand side by side.
    """

    name: str
    title: str
    caption: str
    alt: str
    plots: Sequence[Plot]
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    methods: tuple[str, ...] = ()
    wide: bool = True
    across: int = 2

    def draw(self, narrow: bool, widths: Widths = STYLES["paper"]) -> Any:
        """Matplotlib's figure: as wide as it is printed, or `narrow` as a phone shows it."""
        return composed(self.plots, self.across, widths, narrow=narrow or not self.wide)


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that this store cannot give, and why: rich text."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a caption: the first cell of each names it."""

    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Listing:
    """Lines of text under a heading."""

    title: str
    lines: Sequence[str]


type Part = Figure | Absent | Table | Listing


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that belong together.

    Attributes:
        title: in the progress of a report, and where a section fails.
        parts: yields them, and nothing where the store has none of them to give; its name is the section's.
        question: that the figures answer; sections of one question stand under one heading.
        more: whether they are folded away, for whoever wants to look closer.
    """

    title: str
    parts: Callable[[Context], Iterator[Part]]
    question: str = "What else was computed?"
    more: bool = False

    @property
    def name(self) -> str:
        """By which `--only` asks for it."""
        return self.parts.__name__


@dataclass(frozen=True, slots=True)
class Summary:
    """A dataset-level statistic: (layer, head) or (layer, head, prefix), with its 95 % interval."""

    mean: Floats
    low: Floats
    high: Floats

    @property
    def why_empty(self) -> str:
        """Why it would make an empty figure, or ""."""
        return why_empty(self.mean)


def summary(store: Store, name: str) -> Summary | None:
    """The dataset's mean of a statistic and its interval, or None where the store lacks either."""
    if f"{name}_mean" not in store or f"{name}_interval" not in store:
        return None
    mean = store.read(f"{name}_mean").astype(np.float64)
    bounds = store.read(f"{name}_interval").astype(np.float64)
    known = set(store.dims(f"{name}_mean"))
    axis = next(i for i, dim in enumerate(store.dims(f"{name}_interval")) if dim not in known)
    low, high = np.moveaxis(bounds, axis, 0)
    return Summary(mean, low, high)


# -- words ------------------------------------------------------------------------------------------------------------


def extent(store: Store) -> tuple[int, int]:
    """(height, width) in input pixels that the patch grid covers."""
    (rows, columns), (height, width) = store.spec.grid, store.spec.patch_size
    return rows * height, columns * width


def where(values: Floats) -> str:
    """The place of a map's largest value, in words that count from 0, as all numbers of a store do."""
    y, x = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return f"row {int(y)}, column {int(x)}"


def row_name(store: Store) -> str:
    """What the readout row is called in a caption."""
    return {
        "class": "class token's attention",
        "mean": "mean attention of the patches",
        "pool": "the pool's attention",
        "distilled": "class and distillation token's mean attention",
    }[store.spec.readout]


def analyze_first(facts: Facts) -> str:
    """Which command makes what the store lacks."""
    return f"The store has no dataset statistics; `attlas analyze {facts.name}` makes them."


def more(facts: Facts, names: Sequence[str]) -> str:
    """Which command adds statistics that are made on request."""
    return f"`attlas analyze {facts.name} {' '.join(names)}` adds it, in one pass over the attention."


def keep(store: Store, array: str, what: str) -> str:
    """Which choice of the run would have kept `what`."""
    kept = ", ".join(store.attrs.get("kept", {}).get("keep", ())) or "none"
    return f"This run kept {kept}; `attlas run --keep {array}` would have kept {what} too."


def no_rollout(store: Store, facts: Facts | None) -> str:
    """Why there is no rollout; with `facts` the dataset's, without a single image's."""
    spec = store.spec
    if spec.layers != tuple(range(spec.depth)):
        return (
            f"Rollout follows all {spec.depth} blocks, and this graph gives {len(spec.layers)} of them; "
            "`attlas export` without `--layers` gives all."
        )
    return keep(store, "attention", "what rollout needs") if facts is None else analyze_first(facts)
