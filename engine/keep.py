"""The data that a run keeps for each image: the user's choices, checked against the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UsageError
from ..exporter.spec import GraphSpec
from ..words import ranges
from .store.schema import CODEC, CODECS, GRADIENTS, KEEP, STORE_DTYPES, Entry

__all__ = ["Keep"]


@dataclass(frozen=True, slots=True)
class Keep:
    """The data that is kept for each image.

    Attributes:
        arrays: a subset of `KEEP` without "none".
        layers: the blocks whose attention is kept, by index from 0.
        dtype: dtype of the stored attention.
        codec: how the large arrays are compressed, a key of `CODECS`.
    """

    arrays: tuple[str, ...]
    layers: tuple[int, ...]
    dtype: Literal["float16", "float32", "uint8"]
    codec: str = CODEC

    @classmethod
    def choose(
        cls, spec: GraphSpec, keep: Sequence[str], layers: Sequence[int] | None, dtype: str, codec: str = CODEC
    ) -> Keep:
        """Check the choices against the graph.

        Raises:
            UsageError: an unknown name, layer, dtype or codec, or uint8 for attention whose rows are not distributions.
        """
        for name in keep:
            if name in GRADIENTS and not spec.gradients:
                raise UsageError(
                    f"--keep {name}: this graph gives no gradients; `attlas export --gradients` makes one that does"
                )
            if name not in KEEP:
                raise UsageError(f"--keep {name}: choose from {', '.join(KEEP)}")
        if "none" in keep and len(set(keep)) > 1:
            raise UsageError("--keep none: goes with nothing else")
        missing = sorted(set(layers or ()) - set(spec.layers))
        if missing:
            raise UsageError(
                f"--layers {','.join(map(str, missing))}: the graph gives layers {ranges(spec.layers)}, counted from 0"
            )
        if dtype not in STORE_DTYPES:
            raise UsageError(f"--store-dtype {dtype}: choose from {', '.join(STORE_DTYPES)}")
        if codec not in CODECS:
            raise UsageError(f"--codec {codec}: choose from {', '.join(CODECS)}")
        if dtype == "uint8" and spec.attention_kind == "mixed":
            raise UsageError(
                "--store-dtype uint8: needs attention whose rows are distributions, and this model's is mixed after "
                "the softmax; use float16"
            )
        arrays = tuple(name for name in KEEP if name in keep and name != "none")
        return cls(arrays, tuple(sorted(set(layers if layers is not None else spec.layers))), dtype, codec)  # type: ignore[arg-type]

    @property
    def gradients(self) -> bool:
        """Whether gradients are kept, so that every image needs a target class."""
        return any(name in GRADIENTS for name in self.arrays)

    @property
    def coded(self) -> bool:
        """Whether attention is stored as codes, of which all statistics are computed, those of the run too."""
        return self.dtype == "uint8" and "attention" in self.arrays

    @property
    def reduced(self) -> Literal["float16", "float32"]:
        """The dtype of attention as values: the stored one, or float16 if codes or nothing is stored."""
        return "float32" if self.dtype == "float32" else "float16"

    @property
    def widths(self) -> set[str]:
        """The dtypes of arrays with one chunk per layer."""
        return {self.reduced, "float32"} if self.gradients else {self.reduced}

    def holds(self, entry: Entry, spec: GraphSpec) -> bool:
        """Whether a run of this graph stores an array of the schema."""
        chosen = not entry.keep or any(name in self.arrays for name in entry.keep)
        # For arrays in chunks of a layer, `choose` has checked the outputs.
        given = entry.output is None or entry.chunk == "layer" or spec.output(entry.output.source) is not None
        return chosen and given and self.dtype in entry.store_dtypes and entry.when(spec)

    def identity(self) -> dict[str, Any]:
        """The values that must be equal for a run to resume."""
        chosen = {"keep": list(self.arrays), "layers": list(self.layers), "store_dtype": self.dtype}
        # Plans of earlier versions name no codec, and theirs was the default.
        return chosen if self.codec == CODEC else {**chosen, "codec": self.codec}
