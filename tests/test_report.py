"""The report: its numbers are the store's, it says what it shows of how many images, and it is complete in itself."""

from __future__ import annotations

import base64
import csv
import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine import layout
from attlas.engine.labels import map_labels
from attlas.engine.plan import Plan
from attlas.engine.sources import Item
from attlas.engine.store import Store
from attlas.exporter.errors import AttlasError, UsageError
from attlas.exporter.spec import GraphSpec, Output, Weights
from support import PATCH, make_spec

pytest.importorskip("matplotlib")
page = pytest.importorskip("attlas.analysis.page")
kernel = pytest.importorskip("attlas.analysis.kernel")
facts = pytest.importorskip("attlas.analysis.facts")
gallery = pytest.importorskip("attlas.analysis.gallery")
formulas = pytest.importorskip("attlas.analysis.formulas")

IMAGES, UNIT, BROKEN = 22, 4, 5
LINK = re.compile(r"^https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.)")


def spec_of(**changes: Any) -> GraphSpec:
    """A model with registers on a grid that is no square."""
    values: dict[str, Any] = {"grid": (3, 5), "prefix": ("class", "register"), "layers": 2, "heads": 2, "tag": "tagged"}
    values["weights"] = Weights("checkpoint", "ab" * 32)
    spec: GraphSpec = make_spec(**(values | changes))
    return spec


def attention_of(spec: GraphSpec, images: int = IMAGES, seed: int = 1) -> np.ndarray:
    """(image, layer, head, query, key): rows that sum to 1, far from uniform."""
    shape = (images, spec.depth, spec.heads, spec.tokens, spec.tokens)
    e = np.exp(np.random.default_rng(seed).normal(size=shape) * 2)
    rows: np.ndarray = (e / e.sum(-1, keepdims=True)).astype(np.float16)
    return rows


def make_store(
    path: Path, spec: GraphSpec | None = None, *, keep: tuple[str, ...] = ("attention",), units: Any = None,
    reduce: bool = False, seed: int = 1, images: int = IMAGES, dtype: str = "float16",
) -> Store:  # fmt: skip
    """A store as a run leaves it: one image unreadable, of the labels half name the class of the largest logit."""
    spec = spec or spec_of()
    a = attention_of(spec, images, seed)
    plan = Plan(images=images, batch=2, unit=UNIT, sample=tuple(range(1, images, 3)), identity={"graph": "cd" * 32})
    choice = layout.Keep.choose(spec, keep, None, dtype)
    reducer = kernel.Reducer(spec) if reduce else None
    items = [Item(f"n{i % 2:08d}/{i:03}.png", f"n{i % 2:08d}", 1, 1) for i in range(images)]
    labels = map_labels([i.label for i in items], spec.classes)
    arrays, values = layout.arrays(spec, plan, layout.templates(spec, choice, reducer), items, labels)
    attrs = {
        "dataset": "pictures <b>", "selection": f"all {images} images", "kept": choice.identity(),
        "versions": {"attlas": "0.1.0"},
    }  # fmt: skip
    store = Store.create(path, spec, plan, arrays, values=values, attrs=attrs)
    for k in range(plan.units) if units is None else units:
        _fill(store, k, a, reducer)
    return store


