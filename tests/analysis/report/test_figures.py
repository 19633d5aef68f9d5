"""The figures of a report: their numbers are the store's, whatever the model and whatever the run kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from attlas.engine.store.store import Store
from attlas.exporter.spec import Output, Weights
from support import PATCH
from support_report import (
    BROKEN,
    IMAGES,
    add,
    coco,
    context_of,
    heads_of,
    make_store,
    read,
    rows_of,
    spec_of,
)

pytest.importorskip("matplotlib")
page = pytest.importorskip("attlas.analysis.report.page")
examples = pytest.importorskip("attlas.analysis.report.sections.examples")
formulas = pytest.importorskip("attlas.analysis.formulas")
methods = pytest.importorskip("attlas.analysis.report.text.methods")
objects = pytest.importorskip("attlas.analysis.report.sections.objects")
groups = pytest.importorskip("attlas.analysis.report.sections.groups")
positions = pytest.importorskip("attlas.analysis.report.sections.positions")


def test_a_model_without_prefix_tokens_is_read_from_its_patches(tmp_path: Path) -> None:
    """No row 0 is taken for a class token: the readout is the mean of the patch rows."""
    store = make_store(tmp_path / "s.zarr", spec_of(prefix=(), weights=Weights("pretrained", "0")))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", only=["prefix_mass"]))
    assert "mean of the patch rows" in seen.text
    assert "has no prefix token" in seen.text
    image = [i for i in store.plan.sample if i != BROKEN][3]
    wanted = store.read("attention", (image, 1)).astype(np.float32).mean(axis=1) * 15
    np.testing.assert_allclose(heads_of(store), wanted.ravel(), rtol=1e-5)


def test_a_pools_own_map_is_the_readout(tmp_path: Path) -> None:
    spec = spec_of(prefix=(), pooling="pool")
    shape = (None, 2, 1, spec.tokens)
    pool = Output("pool_attention", ("image", "pool_head", "pool_query", "key"), shape)
    store = make_store(tmp_path / "s.zarr", dataclasses.replace(spec, outputs=(*spec.outputs, pool)))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1, only=["examples"]))
    assert "pool's attention of layer" in seen.text
    image = [i for i in store.plan.sample if i != BROKEN][3]
    wanted = store.read("pool_attention", image)[:, 0] * 15
    np.testing.assert_allclose(heads_of(store), wanted.ravel(), rtol=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["mean", "uint8"])
def test_head_means_and_codes_show_what_they_can(tmp_path: Path, kind: str) -> None:
    """Codes give every figure and a warning."""
    if kind == "mean":
        make_store(tmp_path / "s.zarr", spec_of(attention_kind="mixed"))
    else:
        make_store(tmp_path / "s.zarr", dtype="uint8")
    only = ["entropy"] if kind == "mean" else []
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1, only=only))
    if kind == "mean":
        assert "rows are no distributions, and have no entropy" in seen.text
    else:
        assert "uint8 codes, good for averages" in seen.text
        assert len(seen.captions) == 13


@pytest.mark.usefixtures("quick_print")
def test_two_stores_stand_side_by_side_on_the_images_they_share(tmp_path: Path) -> None:
    """In image widths, and the paired difference is that of the stores' own numbers."""
    make_store(tmp_path / "one.zarr")
    make_store(tmp_path / "two.zarr", spec_of(grid=(4, 4), prefix=(), layers=2, tag="other"), seed=3, images=16)
    both = [tmp_path / "one.zarr", tmp_path / "two.zarr"]
    only = ["compare", "compare_further", "distance", "mean_scores"]
    _, seen = read(page.report(both, tmp_path / "r.html", figures=tmp_path / "f", examples=0, only=only))
    assert "The same n = 15 images in every store" in seen.captions[0]
    labels = ("one", "two")
    assert all(label in seen.headings for label in labels)
    assert {"compare_distance_renormalized.csv", f"{labels[0]}-distance.pdf", f"{labels[1]}-score_matrix_mean.png"} <= {
        p.name for p in (tmp_path / "f").iterdir()
    }
    images = [i for i in range(16) if i != BROKEN]
    widths = [5 * PATCH, 4 * PATCH]
    mine = [Store(p).read("distance_renormalized")[images] / w for p, w in zip(both, widths, strict=True)]
    rows = rows_of(tmp_path / "f" / "compare_distance_renormalized.csv")
    for label, values in zip(labels, mine, strict=True):
        found = [float(r["mean"]) for r in rows if r["store"] == label]
        np.testing.assert_allclose(found, values.mean(axis=(0, 2)), rtol=1e-5)
    assert f"{float(mine[1].mean() - mine[0].mean()):+.3g}" in seen.text


