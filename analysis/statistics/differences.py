"""Differences between groups of images: Welch's test from moments, and control of the false discovery rate.

Images are the samples. Patches or queries of one image are not independent observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .moments import Moments

__all__ = ["Difference", "benjamini_hochberg", "group_differences", "welch"]

Floats = npt.NDArray[np.float64]


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


def group_differences(groups: Sequence[Moments]) -> tuple[Floats, Floats]:
    """Each group against all other images: difference of means and q, both (group, ...).

    q is adjusted over all groups and entries together. NaN if there is only one group.
    """
    nothing = Moments(*(np.zeros_like(groups[0].count) for _ in range(3)))
    # All others = those before + those after: subtracting a group from the whole would lose digits.
    before, after = [nothing], [nothing]
    for group in groups[:-1]:
        before.append(before[-1] + group)
    for group in reversed(groups[1:]):
        after.append(after[-1] + group)
    tests = [welch(group, b + a) for group, b, a in zip(groups, before, reversed(after), strict=True)]
    return np.stack([t.difference for t in tests]), benjamini_hochberg(np.stack([t.p for t in tests]))
