"""Single images out of a store: which ones a report shows, and what can be shown of them from what was kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...engine.plan import spread
from ...errors import AttlasError
from .. import formulas
from ..catalog import CATALOG
from ..originals import NoPictureError, crop
from ..statistics import gradients
from .numbers import Floats

if TYPE_CHECKING:
    from ...engine.store.store import Store

__all__ = [
    "MAPS",
    "Example",
    "Map",
    "attention",
    "choose",
    "class_name",
    "example",
    "lacking",
    "map_of",
    "mean_attention",
    "patches",
    "readout_row",
    "rollout_map",
    "times_uniform",
]


@dataclass(frozen=True, slots=True)
class Map:
    """One kind of map of an image: its column's heading, the unit at its colour bar, and whether colours follow roots.

    `method` is the definition that it needs.
    """

    heading: str
    unit: str
    root: bool
    method: str


MAPS = {
    "attention": Map("attention,\nlayer {last}", "× uniform", True, "readout"),
    "rollout": Map("rollout,\nall layers", "× mean", False, "rollout"),
    "gradient_rollout": Map("gradient rollout,\nall layers", "× mean", True, "gradient_rollout"),
    "chefer": Map("Chefer,\nall layers", "× mean", True, "chefer"),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One image of a store.

    Attributes:
        image: its index; `path`, `label`: as the store has them.
        pixels: (row, column, channel) uint8, the crop that the model saw, or None.
        predicted: the most probable class in words, "" where the model has no classes; `probability`: of it.
        truth: the label's class in words, or the label's text where it names no class.
        target: the class that gradients are of, in words, where it is not the predicted one.
    """

    image: int
    path: str
    label: str
    pixels: npt.NDArray[np.uint8] | None
    predicted: str
    probability: float
    truth: str
    target: str = ""

    @property
    def title(self) -> str:
        """What the model said of it, in one line."""
        said = f"predicted {self.predicted} ({self.probability:.2f})" if self.predicted else ""
        known = f"label {self.truth}" if self.truth else ""
        asked = f"gradients of {self.target}" if self.target else ""
        return " · ".join(part for part in (said, known, asked) if part) or self.path


def choose(store: Store, count: int) -> list[int]:
    """`count` valid images of the stored sample, evenly spread over it in the order of the store.

    The rule looks at nothing but the order, so that no picture is shown because it looks well.
    """
    usable = store.done_images & store.read("valid").astype(bool)
    sample = [i for i in store.plan.sample if usable[i]]
    return [sample[i] for i in spread(len(sample), count)] if sample and count > 0 else []


def example(store: Store, image: int, images: str | os.PathLike[str] | None = None) -> Example:
    """One image; its crop out of the store's sample, else made from its file below `images`, else None."""
    path, label = str(store.read("path", image)), str(store.read("label", image))
    target = int(store.read("label_class", image))
    predicted, probability, best = "", 0.0, -1
    if "logits" in store:
        logits = store.read("logits", image).astype(np.float64)
        shares = np.exp(logits - logits.max())
        best = int(logits.argmax())
        predicted, probability = class_name(store, best), float(shares[best] / shares.sum())
    truth = class_name(store, target) if target >= 0 else label.replace("_", " ")
    derived = int(store.read("target", image)) if "target" in store else best
    asked = class_name(store, derived) if derived != best and derived >= 0 else ""
    return Example(image, path, label, _pixels(store, image, images), predicted, probability, truth, asked)


def class_name(store: Store, index: int) -> str:
    """A class in words: the first of its names."""
    classes = store.spec.classes
    return classes[index].name.split(",")[0].strip() if index < len(classes) else f"class {index}"


def _pixels(store: Store, image: int, images: str | os.PathLike[str] | None) -> npt.NDArray[np.uint8] | None:
    try:
        return crop(store, image, images)
    except NoPictureError:
        return None


def attention(store: Store, image: int, place: int) -> Floats | None:
    """Attention of one image at one place of the layer axis: (head, query, key) float32; None where it was not kept."""
    if place not in store.kept_layers:
        return None
    if "attention" in store:
        return store.read("attention", (image, place)).astype(np.float32)
    if "attention_code" in store:
        decoded: Floats = formulas.decode_codes(store.read("attention_code", (image, place)))
        return decoded
    return None


