"""Maps judged by what the model says without the patches that they point at."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.analysis.judge.judging import divided
from attlas.analysis.statistics.inference import interval
from attlas.engine.runtime.pictures import crop_of
from attlas.engine.store.store import ArraySpec, Store
from attlas.errors import AttlasError, UsageError
from crashes import Crash
from support import chunk_files, make_graph
from support_judge import area, curve, imputed, of_graph, order, without

curves = pytest.importorskip("attlas.analysis.judge.curves")
fills = pytest.importorskip("attlas.analysis.judge.fills")
catalog = pytest.importorskip("attlas.analysis.catalog")
maps = pytest.importorskip("attlas.analysis.judge.maps")
lines = pytest.importorskip("attlas.analysis.judge.lines")
judging = pytest.importorskip("attlas.analysis.judge")
writing = pytest.importorskip("attlas.analysis.statistics.writing").writing

NAMES = ["rollout", "readout_map:layer=0,head=1"]
KEYS = ("rollout", "readout_map.layer-0.head-1")


@pytest.fixture
def copy(made: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the store, each with a name."""
    return lambda name: Path(shutil.copytree(made.store, tmp_path / name))


@pytest.fixture(scope="module")
def judged(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that was judged in 3 steps."""
    path = Path(shutil.copytree(made.store, tmp_path_factory.mktemp("judged") / "s.zarr"))
    attlas.judge(path, made.graph, made.images, maps=NAMES, steps=3)
    return Store(path)


def test_equals_the_slow_way(made: Any, judged: Store) -> None:
    """Curves, areas and correlation of every image and map, one run of the graph after another, to 1e-4."""
    says, spec, removed = of_graph(made.graph), judged.spec, curves.counts(6, 3)
    assert removed.tolist() == [0, 2, 4, 6]
    grey = np.full((*spec.image_size, 3), 128, np.uint8)
    for i in np.flatnonzero(judged.read("valid")):
        picture = crop_of(made.images / str(judged.read("path", int(i))), spec)
        target = int(says(picture).argmax())
        for name, values in zip(KEYS, (judged.read("rollout", i), judged.read("readout_map", i)[0, 1]), strict=True):
            low, high = (curve(says, picture, grey, values, removed, target, spec, insert=x) for x in (False, True))
            np.testing.assert_allclose(judged.read(f"deletion.mean-3.{name}", i), low, atol=1e-4)
            np.testing.assert_allclose(judged.read(f"insertion.mean-3.{name}", i), high, atol=1e-4)
            areas = np.array([area(row, removed) for row in (*low, *high)])
            patches = order(values.astype(np.float64))
            mass = [sum(float(values[at]) for at in patches[a:b]) for a, b in itertools.pairwise(removed)]
            correlation = np.corrcoef(mass, -np.diff(low[0]))[0, 1]
            wanted = [*areas, *(areas[2:] - areas[:2]), correlation]
            np.testing.assert_allclose(judged.read(f"judged.mean-3.{name}", i), wanted, atol=1e-4)


def test_a_picture_that_could_not_be_read_has_no_rows(judged: Store) -> None:
    at = ~judged.read("valid").astype(bool)
    assert at.sum() == 1
    assert np.isnan(judged.read("judged.mean-3.rollout")[at]).all()
    assert np.isfinite(judged.read("judged.mean-3.rollout")[~at]).all()


@pytest.mark.parametrize("fill", ["mean", "black", "blur"])
def test_a_fill_replaces_removed_patches_alone(judged: Store, fill: str) -> None:
    spec, picture = judged.spec, np.random.default_rng(0).integers(0, 256, (*judged.spec.image_size, 3), np.uint8)
    whole = fills.replaced(picture, np.ones((1, *spec.grid), bool), fill, spec)[0]
    removed = np.zeros((2, *spec.grid), bool)
    removed[1, 0, 2] = removed[1, 1, 1] = True
    found = fills.replaced(picture, removed, fill, spec)
    np.testing.assert_array_equal(found[0], picture)
    np.testing.assert_array_equal(found[1], without(picture, [(0, 2), (1, 1)], whole, spec))
    if fill == "blur":
        assert whole.std() < 0.3 * picture.std()
        assert abs(whole.mean() - picture.mean()) < 3
    else:
        assert (whole == {"mean": 128, "black": 0}[fill]).all()


def test_noise_is_linear_imputation_with_noise_on_top(judged: Store) -> None:
    """Rong et al. 2022: the direct solution of the same system, to 1e-4 of the range, and noise of 0.01 of it."""
    spec = judged.spec
    y, x = np.mgrid[: spec.image_size[0], : spec.image_size[1]]
    picture = np.stack([8 * x, 12 * y, 250 - 9 * x], axis=-1).astype(np.uint8)
    removed = np.array([[[True, True, False], [False, True, True]]])
    missing = fills.covered(removed, spec)[0]
    values = picture.astype(np.float64)
    values[missing] = 0
    fills.impute(values, missing)
    wanted = imputed(picture, missing)
    assert np.abs(values - wanted).max() <= 255e-4
    found = fills.replaced(picture, removed, "noise", spec, seed=3)[0].astype(float)
    np.testing.assert_array_equal(found[~missing], picture[~missing])
    off = found[missing] - wanted[missing]
    assert 2 < off[(wanted[missing] > 10) & (wanted[missing] < 245)].std() < 3.2
    everything = fills.replaced(picture, np.ones_like(removed), "noise", spec)[0]
    assert abs(everything.mean() - 127.5) < 1


def test_ties_are_broken_by_chance_the_same_way_each_time() -> None:
    first, again, other = (
        curves.ranks(np.ones((4, 5)), 7),
        curves.ranks(np.ones((4, 5)), 7),
        curves.ranks(np.ones((4, 5)), 8),
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert sorted(first.ravel()) == list(range(20))
    assert curves.ranks(np.array([[0.1, 0.5], [0.5, 0.2]]), 0)[1, 1] == 2


def test_a_perfect_map_beats_every_other_in_deletion(made: Any, copy: Callable[[str], Path]) -> None:
    """The logit's drop without each single patch, found by trying every one."""
    store = Store(copy("perfect.zarr"), writable=True)
    says, spec = of_graph(made.graph), store.spec
    grey, drops = np.full((*spec.image_size, 3), 128, np.uint8), np.full((13, *spec.grid), np.nan, np.float32)
    for i in np.flatnonzero(store.read("valid")):
        picture = crop_of(made.images / str(store.read("path", int(i))), spec)
        whole = says(picture)
        for at in np.ndindex(*spec.grid):
            drops[(i, *at)] = (whole - says(without(picture, [at], grey, spec)))[whole.argmax()]
    unit = (store.plan.unit, *spec.grid)
    store.add([ArraySpec("occlusion", ("image", "y", "x"), drops.shape, unit, "float32", np.nan)], {"occlusion": drops})
    verdict = attlas.judge(store.path, made.graph, made.images, maps=["occlusion", *NAMES], steps=6).verdict
    best, figure = verdict.maps.index("occlusion"), curves.FIGURES.index("deletion_logit")
    others = [i for i in range(len(verdict.maps)) if i != best]
    assert len(others) == 5
    assert (verdict.mean[0, best, figure] < verdict.mean[0, others, figure]).all()
    assert (verdict.difference_bounds[1, 0, best, others, figure] < 0).all()


def test_killed_at_any_moment_and_resumed_it_has_the_same_bytes(made: Any, copy: Callable[[str], Path]) -> None:
    whole, crash = copy("whole.zarr"), Crash()
    with crash.at(whole):  # which only counts
        attlas.judge(whole, made.graph, made.images, maps=NAMES, steps=3, workers=1)
    changes = crash.count
    for part in (0.2, 0.7):
        path = copy(f"killed{part}.zarr")
        with crash.at(path, int(part * changes), torn=True):
            attlas.judge(path, made.graph, made.images, maps=NAMES, steps=3, workers=1)
        assert list(path.rglob("*.partial"))  # which would be one more chunk
        result = attlas.judge(path, made.graph, made.images, maps=NAMES, steps=3)
        assert result.images == 12
        assert chunk_files(path) == chunk_files(whole)


def test_beside_another_analysis_it_is_refused(made: Any, copy: Callable[[str], Path]) -> None:
    path = copy("held.zarr")
    with writing(path), ThreadPoolExecutor(1) as other:
        judged = other.submit(attlas.judge, path, made.graph, made.images, maps=NAMES)
        with pytest.raises(AttlasError, match=r"held\.zarr: another analysis or judgement is writing it"):
            judged.result()


def test_what_is_judged_is_not_judged_again(made: Any, copy: Callable[[str], Path]) -> None:
    """Another map costs only itself; another fill stands beside."""
    path = copy("more.zarr")
    one = {"steps": 3, "workers": 1}  # what several share out at the end is read twice
    first = attlas.judge(path, made.graph, made.images, maps=["rollout"], **one)
    assert first.forwards == 12 * (2 + 4 * 4)
    assert attlas.judge(path, made.graph, made.images, maps=["rollout"], **one).forwards == 0
    more = attlas.judge(path, made.graph, made.images, maps=["received_attention"], **one)
    assert more.forwards == 12 * (2 + 4)
    assert more.verdict.maps == ("received_attention", "rollout", "uniform", "centre", "random")
    again = attlas.judge(path, made.graph, made.images, maps=["rollout"], **one, overwrite=True)
    assert again.forwards == 12 * 18
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, fill="black", target="label")
    assert [one.tag for one in judging.verdicts(Store(path))] == ["black-2-label", "mean-3"]
    assert {one.name for one in catalog.held(Store(path))} <= set(catalog.CATALOG)  # no statistics to be summed up
    assert attlas.open(path)["judged.mean-3.rollout"].dims == ("image", "judged_figure")


