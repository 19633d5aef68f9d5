"""Differences between groups of images: by permutation of labels, with control of the false discovery rate.

Images are the samples, or clusters of them. Patches or queries of one image are not independent observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .inference import ROUNDING, Clusters, cluster_sums
from .moments import Moments

__all__ = ["Compared", "Difference", "benjamini_hochberg", "group_differences", "welch"]

TEST = "permutation of labels, a group against all other images, Benjamini & Hochberg 1995"
FINEST = 0.025  # the smallest q that one difference alone can have
ENOUGH = 50  # larger random groups, after which a p value is known well enough
LIKE = 1.1  # groups that differ by no more than this factor share their random groups
SAME = 1e-4  # of a standard error: sums no farther apart are equal but for rounding in float32
SPARSE = 16  # a group of less than this part of all units is a sparse row
BLOCK_VALUES = 2**23  # numbers held at once

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A test of two means, entry by entry; arrays of the means' shape, NaN where either has fewer than two images.

    Attributes:
        difference: first mean minus second.
        statistic: Welch's t.
        freedom: degrees of freedom after Welch & Satterthwaite.
        p: two-sided.
    """

    difference: Floats
    statistic: Floats
    freedom: Floats
    p: Floats


def welch(one: Moments, other: Moments) -> Difference:
    """Welch's t-test of two groups of images, with unequal variances. Welch 1947, Biometrika 34.

    NaN if neither group varies.
    """
    from scipy.special import stdtr  # Student's distribution function

    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.where(m.count > 1, m.second / (m.count - 1) / m.count, np.nan) for m in (one, other)]
        squared = shares[0] + shares[1]
        difference = one.average - other.average
        t = np.where(squared > 0, difference / np.sqrt(squared), np.nan)
        freedom = squared**2 / (shares[0] ** 2 / (one.count - 1) + shares[1] ** 2 / (other.count - 1))
    return Difference(difference, t, freedom, np.asarray(2 * stdtr(freedom, -np.abs(t))))


def benjamini_hochberg(p: npt.NDArray[Any]) -> Floats:
    """Adjusted p-values q, of the shape of `p`: among tests with q <= 0.05 at most 5 % false discoveries are expected.

    q_(i) = min over j >= i of p_(j) m / j, over all m tests that are not NaN, of all axes together. Valid for
    independent and for positively dependent tests. Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57.
    """
    flat = np.asarray(p, np.float64).reshape(-1)
    found = np.full(flat.shape, np.nan)
    there = np.flatnonzero(~np.isnan(flat))
    order = there[np.argsort(flat[there])]
    scaled = flat[order] * len(order) / np.arange(1, len(order) + 1)
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.asarray(np.minimum(found, 1).reshape(np.shape(p)))


class Compared(NamedTuple):
    """Each group of images against all others.

    Attributes:
        difference: (group, ...), mean of the group minus mean of all other images.
        q: (group, ...), from permutations of the labels; NaN where there is no test.
        units: (group), the images, or the clusters of them, that its test is of.
        draws: the most random groups that one was compared with.
    """

    difference: Floats
    q: Floats
    units: Counts
    draws: int


