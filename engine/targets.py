"""Which class's logit a run derives: one for every image, from the choice of the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..exporter.spec import GraphSpec
from .labels import map_labels

__all__ = ["PREDICTED", "choose"]

PREDICTED = -1


def choose(target: str, spec: GraphSpec, labels: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The class of each image, (image) int64; `PREDICTED` where the graph is to take the largest logit.

    Args:
        target: `predicted`, `label` (the image's own, by the class's name or id), or a class's number.
        spec: of the graph.
        labels: of the images.

    Raises:
        UsageError: it is none of these, there is no such class, or a label names none.
    """
    logits = spec.output("logits")
    classes = 0 if logits is None else int(logits.shape[-1] or 0)
    if target == "predicted":
        return np.full(len(labels), PREDICTED, np.int64)
    if target == "label":
        found = map_labels(labels, spec.classes).astype(np.int64)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            raise UsageError(
                f"--target label: the labels of {len(unknown)} of {len(labels)} images name no class of the model (the "
                f"first: {str(labels[unknown[0]])!r}); name folders by class name or id, or use predicted or a number"
            )
        return found
    if not target.isdecimal():
        raise UsageError(f"--target {target}: choose predicted, label, or a class's number from 0 to {classes - 1}")
    if int(target) >= classes:
        raise UsageError(f"--target {target}: the model has classes 0 to {classes - 1}")
    return np.full(len(labels), int(target), np.int64)
