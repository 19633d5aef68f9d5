"""The fused kernel: every default statistic of a batch in one pass over its attention.

One loop over each query row decodes the heads and sums mass, distance and -a ln a, so every stored byte is read once;
loops over rows finish the statistics. The rollout multiplies one row vector through the layers from last to first, and
so needs each row of the head mean once, in the same pass. `formulas` has the same statistics in plain form, `compiled`
the loops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ...exporter.spec import GraphSpec
from ..catalog import CATALOG
from ..formulas import patch_distances, readout_rows
from ..statistic import Statistic
from . import compiled

if TYPE_CHECKING:
    from .cuda import OnCard

__all__ = ["Reducer", "fused", "seen"]

RESIDUAL = 0.5  # the weight of the attention beside the residual connection, as published


class Reducer:
    """Every default statistic of a batch, from its attention, layer by layer.

    Thread-safe; the loops release the GIL and start no threads. An image's numbers do not depend on the batch or on
    threads.

    Attributes:
        spec: the graph's.
        templates: what a call returns, `_finite` left out. A graph of some layers only has no `rollout`, which
            follows all of them; mixed attention has no entropies; a model without prefix tokens no `prefix_mass`.
    """

    def __init__(self, spec: GraphSpec, *, layers: Sequence[int] | None = None) -> None:
        """`layers` are those that will be added, by default all of the graph."""
        self.spec = spec
        self.layers = tuple(spec.layers if layers is None else layers)
        self._rollout = self.layers == tuple(range(spec.depth))
        self.distances = _distances(spec.grid, spec.patch_size)
        self.templates = tuple(s.template(spec, len(self.layers)) for s in fused(spec, self.layers))

    def __call__(
        self, attention: Sequence[npt.NDArray[Any]], pool: npt.NDArray[Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Reduce one batch.

        Args:
            attention: one array per layer, in order: (image, head, query, key), float16, float32, or uint8 codes.
            pool: the pool's own map (image, head, query, key) of a model with attention pooling, float.

        Returns:
            What `templates` promise, each with the image axis first, and `_finite` (image, layer), bool.

        Raises:
            UsageError: the arrays are not of this graph's shapes, or of another dtype.
        """
        if len(attention) != len(self.layers):
            raise UsageError(f"attention of {len(attention)} layers where {len(self.layers)} are expected")
        batch = self.begin(len(attention[0]), pool)
        for place in reversed(range(len(self.layers))):
            batch.add(attention[place])
        return batch.results()

    def begin(self, images: int, pool: npt.NDArray[Any] | None = None) -> Batch:
        """A batch whose layers are added one by one, from last to first, so that only one is in memory."""
        return Batch(self, images, self.start(images, pool))

    def checked(self, a: npt.NDArray[Any], place: int) -> npt.NDArray[Any]:
        """One layer's attention as the kernel takes it; errors as in a call."""
        layer = self.layers[place]
        wanted = (self.spec.heads, self.spec.tokens, self.spec.tokens)
        if a.ndim != 4 or a.shape[1:] != wanted:
            raise UsageError(f"attention of layer {layer} has shape {a.shape}, not (image, head, query, key) {wanted}")
        if a.dtype.name not in compiled.DECODES:
            raise UsageError(f"attention of layer {layer} is {a.dtype}, not one of {', '.join(compiled.DECODES)}")
        return seen(a)

    def start(self, images: int, pool: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
        """The readout as weights over the last layer's queries: (image, query); 0 where no rollout is made."""
        row = np.zeros((images, self.spec.tokens))
        if not self._rollout:
            return row
        if self.spec.readout != "pool":
            rows = list(readout_rows(self.spec.prefix, self.spec.grid, self.spec.readout))
            row[:, rows] = 1 / len(rows)
            return row
        if pool is None:
            raise UsageError(f"{self.spec.name} reads its tokens by attention pooling: the pool's map is needed")
        weights = np.asarray(pool, np.float64).mean(axis=(1, 2))
        # Some pools attend to the patches alone.
        row[:, self.spec.tokens - weights.shape[1] :] = weights
        return row

    def graph(self, dtype: Literal["float16", "float32"], *, codes: bool = False) -> bytes | None:
        """The same statistics as an ONNX model for attention of `dtype`, as in `traced.trace`; None without ndonnx."""
        try:
            from .traced import trace
        except ModuleNotFoundError:
            return None
        return trace(self.spec, self.templates, dtype, codes=codes)

    def on_card(self, dtype: Literal["float16", "float32"]) -> OnCard | None:
        """The same statistics of attention in a card's memory; None where numba has no card."""
        try:
            from . import cuda
        except (ImportError, AttributeError):  # no numba.cuda, or one that does not fit this numpy
            return None
        if len(self.spec.prefix) > cuda.MOST_PREFIX or not cuda.available():
            return None
        return cuda.OnCard(self.spec, self.templates, dtype)


class Batch:
    """One batch of a `Reducer`, a layer at a time."""

    def __init__(self, reducer: Reducer, images: int, row: npt.NDArray[np.float64]) -> None:
        spec, layers = reducer.spec, len(reducer.layers)
        prefix = len(spec.prefix)
        self._reducer, self._row, self._left = reducer, row, layers
        self._out = np.empty((images, layers, 4, spec.heads))
        self._masses = np.empty((images, layers, spec.heads, prefix))
        self._empty = np.empty((images, layers, spec.heads), np.int32)
        self._finite = np.empty((images, layers), np.bool_)
        self._following, self._fused = np.empty(spec.tokens), np.empty(reducer.distances.shape[1], np.float32)
        self._sums = np.empty((spec.heads, spec.tokens, 3), np.float32)
        self._scales = np.empty((spec.heads, spec.tokens), np.float32)

    def add(self, attention: npt.NDArray[Any]) -> None:
        """The next layer towards the input: (image, head, query, key), of a dtype that `Reducer` takes."""
        self._left -= 1
        place, made, spec = self._left, self._reducer, self._reducer.spec
        a = made.checked(attention, place)
        compiled.fused_batch(
            a.reshape(len(a), -1), place, spec.heads, len(spec.prefix), spec.patches, made.distances.reshape(-1),
            RESIDUAL, self._row, self._following, self._fused, self._sums, self._scales, a.dtype == np.uint8,
            self._out, self._masses, self._empty, self._finite,
        )  # fmt: skip

    def results(self) -> dict[str, npt.NDArray[Any]]:
        """What `Reducer` returns, once every layer is in."""
        spec = self._reducer.spec
        found = {
            "distance": self._out[:, :, 0],
            "distance_renormalized": self._out[:, :, 1],
            "entropy": self._out[:, :, 2],
            "entropy_patch": self._out[:, :, 3],
            "prefix_mass": self._masses,
            "rollout": self._row[:, len(spec.prefix) :].reshape(-1, *spec.grid),
            "rows_without_patch_mass": self._empty,
        }
        results = {t.name: np.ascontiguousarray(found[t.name], dtype=t.dtype) for t in self._reducer.templates}
        return results | {"_finite": self._finite}


@functools.lru_cache(maxsize=8)
def _distances(grid: tuple[int, int], patch_size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """`patch_distances` as the loops take them: rows filled up with 0 to a whole number of steps."""
    distances = np.asarray(patch_distances(grid, patch_size), np.float32)
    return np.pad(distances, ((0, 0), (0, -math.prod(grid) % compiled.STEP)))


def seen(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The stored values as the kernel takes them: contiguous, float16 as its bits."""
    if a.dtype == np.float16 and not compiled.CONVERTS_HALF:
        a = a.astype(np.float32)
    return np.ascontiguousarray(a).view(compiled.DECODES[a.dtype.name])


def fused(spec: GraphSpec, layers: Sequence[int]) -> list[Statistic]:
    """The statistics that the pass gives of a graph with attention of these layers; they come all together."""
    rollout = tuple(layers) == tuple(range(spec.depth))
    made = (s for s in CATALOG.values() if "fused" in s.kernels)
    return [s for s in made if not s.unfit(spec) and (rollout or not s.follows)]