def test_no_worker_is_idle_at_the_end() -> None:
    """Units that are left over are divided by maps, each map once; full rounds of units are not."""
    lacking = {name: np.array([True, True, False, True]) for name in "abcd"} | {
        "e": np.array([True, False, False, False])
    }
    assert divided(lacking, 1) == [(0, [*"abcde"]), (1, [*"abcd"]), (3, [*"abcd"])]
    assert divided(lacking, 3) == divided(lacking, 1)
    assert divided(lacking, 2) == [(0, [*"abcde"]), (1, [*"abcd"]), (3, ["a", "c"]), (3, ["b", "d"])]
    assert [len(names) for _, names in divided({name: np.array([True]) for name in "abcdefg"}, 2)] == [4, 3]
    assert divided(lacking, 5) == [(k, [name]) for k in (0, 1, 3) for name in ("abcde" if k == 0 else "abcd")]
    assert divided({}, 2) == []


def test_right_and_wrong_predictions_are_summed_apart(judged: Store) -> None:
    verdict = judging.verdicts(judged)[0]
    valid = judged.read("valid").astype(bool)
    right = judged.read("logits").argmax(-1) == judged.read("label_class")
    assert verdict.images == (12, int((valid & right).sum()), int((valid & ~right).sum()))
    rows, at = judged.read("judged.mean-3.rollout").astype(float), verdict.maps.index("rollout")
    for group, mask in enumerate((valid, valid & right, valid & ~right)):
        np.testing.assert_allclose(verdict.mean[group, at], rows[mask].mean(0), rtol=1e-6)
    other = verdict.maps.index("centre")
    both = rows - judged.read("judged.mean-3.centre")
    np.testing.assert_allclose(verdict.difference[0, at, other], both[valid].mean(0), rtol=1e-6)
    np.testing.assert_allclose(verdict.difference[0, other, at], -both[valid].mean(0), rtol=1e-6)


