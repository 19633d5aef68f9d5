"""Norm-weighted attention, the weight times the norm of the vector it multiplies; and tokens of outlying norm.

A large weight on a short vector adds little: class tokens and sinks get much attention and pass on little. Kobayashi,
Kuribayashi, Yokoi & Inui 2020 (arXiv 2004.10102) use ||alpha f(x)||, with f(x) the key's value vector after that head's
slice of the output projection. A run stores ||f(x)|| as `value_norm` if its graph was exported with `--norms`, and the
norms of the residual stream as `token_norm`: a few patches of huge norm are what Darcet et al. 2024 found.
"""

from __future__ import annotations

import math

from ...errors import UsageError
from .arrays import Array, constant, floating, namespace
from .distances import distance_renormalized
from .entropies import row_entropy

__all__ = [
    "norm_outlier_map",
    "norm_outlier_share",
    "norm_weighted",
    "norm_weighted_distance",
    "norm_weighted_entropy",
    "summed_norm",
]


def norm_weighted(attention: Array, value_norm: Array) -> Array:
    """||alpha_ij f(x_j)|| = |alpha_ij| ||f(x_j)||: the norm of what query i gets from key j, per head.

    Kobayashi et al. 2020 (arXiv 2004.10102), section 3. Rows do not sum to 1; `readout_map` and `received_attention`
    accept the result in place of attention.

    Args:
        attention: (..., head, query, key).
        value_norm: (..., head, key), the norm of the key's value vector times the head's output projection.

    Returns:
        (..., head, query, key), float32 or better, in the unit of the residual stream.
    """
    a, v = floating(attention), floating(value_norm)
    if a.ndim < 3 or v.shape[-2:] != (a.shape[-3], a.shape[-1]):
        raise UsageError(
            f"value norms of shape {tuple(v.shape)} are not (head, key) of attention {tuple(attention.shape)}"
        )
    return namespace(a).abs(a) * v[..., None, :]


def norm_weighted_entropy(attention: Array, value_norm: Array) -> Array:
    """Entropy of the norm-weighted rows, each divided by its sum, mean over queries: (..., head), nats.

    Arguments as in `norm_weighted`. Norms are not negative, so it also exists for attention mixed after the softmax.
    """
    xp, w = namespace(attention), norm_weighted(attention, value_norm)
    total = xp.sum(w, axis=-1, keepdims=True)
    return xp.mean(row_entropy(w / xp.where(total == 0, xp.ones_like(total), total)), axis=-1)


def norm_weighted_distance(
    attention: Array, value_norm: Array, grid: tuple[int, int], patch_size: tuple[float, float]
) -> Array:
    """`distance_renormalized` of the norm-weighted rows: (..., head), pixels. Arguments as in both."""
    return distance_renormalized(norm_weighted(attention, value_norm), grid, patch_size)


def summed_norm(attention: Array, vectors: Array) -> Array:
    """||sum_h alpha_ij^h f^h(x_j)||: the norm of what query i gets from key j through all heads.

    At most the sum over heads of `norm_weighted`, since vectors of different heads can cancel. It needs the vectors,
    which no store holds. Kobayashi et al. 2020 (arXiv 2004.10102), section 3.

    Args:
        attention: (..., head, query, key).
        vectors: (..., head, key, channel), the value vectors after each head's slice of the output projection.

    Returns:
        (..., query, key), float32 or better.
    """
    xp, a, f = namespace(attention), floating(attention), floating(vectors)
    heads = a.shape[-3]
    total = xp.zeros_like(a[..., 0, :, :])
    for h in range(heads):
        for g in range(heads):  # |sum|^2 from inner products per key: no array (query, key, channel)
            inner = xp.sum(f[..., h, :, :] * f[..., g, :, :], axis=-1)
            total = total + a[..., h, :, :] * a[..., g, :, :] * inner[..., None, :]
    return xp.sqrt(xp.where(total > 0, total, xp.zeros_like(total)))


def norm_outlier_map(token_norm: Array, grid: tuple[int, int], *, times: float = 3.0, above: float = 0.0) -> Array:
    """1 for the patches whose token is an outlier by its norm, 0 for others; their mean over images says where.

    Darcet et al. 2024 (arXiv 2309.16588), section 2.1, call a token of DINOv2-g an outlier if its norm is above 150, a
    cut between the two modes of that model's norms: `above` 150. Norms of other models and layers have another scale;
    by default the cut is at `times` the median norm of the patches of the same image and layer.

    Args:
        token_norm: (..., token), norms of the residual stream, prefix tokens first.
        grid: (rows, columns) of patches.
        times: the cut as a multiple of the median over patches.
        above: the cut itself; 0 for `times` the median.

    Returns:
        (..., y, x), in the norms' dtype or better.
    """
    if not 0 < times <= 1e9 or not 0 <= above <= 1e30:
        raise UsageError(f"times {times:g} is not above 0 and at most 1e9, or above {above:g} not from 0 to 1e30")
    xp, norm, count = namespace(token_norm), floating(token_norm), math.prod(grid)
    if norm.shape[-1] < count:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} patches does not fit norms of {norm.shape[-1]} tokens")
    norm = norm[..., norm.shape[-1] - count :]
    if above > 0:
        cut = constant(above, norm)
    else:
        ordered = xp.sort(norm, axis=-1)
        cut = times * (ordered[..., (count - 1) // 2] + ordered[..., count // 2])[..., None] / 2
    found = xp.where(norm > cut, xp.ones_like(norm), xp.zeros_like(norm))
    return xp.reshape(found, (*found.shape[:-1], *grid))


def norm_outlier_share(token_norm: Array, grid: tuple[int, int], *, times: float = 3.0, above: float = 0.0) -> Array:
    """Share of the patches whose token is an outlier by its norm: (..., token) -> (...).

    Arguments as in `norm_outlier_map`.
    """
    return namespace(token_norm).mean(norm_outlier_map(token_norm, grid, times=times, above=above), axis=(-2, -1))
