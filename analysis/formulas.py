"""Every statistic of attention, each once, on plain arrays of any library.

Attention is (..., query, key): rows are queries, leading axes (image, layer, head) stay as they are. A statistic that
joins heads takes (..., head, query, key), one that follows the layers takes a sequence of these, from input to output;
so a store's (image, layer, head, query, key) is passed as it is, or layer by layer. Sums run in float32 or better.
Rollouts and maps have their own modules and are offered here too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

from ..exporter.errors import UsageError
from .arrays import Array, constant, floating, namespace, patch_part, prefix_of
from .maps import (
    class_token_weight,
    mass_mask,
    offset_map,
    query_map,
    readout_map,
    received_attention,
    score_matrix,
    sink_mask,
    sink_share,
)
from .rollouts import (
    chefer,
    discard_smallest,
    fuse,
    gradient_mean,
    gradient_positive,
    gradient_rollout,
    head_importance,
    readout_rows,
    rollout,
    rollout_discard,
    rollout_vit_explain,
)

__all__ = [
    "chefer", "class_token_weight", "decode_codes", "discard_smallest", "distance", "distance_renormalized",
    "distance_unit_square", "effective_tokens", "entropy", "entropy_patch", "fuse", "gradient_mean",
    "gradient_positive", "gradient_rollout", "head_deviation", "head_importance", "head_similarity", "mass_mask",
    "neighbour_mass", "normalized_mutual_information", "offset_map", "patch_distances", "position_deviation",
    "position_similarity", "prefix_mass", "query_map", "readout_map", "readout_rows", "received_attention",
    "rest_mass", "rollout", "rollout_discard", "rollout_vit_explain", "row_entropy", "rows_without_patch_mass",
    "score_matrix", "self_mass", "sink_mask", "sink_share", "uniform_distance",
]  # fmt: skip


def decode_codes(codes: Array, dtype: object = None) -> Array:
    """Stored uint8 codes round(255 sqrt(a)) -> attention: (..., key) uint8 -> (..., key) float32.

    a = code^2 / 255^2 with each row divided by its sum, since rounding loses 1 to 3 % of a row. A row of zeros holds
    no data and becomes NaN. Good for averages; where single values decide, the statistic refuses codes.
    """
    xp = namespace(codes)
    a = xp.asarray(codes, dtype=xp.float32 if dtype is None else dtype)
    a = a * a
    return a / _nan_where_zero(xp.sum(a, axis=-1, keepdims=True))


@functools.lru_cache(maxsize=16)
def patch_distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> tuple[tuple[float, ...], ...]:
    """Euclidean distances between patch centres: (patch, patch), in the unit of `patch_size` (height, width)."""
    places = [(y * patch_size[0], x * patch_size[1]) for y in range(grid[0]) for x in range(grid[1])]
    return tuple(tuple(math.hypot(a[0] - b[0], a[1] - b[1]) for b in places) for a in places)


def uniform_distance(grid: tuple[int, int], patch_size: tuple[float, float]) -> float:
    """`distance_renormalized` of uniform attention, the usual reference: 116.5 px for 14 x 14 patches of 16 px."""
    distances = patch_distances(grid, patch_size)
    return math.fsum(map(math.fsum, distances)) / len(distances) ** 2


def distance(
    attention: Array, grid: tuple[int, int], patch_size: tuple[float, float], *,
    unit: Literal["pixels", "patches"] = "pixels",
) -> Array:  # fmt: skip
    """Mean attention distance as published: mean_i sum_j A_ij D_ij over patches, rows not renormalised; pixels.

    A head that looks at the class token seems local in it. Dosovitskiy et al. 2021 (arXiv 2010.11929), figs. 7 and 11;
    Raghu et al. 2021 (arXiv 2108.08810), fig. 3.

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
    attention: Array, grid: tuple[int, int], patch_size: tuple[float, float], *,
    unit: Literal["pixels", "patches"] = "pixels",
) -> Array:  # fmt: skip
    """Mean attention distance, each row's patch mass scaled to 1 first; pixels. The one to compare models with.

    Rows without patch mass are left out of the mean (`rows_without_patch_mass` counts them); NaN where none is left.
    Park et al. 2023 (arXiv 2305.00729), section 2. Arguments and result as in `distance`.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    total = xp.sum(a * constant(_distances_in(unit, grid, patch_size), a), axis=-1)
    mass = xp.sum(a, axis=-1)
    return _mean_where(total / xp.where(mass == 0, xp.ones_like(mass), mass), mass != 0)


def distance_unit_square(attention: Array, grid: tuple[int, int]) -> Array:
    """`distance_renormalized` with the grid stretched over a unit square: positions are index / (edge - 1).

    Walmer et al. 2023 (arXiv 2212.03862), section 4. Their code counts a row without patch mass as 0; here it is left
    out. (..., query, key) -> (...), no unit.
    """
    if min(grid) < 2:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} patches has no unit square: an edge of one patch")
    return distance_renormalized(attention, grid, (1 / (grid[0] - 1), 1 / (grid[1] - 1)))


def rows_without_patch_mass(attention: Array, prefix: int) -> Array:
    """How many of all query rows put nothing on patches: (..., query, key) -> (...), in the attention's float dtype."""
    xp, a = namespace(attention), floating(attention)
    mass = xp.sum(a[..., prefix:], axis=-1)
    return xp.sum(xp.where(mass == 0, xp.ones_like(mass), xp.zeros_like(mass)), axis=-1)


