"""Statistics by class or column: against plain numpy, resumed, tested for differences, and what is refused."""

from __future__ import annotations

from itertools import combinations
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
inference = pytest.importorskip("attlas.analysis.statistics.inference")
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
    assert f"{without} of 21 images are in no group, without label" in result.notes[-1]
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


def test_a_column_without_a_value_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """As labels are of images in one folder; a store with nothing done yet has no images to lack one."""
    store = make_store(tmp_path / "s.zarr", units=[0])
    store.write("label", 0, np.array([""] * IMAGES, dtype=np.dtypes.StringDType()))
    before = sorted(store.names)
    with pytest.raises(AttlasError, match=r"--by label: no image has a value there.*--by predicted"):
        statistics.analyze(store.path, ["entropy"], by="label")
    assert sorted(Store(store.path).names) == before
    empty = make_store(tmp_path / "e.zarr", units=[])
    assert "nothing to sum up" in statistics.analyze(empty.path, ["entropy"], by="label").notes[-1]


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


def test_p_is_the_share_of_all_groups_of_that_size_that_differ_as_much() -> None:
    """Nine skewed images in groups of 2, 3 and 4: against every one of the 36, 84 and 126 groups there are."""
    values = np.random.default_rng(3).exponential(size=(9, 1)) ** 2
    groups = np.repeat([0, 1, 2], [2, 3, 4])
    found = differences.group_differences(values, groups)
    wanted = []
    for g in range(3):
        own = np.flatnonzero(groups == g)
        sums = np.array([values[list(c)].sum() for c in combinations(range(9), len(own))])
        expected = values.mean() * len(own)
        wanted.append((np.abs(sums - expected) >= abs(values[own].sum() - expected) - 1e-9).mean())
        rest = values[groups != g].mean()
        np.testing.assert_allclose(found.difference[g, 0], values[own].mean() - rest, rtol=1e-12)
    scaled = special.false_discovery_control(wanted)
    np.testing.assert_allclose(found.q[:, 0], scaled, atol=0.12)  # of at least 120 random groups
    assert found.units.tolist() == [2, 3, 4]
    np.testing.assert_array_equal(differences.group_differences(values, groups).q, found.q)


def test_with_many_draws_p_is_that_share_to_a_percent() -> None:
    """The same of 60 equal columns, which take 60 times the draws."""
    values = np.repeat(np.random.default_rng(3).exponential(size=(9, 1)) ** 2, 200, axis=1)
    groups = np.repeat([0, 1], [4, 5])
    sums = np.array([values[list(c), 0].sum() for c in combinations(range(9), 4)])
    expected = values[:, 0].mean() * 4
    wanted = (np.abs(sums - expected) >= abs(values[:4, 0].sum() - expected) - 1e-9).mean()
    found = differences.group_differences(values, groups)
    np.testing.assert_allclose(found.q, wanted, atol=0.02)


def test_differences_are_found_where_they_are_and_nowhere_else() -> None:
    """Three groups of 40 images, one of which differs in one of 50 entries; the rest is noise."""
    random = np.random.default_rng(1)
    values, groups = random.normal(size=(120, 50)), np.arange(120) % 3
    values[groups == 1, 7] += 2
    found = np.argwhere(differences.group_differences(values, groups).q <= 0.05)
    assert {tuple(int(i) for i in at) for at in found} >= {(1, 7)}
    assert set(found[:, 1]) == {7}


def test_skewed_values_in_small_groups_give_no_false_discovery() -> None:
    """Fifty groups of 4 images of one distribution, of which most are 0: Welch's test finds dozens of differences."""
    random = np.random.default_rng(4)
    values = np.where(random.random((200, 20)) < 0.3, random.exponential(size=(200, 20)), 0)
    groups = np.arange(200) % 50
    assert differences.group_differences(values, groups).q.min() > 0.05
    parts = [moments.Moments.of(values[groups == g]) for g in range(50)]
    rest = [moments.Moments.of(values[groups != g]) for g in range(50)]
    p = np.stack([differences.welch(*pair).p for pair in zip(parts, rest, strict=True)])
    assert (differences.benjamini_hochberg(p) <= 0.05).sum() > 12


def test_a_cluster_counts_once() -> None:
    """Two patients of a class with 50 equal images each are two samples of ten, and differ from nothing."""
    random = np.random.default_rng(5)
    patient = np.repeat(np.arange(10), 50)
    values = random.normal(size=10)[patient, None]
    groups = (patient < 2).astype(int)
    assert differences.group_differences(values, groups).q.min() < 0.05
    found = differences.group_differences(values, groups, patient)
    assert found.units.tolist() == [8, 2]
    whole = differences.group_differences(values[::50], groups[::50])
    np.testing.assert_array_equal(found.q, whole.q)
    np.testing.assert_allclose(found.difference, whole.difference, rtol=1e-9)


