"""Parts of a dataset's statistics: computed anywhere, merged, equal to one pass; several stores; interruptions."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from support_statistics import IMAGES, NORMED, SPEC, attention, fill_unit, make_store

statistics = pytest.importorskip("attlas.analysis.statistics")
partials = pytest.importorskip("attlas.analysis.statistics.partials")
moments = pytest.importorskip("attlas.analysis.statistics.moments")
histograms = pytest.importorskip("attlas.analysis.formulas.histograms")

NAMES = ["entropy", "rollout", "prefix_mass", "attention_matrix_mean", "offset_map_mean", "entropy_histogram",
         "distance_renormalized_histogram", "received_attention"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    make_store(path)
    return path


def equal(one: Any, other: Any) -> None:
    """Counts exactly, means to 1e-12, deviations to 1e-9."""
    if isinstance(one, moments.Moments):
        np.testing.assert_array_equal(one.count, other.count)
        np.testing.assert_allclose(one.average, other.average, rtol=1e-12)
        np.testing.assert_allclose(one.std, other.std, rtol=1e-9, atol=1e-9)
    elif isinstance(one, moments.Totals):
        assert one.count == other.count
        np.testing.assert_allclose(one.average, other.average, rtol=1e-12)
    else:
        np.testing.assert_array_equal(one, other)


@given(st.permutations(range(6)), st.lists(st.integers(0, 6), min_size=2, max_size=2))
@settings(max_examples=8, deadline=None)
def test_random_splits_merge_to_one_pass(made: Path, order: list[int], cuts: list[int]) -> None:
    """Whatever units a part has, and after a way through a pickle: counts and histograms equal, means to 1e-12."""
    whole = partials.partial_statistics(made, range(6), NAMES, by="label", keep_rows=False)
    low, high = sorted(cuts)
    parts = [partials.partial_statistics(made, units, NAMES, by="label", keep_rows=False)
             for units in (order[:low], order[low:high], order[high:])]  # fmt: skip
    merged = partials.merge(pickle.loads(pickle.dumps(part)) for part in parts)
    assert sorted(merged.units) == list(range(6))
    assert merged.images == whole.images == IMAGES - 1
    assert merged.sums.keys() == whole.sums.keys() == set(NAMES)
    for name, value in whole.sums.items():
        equal(merged.sums[name], value)
    assert merged.groups.keys() == {"entropy", "rollout", "prefix_mass", "received_attention"}
    for name, groups in whole.groups.items():
        assert merged.groups[name].keys() == groups.keys()
        for key, value in groups.items():
            equal(merged.groups[name][key], value)


def test_parts_leave_a_store_without_places_for_rows_as_it_was(made: Path) -> None:
    before = sorted(made.rglob("*"))
    part = partials.partial_statistics(made, [0], ["entropy", "received_attention"])
    assert part.made == frozenset()
    assert sorted(made.rglob("*")) == before


def test_a_unit_is_not_counted_twice(made: Path) -> None:
    part = partials.partial_statistics(made, [1], ["entropy"], keep_rows=False)
    with pytest.raises(UsageError, match="unit 1 is in both"):
        partials.merge([part, part])


def test_processes_give_what_threads_give(tmp_path: Path) -> None:
    """Bit for bit: the executor is handed units, and rows are written by whoever computed them."""
    for name in ("threads", "processes"):
        make_store(tmp_path / f"{name}.zarr")
    statistics.analyze(tmp_path / "threads.zarr", by="label")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        result = statistics.analyze(tmp_path / "processes.zarr", by="label", executor=pool)
    assert "entropy" in result.made
    one, other = Store(tmp_path / "threads.zarr"), Store(tmp_path / "processes.zarr")
    for name in one.attrs["analyzed"]:
        assert one.read(name).tobytes() == other.read(name).tobytes() or one.array(name).dtype.kind == "T"


@pytest.mark.parametrize("names", [[*NAMES, "attention_matrix_mean"], ["entropy_histogram"]])
def test_a_resumed_run_costs_only_the_new_units(tmp_path: Path, names: list[str]) -> None:
    """Counted in bytes of attention, for rows, maps and histograms alike; and the end is that of one analysis."""
    store = make_store(tmp_path / "s.zarr", units=[0, 1])
    first = statistics.analyze(tmp_path / "s.zarr", names)
    assert statistics.analyze(tmp_path / "s.zarr", names).read == 0
    for k in (2, 3, 4, 5):
        fill_unit(store, k, attention())
    assert statistics.analyze(tmp_path / "s.zarr", names).read == first.read * (IMAGES - 8) // 8
    make_store(tmp_path / "whole.zarr")
    statistics.analyze(tmp_path / "whole.zarr", names)
    whole, parts = Store(tmp_path / "whole.zarr"), Store(tmp_path / "s.zarr")
    for name in whole.attrs["analyzed"]:
        if whole.array(name).dtype.kind == "i":
            np.testing.assert_array_equal(parts.read(name), whole.read(name))
        elif whole.array(name).dtype.kind == "f":
            np.testing.assert_allclose(parts.read(name), whole.read(name), rtol=1e-12)


def test_a_plain_analysis_brings_everything_that_was_made_up_to_date(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", units=[0, 1])
    statistics.analyze(tmp_path / "s.zarr", ["self_mass", "attention_matrix_mean"])
    fill_unit(store, 2, attention())
    statistics.analyze(tmp_path / "s.zarr")
    found = Store(tmp_path / "s.zarr")
    assert found.array("self_mass_mean").attrs["images"] == 11
    assert found.array("attention_matrix_mean").attrs["images"] == 11
    assert np.isfinite(found.read("self_mass")[8:12]).all()


def test_a_reopened_unit_is_not_left_in_a_sum(tmp_path: Path) -> None:
    """Its share cannot be taken out again, so the sum starts anew."""
    store = make_store(tmp_path / "s.zarr")
    statistics.analyze(tmp_path / "s.zarr", ["attention_matrix_mean"])
    store.reopen(2)
    statistics.analyze(tmp_path / "s.zarr", ["attention_matrix_mean"])
    a = store.read("attention").astype(np.float64)
    kept = [i for i in range(IMAGES) if i not in (5, 8, 9, 10, 11)]
    got = Store(tmp_path / "s.zarr").read("attention_matrix_mean")
    np.testing.assert_allclose(got, a[kept].mean(0), rtol=1e-9)


def test_an_interrupted_analysis_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Rows and sums of the units before the interruption are not made again."""
    make_store(tmp_path / "s.zarr")

    def stop(progress: Any) -> None:
        if progress.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        statistics.analyze(tmp_path / "s.zarr", ["entropy", "attention_matrix_mean"], workers=1, progress=stop)
    whole = statistics.analyze(make_store(tmp_path / "w.zarr").path, ["entropy", "attention_matrix_mean"])
    rest = statistics.analyze(tmp_path / "s.zarr", ["entropy", "attention_matrix_mean"])
    assert rest.read <= whole.read * (IMAGES - 12) // IMAGES
    one, other = Store(tmp_path / "s.zarr"), Store(tmp_path / "w.zarr")
    for name in ("attention_matrix_mean", "entropy_mean", "entropy_interval"):
        np.testing.assert_allclose(one.read(name), other.read(name), rtol=1e-12)


