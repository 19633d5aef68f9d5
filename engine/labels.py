"""Map the text of a label to a class of the head: by name, never by the order of folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exporter.spec import ClassName

__all__ = ["accuracy", "map_labels"]


def map_labels(labels: Sequence[str] | npt.NDArray[Any], classes: Sequence[ClassName]) -> npt.NDArray[np.int32]:
    """The class index of each label, (image) int32; -1 if its text matches no class, or more than one.

    A label is a class's id (`n01514859`), its full name (`tench, Tinca tinca`) or one of the names in it (`hen`). Case,
    underscores and hyphens are ignored.
    """
    table: dict[str, int] = {}
    ambiguous = set()

    def enter(text: str, index: int) -> None:
        if table.setdefault(text, index) != index:
            ambiguous.add(text)

    for index, one in enumerate(classes):
        for text in {_plain(one.id), _plain(one.name), *map(_plain, one.name.split(","))}:
            if text:
                enter(text, index)
    # An id takes precedence, even if the name of another class equals it.
    ids = {_plain(one.id): index for index, one in enumerate(classes)}
    table = {text: index for text, index in table.items() if text not in ambiguous} | ids
    known: dict[str, int] = {}  # a cache: a million labels may have only a thousand different texts
    for label in labels:
        if label not in known:
            known[label] = table.get(_plain(label), -1)
    return np.fromiter((known[label] for label in labels), np.int32, len(labels))


def accuracy(
    logits: npt.NDArray[np.float32], target: npt.NDArray[np.int32], ks: tuple[int, ...] = (1, 5)
) -> dict[int, int]:
    """For each k, the number of images whose class is among the k largest logits.

    Args:
        logits: (image, class) float32.
        target: (image) int32, a class index.
        ks: the values of k.
    """
    right = np.take_along_axis(logits, target[:, None].astype(np.int64), axis=1)
    rank = (logits > right).sum(axis=1)
    return {k: int((rank < k).sum()) for k in ks}


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
