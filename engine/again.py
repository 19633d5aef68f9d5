"""Pictures of a store read a second time: its own graph, and its images in a source, checked against what it holds."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ..errors import AttlasError
from ..exporter.spec import GraphSpec
from ..words import counted
from .runtime.decode import DecodeError, decode
from .runtime.graph import read_spec
from .sources import Items, Source, source_of
from .sources.items import UNKNOWN, ChangedError
from .store.store import Store

__all__ = ["check_graph", "differing", "image_items", "read_pictures"]

# What must be equal for two graphs to be of one model on one input; its outputs may differ.
SAME = ("model", "image_size", "recipe", "patch_size", "grid", "prefix", "depth", "heads", "classes")


def check_graph(store: Store, graph: str | os.PathLike[str]) -> GraphSpec:
    """The spec of a graph that is of the store's model: its own, or one with other outputs and the same weights.

    Raises:
        AttlasError: it is of another model, or of other weights, or is no graph.
    """
    spec = read_spec(graph)
    differ = differing(spec, store.spec)
    if differ:
        raise AttlasError(
            f"{graph}: is not of the store's model ({', '.join(differ)} differ); name the graph that made {store.path}"
        )
    return spec


def differing(one: GraphSpec, other: GraphSpec) -> list[str]:
    """What tells two graphs apart as of other models, or of other weights; empty if nothing does."""
    differ = [name for name in SAME if getattr(one, name) != getattr(other, name)]
    return differ if one.weights.sha256 == other.weights.sha256 else [*differ, "weights"]


def image_items(store: Store, images: str | os.PathLike[str] | Source) -> tuple[Source, Items]:
    """The store's images in a source, in the store's order.

    Raises:
        AttlasError: the source lacks one of them, or one has another size than it had in the run.
    """
    source = source_of(images)
    items = Items.of(source.items)
    places = {str(key): place for place, key in enumerate(items.keys)}
    keys = [str(key) for key in store.read("path")]
    missing = [key for key in keys if key not in places]
    if missing:
        raise AttlasError(
            f"{source.name}: lacks {len(missing):,} of the store's {len(keys):,} images (the first: {missing[0]}); "
            f"name the images that {store.path} was made from"
        )
    found = items.take(np.array([places[key] for key in keys], np.int64))
    size = store.read("run/size")
    other = np.flatnonzero((size != found.sizes) & (size != UNKNOWN) & (found.sizes != UNKNOWN))
    if len(other):
        first = int(other[0])
        raise AttlasError(
            f"{source.name}: {counted(len(other), 'image is', 'images are')} not the store's (the first: {keys[first]},"
            f" {size[first]:,} bytes then, {found.sizes[first]:,} now); name the images that {store.path} was made from"
        )
    return source, found


def read_pictures(spec: GraphSpec, source: Source, items: Items, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The crops of some images, (image, row, column, channel) uint8; black where `valid` is false.

    Raises:
        AttlasError: one cannot be read any more.
    """
    pixels = np.zeros((len(items), *spec.image_size, 3), np.uint8)
    for place in np.flatnonzero(valid):
        item = items[int(place)]
        try:
            pixels[place] = decode(source.read(item), spec.recipe).pixels
        except (DecodeError, ChangedError) as error:
            raise AttlasError(f"{item.key}: could be read by the run, and cannot now ({error})") from None
        except OSError as error:
            raise AttlasError(f"{item.key}: cannot be read ({error.strerror or error})") from None
    return pixels
