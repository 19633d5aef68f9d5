"""Entropy of the rows over all keys and over patches, and the effective number of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ...errors import UsageError
from .arrays import Array, constant, floating, mean_where, namespace, refuse_mixed, x_ln_x

__all__ = ["effective_tokens", "entropy", "entropy_patch", "row_entropy"]


def row_entropy(attention: Array) -> Array:
    """-sum_j A_ij ln A_ij of every row, 0 ln 0 = 0: (..., query, key) -> (..., query), nats."""
    a = floating(attention)
    return -namespace(a).sum(x_ln_x(a), axis=-1)


def entropy(
    attention: Array,
    *,
    kind: str = "probability",
    rows: Sequence[int] | None = None,
    unit: Literal["nats", "bits"] = "nats",
    normalized: bool = False,
) -> Array:
    """Entropy of the rows over all keys: mean_i H_i, H_i = -sum_j A_ij ln A_ij.

    Take it of single heads: the entropy of head-averaged attention is another number, larger than the heads' mean.

    Args:
        attention: (..., query, key).
        kind: the graph's attention kind. Rows of `mixed` attention are not distributions.
        rows: the queries to average over, all by default (`readout_rows` gives the readout's).
        unit: nats or bits.
        normalized: divide by the logarithm of the number of keys, so that uniform attention gives 1.

    Returns:
        (...), float32 or better.

    Raises:
        UsageError: `kind` is mixed, or a row is not there.
    """
    refuse_mixed(kind, "entropy")
    return _averaged(row_entropy(attention), rows, unit, math.log(attention.shape[-1]) if normalized else None)


def entropy_patch(
    attention: Array,
    prefix: int,
    *,
    kind: str = "probability",
    rows: Sequence[int] | None = None,
    unit: Literal["nats", "bits"] = "nats",
    normalized: bool = False,
) -> Array:
    """Entropy of the rows over patch keys, each row divided by its patch mass, averaged over queries.

    Rows without patch mass are left out (`rows_without_patch_mass` counts them); NaN if none is left. With prefix mass
    m, each row satisfies H = H2(m) + m H_prefix + (1 - m) H_patch. Arguments as in `entropy`.
    """
    refuse_mixed(kind, "entropy_patch")
    xp, a = namespace(attention), floating(attention)[..., prefix:]
    mass = xp.sum(a, axis=-1)
    there = mass != 0
    m = xp.where(there, mass, xp.ones_like(mass))
    h = -xp.sum(x_ln_x(a / m[..., None]), axis=-1)
    return _averaged(h, rows, unit, math.log(a.shape[-1]) if normalized else None, there)


def effective_tokens(attention: Array, *, kind: str = "probability", rows: Sequence[int] | None = None) -> Array:
    """Effective number of keys, mean_i exp(H_i): not exp of the mean entropy.

    (..., query, key) -> (...), keys. Arguments as in `entropy`.
    """
    refuse_mixed(kind, "effective_tokens")
    return _averaged(namespace(attention).exp(row_entropy(attention)), rows, "nats", None)


def _averaged(
    h: Array, rows: Sequence[int] | None, unit: str, divisor: float | None, there: Array | None = None
) -> Array:
    if unit not in ("nats", "bits"):
        raise UsageError(f"unit {unit!r} is none of nats, bits")
    if rows is not None and not all(0 <= row < h.shape[-1] for row in rows):
        raise UsageError(f"rows {'+'.join(map(str, rows))} do not all lie in 0..{h.shape[-1] - 1}")
    scale = (1.0 if unit == "nats" else 1 / math.log(2)) if divisor is None else 1 / divisor
    chosen = constant([1.0 if rows is None or i in rows else 0.0 for i in range(h.shape[-1])], h) > 0
    return mean_where(h, chosen if there is None else chosen & there) * scale
