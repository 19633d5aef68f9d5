"""The contents of a run: the arrays that it makes, and the graph outputs that it needs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..exporter.spec import GraphSpec
from .keep import Keep
from .runtime.cuda import OnCard
from .runtime.graph import appended_outputs
from .runtime.outputs import Wanted
from .runtime.providers import accelerates, on_cards
from .store.schema import DESCRIBING, FROM_GRAPH, LAYERED, Template, per_layer, stacked

__all__ = ["Choices", "Contents", "Reducer", "Statistics"]

type Statistics = Literal["auto", "card", "graph", "host"]  # where statistics are computed


class Reducer(Protocol):
    """Computes the statistics of a batch. The analysis room implements it; the engine only calls it.

    Attributes:
        templates: the arrays that it computes, one row per image.
    """

    templates: tuple[Template, ...]

    def __call__(
        self, attention: Sequence[npt.NDArray[Any]], pool: npt.NDArray[np.float32] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Reduce a batch.

        Args:
            attention: one (image, head, query, key) array per exported layer, float16, float32, or uint8 codes.
            pool: the pool's own map (image, head, pool_query, key), float32, if the graph has one.

        Returns:
            The arrays of `templates` by name, and `_finite` (image, layer) bool: whether all attention is finite.
        """

    def graph(self, dtype: Literal["float16", "float32"], *, codes: bool = False) -> bytes | None:
        """The same statistics as an ONNX model to append to the graph, so that attention can stay on the card.

        Its inputs have the names of graph outputs, with attention in `dtype`, of which statistics are taken as uint8
        `codes` of it would give them. Its outputs are the arrays of
        `templates`, `_finite`, and with prefix tokens `prefix_attention` (image, layer, head, prefix, key). None if
        there is no such model (the default).
        """
        return None

    def on_card(self, dtype: Literal["float16", "float32"]) -> OnCard | None:
        """The same statistics of attention in `dtype` where a CUDA card has it; None if there is no such way."""
        return None


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices that decide what a run makes. They are small: they are sent to workers, which derive `Contents`.

    Attributes:
        keep: the large arrays.
        reducer: makes a `Reducer` for a graph, or None for no statistics; `statistics`: where they are computed.
    """

    keep: Keep
    reducer: Callable[[GraphSpec], Reducer] | None = None
    statistics: Statistics = "auto"


@dataclass(frozen=True, slots=True)
class Contents:
    """The arrays that a run of a graph makes.

    Attributes:
        spec: the graph's spec; `keep`, `statistics`: the choices.
        reducer: computes the statistics; None for no statistics.
        templates: every per-image array, the large ones first.
        outputs: the graph outputs that fill each array, by the array's name: one output, or one per layer.
    """

    spec: GraphSpec
    keep: Keep
    statistics: Statistics
    reducer: Reducer | None
    templates: tuple[Template, ...]
    outputs: dict[str, tuple[Wanted, ...]]

    @classmethod
    def derive(cls, spec: GraphSpec, choices: Choices) -> Contents:
        """The contents for these choices and this graph; equal on every machine."""
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
        if reducer is not None:
            said = {"computed_from": "attention_code"} if keep.coded else {}
            templates += [replace(one, attrs={**one.attrs, **said}) for one in reducer.templates]
        templates += [entry.template(spec, keep.reduced) for entry in DESCRIBING]
        found = {name: wanted for name, wanted in outputs.items() if wanted}
        return cls(spec, keep, choices.statistics, reducer, tuple(templates), found)

    @property
    def attention(self) -> tuple[Wanted, ...]:
        """Every layer's attention as values."""
        return tuple(Wanted(f"attention.{layer}", self.keep.reduced) for layer in self.spec.layers)

    @property
    def reduced(self) -> tuple[Wanted, ...]:
        """Every layer's attention in the form that statistics are computed from: as it is stored, also as codes."""
        if not self.keep.coded:
            return self.attention
        return tuple(Wanted(f"attention.{layer}", "uint8") for layer in self.spec.layers)

    def wanted(self, *, appended: bool = False) -> list[Wanted]:
        """The outputs of the prepared graph, each once.

        If the statistics are `appended` to the graph, or on a card, attention is an output only if it is stored.
        """
        small = [w for name, outputs in self.outputs.items() if name not in LAYERED for w in outputs]
        large = [w for name, outputs in self.outputs.items() if name in LAYERED for w in outputs]
        return list(dict.fromkeys([*small, *(() if appended else (*self.attention, *self.reduced)), *large]))

    def placed(self, provider: str) -> dict[str, Any]:
        """Where the statistics are computed, as a `Session` takes it: `card`, `appended` or neither, and `wanted`.

        A CUDA card has kernels of its own; another accelerator, or a card without numba-cuda, gets them as a model that
        is appended to the graph; and what has neither leaves them to the host.

        Raises:
            UsageError: the user wants them where they cannot be.
        """
        card = self.on_card(cards=on_cards(provider))
        appended = self.appended(accelerator=accelerates(provider)) if card is None else None
        wanted = self.wanted(appended=card is not None or appended is not None)
        return {"wanted": wanted, "appended": appended, "card": card}

    def on_card(self, *, cards: bool) -> OnCard | None:
        """The statistics on a card, or None if they are computed elsewhere; codes are left to the graph.

        Raises:
            UsageError: the user wants them on a card, but there is none.
        """
        if self.reducer is None or self.statistics not in ("auto", "card"):
            return None
        found = self.reducer.on_card(self.keep.reduced) if cards and not self.keep.coded else None
        if found is None and self.statistics == "card":
            raise UsageError(
                "statistics on the card: need `--provider cuda` or `tensorrt`, float attention, and numba-cuda with a "
                "card (`pip install 'attlas[gpu]'`)"
            )
        return found

    def appended(self, *, accelerator: bool) -> bytes | None:
        """The statistics as a model to append to the graph, or None if they are computed elsewhere.

        Raises:
            UsageError: the user wants them in the graph, but the reducer has no model.
        """
        elsewhere = self.statistics in ("card", "host")
        if self.reducer is None or elsewhere or (self.statistics == "auto" and not accelerator):
            return None
        # Codes are of the graph's own values, so that they are those of the store.
        coded = self.keep.coded
        model = self.reducer.graph("float32", codes=True) if coded else self.reducer.graph(self.keep.reduced)
        if model is not None:
            promised = {t.name for t in self.reducer.templates} | {"_finite"}
            promised |= {"prefix_attention"} if self.spec.prefix else set()
            missing = promised - appended_outputs(model).keys()
            assert not missing, f"the appended statistics lack {', '.join(sorted(missing))}"
        elif self.statistics == "graph":
            raise UsageError("statistics in the graph need ndonnx: `pip install ndonnx` brings it")
        return model

    @property
    def image_bytes(self) -> int:
        """Raw bytes of one image in all arrays."""
        return sum(self._bytes(t) for t in self.templates)

    def _bytes(self, template: Template) -> int:
        size = int(np.prod(template.shape)) * (32 if template.dtype == "str" else np.dtype(template.dtype).itemsize)
        # Layers that are not kept are not written.
        return size * len(self.keep.layers) // len(self.spec.layers) if template.name in LAYERED else size
