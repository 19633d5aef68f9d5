"""Attention mass on prefix tokens, on the patch itself, its neighbours and all other patches, and on the border."""

from __future__ import annotations

import functools

from .arrays import Array, constant, floating, mean_where, namespace, patch_part, prefix_of

__all__ = ["border_mass", "border_patches", "neighbour_mass", "prefix_mass", "rest_mass", "self_mass"]


def prefix_mass(attention: Array, prefix: int) -> Array:
    """Attention on each prefix token, averaged over the patch queries: (..., query, key) -> (..., prefix)."""
    patch_part(attention, prefix)
    return namespace(attention).mean(floating(attention)[..., prefix:, :prefix], axis=-2)


def self_mass(attention: Array, grid: tuple[int, int]) -> Array:
    """Attention of a patch on itself, averaged over patches: (..., query, key) -> (...), a probability."""
    return _mass_between(attention, grid, 0, 0)


def neighbour_mass(attention: Array, grid: tuple[int, int]) -> Array:
    """Attention of a patch on its (up to) 8 neighbours, averaged over patches: (..., query, key) -> (...)."""
    return _mass_between(attention, grid, 1, 1)


def rest_mass(attention: Array, grid: tuple[int, int]) -> Array:
    """Attention of a patch on all other patches, averaged over patches; with the other masses it sums to 1."""
    return _mass_between(attention, grid, 2, max(grid))


def border_mass(attention: Array, grid: tuple[int, int]) -> Array:
    """Share of a row's patch mass on the outer ring of patches, averaged over patches: (..., query, key) -> (...).

    Uniform attention gives the ring's share of the patches, 52 of 196 on 14 x 14. Rows without patch mass are left
    out; NaN if none is left. A mean distance far above that of uniform attention needs it: what is far from most
    patches is the border.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    mass, ring = xp.sum(a, axis=-1), xp.sum(a * constant(border_patches(grid), a), axis=-1)
    return mean_where(ring / xp.where(mass == 0, xp.ones_like(mass), mass), mass != 0)


@functools.lru_cache(maxsize=16)
def border_patches(grid: tuple[int, int]) -> tuple[float, ...]:
    """1 for each patch of the outer ring of the grid, 0 for others, row by row."""
    rows, columns = grid
    return tuple(float(y in (0, rows - 1) or x in (0, columns - 1)) for y in range(rows) for x in range(columns))


def _mass_between(attention: Array, grid: tuple[int, int], nearest: int, farthest: int) -> Array:
    """Attention between patches at a Chebyshev distance of nearest..farthest, averaged over queries."""
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    chosen = constant(_between(grid, nearest, farthest), a)
    return xp.mean(xp.sum(a * chosen, axis=-1), axis=-1)


@functools.lru_cache(maxsize=16)
def _between(grid: tuple[int, int], nearest: int, farthest: int) -> tuple[tuple[float, ...], ...]:
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    return tuple(tuple(float(nearest <= max(abs(y - v), abs(x - u)) <= farthest) for v, u in places) for y, x in places)
