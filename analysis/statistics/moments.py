"""Counts, means and second moments over images, which merge; quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["QUANTILES", "Moments", "Totals", "quantiles"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Floats = npt.NDArray[np.float64]

# Earlier versions took infinite values; their deviation is NaN, which needs no warning at every analysis.
_QUIET = np.errstate(invalid="ignore")


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and centred second moment over images, elementwise; NaN is left out.

    Moments of two sets of images add up to those of both (Chan, Golub & LeVeque 1983). Attributes are float64 with the
    shape of one image's values.
    """

    count: Floats
    mean: Floats
    second: Floats

    @classmethod
    @_QUIET
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """Gather (image, ...) values."""
        wide = np.asarray(values, np.float64)
        there = ~np.isnan(wide)
        count = there.sum(axis=0, dtype=np.float64)
        mean = np.where(there, wide, 0).sum(axis=0) / np.maximum(count, 1)
        second = (np.where(there, wide - mean, 0) ** 2).sum(axis=0)
        return cls(count, mean, second)

    @_QUIET
    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / np.maximum(count, 1)
        return Moments(count, self.mean + delta * share, self.second + other.second + delta**2 * self.count * share)

    @property
    def average(self) -> Floats:
        """The mean; NaN where nothing was counted."""
        return np.where(self.count > 0, self.mean, np.nan)

    @property
    def std(self) -> Floats:
        """The standard deviation over images (n - 1); NaN where fewer than two were counted."""
        return np.sqrt(np.where(self.count > 1, self.second, np.nan) / np.maximum(self.count - 1, 1))


@dataclass(frozen=True, slots=True)
class Totals:
    """The sum of maps over images and the number of images, for the mean of large arrays; merge by adding.

    An entry that is NaN in one image is NaN in the sum.
    """

    count: float
    total: Floats

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Totals:
        """Gather (image, ...) values."""
        return cls(float(len(values)), np.add.reduce(values, axis=0, dtype=np.float64))

    @classmethod
    def of_mean(cls, mean: npt.NDArray[Any], count: float) -> Totals:
        """The totals whose average is `mean`."""
        return cls(float(count), np.asarray(mean, np.float64) * count)

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.count + other.count, self.total + other.total)

    @property
    def average(self) -> Floats:
        """The mean; NaN where nothing was counted."""
        return self.total / self.count if self.count else np.full_like(self.total, np.nan)


@_QUIET
def quantiles(values: npt.NDArray[Any]) -> Floats:
    """Exact quantiles over images, interpolated linearly: (image, ...) -> (quantile, ...), NaN left out."""
    wide = np.asarray(values, np.float64)
    missing = np.isnan(wide)
    if not missing.any():
        return np.quantile(wide, QUANTILES, axis=0)
    found = np.full((len(QUANTILES), *wide.shape[1:]), np.nan)
    some = ~missing.all(axis=0)
    found[:, some] = np.nanquantile(wide[:, some], QUANTILES, axis=0)
    return found
