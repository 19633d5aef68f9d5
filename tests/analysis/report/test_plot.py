"""`attlas.plot`: every figure on Axes that were given, and what is new on the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from attlas.exporter.spec import Weights
from support import make_picture
from support_report import BROKEN, add, coco, context_of, make_store, read, spec_of

pytest.importorskip("matplotlib")
analyze = pytest.importorskip("attlas.analysis.statistics").analyze
base = pytest.importorskip("attlas.analysis.report.sections.base")
by_layer = pytest.importorskip("attlas.analysis.statistics.layers").by_layer
facts = pytest.importorskip("attlas.analysis.report.facts")
figure = pytest.importorskip("matplotlib.figure")
groups = pytest.importorskip("attlas.analysis.report.sections.groups")
page = pytest.importorskip("attlas.analysis.report.page")
sections = pytest.importorskip("attlas.analysis.report.sections")
style = pytest.importorskip("attlas.analysis.report.plots.style")
tokens = pytest.importorskip("attlas.analysis.report.sections.tokens")

WEIGHTS = Weights("pretrained", "0" * 64)
ROOT = Path(__file__).parents[3]
EXTRA = [
    "self_mass", "neighbour_mass", "rest_mass", "sink_share", "received_attention", "offset_map_mean", "readout_map",
    "head_similarity", "entropy_histogram", "position_deviation", "attention_matrix_mean", "rollout_vit_explain",
    "token_norm", "offset_map_pooled_mean",
]  # fmt: skip
ELSEWHERE = {"compare", "overlay", "judgement", "judged"}  # these need other stores, or a judgement


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store with everything that a report draws, but for gradients and judgements; and boxes in its pictures."""
    place = tmp_path_factory.mktemp("rich")
    store = make_store(place / "s.zarr", reduce=True, images=16)
    random = np.random.default_rng(0)
    for name, dims, shape in (
        ("token_norm", ("image", "layer", "token"), (16, 2, 17)),
        ("value_norm", ("image", "layer", "head", "key"), (16, 2, 2, 17)),
        ("tokens", ("image", "token", "channel"), (16, 17, 5)),
        ("position_embedding", ("position", "channel"), (17, 5)),
    ):
        store = add(store, name, dims, random.uniform(1, 90, shape).astype(np.float32))
    analyze(store.path, by="label")
    analyze(store.path, EXTRA)
    boxes = coco(place / "boxes.json", {"001.png": [(0, 0, 20, 30), (20, 0, 20, 30)]})
    return Store(store.path), boxes


def test_every_figure_draws_on_the_axes_that_it_is_given(rich: tuple[Store, Path]) -> None:
    """And returns them; there is none that the report draws and this cannot."""
    store, boxes = rich
    more: dict[str, dict[str, Any]] = {
        "localisation": {"boxes": boxes}, "object_similarity": {"boxes": boxes}, "mean_map": {"name": "readout_map"},
    }  # fmt: skip
    for name in attlas.plot.figures().keys() - ELSEWHERE:
        ax = figure.Figure().subplots()
        assert getattr(attlas.plot, name)(store, ax=ax, **more.get(name, {})) is ax, name
        assert ax.has_data() or ax.child_axes or ax.collections, name
    context = context_of(store, examples=2, boxes=boxes)
    drawn = {p.name for one in sections.SECTIONS for p in one.parts(context) if isinstance(p, base.Figure)}
    known = {pattern for _, pattern in attlas.plot.FIGURES.values()}
    assert not {name for name in drawn if not any(re.fullmatch(k.replace("*", ".*"), name) for k in known)}


def test_the_reports_own_figure_is_the_same_drawing(rich: tuple[Store, Path]) -> None:
    ax = attlas.plot.distance(rich[0].path, figure.Figure().subplots(), panel="distance_renormalized")
    (mine,) = (line for line in ax.lines if line.get_marker() == "o")
    assert mine.get_ydata() == pytest.approx(rich[0].read("distance_renormalized_mean").ravel())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "pixels")
    again = attlas.plot.distance(attlas.open(rich[0].path), figure.Figure().subplots(), panel="distance_renormalized")
    assert [line.get_xydata().tolist() for line in again.lines] == [line.get_xydata().tolist() for line in ax.lines]


