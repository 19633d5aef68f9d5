"""Attention mass on prefix tokens, on the patch itself, on its neighbours, and on all other patches."""

from __future__ import annotations

import functools

from .arrays import Array, constant, floating, namespace, patch_part, prefix_of

__all__ = ["neighbour_mass", "prefix_mass", "rest_mass", "self_mass"]


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


def _mass_between(attention: Array, grid: tuple[int, int], nearest: int, farthest: int) -> Array:
    """Attention between patches at a Chebyshev distance of nearest..farthest, averaged over queries."""
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    chosen = constant(_between(grid, nearest, farthest), a)
    return xp.mean(xp.sum(a * chosen, axis=-1), axis=-1)


@functools.lru_cache(maxsize=16)
def _between(grid: tuple[int, int], nearest: int, farthest: int) -> tuple[tuple[float, ...], ...]:
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    return tuple(tuple(float(nearest <= max(abs(y - v), abs(x - u)) <= farthest) for v, u in places) for y, x in places)
