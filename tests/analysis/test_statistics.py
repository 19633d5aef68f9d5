"""Analysing a store: rows per image, the dataset's statistics, what resumes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.engine.store.store import Store
from attlas.errors import AttlasError
from attlas.exporter.spec import GraphSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from support_statistics import BATCH, BROKEN, IMAGES, NORMED, SPEC, attention, fill_unit, good, make_store

statistics = pytest.importorskip("attlas.analysis.statistics")

moments = pytest.importorskip("attlas.analysis.statistics.moments")

catalog = pytest.importorskip("attlas.analysis.catalog")

gradients = pytest.importorskip("attlas.analysis.statistics.gradients")


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_default_gives_rows_and_the_datasets_statistics_of_the_stored_values(tmp_path: Path, dtype: str) -> None:
    """Against plain numpy over the formulas in float64, unreadable images left out."""
    made = make_store(tmp_path / "s.zarr", dtype=dtype)
    seen: list[Any] = []
    result = statistics.analyze(tmp_path / "s.zarr", workers=2, progress=seen.append)
    assert (seen[0].done, seen[-1].done, result.images, result.finished) == (0, IMAGES, IMAGES - 1, True)
    assert "1 of 22 images is left out, which could not be read" in result.notes[0]
    store = Store(tmp_path / "s.zarr")
    raw = made.read("attention_code" if dtype == "uint8" else "attention")
    a = f.decode_codes(raw, np.float64) if dtype == "uint8" else raw.astype(np.float64)
    expected = {
        "distance": f.distance(a, SPEC.grid, SPEC.patch_size),
        "distance_renormalized": f.distance_renormalized(a, SPEC.grid, SPEC.patch_size),
        "entropy": f.entropy(a),
        "entropy_patch": f.entropy_patch(a, 1),
        "prefix_mass": f.prefix_mass(a, 1),
        "rollout": f.rollout([a[:, 0], a[:, 1]], SPEC.grid),
    }
    for name, value in expected.items():
        got = store.read(name)
        assert np.isnan(got[BROKEN]).all()
        np.testing.assert_allclose(good(got), good(value), rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(store.read(f"{name}_mean"), good(value).mean(0), rtol=2e-6)
        if name != "rollout":
            np.testing.assert_allclose(store.read(f"{name}_std"), good(value).std(0, ddof=1), rtol=1e-4)
            wanted = np.quantile(good(value), store.read("quantile"), axis=0)
            np.testing.assert_allclose(store.read(f"{name}_quantile"), wanted, rtol=2e-6, atol=1e-7)
            assert store.dims(f"{name}_interval")[0] == "bound"
    scores = np.stack([f.score_matrix(a[:, layer], SPEC.grid) for layer in range(2)], 1)
    np.testing.assert_allclose(store.read("score_matrix_mean"), good(scores).mean(0), rtol=2e-6)


def test_what_the_run_made_is_kept_and_summed_up_without_reading_attention(tmp_path: Path) -> None:
    made = make_store(tmp_path / "s.zarr", keep=("none",), reduce=True)
    before = made.read("entropy").tobytes()
    result = statistics.analyze(tmp_path / "s.zarr")
    assert (result.made, result.read) == ((), 0)
    store = Store(tmp_path / "s.zarr")
    assert store.read("entropy").tobytes() == before
    assert "entropy_interval" in store


def test_threads_do_not_change_a_bit(tmp_path: Path) -> None:
    for workers in (1, 3):
        make_store(tmp_path / f"{workers}.zarr")
        statistics.analyze(tmp_path / f"{workers}.zarr", workers=workers)
    one, three = (Store(tmp_path / f"{n}.zarr") for n in (1, 3))
    for name in one.attrs["analyzed"]:
        assert one.read(name).tobytes() == three.read(name).tobytes()


def test_new_units_cost_only_themselves_and_end_where_one_analysis_would(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", units=[0, 3])
    first = statistics.analyze(tmp_path / "s.zarr")
    assert not first.finished
    assert "2 of 6 units" in first.notes[0]
    assert first.images == 8
    for k in (1, 2, 4, 5):
        fill_unit(store, k, attention())
    second = statistics.analyze(tmp_path / "s.zarr")
    assert second.read == first.read * 14 // 8
    assert statistics.analyze(tmp_path / "s.zarr").read == 0
    make_store(tmp_path / "whole.zarr")
    statistics.analyze(tmp_path / "whole.zarr")
    whole, parts = Store(tmp_path / "whole.zarr"), Store(tmp_path / "s.zarr")
    for name in whole.attrs["analyzed"]:
        if whole.array(name).dtype.kind == "f":
            np.testing.assert_allclose(parts.read(name), whole.read(name), rtol=1e-12)


def test_overwrite_computes_anew_what_analysis_wrote(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr")
    first = statistics.analyze(tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr", writable=True)
    right = store.read("entropy")
    store.write("entropy", 0, right * 0)
    assert statistics.analyze(tmp_path / "s.zarr", overwrite=True).read == first.read
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("entropy"), right)


def test_every_name_of_the_catalog_gives_an_array_of_its_dims(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", spec=NORMED)
    asked = {name: s for name, s in catalog.CATALOG.items() if s.listed and not gradients.weighs(s)}
    result = statistics.analyze(tmp_path / "s.zarr", [name for name in asked if name != "distance"])
    store = Store(tmp_path / "s.zarr")
    for name, statistic in ((n, s) for n, s in asked.items() if s.formula is not None and n != "distance"):
        if statistic.rows:
            assert store.dims(name) == ("image", *statistic.dims)
            assert np.isfinite(good(store.read(name))).all()
            assert f"{name}_mean" in result.summed
            assert (f"{name}_interval" in store) == statistic.scalar
        else:
            assert store.dims(name) == statistic.dims
    a = store.read("attention").astype(np.float64)
    assert store.dims("token_norm_mean") == ("layer", "token")
    np.testing.assert_allclose(store.read("value_norm_mean"), good(store.read("value_norm")).mean(0), rtol=1e-6)
    queries = good(f.row_entropy(a))
    assert (store.read("entropy_histogram").sum(-1) == queries.size / 4).all()
    assert store.read("entropy_edge")[[0, -1]] == pytest.approx([0, np.log(7)])
    np.testing.assert_allclose(store.read("attention_matrix_mean"), good(a).mean(0), rtol=1e-6)
    explained = f.rollout_vit_explain([a[:, 0], a[:, 1]], SPEC.grid)
    np.testing.assert_allclose(good(store.read("rollout_vit_explain")), good(explained), rtol=1e-5)
    assert "distance_mean" not in store


def test_intervals_of_what_is_never_below_0_end_there(tmp_path: Path) -> None:
    """Attention that hardly moves but in one image of five; mixed attention may be below 0, and so may its interval."""
    for kind, low in (("probability", 0), ("mixed", -1)):
        spec = dataclasses.replace(SPEC, attention_kind=kind)
        store = make_store(tmp_path / f"{kind}.zarr", spec=spec, units=[0])
        even = np.zeros((4, 1, *store.array("attention").shape[2:]), np.float16)
        even[..., 0] = 1  # all on the class token: every distance is 0
        even[0, ..., 6] = 0.5
        store.write("attention", 0, even[:2], slice(0, 1))
        store.write("attention", 2, even[2:], slice(0, 1))
        statistics.analyze(store.path, ["distance", "position_deviation"])
        found = Store(store.path)
        bounds = found.read("distance_interval")[:, 0]
        assert (bounds[0] == 0).all() if low == 0 else (bounds[0] < 0).all()
        assert (bounds[1] > 0).all()
        assert "equal values" not in found.array("distance_interval").attrs["method"]


def test_outlying_norms_need_no_attention(tmp_path: Path) -> None:
    """Of a run that kept none: share and place of patches above a multiple of the median, or above a cut."""
    made = make_store(tmp_path / "s.zarr", keep=("none",), spec=NORMED, reduce=True)
    asked = ["norm_outlier_share:times=1.2", "norm_outlier_map:above=1.7"]
    assert statistics.analyze(tmp_path / "s.zarr", [*asked, "norm_outlier_share"]).made
    store, norms = Store(tmp_path / "s.zarr"), good(made.read("token_norm"))[..., 1:]
    share = (norms > 1.2 * np.median(norms, axis=-1, keepdims=True)).mean(-1)
    assert 0 < share.mean() < 1
    np.testing.assert_allclose(good(store.read("norm_outlier_share.times-1.2")), share, rtol=1e-6)
    places = (norms > 1.7).reshape(-1, 2, 2, 3)
    np.testing.assert_allclose(store.read("norm_outlier_map.above-1.7_mean"), places.mean(0), rtol=1e-6)
    make_store(tmp_path / "n.zarr")
    with pytest.raises(AttlasError, match=r"norm_outlier_share needs token_norm, .* --norms"):
        statistics.analyze(tmp_path / "n.zarr", ["norm_outlier_share"])


def test_some_layers_give_what_needs_no_others(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", layers=(1,))
    statistics.analyze(tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr")
    assert "rollout" not in store
    assert np.isnan(store.read("entropy_mean")[0]).all()
    a = store.read("attention", (slice(None), 1)).astype(np.float64)
    np.testing.assert_allclose(store.read("entropy_mean")[1], good(f.entropy(a)).mean(0), rtol=1e-6)
    with pytest.raises(AttlasError, match="without --layers"):
        statistics.analyze(tmp_path / "s.zarr", ["rollout"])


@pytest.mark.parametrize(
    ("store", "names", "match"),
    [
        ({}, ["entropie"], "did you mean entropy"),
        ({"keep": ("none",)}, ["self_mass"], "--keep attention"),
        ({"keep": ("none",)}, None, "neither attention nor statistics"),
        ({"dtype": "uint8"}, ["rollout_vit_explain"], "--store-dtype float16"),
        ({"dtype": "uint8"}, ["sink_share"], "sink_share depends on single values"),
        ({"dtype": "uint8"}, ["chefer"], "--keep gradient_positive"),
        ({"dtype": "uint8"}, ["gradient_rollout"], "--keep gradient_mean"),
        ({"dtype": "uint8"}, ["head_importance"], "--keep attention,gradient"),
        ({}, ["norm_weighted_entropy"], "--norms"),
        ({}, ["token_norm"], "--norms"),
        ({"layers": (1,)}, ["rollout_vit_explain"], "without --layers"),
        ({"spec": dataclasses.replace(SPEC, attention_kind="mixed")}, ["effective_tokens"], "mixes"),
        ({"spec": dataclasses.replace(SPEC, attention_kind="mixed")}, ["entropy_histogram"], "mixes"),
        ({"spec": dataclasses.replace(SPEC, attention_kind="mixed")}, ["head_similarity"], "mixes"),
        ({"spec": dataclasses.replace(SPEC, attention_kind="mixed")}, ["entropy"], "mixes"),
    ],
)
def test_a_store_without_what_is_needed_says_what_would_have_kept_it(
    tmp_path: Path, store: dict[str, Any], names: list[str] | None, match: str
) -> None:
    make_store(tmp_path / "s.zarr", **store)
    with pytest.raises(AttlasError, match=match):
        statistics.analyze(tmp_path / "s.zarr", names)
    assert not Store(tmp_path / "s.zarr").attrs.get("analyzed")


def test_a_store_with_nothing_done_is_analysed_for_nothing(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", units=[])
    result = statistics.analyze(tmp_path / "s.zarr")
    assert result.images == 0
    assert "nothing to sum up" in " ".join(result.notes)


@given(st.integers(1, 40), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_moments_merge_to_what_all_images_give(images: int, seed: int) -> None:
    """Counts equal, means to 1e-12 and deviations to 1e-9, over random splits, far from 0 and with NaN."""
    random = np.random.default_rng(seed)
    values = 1e4 + random.normal(size=(images, 3, 2))
    values[random.random(values.shape) < 0.1] = np.nan
    cuts = np.sort(random.integers(0, images + 1, 3))
    parts = [moments.Moments.of(part) for part in np.split(values, cuts)]
    merged, whole = sum(parts[1:], start=parts[0]), moments.Moments.of(values)
    np.testing.assert_array_equal(merged.count, whole.count)
    np.testing.assert_allclose(merged.average, whole.average, rtol=1e-12)
    np.testing.assert_allclose(merged.std, whole.std, rtol=1e-9, atol=1e-9)
    if not np.isnan(values).any() and images > 1:
        np.testing.assert_allclose(whole.std, values.std(0, ddof=1), rtol=1e-9)


def test_quantiles_leave_nan_out() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[:20, 1], values[:, 2] = np.nan, np.nan
    quantile = moments.quantiles(values)
    np.testing.assert_allclose(quantile[:, 1], np.quantile(values[20:, 1], moments.QUANTILES))
    assert np.isnan(quantile[:, 2]).all()


# -- the Dataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_open_gives_attention_as_float32_beside_its_statistics_without_loading(tmp_path: Path, dtype: str) -> None:
    dask_array = pytest.importorskip("dask.array")
    dataset = pytest.importorskip("attlas.analysis.dataset")
    make_store(tmp_path / "s.zarr", dtype=dtype, units=[0, 1, 2])
    statistics.analyze(tmp_path / "s.zarr")
    opened = dataset.open(tmp_path / "s.zarr")
    a = opened["attention"]
    assert a.dims == ("image", "layer", "head", "query", "key")
    assert (a.dtype, "attention_code" in opened) == (np.float32, False)
    assert isinstance(a.data, dask_array.Array)
    assert a.data.chunks[:2] == ((BATCH,) * 11, (1, 1))
    bound = 0.03 if dtype == "uint8" else 1e-3
    np.testing.assert_allclose(a[3].values, attention()[3], atol=bound)
    np.testing.assert_allclose(a[:4].sum("key").values, 1, atol=1e-3)
    assert np.isnan(a[12:]).all()
    assert opened["entropy_mean"].dims == ("layer", "head")
    assert opened["entropy"].attrs["units"] == "nats"
    assert opened["entropy_interval"].sel(bound="lower").shape == (2, 2)
    assert list(opened["prefix"].values) == ["class"]
    assert opened["path"].values[3] == "a/003.png"
    assert set(opened.coords) >= {"path", "label", "label_class", "valid", "done", "layer", "prefix", "class"}
    assert (int(opened["done"].sum()), opened.attrs["units_done"]) == (12, 3)
    assert GraphSpec.from_json(opened.attrs["spec"], "test") == SPEC
    mean = a.where(opened["valid"] & opened["done"]).mean("image")
    wanted = np.delete(attention()[:12], BROKEN, axis=0).mean(0)
    np.testing.assert_allclose(mean, wanted, atol=bound)


def test_open_takes_other_chunks(tmp_path: Path) -> None:
    dataset = pytest.importorskip("attlas.analysis.dataset")
    make_store(tmp_path / "s.zarr")
    opened = dataset.open(tmp_path / "s.zarr", chunks={"image": 8, "layer": 2})
    assert opened["attention"].data.chunks[:2] == ((8, 8, 6), (2,))


@pytest.mark.parametrize("chunks", ["auto", {"image": 8}, {"image": -1, "layer": 1}, 6])
def test_other_chunks_leave_images_to_be_grouped_and_chosen(tmp_path: Path, chunks: Any) -> None:
    dataset = pytest.importorskip("attlas.analysis.dataset")
    make_store(tmp_path / "s.zarr")
    statistics.analyze(tmp_path / "s.zarr")
    plain, opened = dataset.open(tmp_path / "s.zarr"), dataset.open(tmp_path / "s.zarr", chunks=chunks)
    assert opened["attention"].data.chunks != plain["attention"].data.chunks
    means = [ds["entropy"].groupby("label").mean().values for ds in (plain, opened)]
    np.testing.assert_allclose(means[1], means[0], rtol=1e-6)
    assert opened["attention"].sel(layer=1).isel(image=3, head=0).shape == (7, 7)
    assert opened["path"].values[3] == "a/003.png"


@pytest.mark.parametrize("chunks", [{"imag": 3}, "automatic", {"image": "some"}])
def test_chunks_that_are_none_are_one_line(tmp_path: Path, chunks: Any) -> None:
    dataset = pytest.importorskip("attlas.analysis.dataset")
    make_store(tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match=r"chunks=.*; give sizes by dimension, such as \{'image': 64\}, or 'auto'"):
        dataset.open(tmp_path / "s.zarr", chunks=chunks)


def test_what_is_opened_can_be_written_as_netcdf(tmp_path: Path) -> None:
    """Attributes that nest are JSON there; the oldest netCDF has neither bytes nor text, so that numbers alone go."""
    xarray = pytest.importorskip("xarray")
    dataset = pytest.importorskip("attlas.analysis.dataset")
    store = make_store(tmp_path / "s.zarr")
    root = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())
    root["attributes"] |= {"versions": {"numpy": "2"}, "selection": None}
    (tmp_path / "s.zarr" / "zarr.json").write_text(json.dumps(root))
    statistics.analyze(tmp_path / "s.zarr", ["entropy", "rollout"])
    opened = dataset.open(store.path)
    for variable in (opened, *opened.variables.values()):
        assert all(isinstance(value, str | int | float | np.number) for value in variable.attrs.values())
        assert not any(isinstance(value, bool) for value in variable.attrs.values())
    numbers = opened[["entropy", "entropy_mean", "rollout_mean"]].reset_coords(drop=True)
    numbers.to_netcdf(tmp_path / "s.nc", engine="scipy")
    back = xarray.open_dataset(tmp_path / "s.nc", engine="scipy")
    np.testing.assert_array_equal(back["entropy_mean"], Store(store.path).read("entropy_mean"))
    assert json.loads(back.attrs["versions"]) == {"numpy": "2"}
    assert json.loads(back["entropy_mean"].attrs["units_summed"]) == [[0, 6]]


def test_open_of_no_store_says_so(tmp_path: Path) -> None:
    dataset = pytest.importorskip("attlas.analysis.dataset")
    with pytest.raises(AttlasError, match="no such store"):
        dataset.open(tmp_path / "none.zarr")
