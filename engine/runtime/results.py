"""What a graph made of a few pictures: its arrays by name, and what they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...exporter.spec import GraphSpec
from ...words import counted

__all__ = ["Result", "likeliest", "softmax", "stack_layers"]


class Result(dict[str, npt.NDArray[Any]]):
    """The outputs of a graph by name; a notebook shows it as pictures with their attention and likeliest classes.

    Attributes:
        spec: of the graph.
        pixels: (image, row, column, channel) uint8, the crops that the model saw.
        names: of the pictures, in words.
        draws: how a notebook shows it, as HTML; given by the package's root, as the engine draws nothing itself.
    """

    draws: ClassVar[Callable[[Result], str | None] | None] = None

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        spec: GraphSpec,
        pixels: npt.NDArray[np.uint8],
        names: Sequence[str],
    ) -> None:
        super().__init__(arrays)
        self.spec, self.pixels, self.names = spec, pixels, tuple(names)

    def __repr__(self) -> str:
        count = len(self.pixels)
        lines = [f"{self.spec.name}: {counted(count, 'picture')}"]
        for name, values in self.items():
            dims = ", ".join(f"{dim} {n}" for dim, n in zip(self.dims(name), values.shape, strict=False))
            lines.append(f"  {name:<20} {values.dtype!s:<8} ({dims or values.shape})")
        if "logits" in self and count:
            said = [
                f"{name}: {label} {share:.2f}"
                for name, ((label, share), *_) in zip(self.names, self.top(1), strict=True)
            ]
            lines.append(f"  {'predicted':<20} {', '.join(said[:4])}{', ...' if count > 4 else ''}")
        return "\n".join(lines)

    def _repr_html_(self) -> str | None:
        drawing = type(self).draws
        return None if drawing is None else drawing(self)

    def dims(self, name: str) -> tuple[str, ...]:
        """The names of an output's axes, stacked ones with their layer axis."""
        output = self.spec.output(name)
        if output is not None:
            return output.dims
        stacked = next((o for o in self.spec.outputs if o.name.partition(".")[0] == name), None)
        return () if stacked is None else (stacked.dims[0], "layer", *stacked.dims[1:])

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each picture with their probabilities; empty for a graph without classes."""
        return [likeliest(row, self.spec, count) for row in self.get("logits", np.zeros((len(self.pixels), 0)))]


def likeliest(logits: npt.NDArray[Any], spec: GraphSpec, count: int = 5) -> list[tuple[str, float]]:
    """The `count` likeliest classes of one image in words, the first of their names each, with their probabilities.

    Args:
        logits: (class).
        spec: of the graph, which knows the names of the classes.
        count: how many.
    """
    shares = softmax(logits)
    best = np.argsort(-shares, kind="stable")[:count]
    named = [spec.classes[i].name.split(",")[0].strip() if i < len(spec.classes) else f"class {i}" for i in best]
    return [(name, float(shares[i])) for name, i in zip(named, best, strict=True)]


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(class) -> probabilities, in float64."""
    if not logits.size:
        return np.zeros(0)
    powers = np.exp(logits.astype(np.float64) - logits.max())
    found: npt.NDArray[np.float64] = powers / powers.sum()
    return found


def stack_layers(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Stack `attention.0`, `attention.1` ... on a layer axis after the image axis; other arrays are not changed."""
    layers: dict[str, list[tuple[int, str]]] = {}
    for name in arrays:
        kind, dot, number = name.partition(".")
        if dot:
            layers.setdefault(kind, []).append((int(number), name))
    found = {kind: np.stack([arrays[n] for _, n in sorted(each)], axis=1) for kind, each in layers.items()}
    return {n: a for n, a in arrays.items() if "." not in n} | found
