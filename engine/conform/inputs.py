"""The pictures of a comparison, with what is expected of each: computed on the processor, or read from a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from ...exporter.spec import GraphSpec
from ...exporter.taps.pictures import pictures as structured
from ..again import check_graph, image_items
from ..plan import spread
from ..runtime.decode import DecodeError, decode
from ..runtime.pictures import crop_of, each_picture, name_of
from ..runtime.session import Session
from ..sources import SUFFIXES, Items, Source, open_source
from ..sources.files import expanded, is_url
from ..sources.items import ChangedError, shown
from ..store.schema import per_layer
from ..store.store import Store
from .measures import Interval

__all__ = ["Batch", "Computed", "Expected", "Pictures", "Stored", "filled", "pictures_of"]

WHOLE = ("pool_attention", "tokens", "features", "logits")  # a store's arrays that each are one output of the graph


@dataclass(frozen=True, slots=True)
class Batch:
    """Some pictures: their names, pixels (image, row, column, channel) uint8, target classes (image), and outputs."""

    names: list[str]
    pixels: npt.NDArray[np.uint8]
    target: npt.NDArray[np.int64]
    expected: Mapping[str, Interval]


class Expected(Protocol):
    """Pictures with what is expected of them.

    Attributes:
        words: where that comes from, in words.
        count: number of pictures.
        outputs: the names of the outputs that it knows.
        dtype: float32 or float16, in which it was computed.
        hidden: the total variation of a row that its rounding can hide.
    """

    words: str
    count: int
    outputs: frozenset[str]
    dtype: str
    hidden: float

    def batches(self, size: int) -> Iterator[Batch]:
        """The pictures in order, at most `size` at a time."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures by name; `read` gives the crops of some: (image, row, column, channel) uint8."""

    names: list[str]
    read: Callable[[range], npt.NDArray[np.uint8]]


def pictures_of(spec: GraphSpec, images: Any, limit: int) -> Pictures:
    """At most `limit` pictures: those given, evenly spread, or made ones with structure, always the same.

    Args:
        spec: of the graph.
        images: None, a path of a picture, folder, table or archive (or URL), a source, or pictures as `Session` takes.
        limit: the largest number.

    Raises:
        AttlasError: there are none, or one cannot be read.
    """
    if images is None:
        size = spec.image_size

        def made(part: range) -> npt.NDArray[np.uint8]:
            return np.concatenate([structured(1, size, seed=i) for i in part])

        return Pictures([f"made {i}" for i in range(limit)], made)
    path = isinstance(images, str | os.PathLike)
    if path and not is_url(one := expanded(images)) and Path(one).suffix.lower() in SUFFIXES and not Path(one).exists():
        raise AttlasError(f"{one}: there is no such picture")
    if path and not (Path(expanded(images)).is_file() and Path(expanded(images)).suffix.lower() in SUFFIXES):
        images, path = open_source(images), False
    if hasattr(images, "items") and hasattr(images, "read"):
        items = Items.of(images.items)
        return _from_source(spec, images, items.take(np.array(spread(len(items), limit), np.int64)))
    given = each_picture(images)
    chosen = [given[i] for i in spread(len(given), limit)]
    if not chosen:
        raise AttlasError("no picture was given; leave out IMAGES to have some made")
    names = [name_of(image, i) for i, image in enumerate(chosen)]
    return Pictures(names, lambda part: np.stack([crop_of(chosen[i], spec) for i in part]))


def _from_source(spec: GraphSpec, source: Source, items: Items) -> Pictures:
    def read(part: range) -> npt.NDArray[np.uint8]:
        found = []
        for i in part:
            item = items[i]
            try:
                found.append(decode(source.read(item), spec.recipe).pixels)
            except (DecodeError, ChangedError) as error:
                raise AttlasError(f"{shown(item.key)}: cannot be decoded ({error}); leave it out") from None
            except OSError as error:
                raise AttlasError(f"{shown(item.key)}: cannot be read ({error.strerror or error})") from None
        return np.stack(found)

    return Pictures([shown(str(key)) for key in items.keys], read)


def filled(
    session: Session, pixels: npt.NDArray[np.uint8], target: npt.NDArray[np.int64], size: int
) -> dict[str, npt.NDArray[Any]]:
    """A session's outputs of one batch of at most `size` pictures, which is also the batch of an accelerator."""
    count, batch = len(pixels), session.pixels(size)
    batch[:count] = pixels
    targets = np.resize(target, size)
    buffers = session.buffers(size)
    session.run_into(batch, buffers, count, targets if session.derives else None)
    return {name: values[:count] for name, values in buffers.items()}