def _fill(store: Store, k: int, a: np.ndarray, reducer: Any) -> None:
    span, spec = store.plan.unit_range(k), store.spec
    at = slice(span.start, span.stop)
    valid = np.array([i != BROKEN for i in span])
    rows: dict[str, Any] = {"valid": valid, "height": np.full(len(span), 30), "width": np.full(len(span), 40)}
    rows["error"] = np.array(["" if ok else "is no picture" for ok in valid], dtype=np.dtypes.StringDType())
    rows["logits"] = np.eye(len(spec.classes), dtype=np.float32)[np.zeros(len(span), int)]
    part = a[at].copy()
    part[~valid] = np.nan
    pool = None
    if "pool_attention" in store:
        pool = np.random.default_rng(k).random((len(span), 2, 1, spec.tokens)).astype(np.float32)
        rows["pool_attention"] = pool = pool / pool.sum(-1, keepdims=True)
    if "prefix_attention" in store:
        rows["prefix_attention"] = part[:, :, :, : len(spec.prefix)]
    if reducer is not None:
        found = reducer([np.ascontiguousarray(layer) for layer in np.moveaxis(a[at], 1, 0)], pool)
        del found["_finite"]
        for values in found.values():
            values[~valid] = np.nan if values.dtype.kind == "f" else -1
        rows |= found
    if "attention" in store:
        for layer in range(spec.depth):
            store.write("attention", at.start, part[:, layer : layer + 1], slice(layer, layer + 1))
    if "attention_code" in store:
        codes = np.round(255 * np.sqrt(np.nan_to_num(part.astype(np.float32)))).astype(np.uint8)
        for layer in range(spec.depth):
            store.write("attention_code", at.start, codes[:, layer : layer + 1], slice(layer, layer + 1))
    for name, values in rows.items():
        store.write(name, at.start, np.asarray(values))
    for place, image in store.plan.sampled(span):
        store.write("pixels", place, np.full((1, *spec.image_size, 3), 10 * image, np.uint8))
    store.mark_done(k)


class Seen(HTMLParser):
    """What a browser would find: the text, figures, links and everything that would be loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.captions: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in ("meta", "link", "img", "source", "br"):
            self.open.append(tag)
        if tag == "a":
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "srcset") if name in values]
        if tag == "link":
            self.loaded.append(values["href"])
        if tag == "img":
            self.alts.append(values["alt"])
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "figcaption" in self.open:
            self.captions[-1] += data


def read(path: Path) -> tuple[str, Seen]:
    html = path.read_text("utf-8")
    return html, Seen(html)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(store: Store, name: str) -> np.ndarray:
    """The last column of a figure's numbers, without drawing it."""
    shown = gallery.gallery(store, facts.gather(store), 1)
    return np.array([row[-1] for row in next(e for e in shown if getattr(e, "name", "") == name).rows])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Path]:
    """A whole store, its report, and the figures for print."""
    place = tmp_path_factory.mktemp("report")
    make_store(place / "s.zarr")
    out = page.report([place / "s.zarr"], place / "r.html", figures=place / "figures", examples=3)
    return Store(place / "s.zarr"), out, place / "figures"


