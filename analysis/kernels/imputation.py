"""ROAD's linear imputation: every missing pixel is the weighted mean of its neighbours (Rong et al. 2022).

The system has as many unknowns as missing pixels, up to the whole picture, once for each step of each map. A sparse
solver needs 1 to 3 s for it; conjugate gradients with a multigrid cycle as preconditioner, 20 to 60 ms. Removed regions
are whole patches, whose edges the coarser grids keep.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["impute"]

TOLERANCE = 1e-5  # of the residual, relative to the first
ITERATIONS = 60
SWEEPS, LAST = 2, 30  # of Jacobi's method, before and after each coarser grid; on the coarsest
DAMPING = 0.8
SMALLEST = 4  # edge of the coarsest grid

type Array = Any


def impute(values: Array, missing: Array) -> None:
    """Solve for the missing pixels in place.

    Each is the mean of its 8 neighbours, weighted 1/6 at its sides and 1/12 at its corners, of those that lie in the
    picture.

    Args:
        values: (row, column, channel) floating; missing pixels hold a first guess.
        missing: (row, column) bool, not all of them.
    """
    levels = _levels(missing)
    free, weight = levels[0]
    # In float64: a picture with few patches left is ill-conditioned. A border of zeros, which are never missing, so
    # that no loop asks whether a neighbour is there.
    v = np.pad(np.moveaxis(values, -1, 0).astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    r, q = np.zeros_like(v), np.zeros_like(v)
    _apply(v, free, weight, r)
    np.negative(r, out=r)
    first = float(np.sqrt((r * r).sum()))
    z = _cycle(r, levels)
    p, rz = z.copy(), _dot(r, z)
    for _ in range(ITERATIONS):
        _apply(p, free, weight, q)
        step = rz / np.maximum(_dot(p, q), 1e-30)
        v += step * p
        r -= step * q
        if float(np.sqrt((r * r).sum())) <= TOLERANCE * first:
            break
        z = _cycle(r, levels)
        last, rz = rz, _dot(r, z)
        p = z + rz / np.maximum(last, 1e-30) * p
    values[missing] = np.moveaxis(v[:, 1:-1, 1:-1], 0, -1)[missing]


def _dot(a: Array, b: Array) -> Array:
    """By channel, as an array that multiplies (channel, row, column)."""
    return np.einsum("cyx,cyx->c", a, b)[:, None, None]


def _levels(missing: Array) -> list[tuple[Array, Array]]:
    """(free, weight) of every grid, the finest first, each (row, column) with a border of nothing.

    `free`: 1 where a value is solved for; `weight`: the sum of the weights of the neighbours in the picture. A cell of
    a coarser grid is free where all four of its cells are.
    """
    found = []
    while True:
        inside = np.pad(np.ones(missing.shape), 1)
        weight = np.ones_like(inside)
        rows = inside[:-2] + 2 * inside[1:-1] + inside[2:]
        total = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
        weight[1:-1, 1:-1] = (total - 4) / 12
        found.append((np.pad(missing, 1).astype(np.float64), weight))
        if min(missing.shape) <= SMALLEST:
            return found
        even = missing[: missing.shape[0] // 2 * 2, : missing.shape[1] // 2 * 2]
        missing = even[::2, ::2] & even[1::2, ::2] & even[::2, 1::2] & even[1::2, 1::2]


def _cycle(r: Array, levels: list[tuple[Array, Array]]) -> Array:
    """One V-cycle for the system with right-hand side `r` (channel, row, column), from 0."""
    (free, weight), *coarser = levels
    e, other = np.zeros_like(r), np.zeros_like(r)
    for _ in range(SWEEPS if coarser else LAST):
        _smooth(e, r, free, weight, other)
        e, other = other, e
    if not coarser:
        return e
    _apply(e, free, weight, other)
    rest = r - other
    height, width = coarser[0][0].shape[0] - 2, coarser[0][0].shape[1] - 2
    part = rest[:, 1 : 1 + 2 * height, 1 : 1 + 2 * width]
    # The operator is 4 times as large on cells of twice the edge: the mean of four, times 4.
    below = part[:, ::2, ::2] + part[:, 1::2, ::2] + part[:, ::2, 1::2] + part[:, 1::2, 1::2]
    below = np.pad(below, ((0, 0), (1, 1), (1, 1))) * coarser[0][0]
    found = _cycle(below, coarser)[:, 1:-1, 1:-1].repeat(2, axis=1).repeat(2, axis=2)
    e[:, 1 : 1 + 2 * height, 1 : 1 + 2 * width] += found
    e *= free
    for _ in range(SWEEPS):
        _smooth(e, r, free, weight, other)
        e, other = other, e
    return e


@njit(nogil=True, cache=True, fastmath=True)  # type: ignore[untyped-decorator]
def _apply(v: Any, free: Any, weight: Any, out: Any) -> None:
    """The residual operator on free cells: weight times the value, minus the weighted sum of its neighbours."""
    side, corner = 1 / 6, 1 / 12
    for c in range(v.shape[0]):
        for y in range(1, v.shape[1] - 1):
            for x in range(1, v.shape[2] - 1):
                near = v[c, y - 1, x] + v[c, y + 1, x] + v[c, y, x - 1] + v[c, y, x + 1]
                far = v[c, y - 1, x - 1] + v[c, y - 1, x + 1] + v[c, y + 1, x - 1] + v[c, y + 1, x + 1]
                out[c, y, x] = free[y, x] * (weight[y, x] * v[c, y, x] - side * near - corner * far)


@njit(nogil=True, cache=True, fastmath=True)  # type: ignore[untyped-decorator]
def _smooth(v: Any, r: Any, free: Any, weight: Any, out: Any) -> None:
    """One damped step of Jacobi's method."""
    side, corner = 1 / 6, 1 / 12
    for c in range(v.shape[0]):
        for y in range(1, v.shape[1] - 1):
            for x in range(1, v.shape[2] - 1):
                near = v[c, y - 1, x] + v[c, y + 1, x] + v[c, y, x - 1] + v[c, y, x + 1]
                far = v[c, y - 1, x - 1] + v[c, y - 1, x + 1] + v[c, y + 1, x - 1] + v[c, y + 1, x + 1]
                change = r[c, y, x] + side * near + corner * far - weight[y, x] * v[c, y, x]
                out[c, y, x] = free[y, x] * (v[c, y, x] + DAMPING * change / weight[y, x])