def row_entropy(attention: Array) -> Array:
    """-sum_j A_ij ln A_ij of every row, 0 ln 0 = 0: (..., query, key) -> (..., query), nats."""
    a = floating(attention)
    return -namespace(a).sum(_x_ln_x(a), axis=-1)


def entropy(
    attention: Array, *, kind: str = "probability", rows: Sequence[int] | None = None,
    unit: Literal["nats", "bits"] = "nats", normalized: bool = False,
) -> Array:  # fmt: skip
    """Entropy of the rows over all keys, averaged over queries.

    Of single heads only: the entropy of head-averaged attention is something else, larger than the heads' mean.

    Args:
        attention: (..., query, key).
        kind: the graph's attention kind. Rows of `mixed` attention are no distributions.
        rows: the queries to average over, all by default (`readout_rows` gives the readout's).
        unit: nats or bits.
        normalized: divide by the logarithm of the number of keys, so that uniform attention gives 1.

    Returns:
        (...), float32 or better.

    Raises:
        UsageError: `kind` is mixed.
    """
    _refuse_mixed(kind, "entropy")
    return _averaged(row_entropy(attention), rows, unit, math.log(attention.shape[-1]) if normalized else None)


def entropy_patch(
    attention: Array, prefix: int, *, kind: str = "probability", rows: Sequence[int] | None = None,
    unit: Literal["nats", "bits"] = "nats", normalized: bool = False,
) -> Array:  # fmt: skip
    """Entropy of the rows over patch keys, each row's patch mass scaled to 1 first, averaged over queries.

    Rows without patch mass are left out (`rows_without_patch_mass` counts them); NaN where none is left. With prefix
    mass m, each row obeys H = H2(m) + m H_prefix + (1 - m) H_patch. Arguments as in `entropy`.
    """
    _refuse_mixed(kind, "entropy_patch")
    xp, a = namespace(attention), floating(attention)[..., prefix:]
    mass = xp.sum(a, axis=-1)
    there = mass != 0
    m = xp.where(there, mass, xp.ones_like(mass))
    h = -xp.sum(_x_ln_x(a / m[..., None]), axis=-1)
    return _averaged(h, rows, unit, math.log(a.shape[-1]) if normalized else None, there)


