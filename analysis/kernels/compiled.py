"""Compiled loops over attention, for one image at a time; the one module that knows numba.

Values are decoded inside the loops or once into float32, and summed in float64 wherever a sum is long. Every function
works outside the interpreter's lock and starts no thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = [
    "CONVERTS_HALF", "DECODES", "STEP", "accumulate", "decode", "divergences", "explain_step", "fused_batch",
    "head_spread", "information", "offsets", "peaks", "peaks_of_codes", "peaks_of_halves", "position_spread",
    "received", "rings", "row_sums", "weigh",
]  # fmt: skip

FAST = {"reassoc", "contract", "nsz", "arcp"}
STEP = 8  # entries that rows are filled up to a multiple of: the fewest that a vector register holds
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
def peaks_of_codes(attention: Any, prefix: int, renormalize: bool, peaks: Any, out: Any) -> None:
    """The largest over patch queries, mean over heads: (image, head, query, key) codes into `out` (image, patch)."""
    images, heads, n, _ = attention.shape
    out[:] = 0.0
    for image in range(images):
        for h in range(heads):
            peaks[:] = np.float32(-np.inf)
            for i in range(prefix, n):
                codes = attention[image, h, i]
                scale = _row_scale(codes, np.uintp(0), np.uintp(n), renormalize)
                here = codes[prefix:]
                for j in range(n - prefix):
                    a = _decode(here[j]) * scale
                    peaks[j] = a if a > peaks[j] else peaks[j]
            for j in range(n - prefix):
                out[image, j] += peaks[j] / heads


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def peaks_of_halves(bits: Any, prefix: int, peaks: Any, out: Any) -> None:
    """`peaks_of_codes` of float16 that is never below 0, by its bits, as int16 like `peaks` (patch).

    As integers they have the order of the numbers.
    """
    images, heads, n, _ = bits.shape
    out[:] = 0.0
    for image in range(images):
        for h in range(heads):
            peaks[:] = 0
            for i in range(prefix, n):
                here = bits[image, h, i][prefix:]
                for j in range(n - prefix):
                    peaks[j] = max(peaks[j], here[j])
            for j in range(n - prefix):
                out[image, j] += _decode(np.uint16(peaks[j])) / heads


PLAIN = {"nogil": True, "cache": True, "fastmath": FAST, "error_model": "numpy"}


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def decode(codes: Any, renormalize: bool, out: Any) -> None:
    """Stored values (head, query, key) as float32 in `out`; the rows of codes divided by their sums."""
    heads, n, _ = codes.shape
    for h in range(heads):
        for i in range(n):
            here, there = codes[h, i], out[h, i]
            scale = _row_scale(here, np.uintp(0), np.uintp(n), renormalize)
            for j in range(n):
                there[j] = _decode(here[j]) * scale


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def weigh(a: Any, norms: Any, out: Any) -> None:
    """Each key's attention (head, query, key) times the norm (head, key) of what it hands over, in `out`."""
    heads, n, _ = a.shape
    for h in range(heads):
        norm = norms[h]
        for i in range(n):
            here, there = a[h, i], out[h, i]
            for j in range(n):
                there[j] = abs(here[j]) * norm[j]


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def accumulate(total: Any, values: Any) -> None:
    """Add flat float32 `values` to the float64 `total`."""
    for j in range(total.size):
        total[j] += np.float64(values[j])


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def row_sums(a: Any, prefix: int, distances: Any, out: Any) -> None:
    """Of every row its mass, patch mass, patch mass x distance, and sum of a ln a: (head, query, key) into `out`.

    `distances` (patch, patch) begin with the first patch's row; the rows of prefix tokens have distance 0. `out` is
    (head, query, 4), float64.
    """
    heads, n, _ = a.shape
    for h in range(heads):
        for i in range(n):
            row = a[h, i]
            front = 0.0
            spread = np.float32(0)
            for j in range(prefix):
                front += np.float64(row[j])
            for j in range(n):
                spread += row[j] * _ln(row[j])
            mass = 0.0
            far = 0.0
            patches = row[prefix:]
            if i >= prefix:
                distance = distances[i - prefix]
                for j in range(n - prefix):
                    mass += np.float64(patches[j])
                    far += np.float64(patches[j]) * np.float64(distance[j])
            else:
                for j in range(n - prefix):
                    mass += np.float64(patches[j])
            out[h, i, 0] = front + mass
            out[h, i, 1] = mass
            out[h, i, 2] = far
            out[h, i, 3] = np.float64(spread)


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def rings(a: Any, prefix: int, rows: int, columns: int, out: Any) -> None:
    """Mean over patch queries of the mass on the patch itself, its neighbours and the rest: `out` (ring, head)."""
    heads, _, _ = a.shape
    for h in range(heads):
        own = 0.0
        near = 0.0
        whole = 0.0
        for y in range(rows):
            for x in range(columns):
                row = a[h, prefix + y * columns + x][prefix:]
                mass = 0.0
                for j in range(rows * columns):
                    mass += np.float64(row[j])
                window = 0.0
                for v in range(max(y - 1, 0), min(y + 2, rows)):
                    for u in range(max(x - 1, 0), min(x + 2, columns)):
                        window += np.float64(row[v * columns + u])
                one = np.float64(row[y * columns + x])
                own += one
                near += window - one
                whole += mass - window
        patches = rows * columns
        out[0, h] = own / patches
        out[1, h] = near / patches
        out[2, h] = whole / patches


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def received(a: Any, prefix: int, first: int, out: Any) -> None:
    """Mean attention from the queries of `first` on to each patch: (head, query, key) into `out` (head, patch)."""
    heads, n, _ = a.shape
    for h in range(heads):
        total = out[h]
        total[:] = 0.0
        for i in range(first, n):
            row = a[h, i][prefix:]
            for j in range(n - prefix):
                total[j] += np.float64(row[j])
        for j in range(n - prefix):
            total[j] /= n - first


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def peaks(a: Any, prefix: int, over_heads: bool, best: Any, out: Any) -> None:
    """`score_matrix` in its readings `head` (largest over heads, mean over queries) and else `key`, into `out`."""
    heads, n, _ = a.shape
    out[:] = 0.0
    for i in range(prefix, n):
        best[:] = 0.0
        for h in range(heads):
            row = a[h, i][prefix:]
            if over_heads:
                for j in range(n - prefix):
                    best[j] = row[j] if row[j] > best[j] else best[j]
            else:
                top = np.float32(0)
                for j in range(n - prefix):
                    top = row[j] if row[j] > top else top
                out[i - prefix] += np.float64(top) / heads
        if over_heads:
            for j in range(n - prefix):
                out[j] += np.float64(best[j]) / (n - prefix)


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def offsets(a: Any, prefix: int, rows: int, columns: int, out: Any) -> None:
    """Patch mass by the key's offset, rows of mass 1 first: `out` (head, 2 rows - 1, 2 columns - 1), summed."""
    heads, _, _ = a.shape
    out[:] = 0.0
    for h in range(heads):
        for y in range(rows):
            for x in range(columns):
                row = a[h, prefix + y * columns + x][prefix:]
                mass = 0.0
                for j in range(rows * columns):
                    mass += np.float64(row[j])
                scale = 1.0 / mass if mass != 0 else 0.0
                for v in range(rows):
                    there = out[h, v - y + rows - 1][columns - 1 - x :]
                    here = row[v * columns :]
                    for u in range(columns):
                        there[u] += np.float64(here[u]) * scale


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def position_spread(a: Any, prefix: int, mean: Any, second: Any, out: Any) -> None:
    """Deviation (n - 1) of each patch's attention over patch queries, mean over patches: `out` (head)."""
    heads, n, _ = a.shape
    patches = n - prefix
    for h in range(heads):
        mean[:] = 0.0
        second[:] = 0.0
        for i in range(prefix, n):
            row = a[h, i][prefix:]
            for j in range(patches):
                mean[j] += np.float64(row[j])
        for j in range(patches):
            mean[j] /= patches
        for i in range(prefix, n):
            row = a[h, i][prefix:]
            for j in range(patches):
                off = np.float64(row[j]) - mean[j]
                second[j] += off * off
        total = 0.0
        for j in range(patches):
            total += np.sqrt(second[j] / (patches - 1))
        out[h] = total / patches


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def head_spread(a: Any, prefix: int, mean: Any, second: Any) -> Any:
    """Deviation (n - 1) of each entry over heads, mean over patch queries and keys."""
    heads, n, _ = a.shape
    patches = n - prefix
    total = 0.0
    for i in range(prefix, n):
        mean[:] = 0.0
        second[:] = 0.0
        for h in range(heads):
            row = a[h, i][prefix:]
            for j in range(patches):
                mean[j] += np.float64(row[j])
        for j in range(patches):
            mean[j] /= heads
        for h in range(heads):
            row = a[h, i][prefix:]
            for j in range(patches):
                off = np.float64(row[j]) - mean[j]
                second[j] += off * off
        for j in range(patches):
            total += np.sqrt(second[j] / (heads - 1))
    return total / (patches * patches)


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def information(a: Any, prefix: int, keys: Any, out: Any) -> None:
    """Normalised mutual information of query and key over patches: `out` (head); see `formulas`."""
    heads, n, _ = a.shape
    patches = n - prefix
    for h in range(heads):
        keys[:] = 0.0
        inside = 0.0
        there = 0
        for i in range(prefix, n):
            row = a[h, i][prefix:]
            mass = 0.0
            for j in range(patches):
                mass += np.float64(row[j])
            if mass == 0:
                continue
            there += 1
            scale = np.float32(1.0 / mass)
            spread = np.float32(0)
            for j in range(patches):
                p = row[j] * scale
                keys[j] += np.float64(p)
                spread += p * _ln(p)
            inside += np.float64(spread)
        of_key = 0.0
        for j in range(patches):
            p = keys[j] / max(there, 1)
            of_key -= p * np.log(p) if p > 0 else 0.0
        product = np.log(float(there)) * of_key if there else np.nan
        # Where all look at one and the same key, nothing is to be known: 0 rather than rounding errors over each other.
        out[h] = (of_key + inside / there) / np.sqrt(product) if product >= 1e-6 else product * 0.0


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def divergences(a: Any, out: Any) -> None:
    """Jensen-Shannon divergence between heads, mean over queries: (head, query, key) into `out` (head, head)."""
    heads, n, _ = a.shape
    out[:] = 0.0
    half = np.float32(0.5)
    for i in range(n):
        for h in range(heads):
            one = a[h, i]
            own = np.float32(0)
            for j in range(n):
                own += one[j] * _ln(one[j])
            out[h, h] += np.float64(own)
            for g in range(h):
                other = a[g, i]
                both = np.float32(0)
                for j in range(n):
                    m = (one[j] + other[j]) * half
                    both += m * _ln(m)
                out[h, g] -= np.float64(both)
    for h in range(heads):
        for g in range(h):
            out[h, g] = (out[h, g] + (out[h, h] + out[g, g]) / 2) / n
            out[g, h] = out[h, g]
    for h in range(heads):
        out[h, h] = 0.0


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def explain_step(fused: Any, edge: float, k: int, row: Any, masses: Any, following: Any) -> None:
    """One layer of `rollout_vit_explain`: the k smallest of `fused` (query, key) to 0, and `row` through the rest.

    `edge` is the k-th smallest value. Of equal ones the first in flat order go; the entry at flat index 0 stays.
    Column j is divided by the sum of row j, as there.
    """
    n = len(row)
    below = 0
    for i in range(n):
        here = fused[i]
        for j in range(n):
            below += 1 if here[j] < edge else 0
    ties = k - below
    following[:] = 0.0
    for i in range(n):
        here = fused[i]
        equal = 0
        for j in range(n):
            equal += 1 if here[j] == edge else 0
        if equal and ties > 0 and k > 0:
            for j in range(n):
                if here[j] == edge and ties > 0:
                    ties -= 1
                    if i + j > 0:
                        here[j] = np.float32(-np.inf)
        mass = 0.0
        for j in range(n):
            kept = k == 0 or here[j] >= edge or i + j == 0
            here[j] = here[j] if kept else np.float32(0)
            mass += np.float64(here[j])
        masses[i] = mass
        for j in range(n):
            following[j] += row[i] * np.float64(here[j])
        following[i] += row[i]
    for j in range(n):
        following[j] /= masses[j] + 1
