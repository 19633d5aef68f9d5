"""The contents of a run: which arrays it makes, and what it takes from the graph for them. Derived once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..exporter.spec import GraphSpec
from .keep import Keep
from .runtime.graph import appended_outputs
from .runtime.outputs import Wanted
from .store.schema import DESCRIBING, FROM_GRAPH, LAYERED, Template, per_layer, stacked

__all__ = ["Choices", "Contents", "Reducer", "Statistics"]

type Statistics = Literal["auto", "graph", "host"]  # where they are computed


class Reducer(Protocol):
    """Statistics of a batch, handed to the engine by whoever knows them.

    Attributes:
        templates: the arrays it gives, one row per image.
    """

    templates: tuple[Template, ...]

    def __call__(
        self, attention: Sequence[npt.NDArray[Any]], pool: npt.NDArray[np.float32] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Reduce a batch.

        Args:
            attention: one (image, head, query, key) array per exported layer, float16 or float32.
            pool: the pool's own map (image, head, pool_query, key), float32, where the graph has one.

        Returns:
            The arrays of `templates` by name, and `_finite` (image, layer) bool: whether all attention was finite.
        """

    def graph(self, dtype: Literal["float16", "float32"]) -> bytes | None:
        """The same statistics as an ONNX model to append to the graph, so that attention need not leave a card.

        Its inputs are named like the graph's outputs, attention in `dtype`; its outputs are the arrays of `templates`,
        `_finite`, and `prefix_attention` (image, layer, head, prefix, key) where there are prefix tokens. None where it
        cannot be made, which is the default.
        """
        return None


@dataclass(frozen=True, slots=True)
class Choices:
    """What a run is asked to make: small, so that it is all that a worker is told, who derives `Contents` from it.

    Attributes:
        keep: the large arrays.
        reducer: makes the statistics of a graph, where there are any; `statistics`: where they are computed.
    """

    keep: Keep
    reducer: Callable[[GraphSpec], Reducer] | None = None
    statistics: Statistics = "auto"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a run of a graph makes.

    Attributes:
        spec: of the graph; `keep`, `statistics`: as chosen.
        reducer: who knows the statistics, where there are any.
        templates: every per-image array, the large ones first.
        outputs: what of the graph fills an array, by its name: one output, or one of each kept (or given) layer.
    """

    spec: GraphSpec
    keep: Keep
    statistics: Statistics
    reducer: Reducer | None
    templates: tuple[Template, ...]
    outputs: dict[str, tuple[Wanted, ...]]

    @classmethod
    def derive(cls, spec: GraphSpec, choices: Choices) -> Contents:
        """The contents that these choices mean for a graph; the same wherever they are derived."""
        keep = choices.keep
        reducer = choices.reducer(spec) if choices.reducer is not None else None
        templates: list[Template] = []
        outputs: dict[str, tuple[Wanted, ...]] = {}
        for entry in (entry for entry in FROM_GRAPH if keep.holds(entry, spec)):
            templates.append(entry.template(spec, keep.reduced))
            outputs[entry.name] = entry.wanted(keep.reduced, keep.layers)
        for name, given in per_layer(spec).items():
            templates.append(stacked(name, given))
            outputs[name] = tuple(Wanted(output.name) for output in given)
        templates += reducer.templates if reducer is not None else ()
        templates += [entry.template(spec, keep.reduced) for entry in DESCRIBING]
        found = {name: wanted for name, wanted in outputs.items() if wanted}
        return cls(spec, keep, choices.statistics, reducer, tuple(templates), found)

    @property
    def attention(self) -> tuple[Wanted, ...]:
        """Every layer's attention in the form in which statistics see it."""
        return tuple(Wanted(f"attention.{layer}", self.keep.reduced) for layer in self.spec.layers)

    def wanted(self, *, appended: bool = False) -> list[Wanted]:
        """The outputs of the prepared graph, each once.

        With the statistics `appended` to the graph, attention is an output only where it is stored.
        """
        small = [w for name, outputs in self.outputs.items() if name not in LAYERED for w in outputs]
        large = [w for name, outputs in self.outputs.items() if name in LAYERED for w in outputs]
        return list(dict.fromkeys([*small, *(() if appended else self.attention), *large]))

    def appended(self, *, accelerator: bool) -> bytes | None:
        """The statistics as a model to append to the graph, or None where they are computed on the host.

        Raises:
            UsageError: they are to be in the graph, and the reducer has no model.
        """
        if self.reducer is None or self.statistics == "host" or (self.statistics == "auto" and not accelerator):
            return None
        model = self.reducer.graph(self.keep.reduced)
        if model is not None:
            promised = {t.name for t in self.reducer.templates} | {"_finite"}
            promised |= {"prefix_attention"} if self.spec.prefix else set()
            missing = promised - appended_outputs(model).keys()
            assert not missing, f"the appended statistics lack {', '.join(sorted(missing))}"
        elif self.statistics == "graph":
            raise UsageError("statistics in the graph need ndonnx: `pip install 'attlas[gpu]'` brings it")
        return model

    @property
    def image_bytes(self) -> int:
        """Raw bytes of one image in all arrays."""
        return sum(self._bytes(t) for t in self.templates)

    def _bytes(self, template: Template) -> int:
        size = int(np.prod(template.shape)) * (32 if template.dtype == "str" else np.dtype(template.dtype).itemsize)
        # Of the layers that are not kept, nothing is written.
        return size * len(self.keep.layers) // len(self.spec.layers) if template.name in LAYERED else size