# -- several stores ---------------------------------------------------------------------------------------------------


def test_stores_sum_up_to_what_one_store_of_all_images_gives(tmp_path: Path) -> None:
    """Two halves and the whole, every kind of array: counts equal, means to 1e-12, quantiles and intervals equal."""
    names = [*NAMES, "self_mass", "norm_weighted_entropy", "token_norm"]
    for name, units in {"a": [0, 3, 4], "b": [1, 2, 5], "whole": None}.items():
        make_store(tmp_path / f"{name}.zarr", units=units, spec=NORMED)
        statistics.analyze(tmp_path / f"{name}.zarr", names)
        statistics.analyze(tmp_path / f"{name}.zarr", by="label")
    found = statistics.pooled([tmp_path / "a.zarr", tmp_path / "b.zarr"], by="label")
    whole = Store(tmp_path / "whole.zarr")
    assert found.images == IMAGES - 1
    summed = {name for name in whole.attrs["analyzed"] if whole.dims(name)[:1] != ("image",)}
    assert found.arrays.keys() == summed
    for name, (dims, values, _) in found.arrays.items():
        wanted = whole.read(name)
        assert dims == whole.dims(name)
        if values.dtype.kind != "f":
            assert (values == wanted).all()
        elif "_q_by_" in name:  # permutations draw other images where these stand in another order
            np.testing.assert_allclose(values, wanted, atol=0.15)
        else:
            np.testing.assert_allclose(values, wanted, rtol=1e-9 if "_std" in name else 1e-12, atol=1e-14)


def test_stores_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    one = make_store(tmp_path / "a.zarr").path
    other = make_store(tmp_path / "b.zarr", spec=dataclasses.replace(SPEC, model="vit_other")).path
    with pytest.raises(UsageError, match="different graphs"):
        statistics.pooled([one, other])
    with pytest.raises(AttlasError, match=r"attlas analyze .* entropy"):
        statistics.pooled([one], ["entropy"])
    statistics.analyze(one)
    with pytest.raises(AttlasError, match="--by label"):
        statistics.pooled([one], ["entropy"], by="label")
    assert "21 paths are in more than one" in statistics.pooled([one, one]).notes[0]


# -- histograms -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.5, 5.5, width=32), max_size=40))
@settings(max_examples=40, deadline=None)
def test_histogram_counts_as_numpy_does_with_the_ends_open(values: list[float]) -> None:
    edges = histograms.entropy_edges(100, bins=7)
    v = np.array([*values, np.nan], np.float32)
    wanted, _ = np.histogram(np.clip(v[:-1], 0, np.float32(edges[-1])), np.asarray(edges, np.float32))
    np.testing.assert_array_equal(histograms.histogram(v, edges), wanted)


def test_histogram_refuses_edges_that_do_not_increase() -> None:
    with pytest.raises(UsageError, match="increasing"):
        histograms.histogram(np.zeros(3), (0.0, 1.0, 1.0))


def test_distance_edges_end_at_the_farthest_patches() -> None:
    assert histograms.distance_edges((4, 5), (3, 3), bins=2) == (0, 7.5, 15)


def test_a_damaged_chunk_is_an_error_and_never_a_number(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr")
    chunk = store.chunk_path("attention", (3, 1, 0, 0, 0))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(AttlasError, match=r"checksum.*--repair"):
        statistics.analyze(tmp_path / "s.zarr")