def test_it_loads_nothing_and_every_tag_is_closed(made: tuple[Store, Path, Path]) -> None:
    """Self-contained: images are data, no script, no font; only citations lead elsewhere, and inner links arrive."""
    html, seen = read(made[1])
    assert seen.open == []
    assert all(source.startswith("data:") for source in seen.loaded)
    assert not {"script", "iframe", "object", "video"} & set(seen.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert all(LINK.match(link) or link.startswith("#") for link in seen.links)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_no_path_of_this_machine_is_on_the_page(made: tuple[Store, Path, Path]) -> None:
    html, seen = read(made[1])
    hidden = [base64.b64decode(s.partition("base64,")[2]).decode() for s in seen.loaded if "base64," in s]
    for text in (html, *hidden):
        assert str(made[0].path.parent) not in text
        assert str(Path.cwd()) not in text


def test_the_first_page_says_what_was_run_and_how_right_it_was(made: tuple[Store, Path, Path]) -> None:
    """Of 21 valid images 11 have label 0, which is what every logit says."""
    html, seen = read(made[1])
    low, high = facts.wilson(11, 21)
    for wanted in (
        "tiny_test.tagged", "ab" * 32, "cd" * 32, "pictures <b>", "all 22 images", "float16", "class, register",
        "22 planned, 22 done, 21 valid, 1 unreadable", "n00000001/005.png", "is no picture",
        f"52.4 % (95 % interval {100 * low:.1f} to {100 * high:.1f}; 11 of 21)", "resize 24x40 (squash, bilinear)",
    ):  # fmt: skip
        assert wanted in seen.text
    assert "random (an untrained" not in seen.text
    assert "pictures <b>" not in html


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3."""
    assert facts.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert facts.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert facts.wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_every_caption_states_n_and_every_figure_has_words(made: tuple[Store, Path, Path]) -> None:
    _, seen = read(made[1])
    assert len(seen.captions) == len(seen.alts) == 11
    assert all(re.search(r"n = (21 images|7 images|1 image)", caption) for caption in seen.captions)
    assert all(len(alt) > 40 for alt in seen.alts)
    assert [c.partition(".")[0] for c in seen.captions] == [f"Figure {i}" for i in range(1, 12)]


def test_figures_are_printed_with_their_numbers_beside_them(made: tuple[Store, Path, Path]) -> None:
    store, _, folder = made
    names = {p.stem for p in folder.iterdir()}
    assert names == {
        "distance", "entropy", "prefix_mass", "rollout_mean", "examples", "heads", "score_matrix", "score_matrix_mean",
        "query_map", "matrices", "extremes",
    }  # fmt: skip
    for name in names:
        pdf, png = ((folder / f"{name}.{suffix}").read_bytes() for suffix in ("pdf", "png"))
        assert b"/Type /Font" in pdf
        assert b"Type3" not in pdf
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)
        assert box is not None
        assert round(float(box[1]) / 72, 2) in (3.25, 6.75)
        assert int.from_bytes(png[16:20]) in (975, 2025)
    for name in ("distance", "distance_renormalized"):
        found = [r for r in rows_of(folder / "distance.csv") if r["statistic"] == name]
        values = np.array([float(r["mean"]) for r in found]).reshape(2, 2)
        assert np.array_equal(values, store.read(f"{name}_mean"))
        low = np.array([float(r["low"]) for r in found]).reshape(2, 2)
        assert np.array_equal(low, store.read(f"{name}_interval")[0])
    scores = np.array([float(r["score"]) for r in rows_of(folder / "score_matrix_mean.csv")])
    assert np.array_equal(scores.reshape(2, 3, 5), store.read("score_matrix_mean"))


def test_uniform_attention_stands_where_it_belongs(made: tuple[Store, Path, Path]) -> None:
    """Not renormalised it keeps the patches' share of the keys; entropies are logarithms of the keys in use."""
    spec, _, folder = made[0].spec, made[1], made[2]
    uniform = formulas.uniform_distance(spec.grid, spec.patch_size)
    even = np.full((1, spec.tokens, spec.tokens), 1 / spec.tokens)
    lines = {r["statistic"]: float(r["uniform"]) for n in ("distance", "entropy") for r in rows_of(folder / f"{n}.csv")}
    assert lines["distance"] == pytest.approx(formulas.distance(even, spec.grid, spec.patch_size)[0])
    assert lines["distance_renormalized"] == pytest.approx(uniform)
    assert lines["entropy"] == pytest.approx(math.log(17))
    assert lines["entropy_patch"] == pytest.approx(math.log(15))
    assert {float(r["uniform"]) for r in rows_of(folder / "prefix_mass.csv")} == {1 / 17}


def test_examples_are_chosen_by_order_and_their_maps_are_times_uniform(made: tuple[Store, Path, Path]) -> None:
    """Three of the sample's valid images, by position; the class row of the first, mean over heads, times 17 keys."""
    store, _, folder = made
    found = rows_of(folder / "examples.csv")
    paths = list(dict.fromkeys(r["path"] for r in found))
    assert paths == [str(store.read("path", i)) for i in (4, 10, 16)]
    mine = [float(r["times_uniform"]) for r in found if (r["path"], r["map"]) == (paths[0], "attention")]
    row = store.read("attention", (4, 1)).astype(np.float32)[:, 0, 2:]
    np.testing.assert_allclose(mine, row.mean(axis=0) * 17, rtol=1e-6)
    rolled = np.array([float(r["times_uniform"]) for r in found if (r["path"], r["map"]) == (paths[0], "rollout")])
    layers = list(store.read("attention", 4))
    wanted = np.asarray(formulas.rollout(layers, store.spec.grid)).ravel()
    np.testing.assert_allclose(rolled, wanted / wanted.mean(), rtol=1e-5)


def test_equal_stores_give_equal_pages(made: tuple[Store, Path, Path], tmp_path: Path) -> None:
    again = page.report(made[0].path, tmp_path / "again.html", figures=tmp_path / "figures", examples=3)
    assert again.read_bytes() == made[1].read_bytes()
    for path in made[2].iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes()


def test_a_page_that_exists_is_kept_unless_told_otherwise(made: tuple[Store, Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    output.write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        page.report([made[0].path], output)
    assert output.read_text() == "mine"
    page.report([made[0].path], output, overwrite=True, examples=1)
    assert "Attention report" in output.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_what_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AttlasError, match="there is no such store"):
        page.report([tmp_path / "none.zarr"], tmp_path / "r.html")
    with pytest.raises(UsageError, match="no store"):
        page.report([], tmp_path / "r.html")
    make_store(tmp_path / "empty.zarr", units=[])
    with pytest.raises(AttlasError, match="no image that is done"):
        page.report([tmp_path / "empty.zarr"], tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html"))


def test_random_weights_and_an_unfinished_store_are_said_before_all_else(tmp_path: Path) -> None:
    """And once the run goes on, the statistics are made anew."""
    spec = spec_of(weights=Weights("random", "ab" * 32), classes=1)
    store = make_store(tmp_path / "s.zarr", spec, units=[0, 2])
    html, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1))
    assert "Weights are random: these maps show an untrained model." in seen.text
    assert "Partial: 8 of 22 images are done. What is done is no random sample" in seen.text
    assert html.index("Partial:") < html.index("<nav")
    assert all(re.search(r"n = (8 images|1 image)", caption) for caption in seen.captions)
    for k in (1, 3, 4, 5):
        _fill(store, k, attention_of(spec), None)
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=0, overwrite=True))
    assert "Partial" not in seen.text
    assert "n = 21 images" in seen.captions[0]


