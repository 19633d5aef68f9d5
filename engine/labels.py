"""From a label's text to the head's class: by name, never by the order of folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exporter.spec import ClassName

__all__ = ["accuracy", "map_labels"]


def map_labels(labels: Sequence[str] | npt.NDArray[Any], classes: Sequence[ClassName]) -> npt.NDArray[np.int32]:
    """The class index of each label, (image) int32; -1 where its text names no class, or more than one.

    A label is a class's id (`n01514859`), its whole name (`tench, Tinca tinca`) or one of the names in it (`hen`);
    case, underscores and hyphens do not matter.
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
    # An id is unique, whatever other class's name looks like it.
    ids = {_plain(one.id): index for index, one in enumerate(classes)}
    table = {text: index for text, index in table.items() if text not in ambiguous} | ids
    known: dict[str, int] = {}  # a million labels are a thousand different ones
    for label in labels:
        if label not in known:
            known[label] = table.get(_plain(label), -1)
    return np.fromiter((known[label] for label in labels), np.int32, len(labels))


def accuracy(
    logits: npt.NDArray[np.float32], target: npt.NDArray[np.int32], ks: tuple[int, ...] = (1, 5)
) -> dict[int, int]:
    """How many images have their class among the k largest logits, for each k.

    Args:
        logits: (image, class) float32.
        target: (image) int32, each a class.
        ks: which k.
    """
    right = np.take_along_axis(logits, target[:, None].astype(np.int64), axis=1)
    rank = (logits > right).sum(axis=1)
    return {k: int((rank < k).sum()) for k in ks}


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
