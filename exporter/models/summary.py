"""A model in one line: its tokens, heads and sizes, as the list of models shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Summary"]


@dataclass(frozen=True, slots=True)
class Summary:
    """One model that can be exported; the fields are `GraphSpec`'s.

    `parameters` counts weights, `attention_bytes` is what all maps of one image take as float16.
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
        """With what follows from the rest: tokens, and the bytes of their maps."""
        (height, width), (rows, columns), kinds = image_size, grid, tuple(prefix)
        tokens = len(kinds) + math.prod((rows, columns))
        maps = 2 * depth * heads * tokens**2
        return cls(name, (height, width), kinds, (rows, columns), pooling, depth, heads, tokens, parameters, maps)

    def row(self) -> list[Any]:
        """What `of` takes after the name, as JSON."""
        size, prefix, grid = list(self.image_size), list(self.prefix), list(self.grid)
        return [size, prefix, grid, self.pooling, self.depth, self.heads, self.parameters]
