"""What a report does with statistics that show nothing, with groups too small to trust, and with files that exist."""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import pytest
from attlas.engine.sources.files import leads_out
from attlas.engine.store import locks
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from attlas.progress import Step
from PIL import Image
from support import make_spec
from support_report import add, context_of, make_store, read, spec_of

pytest.importorskip("matplotlib")
base = pytest.importorskip("attlas.analysis.report.sections.base")
canvas = pytest.importorskip("attlas.analysis.report.plots.canvas")
comparison = pytest.importorskip("attlas.analysis.report.sections.comparison")
depth = pytest.importorskip("attlas.analysis.report.sections.depth")
groups = pytest.importorskip("attlas.analysis.report.sections.groups")
further = pytest.importorskip("attlas.analysis.report.sections.further")
images = pytest.importorskip("attlas.analysis.report.images")
markup = pytest.importorskip("attlas.analysis.report.text.markup")
bibliography = pytest.importorskip("attlas.analysis.report.text.bibliography")
definitions = pytest.importorskip("attlas.analysis.report.text.definitions")
numbers = pytest.importorskip("attlas.analysis.report.numbers")
page = pytest.importorskip("attlas.analysis.report.page")
sections = pytest.importorskip("attlas.analysis.report.sections")
style = pytest.importorskip("attlas.analysis.report.plots.style")
volcano = pytest.importorskip("attlas.analysis.report.plots.volcano")

HEADS = ("layer", "head")


@pytest.fixture
def small(tmp_path: Path) -> Store:
    """A store with the default statistics of eight images."""
    return make_store(tmp_path / "s.zarr", images=8, reduce=True)


def summed(store: Store, name: str, mean: Any) -> Store:
    """The store with a statistic of the dataset and its interval."""
    store = add(store, f"{name}_mean", HEADS, mean)
    return add(store, f"{name}_interval", ("bound", *HEADS), np.stack([mean, mean]))


# -- places ------------------------------------------------------------------------------------------------------------


def test_patches_are_counted_from_0_as_everywhere_else(tmp_path: Path) -> None:
    """In words as in the numbers of a CSV: the central patch of 3 x 5 is in row 1, column 2."""
    examples = pytest.importorskip("attlas.analysis.report.sections.examples")
    positions = pytest.importorskip("attlas.analysis.report.sections.positions")
    assert base.where(np.eye(3)[::-1] * [1, 2, 3]) == "row 0, column 2"
    store = make_store(tmp_path / "s.zarr", images=8)
    (figure,) = examples.query_of_one(context_of(store, examples=1))
    assert "the patch in row 1, column 2 (framed)" in figure.caption
    table = np.random.default_rng(1).random((17, 5), np.float32)
    (figure,) = positions.positions(context_of(add(store, "position_embedding", ("token", "channel"), table)))
    assert [list(ticks) for ticks in figure.plots[0].ticks] == [[0, 1, 2], [0, 1, 2, 3, 4]]


# -- what hides something else, and what is said twice -----------------------------------------------------------------


def test_heads_without_anything_do_not_hide_the_others() -> None:
    """Of six images a share of 0 may be up to 0.39: such bars are pale, and the axis is that of all other heads."""
    plot = pytest.importorskip("attlas.analysis.report.plots.depth").Depth
    mean = np.array([[0, 0], [0.01, 0.02]])
    low, high = mean / 2, np.where(mean == 0, 0.39, 2 * mean)
    (ax,) = canvas.composed([plot("sink_share", "1", (0, 1), mean, low, high)], 1, style.Widths(), narrow=True).axes
    assert ax.get_ylim()[1] == pytest.approx(1.08 * 0.04)
    pale, bars = ax.collections
    assert [segment[:, 1].tolist() for segment in pale.get_segments()] == [[0, 0.39], [0, 0.39]]
    assert np.ptp([segment[:, 1] for segment in bars.get_segments()], axis=1).tolist() == pytest.approx(
        [0, 0, 0.015, 0.03]
    )


