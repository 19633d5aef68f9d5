"""One layer's attention of one image for the catalog's kernels: decoded once, shared results computed once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...exporter.spec import GraphSpec
from ..formulas import patch_distances
from . import loops

__all__ = ["Layer"]

Array = npt.NDArray[Any]


def _once(make: Callable[[Layer], Array]) -> property:
    """A property that is computed on first use, again for every image."""

    @functools.wraps(make)
    def made(layer: Layer) -> Array:
        if make.__name__ not in layer._known:
            layer._known[make.__name__] = make(layer)
        return layer._known[make.__name__]

    return property(made)


@functools.lru_cache(maxsize=8)
def _distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> Array:
    return np.asarray(patch_distances(grid, patch_size), np.float32)


class Layer:
    """One layer's attention of one image after another; not thread-safe.

    Attributes:
        spec: of the graph.
        batch: (image, head, query, key), the stored values of some images as the compiled loops take them
            (`fused.seen`).
        codes: those of the current image.
        norms: (head, key) float32, norms of the value vectors, if the store holds them.
    """

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.prefix, self.patches = spec, len(spec.prefix), spec.patches
        self.batch: Array = np.empty((0, 0, 0, 0), np.float32)
        self.codes: Array = np.empty(0, np.float32)
        self._image, self._peaks = 0, np.empty((0, 0), np.float32)
        self.norms: Array | None = None
        self._known: dict[str, Array] = {}
        self._wide = np.empty((spec.heads, spec.tokens, spec.tokens), np.float32)
        self._weighted: Array | None = None
        self._distances = _distances(spec.grid, spec.patch_size)

    def take(self, batch: Array) -> None:
        """Take the attention of the next images; `show` selects one of them."""
        self.batch, self._peaks = batch, np.empty((0, 0), np.float32)

    def show(self, image: int, norms: Array | None = None) -> None:
        """Select an image of the batch. Results of the previous image are no longer valid."""
        self.codes, self.norms, self._image = self.batch[image], norms, image
        self._known.clear()

    @_once
    def attention(self) -> Array:
        """(head, query, key), float32; codes with rows divided by their sums."""
        loops.decode(self.codes, self.codes.dtype == np.uint8, self._wide)
        return self._wide

    @_once
    def rows(self) -> Array:
        """Per row its mass, patch mass, patch mass x distance and sum of a ln a: (head, query, 4), float64."""
        return self._sums(self.attention, self._distances)

    @_once
    def unit_square(self) -> Array:
        """`rows` with distances on the unit square."""
        rows, columns = self.spec.grid
        return self._sums(self.attention, _distances(self.spec.grid, (1 / (rows - 1), 1 / (columns - 1))))

    @_once
    def weighted(self) -> Array:
        """`norms.norm_weighted`: (head, query, key), float32."""
        assert self.norms is not None
        if self._weighted is None:
            self._weighted = np.empty_like(self._wide)
        loops.weigh(self.attention, self.norms, self._weighted)
        return self._weighted

    @_once
    def weighted_rows(self) -> Array:
        """`rows` of the norm-weighted attention."""
        return self._sums(self.weighted, self._distances)

    @_once
    def rings(self) -> Array:
        """Mass on the patch itself, its neighbours and the rest: (ring, head), float64."""
        found = np.empty((3, self.spec.heads))
        loops.rings(self.attention, self.prefix, *self.spec.grid, found)
        return found

    @_once
    def received(self) -> Array:
        """Mean attention of the patch queries on each patch: (head, patch), float64."""
        return self.received_of(self.attention, self.prefix)

    @_once
    def offsets(self) -> Array:
        """Patch mass by offset, rows of mass 1, summed over patch queries: (head, offset_y, offset_x), float64."""
        rows, columns = self.spec.grid
        found = np.empty((self.spec.heads, 2 * rows - 1, 2 * columns - 1))
        loops.offsets(self.attention, self.prefix, rows, columns, found)
        return found

    def received_of(self, a: Array, first: int) -> Array:
        """Mean over the queries from `first` on of what each patch gets: (head, patch), float64."""
        found = np.empty((self.spec.heads, self.patches))
        loops.received(a, self.prefix, first, found)
        return found

    def peaks(self, reading: str) -> Array:
        """`formulas.score_matrix`: (y, x)."""
        if reading == "query":
            return np.asarray(self.query_peaks()[self._image])
        best = np.empty(self.patches, np.float32)
        found = np.empty(self.patches)
        loops.peaks(self.attention, self.prefix, reading == "head", best, found)
        return found.reshape(self.spec.grid)

    def query_peaks(self) -> Array:
        """`peaks` over queries of the whole batch, from what is stored: (image, y, x), float32."""
        if len(self._peaks) != len(self.batch):
            self._peaks = np.empty((len(self.batch), self.patches), np.float32)
            if self.batch.dtype == np.uint16 and self.spec.attention_kind == "probability":
                best = np.empty(self.patches, np.int16)
                loops.peaks_of_halves(self.batch.view(np.int16), self.prefix, best, self._peaks)
            else:
                codes = self.batch.dtype == np.uint8
                loops.peaks_of_codes(self.batch, self.prefix, codes, np.empty(self.patches, np.float32), self._peaks)
        return self._peaks.reshape(-1, *self.spec.grid)

    def spread(self, *, over: str) -> Array:
        """Standard deviation of attention over positions (head) or heads ()."""
        mean, second = np.empty(self.patches), np.empty(self.patches)
        if over == "heads":
            return np.asarray(loops.head_spread(self.attention, self.prefix, mean, second))
        found = np.empty(self.spec.heads)
        loops.position_spread(self.attention, self.prefix, mean, second, found)
        return found

    def information(self) -> Array:
        """`formulas.normalized_mutual_information`: (head)."""
        found = np.empty(self.spec.heads)
        loops.information(self.attention, self.prefix, np.empty(self.patches), found)
        return found

    def divergences(self) -> Array:
        """`formulas.head_similarity`: (head, other_head)."""
        found = np.empty((self.spec.heads, self.spec.heads))
        loops.divergences(self.attention, found)
        return found

    def explain(self, row: Array, *, discard: float = 0.9) -> Array:
        """`formulas.rollout_vit_explain` through this layer: from the row (query) behind it to the one (key) before."""
        fused = self.attention.max(axis=0)
        k = int(fused.size * discard)
        edge = np.partition(fused.reshape(-1), k - 1)[k - 1] if k else np.float32(-math.inf)
        following = np.empty(self.spec.tokens)
        loops.explain_step(fused, np.float32(edge), k, row, np.empty(self.spec.tokens), following)
        return following

    def _sums(self, a: Array, distances: Array) -> Array:
        found = np.empty((self.spec.heads, self.spec.tokens, 4))
        loops.row_sums(a, self.prefix, distances, found)
        return found
