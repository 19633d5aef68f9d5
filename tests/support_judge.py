"""What a judgement must come to, the slow way: one picture, one patch, one run of the graph at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from attlas.exporter.spec import GraphSpec
from scipy import sparse
from scipy.sparse.linalg import spsolve

type Says = Callable[[np.ndarray], np.ndarray]


def of_graph(path: Path) -> Says:
    """One picture (row, column, channel) to its logits."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def says(picture: np.ndarray) -> np.ndarray:
        given = {"image": picture[None]}
        given |= {i.name: np.full(1, -1, np.int64) for i in session.get_inputs() if i.name == "target"}
        return np.asarray(session.run(["logits"], given)[0][0])

    return says


def order(values: np.ndarray) -> list[tuple[int, int]]:
    """Patches by falling value, where no two are equal."""
    return sorted(np.ndindex(*values.shape), key=lambda at: -values[at])


def without(picture: np.ndarray, gone: list[tuple[int, int]], filled: np.ndarray, spec: GraphSpec) -> np.ndarray:
    """The picture with some patches taken from another."""
    found = picture.copy()
    height, width = spec.patch_size
    for y, x in gone:
        rows, columns = slice(y * height, (y + 1) * height), slice(x * width, (x + 1) * width)
        found[rows, columns] = filled[rows, columns]
    return found


def curve(says: Says, picture: np.ndarray, filled: np.ndarray, values: np.ndarray, removed: np.ndarray,
          target: int, spec: GraphSpec, *, insert: bool = False) -> np.ndarray:  # fmt: skip
    """(score, step) of deletion, or of insertion."""
    patches = order(values)
    rows = []
    for n in removed:
        logits = says(without(picture, patches[n:] if insert else patches[:n], filled, spec)).astype(np.float64)
        rows.append((logits[target], np.exp(logits[target]) / np.exp(logits).sum()))
    return np.array(rows).T


def area(curve: np.ndarray, removed: np.ndarray) -> float:
    """By trapezoids, one after another."""
    share = removed / removed[-1]
    return sum((share[i + 1] - share[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(len(share) - 1))


def imputed(picture: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """ROAD's linear imputation by a direct solver: (row, column, channel) float64."""
    number = -np.ones(missing.shape, int)
    number[missing] = np.arange(missing.sum())
    matrix = sparse.lil_matrix((missing.sum(), missing.sum()))
    right = np.zeros((missing.sum(), picture.shape[2]))
    for y, x in np.argwhere(missing):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < missing.shape[0] and 0 <= x + dx < missing.shape[1]
                if (dy or dx) and inside:
                    weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
                    matrix[number[y, x], number[y, x]] += weight
                    if missing[y + dy, x + dx]:
                        matrix[number[y, x], number[y + dy, x + dx]] -= weight
                    else:
                        right[number[y, x]] += weight * picture[y + dy, x + dx]
    found = picture.astype(np.float64)
    found[missing] = spsolve(matrix.tocsc(), right)
    return found
