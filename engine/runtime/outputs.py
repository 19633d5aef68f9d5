"""One output of the graph in the form that a run wants: `graph` makes it, arrays of the schema are filled from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Form", "Wanted"]

type Form = Literal["float32", "float16", "uint8"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of the prepared graph: which of the graph's own, in what form.

    `uint8` is the companded code round(255 * sqrt(a)), for attention alone. `times` is another output to multiply by
    first, of which product `positive` keeps what is above 0; then `head_mean` averages axis 1.
    """

    source: str
    form: Form = "float32"
    head_mean: bool = False
    times: str = ""
    positive: bool = False

    @property
    def name(self) -> str:
        """The output's name in the prepared graph; unchanged where nothing is appended."""
        if self.form == "float32" and not self.head_mean and not self.times:
            return self.source
        product = f":{self.times}{':positive' if self.positive else ''}" if self.times else ""
        return f"{self.source}{product}{':mean' if self.head_mean else ''}:{self.form}"
