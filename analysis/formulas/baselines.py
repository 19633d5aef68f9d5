"""Values for uniform attention, A_ij = 1/N. Random weights give nearly these; so does a wrong graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import UsageError
from .distances import uniform_distance

__all__ = ["uniform_distance", "uniform_entropy", "uniform_rollout"]


def uniform_entropy(keys: int) -> float:
    """`entropy` of uniform attention: ln `keys`, nats. For `entropy_patch` give the number of patches."""
    if keys < 1:
        raise UsageError(f"{keys} keys have no entropy")
    return math.log(keys)


def uniform_rollout(
    grid: tuple[int, int], prefix: int, layers: int, readout: int | Sequence[int] = 0, *, residual: float = 0.5
) -> tuple[tuple[float, ...], ...]:
    """`rollout` of uniform attention through `layers` layers: (y, x).

    The product of L factors a U + (1 - a) I is (1 - a)^L I + (1 - (1 - a)^L) U: constant but for the readout's tokens.

    Args:
        grid: (rows, columns) of patches.
        prefix: the number of prefix tokens.
        layers: L, the number of layers.
        readout: the row or rows of the readout, as for `rollout`.
        residual: a, the weight of the attention.
    """
    rows, columns = grid
    tokens = prefix + rows * columns
    chosen = (readout,) if isinstance(readout, int) else tuple(readout)
    if not chosen or not all(0 <= r < tokens for r in chosen):
        raise UsageError(f"readout rows {chosen} do not all lie in 0..{tokens - 1}")
    if not 0 < residual <= 1:
        raise UsageError(f"residual {residual} does not lie in (0, 1]")
    own = (1 - residual) ** layers
    flat = (1 - own) / tokens
    return tuple(
        tuple(flat + own * chosen.count(prefix + y * columns + x) / len(chosen) for x in range(columns))
        for y in range(rows)
    )
