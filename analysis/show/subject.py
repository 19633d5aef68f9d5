"""A picture and what a model made of it. A graph's fresh result is read like a store that holds these images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ...engine.runtime.results import Result, likeliest
from ...errors import AttlasError
from ...exporter.spec import GraphSpec
from ..report import images as stored

if TYPE_CHECKING:
    from ...engine.store.store import Store

__all__ = ["Fresh", "Subject", "of_batch", "of_graph", "of_result", "of_store", "probability"]

# What a graph is asked for whatever is shown; all else only where a map needs it.
ALWAYS = ("attention", "logits", "pool_attention")


class Fresh:
    """Arrays in memory, (image, ...) each, that are read as a store's are."""

    def __init__(self, path: Any, spec: GraphSpec, arrays: dict[str, npt.NDArray[Any]], layers: Sequence[int]) -> None:
        self.path, self.spec, self.arrays = path, spec, arrays
        self.attrs: dict[str, Any] = {"kept": {"layers": list(layers)}}
        self.kept_layers = [place for place, layer in enumerate(spec.layers) if layer in layers]
        if "attention" in arrays:
            arrays.setdefault("prefix_attention", arrays["attention"][..., : len(spec.prefix), :])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def read(self, name: str, selection: Any = ()) -> npt.NDArray[Any]:
        """Part of an array, as `Store.read`."""
        return np.asarray(self.arrays[name][selection])


@dataclass(frozen=True)
class Subject:
    """One picture.

    Attributes:
        store: where its arrays are; `image`: its index there.
        name: of its file; `fresh`: whether it comes straight from a graph.
        pixels: (row, column, 3) uint8, the crop that the model saw, or None where the store has none.
        size: (height, width) of the original in pixels, None if it is not known.
        logits: (class), None for a model without classes.
        label: what the dataset says it is, in words, or "".
        target: the class that gradients are of, in words, where it is not the predicted one.
        note: what it was chosen by, or "".
    """

    store: Store
    image: int
    name: str
    pixels: npt.NDArray[np.uint8] | None
    fresh: bool = False
    size: tuple[int, int] | None = None
    logits: npt.NDArray[Any] | None = None
    label: str = ""
    target: str = ""
    note: str = ""

    @property
    def spec(self) -> GraphSpec:
        """Of the graph that made it."""
        return self.store.spec

    @property
    def where(self) -> str:
        """The graph or store, for errors."""
        return str(self.store.path)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes in words, with their probabilities."""
        return [] if self.logits is None else likeliest(self.logits, self.spec, count)

    @property
    def title(self) -> str:
        """What the model said of it, and what it is."""
        said = [f"{name} {probability(share)}" for name, share in self.top(1)]
        label = f"label {self.label}" if self.label else ""
        return " · ".join(filter(None, [self.name, *said, label, self.note]))


def probability(share: float) -> str:
    """With so many digits that it is told from 0: a model of random weights gives each of 1,000 classes 0.001."""
    return f"{share:.2f}" if share >= 0.01 else f"{share:.4f}" if share >= 1e-4 else "<0.0001"


def of_graph(
    graph: Path, pictures: Sequence[Any], needed: Iterable[str], welcome: Iterable[str] = (), target: int = -1
) -> list[Subject]:
    """Pictures run through a graph, which computes no more than what is needed.

    Args:
        graph: its path.
        pictures: as `Session` takes them.
        needed: names of outputs beyond those that are always shown, without their layer.
        welcome: the same, where the graph has them.
        target: for gradients: a class, or -1 for the predicted one.

    Raises:
        AttlasError: the graph or a picture does not read, or the graph gives no attention, or nothing of a needed kind.
        UsageError: `target` is no class of the model.
    """
    from ...engine.runtime.graph import read_spec
    from ...engine.runtime.outputs import Wanted
    from ...engine.runtime.pictures import original_size
    from ...engine.runtime.session import Session

    spec = read_spec(graph)
    kinds = {output.name.partition(".")[0] for output in spec.outputs}
    if "attention" not in kinds:
        raise AttlasError(f"{graph}: has no attention among its outputs; `attlas export` makes a graph that has")
    for name in needed:
        if name not in kinds:
            raise AttlasError(f"{graph}: gives no {name}; {_exporting(name)}")
    asked = {*ALWAYS, *needed, *welcome}
    wanted = [Wanted(o.name) for o in spec.outputs if o.name.partition(".")[0] in asked]
    session = Session(graph, wanted=wanted)
    result = session(pictures, target)
    return [
        of_result(result, session.path, index, original_size(picture), target) for index, picture in enumerate(pictures)
    ]


def _exporting(name: str) -> str:
    flags = {"gradient": "--gradients", "value_norm": "--norms", "query": "--qkv", "key": "--qkv", "value": "--qkv"}
    if name not in flags:
        return "its model has none"
    return f"export it again with `attlas export {flags[name]}`"


def of_result(result: Result, path: Any, index: int, size: tuple[int, int] | None = None, target: int = -1) -> Subject:
    """A picture of a graph's result, whose gradients are of the class `target`, or of the predicted one."""
    store = cast("Store", Fresh(path, result.spec, dict(result), result.spec.layers))
    logits = result["logits"][index] if "logits" in result else None
    asked = "" if target < 0 or (logits is not None and target == logits.argmax()) else stored.class_name(store, target)
    return Subject(store, index, result.names[index], result.pixels[index], True, size, logits, target=asked)


def of_store(store: Store, image: int, images: Path | None = None) -> Subject:
    """An image of a store; its crop from the store's sample, else from its file below `images`."""
    one = stored.example(store, image, images)
    logits = store.read("logits", image) if "logits" in store else None
    size = (int(store.read("height", image)), int(store.read("width", image)))
    return Subject(
        store, image, one.path, one.pixels, False, size if min(size) > 0 else None, logits, one.truth, one.target
    )


def of_batch(store: Store, batch: range, names: Iterable[str], images: Path | None = None) -> list[Subject]:
    """The images of a batch that could be read, with these arrays read once for all of them."""
    rows = slice(batch.start, batch.stop)
    asked = {*names, *ALWAYS, "prefix_attention", "attention_mean", "attention_code"}
    arrays = {name: store.read(name, rows) for name in asked if name in store}
    held = cast("Store", Fresh(store.path, store.spec, arrays, [store.spec.layers[k] for k in store.kept_layers]))
    found = []
    for place in np.flatnonzero(store.read("valid", rows)):
        one = stored.example(store, batch.start + int(place), images)
        found.append(Subject(held, int(place), one.path, one.pixels))
    return found
