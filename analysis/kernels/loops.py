"""Compiled loops over the attention of one layer, for statistics beyond the default ones.

Values are decoded once into float32, and summed in float64 wherever a sum is long. Every function works outside the
interpreter's lock and starts no thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .compiled import FAST, decoded, ln, row_scale

__all__ = [
    "accumulate",
    "decode",
    "divergences",
    "explain_step",
    "head_spread",
    "information",
    "offsets",
    "peaks",
    "peaks_of_codes",
    "peaks_of_halves",
    "position_spread",
    "received",
    "rings",
    "row_sums",
    "weigh",
]

PLAIN = {"nogil": True, "cache": True, "fastmath": FAST, "error_model": "numpy"}


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
                scale = row_scale(codes, np.uintp(0), np.uintp(n), renormalize)
                here = codes[prefix:]
                for j in range(n - prefix):
                    a = decoded(here[j]) * scale
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
                out[image, j] += decoded(np.uint16(peaks[j])) / heads


@njit(**PLAIN)  # type: ignore[untyped-decorator]
def decode(codes: Any, renormalize: bool, out: Any) -> None:
    """Stored values (head, query, key) as float32 in `out`; the rows of codes divided by their sums."""
    heads, n, _ = codes.shape
    for h in range(heads):
        for i in range(n):
            here, there = codes[h, i], out[h, i]
            scale = row_scale(here, np.uintp(0), np.uintp(n), renormalize)
            for j in range(n):
                there[j] = decoded(here[j]) * scale


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
                spread += row[j] * ln(row[j])
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
                spread += p * ln(p)
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
                own += one[j] * ln(one[j])
            out[h, h] += np.float64(own)
            for g in range(h):
                other = a[g, i]
                both = np.float32(0)
                for j in range(n):
                    m = (one[j] + other[j]) * half
                    both += m * ln(m)
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