class Computed:
    """Expected is what onnxruntime gives on the processor, each node as it stands in the graph."""

    hidden = 0.0

    def __init__(self, graph: Path, spec: GraphSpec, pictures: Pictures, threads: int | None) -> None:
        self._session = Session(graph, provider="cpu", threads=threads, optimize=False)
        self._pictures, self.count = pictures, len(pictures.names)
        self.words = f"onnxruntime on the processor in {spec.dtype}, without optimisations"
        self.dtype: str = spec.dtype
        self.outputs = frozenset(self._session.buffers(1))

    def batches(self, size: int) -> Iterator[Batch]:
        """See `Expected`; the target is the first class."""
        for start in range(0, self.count, size):
            part = range(start, min(start + size, self.count))
            pixels = self._pictures.read(part)
            values = filled(self._session, pixels, np.full(len(part), -1), size)
            bad = next((name for name, array in values.items() if not np.isfinite(array).all()), None)
            if bad is not None:
                raise AttlasError(f"{self._session.path}: gives no finite {bad} on the processor; export it again")
            target = values["logits"].argmax(-1) if "logits" in values else np.full(len(part), -1)
            names = [self._pictures.names[i] for i in part]
            yield Batch(names, pixels, target.astype(np.int64), {n: (v, v) for n, v in values.items()})


class Stored:
    """Expected is what a store holds of the graph's outputs, in intervals as wide as its rounding; but no gradients."""

    def __init__(self, store: Store, graph: Path, images: Any, limit: int) -> None:
        """Check the store against the graph; without images, its own sample pictures are used."""
        self._store, self._spec = store, check_graph(store, graph)
        self._kept = "attention_code" if "attention_code" in store else "attention"
        if self._kept not in store:
            raise AttlasError(
                f"{store.path}: keeps no attention; `attlas run --keep attention` makes a store that does"
            )
        form = str(store.array(self._kept).dtype)
        self.words = f"{store.path} ({form})"
        self.dtype: str = store.spec.dtype
        good = store.done_images & store.read("valid").astype(bool)
        self._sample = {int(image): at for at, image in enumerate(store.read("sample"))} if images is None else {}
        usable = np.array([i for i in np.flatnonzero(good) if images is not None or int(i) in self._sample], np.int64)
        if not good.any():
            raise AttlasError(store.why_none)
        if not len(usable):
            raise AttlasError(f"{store.path}: none of its sample pictures is done and readable; name IMAGES")
        self._indices = usable[spread(len(usable), limit)]
        self.count = len(self._indices)
        self._found: tuple[Source, Items] | None = None if images is None else image_items(store, images)
        self._paths = store.read("path")
        # By output: the array that holds it, and where on its layer axis.
        self._places: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in (name for name in WHOLE if name in store and store.array(name).dtype.kind == "f"):
            self._places[name] = name, ()
        for at in store.kept_layers:
            self._places[f"attention.{store.spec.layers[at]}"] = self._kept, (at,)
        for name, outputs in per_layer(store.spec).items():
            if name in store:
                self._places |= {output.name: (name, (at,)) for at, output in enumerate(outputs)}
        self.outputs = frozenset(self._places)
        tokens = store.spec.tokens
        # By Cauchy and Schwarz, of a row that sums to 1; a float16 entry is wrong by at most half its last bit.
        wide = {"uint8": tokens**0.5 / 510 + tokens / 520_200, "float16": 2.0**-12 + tokens * 2.0**-26}
        self.hidden = wide.get(form, 0.0)

    def batches(self, size: int) -> Iterator[Batch]:
        """See `Expected`."""
        for start in range(0, self.count, size):
            indices = [int(i) for i in self._indices[start : start + size]]
            names = [shown(str(self._paths[i])) for i in indices]
            expected: dict[str, Interval] = {}
            for name, (array, at) in self._places.items():
                parts = [self._store.read(array, (slice(i, i + 1), *at)) for i in indices]
                expected[name] = interval(np.concatenate(parts))
            yield Batch(names, self._pixels(indices), np.full(len(indices), -1), expected)

    def _pixels(self, indices: list[int]) -> npt.NDArray[np.uint8]:
        if self._found is None:
            return np.stack([self._store.read("pixels", slice(at, at + 1))[0]
                             for at in (self._sample[i] for i in indices)])  # fmt: skip
        source, items = self._found
        return _from_source(self._spec, source, items.take(np.array(indices))).read(range(len(indices)))


def interval(stored: npt.NDArray[Any]) -> Interval:
    """What values can have been before a store rounded them: float32 (exact), float16, or uint8 codes."""
    if stored.dtype == np.uint8:
        code = stored.astype(np.float64)
        return np.square(np.maximum(code - 0.5, 0) / 255), np.square((code + 0.5) / 255)
    if stored.dtype == np.float16:
        half = np.abs(np.spacing(stored)).astype(np.float64) / 2
        return stored - half, stored + half
    return stored, stored
