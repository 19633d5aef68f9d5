"""A graph output in the form that a run needs: `graph` adds it, and the schema's arrays are filled from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Form", "Wanted"]

type Form = Literal["float32", "float16", "uint8"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of the prepared graph: the graph's own output and its form.

    The form `uint8` is the companded code round(255 * sqrt(a)), only for attention. `times`: another output to multiply
    with first. `positive`: then set values below 0 to 0. `head_mean`: then average axis 1.
    """

    source: str
    form: Form = "float32"
    head_mean: bool = False
    times: str = ""
    positive: bool = False

    @property
    def name(self) -> str:
        """The output's name in the prepared graph; unchanged if no nodes are appended."""
        if self.form == "float32" and not self.head_mean and not self.times:
            return self.source
        product = f":{self.times}{':positive' if self.positive else ''}" if self.times else ""
        return f"{self.source}{product}{':mean' if self.head_mean else ''}:{self.form}"