def effective_tokens(attention: Array, *, kind: str = "probability", rows: Sequence[int] | None = None) -> Array:
    """The number of keys a row spreads over, averaged: mean_i exp(H_i), not exp of the mean entropy.

    (..., query, key) -> (...), keys. Arguments as in `entropy`.
    """
    _refuse_mixed(kind, "effective_tokens")
    return _averaged(namespace(attention).exp(row_entropy(attention)), rows, "nats", None)


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
    """Attention of a patch on all patches but itself and its neighbours: with the other masses it sums to 1."""
    return _mass_between(attention, grid, 2, max(grid))


def normalized_mutual_information(attention: Array, grid: tuple[int, int]) -> Array:
    """NMI of query and key: I(q; k) / sqrt(H(q) H(k)), with p(q) = 1/P and p(k | q) the row over patches.

    0 where every query looks at the same keys, 1 where each looks at a key of its own. Rows without patch mass are
    left out. Park et al. 2023 (arXiv 2305.00729), section 2, eq. 2. Their notebook (naver-ai/cl-vs-mim,
    self_attention_analysis.ipynb) has the same prefix tokens dropped, rows renormalised, uniform queries and square
    root; it adds 1e-8 to every entry where this takes 0 ln 0 = 0, which moves sharp heads by about 1e-6.
    (..., query, key) -> (...), in 0..1.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    mass = xp.sum(a, axis=-1, keepdims=True)
    zero = xp.zeros_like(mass)
    there = xp.where(mass == 0, zero, zero + 1)
    p_query = there / _nan_where_zero(xp.sum(there, axis=-2, keepdims=True))
    joint = a / xp.where(mass == 0, zero + 1, mass) * p_query
    h_query, h_key = (-xp.sum(_x_ln_x(p), axis=-1) for p in (p_query[..., 0], xp.sum(joint, axis=-2)))
    information = h_query + h_key + xp.sum(_x_ln_x(joint), axis=(-2, -1))
    product = h_query * h_key
    # Where all look at one and the same key, nothing is to be known: 0 rather than rounding errors over each other.
    nothing = product < 1e-6
    one = xp.ones_like(product)
    return xp.where(nothing, xp.zeros_like(one), information / xp.sqrt(xp.where(nothing, one, product)))


def position_deviation(attention: Array, grid: tuple[int, int]) -> Array:
    """Standard deviation (n - 1) of each key's attention over queries, averaged over keys; patches only.

    Walmer et al. 2023 (arXiv 2212.03862), "deviation over positions". (..., query, key) -> (...), a probability.
    """
    xp = namespace(attention)
    return xp.mean(_std(patch_part(floating(attention), prefix_of(attention, grid)), -2), axis=-1)


def head_deviation(attention: Array, grid: tuple[int, int]) -> Array:
    """Standard deviation (n - 1) of each entry over heads, averaged over queries and keys; patches only.

    Walmer et al. 2023 (arXiv 2212.03862), "deviation over heads". (..., head, query, key) -> (...), a probability.
    """
    xp = namespace(attention)
    return xp.mean(_std(patch_part(floating(attention), prefix_of(attention, grid)), -3), axis=(-2, -1))


def head_similarity(attention: Array, *, kind: str = "probability") -> Array:
    """Jensen-Shannon divergence between heads, averaged over queries: 0 for equal heads, at most ln 2; nats.

    Clark et al. 2019 (arXiv 1906.04341), section 6, which sums over queries where this averages.
    (..., head, query, key) -> (..., head, head), symmetric.
    """
    _refuse_mixed(kind, "head_similarity")
    xp, a = namespace(attention), floating(attention)
    heads, h = a.shape[-3], row_entropy(a)
    rows = []
    for i in range(heads):  # one pair at a time: all pairs at once would hold heads^2 matrices
        mixed = [row_entropy((a[..., i, :, :] + a[..., j, :, :]) / 2) for j in range(heads)]
        pairs = [xp.mean(m - (h[..., i, :] + h[..., j, :]) / 2, axis=-1) for j, m in enumerate(mixed)]
        rows.append(xp.stack(pairs, axis=-1))
    return xp.stack(rows, axis=-2)


def position_similarity(embedding: Array, grid: tuple[int, int], *, position: str = "absolute") -> Array:
    """Cosine similarity of the patches' position embeddings: (token, channel) -> (y, x, y', x'), in -1..1.

    Rows before the last rows x columns belong to prefix tokens and are dropped. Dosovitskiy et al. 2021
    (arXiv 2010.11929), fig. 7.

    Raises:
        UsageError: the model knows positions by rotation or relative bias, and has no such embedding.
    """
    if position != "absolute":
        raise UsageError(f"position {position}: only models with an absolute position embedding have this similarity")
    xp, e = namespace(embedding), floating(embedding)
    count = math.prod(grid)
    if e.ndim != 2 or e.shape[0] < count:
        raise UsageError(f"position embedding of shape {tuple(e.shape)} has no row for each of {count} patches")
    e = e[e.shape[0] - count :, :]
    e = e / xp.sqrt(xp.sum(e * e, axis=-1, keepdims=True))
    return xp.reshape(xp.matmul(e, xp.moveaxis(e, 0, 1)), (*grid, *grid))


def _distances_in(unit: str, grid: tuple[int, int], patch_size: tuple[float, float]) -> tuple[tuple[float, ...], ...]:
    if unit not in ("pixels", "patches"):
        raise UsageError(f"unit {unit!r} is none of pixels, patches")
    return patch_distances(grid, patch_size if unit == "pixels" else (1, 1))


def _refuse_mixed(kind: str, name: str) -> None:
    if kind != "probability":
        raise UsageError(
            f"{name}: this model's attention is {kind}: its heads are combined after the softmax, so rows are no "
            "probabilities and have no entropy"
        )


def _x_ln_x(a: Array) -> Array:
    xp = namespace(a)
    return a * xp.log(xp.where(a == 0, xp.ones_like(a), a))


def _nan_where_zero(x: Array) -> Array:
    return namespace(x).where(x == 0, x + math.nan, x)


def _mean_where(values: Array, there: Array) -> Array:
    """Mean over the last axis of the values that are there; NaN where none is."""
    xp = namespace(values)
    zero = xp.zeros_like(values)
    count = xp.sum(xp.where(there, zero + 1, zero), axis=-1)
    return xp.sum(xp.where(there, values, zero), axis=-1) / _nan_where_zero(count)


def _averaged(
    h: Array, rows: Sequence[int] | None, unit: str, divisor: float | None, there: Array | None = None
) -> Array:
    if unit not in ("nats", "bits"):
        raise UsageError(f"unit {unit!r} is none of nats, bits")
    scale = (1.0 if unit == "nats" else 1 / math.log(2)) if divisor is None else 1 / divisor
    chosen = constant([1.0 if rows is None or i in rows else 0.0 for i in range(h.shape[-1])], h) > 0
    return _mean_where(h, chosen if there is None else chosen & there) * scale


def _mass_between(attention: Array, grid: tuple[int, int], nearest: int, farthest: int) -> Array:
    """Attention between patches whose larger coordinate difference lies in nearest..farthest; mean over queries."""
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    chosen = constant(_between(grid, nearest, farthest), a)
    return xp.mean(xp.sum(a * chosen, axis=-1), axis=-1)


@functools.lru_cache(maxsize=16)
def _between(grid: tuple[int, int], nearest: int, farthest: int) -> tuple[tuple[float, ...], ...]:
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    return tuple(tuple(float(nearest <= max(abs(y - v), abs(x - u)) <= farthest) for v, u in places) for y, x in places)


def _std(x: Array, axis: int) -> Array:
    xp = namespace(x)
    centred = x - xp.mean(x, axis=axis, keepdims=True)
    return xp.sqrt(xp.sum(centred * centred, axis=axis) / (x.shape[axis] - 1))
