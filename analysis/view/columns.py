"""What is known of every picture, as compact columns: numbers, or codes into a list of texts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store

__all__ = ["Column", "listed", "read", "words"]

type Column = tuple[list[str], npt.NDArray[np.uint32]] | npt.NDArray[np.float32]

# Computed from several arrays. The others are arrays of the store with a row for each image.
LABEL, PREDICTED, PROBABILITY, OF_LABEL, RIGHT, STATE = (
    "label", "predicted", "probability", "label probability", "answer", "state",
)  # fmt: skip
HIDDEN = ("label", "label_class", "valid")  # what those say in words


def listed(store: Store, dims: dict[str, tuple[str, ...]]) -> list[dict[str, str]]:
    """Name and kind of every column that a store gives: text or number."""
    found = [(STATE, "text"), ("path", "text"), (LABEL, "text")]
    if "logits" in store:
        found += [(PREDICTED, "text"), (PROBABILITY, "number")]
        if store.spec.classes:
            found += [(RIGHT, "text"), (OF_LABEL, "number")]
    known = {name for name, _ in found}
    for name, own in dims.items():
        if own == ("image",) and name not in known and name not in HIDDEN:
            number = store.array(name).dtype.kind in "iuf" and name != "target"
            found.append((name, "number" if number else "text"))
        elif own == ("image", "layer", "head") and store.array(name).dtype.kind == "f":
            found.append((name, "number"))
    return [{"name": name, "kind": kind} for name, kind in found]


def read(store: Store, name: str, at: npt.NDArray[np.int64] | None = None) -> Column:
    """A column of `listed`, of all images or of those `at`; what is not done has NaN, or the empty text."""
    done = store.done_images
    values = _MADE[name](store, done) if name in _MADE else _stored(store, name, done)
    values = values if at is None else values[at]
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    texts, codes = np.unique(values, return_inverse=True)
    return [str(text) for text in texts], codes.astype(np.uint32).ravel()


def words(store: Store, index: int) -> str:
    """A class in words: the first of its names; "" for -1."""
    classes = store.spec.classes
    if index < 0:
        return ""
    return classes[index].name.split(",")[0].strip() if index < len(classes) else f"class {index}"


def _stored(store: Store, name: str, done: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    if store.array(name).ndim > 1:
        return _means(store, name, done)
    values = store.read(name)
    if name == "target":
        return _named(store, values)
    if values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
        own = name in (*store.attrs.get("columns", ()), "path")  # known before the run
        return numbers if own else np.where(done, numbers, np.nan)
    return values.astype(object).astype(str) if values.dtype.kind in "OUT" else np.where(values, "yes", "no")


def _means(store: Store, name: str, done: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The mean over layers and heads of a statistic, unit by unit."""
    found = np.full(store.plan.images, np.nan)
    for at in _units(store, done):
        part = store.read(name, at).astype(np.float64)
        there = np.isfinite(part)
        count = there.sum(axis=(1, 2))
        total = np.where(there, part, 0).sum(axis=(1, 2))
        found[at] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _units(store: Store, done: npt.NDArray[np.bool_]) -> list[slice]:
    units = [store.plan.unit_range(k) for k in range(store.plan.units)]
    return [slice(u.start, u.stop) for u in units if done[u.start]]


def _named(store: Store, classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    known = {int(c): words(store, int(c)) for c in np.unique(classes)}
    return np.array([known[int(c)] for c in classes], dtype=str)


def _state(store: Store, done: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(done, np.where(store.read("valid"), "ok", "unreadable"), "not done")


def _label(store: Store, done: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The label's class in words, or the label itself where it names no class."""
    classes, labels = store.read("label_class"), store.read("label").astype(object).astype(str)
    if not store.spec.classes:
        return labels
    return np.where(classes >= 0, _named(store, classes), np.char.replace(labels, "_", " "))


def _answers(store: Store, done: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
    """The predicted class, its probability, and the label's probability. Four columns come from one reading."""
    return _read_answers(store, done.tobytes())


@functools.lru_cache(maxsize=8)
def _read_answers(store: Store, which: bytes) -> tuple[npt.NDArray[Any], ...]:
    done = np.frombuffer(which, np.bool_)
    target = store.read("label_class")
    best = np.full(target.size, -1, np.int64)
    share, of_label = np.full(target.size, np.nan), np.full(target.size, np.nan)
    valid = store.read("valid").astype(bool) & done
    for at in _units(store, done):
        logits = store.read("logits", at).astype(np.float32)
        rows = valid[at]
        if not rows.any():
            continue
        e = np.exp(logits[rows] - logits[rows].max(axis=-1, keepdims=True))
        e /= e.sum(axis=-1, keepdims=True)
        where = np.flatnonzero(rows) + at.start
        best[where], share[where] = e.argmax(axis=-1), e.max(axis=-1)
        labels = target[where]
        known = (labels >= 0) & (labels < e.shape[-1])
        of_label[where[known]] = e[np.flatnonzero(known), labels[known]]
    return best, share, of_label


def _predicted(store: Store, done: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return _named(store, _answers(store, done)[0])


def _right(store: Store, done: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    best, target = _answers(store, done)[0], store.read("label_class")
    return np.where((best < 0) | (target < 0), "", np.where(best == target, "right", "wrong"))


_MADE: dict[str, Callable[[Store, npt.NDArray[np.bool_]], npt.NDArray[Any]]] = {
    LABEL: _label,
    PREDICTED: _predicted,
    PROBABILITY: lambda store, done: _answers(store, done)[1],
    OF_LABEL: lambda store, done: _answers(store, done)[2],
    RIGHT: _right,
    STATE: _state,
}
