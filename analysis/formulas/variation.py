"""Variation of attention over queries, heads and models, and similarity of position embeddings."""

from __future__ import annotations

import math

from ...errors import UsageError
from .arrays import (
    Array,
    floating,
    mean_where,
    namespace,
    nan_where_zero,
    patch_part,
    prefix_of,
    refuse_mixed,
    x_ln_x,
)
from .entropies import row_entropy

__all__ = [
    "divergence",
    "head_deviation",
    "head_similarity",
    "normalized_mutual_information",
    "position_deviation",
    "position_similarity",
]


def normalized_mutual_information(attention: Array, grid: tuple[int, int]) -> Array:
    """NMI of query and key: I(q; k) / sqrt(H(q) H(k)), with p(q) = 1/P and p(k | q) the row over patches.

    0 if all queries attend to the same keys, 1 if each attends to a key of its own. Rows without patch mass are left
    out. Park et al. 2023 (arXiv 2305.00729), section 2, eq. 2. Their notebook (naver-ai/cl-vs-mim,
    self_attention_analysis.ipynb) does the same, but adds 1e-8 to every entry, where this uses 0 ln 0 = 0; sharp heads
    differ by up to 1.1e-4.
    (..., query, key) -> (...), in 0..1.
    """
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, grid))
    mass = xp.sum(a, axis=-1, keepdims=True)
    zero = xp.zeros_like(mass)
    there = xp.where(mass == 0, zero, zero + 1)
    p_query = there / nan_where_zero(xp.sum(there, axis=-2, keepdims=True))
    joint = a / xp.where(mass == 0, zero + 1, mass) * p_query
    h_query, h_key = (-xp.sum(x_ln_x(p), axis=-1) for p in (p_query[..., 0], xp.sum(joint, axis=-2)))
    information = h_query + h_key + xp.sum(x_ln_x(joint), axis=(-2, -1))
    product = h_query * h_key
    # If all queries attend to one key, both entropies are 0: the result is 0, not a quotient of rounding errors.
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

    Clark et al. 2019 (arXiv 1906.04341), section 6, who sum over queries instead; their code first smooths rows to
    0.999 a + 0.001 / N, where this takes 0 ln 0 = 0.
    (..., head, query, key) -> (..., head, head), symmetric.
    """
    refuse_mixed(kind, "head_similarity")
    xp, a = namespace(attention), floating(attention)
    heads, h = a.shape[-3], row_entropy(a)
    rows = []
    for i in range(heads):  # one pair at a time: all pairs at once would hold heads^2 matrices
        mixed = [row_entropy((a[..., i, :, :] + a[..., j, :, :]) / 2) for j in range(heads)]
        pairs = [xp.mean(m - (h[..., i, :] + h[..., j, :]) / 2, axis=-1) for j, m in enumerate(mixed)]
        rows.append(xp.stack(pairs, axis=-1))
    return xp.stack(rows, axis=-2)


def divergence(one: Array, other: Array, grid: tuple[int, int]) -> Array:
    """Jensen-Shannon divergence of two models' rows for the same patches, averaged over patches; nats, 0..ln 2.

    H((p + q)/2) - (H(p) + H(q))/2 of each patch query, both rows over patches and divided by their patch mass, so that
    models with other prefix tokens compare. Rows without patch mass in either are left out; NaN if none is left.
    Lin 1991 (IEEE Trans. Inf. Theory 37). Heads of two models have nothing to do with each other: give their means.

    Args:
        one: (..., query, key).
        other: of the same images, perhaps with another number of prefix tokens.
        grid: (rows, columns) of patches, of both.

    Returns:
        (...), float32 or better.
    """
    xp, rows, there = namespace(one), [], None
    for attention in (one, other):
        a = patch_part(floating(attention), prefix_of(attention, grid))
        mass = xp.sum(a, axis=-1)
        rows.append(a / xp.where(mass == 0, xp.ones_like(mass), mass)[..., None])
        there = mass != 0 if there is None else there & (mass != 0)
    p, q = rows
    apart = row_entropy((p + q) / 2) - (row_entropy(p) + row_entropy(q)) / 2
    return mean_where(xp.where(apart < 0, xp.zeros_like(apart), apart), there)  # of equal rows, but for rounding


def position_similarity(embedding: Array, grid: tuple[int, int], *, position: str = "absolute") -> Array:
    """Cosine similarity of the patches' position embeddings: (token, channel) -> (y, x, y', x'), in -1..1.

    Only the last rows x columns tokens are patches; the prefix tokens before them are dropped. Dosovitskiy et al. 2021
    (arXiv 2010.11929), fig. 7.

    Raises:
        UsageError: the model uses rotary or relative positions, so it has no such embedding.
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


def _std(x: Array, axis: int) -> Array:
    xp = namespace(x)
    centred = x - xp.mean(x, axis=axis, keepdims=True)
    return xp.sqrt(xp.sum(centred * centred, axis=axis) / (x.shape[axis] - 1))
