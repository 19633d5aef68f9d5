"""The compiled loops of the fused kernel, and how a stored value is decoded; with `loops`, all that knows numba.

Values are decoded inside the loops, and summed in float64 wherever a sum is long. Every function works outside the
interpreter's lock and starts no thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = ["CONVERTS_HALF", "DECODES", "FAST", "STEP", "decoded", "fused_batch", "ln", "row_scale"]

FAST = {"reassoc", "contract", "nsz", "arcp"}
STEP = 8  # entries that rows are filled up to a multiple of: the fewest that a vector register holds
DECODES = {"float16": "uint16", "float32": "float32", "uint8": "uint8"}  # stored dtype -> as the kernel sees it
# Compilers call a routine that is not there where the processor (x86 before 2012, or numba's "generic") cannot convert.
CONVERTS_HALF = not config.CPU_NAME and binding.get_host_cpu_features().get("f16c", True)


@intrinsic  # type: ignore[untyped-decorator]
def decoded(typingctx: Any, code: Any) -> Any:
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
def ln(a: Any) -> Any:
    """Natural logarithm of a positive float32, error at most 1e-7 times max(1, the value); finite at 0.

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
        a = decoded(codes[start + j]) * scale
        mass += a
        far += a * distances[k + j]
        spread += a * ln(a)
        fused[j] = a if first else fused[j] + a
    for j in range(whole, end - start):
        a = decoded(codes[start + j]) * scale if j < patches else np.float32(0)
        mass += a
        far += a * distances[k + j]
        spread += a * ln(a)
        fused[j] = a if first else fused[j] + a
    return mass, far, spread


@njit(inline="always", fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def row_scale(codes: Any, start: Any, n: Any, renormalize: bool) -> Any:
    """1, or 1 over the row's sum for codes; NaN for a row that holds no data."""
    if not renormalize:
        return np.float32(1)
    total = np.float32(0)
    for j in range(n):
        total += decoded(codes[start + j])
    return np.float32(1) / total if total > 0 else np.float32(np.nan)


@njit(fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def _fused_layer(
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
            scale = row_scale(codes, start, n, renormalize)
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
                whole += np.float64(decoded(codes[(h * n + i) * n + j]) * scales[h, i])
        # By the exponent's bits: the reordering that `FAST` allows folds x - x, which `math.isfinite` is made of.
        finite = finite and (_bits(np.float32(whole)) & np.int32(0x7F800000)) != np.int32(0x7F800000)
        weight = row[i] / (residual * whole / heads + (1.0 - residual))
        share = weight * residual / heads
        for j in range(inner):
            following[front + j] += share * np.float64(fused[j])
        for h in range(np.uintp(heads)):
            for j in range(front):
                following[j] += share * np.float64(decoded(codes[(h * n + i) * n + j]) * scales[h, i])
        following[i] += weight * (1.0 - residual)
    for h in range(heads):
        _finish(codes, h, prefix, patches, sums, scales, out, masses, empty)
    return finite


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # type: ignore[untyped-decorator]
def fused_batch(
    codes: Any, place: int, heads: int, prefix: int, patches: int, distances: Any, residual: float, rows: Any,
    following: Any, fused: Any, sums: Any, scales: Any, renormalize: bool, out: Any, masses: Any, empty: Any,
    finite: Any,
) -> None:  # fmt: skip
    """`_fused_layer` for every image of flat `codes` (image, entry), at `place` on the layer axis of what it fills.

    One call, since each has to take the interpreter's lock, which all threads share.
    """
    for image in range(rows.shape[0]):
        finite[image, place] = _fused_layer(
            codes[image], heads, prefix, patches, distances, residual, rows[image], following, fused, sums, scales,
            renormalize, out[image, place], masses[image, place], empty[image, place],
        )  # fmt: skip
        rows[image] = following


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
        of_patch += np.float64(ln(m)) - np.float64(sums[h, i, 2]) / np.float64(m)
        without += 0 if there else 1
    empty[h] = without
    for j in range(prefix):
        total = 0.0
        for i in range(n):
            a = decoded(codes[(h * n + i) * n + j]) * scales[h, i]
            total += np.float64(a) if i >= prefix else 0.0
            spread -= np.float64(a * ln(a))
        masses[h, j] = total / patches
    out[2, h] = spread / n
    out[3, h] = of_patch / (n - without) if n > without else np.nan
