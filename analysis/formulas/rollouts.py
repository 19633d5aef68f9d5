"""Rollouts: attention followed through the layers, with and without gradients, as their authors define them.

Each takes one array per layer, from input to output. Only the readout row of the matrix product is needed, so one row
is multiplied through the layers from last to first: O(layers x tokens^2) in place of O(layers x tokens^3), with the
same result.

The readout is the index of a row, several indices (their mean), or an array (..., query) of weights, such as the map of
an attention pool. `readout_rows` gives the indices for a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from ...errors import UsageError
from .arrays import Array, constant, floating, namespace, prefix_of

__all__ = [
    "Fusion",
    "chefer",
    "discard_smallest",
    "fuse",
    "gradient_mean",
    "gradient_positive",
    "gradient_rollout",
    "gradient_rollout_vit_explain",
    "head_importance",
    "readout_rows",
    "rollout",
    "rollout_discard",
    "rollout_vit_explain",
]

Fusion = Literal["mean", "max", "min"]
Readout = int | Sequence[int] | Array


def readout_rows(prefix: Sequence[str], grid: tuple[int, int], readout: str) -> tuple[int, ...]:
    """The query rows that the head reads.

    Args:
        prefix: the kinds of the prefix tokens, in order: class, distillation, register.
        grid: (rows, columns) of patches.
        readout: class, mean (of the patch rows) or distilled (class and distillation row). A model with attention
            pooling has no such row; its readout is the pool's map.

    Raises:
        UsageError: the model has no such token, or `readout` is none of these.
    """
    match readout:
        case "mean":
            return tuple(range(len(prefix), len(prefix) + math.prod(grid)))
        case "class" | "distilled":
            kinds = ("class",) if readout == "class" else ("class", "distillation")
            missing = [kind for kind in kinds if kind not in prefix]
            if missing:
                raise UsageError(f"readout {readout}: the model has no {missing[0]} token; use mean")
            return tuple(prefix.index(kind) for kind in kinds)
    raise UsageError(f"readout {readout!r} names no row; use class, mean or distilled, or pass the pool's map")


def fuse(attention: Array, fusion: Fusion) -> Array:
    """Mean, maximum or minimum over heads: (..., head, query, key) -> (..., query, key), float32 or better."""
    xp, a = namespace(attention), floating(attention)
    if fusion not in ("mean", "max", "min"):
        raise UsageError(f"fusion {fusion!r} is none of mean, max, min")
    return getattr(xp, fusion)(a, axis=-3)


def discard_smallest(fused: Array, ratio: float, *, ties: bool = True) -> Array:
    """Set the smallest int(N^2 x ratio) entries of each matrix (..., query, key) to 0.

    With `ties` (Hebbar et al.) only entries strictly below the k-th smallest are set to 0, so equal entries stay
    together. Without (the code of vit-explain) exactly the k smallest are, equal ones in flat order, and the entry at
    flat index 0 is always kept.
    """
    if not 0 <= ratio < 1:
        raise UsageError(f"discard ratio {ratio} does not lie in [0, 1)")
    if ratio == 0:
        return fused
    xp = namespace(fused)
    flat = xp.reshape(fused, (*fused.shape[:-2], -1))
    k = int(flat.shape[-1] * ratio)
    if k == 0:
        return fused
    edge = xp.sort(flat, axis=-1)[..., k - 1 : k]
    keep = flat >= edge
    if not ties:
        one, zero = xp.ones_like(flat), xp.zeros_like(flat)
        below = xp.sum(xp.where(keep, zero, one), axis=-1, keepdims=True)
        place = xp.cumulative_sum(xp.where(flat == edge, one, zero), axis=-1)
        keep = (flat > edge) | ((flat == edge) & (place > k - below))
        keep = keep | (constant([1.0] + [0.0] * (flat.shape[-1] - 1), flat) > 0)
    return xp.reshape(xp.where(keep, flat, flat * 0), fused.shape)


def rollout(
    attention: Sequence[Array],
    grid: tuple[int, int],
    readout: Readout = 0,
    *,
    residual: float = 0.5,
    start_layer: int = 0,
    fusion: Fusion = "mean",
    discard: float = 0.0,
) -> Array:
    """Attention rollout: R = M_L ... M_1, where M = a F + (1 - a) I with rows divided by their sums.

    F is the mean over heads and a = `residual` the weight of the attention: 0.5 in the paper, 1.0 ignores the residual
    connection. Not scaled; no unit. Abnar & Zuidema 2020 (arXiv 2005.00928), section 3, "attention rollout". With
    another fusion, or with entries discarded, see `rollout_discard` for the source.

    Args:
        attention: per layer, from input to output, (..., head, query, key).
        grid: (rows, columns) of patches.
        readout: the row of R that is the result; see the module.
        residual: a, in (0, 1].
        start_layer: skip the layers before this one.
        fusion: of the heads.
        discard: the share of each matrix that is set to 0, as in `rollout_discard`.

    Returns:
        (..., y, x), float32 or better: the readout row's patch columns.
    """
    if not 0 < residual <= 1:
        raise UsageError(f"residual {residual} does not lie in (0, 1]")
    layers = [floating(a, exact=discard > 0) for a in _layers(attention, start_layer)]
    fused = (discard_smallest(fuse(a, fusion), discard) for a in layers)
    return _map(_rolled(fused, readout, residual), grid)


def rollout_discard(
    attention: Sequence[Array],
    grid: tuple[int, int],
    readout: Readout = 0,
    *,
    fusion: Fusion,
    discard: float,
    start_layer: int = 0,
) -> Array:
    """Rollout with small entries discarded: M = (D + I) / 2 with rows divided by their sums.

    D is the fused attention with all entries strictly below the k-th smallest set to 0, k = int(N^2 x `discard`).
    Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eq. 3.4, who fix neither fusion nor ratio: both must be
    given. Discarding is discontinuous, so compare results only if the stored values are equal. Arguments and result as
    in `rollout`.

    Raises:
        UsageError: the attention is uint8 codes.
    """
    layers = [floating(a, exact=True) for a in _layers(attention, start_layer)]
    return rollout(layers, grid, readout, fusion=fusion, discard=discard)


def rollout_vit_explain(
    attention: Sequence[Array],
    grid: tuple[int, int],
    readout: Readout = 0,
    *,
    fusion: Fusion = "max",
    discard: float = 0.9,
) -> Array:
    """Rollout as in the repository jacobgil/vit-explain, divided by its maximum.

    That code divides column j of (D + I) / 2 by the sum of row j. This does the same, since its published pictures were
    made so. A map without mass stays 0. Arguments as in `rollout`.

    Raises:
        UsageError: the attention is uint8 codes.
    """
    return _explained([fuse(floating(a, exact=True), fusion) for a in attention], grid, readout, discard)


def _explained(layers: Sequence[Array], grid: tuple[int, int], readout: Readout, discard: float) -> Array:
    """From fused layers (..., query, key) the rest of what vit-explain does."""
    xp = namespace(layers[0])
    row: Array | None = None
    for layer in reversed(layers):
        fused = discard_smallest(layer, discard, ties=False)
        row = _start(readout, fused) if row is None else row
        row = (_times(row, fused) + row) / (xp.sum(fused, axis=-1) + 1)
    result = _map(row, grid)
    top = xp.max(xp.max(result, axis=-1, keepdims=True), axis=-2, keepdims=True)
    return result / xp.where(top == 0, xp.ones_like(top), top)


def gradient_mean(attention: Array, gradient: Array) -> Array:
    """mean_h(A x G): (..., head, query, key) twice -> (..., query, key), float32 or better. May be negative."""
    return fuse(floating(attention) * floating(gradient), "mean")


def gradient_positive(attention: Array, gradient: Array) -> Array:
    """mean_h(max(A x G, 0)): (..., head, query, key) twice -> (..., query, key), float32 or better."""
    return fuse(_positive(floating(attention) * floating(gradient)), "mean")


def gradient_rollout(
    weighted: Sequence[Array],
    grid: tuple[int, int],
    readout: Readout = 0,
    *,
    discard: float = 0.0,
    start_layer: int = 0,
) -> Array:
    """Gradient rollout: F = max(mean_h(A x G), 0), smallest entries discarded, (F + I) / 2, rows normalised, product.

    G is the gradient of the target class's raw logit by the attention. Hebbar et al., eqs. 3.4a to 3.4e.

    Args:
        weighted: per layer `gradient_mean`, (..., query, key).
        grid: (rows, columns) of patches.
        readout: see the module.
        discard: as in `rollout_discard`; 0 keeps all.
        start_layer: skip the layers before this one.

    Returns:
        (..., y, x), float32 or better.
    """
    layers = (discard_smallest(_positive(floating(f, exact=True)), discard) for f in _layers(weighted, start_layer))
    return _map(_rolled(layers, readout, 0.5), grid)


def chefer(positive: Sequence[Array], grid: tuple[int, int], readout: Readout = 0, *, start_layer: int = 0) -> Array:
    """Relevance by generic attention: R = product of (I + F_l), F = mean_h(max(A x G, 0)), not normalised.

    Chefer, Gur & Wolf 2021b (arXiv 2103.15679), section 3, eqs. 5 and 6 for self-attention. Their earlier method, by
    layer-wise relevance propagation, is not implemented.

    Args:
        positive: per layer `gradient_positive`, (..., query, key).
        grid: (rows, columns) of patches.
        readout: see the module.
        start_layer: skip the layers before this one.

    Returns:
        (..., y, x), float32 or better.
    """
    row: Array | None = None
    for f in reversed([floating(f, exact=True) for f in _layers(positive, start_layer)]):
        row = _start(readout, f) if row is None else row
        row = row + _times(row, f)
    return _map(row, grid)


def gradient_rollout_vit_explain(
    attention: Sequence[Array],
    gradient: Sequence[Array],
    grid: tuple[int, int],
    readout: Readout = 0,
    *,
    discard: float = 0.9,
) -> Array:
    """Gradient rollout as in the repository jacobgil/vit-explain, divided by its maximum.

    That code takes F = max(mean_h(A x S), 0) with S not the gradient by the attention but by the scores before the
    softmax, S_ij = A_ij (G_ij - sum_k A_ik G_ik), which is what its hook gets where dropout is off; and it pairs the
    attention of block l with the S of block L + 1 - l, since hooks of gradients run from the last block. It then
    discards and divides as `rollout_vit_explain`. This does the same, since its published pictures were made so.

    Args:
        attention: per layer, from input to output, (..., head, query, key).
        gradient: of the target class's logit by the attention, alike.
        grid: (rows, columns) of patches.
        readout: see the module.
        discard: the share of each matrix that is set to 0.

    Returns:
        (..., y, x), float32 or better, with maximum 1; a map without mass stays 0.

    Raises:
        UsageError: the attention is uint8 codes.
    """
    fused = []
    for a, paired, g in zip(attention, reversed(attention), reversed(gradient), strict=True):
        values, slope = floating(paired, exact=True), floating(g, exact=True)
        xp = namespace(values)
        scores = values * (slope - xp.sum(values * slope, axis=-1, keepdims=True))
        fused.append(_positive(fuse(floating(a, exact=True) * scores, "mean")))
    return _explained(fused, grid, readout, discard)


def head_importance(attention: Array, gradient: Array, *, form: Literal["logit", "loss", "michel"] = "logit") -> Array:
    """Importance of a head to first order: (..., head, query, key) twice -> (..., head).

    `logit`: |sum_ij A_ij G_ij|, G the gradient of the target class's raw logit. `loss`: the same of the loss, -ln of
    the target class's probability: Michel, Levy & Neubig 2019 (arXiv 1905.10650), eq. 2, of one image. `michel`: what
    their code computes, sum_i |sum_j A_ij G_ij| of the loss: the product of each query's context vector and its
    gradient, without sign, before queries are added. Their score is the mean over the dataset; their code then divides
    by the number of tokens, and each layer by the norm over its heads.

    Args:
        attention: (..., head, query, key).
        gradient: alike; of the logit for `logit`, of the loss for the others.
        form: which.
    """
    if form not in ("logit", "loss", "michel"):
        raise UsageError(f"form {form!r} is none of logit, loss, michel")
    xp = namespace(attention)
    context = xp.sum(floating(attention) * floating(gradient), axis=-1)
    return xp.sum(xp.abs(context), axis=-1) if form == "michel" else xp.abs(xp.sum(context, axis=-1))


def _layers(attention: Sequence[Array], start_layer: int) -> list[Array]:
    if not 0 <= start_layer < len(attention):
        raise UsageError(f"start_layer {start_layer} leaves none of {len(attention)} layers")
    return [attention[index] for index in range(start_layer, len(attention))]


def _positive(x: Array) -> Array:
    return namespace(x).where(x > 0, x, x * 0)


def _rolled(fused: Iterable[Array], readout: Readout, residual: float) -> Array:
    """The readout row of the product of row-normalised (a F + (1 - a) I); (..., query, key) each -> (..., key)."""
    row: Array | None = None
    for f in reversed(list(fused)):
        row = _start(readout, f) if row is None else row
        # Dividing row i of M by its sum equals dividing entry i of the row vector before the product.
        row = row / (residual * namespace(f).sum(f, axis=-1) + (1 - residual))
        row = residual * _times(row, f) + (1 - residual) * row
    return row


def _start(readout: Readout, fused: Array) -> Array:
    """The readout as weights over queries: (..., query)."""
    xp, tokens = namespace(fused), fused.shape[-1]
    if isinstance(readout, int) or (isinstance(readout, Sequence) and len(readout)):
        rows = (readout,) if isinstance(readout, int) else tuple(readout)
        if not all(0 <= r < tokens for r in rows):
            raise UsageError(f"readout rows {rows} do not all lie in 0..{tokens - 1}")
        weights = [0.0] * tokens
        for r in rows:
            weights[r] += 1 / len(rows)
        return constant(weights, fused) + xp.zeros_like(fused[..., 0])
    weights_given: Array = readout
    if getattr(weights_given, "ndim", 0) < 1 or weights_given.shape[-1] != tokens:
        raise UsageError(f"the readout must be row indices or weights over {tokens} queries")
    return floating(weights_given)


def _times(row: Array, matrix: Array) -> Array:
    """(..., query) times (..., query, key) -> (..., key)."""
    return namespace(row).matmul(row[..., None, :], matrix)[..., 0, :]


def _map(row: Array, grid: tuple[int, int]) -> Array:
    """(..., key) -> (..., y, x): the patch columns on their grid."""
    # In a traced array the number of images is unknown (None); reshape infers it from -1.
    leading = [-1 if size is None else size for size in row.shape[:-1]]
    return namespace(row).reshape(row[..., prefix_of(row, grid) :], (*leading, *grid))
