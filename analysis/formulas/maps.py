"""Maps over the patch grid: one image's attention by position or by offset.

Attention is (..., query, key), or (..., head, query, key) for functions that combine heads; leading axes stay. The
first N - rows x columns keys are prefix tokens.
"""

from __future__ import annotations

from typing import Literal

from ...errors import UsageError
from .arrays import Array, constant, floating, namespace, patch_part, prefix_of
from .rollouts import Readout

__all__ = [
    "class_token_weight",
    "mass_mask",
    "offset_map",
    "query_map",
    "readout_map",
    "received_attention",
    "score_matrix",
    "sink_mask",
    "sink_share",
]

Reading = Literal["query", "key", "head"]


def score_matrix(attention: Array, grid: tuple[int, int], *, reading: Reading = "query") -> Array:
    """Score matrix S_j = mean_h max_i A_hij, prefix tokens dropped. Hebbar et al., eq. 3.3.

    Their "maximum value across each head" can be read in three ways: `query` is max over queries for each key, `key` is
    max over keys for each query, each followed by the mean over heads; `head` is max over heads, then the mean over
    queries.

    Args:
        attention: (..., head, query, key).
        grid: (rows, columns) of patches.
        reading: the axis of the maximum.

    Returns:
        (..., y, x), float32 or better, a probability.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    match reading:
        case "query":
            scores = xp.mean(xp.max(a, axis=-2), axis=-2)
        case "key":
            scores = xp.mean(xp.max(a, axis=-1), axis=-2)
        case "head":
            scores = xp.mean(xp.max(a, axis=-3), axis=-2)
        case _:
            raise UsageError(f"reading {reading!r} is none of query, key, head")
    return xp.reshape(scores, (*scores.shape[:-1], *grid))


def readout_map(attention: Array, grid: tuple[int, int], readout: Readout = 0) -> Array:
    """Attention of the readout row to each patch, as in DINO's class-token maps; a probability.

    Caron et al. 2021 (arXiv 2104.14294), fig. 1 and appendix.

    Args:
        attention: (..., head, query, key).
        grid: (rows, columns) of patches.
        readout: the index of a row, or several indices (their mean).

    Returns:
        (..., head, y, x), float32 or better.
    """
    xp, a, prefix = namespace(attention), floating(attention), prefix_of(attention, grid)
    rows = (readout,) if isinstance(readout, int) else tuple(int(r) for r in readout)
    if not rows or not all(0 <= r < a.shape[-2] for r in rows):
        raise UsageError(f"readout rows {rows} do not all lie in 0..{a.shape[-2] - 1}")
    row = sum((a[..., r, prefix:] for r in rows[1:]), start=a[..., rows[0], prefix:]) / len(rows)
    return xp.reshape(row, (*row.shape[:-1], *grid))


def class_token_weight(attention: Array, grid: tuple[int, int], readout: Readout = 0) -> Array:
    """The largest over heads of `readout_map`: (..., head, query, key) -> (..., y, x)."""
    return namespace(attention).max(readout_map(attention, grid, readout), axis=-3)


def mass_mask(maps: Array, threshold: float = 0.6) -> Array:
    """The smallest set of patches with at least `threshold` of the map's mass: (..., y, x) -> bool (..., y, x).

    The map is first divided by its sum. Caron et al. 2021 (arXiv 2104.14294), fig. 3, as in their
    `visualize_attention.py`.

    Raises:
        UsageError: the map comes from uint8 codes, which are too coarse (worst overlap of the masks 0.75).
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold {threshold} does not lie in (0, 1]")
    xp, m = namespace(maps), floating(maps, exact=True)
    flat = xp.reshape(m, (*m.shape[:-2], -1))
    flat = flat / xp.sum(flat, axis=-1, keepdims=True)
    order = xp.argsort(-flat, axis=-1, stable=True)
    rank = xp.asarray(xp.argsort(order, axis=-1, stable=True), dtype=m.dtype)
    descending = -xp.sort(-flat, axis=-1)
    before = xp.cumulative_sum(descending, axis=-1) - descending
    size = xp.sum(xp.where(before < threshold, before * 0 + 1, before * 0), axis=-1, keepdims=True)
    return xp.reshape(rank < size, m.shape)


def query_map(attention: Array, grid: tuple[int, int], row: int, column: int) -> Array:
    """What the patch at (row, column) looks at: (..., query, key) -> (..., y, x), a probability."""
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise UsageError(f"patch ({row}, {column}) does not lie on a grid of {grid[0]} x {grid[1]}")
    xp, a, prefix = namespace(attention), floating(attention), prefix_of(attention, grid)
    values = a[..., prefix + row * grid[1] + column, prefix:]
    return xp.reshape(values, (*values.shape[:-1], *grid))


