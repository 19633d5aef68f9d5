"""Counts, means and second moments over images, which merge; quantiles and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["QUANTILES", "Moments", "Totals", "interval", "quantiles"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RESAMPLES = 1000
BLOCK_BYTES = 4 * 2**20  # of bootstrap weights held at once

Floats = npt.NDArray[np.float64]


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
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """Gather (image, ...) values."""
        wide = np.asarray(values, np.float64)
        there = ~np.isnan(wide)
        count = there.sum(axis=0, dtype=np.float64)
        mean = np.where(there, wide, 0).sum(axis=0) / np.maximum(count, 1)
        second = (np.where(there, wide - mean, 0) ** 2).sum(axis=0)
        return cls(count, mean, second)

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


def interval(values: npt.NDArray[Any], *, level: float = 0.95, seed: int = 0) -> Floats:
    """Percentile bootstrap interval of the mean over images: (image, ...) -> (bound, ...), lower then upper.

    Images are resampled with replacement, `RESAMPLES` times, all entries of an image together. The same seed draws the
    same images for every statistic of a dataset. NaN is left out. Efron & Tibshirani 1993, chapter 13.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    there = ~np.isnan(flat)
    some = there.any(axis=0)
    bounds = np.full((2, flat.shape[1]), np.nan)
    bounds[:, some] = _drawn(flat[:, some], there[:, some], level, seed)
    return bounds.reshape(2, *np.shape(values)[1:])


def _drawn(flat: Floats, there: npt.NDArray[np.bool_], level: float, seed: int) -> Floats:
    """The interval of (image, column) values; each column has at least one value."""
    centre = Moments.of(flat).average
    # Deviations from the mean lose nothing in float32, where the products run twice as fast.
    off = np.where(there, flat - centre, 0).astype(np.float32)
    whole = bool(there.all())
    means = []
    for weights in _resampled(len(flat), seed):
        weight = np.float32(len(flat)) if whole else weights @ there.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(weights @ off / weight)
    edges = ((1 - level) / 2, (1 + level) / 2)
    drawn = np.concatenate(means)
    found = np.quantile(drawn, edges, axis=0) if whole else np.nanquantile(drawn, edges, axis=0)
    return np.asarray(centre + found)


def _resampled(images: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """How often each image is drawn: (resample, image) in blocks of bounded size."""
    random = np.random.default_rng(seed)
    step = max(1, min(RESAMPLES, BLOCK_BYTES // (4 * images)))
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        weights = np.empty((draws, images), np.float32)
        for row in weights:
            row[:] = np.bincount(random.integers(0, images, images), minlength=images)
        yield weights
