"""Statistics by class or column: against plain numpy, resumed, tested for differences, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.engine.store.store import ArraySpec, Store
from attlas.errors import AttlasError
from hypothesis import given, settings
from hypothesis import strategies as st
from support_statistics import BROKEN, IMAGES, SPEC, attention, fill_unit, label_of, make_store

statistics = pytest.importorskip("attlas.analysis.statistics")
moments = pytest.importorskip("attlas.analysis.statistics.moments")
differences = pytest.importorskip("attlas.analysis.statistics.differences")
special = pytest.importorskip("scipy.stats")

LABELS = [label_of(i) for i in range(IMAGES)]


def members(key: str) -> list[int]:
    return [i for i in range(IMAGES) if LABELS[i] == key and i != BROKEN]


def test_means_and_maps_by_label_equal_plain_numpy(tmp_path: Path) -> None:
    """Of every group: images, mean, deviation and mean maps; images without a label are in none."""
    made = make_store(tmp_path / "s.zarr")
    result = statistics.analyze(tmp_path / "s.zarr", by="label")
    store = Store(tmp_path / "s.zarr")
    keys = [str(key) for key in store.read("label_group")]
    assert keys == ["cat", "dog", "late"]
    without = sum(not LABELS[i] for i in range(IMAGES) if i != BROKEN)
    assert f"{without} of 21 images have no label" in result.notes[-1]
    a = made.read("attention").astype(np.float64)
    received, entropy = f.received_attention(a, SPEC.grid), store.read("entropy").astype(np.float64)
    rows, rollout = f.readout_map(a, SPEC.grid, 0), store.read("rollout")
    assert store.dims("entropy_mean_by_label") == ("label_group", "layer", "head")
    assert store.dims("received_attention_mean_by_label") == ("label_group", "layer", "head", "y", "x")
    for g, key in enumerate(keys):
        own = members(key)
        assert store.read("label_group_images")[g] == len(own)
        np.testing.assert_allclose(store.read("entropy_mean_by_label")[g], entropy[own].mean(0), rtol=1e-12)
        np.testing.assert_allclose(store.read("entropy_std_by_label")[g], entropy[own].std(0, ddof=1), rtol=1e-9)
        for name, values in {"received_attention": received, "readout_map": rows, "rollout": rollout}.items():
            got = store.read(f"{name}_mean_by_label")[g]
            np.testing.assert_allclose(got, values[own].mean(0), rtol=1e-6)
    assert "received_attention" not in store


def test_new_units_cost_only_themselves_and_may_bring_new_groups(tmp_path: Path) -> None:
    """Analysed in two goes, the maps read only what is new, and every array ends as in one go."""
    store = make_store(tmp_path / "s.zarr", units=[0, 3])
    first = statistics.analyze(tmp_path / "s.zarr", by="label")
    assert [str(k) for k in Store(tmp_path / "s.zarr").read("label_group")] == ["cat", "dog"]
    for k in (1, 2, 4, 5):
        fill_unit(store, k, attention())
    # Whatever is asked by label, the older arrays must go on to fit the groups.
    second = statistics.analyze(tmp_path / "s.zarr", ["entropy"], by="label")
    assert second.read == first.read * 14 // 8
    assert statistics.analyze(tmp_path / "s.zarr", by="label").read == first.read * 14 // 8  # score_matrix_mean's
    assert statistics.analyze(tmp_path / "s.zarr", by="label").read == 0
    make_store(tmp_path / "whole.zarr")
    statistics.analyze(tmp_path / "whole.zarr", by="label")
    whole, parts = Store(tmp_path / "whole.zarr"), Store(tmp_path / "s.zarr")
    for name in whole.attrs["analyzed"]:
        if whole.array(name).dtype.kind in "if":
            np.testing.assert_allclose(parts.read(name), whole.read(name), rtol=1e-12, atol=1e-15)


def test_predicted_classes_are_those_of_the_largest_logits(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr")
    statistics.analyze(tmp_path / "s.zarr", ["entropy"], by="predicted")
    store = Store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("predicted_group"), [0, 1, 2])
    own = [i for i in range(IMAGES) if i % 3 == 2 and i != BROKEN]
    np.testing.assert_allclose(
        store.read("entropy_mean_by_predicted")[2], store.read("entropy")[own].mean(0), rtol=1e-6
    )


def test_any_column_of_the_store_groups(tmp_path: Path) -> None:
    """Also one that somebody added, with missing values."""
    store = make_store(tmp_path / "s.zarr")
    values = np.arange(IMAGES, dtype=np.float64) % 2
    values[:4] = np.nan
    store.add([ArraySpec("age", ("image",), (IMAGES,), (IMAGES,), "float64", np.nan)], {"age": values})
    statistics.analyze(tmp_path / "s.zarr", ["distance"], by="age")
    found = Store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found.read("age_group"), [0, 1])
    assert found.read("age_group_images").tolist() == [9, 8]


@pytest.mark.parametrize(
    ("names", "by", "match"),
    [
        (None, "colour", "no column .* label"),
        (None, "attention", "no column"),
        (["attention_matrix_mean"], "label", "not by label"),
        (["entropy_histogram"], "label", "not by label"),
    ],
)
def test_what_cannot_be_grouped_is_refused(tmp_path: Path, names: Any, by: str, match: str) -> None:
    make_store(tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match=match):
        statistics.analyze(tmp_path / "s.zarr", names, by=by)


# -- differences ------------------------------------------------------------------------------------------------------


@given(st.integers(3, 30), st.integers(3, 30), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_welch_from_moments_equals_scipys_on_the_values(n: int, m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = random.normal(3, 2, (n, 2, 3)), random.normal(3.5, 0.5, (m, 2, 3))
    got = differences.welch(moments.Moments.of(one), moments.Moments.of(other))
    wanted = special.ttest_ind(one, other, equal_var=False)
    np.testing.assert_allclose(got.statistic, wanted.statistic, rtol=1e-9)
    np.testing.assert_allclose(got.p, wanted.pvalue, rtol=1e-7, atol=1e-14)
    np.testing.assert_allclose(got.freedom, wanted.df, rtol=1e-9)


def test_one_image_or_no_spread_has_no_test() -> None:
    some = moments.Moments.of(np.random.default_rng(0).normal(size=(5, 1)))
    for other in (np.ones((1, 1)), np.full((1, 1), np.nan)):
        assert np.isnan(differences.welch(some, moments.Moments.of(other)).p).all()
    still = moments.Moments.of(np.ones((4, 1)))
    assert np.isnan(differences.welch(still, still).p).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_q_equals_scipys_and_keeps_shape_and_nan(p: list[float]) -> None:
    values = np.array([*p, np.nan])
    got = differences.benjamini_hochberg(values[None, :, None])
    assert got.shape == (1, len(p) + 1, 1)
    assert np.isnan(got[0, -1, 0])
    np.testing.assert_allclose(got[0, :-1, 0], special.false_discovery_control(p), rtol=1e-12)


def test_differences_are_found_where_they_are_and_nowhere_else(tmp_path: Path) -> None:
    """Three groups of 40 images, one of which differs in one of 50 entries; the rest is noise."""
    random = np.random.default_rng(1)
    groups = [random.normal(size=(40, 50)) for _ in range(3)]
    groups[1][:, 7] += 2
    difference, q = differences.group_differences([moments.Moments.of(g) for g in groups])
    found = np.argwhere(q <= 0.05)
    assert {tuple(int(i) for i in at) for at in found} >= {(1, 7)}
    assert set(found[:, 1]) == {7}
    rest = np.concatenate([groups[0], groups[2]])
    np.testing.assert_allclose(difference[1], groups[1].mean(0) - rest.mean(0), rtol=1e-9)
    wanted = np.stack([
        special.ttest_ind(g, np.concatenate([o for o in groups if o is not g]), equal_var=False).pvalue for g in groups
    ])  # fmt: skip
    np.testing.assert_allclose(q.ravel(), special.false_discovery_control(wanted.ravel()), rtol=1e-9)


def test_one_group_alone_differs_from_nothing() -> None:
    difference, q = differences.group_differences([moments.Moments.of(np.arange(6.0).reshape(3, 2))])
    assert np.isnan(difference).all()
    assert np.isnan(q).all()
