"""How far apart the attention of two models is on the same images: the divergence of their rows, layer by layer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arguments import Where
from ...engine.store.store import Store
from ...errors import AttlasError, UsageError
from ...progress import Show, shows
from ...words import counted
from .. import formulas
from .analysis import Progress
from .clusters import cluster_codes, cluster_of
from .inference import effective_number, interval
from .partials import attention_of, kept_layers

__all__ = ["Comparison", "compare"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """The divergence of two stores' attention; arrays are (pair).

    Attributes:
        layers: (pair, 2), a block of the first store and the one of the other that it is compared with.
        divergence: mean over images of the mean over patch rows; nats, 0 to ln 2.
        low, high: its 95 % interval over images, NaN where there is none.
        images: that both stores have; `n`: their effective number.
        left_out: for each store its blocks that compare with one that the other lacks.
    """

    layers: Array
    divergence: Array
    low: Array
    high: Array
    images: int
    n: float
    left_out: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def said(self) -> str:
        """What it is of, in one line."""
        effective = "" if self.n == self.images else f", effective n = {self.n:.4g}"
        return f"{counted(self.images, 'image')} in both{effective}"

    def lines(self) -> list[str]:
        """A line of CSV for each pair of layers, below its header."""
        values = zip(self.layers, self.divergence, self.low, self.high, strict=True)
        rows = ((str(one), str(other), *(f"{v:.6g}" for v in each)) for (one, other), *each in values)
        return ["layer,other_layer,divergence,low,high", *map(",".join, rows)]

    def __repr__(self) -> str:
        return "\n".join([self.said, *self.lines()])


@shows("images")
def compare(one: Where, other: Where, *, progress: Show[Progress] = None) -> Comparison:
    """Jensen-Shannon divergence of two stores' rows on the images that both have, by path.

    Heads of two models have nothing to do with each other: rows are means over heads, over patches, divided by their
    patch mass (`formulas.divergence`; Lin 1991, IEEE Trans. Inf. Theory 37). Models of equal depth are compared block
    by block; else each block of the shallower one with the block of the other at the nearest relative depth,
    (layer + 1) / blocks. Blocks that have none beside them are left out. Images that depend on each other count as
    clusters, where an analysis of the first store said so.

    Args:
        one: a store with attention.
        other: one of the same patch grid.
        progress: True shows a bar; a function is called with a `Progress` after each batch.

    Raises:
        UsageError: grids differ, or rows of one are no distributions.
        AttlasError: a store holds no attention, or they share no image, or no block.
    """
    stores = (Store(one), Store(other))
    for store in stores:
        if not attention_of(store):
            raise AttlasError(f"{store.path}: holds no attention; `attlas run --keep attention` keeps it")
        if store.spec.attention_kind != "probability":
            raise UsageError(f"{store.path}: {store.spec.name} mixes its attention: its rows are no distributions")
    first, second = stores
    if first.spec.grid != second.spec.grid:
        grids = " and ".join(f"{store.path} {' x '.join(map(str, store.spec.grid))}" for store in stores)
        raise UsageError(f"grids of patches differ ({grids}), so that rows do not compare")
    at = _shared(first, second)
    pairs = _pairs(first, second)
    left_out = (
        _without(first, [here for here, _ in pairs], second),
        _without(second, [there for _, there in pairs], first),
    )
    show = progress if callable(progress) else (lambda _now: None)
    started, rows = time.perf_counter(), []
    show(Progress(0, len(at), 0.0))
    for start in range(0, len(at), first.plan.batch):
        here, there = at[start : start + first.plan.batch].T
        rows.append(np.stack([_divergence(stores, (here, there), pair) for pair in pairs], axis=1))
        show(Progress(start + len(here), len(at), time.perf_counter() - started))
    values = np.concatenate(rows)
    codes = cluster_codes([first], [at[:, 0]], cluster_of(first))
    low, high = interval(values, clusters=codes, within=(0, math.log(2)))
    n = float(len(at)) if codes is None else effective_number(codes)
    return Comparison(np.array(pairs), values.mean(axis=0), low, high, len(at), n, left_out)


def _shared(first: Store, second: Store) -> Array:
    """(image, 2): the places of the images that both have, in the first one's order."""
    found = []
    for store in (first, second):
        usable = np.flatnonzero(store.done_images & store.read("valid").astype(bool))
        paths = store.read("path")
        found.append({str(paths[i]): int(i) for i in usable})
    both = [(place, found[1][path]) for path, place in found[0].items() if path in found[1]]
    if not both:
        raise AttlasError(f"{first.path} and {second.path} share no image by path")
    return np.array(both)


def _pairs(first: Store, second: Store) -> list[tuple[int, int]]:
    """The blocks to compare, those that both stores hold: as many as the shallower model has, or fewer."""
    shallow, deep = sorted((first, second), key=lambda store: store.spec.depth)
    found = []
    for block in kept_layers(shallow):
        # The nearest (other + 1) / depth, and of two the shallower: of all blocks, whether the store holds it or not.
        other = math.ceil((block + 1) * deep.spec.depth / shallow.spec.depth - 0.5) - 1
        if other in kept_layers(deep):
            found.append((block, other) if shallow is first else (other, block))
    if not found:
        held = " and ".join(f"{store.path} {', '.join(map(str, kept_layers(store)))}" for store in (first, second))
        raise AttlasError(f"the stores hold attention of no blocks that compare: {held}")
    return found


def _without(store: Store, compared: Sequence[int], other: Store) -> tuple[int, ...]:
    """The blocks that should have been compared; of a deeper model some never are."""
    deeper = store.spec.depth > other.spec.depth
    return () if deeper else tuple(block for block in kept_layers(store) if block not in compared)


def _divergence(stores: tuple[Store, Store], images: tuple[Array, Array], layers: tuple[int, int]) -> Array:
    """Of each image, (image)."""
    one, other = (_rows(*given) for given in zip(stores, images, layers, strict=True))
    return np.asarray(formulas.divergence(one, other, stores[0].spec.grid))


def _rows(store: Store, images: Array, layer: int) -> Array:
    """Attention of one layer, mean over heads: (image, query, key), float64: close rows differ by less than float32."""
    name, place = attention_of(store), store.spec.layers.index(layer)
    start, stop = int(images.min()), int(images.max()) + 1
    if stop - start > 4 * len(images):  # the stores' orders differ: image by image
        values = np.concatenate([store.read(name, (slice(i, i + 1), place)) for i in images.tolist()])
    else:
        values = store.read(name, (slice(start, stop), place))[images - start]
    values = formulas.decode_codes(values) if name == "attention_code" else values
    return np.asarray(formulas.fuse(values, "mean"), np.float64)
