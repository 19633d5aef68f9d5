"""Intervals of means over images, paired differences, and the effective number of images.

Images are the samples, or clusters of them where images depend on each other: patients, videos, slides. Patches or
queries of one image are not independent observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UsageError

__all__ = ["Paired", "effective_number", "interval", "paired"]

METHOD = "Student's t interval over images, its long tail wider by the skewness (Johnson 1978)"
EQUAL = "; of equal values, what another one that all images missed could add"
LEVEL = 0.95
FEW = 20  # images, of which an interval is rough
ROUNDING = 1e-15  # of the largest value: a smaller standard error is the rounding of equal values

Floats = npt.NDArray[np.float64]
type Range = tuple[float | Floats, float | Floats]
Clusters = npt.NDArray[Any]


class Paired(NamedTuple):
    """Differences of two measurements of the same images; arrays of one image's shape.

    Attributes:
        difference: mean over images, first minus second.
        low, high: its interval, NaN where there is none.
        n: the effective number of images.
    """

    difference: Floats
    low: Floats
    high: Floats
    n: float


def interval(
    values: npt.NDArray[Any],
    axis: int = 0,
    level: float = LEVEL,
    clusters: Clusters | None = None,
    within: Range | None = None,
) -> tuple[Floats, Floats]:
    """Confidence interval of the mean over images: lower and upper bounds.

    Student's t with the standard error of the mean. Towards the long tail the bound is farther by the second-order
    term of the skewness, g (1 + 2 z^2) / (6 sqrt(n)) standard errors, as in Johnson 1978 (J. Am. Stat. Assoc. 73) and
    Chen 1995 (J. Am. Stat. Assoc. 90); the other side stays, since the skewness of few images is itself uncertain.
    docs/statistics.md has its measured coverage beside that of other intervals.

    With clusters the standard error is of the clusters' sums (Liang & Zeger 1986, Biometrika 73), scaled to be unbiased
    where the images of a cluster are alike, and n is `effective_number`. Clusters of one image change nothing.

    Equal values tell how far the mean may be off only where their range is known. All n of them are equal with a
    probability of at least 1 - level only if a share of at most 1 - (1 - level)^(1 / n) differs (about 3 / n, the rule
    of three: Hanley & Lippman-Hand 1983, JAMA 249). The bounds are those of the mean if that share were at either end
    of the range: exact for any distribution.

    Args:
        values: (..., image, ...); NaN is left out.
        axis: of the images.
        level: of confidence.
        clusters: (image), equal for images that depend on each other; by default none do.
        within: the smallest and the largest value that there can be, as numbers or arrays of the other axes; infinite
            where they are not known. No bound lies outside.

    Returns:
        Two float64 arrays of the other axes. NaN where fewer than two images or clusters have a value, and where all
        are equal and their range is not known.
    """
    wide = np.moveaxis(np.asarray(values, np.float64), axis, 0)
    shape = wide.shape[1:]
    ends = [np.broadcast_to(end, shape).ravel() for end in within or (-np.inf, np.inf)]
    low, high = _bounds(wide.reshape(len(wide), math.prod(shape)), level, clusters, ends)
    return low.reshape(shape), high.reshape(shape)


def paired(
    one: npt.NDArray[Any],
    other: npt.NDArray[Any],
    axis: int = 0,
    level: float = LEVEL,
    clusters: Clusters | None = None,
    within: Range | None = None,
) -> Paired:
    """The mean difference of two measurements of the same images, with its `interval`; arguments as there.

    An image that lacks one of the two is left out; `within` is the range of each of the two.
    """
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    low, high = interval(difference, axis, level, clusters, None if within is None else apart(within, within))
    there = ~np.isnan(difference)
    count = there.sum(axis=axis)
    mean = np.where(there, difference, 0).sum(axis=axis) / np.where(count > 0, count, np.nan)
    images = difference.shape[axis]
    n = float(images) if clusters is None else effective_number(clusters)
    return Paired(np.asarray(mean), low, high, n)


def apart(one: Range, other: Range) -> Range:
    """The range of a difference, of the ranges of what it is between."""
    return one[0] - other[1], one[1] - other[0]


def effective_number(clusters: Clusters) -> float:
    """How many clusters of equal size say as much as these: (sum of sizes)^2 / sum of squared sizes. Kish 1965.

    As many as there are clusters if all have as many images; 0 of none.
    """
    sizes = np.unique(np.asarray(clusters), return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.size else 0.0


def cluster_sums(clusters: Clusters | None, values: Floats) -> Floats:
    """(image, column) values summed over the images of each cluster: (cluster, column), in the clusters' order."""
    if clusters is None:
        return values
    if len(clusters) != len(values):
        raise UsageError(f"clusters of {len(clusters)} images, and values of {len(values)}")
    from scipy.sparse import csr_array

    keys, at = np.unique(np.asarray(clusters), return_inverse=True)
    member = csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(len(keys), len(at)))
    return np.asarray(member @ values)


def _bounds(flat: Floats, level: float, clusters: Clusters | None, within: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The interval of (image, column) values."""
    from scipy.special import ndtri, stdtrit  # quantiles of the normal and of Student's distribution

    there = ~np.isnan(flat)
    total = there.sum(axis=0, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, flat, 0).sum(axis=0) / total
        # Per cluster: its share of the images, and what it adds to the mean's deviation.
        share = cluster_sums(clusters, there.astype(np.float64)) / total
        off = cluster_sums(clusters, np.where(there, flat - mean, 0)) / total
        squared, cubed = (share**2).sum(axis=0), (share**3).sum(axis=0)
        n = 1 / squared
        second = (off**2).sum(axis=0)
        # For equal shares the factor is n / (n - 1).
        error = np.sqrt(second * squared / (squared - 2 * cubed + squared**2))
        skew = (off**3).sum(axis=0) / second**1.5 * np.sqrt(n)
        tail = 1 - (1 - level) / 2
        more = skew * (1 + 2 * ndtri(tail) ** 2) / (6 * np.sqrt(n))
        largest = np.abs(np.where(there, flat, 0)).max(axis=0, initial=0)
        several = (share > 0).sum(axis=0) > 1
        known = several & (error > ROUNDING * largest)
        t = stdtrit(np.where(known, n - 1, 1), tail)
        low, high = mean - error * (t + np.maximum(-more, 0)), mean + error * (t + np.maximum(more, 0))
    low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
    least, most = within
    other = 1 - (1 - level) ** (1 / np.where(several, n, 1))
    equal = several & ~known & np.isfinite(least) & np.isfinite(most)
    low, high = np.where(equal, mean - other * (mean - least), low), np.where(equal, mean + other * (most - mean), high)
    return np.maximum(low, least), np.minimum(high, most)
