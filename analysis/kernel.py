"""The fused kernel: every default statistic of a batch in one pass over its attention; the one module that knows numba.

For each query row the heads are decoded, summed, weighed by distance and by -a ln a in the same loop, so that every
stored byte is read once; what remains per row is finished in loops over rows. The rollout carries one row vector
through the layers from last to first, which needs each row of the head mean exactly once, in the same pass. `formulas`
holds the same statistics in their plain form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import config, njit, types
from numba.extending import intrinsic

from ..engine.store import Template
from ..exporter.errors import UsageError
from ..exporter.spec import GraphSpec
from .formulas import patch_distances, readout_rows

__all__ = ["Reducer", "score_matrix"]

# Sums may be reordered, which is what lets them run in vector registers; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}
STEP = 64  # entries that the compiled loops do at a time: four vectors of 16
RESIDUAL = 0.5  # the weight of the attention beside the residual connection, as published
DECODES = {"float16": "uint16", "float32": "float32", "uint8": "uint8"}  # stored dtype -> as the kernel sees it
# Compilers call a routine that is not there where the processor (x86 before 2012, or numba's "generic") cannot convert.
CONVERTS_HALF = not config.CPU_NAME and binding.get_host_cpu_features().get("f16c", True)


@intrinsic  # type: ignore[untyped-decorator]
def _decode(typingctx: Any, code: Any) -> Any:
    """A stored value as float32: float16 bits by the processor's own conversion, uint8 codes squared."""
    single = ir.FloatType()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if code == types.uint16:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), single)
        if code == types.uint8:
            wide = builder.zext(args[0], ir.IntType(32))
            return builder.uitofp(builder.mul(wide, wide), single)
        return args[0]

    return (types.float32(code), codegen) if code in (types.uint16, types.uint8, types.float32) else None