def test_what_has_no_test() -> None:
    """A group of one image, all but one, a single group, equal images; NaN counts as no image."""
    values = np.array([[1.0, 5, 1], [2, 5, 2], [4, 5, np.nan], [9, 5, 4], [7, 5, 5]])
    found = differences.group_differences(values, np.array([0, 0, 1, 2, 2]))
    assert np.isnan(found.q[1]).all()
    assert np.isnan(found.q[:, 1]).all()
    assert np.isfinite(found.q[[0, 2]][:, [0, 2]]).all()
    np.testing.assert_allclose(found.difference[0], [1.5 - 20 / 3, 0, 1.5 - 4.5])
    assert np.isnan(differences.group_differences(values, np.zeros(5, int)).q).all()
    assert np.isnan(differences.group_differences(values, np.array([0, 0, 0, 0, 1])).q).all()


# -- clusters ---------------------------------------------------------------------------------------------------------


def with_patients(path: Path, units: Any = None) -> Store:
    """A store whose images come from patients of four, some without one."""
    store = make_store(path, units=units)
    names = ["" if i % 9 == 0 else f"patient {i // 4}" for i in range(IMAGES)]
    text = np.array(names, dtype=np.dtypes.StringDType())
    store.add([ArraySpec("patient", ("image",), (IMAGES,), (IMAGES,), "str", "")], {"patient": text})
    return store


def test_intervals_and_q_are_over_clusters_and_say_so(tmp_path: Path) -> None:
    """Images without a patient are by themselves; the effective number is in the attributes and the notes."""
    with_patients(tmp_path / "s.zarr")
    result = statistics.analyze(tmp_path / "s.zarr", ["entropy"], by="label", cluster="patient")
    store = Store(tmp_path / "s.zarr")
    valid = [i for i in range(IMAGES) if i != BROKEN]
    codes = np.array([100 + i if i % 9 == 0 else i // 4 for i in valid])
    values = store.read("entropy")[valid]
    wanted = np.stack(inference.interval(values, clusters=codes))
    np.testing.assert_allclose(store.read("entropy_interval"), wanted, rtol=1e-12)
    attrs = dict(store.array("entropy_interval").attrs)
    effective = inference.effective_number(codes)
    assert (attrs["cluster"], attrs["clusters"]) == ("patient", 9)
    assert attrs["effective_images"] == pytest.approx(effective)
    labelled = [g for g, i in enumerate(valid) if LABELS[i]]
    groups = np.array([["cat", "dog", "late"].index(LABELS[valid[g]]) for g in labelled])
    compared = differences.group_differences(values[labelled], groups, codes[labelled])
    np.testing.assert_array_equal(store.read("entropy_q_by_label"), compared.q)
    assert store.array("entropy_q_by_label").attrs["cluster"] == "patient"
    assert any(f"9 clusters by patient, effective n = {effective:.4g}; 3 images without" in n for n in result.notes)
    assert any("fewer than 20" in note for note in result.notes)


def test_later_analyses_keep_to_the_clusters_and_others_renew_everything(tmp_path: Path) -> None:
    """What was over patients stays so; another column leaves no interval and no q value of the one before."""
    with_patients(tmp_path / "s.zarr")
    statistics.analyze(tmp_path / "s.zarr", ["entropy", "sink_share"], by="label", cluster="patient")
    statistics.analyze(tmp_path / "s.zarr", ["entropy"], by="predicted")
    statistics.analyze(tmp_path / "s.zarr", ["distance"])
    store = Store(tmp_path / "s.zarr")
    inferred = ["distance_interval", "entropy_interval", "entropy_q_by_label", "entropy_q_by_predicted",
                "sink_share_interval", "sink_share_q_by_label"]  # fmt: skip
    assert {store.array(name).attrs.get("cluster") for name in inferred} == {"patient"}
    means = store.read("entropy_mean_by_label")
    result = statistics.analyze(tmp_path / "s.zarr", ["distance"], cluster="image")
    assert result.read == 0
    store = Store(tmp_path / "s.zarr")
    assert {store.array(name).attrs.get("cluster") for name in inferred} == {None}
    with_patients(tmp_path / "alone.zarr")
    statistics.analyze(tmp_path / "alone.zarr", ["entropy", "sink_share"], by="label")
    alone = Store(tmp_path / "alone.zarr")
    for name in ("entropy_interval", "sink_share_interval", "entropy_q_by_label", "sink_share_q_by_label"):
        np.testing.assert_array_equal(store.read(name), alone.read(name))
    np.testing.assert_array_equal(store.read("entropy_mean_by_label"), means)


def test_clusters_that_are_not_there_or_differ_between_stores_are_refused(tmp_path: Path) -> None:
    with_patients(tmp_path / "a.zarr", units=[0, 1])
    with_patients(tmp_path / "b.zarr", units=[2, 3])
    with pytest.raises(AttlasError, match="--cluster video: no column"):
        statistics.analyze(tmp_path / "a.zarr", cluster="video")
    statistics.analyze(tmp_path / "a.zarr", ["entropy"], cluster="patient")
    statistics.analyze(tmp_path / "b.zarr", ["entropy"])
    with pytest.raises(AttlasError, match=r"different clusters .*patient.*image"):
        statistics.pooled([tmp_path / "a.zarr", tmp_path / "b.zarr"], ["entropy"])
    statistics.analyze(tmp_path / "b.zarr", ["entropy"], cluster="patient")
    found = statistics.pooled([tmp_path / "a.zarr", tmp_path / "b.zarr"], ["entropy"])
    assert found.arrays["entropy_interval"].attrs["clusters"] == 6  # four patients, two images without one