def test_stores_of_other_images_are_not_paired(tmp_path: Path) -> None:
    make_store(tmp_path / "one.zarr", images=8)
    store = make_store(tmp_path / "two.zarr", images=8, seed=2)
    store.array("path")[...] = np.array([f"other/{i}.png" for i in range(8)], dtype=np.dtypes.StringDType())
    _, seen = read(page.report([tmp_path / "one.zarr", tmp_path / "two.zarr"], tmp_path / "r.html", only=["compare"]))
    assert "share no images by path" in seen.captions[0]
    assert "Paired difference of" not in seen.text


@pytest.mark.usefixtures("quick_print")
def test_what_an_analysis_was_asked_for_is_shown_too(tmp_path: Path) -> None:
    """Shares of attention add up to 1, and the registers' share is the sum of theirs; without, the page says how."""
    make_store(tmp_path / "s.zarr", spec_of(prefix=("class", "register", "register"), heads=4))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", only=["masses"]))
    assert "attlas analyze s.zarr self_mass neighbour_mass" in seen.text
    names = ["self_mass", "neighbour_mass", "rest_mass", "sink_share", "position_deviation", "offset_map_mean"]
    pytest.importorskip("attlas.analysis.statistics").analyze(tmp_path / "s.zarr", names)
    _, seen = read(
        page.report(tmp_path / "s.zarr", tmp_path / "r.html", figures=tmp_path / "f", overwrite=True,
                    only=["masses", "further", "sorted_heads"])
    )  # fmt: skip
    rows = rows_of(tmp_path / "f" / "masses.csv")
    assert {r["part"] for r in rows} >= {"class token", "register tokens", "itself"}
    for layer in ("0", "1"):
        assert sum(float(r["share"]) for r in rows if r["layer"] == layer) == pytest.approx(1, abs=1e-3)
    store = Store(tmp_path / "s.zarr")
    means = [r for r in rows_of(tmp_path / "f" / "further.csv") if r["statistic"] == "position_deviation"]
    assert np.array_equal([float(r["mean"]) for r in means], store.read("position_deviation_mean").ravel())
    assert "sink_share is not drawn: all values are 0." in seen.text
    ranks = [float(r["distance_renormalized_mean"]) for r in rows_of(tmp_path / "f" / "distance_sorted.csv")]
    assert np.array_equal(ranks, np.sort(store.read("distance_renormalized_mean"), axis=1).ravel())


def test_extremes_are_the_extremes_and_said_to_be_chosen_after_looking(tmp_path: Path) -> None:
    """Of the sample where only that has pictures, of all images where their folder is given."""
    from PIL import Image

    store = make_store(tmp_path / "s.zarr", reduce=True)
    for path in store.read("path"):
        (tmp_path / "images" / str(path)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "#a04020").save(tmp_path / "images" / str(path))
    entropy = store.read("entropy")[:, 1].mean(axis=1)
    for folder, candidates in ((None, store.plan.sample), (tmp_path / "images", range(IMAGES))):
        order = sorted((i for i in candidates if i != BROKEN), key=lambda i: entropy[i])
        shown = next(examples.extremes(context_of(store, examples=1, images=folder)))
        found = list(dict.fromkeys(row[0] for row in shown.rows))
        assert found == [str(store.read("path", i)) for i in [*order[:2], *order[-2:]]]
        assert "Chosen after looking" in shown.caption
        assert f"out of n = {len(order)} images" in shown.caption


@pytest.mark.usefixtures("quick_print")
def test_a_baseline_is_compared_and_no_more(tmp_path: Path) -> None:
    """It has a name, a line and a difference, and no figures of its own; stores of one model keep their names."""
    make_store(tmp_path / "one.zarr", reduce=True)
    random = spec_of(weights=Weights("random", "ab" * 32))
    make_store(tmp_path / "idle.zarr", random, seed=3, reduce=True)
    out = page.report(tmp_path / "one.zarr", tmp_path / "r.html", baseline=tmp_path / "idle.zarr",
                      figures=tmp_path / "f", examples=1,
                      only=["compare", "compare_pictures", "distance"])  # fmt: skip
    _, seen = read(out)
    names = {p.stem for p in (tmp_path / "f").iterdir()}
    assert {"compare_distance_renormalized_difference", "compare_entropy_difference", "compare_attention"} <= names
    assert "one-distance" in names
    assert not [name for name in names if name.startswith("idle-")]
    assert "idle.zarr (baseline)" in seen.text
    values = [Store(tmp_path / f"{n}.zarr").read("entropy").astype(float) for n in ("one", "idle")]
    good = [i for i in range(IMAGES) if i != BROKEN]
    wanted = (values[1][good].mean(axis=2) - values[0][good].mean(axis=2)).mean(axis=0) / math.log(17)
    rows = rows_of(tmp_path / "f" / "compare_entropy_difference.csv")
    np.testing.assert_allclose([float(r["mean"]) for r in rows], wanted, rtol=1e-5)
    assert all(float(r["low"]) <= float(r["mean"]) <= float(r["high"]) for r in rows)


