"""What happens to a score as patches are removed: orders, curves, and the figures that are read from them.

`deletion` removes the patches with the largest values first, `insertion` puts them back first into a picture of which
nothing is left (Petsiuk, Das & Saenko 2018, arXiv 1806.07421). Most relevant first and least relevant first (MoRF and
LeRF: Samek et al. 2017, arXiv 1509.06321) are the same curves: insertion read from its end is LeRF.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FIGURES",
    "RANGE",
    "SCORES",
    "SCORE_RANGE",
    "area",
    "counts",
    "figures",
    "mass_correlation",
    "ranks",
    "removals",
    "scores",
]

type Floats = npt.NDArray[np.float64]

SCORES = ("logit", "probability")
# One number each of an image and a map.
FIGURES = (
    *(f"{curve}_{score}" for curve in ("deletion", "insertion", "difference") for score in SCORES),
    "correlation",
)
# The smallest and the largest value that there can be of each: (figure), and (score); a logit may be anything.
RANGE = np.array([-np.inf, 0, -np.inf, 0, -np.inf, -1, -1]), np.array([np.inf, 1, np.inf, 1, np.inf, 1, 1])
SCORE_RANGE = np.array([-np.inf, 0]), np.array([np.inf, 1])


def counts(patches: int, steps: int) -> npt.NDArray[np.int64]:
    """How many patches are removed at each of `steps` + 1 points, from none to all: (step)."""
    return np.rint(np.linspace(0, patches, steps + 1)).astype(np.int64)


def ranks(values: npt.NDArray[Any], image: int) -> npt.NDArray[np.int64]:
    """The place of each patch in the order of decreasing value, ties by chance: (y, x) -> (y, x).

    `image` draws the ties, so that an image has the same order in every run.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    order = np.lexsort((np.random.default_rng([2, image]).permutation(flat.size), -flat))
    rank = np.empty(flat.size, np.int64)
    rank[order] = np.arange(flat.size)
    return rank.reshape(np.shape(values))


def removals(rank: npt.NDArray[np.int64], removed: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The patches that are away: of deletion at each point between the ends, then of insertion: (2, step, y, x)."""
    inner = removed[1:-1, None, None]
    return np.stack([rank < inner, rank >= inner])


def scores(logits: npt.NDArray[Any], target: Any) -> Floats:
    """Logit and probability of one class: (..., class) and (...) -> (score, ...)."""
    wide = np.asarray(logits, np.float64)
    own = np.take_along_axis(wide, np.broadcast_to(np.asarray(target)[..., None], (*wide.shape[:-1], 1)), -1)[..., 0]
    top = wide.max(-1)
    return np.stack([own, np.exp(own - top) / np.exp(wide - top[..., None]).sum(-1)])


def area(curve: npt.NDArray[Any], removed: npt.NDArray[np.int64]) -> Floats:
    """Mean height of a curve over the share of patches: the trapezoid rule, (..., step) -> (...)."""
    return np.asarray(np.trapezoid(np.asarray(curve, np.float64), removed / removed[-1], axis=-1))


def mass_correlation(values: npt.NDArray[Any], rank: npt.NDArray[np.int64], logit: Any, removed: Any) -> float:
    """Pearson's correlation, over steps, of the map's mass that a step of deletion removes with the logit's drop in it.

    Alvarez-Melis & Jaakkola 2018 (arXiv 1806.07538), section 4.2, by steps in place of single patches. NaN for a map
    that is the same everywhere, and where the logit never changes.

    Args:
        values: (y, x), the map.
        rank: as of `ranks`.
        logit: (step), of deletion.
        removed: (step), as of `counts`.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    if np.ptp(flat) == 0:
        return float("nan")
    falling = flat[np.argsort(rank.reshape(-1))]
    mass = np.diff(np.concatenate([[0.0], np.cumsum(falling)])[removed])
    drop = -np.diff(np.asarray(logit, np.float64))
    if np.ptp(mass) == 0 or np.ptp(drop) == 0:
        return float("nan")
    return float(np.corrcoef(mass, drop)[0, 1])


def figures(deletion: Any, insertion: Any, correlation: float, removed: npt.NDArray[np.int64]) -> Floats:
    """The numbers of `FIGURES` of one image: curves are (score, step)."""
    low, high = area(deletion, removed), area(insertion, removed)
    return np.concatenate([low, high, high - low, [correlation]])