def test_what_cannot_be_drawn_says_why(rich: tuple[Store, Path]) -> None:
    ax = figure.Figure().subplots()
    with pytest.raises(UsageError, match=r"panel distanc: did you mean distance\?"):
        attlas.plot.distance(rich[0], ax, panel="distanc")
    with pytest.raises(AttlasError, match="does not give judgement"):
        attlas.plot.judgement(rich[0], ax)
    with pytest.raises(UsageError, match=r"pass the path of a store, .* \(ndarray\)"):
        attlas.plot.distance(np.zeros(3), ax)
    with pytest.raises(UsageError, match="two stores or more"):
        attlas.plot.compare([rich[0]], ax)
    with pytest.raises(UsageError, match="image 16: there are 16"):
        attlas.plot.overlay(rich[0], ax, image=16)


def test_a_map_lies_over_a_picture_of_a_store_or_fresh_from_a_graph(rich: tuple[Store, Path], tiny_graph: Path) -> None:
    ax = figure.Figure().subplots()
    image = rich[0].plan.sample[0]
    for options, most in (({"map": "rollout"}, None), ({"layer": 1, "head": 0}, 17)):
        assert attlas.plot.overlay(rich[0], ax, image=image, printed="{:.6g}", **options) is ax
        if most:
            row = rich[0].read("attention", (image, 1, 0)).astype(np.float32)[0, 2:]
            assert float(ax.texts[-1].get_text()) == pytest.approx(row.max() * most, rel=1e-4)
    result = attlas.Session(tiny_graph)([make_picture(1)])
    ax = attlas.plot.overlay(result, figure.Figure().subplots(), patch=(1, 2))
    assert ax.images[0].get_array().shape[:2] == result.pixels.shape[1:3]


def test_stores_are_compared_on_axes(rich: tuple[Store, Path], tmp_path: Path) -> None:
    other = make_store(tmp_path / "t.zarr", reduce=True, images=16, seed=5)
    for options, count in (({}, 2), ({"difference": True}, 1), ({"statistic": "entropy_patch"}, 2)):
        ax = attlas.plot.compare([rich[0], other], figure.Figure().subplots(), names=["a", "b"], **options)
        assert len([line for line in ax.lines if line.get_label() in ("a", "b", "b − a")]) == count
    with pytest.raises(AttlasError, match="compare_sink_share"):
        attlas.plot.compare([rich[0], other], statistic="sink_share")


def test_the_guide_lists_every_function() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `plot\.(\w+)` \| (.*) \|$", guide, re.M))
    assert listed == attlas.plot.figures()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_begins_with_pictures_and_distance_and_folds_the_rest(made: tuple[Store, Path, Path]) -> None:
    html, seen = read(made[1])
    sight = re.sub(r"<details.*?</details>", "", html, flags=re.S)
    titles = re.findall(r"<b>Figure \d+\. ([^<]*)\.</b>", sight)
    assert titles[:3] == ["Example pictures", "Attention distance by depth", "Attention entropy by depth"]
    assert "Attention matrices" not in titles
    assert seen.captions[1].startswith("Figure 2. What the central patch looks at")
    assert '<details id="facts"><summary>What was run</summary>' in html
    assert [question in seen.text for question in ("What", "How many", "Is the recipe right?")] == [True] * 3
    assert "top-1 52.4 %" in seen.text
    assert "<text" in " ".join(seen.loaded).replace("%3C", "<")  # words can be searched and edited
    assert not re.search(r"font[^;']*: ?'", html)


def test_what_was_computed_and_is_not_drawn_is_named(rich: tuple[Store, Path], tmp_path: Path) -> None:
    _, seen = read(page.report(rich[0].path, tmp_path / "r.html", examples=0))
    assert "It cannot be drawn" not in seen.text
    named = seen.text.partition("Computed, and not drawn here: 1 statistic")[2].partition("attlas.open")[0]
    assert "offset_map_pooled_mean: share of the patch mass" in named
    titles = " ".join(seen.captions)
    for shown in ("Norms of tokens", "Mean attention matrices", "Mean map: rollout_vit_explain", "Groups by label"):
        assert shown in titles


