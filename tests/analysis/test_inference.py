"""Intervals over images and clusters of them: against scipy, cluster means, and worked cases."""

from __future__ import annotations

import numpy as np
import pytest

inference = pytest.importorskip("attlas.analysis.statistics.inference")
scipy_stats = pytest.importorskip("scipy.stats")


def test_without_skewness_it_is_students_interval() -> None:
    """Values that lie evenly around their mean, along any axis."""
    values = np.array([[1.0, 4.0], [2.0, 6.0], [3.0, 8.0], [4.0, 10.0]])
    wanted = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    for axis, given in ((0, values), (1, values.T)):
        low, high = inference.interval(given, axis=axis, level=0.9)
        np.testing.assert_allclose(low, wanted.low, rtol=1e-12)
        np.testing.assert_allclose(high, wanted.high, rtol=1e-12)


def test_the_long_tail_is_wider_by_the_skewness() -> None:
    """Of 0, 0, 0, 4: mean 1, deviation 2, standard error 1, skewness 6 / 3^1.5; t(3) = 3.182, z = 1.960."""
    values = np.array([0.0, 0.0, 0.0, 4.0])
    t, more = 3.1824463, 6 / 3**1.5 * (1 + 2 * 1.9599640**2) / 12
    np.testing.assert_allclose(inference.interval(values), (1 - t, 1 + t + more), rtol=1e-7)
    np.testing.assert_allclose(inference.interval(-values), (-1 - t - more, -1 + t), rtol=1e-7)


def test_nothing_is_said_where_the_spread_is_unknown() -> None:
    """One value, none, and values that are all equal have no interval; NaN is left out."""
    nan = np.nan
    values = np.array([[1.0, nan, 0.1, 2.0], [nan, nan, 0.1, 3.0], [nan, nan, 0.1, nan]])
    low, high = inference.interval(values)
    assert np.isnan(low[:3]).all()
    assert np.isnan(high[:3]).all()
    np.testing.assert_allclose((low[3], high[3]), inference.interval(np.array([2.0, 3.0])), rtol=1e-12)
    assert np.isnan(inference.interval(np.array([5.0]))).all()


def test_equal_shares_may_be_off_by_what_all_images_missed() -> None:
    """Of 20 that are 0.25 another one is one in 7.2 at most: 1 - 0.05^(1/20) = 0.1391, at either end of the range."""
    values = np.array([[0.25, 0.0, np.nan]] * 20)
    low, high = inference.interval(values, within=(0, 1))
    np.testing.assert_allclose(low[:2], [0.25 - 0.25 * 0.1391083, 0], atol=1e-7)
    np.testing.assert_allclose(high[:2], [0.25 + 0.75 * 0.1391083, 0.1391083], atol=1e-7)
    assert np.isnan([low[2], high[2]]).all()
    assert np.isnan(inference.interval(values[:1], within=(0, 1))).all()
    pairs = inference.interval(values, within=(0, 1), clusters=np.arange(20) // 2)
    np.testing.assert_allclose(pairs[1][1], 1 - 0.05**0.1)
    skewed = np.array([0.0, 0.0, 0.0, 1.0])  # no bound lies outside the range
    assert inference.interval(skewed, within=(0, 1)) == (0, 1)


def test_each_value_may_have_a_range_of_its_own() -> None:
    """Infinite where it is not known; that of a difference of two shares is -1 to 1."""
    values, missed = np.array([[0.25, 0.25, 0.25]] * 20), 1 - 0.05 ** (1 / 20)
    low, high = inference.interval(values, within=(np.array([-np.inf, 0, -1]), np.array([np.inf, 1, np.inf])))
    np.testing.assert_allclose(low, [np.nan, 0.25 * (1 - missed), np.nan])
    np.testing.assert_allclose(high, [np.nan, 0.25 + 0.75 * missed, np.nan])
    found = inference.paired(values, np.zeros_like(values), within=(0, 1))
    np.testing.assert_allclose(found.low, 0.25 - 1.25 * missed)
    np.testing.assert_allclose(found.high, 0.25 + 0.75 * missed)


def test_an_interval_of_shares_that_are_mostly_0_covers_their_mean() -> None:
    """Of 20 images one in 25 has a share of 1: 44 % of samples are all 0, and say little, but not nothing."""
    values = (np.random.default_rng(3).random((20, 4000)) < 0.04).astype(float)
    low, high = inference.interval(values, within=(0, 1))
    assert ((low <= 0.04) & (high >= 0.04)).mean() > 0.94


def test_clusters_of_one_size_count_as_their_means() -> None:
    values = np.random.default_rng(0).gamma(1, size=(24, 3))
    clusters = np.tile(["b", "a", "d", "c", "f", "e"], 4)
    means = values.reshape(4, 6, 3).mean(axis=0)
    np.testing.assert_allclose(inference.interval(values, clusters=clusters), inference.interval(means), rtol=1e-10)
    alone = inference.interval(values, clusters=np.arange(24))
    np.testing.assert_allclose(alone, inference.interval(values), rtol=1e-10)
    assert np.isnan(inference.interval(values, clusters=np.zeros(24))).all()


def test_unequal_clusters_by_hand() -> None:
    """Images 1, 3 | 2 | 9, shares 1/2, 1/4, 1/4 of mean 15/4, sums off by -14/4, -7/4, 21/4; n = 8/3.

    sum w^2 = 3/8 and sum w^3 = 5/32 make the factor (3/8) / (3/8 - 5/16 + 9/64) = 24/13.
    """
    low, high = inference.interval(np.array([1.0, 3.0, 2.0, 9.0]), clusters=np.array([0, 0, 1, 2]))
    off = np.array([-14, -7, 21]) / 16
    error = np.sqrt((off**2).sum() * 24 / 13)
    t = scipy_stats.t.ppf(0.975, 8 / 3 - 1)
    skew = (off**3).sum() / (off**2).sum() ** 1.5
    more = max(skew, 0) * (1 + 2 * scipy_stats.norm.ppf(0.975) ** 2) / 6
    np.testing.assert_allclose((low, high), (15 / 4 - t * error, 15 / 4 + (t + more) * error), rtol=1e-9)


def test_effective_number_of_clusters() -> None:
    assert inference.effective_number(np.array([7, 7, 3, 3])) == 2
    assert inference.effective_number(np.array(["a", "a", "b", "c"])) == pytest.approx(16 / 6)
    assert inference.effective_number(np.arange(5)) == 5


def test_paired_differences_are_of_the_same_images() -> None:
    """What the images have in common cancels; one that lacks a value is left out."""
    random = np.random.default_rng(1)
    common = random.normal(0, 100, size=(30, 2))
    one, other = common + random.normal(1, 0.1, size=(30, 2)), common.copy()
    other[3, 0] = np.nan
    found = inference.paired(one, other)
    difference = one - other
    np.testing.assert_allclose(found.difference, np.nanmean(difference, axis=0), rtol=1e-12)
    np.testing.assert_allclose((found.low, found.high), inference.interval(difference), rtol=1e-12)
    assert (found.low > 0.9).all()
    assert found.n == 30
    assert inference.paired(one, other, clusters=np.arange(30) // 2).n == 15


def test_a_95_percent_interval_of_skewed_values_covers_their_mean() -> None:
    """4,000 samples of 10 exponential values each, whose plain t interval covers 0.90; `benchmarks/inference.py`."""
    low, high = inference.interval(np.random.default_rng(2).exponential(size=(10, 4000)))
    assert 0.92 < ((low <= 1) & (high >= 1)).mean() < 0.96