def test_intervals_are_over_the_clusters_of_the_store(made: Any, copy: Callable[[str], Path]) -> None:
    """As those of every other mean, once an analysis has named the column."""
    path = copy("clusters.zarr")
    attlas.analyze(path, ["entropy"], cluster="label")
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=3)
    store = Store(path)
    verdict, valid = judging.verdicts(store)[0], store.read("valid").astype(bool)
    rows = store.read("judged.mean-3.rollout").astype(float)[valid]
    codes = np.unique(store.read("label")[valid], return_inverse=True)[1]
    bounds = np.stack(interval(rows, clusters=codes, within=curves.RANGE))
    assert 1 < codes.max() + 1 < valid.sum()
    np.testing.assert_allclose(verdict.bounds[:, 0, verdict.maps.index("rollout")], bounds, rtol=1e-6)
    assert dict(store.array("judged_interval.mean-3").attrs)["cluster"] == "label"


def test_probabilities_and_correlations_have_a_range_that_logits_have_not() -> None:
    """20 images that say the same leave room for one in 7.2, 1 - 0.05^(1/20), at either end of it."""
    summary = pytest.importorskip("attlas.analysis.judge.summary")
    rows, everyone, missed = np.full((20, 2, 7), 0.25), [np.ones(20, bool)], 1 - 0.05 ** (1 / 20)
    nan, share, apart = np.nan, (0.25 - 0.25 * missed, 0.25 + 0.75 * missed), 0.25 - 1.25 * missed
    mean, bounds = summary._by_group(rows, everyone, None, curves.RANGE)
    np.testing.assert_array_equal(mean, np.full((1, 2, 7), 0.25))
    np.testing.assert_allclose(bounds[0, 0, 1], [nan, share[0], nan, share[0], nan, apart, apart])
    np.testing.assert_allclose(bounds[1, 0, 1], [nan, share[1], nan, share[1], nan, share[1], share[1]])
    difference, edges = summary._paired(rows, everyone, None)
    assert (difference == 0).all()
    np.testing.assert_allclose(edges[1, 0, 0, 1], np.array([nan, 1, nan, 1, nan, 2, 2]) * missed)
    np.testing.assert_allclose(edges[:, 0, 1, 0], -edges[::-1, 0, 0, 1])
    assert [curves.RANGE[1][curves.FIGURES.index(f"insertion_{score}")] for score in curves.SCORES] == [np.inf, 1]


