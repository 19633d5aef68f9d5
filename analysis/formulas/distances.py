"""Mean attention distance, as published and with rows renormalised over patches."""

from __future__ import annotations

import functools
import math
from typing import Literal

from ...errors import UsageError
from .arrays import Array, constant, floating, mean_where, namespace, patch_part, prefix_of

__all__ = [
    "distance",
    "distance_renormalized",
    "distance_unit_square",
    "patch_distances",
    "rows_without_patch_mass",
    "uniform_distance",
]


@functools.lru_cache(maxsize=16)
def patch_distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> tuple[tuple[float, ...], ...]:
    """Euclidean distances between patch centres: (patch, patch), in the unit of `patch_size` (height, width)."""
    places = [(y * patch_size[0], x * patch_size[1]) for y in range(grid[0]) for x in range(grid[1])]
    return tuple(tuple(math.hypot(a[0] - b[0], a[1] - b[1]) for b in places) for a in places)


def uniform_distance(grid: tuple[int, int], patch_size: tuple[float, float]) -> float:
    """`distance_renormalized` of uniform attention: 116.5 px for 14 x 14 patches of 16 px."""
    distances = patch_distances(grid, patch_size)
    return math.fsum(map(math.fsum, distances)) / len(distances) ** 2


def distance(
    attention: Array,
    grid: tuple[int, int],
    patch_size: tuple[float, float],
    *,
    unit: Literal["pixels", "patches"] = "pixels",
) -> Array:
    """Mean attention distance, mean_i sum_j A_ij D_ij over patches i and j, rows not renormalised; pixels.

    A head that attends to the class token gets a small distance. Dosovitskiy et al. 2021 (arXiv 2010.11929), figs. 7
    and 11; Raghu et al. 2021 (arXiv 2108.08810), fig. 3.

    Args:
        attention: (..., query, key).
        grid: (rows, columns) of patches.
        patch_size: (height, width) in pixels.
        unit: of the distances; a patch is 1 high and 1 wide.

    Returns:
        (...), float32 or better.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    return xp.mean(xp.sum(a * constant(_distances_in(unit, grid, patch_size), a), axis=-1), axis=-1)


def distance_renormalized(
    attention: Array,
    grid: tuple[int, int],
    patch_size: tuple[float, float],
    *,
    unit: Literal["pixels", "patches"] = "pixels",
) -> Array:
    """Mean attention distance with each row divided by its patch mass; pixels. Use it to compare models.

    mean_i (sum_j A_ij D_ij / sum_j A_ij) over patches i and j. Rows without patch mass are left out of the mean
    (`rows_without_patch_mass` counts them); NaN if none is left.
    Park et al. 2023 (arXiv 2305.00729), section 2. Arguments and result as in `distance`.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    total = xp.sum(a * constant(_distances_in(unit, grid, patch_size), a), axis=-1)
    mass = xp.sum(a, axis=-1)
    return mean_where(total / xp.where(mass == 0, xp.ones_like(mass), mass), mass != 0)


def distance_unit_square(attention: Array, grid: tuple[int, int]) -> Array:
    """`distance_renormalized` with the grid stretched over a unit square: positions are index / (edge - 1).

    Walmer et al. 2023 (arXiv 2212.03862), section 4. Their code counts a row without patch mass as 0; this leaves it
    out. (..., query, key) -> (...), no unit.
    """
    if min(grid) < 2:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} patches has no unit square: an edge of one patch")
    return distance_renormalized(attention, grid, (1 / (grid[0] - 1), 1 / (grid[1] - 1)))


def rows_without_patch_mass(attention: Array, prefix: int) -> Array:
    """Number of query rows without patch mass: (..., query, key) -> (...), in the attention's float dtype."""
    xp, a = namespace(attention), floating(attention)
    mass = xp.sum(a[..., prefix:], axis=-1)
    return xp.sum(xp.where(mass == 0, xp.ones_like(mass), xp.zeros_like(mass)), axis=-1)


def _distances_in(unit: str, grid: tuple[int, int], patch_size: tuple[float, float]) -> tuple[tuple[float, ...], ...]:
    if unit not in ("pixels", "patches"):
        raise UsageError(f"unit {unit!r} is none of pixels, patches")
    return patch_distances(grid, patch_size if unit == "pixels" else (1, 1))
