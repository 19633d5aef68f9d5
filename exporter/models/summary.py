"""Summary of one model for the list of models: its tokens, heads and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

__all__ = ["SHIPPED", "Summary"]

# The table of models that comes with attlas, for one version of timm; written by benchmarks/models.py.
SHIPPED = Path(__file__).parents[1] / "models.json"


@dataclass(frozen=True, slots=True)
class Summary:
    """One model that can be exported; the fields are those of `GraphSpec`.

    `parameters` is the number of weights; `attention_bytes` is the size of all maps of one image in float16.
    """

    name: str
    image_size: tuple[int, int]
    prefix: tuple[str, ...]
    grid: tuple[int, int]
    pooling: str
    depth: int
    heads: int
    tokens: int
    parameters: int
    attention_bytes: int

    @classmethod
    def of(
        cls,
        name: str,
        image_size: Iterable[int],
        prefix: Iterable[str],
        grid: Iterable[int],
        pooling: str,
        depth: int,
        heads: int,
        parameters: int,
    ) -> Self:
        """Make a summary; tokens and the bytes of the maps are computed."""
        (height, width), (rows, columns), kinds = image_size, grid, tuple(prefix)
        tokens = len(kinds) + math.prod((rows, columns))
        maps = 2 * depth * heads * tokens**2
        return cls(name, (height, width), kinds, (rows, columns), pooling, depth, heads, tokens, parameters, maps)

    def row(self) -> list[Any]:
        """The arguments of `of` after the name, as JSON values."""
        size, prefix, grid = list(self.image_size), list(self.prefix), list(self.grid)
        return [size, prefix, grid, self.pooling, self.depth, self.heads, self.parameters]