def test_sections_are_chosen_stores_named_and_a_talk_has_larger_words(rich: tuple[Store, Path], tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    page.report(rich[0].path, out, only=["distance"], figures=tmp_path / "f", style="talk", names=["ours"])
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [f"distance.{e}" for e in ("csv", "pdf", "png", "svg")]
    width = int.from_bytes((tmp_path / "f" / "distance.png").read_bytes()[16:20])
    assert width == round(300 * style.WIDE)  # the same pixels, laid out on two thirds of the inches
    for options, told in (
        ({"only": ["distence"]}, r"--only distence: there is no such figure; did you mean distance\?"),
        ({"names": ["a", "b"]}, "--names a,b: give 1 different names"),
        ({"style": "poster"}, "there is no such style; there are paper, talk"),
    ):
        with pytest.raises(UsageError, match=told):
            page.report(rich[0].path, tmp_path / "x.html", **options)
    for options in ({"only": ["examples"], "examples": 0}, {"only": ["localisation", "compare"]}):
        with pytest.raises(AttlasError, match="there is nothing of it to show, so no page is written"):
            page.report(rich[0].path, tmp_path / "x.html", **options)
    assert not (tmp_path / "x.html").exists()
    chosen = [page._check_words([name], (), "paper", 1)[0] for name in ("query_map", "query_of_one")]
    assert chosen == [{"query_of_one"}] * 2
    assert {*attlas.plot.figures()} == {*attlas.plot.FIGURES, "overlay"}


def test_stores_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    made = {
        name: make_store(tmp_path / f"{name}.zarr", spec_of(model=model, tag=tag, weights=WEIGHTS), images=1)
        for name, model, tag in (
            ("a", "deit", "in1k"),
            ("b", "deit", "in21k"),
            ("c", "vit", "in1k"),
            ("d", "vit", "in1k"),
        )
    }
    assert facts.labels([made["a"], made["c"]]) == ["deit", "vit"]
    assert facts.labels([made["a"], made["b"]]) == ["deit.in1k", "deit.in21k"]
    assert facts.labels([made["c"], made["d"]]) == ["c", "d"]
    assert facts.labels([made["a"]]) == ["deit"]


# -- the new figures' numbers ------------------------------------------------------------------------------------------


def test_norms_are_counted_and_averaged_by_kind_of_token(rich: tuple[Store, Path]) -> None:
    store = rich[0]
    (shown,) = tokens.norms(context_of(store))
    good = [i for i in range(16) if i != BROKEN]
    values = store.read("token_norm")[good].astype(float)
    rows = {row[:3]: row for row in shown.rows}
    assert rows["token_norm", 1, "patches"][3] == pytest.approx(values[:, 1, 2:].mean())
    assert rows["token_norm", 0, "register"][3] == pytest.approx(values[:, 0, 1].mean())
    counted = [row for row in shown.rows if row[0] == "token_norm_histogram" and row[2] == "patches"]
    assert sum(row[5] for row in counted) == len(good) * 15
    low, high = min(row[3] for row in counted), max(row[4] for row in counted)
    assert low <= values[:, 1, 2:].min() <= values[:, 1, 2:].max() <= high


def test_few_groups_are_lines_by_depth(rich: tuple[Store, Path]) -> None:
    store = rich[0]
    shown = next(part for part in groups.groups(context_of(store)) if part.name == "groups_by_label")
    rows = [row for row in shown.rows if row[0] == "entropy" and row[2] == 1]
    values = store.read("entropy")[:, 1].astype(float).mean(axis=1)
    for row, group in zip(rows, (0, 1), strict=True):
        mine = values[[i for i in range(16) if i % 2 == group and i != BROKEN]]
        assert row[3] == pytest.approx(mine.mean(), rel=1e-5)
        assert row[4] < row[3] < row[5]


def test_an_analysis_ends_with_a_table_by_layer(rich: tuple[Store, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in by_layer(rich[0].path)]
    assert lines[0][:3] == ["layer", "distance", "[px]"]
    assert lines[0][-3:] == ["heads", "differ", "[nats]"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "uniform"]
    for column in zip(*(line[1:] for line in lines[1:3]), strict=True):
        assert len({len(number.partition(".")[2]) for number in column}) == 1  # as many decimals in all of a column
    assert float(lines[2][2]) == pytest.approx(rich[0].read("entropy_mean")[1].mean(), rel=5e-3)
    assert float(lines[1][3]) == pytest.approx(100 * rich[0].read("prefix_mass_mean")[0].sum() / 2, rel=5e-3)
    assert float(lines[3][2]) == pytest.approx(np.log(17), rel=5e-3)
    from attlas.cli import main

    main(["analyze", str(rich[0].path), "--json"])
    assert '"distance_mean"' in capsys.readouterr().out
