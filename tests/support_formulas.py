"""What the tests of formulas share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

PIXELS = (16, 16)


def attention(*shape: int, seed: int = 0, sharp: float = 2.0) -> np.ndarray:
    """Random rows that sum to 1, float64."""
    scores = np.random.default_rng(seed).normal(size=shape) * sharp
    e = np.exp(scores)
    return e / e.sum(-1, keepdims=True)


grids = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda g: g[0] * g[1] > 1)

seeds = st.integers(0, 2**16)