def test_a_deeper_model_is_read_between_its_layers(tmp_path: Path) -> None:
    """At the relative depths of the shallower one, which of 4 blocks against 2 are the second and the fourth."""
    make_store(tmp_path / "two.zarr", reduce=True, images=8)
    make_store(tmp_path / "four.zarr", spec_of(layers=4, tag="deep"), reduce=True, images=8)
    both = [Store(tmp_path / f"{n}.zarr") for n in ("two", "four")]
    comparison = pytest.importorskip("attlas.analysis.report.sections.comparison")
    for store in both:
        pytest.importorskip("attlas.analysis.statistics").analyze(store.path)
    contexts = [context_of(s, label) for s, label in zip(both, "AB", strict=True)]
    shown = [part for one in comparison.comparison(contexts) for part in one.parts(contexts[0])]
    rows = next(e for e in shown if getattr(e, "name", "") == "compare_entropy_difference").rows
    good = [i for i in range(8) if i != BROKEN]
    a, b = (s.read("entropy")[good].astype(float).mean(axis=2) / math.log(17) for s in both)
    assert [row[1] for row in rows] == [0.5, 1.0]
    np.testing.assert_allclose([row[2] for row in rows], (b[:, [1, 3]] - a).mean(axis=0), rtol=1e-5)


def test_maps_with_gradients_stand_beside_raw_attention_where_the_run_kept_them(tmp_path: Path) -> None:
    """Their numbers are the formulas', and without gradients the page names the option."""
    spec = spec_of()
    store = make_store(tmp_path / "s.zarr", spec, images=8)
    first = next(examples.examples(context_of(store, examples=2)))
    assert {row[1] for row in first.rows} == {"attention", "rollout"}
    _, seen = read(page.report(store.path, tmp_path / "r.html", examples=1, only=["examples"]))
    assert "--keep gradient_mean with a graph of attlas export --gradients" in seen.text.replace("`", "")
    product = np.random.default_rng(2).normal(size=(8, 2, 17, 17)).astype(np.float32)
    for name, values in (("gradient_mean", product), ("gradient_positive", np.abs(product))):
        store = add(store, name, ("image", "layer", "query", "key"), values)
    store = add(store, "target", ("image",), np.full(8, 1, np.int32))
    first = next(examples.examples(context_of(store, examples=1)))
    path = first.rows[0][0]
    image = [str(p) for p in store.read("path")].index(path)
    for kind, layers in (("gradient_rollout", product), ("chefer", np.abs(product))):
        wanted = np.asarray(getattr(formulas, kind)(list(layers[image]), spec.grid, 0))
        mine = [row[-1] for row in first.rows if row[1] == kind]
        np.testing.assert_allclose(mine, (wanted / wanted.mean()).ravel(), rtol=1e-5)
    assert "gradients of" in first.alt


def test_groups_are_shown_with_their_q_values(tmp_path: Path) -> None:
    """Every test is a point, those at q <= 0.05 are counted; groups of one image are told."""
    store = make_store(tmp_path / "s.zarr", images=8)
    shown = list(groups.groups(context_of(store)))
    assert "--by label" in shown[0].reason
    q = np.array([[[0.001, 0.2], [0.5, np.nan]], [[0.04, 0.9], [0.6, 0.7]]])
    where = ("label_group", "layer", "head")
    store = add(store, "entropy_q_by_label", where, q)
    store = add(store, "entropy_difference_by_label", where, np.arange(8.0).reshape(2, 2, 2))
    store = add(store, "label_group", ("label_group",), np.array(["n00000000", "n00000001"]))
    store = add(store, "label_group_images", ("label_group",), np.array([6, 1]))
    store = add(store, "rollout_mean_by_label", ("label_group", "y", "x"), np.ones((2, 3, 5)))
    scatter, maps = groups.groups(context_of(store))
    assert "1 of 3 differences at q ≤ 0.05" in scatter.caption
    assert "1 of 2 groups is of one image only, without a test." in scatter.caption
    assert "n = 6 images." in scatter.caption
    assert [row[-2:] for row in scatter.rows] == [(0.0, 0.001), (1.0, 0.2), (2.0, 0.5)]
    assert {row[0] for row in maps.rows} == {scatter.rows[0][1]}
    assert "random groups of the same size" in methods.describe([store.path])


