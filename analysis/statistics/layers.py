"""A store's statistics in a few lines, layer by layer, as a terminal shows them."""

from __future__ import annotations

import math
import os

import numpy as np

from ...engine.store.store import Store
from ..catalog import CATALOG

__all__ = ["by_layer"]

# What is shown, with its heading and unit: the statistics that say most.
SHOWN = (
    ("distance_renormalized", "distance", "px"),
    ("entropy", "entropy", "nats"),
    ("prefix_mass", "on prefix", "%"),
    ("sink_share", "sinks", "%"),
    ("head_similarity", "heads differ", "nats"),
)


def by_layer(path: str | os.PathLike[str]) -> list[str]:
    """A table of a store's means over images and heads: a line for each layer, and one for uniform attention.

    Masses are summed over prefix tokens. Columns that the store lacks are left out; of a store without any of them
    there is no table.
    """
    store = Store(path)
    spec = store.spec
    columns: list[list[str]] = [["layer", *map(str, spec.layers), "uniform"]]
    for name, heading, unit in SHOWN:
        if f"{name}_mean" not in store:
            continue
        values = store.read(f"{name}_mean").astype(np.float64)
        tokens = values.shape[-1] if CATALOG[name].dims[-1] == "prefix" else 1
        if not values.size:
            continue
        if name == "head_similarity":  # of different heads: a head and itself are alike
            values = values[:, ~np.eye(spec.heads, dtype=bool)]
        scale = 100 if unit == "%" else 1
        means = [scale * tokens * float(np.mean(layer)) for layer in values]
        even = CATALOG[name].uniform(spec)
        numbers = [*means, *([scale * tokens * even] if even is not None else [])]
        # As many decimals for all as the largest has of three digits, and one at least.
        largest = max((abs(number) for number in numbers if np.isfinite(number)), default=1.0)
        decimals = max(1, 2 - math.floor(math.log10(largest or 1.0)))
        text = [f"{number:.{decimals}f}" if np.isfinite(number) else "-" for number in numbers]
        columns.append([f"{heading} [{unit}]", *text, *[""] * (len(spec.layers) + 1 - len(text))])
    if len(columns) == 1:
        return []
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