def test_without_labels_there_is_nothing_right_or_wrong(made: Any, tmp_path: Path) -> None:
    """And one image alone has a mean, and no interval."""
    shutil.copyfile(next(made.images.rglob("*.png")), tmp_path / "one.png")
    attlas.run(made.graph, tmp_path, tmp_path / "s.zarr")
    verdict = attlas.judge(tmp_path / "s.zarr", made.graph, tmp_path, maps=["rollout"], steps=2).verdict
    assert verdict.images == (1, 0, 0)
    assert np.isfinite(verdict.mean[0, :, :6]).all()
    assert np.isnan(verdict.mean[1:]).all()
    assert np.isnan(verdict.bounds).all()


def test_maps_of_a_second_store_are_judged_on_the_same_graph(
    made: Any, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    path, graph = copy("two.zarr"), tmp_path / "random.onnx"
    make_graph(graph, seed=9)
    attlas.run(graph, made.images, tmp_path / "random.zarr")
    result = attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=3, other=tmp_path / "random.zarr")
    assert result.verdict.maps[:2] == ("other.rollout", "rollout")
    says, spec, removed = of_graph(made.graph), Store(path).spec, curves.counts(6, 3)
    picture = crop_of(made.images / str(Store(path).read("path", 0)), spec)
    values = Store(tmp_path / "random.zarr").read("rollout", 0)
    grey = np.full((*spec.image_size, 3), 128, np.uint8)
    wanted = curve(says, picture, grey, values, removed, int(says(picture).argmax()), spec)
    np.testing.assert_allclose(Store(path).read("deletion.mean-3.other.rollout", 0), wanted, atol=1e-4)


def test_two_models_are_compared_image_by_image(made: Any, judged: Store, tmp_path: Path) -> None:
    graph, path = tmp_path / "g.onnx", tmp_path / "s.zarr"
    make_graph(graph, seed=4)
    attlas.run(graph, made.images, path)
    with pytest.raises(AttlasError, match="attlas judge"):
        judging.between(judged.path, path, tag="mean-3")
    attlas.judge(path, graph, made.images, maps=["rollout"], steps=3)
    found = {(one.map, one.figure): one for one in judging.between(judged.path, path, tag="mean-3")}
    one = found["rollout", "deletion_probability"]
    rows = [s.read("judged.mean-3.rollout")[:, 1].astype(float) for s in (judged, Store(path))]
    assert one.images == 12
    assert one.difference == pytest.approx(np.nanmean(rows[0] - rows[1]))
    assert not any("logit" in figure for _, figure in found)
    valid, clustered = judged.read("valid").astype(bool), Path(shutil.copytree(judged.path, tmp_path / "clusters.zarr"))
    attlas.analyze(clustered, ["entropy"], cluster="label")
    one = next(one for one in judging.between(clustered, path, tag="mean-3") if one.figure == "deletion_probability")
    codes = np.unique(judged.read("label")[valid], return_inverse=True)[1]
    wanted = interval((rows[0] - rows[1])[valid], clusters=codes, within=(-1, 1))
    np.testing.assert_allclose(one.bounds, wanted)


def test_a_map_of_one_s_own_is_judged(made: Any, copy: Callable[[str], Path]) -> None:
    own = attlas.Statistic("first_layer", ("y", "x"), first_layer)
    found = attlas.judge(copy("own.zarr"), made.graph, made.images, maps=[own], steps=2).verdict
    assert "first_layer" in found.maps