def test_mean_rollouts_of_groups_use_every_colour(tmp_path: Path) -> None:
    """One scale from the smallest to the largest value, as of the whole dataset: groups can be told apart."""
    store = make_store(tmp_path / "s.zarr", images=8)
    where = ("label_group", "layer", "head")
    store = add(store, "entropy_q_by_label", where, np.full((2, 2, 2), 0.5))
    store = add(store, "entropy_difference_by_label", where, np.zeros((2, 2, 2)))
    store = add(store, "label_group", ("label_group",), np.array(["a", "b"]))
    store = add(store, "label_group_images", ("label_group",), np.array([6, 6]))
    values = np.linspace(0.9, 1.1, 30).reshape(2, 3, 5)
    store = add(store, "rollout_mean_by_label", ("label_group", "y", "x"), values)
    maps = next(part for part in groups.groups(context_of(store)) if part.title == "Mean rollout by label")
    shares = values / values.mean(axis=(1, 2), keepdims=True)
    drawn = [axes.images[0].get_clim() for axes in maps.draw(narrow=False).axes if axes.images]
    np.testing.assert_allclose(drawn[0], (shares.min(), shares.max()))


def test_position_embeddings_are_compared_where_a_model_has_them(tmp_path: Path) -> None:
    """Prefix rows left out, the cosine of a patch with itself 1; rotary models are told why not."""
    store = make_store(tmp_path / "s.zarr", images=4)
    assert "does not hold" in next(positions.positions(context_of(store))).reason
    table = np.random.default_rng(0).normal(size=(17, 6)).astype(np.float32)
    store = add(store, "position_embedding", ("position", "channel"), table)
    shown = next(positions.positions(context_of(store)))
    values = np.array([row[-1] for row in shown.rows]).reshape(15, 15)
    unit = table[2:] / np.linalg.norm(table[2:], axis=1, keepdims=True)
    np.testing.assert_allclose(values, unit @ unit.T, atol=1e-6)
    turned = make_store(tmp_path / "r.zarr", dataclasses.replace(spec_of(), position="rotary"), images=4)
    assert "rotary" in next(positions.positions(context_of(turned))).reason


@pytest.mark.usefixtures("quick_print")
def test_objects_are_found_in_the_stored_crop_and_the_rest_is_listed(tmp_path: Path) -> None:
    """A box over the left half of the picture: its mass is the map's left half, weighed at the middle column."""
    spec = spec_of(prefix=("class",), grid=(2, 4), layers=1, heads=1)
    tokens = np.random.default_rng(0).normal(size=(8, 9, 5)).astype(np.float32)
    store = add(make_store(tmp_path / "s.zarr", spec, images=8), "tokens", ("image", "token", "channel"), tokens)
    file = coco(tmp_path / "boxes.json", {
        "001.png": [(0, 0, 20, 30), (20, 0, 20, 30)],  # by its last part, halves of a picture of 40 x 30 pixels
        "n00000000/002.png": [(0, 0, 40, 30), (100, 0, 5, 5)], "none.png": [(0, 0, 5, 5)], "005.png": [(0, 0, 5, 5)],
    })  # fmt: skip
    found, left_out = objects.find(store, file)
    assert sorted(one.image for one in found) == [1, 2]
    assert sorted(line.partition(" of ")[2] for line in left_out) == [
        "005.png: the image is not done or could not be read", "n00000000/002.png: lies outside the crop",
        "none.png: the image is not in the store",
    ]  # fmt: skip
    shown = list(objects.objects(context_of(store, boxes=file)))
    rows = [row for row in shown[0].rows if row[0].endswith("001.png") and row[3] == "attention"]
    row = store.read("attention", (1, 0, 0)).astype(np.float64)[0, 1:].reshape(2, 4)
    assert rows[0][4] == pytest.approx(row[:, :2].sum() / row.sum(), rel=1e-5)
    assert rows[1][4] == pytest.approx(row[:, 2:].sum() / row.sum(), rel=1e-5)
    uniform = {row[0][-7:]: row[4:] for row in shown[0].rows if row[3] == "uniform"}
    assert uniform == {"001.png": (0.5, 0.5, 0.5), "002.png": (1.0, 1.0, 1.0)}
    assert objects._summed("hits", np.ones(20), None) == ("hits", 1.0, pytest.approx(0.05 ** (1 / 20)), 1.0)
    assert np.isnan(objects._summed("of both signs", np.full(20, 1.5), None)[2:]).all()
    (pair,) = shown[1].rows
    halves = [tokens[1, 1:].reshape(2, 4, 5)[:, at].mean(axis=(0, 1)) for at in (slice(0, 2), slice(2, 4))]
    wanted = halves[0] @ halves[1] / np.linalg.norm(halves[0]) / np.linalg.norm(halves[1])
    assert pair[-2] == pytest.approx(wanted, rel=1e-4)
    out = page.report(store.path, tmp_path / "r.html", boxes=file, only=["objects"], figures=tmp_path / "f")
    assert "none.png: the image is not in the store" in read(out)[1].text
    assert {"localisation", "object_similarity"} <= {p.stem for p in (tmp_path / "f").iterdir()}
