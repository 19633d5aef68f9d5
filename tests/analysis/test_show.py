"""One picture at once: what is drawn is what the formulas give, and every wrong request is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import runner
from attlas.engine.runtime.session import Session
from attlas.errors import AttlasError, UsageError
from PIL import Image
from support import make_graph, make_picture
from support_report import make_store

pytest.importorskip("matplotlib")

from attlas.analysis import formulas
from attlas.analysis.report.plots.overlay import blended, colours_of, resized
from attlas.analysis.show.choose import Selection
from attlas.analysis.show.folder import overlays
from attlas.analysis.show.maps import Choice, maps_of, matrices, named, query_views, readout_views
from attlas.analysis.show.show import patch_at
from attlas.analysis.show.subject import Subject, of_graph, of_result, of_store, probability
from attlas.analysis.show.views import Request, views_of

GRID = (2, 3)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "tiny.onnx"
    make_graph(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        make_picture(seed).save(root / f"p{seed}.png")
    return root


@pytest.fixture(scope="module")
def subject(graph: Path, folder: Path) -> Subject:
    return of_graph(graph, [folder / "p1.png"], ())[0]


@pytest.fixture(scope="module")
def attention(graph: Path, folder: Path) -> Any:
    """(layer, head, query, key) of the same picture."""
    return Session(graph)([folder / "p1.png"])["attention"][0].astype(np.float64)


@pytest.fixture(scope="module")
def store(graph: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("store") / "tiny.zarr"
    runner.run(graph, folder, path, store_dtype="float32")
    return attlas.Store(path)


@pytest.fixture(scope="module")
def coded(graph: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("coded") / "tiny.zarr"
    runner.run(graph, folder, path, store_dtype="uint8", limit=1)
    return attlas.Store(path)


# -- the overlay -------------------------------------------------------------------------------------------------------


def test_a_map_is_resized_smoothly_and_within_its_range() -> None:
    """A constant stays, a ramp rises, the middle of a cell keeps its value, and nothing is outside the map's range."""
    np.testing.assert_allclose(resized(np.full((3, 5), 2.0), (30, 40)), 2.0)
    ramp = resized(np.arange(6.0)[None].repeat(4, 0), (40, 60))
    assert (np.diff(ramp, axis=1) >= -1e-12).all()
    values = np.random.default_rng(0).random((4, 6))
    large = resized(values, (36, 54))  # 9 pixels a cell: the fifth is its middle
    np.testing.assert_allclose(large[4::9, 4::9], values, atol=1e-12)
    assert values.min() <= large.min() <= large.max() <= values.max()


