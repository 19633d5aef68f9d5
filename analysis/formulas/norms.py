"""Norm-aware attention: how long the vectors are that attention hands over, beside how they are weighed.

A weight says little where the weighed vector is short: class tokens and sinks get much attention and hand over little.
Kobayashi, Kuribayashi, Yokoi & Inui 2020 (arXiv 2004.10102) look at ||alpha f(x)||, the weight times the length of the
key's value vector behind that head's slice of the output projection. A run keeps these lengths (`value_norm`) where
its graph was exported with `--norms`.
"""

from __future__ import annotations

from ...errors import UsageError
from .arrays import Array, floating, namespace
from .distances import distance_renormalized
from .entropies import row_entropy

__all__ = ["norm_weighted", "norm_weighted_distance", "norm_weighted_entropy", "summed_norm"]


def norm_weighted(attention: Array, value_norm: Array) -> Array:
    """||alpha_ij f(x_j)|| = |alpha_ij| ||f(x_j)||: what each key hands over to each query, per head.

    Kobayashi et al. 2020 (arXiv 2004.10102), section 3. Rows do not sum to 1; `readout_map` and
    `received_attention` take the result as they take attention.

    Args:
        attention: (..., head, query, key).
        value_norm: (..., head, key), the length of the key's value vector times the head's output projection.

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

    Arguments as in `norm_weighted`. Lengths are never negative, so attention mixed after the softmax has it too.
    """
    xp, w = namespace(attention), norm_weighted(attention, value_norm)
    total = xp.sum(w, axis=-1, keepdims=True)
    return xp.mean(row_entropy(w / xp.where(total == 0, xp.ones_like(total), total)), axis=-1)


def norm_weighted_distance(
    attention: Array, value_norm: Array, grid: tuple[int, int], patch_size: tuple[float, float]
) -> Array:
    """`distance_renormalized` of the norm-weighted rows: (..., head), pixels. Arguments as there and above."""
    return distance_renormalized(norm_weighted(attention, value_norm), grid, patch_size)


def summed_norm(attention: Array, vectors: Array) -> Array:
    """||sum_h alpha_ij^h f^h(x_j)||: what each key hands over to each query through all heads together.

    Needs the vectors themselves, which no store holds: heads that point apart cancel, so that this is at most the sum
    over heads of `norm_weighted`. Kobayashi et al. 2020 (arXiv 2004.10102), section 3.

    Args:
        attention: (..., head, query, key).
        vectors: (..., head, key, channel), the value vectors behind each head's slice of the output projection.

    Returns:
        (..., query, key), float32 or better.
    """
    xp, a, f = namespace(attention), floating(attention), floating(vectors)
    heads = a.shape[-3]
    total = xp.zeros_like(a[..., 0, :, :])
    for h in range(heads):
        for g in range(heads):  # |sum|^2 by inner products per key, so that no (query, key, channel) is ever held
            inner = xp.sum(f[..., h, :, :] * f[..., g, :, :], axis=-1)
            total = total + a[..., h, :, :] * a[..., g, :, :] * inner[..., None, :]
    return xp.sqrt(xp.where(total > 0, total, xp.zeros_like(total)))