def mean_attention(store: Store, image: int, place: int) -> Floats | None:
    """The mean over heads of the same, with a head axis of length 1, where that or all heads were kept."""
    if "attention_mean" in store and place in store.kept_layers:
        return store.read("attention_mean", (image, place)).astype(np.float32)[None]
    whole = attention(store, image, place)
    if whole is None:
        return None
    mean: Floats = whole.mean(axis=0, keepdims=True)
    return mean


def readout_row(store: Store, image: int, place: int) -> Floats | None:
    """The attention that the model's head reads, per head over all keys: (head, key) float32.

    The prefix tokens' rows are in every store. The mean of the patch rows needs attention, kept whole or as its mean
    over heads (then `head` is 1). A pool's own map belongs to the last place only.
    """
    spec = store.spec
    if spec.readout == "pool":
        if place != len(spec.layers) - 1 or "pool_attention" not in store:
            return None
        pool: Floats = store.read("pool_attention", image).astype(np.float32).mean(axis=1)
        return pool
    rows = formulas.readout_rows(spec.prefix, spec.grid, spec.readout)
    if spec.readout != "mean":
        front: Floats = store.read("prefix_attention", (image, place)).astype(np.float32)[:, list(rows)].mean(axis=1)
        return front
    found = attention(store, image, place)
    found = mean_attention(store, image, place) if found is None else found
    return None if found is None else found[:, list(rows)].mean(axis=1)


def patches(row: Floats, grid: tuple[int, int]) -> Floats:
    """(..., key) -> (..., y, x): the patch columns of a row on their grid."""
    rows, columns = grid
    return row[..., row.shape[-1] - rows * columns :].reshape(*row.shape[:-1], rows, columns)


def times_uniform(row: Floats, grid: tuple[int, int]) -> Floats:
    """(head, key) -> (head, y, x): attention divided by what uniform attention over the same keys would be.

    Keys that a pool does not see are zero in every head, and are not counted.
    """
    keys = int((row != 0).any(axis=0).sum()) or row.shape[-1]
    return patches(row, grid) * keys


def rollout_map(store: Store, image: int) -> Floats | None:
    """Rollout of one image: (y, x), as stored, else from the attention of all layers, else None."""
    spec = store.spec
    if "rollout" in store:
        found = store.read("rollout", image).astype(np.float64)
        if np.isfinite(found).all():
            return found
    if spec.layers != tuple(range(spec.depth)):
        return None
    layers = [mean_attention(store, image, place) for place in range(spec.depth)]
    kept = [layer for layer in layers if layer is not None]
    if len(kept) < spec.depth:
        return None
    rolled: Floats = formulas.rollout(kept, spec.grid, _start(store, image))
    return rolled


def _start(store: Store, image: int) -> Sequence[int] | Floats:
    """The readout as `formulas.rollout` takes it."""
    spec = store.spec
    if spec.readout != "pool":
        return formulas.readout_rows(spec.prefix, spec.grid, spec.readout)
    pool = store.read("pool_attention", image).astype(np.float32).mean(axis=(0, 1))
    return np.pad(pool, (spec.tokens - pool.size, 0))  # some pools see the patches alone


def map_of(store: Store, image: int, kind: str) -> Floats | None:
    """A map of `MAPS` of one image, in its unit: (y, x); None where the store cannot give it."""
    spec = store.spec
    if kind == "attention":
        row = readout_row(store, image, len(spec.layers) - 1)
        return None if row is None else times_uniform(row, spec.grid).mean(axis=0)
    found = rollout_map(store, image) if kind == "rollout" else _gradient_map(store, image, kind)
    mean = None if found is None else float(found.mean())
    if found is None or not mean or not np.isfinite(mean):
        return None
    return found / mean


def _gradient_map(store: Store, image: int, kind: str) -> Floats | None:
    """A map that weighs attention by its gradient: as analysed, else from what the run kept."""
    if kind in store:
        rows: Floats = store.read(kind, image).astype(np.float64)
        if np.isfinite(rows).all():
            return rows
    try:
        gradients.check(store, CATALOG[kind])
    except AttlasError:
        return None
    found, _ = gradients.computed(store, [CATALOG[kind]], slice(image, image + 1))
    made: Floats = found[kind][0].astype(np.float64)
    return made


def lacking(store: Store, kind: str) -> str:
    """Why a gradient map of `MAPS` cannot be had: one line, plain text."""
    try:
        gradients.check(store, CATALOG[kind])
    except AttlasError as error:
        return str(error).removeprefix(f"{store.path}: ")
    return "its gradients are not finite"