def test_colour_means_attention_and_nothing_else() -> None:
    """Without attention the picture is grey; the more, the brighter; outside a mask there is no colour."""
    picture = np.zeros((20, 20, 3), np.uint8) + np.array([200, 60, 20], np.uint8)
    values = np.array([[0.0, 0.5], [0.75, 1.0]])
    made = blended(picture, values, colours_of(values)).astype(int)
    corners = made[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.ptp(corners[0]) < 40 < np.ptp(corners[1])  # the darkest of magma is nearly black
    assert (np.diff(corners.sum(axis=1)) > 0).all()
    masked = blended(picture, values, colours_of(values), mask=values > 0.6)
    assert not np.ptp(masked[:10], axis=2).any()
    assert np.ptp(masked[15, 15]) > 30
    unknown = blended(picture, np.array([[np.nan, 1.0]]), colours_of(np.array([[np.nan, 1.0]])))
    np.testing.assert_array_equal(unknown[:, :10], picture[:, :10])


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_what_the_formulas_give(subject: Subject, attention: Any) -> None:
    n = 7
    (first, second) = readout_views(subject, Choice(layers=0))
    np.testing.assert_allclose(second.values, attention[0, 1, 0, 1:].reshape(GRID) * n, rtol=1e-5)
    assert (first.label, second.label) == ("layer 0, head 0", "layer 0, head 1")
    (view,) = query_views(subject, (1, 2), Choice(head=1))
    np.testing.assert_allclose(view.values, attention[1, 1, 6, 1:].reshape(GRID) * n, rtol=1e-5)
    every = query_views(subject, (0, 1), Choice("all"))
    np.testing.assert_allclose(every[0].values, attention[0, :, 2, 1:].mean(0).reshape(GRID) * n, rtol=1e-5)
    whole = matrices(subject, Choice())
    np.testing.assert_allclose(whole[0].values, attention[1].mean(0) * n, rtol=1e-5)
    (rolled,) = maps_of(subject, named("rollout:fusion=max"), Choice())
    expected = formulas.rollout(list(attention), GRID, fusion="max")
    np.testing.assert_allclose(rolled.values, expected / expected.mean(), rtol=1e-5)
    (weight,) = maps_of(subject, named("class_token_weight"), Choice())
    np.testing.assert_allclose(weight.values, attention[1, :, 0, 1:].max(0).reshape(GRID) * n, rtol=1e-5)


def test_a_map_by_gradients_names_their_class(graph: Path, folder: Path, attention: Any) -> None:
    result = Session(graph)([folder / "p1.png"])
    best = int(result["logits"][0].argmax())
    for target, said in ((-1, ""), (best, ""), (3 - best, f" for name {3 - best}")):
        one = of_result(result, graph, 0, target=target)
        one.store.arrays["gradient_positive"] = attention.mean(axis=1)[None]  # type: ignore[attr-defined]
        views = views_of(one, Request(maps=(named("chefer"), named("rollout:start=1"))))
        assert [view.name for view in views] == [f"chefer{said}", "rollout, start layer 1"]


def test_a_store_gives_the_same_as_its_graph(subject: Subject, store: Any, folder: Path) -> None:
    one = of_store(store, 1, folder)
    assert (one.name, one.size) == ("p1.png", (30, 40)) == ("p1.png", subject.size)
    np.testing.assert_array_equal(one.pixels, subject.pixels)
    assert one.top() == pytest.approx(subject.top()) if not one.top() else one.top()[0][0] == subject.top()[0][0]
    request = Request(maps=(named("rollout"), named("readout_map"), named("score_matrix")), patch=(1, 0))
    for a, b in zip(views_of(one, request), views_of(subject, request), strict=True):
        assert a.title == b.title
        np.testing.assert_allclose(a.values, b.values, rtol=1e-5)


def test_a_pixel_of_the_original_is_found_in_its_patch(graph: Path) -> None:
    """The crop squashes 40 x 30 pixels onto 2 x 3 patches."""
    (one,) = of_graph(graph, [make_picture(0)], ())
    assert [patch_at([one], at) for at in ((0, 0), (39.9, 29.9), (14, 14), (27, 15))] == [
        (0, 0),
        (1, 2),
        (0, 1),
        (1, 2),
    ]
    for at in ((-1, 0), (0, 30), (40, 3)):
        with pytest.raises(UsageError, match=r"x 0 to 40, y 0 to 30"):
            patch_at([one], at)


@pytest.mark.parametrize("options", [
    {}, {"maps": "rollout", "threshold": 0.6}, {"layer": "all"}, {"patch": (1, 1), "style": "side"}, {"matrix": True},
    {"walk": True, "head": 1},
], ids=str)  # fmt: skip
def test_every_figure_is_a_file_of_its_kind(graph: Path, folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    shown = attlas.show(graph, folder / "p2.png", output=tmp_path / "p.png", **options)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width == 1350
    assert "p2.png · name" in repr(shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png"]


def said(shown: Any) -> str:
    """All words of a figure."""
    return " ".join(text.get_text() for axes in shown.figure.axes for text in axes.texts)


def test_heads_of_one_layer_share_a_scale(graph: Path, folder: Path, attention: Any) -> None:
    shown = attlas.show(graph, folder / "p1.png", maps=["readout_map", "class_token_weight"], layer=0, style="side")
    scales = [image.norm.vmax for axes in shown.figure.axes for image in axes.images[1:-1]]
    assert scales == pytest.approx([attention[0, :, 0, 1:].max() * 7] * 3, rel=1e-5)
    each = attlas.show(graph, folder / "p1.png", layer="all", style="side")
    scales = [image.norm.vmax for axes in each.figure.axes for image in axes.images[1:-1]]
    assert scales == pytest.approx(attention[:, :, 0, 1:].mean(axis=1).max(axis=1) * 7, rel=1e-5)


def test_a_mean_over_heads_is_called_no_head(graph_factory: Any, folder: Path, tmp_path: Path) -> None:
    runner.run(graph_factory(prefix=()), folder, tmp_path / "mean.zarr", keep=("attention_mean",), limit=1)
    store = attlas.Store(tmp_path / "mean.zarr")
    one = of_store(store, 0)
    (view,) = readout_views(one, Choice())
    assert view.label == "layer 1, mean over heads"
    with pytest.raises(UsageError, match=r"--head 0: .* kept the mean over heads alone"):
        readout_views(one, Choice(head=0))
    assert "mean of the patches, layer 1, mean over heads" in said(attlas.show(store.path, image=0))


def test_the_legend_speaks_of_what_is_shown(graph: Path, folder: Path) -> None:
    uniform, mean = (
        "× uniform: 1 is what even attention gives, 1/7; square-root",
        "× mean: 1 is the map's own mean; linear",
    )
    shared = "Heads of one layer share a scale"
    for options, there in (
        ({}, {uniform, mean}), ({"maps": "rollout"}, {mean}), ({"layer": 0}, {uniform, shared}),
        ({"layer": "all"}, {uniform, "Of each layer: the mean over heads."}), ({"walk": True}, {uniform, mean}),
        ({"maps": "mass_mask"}, {"A mask's patches have the picture's colours."}),
    ):  # fmt: skip
        words = said(attlas.show(graph, folder / "p1.png", **options))  # type: ignore[arg-type]
        for line in (uniform, mean, shared, *there):
            assert (line in words) == (line in there), (options, line)


def test_a_mask_has_hard_cells_and_says_how_many(graph: Path, folder: Path, subject: Subject) -> None:
    shown = attlas.show(graph, folder / "p1.png", maps="mass_mask", head=0)
    mask = views_of(subject, Request(Choice(head=0), (named("mass_mask"),)))[0].values > 0
    assert f"{mask.sum()} of 6 patches" in said(shown)
    crop, drawn = (np.asarray(image.get_array()) for image in shown.figure.axes[0].images[:2])
    kept = np.kron(mask, np.ones((8, 8))).astype(bool)
    np.testing.assert_array_equal(drawn[kept], crop[kept])
    assert not np.ptp(drawn[~kept].astype(int), axis=-1).any()


def test_a_matrix_says_its_maximum_and_covers_nothing(graph: Path, folder: Path, attention: Any) -> None:
    shown = attlas.show(graph, folder / "p1.png", matrix=True, head=1)
    assert f"max {attention[1, 1].max() * 7:.3g} × uniform" in said(shown)
    assert "largest 0.5 %" in said(shown)
    axes = shown.figure.axes[0]
    pieces = [np.asarray(image.get_array()) for image in axes.images[:-1]]
    assert [piece.shape for piece in pieces] == [(1, 1), (1, 6), (6, 1), (6, 6)]
    np.testing.assert_allclose(np.block([pieces[:2], pieces[2:]]), attention[1, 1] * 7, rtol=1e-5)
    assert not axes.lines


def test_no_title_loses_what_tells_panels_apart(graph: Path, folder: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'a long name ' * 12}.png"
    long.write_bytes((folder / "p0.png").read_bytes())
    words = said(attlas.show(graph, long, maps=["readout_map", "mass_mask:threshold=0.25"], patch=(1, 2), head=0))
    assert "mass mask, threshold 0.25, layer 1, head 0" in words
    assert words.startswith(long.name)
    assert "what the patch in row 1, column 2 looks at" in words
    assert "…" not in words


@pytest.mark.parametrize(("prefix", "grid", "changes"), [
    (("class", "register", "register"), (4, 4), {}), ((), (2, 5), {}),
    (("class", "distillation"), (3, 2), {"pooling": "distilled", "heads": 1, "layers": 1}),
], ids=str)  # fmt: skip
def test_every_kind_of_model_is_shown(tmp_path: Path, prefix: Any, grid: Any, changes: dict[str, Any]) -> None:
    make_graph(tmp_path / "g.onnx", prefix=prefix, grid=grid, **changes)
    for options in ({}, {"walk": True}):
        attlas.show(tmp_path / "g.onnx", make_picture(1), output=tmp_path / "g.svg", overwrite=True, **options)
        assert (tmp_path / "g.svg").read_text("utf-8").startswith("<?xml")


# -- from a store ------------------------------------------------------------------------------------------------------


def test_images_are_chosen_by_name_by_chance_and_in_order(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Selection(image=["p3.png", 1]).of(store) == [3, 1]
    assert Selection(random=3, seed=1).of(store) == Selection(random=3, seed=1).of(store)
    assert Selection(count=2).of(store) == [0, 1]
    labels = ["b", "a", "", "b", "é"]
    read = type(store).read
    given = np.array(labels, np.dtypes.StringDType())
    monkeypatch.setattr(
        type(store), "read", lambda self, name, *at: given if name == "label" else read(self, name, *at)
    )
    assert Selection(sort="label", count=5).of(store) == [2, 1, 0, 3, 4]


def test_the_sharpest_say_how_sharp_they_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", reduce=True)
    last = store.read("entropy")[:, -1].astype(np.float64).mean(axis=1)
    sharpest = [int(image) for image in np.argsort(last) if store.read("valid", image)][:2]
    assert Selection(sort="entropy", count=2).of(store) == sharpest
    words = said(attlas.show(store.path, sort="entropy", count=2))
    for image in sharpest:
        assert f"entropy {last[image]:.2f} nats, layer 1" in words


def test_probabilities_are_told_from_0() -> None:
    shares = 0.999, 0.476, 0.0104, 0.0017, 0.00123, 0.0001, 0.00001
    assert [probability(share) for share in shares] == ["1.00", "0.48", "0.01", "0.0017", "0.0012", "0.0001", "<0.0001"]


def test_a_folder_holds_an_overlay_of_every_image(store: Any, folder: Path, tmp_path: Path) -> None:
    assert overlays(store.path, tmp_path / "o", maps=("rollout",), images=folder) == 5
    one = of_store(store, 2, folder)
    (view,) = maps_of(one, named("rollout"), Choice())
    assert one.pixels is not None
    with Image.open(tmp_path / "o" / "p2.png.png") as picture:
        made = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(made, blended(one.pixels, view.values, colours_of(view.values)))
    with pytest.raises(UsageError, match="holds files"):
        overlays(store.path, tmp_path / "o", maps=("rollout",), images=folder)


# -- what is refused ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layer": 2}, "--layer 2: .*has the layers 0 to 1"),
    ({"layer": 0, "head": 2}, "--head 2: there are heads 0 to 1"),
    ({"patch": (2, 0)}, "rows 0 to 1 and columns 0 to 2"),
    ({"at": (99, 0)}, "--at 99,0: lies outside"),
    ({"maps": "chefer"}, "gives no gradient; export it again with `attlas export --gradients`"),
    ({"maps": "distance"}, "--map distance: is no map over a picture's patches"),
    ({"maps": "rolout"}, "did you mean rollout"),
    ({"threshold": 0}, "threshold 0 does not lie"),
    ({"random": 2}, "is a graph; --image"),
    ({"output": "x.gif"}, "a figure is NAME.png"),
    ({"walk": True, "head": 5}, "--head 5"),
    ({"walk": True, "maps": "rollout"}, "^--walk, --map: choose one"),
    ({"walk": True, "matrix": True}, "^--walk, --matrix: choose one"),
    ({"walk": True, "layer": "all"}, "--walk: follows one layer"),
    ({"matrix": True, "maps": "rollout"}, "^--matrix, --map: choose one"),
    ({"matrix": True, "patch": (0, 0)}, "^--matrix, --patch: choose one"),
    ({"matrix": True, "threshold": 0.5}, "^--matrix, --threshold: choose one"),
    ({"matrix": True, "style": "side"}, "^--matrix, --style: choose one"),
    ({"patch": (0, 0), "at": (0, 0)}, "^--patch, --at: choose one"),
    ({"image": 0, "sort": "label"}, "^--image, --sort: choose one"),
    ({"image": [0], "random": 1}, "^--image, --random: choose one"),
    ({"seed": 3}, "--seed 3: is of --random N"),
    ({"maps": "rollout", "layer": 0}, "--layer 0: rollout follows all layers"),
    ({"maps": ["score_matrix", "rollout"], "head": 0}, "--head 0: score_matrix is one map of all heads"),
    ({"images": "."}, "--count and --images are for a store"),
    ({"target": 2}, "--target 2: is for maps by gradients; name one, such as --map chefer"),
    ({"target": 2, "maps": "rollout"}, "--target 2: is for maps by gradients"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_request_is_one_line(graph: Path, folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttlasError, match=message):
        attlas.show(graph, folder / "p0.png", **options)


def test_what_is_no_picture_no_graph_and_what_exists_is_refused(
    graph: Path, folder: Path, store: Any, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(AttlasError, match=r"text.jpg: cannot be decoded"):
        attlas.show(graph, tmp_path / "text.jpg")
    with pytest.raises(UsageError, match="is a folder"):
        attlas.show(graph, folder)
    with pytest.raises(UsageError, match="which picture"):
        attlas.show(graph)
    with pytest.raises(AttlasError, match=r"no attlas metadata|is no ONNX model"):
        attlas.show(folder / "p0.png", folder / "p0.png")
    with pytest.raises(UsageError, match="is a store"):
        attlas.show(store.path, folder / "p0.png")
    with pytest.raises(UsageError, match="has images 0 to 4"):
        attlas.show(store.path, image=5)
    with pytest.raises(UsageError, match="--target 2: of a store, the class is that of the run"):
        attlas.show(store.path, image=0, target=2)
    with pytest.raises(UsageError, match=r"there.png: exists"):
        attlas.show(graph, folder / "p0.png", output=tmp_path / "there.png")
    assert (tmp_path / "there.png").read_text() == "mine"


@pytest.mark.parametrize(("options", "name"), [
    ({"maps": "mass_mask"}, "--map mass_mask"), ({"patch": (1, 1), "threshold": 0.6}, "--threshold 0.6"),
    ({"maps": "score_matrix", "threshold": 0.5}, "--threshold 0.5"), ({"walk": True, "threshold": 0.6}, "--threshold"),
    ({"maps": "rollout:discard=0.9"}, "--map rollout.discard-0.9"),
], ids=str)  # fmt: skip
def test_masks_by_mass_are_refused_of_codes(coded: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"holds attention as uint8 codes, good for averages, and {name}.* depends on"):
        attlas.show(coded.path, image=0, **options)


def test_of_codes_is_shown_what_does_not_depend_on_single_values(coded: Any) -> None:
    """The class token's row is kept as it is."""
    for options in ({"threshold": 0.6}, {"maps": "readout_map", "threshold": 0.6}, {"patch": (0, 1)}):
        attlas.show(coded.path, image=0, **options)


# -- notebooks ---------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_a_result_and_a_store_on_one_screen(graph: Path, folder: Path, store: Any) -> None:
    session = attlas.Session(graph)
    result = session([folder / "p0.png", folder / "p1.png"])
    page = result._repr_html_()
    assert page.count("data:image/png") == 4
    assert "p1.png" in page
    assert result.top(1)[0][0][0] in page
    assert "attention            float32  (image 2, layer 2, head 2, query 7, key 7)" in repr(result)
    assert "tiny_test (random weights)" in repr(session)
    for text in (repr(store), store._repr_html_()):
        assert "image 5, layer 2, head 2, query 7, key 7" in text
        assert len(text.splitlines()) < 30


def test_a_dataset_of_many_variables_is_shown_on_one_screen(store: Any) -> None:
    xr = pytest.importorskip("xarray")
    dataset = attlas.open(store.path)
    assert isinstance(dataset, xr.Dataset)
    many = dataset.assign({f"extra{i}_mean": ("layer", np.zeros(2)) for i in range(60)})
    for text in (repr(many), many._repr_html_()):
        assert "image 5, layer 2, head 2, query 7, key 7" in text
        assert len(text.splitlines()) < 30
    assert "Data variables" in repr(dataset[["attention"]])
