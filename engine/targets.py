"""The class whose logit a run differentiates for each image, from the user's choice."""

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
    """The class index of each image, (image) int64; `PREDICTED` for the class with the largest logit.

    Args:
        target: `predicted`, `label` (the image's own label, a class's name or id), or a class index.
        spec: the graph's spec.
        labels: the labels of the images.

    Raises:
        UsageError: it has another form, there is no such class, or a label matches no class.
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