def group_differences(
    values: npt.NDArray[Any], groups: npt.NDArray[np.integer[Any]], clusters: Clusters | None = None, *, seed: int = 0
) -> Compared:
    """Each group against all other images: difference of means, and q by permutation of the labels.

    The statistic is |difference| over its standard error with the variance of all images pooled. Its p value is the
    share of random groups of that size, drawn without replacement from all images, in which it is as large
    ((1 + those) / (1 + all), North, Curtis & Sham 2002, Am. J. Hum. Genet. 71): exact for groups of any size and
    values of any distribution, where Welch's test of a handful of skewed values is not. q adjusts p over all groups and
    entries together (`benjamini_hochberg`). Random groups are drawn until the smallest p could stand alone; for an
    entry in which all groups have `ENOUGH` larger ones, until then (Besag & Clifford 1991, Biometrika 78). The same
    seed draws the same.

    A small q says that the group is no random part of the images: its mean differs, or, in a small group beside a much
    larger spread elsewhere, its spread. A group of one image, all images but one, and an entry in which all images are
    equal have no test. Clusters are drawn whole, and count by their sums; of a cluster in several groups each part.

    Args:
        values: (image, ...); NaN is left out.
        groups: (image), the index of its group, all indices from 0 up occurring.
        clusters: (image), equal for images that depend on each other; by default none do.
        seed: of the random groups.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    there = ~np.isnan(flat)
    total = there.sum(axis=0)
    off = np.where(there, flat - np.where(there, flat, 0).sum(axis=0) / np.maximum(total, 1), 0)
    sums, counts = cluster_sums(groups, off), cluster_sums(groups, there.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sums / counts + sums / (total - counts)
    if clusters is not None:
        parts = np.unique(np.stack([np.unique(clusters, return_inverse=True)[1], groups]), axis=1, return_inverse=True)
        off, groups = cluster_sums(parts[1].reshape(-1), off), parts[0][1]
    units = np.bincount(groups, minlength=len(sums))
    p, draws = _permuted(off, sums, units, seed)
    shape = (len(sums), *np.shape(values)[1:])
    return Compared(difference.reshape(shape), benjamini_hochberg(p).reshape(shape), units, draws)


def _permuted(off: Floats, sums: Floats, units: Counts, seed: int) -> tuple[Floats, int]:
    """The p value of each group's sum, (group, entry), among sums of as many (unit, entry) values drawn at random."""
    count = len(off)
    spread = np.sqrt((off**2).mean(axis=0))
    varies = np.flatnonzero(spread > ROUNDING * np.abs(off).max(axis=0, initial=0) * count)
    size = np.minimum(units, count - units)  # a group differs from the others as they differ from it
    tested = np.flatnonzero(size > 1)
    p = np.full(sums.shape, np.nan)
    scaled = np.ascontiguousarray(off[:, varies] / spread[varies], np.float32)
    needed = math.ceil(len(tested) * len(varies) / FINEST)
    most = 0
    for smallest, members in _alike(size, tested):
        scale = spread[varies] * _deviation(size[members], count)[:, None]
        p[np.ix_(members, varies)], draws = _exceeded(
            np.abs(sums[np.ix_(members, varies)]) / scale, scaled, smallest, needed, seed
        )
        most = max(most, draws)
    return p, most


def _alike(size: Counts, tested: Counts) -> Iterator[tuple[int, Counts]]:
    """Groups of nearly one size, with the smallest, whose sums have the heaviest tails."""
    order = tested[np.argsort(size[tested], kind="stable")]
    while len(order):
        smallest = int(size[order[0]])
        within = int(np.searchsorted(size[order], smallest * LIKE, side="right"))
        yield smallest, order[:within]
        order = order[within:]


def _deviation(size: Any, count: int) -> Any:
    """Of the sum of `size` values with deviation 1 drawn from `count` without replacement."""
    return np.sqrt(size * (1 - size / count) * count / (count - 1))


def _exceeded(
    observed: Floats, scaled: npt.NDArray[np.float32], size: int, needed: int, seed: int
) -> tuple[Floats, int]:
    """The share of random groups of `size` whose sum is as large as (group, entry) observed ones, and how many."""
    random = np.random.default_rng([seed, size])
    deviation = float(_deviation(size, len(scaled)))
    larger, draws = np.zeros(observed.shape, np.int64), np.zeros(observed.shape[1], np.int64)
    left, values = np.arange(observed.shape[1]), scaled
    while len(left):
        wanted = min(needed - int(draws[left[0]]), BLOCK_VALUES // len(left))
        chosen = _random_groups(random, len(scaled), size, wanted)
        null = np.sort(np.abs((chosen @ values).T) / deviation, axis=1)
        for row, entry in zip(null, left, strict=True):
            # Sums of the same values in another order differ by rounding.
            larger[:, entry] += len(row) - np.searchsorted(row, observed[:, entry] - SAME)
        draws[left] += null.shape[1]
        keep = (draws[left] < needed) & (larger[:, left] < ENOUGH).any(axis=0)
        if not keep.all():
            left = left[keep]
            values = np.ascontiguousarray(scaled[:, left])
    return (1 + larger) / (1 + draws), int(draws.max(initial=0))


def _random_groups(random: np.random.Generator, count: int, size: int, wanted: int) -> Any:
    """Which units are in random groups of `size`: (group, unit) of 0 and 1, dense if that is the faster product."""
    from scipy.sparse import csr_array

    dense = size * SPARSE > count
    wanted = max(1, min(wanted, BLOCK_VALUES // (count if dense else size)))
    of_each = (count - 1) // size  # groups of one permutation have no unit in common
    at = np.concatenate([random.permutation(count)[: of_each * size] for _ in range(-(-wanted // of_each))])
    rows = len(at) // size
    if dense:
        chosen = np.zeros((rows, count), np.float32)
        np.put_along_axis(chosen, at.reshape(rows, size), 1, axis=1)
        return chosen
    return csr_array((np.ones(len(at), np.float32), at, np.arange(0, len(at) + 1, size)), shape=(rows, count))