def first_layer(attention: Any, grid: tuple[int, int]) -> np.ndarray:
    return np.asarray(attention[0]).mean(axis=(0, 1))[1:].reshape(grid)


def test_names_are_separated_by_commas_but_parameters_stay_with_theirs() -> None:
    text = "rollout:start=1,fusion=max,chefer, readout_map:layer=11,head=2"
    assert maps.split(text) == ["rollout:start=1,fusion=max", "chefer", "readout_map:layer=11,head=2"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"maps": ["rolout"]}, "did you mean rollout"),
        ({"maps": ["distance"]}, "is no map of each image"),
        ({"maps": []}, "no map is named"),
        ({"maps": ["uniform"]}, "beside every map"),
        ({"maps": ["readout_map:layer=2"]}, "there are layers 0 to 1"),
        ({"maps": ["rollout:head=0"]}, "one map for all heads"),
        ({"steps": 1}, "from 2 to 6"),
        ({"steps": 7}, "from 2 to 6"),
        ({"fill": "pink"}, "there are mean, blur, black, noise"),
        ({"target": "9"}, "classes 0 to 3"),
    ],
)
def test_refuses_what_cannot_be_judged(made: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        attlas.judge(made.store, made.graph, made.images, **{"maps": ["rollout"], "steps": 3} | given)
    assert "\n" not in str(error.value)


def test_refuses_another_model_and_other_images(made: Any, tmp_path: Path) -> None:
    make_graph(tmp_path / "other.onnx", grid=(2, 2))
    with pytest.raises(AttlasError, match="is not of the store's model"):
        attlas.judge(made.store, tmp_path / "other.onnx", made.images, maps=["rollout"], steps=3)
    make_graph(tmp_path / "weights.onnx", seed=5)
    with pytest.raises(AttlasError, match="logits are not those of the run"):
        attlas.judge(made.store, tmp_path / "weights.onnx", made.images, maps=["rollout"], steps=3)
    shutil.copytree(made.images, tmp_path / "images")
    first = next((tmp_path / "images").rglob("*.png"))
    first.write_bytes(first.read_bytes() + b"0")
    with pytest.raises(AttlasError, match="1 image is not the store's"):
        attlas.judge(made.store, made.graph, tmp_path / "images", maps=["rollout"], steps=3)
    first.unlink()
    with pytest.raises(AttlasError, match="lacks 1 of the store's 13 images"):
        attlas.judge(made.store, made.graph, tmp_path / "images", maps=["rollout"], steps=3)


class Elsewhere(Executor):
    """Another process, as far as what is sent to it goes: everything goes through a pickle."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        call, given, named = pickle.loads(pickle.dumps((fn, args, kwargs)))
        future.set_result(pickle.loads(pickle.dumps(call(*given, **named))))
        return future


def test_an_executor_gives_the_same_rows(made: Any, judged: Store, copy: Callable[[str], Path]) -> None:
    path = copy("pool.zarr")
    attlas.judge(path, made.graph, made.images, maps=NAMES, steps=3, executor=Elsewhere(), workers=1)
    assert chunk_files(path) == chunk_files(judged.path)


def test_a_layer_that_was_not_kept_is_refused(made: Any, tmp_path: Path) -> None:
    """Its map would be NaN for every image, and of the last layer it is meant without being named."""
    attlas.run(made.graph, made.images, tmp_path / "s.zarr", layers=[0])
    for name in ("readout_map", "readout_map:layer=1,head=0"):
        with pytest.raises(UsageError, match=r"readout_map: layer 1 was not kept in .*; say layer=, of 0, or run"):
            attlas.judge(tmp_path / "s.zarr", made.graph, made.images, maps=[name], steps=2)


def test_a_map_without_values_is_not_the_largest(made: Any, copy: Callable[[str], Path]) -> None:
    """Old stores may hold one, and where it comes first, everything was compared with it."""
    verdict = attlas.judge(copy("s.zarr"), made.graph, made.images, maps=["rollout"], steps=2).verdict
    mean = verdict.mean.copy()
    mean[:, 0] = np.nan
    found = list(lines.verdict_lines(dataclasses.replace(verdict, mean=mean)))
    best = verdict.maps[1 + int(mean[0, 1:, curves.FIGURES.index("difference_probability")].argmax())]
    assert f"difference of {best}, the largest, from others, image by image:" in found