def test_what_holds_for_all_stores_is_said_once(small: Store, tmp_path: Path) -> None:
    """And a figure says how tall it is, for print."""
    render = pytest.importorskip("attlas.analysis.report.render")
    whole = make_store(tmp_path / "w.zarr", spec_of(attention_kind="mixed"), images=8)
    found = render._warned([context_of(small).facts, context_of(whole, "B").facts])
    assert found[0] == "1 of 8 images is left out, which could not be read."
    assert found[1] == "With fewer than 20 images or clusters, 95 % intervals are wide and rough: n = 7 images."
    assert [line.partition(" model")[0] for line in found[2:]] == ["B: This"]
    examples = pytest.importorskip("attlas.analysis.report.sections.examples")
    (figure,) = examples.query_of_one(context_of(small, examples=1))
    placed = render.Placed.of(figure, 1, style.svg(figure.draw(False)))
    width, height = figure.draw(False).get_size_inches()
    assert placed.tall == pytest.approx(height / width, rel=1e-3)
    html = page.report(small.path, tmp_path / "r.html", only=["query_map"]).read_text("utf-8")
    assert 'class="wide" style="--tall: ' in html


# -- nothing to see ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((2, 2)), "all values are 0"),
        (np.full((2, 2), np.nan), "no value is known"),
        (np.array([0.0, np.nan]), "all values are 0"),
        (np.array([np.nan, -1.0]), ""),
    ],
)
def test_what_would_be_an_empty_figure(values: Any, reason: str) -> None:
    assert numbers.why_empty(values) == reason


def test_a_statistic_of_zeros_is_told_and_the_others_are_drawn(small: Store) -> None:
    store = summed(small, "sink_share", np.zeros((2, 2)))
    (alone,) = further.further(context_of(store))
    assert alone == base.Absent("Further statistics by depth", "`sink_share` is not drawn: all values are 0.")
    store = summed(store, "position_deviation", np.full((2, 2), 0.25))
    (figure,) = further.further(context_of(store))
    assert "`sink_share` is not drawn: all values are 0." in figure.caption
    (ax,) = figure.draw(False).axes
    assert ax.get_title("left") == "position_deviation"
    assert ax.get_ylim() == pytest.approx((0, 0.27))
    assert not figure.wide
    assert {row[0] for row in figure.rows} == {"sink_share", "position_deviation"}


