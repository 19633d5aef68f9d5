"""Shares that add up to 1, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..numbers import Floats
from .style import layer_ticks

__all__ = ["Part", "Shares"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the whole: its name, its colour, which is its own in every figure, and its share (layer)."""

    label: str
    colour: str
    values: Floats


@dataclass(frozen=True, slots=True)
class Shares:
    """Stacked bars, one for each layer; `unit` stands at the axis."""

    layers: Sequence[int]
    parts: Sequence[Part]
    unit: str
    sheet: ClassVar[bool] = False
    named_once: ClassVar[bool] = False

    def height(self, width: float) -> float:
        """Inches."""
        return 2.9

    def draw(self, ax: Any) -> None:
        """On matplotlib's Axes: x is the layer, y the share."""
        base = np.zeros(len(self.layers))
        for part in self.parts:
            ax.bar(self.layers, part.values, 0.82, bottom=base, color=part.colour, label=part.label)
            base = base + np.nan_to_num(part.values)
        ax.set_ylim(0, 1)
        ax.set_xticks(layer_ticks(self.layers))
        ax.set_xlabel("layer")
        ax.set_ylabel(self.unit)
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "ncols": 2}
        ax.legend(**place, frameon=False, handlelength=1, columnspacing=1.2, borderpad=0.1)
