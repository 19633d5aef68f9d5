"""Images by class, or by any column of the store: which belong together, and what is gathered of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store
from ...errors import AttlasError, UsageError
from ..catalog import PREDICTED

__all__ = ["Key", "check_column", "check_groups", "gathered", "key_order", "merged", "read_column"]

Array = npt.NDArray[Any]
Key = str | int | float

CLASSES = ("label_class", "target")  # indices of classes, of which -1 is none
LIMIT = 10_000  # groups: more is no grouping, and every one has means of its own


def check_column(store: Store, by: str, option: str = "--by") -> None:
    """Refuse what cannot group images; `option` asked for it.

    Raises:
        UsageError: the store has no such array, or it has more dimensions than `image`.
        AttlasError: predicted classes are asked of a model without a head.
    """
    if by == PREDICTED:
        if "logits" not in store:
            own = f"; the store's own column {by} is not that, and needs another name" if by in store else ""
            raise AttlasError(f"{store.path}: {by} needs logits, and {store.spec.name} has no head{own}")
        return
    columns = [name for name in store.names if store.dims(name) == ("image",) and name != PREDICTED]
    if by not in columns:
        raise UsageError(f"{option} {by}: no column of {store.path.name}; there are {', '.join([PREDICTED, *columns])}")


def check_groups(store: Store, by: str, mask: npt.NDArray[np.bool_]) -> None:
    """Refuse a column in which none of the images of `mask`, if there are any, has a value: a script expects groups.

    Raises:
        AttlasError: that is so.
    """
    if mask.any() and not read_column(store, by)[1][mask].any():
        hint = f"; --by {PREDICTED} groups by the class of the largest logit" if "logits" in store else ""
        raise AttlasError(f"{store.path}: --by {by}: no image has a value there, so there are no groups{hint}")


def read_column(store: Store, by: str, at: slice = slice(None)) -> tuple[Array, npt.NDArray[np.bool_]]:
    """A column's values of the images `at`, and which of them are there: no empty text, no class -1, no NaN."""
    values = _predicted(store, at) if by == PREDICTED else store.read(by, at)
    if values.dtype.kind == "f":
        return values, ~np.isnan(values)
    if values.dtype.kind in "iub":
        classes = by == PREDICTED or (by in CLASSES and by not in store.attrs.get("columns", ()))
        return values, (values >= 0) if classes else np.ones(len(values), np.bool_)
    text = values.astype(object)
    return text, text != ""


def gathered[T](values: Array, keys: Array, there: Array, gather: Callable[[Array], T]) -> dict[Key, T]:
    """`gather` of the (image, ...) values of each key, in the keys' order."""
    places = np.flatnonzero(there)
    found, group = np.unique(keys[places], return_inverse=True)
    if len(found) > LIMIT:
        raise UsageError(f"{len(found):,} groups: no more than {LIMIT:,} are taken; choose a column with fewer values")
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(1, len(found)))
    parts = np.split(places[order], ends) if len(found) else []
    return {
        key.item() if isinstance(key, np.generic) else str(key): gather(values[part])
        for key, part in zip(found, parts, strict=True)
    }


def key_order(keys: Any) -> list[Key]:
    """Keys in the order in which they are stored."""
    return sorted(set(keys))


def merged[T](one: Mapping[Key, T], other: Mapping[Key, T]) -> dict[Key, T]:
    """Groups of two parts, those of the same key added."""
    found: dict[Key, Any] = dict(one)
    for key, value in other.items():
        found[key] = found[key] + value if key in found else value
    return found


def _predicted(store: Store, at: slice) -> Array:
    """The class of the largest logit, a unit at a time; -1 where the image could not be read."""
    start, stop, _ = at.indices(store.plan.images)
    parts = [np.empty(0, np.int32)]
    for first in range(start, stop, store.plan.unit):
        logits = store.read("logits", slice(first, min(first + store.plan.unit, stop)))
        readable = np.isfinite(logits).all(axis=1)
        parts.append(np.where(readable, np.where(readable[:, None], logits, 0).argmax(axis=1), -1).astype(np.int32))
    return np.concatenate(parts)