def received_attention(attention: Array, grid: tuple[int, int], *, queries: Literal["patch", "all"] = "patch") -> Array:
    """Mean attention that each patch receives: (..., query, key) -> (..., y, x), a probability.

    The mean is over patch queries (with `prefix_mass` it sums to 1) or over all queries (Walmer et al. 2023, arXiv
    2212.03862, "attention on token"). Patches far above uniform are sinks: Darcet et al. 2024 (arXiv 2309.16588).
    """
    if queries not in ("patch", "all"):
        raise UsageError(f"queries {queries!r} is none of patch, all")
    xp, a, prefix = namespace(attention), floating(attention), prefix_of(attention, grid)
    values = xp.mean(a[..., prefix if queries == "patch" else 0 :, prefix:], axis=-2)
    return xp.reshape(values, (*values.shape[:-1], *grid))


def sink_mask(attention: Array, grid: tuple[int, int], *, times: float = 4.0) -> Array:
    """Patches that receive more than `times` the uniform attention 1/N: (..., query, key) -> bool (..., y, x)."""
    if not 0 < times <= 1e9:
        raise UsageError(f"times {times:g} is not above 0 and at most 1e9")
    return received_attention(attention, grid) > times / attention.shape[-1]


def sink_share(attention: Array, grid: tuple[int, int], *, times: float = 4.0) -> Array:
    """Share of the patches that are sinks: (..., query, key) -> (...). Darcet et al. 2024 (arXiv 2309.16588)."""
    xp, mask = namespace(attention), sink_mask(attention, grid, times=times)
    one = floating(attention)[..., 0, 0] * 0 + 1
    ones = xp.where(mask, one[..., None, None], 0 * one[..., None, None])
    return xp.mean(ones, axis=(-2, -1))


def offset_map(
    attention: Array,
    grid: tuple[int, int],
    *,
    form: Literal["per_query", "pooled"] = "per_query",
    renormalized: bool = True,
) -> Array:
    """Attention by offset of the key from the query, averaged over queries, patches only.

    `per_query` averages over the queries that have a key at that offset inside the image, so border and centre are
    comparable. `pooled` divides the mass at that offset by the number of patches and sums to 1 (to the patch mass if
    rows are not renormalised), as the code of Walmer et al. 2023 (arXiv 2212.03862) does for aligned attention.

    Args:
        attention: (..., query, key).
        grid: (rows, columns) of patches.
        form: the average, as above.
        renormalized: divide each row by its patch mass first. Rows without patch mass count as 0.

    Returns:
        (..., 2 rows - 1, 2 columns - 1), float32 or better; the centre is the patch itself.
    """
    xp, (rows, columns) = namespace(attention), grid
    a = patch_part(floating(attention), prefix_of(attention, grid))
    if renormalized:
        mass = xp.sum(a, axis=-1, keepdims=True)
        a = a / xp.where(mass == 0, xp.ones_like(mass), mass)
    a = xp.reshape(a, (*a.shape[:-2], rows, columns, rows, columns))
    a = _by_offset(xp.moveaxis(a, -2, -3))  # (..., y, y', x, x') -> (..., y, y', dx)
    a = _by_offset(xp.moveaxis(a, -1, -3))  # (..., dx, y, y') -> (..., dx, dy)
    total = xp.moveaxis(a, -1, -2)
    match form:
        case "pooled":
            return total / (rows * columns)
        case "per_query":
            having = [
                [(rows - abs(dy)) * (columns - abs(dx)) for dx in range(1 - columns, columns)]
                for dy in range(1 - rows, rows)
            ]
            return total / constant(having, total)
    raise UsageError(f"form {form!r} is none of per_query, pooled")


def _by_offset(x: Array) -> Array:
    """(..., i, k), n each -> (..., 2n - 1): the sum over i of entry (i, i + d) at d + n - 1.

    Padding each row with n zeros and reading the flat result in rows one shorter shifts row i by i places.
    """
    xp, n = namespace(x), x.shape[-1]
    padded = xp.concat([xp.flip(x, axis=-2), xp.zeros_like(x)], axis=-1)
    flat = xp.reshape(padded, (*x.shape[:-2], 2 * n * n))[..., : n * (2 * n - 1)]
    return xp.sum(xp.reshape(flat, (*x.shape[:-2], n, 2 * n - 1)), axis=-2)
