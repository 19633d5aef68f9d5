"""All statistics but the fused ones, computed layer by layer of a batch by their kernels or formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store
from ..declared import applied, check_numbers
from ..kernels import loops, views
from ..kernels.fused import Reducer
from ..kernels.layer import Layer
from ..statistic import Statistic, context
from .moments import Totals

__all__ = ["Extras"]

Array = npt.NDArray[Any]


class Extras:
    """The statistics of one unit, batch after batch; not thread-safe.

    Attributes:
        sums: `Totals`, or histogram counts, of statistics that keep no rows.
    """

    def __init__(
        self,
        store: Store,
        statistics: Sequence[Statistic],
        rows: Mapping[str, Array],
        places: Sequence[int],
        images: int,
    ) -> None:
        """`rows` are filled; `places` are the kept layers' indices on the axis; `images` is how many are readable."""
        self._store, self._statistics, self._rows = store, statistics, rows
        self._places, self._images = places, images
        self._needs = {name for s in statistics for name in s.needs if name != "attention"}
        self._known = context(store.spec)
        self._layer = Layer(store.spec) if statistics else None
        self._batches = [(s, views.BATCH[s.kernels["batch"]]) for s in statistics if "batch" in s.kernels]
        self._follow = [(s, views.FOLLOW[s.kernels["follow"]]) for s in statistics if "follow" in s.kernels]
        self._fast = [(s, views.LAYER[s.kernels["layer"]]) for s in statistics if "layer" in s.kernels]
        self._plain = [s for s in statistics if not s.kernels and not s.follows]
        self._whole = [s for s in statistics if not s.kernels and s.follows]
        self._held: list[Array] = []
        self._pooled: Array | None = None
        self._row: dict[str, Array] = {}
        self.sums: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._statistics)

    def begin(self, batch: range, pool: Array | None) -> None:
        """Start a batch; `pool` is the pool's map, for a model with attention pooling."""
        self._held = []
        self._inputs = {name: self._store.read(name, slice(batch.start, batch.stop)) for name in self._needs}
        pooled = self._store.spec.readout == "pool"
        if pooled or self._follow:
            starts = Reducer(self._store.spec).start(len(batch), pool)
            self._pooled = starts if pooled else None
            self._row = {s.name: starts.copy() for s, _ in self._follow}

    def add(self, codes: Array, place: int, at: slice, there: Array) -> None:
        """Add the batch's next layer towards the input, as `fused.seen` returns it; `there` marks readable images."""
        assert self._layer is not None
        shown = self._layer
        shown.take(codes)
        for s, kernel in self._batches:
            found = kernel(shown)[there]
            if s.rows:
                self._rows[s.name][at][there, place] = found
            else:
                self._sum(s, np.add.reduce(found, axis=0, dtype=np.float64), place)
        norms = self._inputs.get("value_norm")
        for image in np.flatnonzero(there) if self._follow or self._fast or self._plain else ():
            shown.show(int(image), norms[image, place] if norms is not None else None)
            for s, kernel in self._fast:
                self._keep(s, at.start + image, kernel(shown), place)
            for s, follow in self._follow:
                self._row[s.name][image] = follow(shown, self._row[s.name][image])
            for s in self._plain:
                inputs = {name: values[image, place] for name, values in self._inputs.items()}
                found = self._of(s, int(image), {"attention": shown.attention, **inputs})
                self._keep(s, at.start + image, found, place)
        if self._whole:
            self._held.insert(0, codes.copy())

    def end(self, at: slice, there: Array) -> None:
        """Finish the statistics that combine layers, after the last layer."""
        spec = self._store.spec
        for s, _ in self._follow:
            found = self._row[s.name][:, len(spec.prefix) :]
            top = found.max(axis=-1, keepdims=True)
            scaled = found / np.where(top == 0, 1, top)  # without any mass it stays 0
            self._rows[s.name][at][there] = scaled.reshape(-1, *spec.grid)[there]
        for image in np.flatnonzero(there) if self._whole else ():
            layers = [self._decoded(codes, int(image)) for codes in self._held]
            norms = {name: list(values[image][self._places]) for name, values in self._inputs.items()}
            for s in self._whole:
                self._keep(s, at.start + image, self._of(s, int(image), {"attention": layers, **norms}))

    def _decoded(self, codes: Array, image: int) -> Array:
        assert self._layer is not None
        self._layer.take(codes)
        self._layer.show(image)
        return np.array(self._layer.attention)

    def _of(self, s: Statistic, image: int, inputs: Mapping[str, Any]) -> Array:
        """The formula's result, checked."""
        own = {} if self._pooled is None else {"readout": self._pooled[image]}
        wanted = [n for dim, n in zip(s.dims, s.shape(self._store.spec), strict=True) if dim != "layer"]
        return check_numbers(s, applied(s, {**self._known, **own, **inputs}, wanted))

    def _keep(self, s: Statistic, image: int, found: Array, place: int | None = None) -> None:
        if not s.rows:
            self._sum(s, found, place)
        elif place is None:
            self._rows[s.name][image] = found
        else:
            self._rows[s.name][image, place] = found

    def _sum(self, s: Statistic, found: Array, place: int | None) -> None:
        """Add the result of an image or batch to the sum of a statistic that keeps no rows."""
        if s.name not in self.sums:
            shape = s.shape(self._store.spec)
            total = np.full(shape, math.nan)
            total[self._places if "layer" in s.dims else ...] = 0
            counts = s.edges is not None
            self.sums[s.name] = np.zeros(shape, np.int64) if counts else Totals(float(self._images), total)
        if s.edges is not None:
            self.sums[s.name][... if place is None else place] += found.astype(np.int64)
            return
        total = self.sums[s.name].total[... if place is None else place]
        if found.dtype == np.float32 and found.flags.c_contiguous and found.ndim:
            loops.accumulate(total.reshape(-1), found.reshape(-1))
        else:
            total += found
