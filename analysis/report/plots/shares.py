"""Shares that add up to 1, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..numbers import Floats
from .style import NARROW, layer_ticks, style

__all__ = ["Part", "shares"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the whole: its name, its colour, which is its own in every figure, and its share (layer)."""

    label: str
    colour: str
    values: Floats


def shares(layers: Sequence[int], parts: Sequence[Part], axis: str) -> Any:
    """Stacked bars."""
    with style():
        figure = Figure(figsize=(NARROW, 2.9), layout="constrained")
        ax = figure.subplots()
        base = np.zeros(len(layers))
        for part in parts:
            ax.bar(layers, part.values, 0.82, bottom=base, color=part.colour, label=part.label)
            base = base + np.nan_to_num(part.values)
        ax.set_ylim(0, 1)
        ax.set_xticks(layer_ticks(layers))
        ax.set_xlabel("layer")
        ax.set_ylabel(axis)
        figure.legend(
            loc="outside upper left", frameon=False, ncols=2, handlelength=1, columnspacing=1.2, borderpad=0.1
        )
    return figure
