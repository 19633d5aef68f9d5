"""Which model a file of weights may belong to, by the shapes in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from .summary import SHIPPED, Summary

__all__ = ["resembling"]


def resembling(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of timm, without a tag, whose weights may have these shapes.

    Depth, tokens and the number of weights must be a model's; the head may have any number of classes. What no shape
    tells, such as the number of heads, may differ, so that there can be several.

    Args:
        shapes: of the weights, by timm's names.
    """
    numbers = [int(block[1]) for name in shapes if (block := re.match(r"blocks\.(\d+)\.", name))]
    embed, positions = (shapes.get(name, ()) for name in ("patch_embed.proj.weight", "pos_embed"))
    if not numbers or not embed:
        return []
    depth, count = max(numbers) + 1, sum(map(math.prod, shapes.values()))
    tokens = positions[1] if len(positions) == 3 else None
    found = []
    # Of whatever version of timm: these are suggestions.
    for name, row in json.loads(SHIPPED.read_text(encoding="utf-8"))["models"].items():
        if row is None or "." in name:
            continue
        one = Summary.of(name, *row)
        # A class has a weight for each channel, and a bias.
        same = (one.parameters - count) % (embed[0] + 1) == 0 and one.depth == depth
        if same and tokens in (None, one.tokens, math.prod(one.grid)):
            found.append((abs(one.parameters - count), name))
    return [name for _, name in sorted(found)]