def test_one_image_has_no_distribution(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", images=1, reduce=True)
    _, seen = read(page.report(tmp_path / "s.zarr", tmp_path / "r.html", only=["over_images"]))
    assert "Distributions over images is not shown. One image only" in seen.text
    assert "It cannot be drawn" not in seen.text


def test_statistics_that_are_unknown_or_missing_cost_their_own_figures_only(tmp_path: Path) -> None:
    """All of the dataset's statistics are NaN, one lacks its interval: each says why, and the page is there."""
    store = make_store(tmp_path / "s.zarr", images=8)
    statistics = pytest.importorskip("attlas.analysis.statistics")
    statistics.analyze(store.path)
    statistics.analyze(store.path, ["received_attention", "offset_map_mean", "head_similarity", "sink_share"])
    writable = Store(store.path, writable=True)
    for name in writable.attrs["analyzed"]:
        array = writable.array(name)
        if array.dtype.kind == "f" and name != "quantile":
            array[...] = np.nan
    _, seen = read(page.report(store.path, tmp_path / "r.html", examples=0))
    for told in (
        "Attention distance by depth is not shown. distance is not drawn: no value is known.",
        "Mean rollout over the dataset is not shown. In rollout_mean no value is known.",
        "Where attention arrives is not shown. In received_attention_mean no value is known.",
        "Attention by offset is not shown. In offset_map_mean no value is known.",
        "How much heads differ is not shown. In head_similarity_mean no value is known.",
        "Further statistics by depth is not shown. sink_share is not drawn: no value is known.",
        "Score matrix of every layer, dataset mean is not shown. In score_matrix_mean no value is known.",
    ):
        assert told in seen.text
    assert "It cannot be drawn" not in seen.text
    assert base.summary(add(store, "head_importance_mean", HEADS, np.ones((2, 2))), "head_importance") is None


class Breaks:
    """A plot that cannot be drawn."""

    sheet = named_once = False

    def height(self, width: float) -> float:
        return 1 / 0

    def draw(self, ax: Any) -> None:
        raise AssertionError


def test_a_section_that_fails_says_why_in_one_line_without_a_path(
    small: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: Any) -> Any:
        yield base.Figure("a", "Breaks on paper", "n = 1 image", "words", [Breaks()], (), [])
        raise AttlasError(f"{context.store.path}: chunk 3\nis damaged")

    told: list[str] = []
    distance = next(one for one in sections.SECTIONS if one.name == "distance")
    monkeypatch.setattr(page, "SECTIONS", (base.Section("Damaged", broken), distance))
    with pytest.raises(AttlasError) as caught:
        page.report(small.path, tmp_path / "r.html", examples=0, progress=told.append)
    assert str(caught.value) == (
        f"{tmp_path / 'r.html'}: is written, without 2 parts that cannot be drawn (the first: Breaks on paper: "
        "ZeroDivisionError: division by zero)"
    )
    html, seen = read(tmp_path / "r.html")
    assert "Breaks on paper is not shown. It cannot be drawn (ZeroDivisionError: division by zero)." in seen.text
    assert "Damaged is not shown. It cannot be drawn (s.zarr: chunk 3 is damaged)." in seen.text
    assert str(tmp_path) not in html
    assert [c.partition(".")[0] for c in seen.captions] == ["Figure 1"]
    assert [(str(line), line.number, line.total) for line in told if isinstance(line, Step)] == [
        ("Damaged", 1, 2), ("Attention distance", 2, 2),
    ]  # fmt: skip
    assert all(line.brief for line in told if isinstance(line, Step))
    *before, end = [line for line in told if not isinstance(line, Step)]
    assert not [line for line in before if "Damaged" in line]  # what draws nothing is no line
    assert re.fullmatch(r"Attention distance: 1 figure, \d+\.\d s \(2/2\)", end)


def test_sums_that_are_damaged_are_told_with_what_mends_them(tmp_path: Path) -> None:
    """The page is there without them, and the command fails as `show` and `analyze` do."""
    store = make_store(tmp_path / "s.zarr", images=8, reduce=True)
    pytest.importorskip("attlas.analysis.statistics").analyze(store.path)
    next((store.path / "distance_mean").glob("c*")).write_bytes(b"damaged")
    again = "`attlas verify --repair` removes it, and `attlas analyze` writes it again"
    with pytest.raises(AttlasError, match=rf"r\.html: is written, without 1 part .*: distance_mean .*{again}\)$"):
        page.report(store.path, tmp_path / "r.html", only=["distance"])
    assert "Attention distance is not shown" in read(tmp_path / "r.html")[1].text
    store = make_store(tmp_path / "rows.zarr", images=8, reduce=True)
    next((store.path / "distance").glob("c*")).write_bytes(b"damaged")
    with pytest.raises(AttlasError, match=r"first: dataset statistics: .*rows\.zarr: distance .*reopens its units"):
        page.report(store.path, tmp_path / "r.html", only=["distance"], overwrite=True)


def test_a_store_that_is_being_analysed_is_not_shown_without_its_statistics(tmp_path: Path) -> None:
    """Of two reports that begin together, one makes them; the other left them out, and ended as if that were all."""
    store = make_store(tmp_path / "s.zarr", images=8, reduce=True)
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with locks.analysing(store.path):
            begun.set()
            ended.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(30)
    try:
        with pytest.raises(AttlasError, match=r"another analysis .* is writing it; wait until it has ended"):
            page.report(store.path, tmp_path / "r.html", only=["distance"])
    finally:
        ended.set()
        thread.join()
    assert not (tmp_path / "r.html").exists()
    assert "distance_mean" in page._ready(store.path, print, [])


# -- groups ------------------------------------------------------------------------------------------------------------


def grouped(store: Store, images: list[int]) -> Store:
    """Tests of groups of so many images, all sure."""
    count = len(images)
    where = ("label_group", *HEADS)
    store = add(store, "entropy_q_by_label", where, np.full((count, 2, 2), 1e-3))
    store = add(store, "entropy_difference_by_label", where, np.ones((count, 2, 2)))
    store = add(store, "label_group", ("label_group",), np.array([f"n{i:08d}" for i in range(count)]))
    store = add(store, "label_group_images", ("label_group",), np.array(images))
    return add(store, "rollout_mean_by_label", ("label_group", "y", "x"), np.ones((count, 3, 5)))


def test_groups_of_one_image_are_told_instead_of_drawn_empty(small: Store) -> None:
    (absent,) = groups.groups(context_of(grouped(small, [1, 1, 1])))
    assert absent.title == "Differences between groups by label"
    assert absent.reason.startswith("3 of 3 groups are of one image only, without a test.")


def test_groups_of_one_image_are_left_out_and_counted(small: Store) -> None:
    scatter, *_, maps = groups.groups(context_of(grouped(small, [1, 4, 5, 9])))
    assert "1 of 4 groups is of one image only, without a test." in scatter.caption
    assert "A point for each of 3 groups" in scatter.caption
    assert "n = 18 images." in scatter.caption
    assert len(scatter.rows) == 3 * 4
    assert len({row[0] for row in maps.rows}) == 3


def test_no_name_covers_a_point() -> None:
    """The surest points lie side by side at the top, where their names would hide each other and them."""
    x = np.concatenate([np.linspace(-1, 1, 40), [0.5, 0.52, 0.54]])
    y = np.concatenate([np.linspace(0, 3, 40), [3.0, 2.99, 2.98]])
    names = tuple((i, f"a rather long name {i}, 11.2") for i in (40, 41, 42))
    panel = volcano.Volcano("entropy", "nats", x, y, y > 1.3, 1.3, names)
    for narrow in (False, True):
        figure = canvas.composed([panel] * 2, 2, style.STYLES["paper"], narrow=narrow)
        figure.canvas.draw()
        for ax in figure.axes:
            dots = ax.transData.transform(np.column_stack([x, y]))
            boxes = [text.get_window_extent() for text in ax.texts]
            assert len(boxes) == 3
            assert not any(box.contains(*dot) for box in boxes for dot in dots)
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
            frame = ax.get_window_extent()
            assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)