def test_a_model_without_prefix_tokens_is_read_from_its_patches(tmp_path: Path) -> None:
    """No row 0 is taken for a class token: the readout is the mean of the patch rows."""
    store = make_store(tmp_path / "s.zarr", spec_of(prefix=(), weights=Weights("pretrained", "0")))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1))
    assert "mean of the patch rows" in seen.text
    assert "has no prefix token" in seen.text
    image = [i for i in store.plan.sample if i != BROKEN][3]
    wanted = store.read("attention", (image, 1)).astype(np.float32).mean(axis=1) * 15
    np.testing.assert_allclose(numbers_of(store, "heads"), wanted.ravel(), rtol=1e-5)


def test_a_pools_own_map_is_the_readout(tmp_path: Path) -> None:
    spec = spec_of(prefix=(), pooling="pool")
    shape = (None, 2, 1, spec.tokens)
    pool = Output("pool_attention", ("image", "pool_head", "pool_query", "key"), shape)
    store = make_store(tmp_path / "s.zarr", dataclasses.replace(spec, outputs=(*spec.outputs, pool)))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1))
    assert "pool's attention of layer" in seen.text
    image = [i for i in store.plan.sample if i != BROKEN][3]
    wanted = store.read("pool_attention", image)[:, 0] * 15
    np.testing.assert_allclose(numbers_of(store, "heads"), wanted.ravel(), rtol=1e-5)


def test_where_attention_was_not_kept_the_prefix_rows_still_show_and_the_rest_names_the_option(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", keep=("none",), reduce=True)
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", figures=tmp_path / "f"))
    names = {p.stem for p in (tmp_path / "f").iterdir()}
    assert names == {"distance", "entropy", "prefix_mass", "rollout_mean", "examples", "heads", "extremes"}
    assert seen.text.count("attlas run --keep attention would have kept the score matrix") == 2
    assert "no large array" in seen.text


def test_without_attention_and_statistics_the_page_says_how_to_have_them(tmp_path: Path) -> None:
    """Prefix-free, nothing kept: only facts and pictures are left, and no traceback."""
    make_store(tmp_path / "s.zarr", spec_of(prefix=()), keep=("none",))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1))
    assert "Attention distance by depth is not shown." in seen.text
    assert "--keep attention" in seen.text


@pytest.mark.parametrize("kind", ["mean", "uint8"])
def test_head_means_and_codes_show_what_they_can(tmp_path: Path, kind: str) -> None:
    """Codes give every figure and a warning."""
    if kind == "mean":
        make_store(tmp_path / "s.zarr", spec_of(attention_kind="mixed"))
    else:
        make_store(tmp_path / "s.zarr", dtype="uint8")
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=int(kind == "uint8")))
    if kind == "mean":
        assert "rows are no distributions, and have no entropy" in seen.text
    else:
        assert "uint8 codes, good for averages" in seen.text
        assert len(seen.captions) == 11


