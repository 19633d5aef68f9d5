"""The model in float64: what its float32, in PyTorch and in the graph, would be without rounding."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["in_float64"]


def in_float64[**P, R](run: Callable[P, R], module: nn.Module) -> Callable[P, R]:
    """`run`, with the weights of `module` in float64 during the call; they come back bit for bit."""

    @functools.wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _doubled(module):
            return run(*args, **kwargs)

    return call


@contextlib.contextmanager
def _doubled(module: nn.Module) -> Iterator[None]:
    """In place, one weight after the other, so that there are never two copies of all."""
    values: list[Any] = [t for t in itertools.chain(module.parameters(), module.buffers()) if t.dtype == torch.float32]
    try:
        for value in values:
            value.data = value.data.double()
        yield
    finally:
        for value in values:
            value.data = value.data.float()