# -- colours and words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [("class",), ("class", "register", "register"), ("class", "distillation"), ()])
def test_a_kind_of_token_has_one_colour_whatever_else_the_model_has(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    store = make_store(tmp_path / "s.zarr", spec_of(prefix=prefix), images=8, reduce=True)
    statistics = pytest.importorskip("attlas.analysis.statistics")
    statistics.analyze(store.path)
    statistics.analyze(store.path, ["self_mass", "neighbour_mass", "rest_mass"])
    (figure,) = depth.masses(context_of(Store(store.path)))
    drawn = figure.draw(False).axes[0].containers
    colours = {bar.get_label(): bar.patches[0].get_facecolor() for bar in drawn}
    wanted = {
        "class token": "#0072b2", "distillation token": "#e69f00", "register tokens": "#cc79a7", "itself": "#00543d",
        "its 8 neighbours": "#009e73", "all other patches": "#8fd3bd",
    }  # fmt: skip
    kinds = {f"{kind} token{'s' if prefix.count(kind) > 1 else ''}" for kind in prefix}
    assert colours.keys() == kinds | {"itself", "its 8 neighbours", "all other patches"}
    to_rgba = pytest.importorskip("matplotlib.colors").to_rgba
    assert colours == {label: to_rgba(wanted[label]) for label in colours}
    if prefix:
        (figure,) = depth.prefix_mass(context_of(Store(store.path)))
        dots = [
            next(line.get_color() for line in ax.lines if line.get_marker() == "o") for ax in figure.draw(False).axes
        ]
        assert dots == [style.CATEGORIES[kind] for kind in prefix]


def test_a_difference_from_the_first_store_has_the_colour_of_the_other(tmp_path: Path) -> None:
    """And its caption is a sentence: the unit of entropy does not end in a preposition."""
    stores = [make_store(tmp_path / f"{name}.zarr", spec_of(tag=name), reduce=True, images=8, seed=i)
              for i, name in enumerate(("one", "two", "three"))]  # fmt: skip
    contexts = [context_of(store, letter) for store, letter in zip(stores, "ABC", strict=True)]
    parts = [part for one in comparison.comparison(contexts) for part in one.parts(contexts[0])]
    shown = {part.name: part for part in parts if isinstance(part, base.Figure)}
    lines, differences = (
        [line.get_color() for line in shown[name].draw(False).axes[0].lines if line.get_label()[0] in "ABC"]
        for name in ("compare_entropy", "compare_entropy_difference")
    )
    assert lines == list(style.SERIES[:3])
    assert differences == lines[1:]  # the legend says "B − A"
    assert "Difference from A as a share of ln N, image by image" in (shown["compare_entropy_difference"].caption)
    assert not [part for part in shown.values() if re.search(r"\b(in of|of of|in in)\b", part.caption + part.alt)]


def test_random_weights_have_no_other_name_than_the_specs_own(tmp_path: Path) -> None:
    spec = make_spec(tag="in1k")
    make_store(tmp_path / "s.zarr", spec, images=4, reduce=True)
    html, seen = read(page.report(tmp_path / "s.zarr", tmp_path / "r.html", only=["distance"]))
    assert "Pretrained tag" not in seen.text
    named = set(re.findall(r"tiny_test[\w.]*", re.sub(r'"data:[^"]*"', "", html)))
    assert {name.rstrip(".") for name in named} == {spec.name}


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_files_is_not_mixed_with_figures(small: Store, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "distance.pdf").write_text("mine")
    with pytest.raises(UsageError, match=r"figures: holds files.*--overwrite"):
        page.report(small.path, tmp_path / "r.html", figures=folder, examples=0)
    assert (folder / "distance.pdf").read_text() == "mine"
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(UsageError, match="is a file"):
        page.report(small.path, tmp_path / "r.html", figures=folder / "distance.pdf", overwrite=True)
    page.report(small.path, tmp_path / "r.html", figures=folder, only=["distance"], overwrite=True)
    assert (folder / "distance.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["x.pdf", "x", "x.html.zip"])
def test_a_page_is_html_by_name(small: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is an HTML page; name it x(\.html)+"):
        page.report(small.path, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_boxes_that_do_not_read_are_refused_before_any_work(small: Store, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(AttlasError, match="COCO"):
        page.report(small.path, tmp_path / "r.html", boxes=tmp_path / "b.json")
    assert not (tmp_path / "r.html").exists()


# -- the page in a browser ---------------------------------------------------------------------------------------------


def test_figures_are_fluid_tables_scroll_in_their_own_box_and_drawings_follow_a_dark_page(
    small: Store, tmp_path: Path
) -> None:
    html, seen = read(page.report(small.path, tmp_path / "r.html", examples=0))
    css = html.partition("<style>")[2].partition("</style>")[0]
    rules = re.search(r"figure img {([^}]*)}", css)
    assert rules is not None
    assert {"width: 100%", "max-width: 100%", "height: auto"} <= {rule.strip() for rule in rules[1].split(";")}
    assert re.search(r"\.scroll { overflow-x: auto; max-width: 100%; container-type: inline-size; }", css)
    assert re.search(r"caption span {[^}]*max-width: min\(80ch, 100cqi\)", css)
    assert html.count("<table") == html.count('<div class="scroll"><table')
    plain = re.sub(r'"data:[^"]*"| style="--tall: [0-9.]+"', "", html)
    assert not re.search(r"<(img|figure|table|div)[^>]*(width=|style=)", plain)
    assert "break-inside: avoid" in css.partition("@media print")[2]
    assert (
        "details:not([open]):not(#facts), .absent, .hint, #explore { display: none; }"
        in css.partition("@media print")[2]
    )
    drawings = [unquote(url) for url in seen.loaded if url.startswith("data:image/svg")]
    assert drawings
    for drawing in drawings:
        assert "@media (prefers-color-scheme:dark)" in drawing
        assert "fill: #ffffff" not in drawing
        assert "fill: var(--cffffff)" in drawing
        assert set(re.findall(r"var\((--c\w+)\)", drawing)) <= set(re.findall(r"(--c\w+):#", drawing))


# -- the markup of captions --------------------------------------------------------------------------------------------


def test_markup_is_escaped_but_for_its_marks() -> None:
    text = "a <b> & `x<y` *so* A~ij~ [@park2023] 3 * 4, 5 * 6"
    assert markup.rich(text) == (
        "a &lt;b&gt; &amp; <code>x&lt;y</code> <em>so</em> A<sub>ij</sub> "
        '<a class="cite" href="#ref-park2023">Park et al. 2023</a> 3 * 4, 5 * 6'
    )
    assert markup.plain(text) == "a <b> & x<y so A_ij Park et al. 2023 3 * 4, 5 * 6"
    assert markup.rich(markup.code("a`[@park2023]*b*")) == "<code>a&#39;[@park2023]*b*</code>"


def test_every_citation_of_a_definition_is_a_publication() -> None:
    concepts = [text for _, text in definitions.CONCEPTS.values()]
    texts = [*definitions.DEFINITIONS.values(), *concepts, *definitions.READING]
    found = {key for text in texts for key in markup.cited(text)}
    assert found <= bibliography.REFERENCES.keys()
    assert not [text for text in texts if re.search(r"[{}<>]|\[@(?!\w+\])", text)]


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "..\\secret.png", "C:secret.png"])
def test_a_path_that_leads_out_of_the_folder_of_images_is_not_read(tmp_path: Path, path: str) -> None:
    """A store from somebody else may hold any text."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    store = cast("Store", SimpleNamespace(plan=SimpleNamespace(sample=()), read=lambda name, image: path))
    assert leads_out(path)
    assert images._pixels(store, 0, tmp_path / "images") is None
    assert not leads_out("n01/cat 12:30.png")