def test_two_stores_stand_side_by_side_on_the_images_they_share(tmp_path: Path) -> None:
    """In image widths, and the paired difference is that of the stores' own numbers."""
    make_store(tmp_path / "one.zarr")
    make_store(tmp_path / "two.zarr", spec_of(grid=(4, 4), prefix=(), layers=2, tag="other"), seed=3, images=16)
    both = [tmp_path / "one.zarr", tmp_path / "two.zarr"]
    _, seen = read(page.report(both, tmp_path / "r.html", figures=tmp_path / "f", examples=0))
    assert "The same n = 15 images in every store" in seen.captions[0]
    assert "A. tiny_test.tagged" in seen.text
    assert "B. tiny_test.other" in seen.text
    assert {"compare_distance_renormalized.csv", "a-distance.pdf", "b-score_matrix_mean.png"} <= {
        p.name for p in (tmp_path / "f").iterdir()
    }
    images = [i for i in range(16) if i != BROKEN]
    widths = [5 * PATCH, 4 * PATCH]
    mine = [Store(p).read("distance_renormalized")[images] / w for p, w in zip(both, widths, strict=True)]
    rows = rows_of(tmp_path / "f" / "compare_distance_renormalized.csv")
    for letter, values in zip("AB", mine, strict=True):
        found = [float(r["mean"]) for r in rows if r["store"] == letter]
        np.testing.assert_allclose(found, values.mean(axis=(0, 2)), rtol=1e-5)
    assert f"{float(mine[1].mean() - mine[0].mean()):+.3g}" in seen.text


def test_stores_of_other_images_are_not_paired(tmp_path: Path) -> None:
    make_store(tmp_path / "one.zarr", images=8)
    store = make_store(tmp_path / "two.zarr", images=8, seed=2)
    store.array("path")[...] = np.array([f"other/{i}.png" for i in range(8)], dtype=np.dtypes.StringDType())
    _, seen = read(page.report([tmp_path / "one.zarr", tmp_path / "two.zarr"], tmp_path / "r.html", examples=0))
    assert "share no images by path" in seen.captions[0]
    assert "Paired difference of" not in seen.text


def test_what_an_analysis_was_asked_for_is_shown_too(tmp_path: Path) -> None:
    """Shares of attention add up to 1, and the registers' share is the sum of theirs; without, the page says how."""
    make_store(tmp_path / "s.zarr", spec_of(prefix=("class", "register", "register"), heads=4))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=0))
    assert "attlas analyze s.zarr self_mass neighbour_mass" in seen.text
    names = ["self_mass", "neighbour_mass", "rest_mass", "sink_share", "offset_map_mean"]
    pytest.importorskip("attlas.analysis.statistics").analyze(tmp_path / "s.zarr", names)
    _, seen = read(
        page.report(tmp_path / "s.zarr", tmp_path / "r.html", figures=tmp_path / "f", examples=0, overwrite=True)
    )
    rows = rows_of(tmp_path / "f" / "masses.csv")
    assert {r["part"] for r in rows} >= {"class token", "register tokens", "itself"}
    for layer in ("0", "1"):
        assert sum(float(r["share"]) for r in rows if r["layer"] == layer) == pytest.approx(1, abs=1e-3)
    store = Store(tmp_path / "s.zarr")
    sinks = [float(r["mean"]) for r in rows_of(tmp_path / "f" / "further.csv") if r["statistic"] == "sink_share"]
    assert np.array_equal(sinks, store.read("sink_share_mean").ravel())
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
        shown = next(
            e for e in gallery.gallery(store, facts.gather(store), 1, folder) if e.title.startswith("Extremes")
        )
        found = list(dict.fromkeys(row[0] for row in shown.rows))
        assert found == [str(store.read("path", i)) for i in [*order[:2], *order[-2:]]]
        assert "Chosen after looking" in shown.caption
        assert f"out of n = {len(order)} images" in shown.caption
