"""How far apart the attention of two models is on the same images: the divergence of their rows, layer by layer."""

from __future__ import annotations

import time
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
        layers: (pair, 2), a layer of the first store and the one of the other that it is compared with.
        divergence: mean over images of the mean over patch rows; nats, 0 to ln 2.
        low, high: its 95 % interval over images, NaN where there is none.
        images: that both stores have; `n`: their effective number.
    """

    layers: Array
    divergence: Array
    low: Array
    high: Array
    images: int
    n: float

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
    patch mass (`formulas.divergence`; Lin 1991, IEEE Trans. Inf. Theory 37). Each layer of the shallower model is
    compared with the layer of the other at the nearest relative depth, (layer + 1) / blocks. Images that depend on each
    other count as clusters, where an analysis of the first store said so.

    Args:
        one: a store with attention.
        other: one of the same patch grid.
        progress: True shows a bar; a function is called with a `Progress` after each batch.

    Raises:
        UsageError: grids differ, or rows of one are no distributions.
        AttlasError: a store holds no attention, or they share no image.
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
    show = progress if callable(progress) else (lambda _now: None)
    started, rows = time.perf_counter(), []
    show(Progress(0, len(at), 0.0))
    for start in range(0, len(at), first.plan.batch):
        here, there = at[start : start + first.plan.batch].T
        rows.append(np.stack([_divergence(stores, (here, there), pair) for pair in pairs], axis=1))
        show(Progress(start + len(here), len(at), time.perf_counter() - started))
    values = np.concatenate(rows)
    codes = cluster_codes([first], [at[:, 0]], cluster_of(first))
    low, high = interval(values, clusters=codes)
    n = float(len(at)) if codes is None else effective_number(codes)
    return Comparison(np.array(pairs), values.mean(axis=0), low, high, len(at), n)


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
    """The layers to compare, by index of the block."""
    shallow, deep = sorted((first, second), key=lambda store: store.spec.depth)
    depths = {layer: (layer + 1) / deep.spec.depth for layer in kept_layers(deep)}
    found = []
    for layer in kept_layers(shallow):
        relative = (layer + 1) / shallow.spec.depth
        nearest = min(depths, key=lambda other: abs(depths[other] - relative))
        found.append((layer, nearest) if shallow is first else (nearest, layer))
    return found


def _divergence(stores: tuple[Store, Store], images: tuple[Array, Array], layers: tuple[int, int]) -> Array:
    """Of each image, (image)."""
    one, other = (_rows(*given) for given in zip(stores, images, layers, strict=True))
    return np.asarray(formulas.divergence(one, other, stores[0].spec.grid))


def _rows(store: Store, images: Array, layer: int) -> Array:
    """Attention of one layer, mean over heads: (image, query, key)."""
    name, place = attention_of(store), store.spec.layers.index(layer)
    start, stop = int(images.min()), int(images.max()) + 1
    if stop - start > 4 * len(images):  # the stores' orders differ: image by image
        values = np.concatenate([store.read(name, (slice(i, i + 1), place)) for i in images.tolist()])
    else:
        values = store.read(name, (slice(start, stop), place))[images - start]
    return np.asarray(formulas.fuse(formulas.decode_codes(values) if name == "attention_code" else values, "mean"))