@intrinsic  # type: ignore[untyped-decorator]
def _bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float32, as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _from_bits(typingctx: Any, value: Any) -> Any:
    """The float32 whose bits an int32 holds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", fastmath=FAST)  # type: ignore[untyped-decorator]
def _ln(a: Any) -> Any:
    """Natural logarithm of a positive float32, within 1e-7 of the larger of it and 1; something finite at 0.

    a = 2^e m with m around 1, and a polynomial in m - 1 (the coefficients of Cephes' logf). Plain arithmetic, so that
    the loop around it runs in vector registers, which a call of the C library's would prevent.
    """
    bits = np.int32(_bits(a) - np.int32(0x3F3504F3))  # from sqrt(1/2) on
    e = np.float32(bits >> np.int32(23))
    x = _from_bits(np.int32((bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3))) - np.float32(1)
    p = np.float32(7.0376836292e-2)
    p = p * x + np.float32(-1.1514610310e-1)
    p = p * x + np.float32(1.1676998740e-1)
    p = p * x + np.float32(-1.2420140846e-1)
    p = p * x + np.float32(1.4249322787e-1)
    p = p * x + np.float32(-1.6668057665e-1)
    p = p * x + np.float32(2.0000714765e-1)
    p = p * x + np.float32(-2.4999993993e-1)
    p = p * x + np.float32(3.3333331174e-1)
    square = x * x
    return e * np.float32(0.6931471805599453) + (x - square * np.float32(0.5) + square * x * p)


@njit(inline="always", fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _row(
    codes: Any, start: Any, end: Any, patches: Any, distances: Any, k: Any, fused: Any, first: bool, scale: Any
) -> Any:  # fmt: skip
    """The patch part of one row of one head, at `start` of all codes: add it to `fused` and return its sums.

    The second loop runs behind the patches, into what follows in memory, as `distances` (from `k` on) and `fused` have
    room to: a scalar remainder would cost as much as the rest. What is behind counts as 0. Slices of the arrays would
    cost as much again, and so would signed indices, which may count from the end.

    Returns (mass, mass x distance, sum of a ln a).
    """
    mass = np.float32(0)
    far = np.float32(0)
    spread = np.float32(0)
    whole = patches - patches % np.uintp(STEP)
    for j in range(whole):
        a = _decode(codes[start + j]) * scale
        mass += a
        far += a * distances[k + j]
        spread += a * _ln(a)
        fused[j] = a if first else fused[j] + a
    for j in range(whole, end - start):
        a = _decode(codes[start + j]) * scale if j < patches else np.float32(0)
        mass += a
        far += a * distances[k + j]
        spread += a * _ln(a)
        fused[j] = a if first else fused[j] + a
    return mass, far, spread


@njit(inline="always", fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _row_scale(codes: Any, start: Any, n: Any, renormalize: bool) -> Any:
    """1, or 1 over the row's sum for codes; NaN for a row that holds no data."""
    if not renormalize:
        return np.float32(1)
    total = np.float32(0)
    for j in range(n):
        total += _decode(codes[start + j])
    return np.float32(1) / total if total > 0 else np.float32(np.nan)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _layer(
    codes: Any, heads: int, prefix: int, patches: int, distances: Any, residual: float, row: Any, following: Any,
    fused: Any, sums: Any, scales: Any, renormalize: bool, out: Any, masses: Any, empty: Any,
) -> bool:  # fmt: skip
    """One image's layer: flat (head, query, key) codes into `out` (statistic, head), `masses` (head, prefix), `empty`.

    `row` (query) is the rollout's vector, which multiplies this layer's matrix into `following` (key). Returns whether
    all of the attention is finite.
    """
    following[:] = 0.0
    finite = True
    front, inner = np.uintp(prefix), np.uintp(patches)
    n, width, size = front + inner, np.uintp(fused.size), np.uintp(codes.size)
    for i in range(n):
        k = (i - front) * width if i >= front else np.uintp(0)
        for h in range(np.uintp(heads)):
            start = (h * n + i) * n
            scale = _row_scale(codes, start, n, renormalize)
            # The very last row may not look behind itself. It is the same row for every image.
            end = min(start + front + width, size)
            mass, far, spread = _row(codes, start + front, end, inner, distances, k, fused, h == 0, scale)
            scales[h, i] = scale
            sums[h, i, 0] = mass
            sums[h, i, 1] = far
            sums[h, i, 2] = spread
        total = np.float32(0)
        for j in range(inner):
            total += fused[j]
        whole = np.float64(total)
        for h in range(np.uintp(heads)):
            for j in range(front):
                whole += np.float64(_decode(codes[(h * n + i) * n + j]) * scales[h, i])
        # By the exponent's bits: the reordering that `FAST` allows folds x - x, which `math.isfinite` is made of.
        finite = finite and (_bits(np.float32(whole)) & np.int32(0x7F800000)) != np.int32(0x7F800000)
        weight = row[i] / (residual * whole / heads + (1.0 - residual))
        share = weight * residual / heads
        for j in range(inner):
            following[front + j] += share * np.float64(fused[j])
        for h in range(np.uintp(heads)):
            for j in range(front):
                following[j] += share * np.float64(_decode(codes[(h * n + i) * n + j]) * scales[h, i])
        following[i] += weight * (1.0 - residual)
    for h in range(heads):
        _finish(codes, h, prefix, patches, sums, scales, out, masses, empty)
    return finite


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _finish(
    codes: Any, h: int, prefix: int, patches: int, sums: Any, scales: Any, out: Any, masses: Any, empty: Any
) -> None:  # fmt: skip
    """One head's statistics from its rows' sums."""
    n = prefix + patches
    near = 0.0
    near_renormalized = 0.0
    without = 0
    for i in range(prefix, n):
        mass = np.float64(sums[h, i, 0])
        there = mass != 0
        near += np.float64(sums[h, i, 1])
        near_renormalized += np.float64(sums[h, i, 1]) / (mass if there else 1.0)
        without += 0 if there else 1
    out[0, h] = near / patches
    out[1, h] = near_renormalized / (patches - without) if patches > without else np.nan
    spread = 0.0
    of_patch = 0.0
    without = 0
    for i in range(n):
        there = sums[h, i, 0] != 0
        m = sums[h, i, 0] if there else np.float32(1)
        spread -= np.float64(sums[h, i, 2])
        of_patch += np.float64(_ln(m)) - np.float64(sums[h, i, 2]) / np.float64(m)
        without += 0 if there else 1
    empty[h] = without
    for j in range(prefix):
        total = 0.0
        for i in range(n):
            a = _decode(codes[(h * n + i) * n + j]) * scales[h, i]
            total += np.float64(a) if i >= prefix else 0.0
            spread -= np.float64(a * _ln(a))
        masses[h, j] = total / patches
    out[2, h] = spread / n
    out[3, h] = of_patch / (n - without) if n > without else np.nan


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _peaks(attention: Any, prefix: int, renormalize: bool, peaks: Any, out: Any) -> None:
    """The largest over patch queries, mean over heads: (head, query, key) codes into `out` (patch)."""
    heads, n, _ = attention.shape
    out[:] = 0.0
    for h in range(heads):
        peaks[:] = 0.0
        for i in range(prefix, n):
            codes = attention[h, i]
            scale = _row_scale(codes, np.uintp(0), np.uintp(n), renormalize)
            here = codes[prefix:]
            for j in range(n - prefix):
                a = _decode(here[j]) * scale
                peaks[j] = a if a > peaks[j] else peaks[j]
        for j in range(n - prefix):
            out[j] += peaks[j]
    for j in range(n - prefix):
        out[j] /= heads


def score_matrix(attention: npt.NDArray[Any], grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """`formulas.score_matrix` in its default reading, from stored values.

    Args:
        attention: one layer, (image, head, query, key), float16, float32, or uint8 codes.
        grid: (rows, columns) of patches.

    Returns:
        (image, y, x), float32.
    """
    a, patches = _seen(attention), math.prod(grid)
    out, peaks = np.empty((len(a), patches), np.float32), np.empty(patches, np.float32)
    for image in range(len(a)):
        _peaks(a[image], a.shape[-1] - patches, a.dtype == np.uint8, peaks, out[image])
    return out.reshape(-1, *grid)


class Reducer:
    """Every default statistic of a batch, from its attention, layer by layer.

    Safe to call from several threads at once, and never starts any: the work runs outside the interpreter's lock. An
    image's numbers depend neither on its neighbours in the batch nor on threads.

    Attributes:
        spec: the graph's.
        templates: what a call returns, `_finite` left out. A graph of some layers only has no `rollout`, which
            follows all of them; mixed attention has no entropies; a model without prefix tokens no `prefix_mass`.
    """

    def __init__(self, spec: GraphSpec, *, layers: Sequence[int] | None = None) -> None:
        """Prepare the constants of one graph; `layers` are those to come, all of the graph's by default."""
        self.spec = spec
        self.layers = tuple(spec.layers if layers is None else layers)
        self._rollout = self.layers == tuple(range(spec.depth))
        distances = np.asarray(patch_distances(spec.grid, spec.patch_size), np.float32)
        self.distances = np.pad(distances, ((0, 0), (0, -spec.patches % STEP)))
        self.templates = _templates(spec, len(self.layers), self._rollout)

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
        """A batch whose layers are handed over one by one, from last to first, so that no two need to be held."""
        return Batch(self, images, self._start(images, pool))

    def checked(self, a: npt.NDArray[Any], place: int) -> npt.NDArray[Any]:
        """One layer's attention as the kernel takes it; errors as in a call."""
        layer = self.layers[place]
        wanted = (self.spec.heads, self.spec.tokens, self.spec.tokens)
        if a.ndim != 4 or a.shape[1:] != wanted:
            raise UsageError(f"attention of layer {layer} has shape {a.shape}, not (image, head, query, key) {wanted}")
        if a.dtype.name not in DECODES:
            raise UsageError(f"attention of layer {layer} is {a.dtype}, not one of {', '.join(DECODES)}")
        return _seen(a)

    def _start(self, images: int, pool: npt.NDArray[Any] | None) -> npt.NDArray[np.float64]:
        """The readout as weights over the last layer's queries: (image, query)."""
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

    def graph(self, dtype: Literal["float16", "float32"]) -> bytes | None:
        """The same statistics as an ONNX model (`traced.trace`) for attention of `dtype`; None without ndonnx."""
        try:
            from .traced import trace
        except ModuleNotFoundError:
            return None
        return trace(self.spec, self.templates, dtype)


class Batch:
    """One batch on its way through a `Reducer`, a layer at a time."""

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
        for image in range(len(self._row)):
            self._finite[image, place] = _layer(
                a[image].reshape(-1), spec.heads, len(spec.prefix), spec.patches, made.distances.reshape(-1), RESIDUAL,
                self._row[image], self._following, self._fused, self._sums, self._scales, a.dtype == np.uint8,
                self._out[image, place], self._masses[image, place], self._empty[image, place],
            )  # fmt: skip
            self._row[image] = self._following

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


def _seen(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The stored values as the kernel takes them: contiguous, float16 as its bits."""
    if a.dtype == np.float16 and not CONVERTS_HALF:
        a = a.astype(np.float32)
    return np.ascontiguousarray(a).view(DECODES[a.dtype.name])


def _templates(spec: GraphSpec, layers: int, rollout: bool) -> tuple[Template, ...]:
    heads = ("image", "layer", "head")
    pixels = {"units": "pixels", "source": "Dosovitskiy et al. 2021 (arXiv 2010.11929), figs. 7 and 11"}
    nats = {"units": "nats"}

    def per_head(name: str, attrs: Mapping[str, Any], long_name: str) -> Template:
        return Template(name, heads, (layers, spec.heads), "float32", math.nan, {**attrs, "long_name": long_name})

    found = [
        per_head("distance", pixels, "mean attention distance between patches, rows not renormalised"),
        per_head(
            "distance_renormalized", pixels | {"source": "Park et al. 2023 (arXiv 2305.00729), section 2"},
            "mean attention distance between patches, rows renormalised over patches",
        ),
    ]  # fmt: skip
    if spec.attention_kind == "probability":
        found += [
            per_head("entropy", nats, "mean entropy of the attention rows over all keys"),
            per_head("entropy_patch", nats, "mean entropy of the attention rows over patches, renormalised"),
        ]
    if spec.prefix:
        shape = (layers, spec.heads, len(spec.prefix))
        attrs = {"units": "1", "long_name": "mean attention of the patch queries on each prefix token"}
        found.append(Template("prefix_mass", (*heads, "prefix"), shape, "float32", math.nan, attrs))
    if rollout:
        attrs = {
            "units": "1", "long_name": "attention rollout of the readout, patch columns, unscaled",
            "readout": spec.readout, "source": "Abnar & Zuidema 2020 (arXiv 2005.00928), section 3",
        }  # fmt: skip
        found.append(Template("rollout", ("image", "y", "x"), spec.grid, "float32", math.nan, attrs))
    attrs = {"units": "rows", "long_name": "query rows without patch mass, left out where rows are renormalised"}
    found.append(Template("rows_without_patch_mass", heads, (layers, spec.heads), "int32", -1, attrs))
    return tuple(found)
