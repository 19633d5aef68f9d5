"""The report: its numbers are the store's, it says what it shows of how many images, and it is complete in itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
page = pytest.importorskip("attlas.analysis.report.page")
kernel = pytest.importorskip("attlas.analysis.kernels.fused")
facts = pytest.importorskip("attlas.analysis.report.facts")
gallery = pytest.importorskip("attlas.analysis.report.gallery")
methods = pytest.importorskip("attlas.analysis.report.methods")
objects = pytest.importorskip("attlas.analysis.report.objects")
contrasts = pytest.importorskip("attlas.analysis.report.contrasts")
positions = pytest.importorskip("attlas.analysis.report.positions")
formulas = pytest.importorskip("attlas.analysis.formulas")

IMAGES, UNIT, BROKEN = 22, 4, 5
LINK = re.compile(r"^https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.|github\.com/)")


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
    narrow = re.findall(r'srcset="([^"]*)"', html)
    assert narrow
    assert not any(" " in source for source in narrow)  # at a space a browser takes the URL to end
    assert not {"script", "iframe", "object", "video"} & set(seen.tags)
    outside = re.sub(r'src(set)?="data:[^"]*"', "", html)
    assert "url(" not in outside
    assert "@import" not in outside
    assert not re.findall(r"url\((?!#)|href='(?!#|data:)", unquote(" ".join(seen.loaded)))
    assert all(LINK.match(link) or link.startswith("#") for link in seen.links)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_no_path_of_this_machine_is_on_the_page(made: tuple[Store, Path, Path]) -> None:
    html, seen = read(made[1])
    hidden = [unquote(source) for source in seen.loaded]
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
    assert len(seen.captions) == len(seen.alts) == 12
    assert all(re.search(r"n = (21 images|7 images|1 image)", caption) for caption in seen.captions)
    assert all(len(alt) > 40 for alt in seen.alts)
    assert [c.partition(".")[0] for c in seen.captions] == [f"Figure {i}" for i in range(1, 13)]


def test_figures_are_printed_with_their_numbers_beside_them(made: tuple[Store, Path, Path]) -> None:
    store, _, folder = made
    names = {p.stem for p in folder.iterdir()}
    assert names == {
        "distance", "entropy", "prefix_mass", "rollout_mean", "examples", "heads", "score_matrix", "score_matrix_mean",
        "query_map", "matrices", "extremes", "distributions",
    }  # fmt: skip
    for name in names:
        pdf, png = ((folder / f"{name}.{suffix}").read_bytes() for suffix in ("pdf", "png"))
        assert b"/Type /Font" in pdf
        assert b"<svg" in (folder / f"{name}.svg").read_bytes()
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
    assert names == {
        "distance", "entropy", "prefix_mass", "distributions", "rollout_mean", "examples", "heads", "extremes",
    }  # fmt: skip
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
        assert len(seen.captions) == 12


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


def test_the_methods_are_those_of_the_stores_own_statistics(made: tuple[Store, Path, Path]) -> None:
    """Each definition that the store holds, none that it does not, and an entry for every citation."""
    text = methods.describe([made[0].path])
    paragraph, *entries = text.split("\n\n")
    assert "entropy_patch: The same over patch keys" in paragraph
    assert "Raghu et al. 2021, fig. 3" in paragraph
    assert "21 images" in paragraph
    assert "<code" not in paragraph
    for absent in ("chefer", "sink_share", "Welch"):
        assert absent not in text
    keys = {entry.partition("{")[2].partition(",")[0] for entry in entries}
    assert keys == {"abnar2020", "darcet2024", "dosovitskiy2021", "efron1979", "hebbar", "park2023", "raghu2021",
                    "wilson1927"}  # fmt: skip
    assert "eprint = {2108.08810}" in text
    assert text.isascii() or all(entry.isascii() for entry in entries)


def test_every_statistic_of_the_catalog_has_words_of_its_own(tmp_path: Path) -> None:
    """What this module does not define is told by the array's own description, so that no number goes unsaid."""
    store = make_store(tmp_path / "s.zarr")
    catalog = pytest.importorskip("attlas.analysis.catalog").CATALOG
    for name, statistic in catalog.items():
        if name not in store:
            array = layout.ArraySpec(name, ("layer",), (2,), (2,), "float32", math.nan, {})
            store = Store(store.path, writable=True)
            store.add([array])
        text = methods.describe([store.path])
        told = methods.METHODS.get(name.removesuffix("_mean"), ("", ""))[0] or statistic.long_name
        assert told in text


def test_the_methods_are_printed_without_a_page(made: tuple[Store, Path, Path], capsys: Any) -> None:
    from attlas.cli import main

    main(["report", str(made[0].path), "--methods"])
    assert capsys.readouterr().out.strip() == methods.describe([made[0].path])
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(made[0].path)])
    assert stopped.value.code == 2
    assert "--methods" in capsys.readouterr().err


def add(store: Store, name: str, dims: tuple[str, ...], values: Any) -> Store:
    """Put an array into a store, as another command would have."""
    given = np.asarray(values)
    kind, fill = ("str", "") if given.dtype.kind in "UT" else (str(given.dtype), 0)
    writable = Store(store.path, writable=True)
    if kind == "str":
        given = given.astype(np.dtypes.StringDType())
    writable.add([layout.ArraySpec(name, dims, given.shape, given.shape, kind, fill, {})], {name: given})
    return Store(store.path)


def coco(path: Path, marks: dict[str, list[tuple[float, ...]]]) -> Path:
    """A COCO file of boxes (x, y, width, height) by file name, all of one kind."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(marks)]
    boxes = [(i, box) for i, one in enumerate(marks.values()) for box in one]
    found = [{"id": n, "image_id": i, "category_id": 1, "bbox": list(box)} for n, (i, box) in enumerate(boxes)]
    data = {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": found}
    path.write_text(json.dumps(data))
    return path


def test_a_baseline_is_compared_and_no_more(tmp_path: Path) -> None:
    """It has a letter, a line and a difference, and no figures of its own; stores of one model keep their names."""
    make_store(tmp_path / "one.zarr", reduce=True)
    random = spec_of(weights=Weights("random", "ab" * 32))
    make_store(tmp_path / "idle.zarr", random, seed=3, reduce=True)
    out = page.report(tmp_path / "one.zarr", tmp_path / "r.html", baseline=tmp_path / "idle.zarr",
                      figures=tmp_path / "f", examples=1)  # fmt: skip
    _, seen = read(out)
    names = {p.stem for p in (tmp_path / "f").iterdir()}
    assert {"compare_distance_renormalized_difference", "compare_entropy_difference", "compare_attention"} <= names
    assert "a-distance" in names
    assert not [name for name in names if name.startswith("b-")]
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
    comparison = pytest.importorskip("attlas.analysis.report.comparison")
    for store in both:
        pytest.importorskip("attlas.analysis.statistics").analyze(store.path)
    shown, _ = comparison.compare(both, [facts.gather(s, letter) for s, letter in zip(both, "AB", strict=True)])
    rows = next(e for e in shown if e.name == "compare_entropy_difference").rows
    good = [i for i in range(8) if i != BROKEN]
    a, b = (s.read("entropy")[good].astype(float).mean(axis=2) / math.log(17) for s in both)
    assert [row[1] for row in rows] == [0.5, 1.0]
    np.testing.assert_allclose([row[2] for row in rows], (b[:, [1, 3]] - a).mean(axis=0), rtol=1e-5)


def test_maps_with_gradients_stand_beside_raw_attention_where_the_run_kept_them(tmp_path: Path) -> None:
    """Their numbers are the formulas', and without gradients the page names the option."""
    spec = spec_of()
    store = make_store(tmp_path / "s.zarr", spec, images=8)
    first = next(iter(gallery.gallery(store, facts.gather(store), 2)))
    assert {row[1] for row in first.rows} == {"attention", "rollout"}
    _, seen = read(page.report(store.path, tmp_path / "r.html", examples=1))
    assert "--keep gradient_mean with a graph of attlas export --gradients" in seen.text.replace("`", "")
    product = np.random.default_rng(2).normal(size=(8, 2, 17, 17)).astype(np.float32)
    for name, values in (("gradient_mean", product), ("gradient_positive", np.abs(product))):
        store = add(store, name, ("image", "layer", "query", "key"), values)
    store = add(store, "target", ("image",), np.full(8, 1, np.int32))
    first = next(iter(gallery.gallery(store, facts.gather(store), 1)))
    path = first.rows[0][0]
    image = [str(p) for p in store.read("path")].index(path)
    for kind, layers in (("gradient_rollout", product), ("chefer", np.abs(product))):
        wanted = np.asarray(getattr(formulas, kind)(list(layers[image]), spec.grid, 0))
        mine = [row[-1] for row in first.rows if row[1] == kind]
        np.testing.assert_allclose(mine, (wanted / wanted.mean()).ravel(), rtol=1e-5)
    assert "gradients of" in first.alt


def test_groups_are_shown_with_their_q_values(tmp_path: Path) -> None:
    """Every test is a point, those at q <= 0.05 are counted, and groups of one image are told."""
    store = make_store(tmp_path / "s.zarr", images=8)
    shown = list(contrasts.contrasts(store, facts.gather(store)))
    assert "--by label" in shown[0].reason
    q = np.array([[[0.001, 0.2], [0.5, np.nan]], [[0.04, 0.9], [0.6, 0.7]]])
    where = ("label_group", "layer", "head")
    store = add(store, "entropy_q_by_label", where, q)
    store = add(store, "entropy_difference_by_label", where, np.arange(8.0).reshape(2, 2, 2))
    store = add(store, "label_group", ("label_group",), np.array(["n00000000", "n00000001"]))
    store = add(store, "label_group_images", ("label_group",), np.array([6, 1]))
    store = add(store, "rollout_mean_by_label", ("label_group", "y", "x"), np.ones((2, 3, 5)))
    scatter, maps = contrasts.contrasts(store, facts.gather(store))
    assert "2 of 7 differences at q ≤ 0.05" in scatter.caption
    assert "1 of the groups have one image and no test" in scatter.caption
    assert "fewer than 5" not in scatter.caption
    assert len(scatter.rows) == 7
    assert scatter.rows[-1][-2:] == (7.0, 0.7)
    assert {row[0] for row in maps.rows} == {scatter.rows[0][1]}
    assert "Welch" in methods.describe([store.path])


def test_position_embeddings_are_compared_where_a_model_has_them(tmp_path: Path) -> None:
    """Prefix rows left out, the cosine of a patch with itself 1; rotary models are told why not."""
    store = make_store(tmp_path / "s.zarr", images=4)
    assert "does not hold" in next(iter(positions.positions(store))).reason
    table = np.random.default_rng(0).normal(size=(17, 6)).astype(np.float32)
    store = add(store, "position_embedding", ("position", "channel"), table)
    shown = next(iter(positions.positions(store)))
    values = np.array([row[-1] for row in shown.rows]).reshape(15, 15)
    unit = table[2:] / np.linalg.norm(table[2:], axis=1, keepdims=True)
    np.testing.assert_allclose(values, unit @ unit.T, atol=1e-6)
    turned = make_store(tmp_path / "r.zarr", dataclasses.replace(spec_of(), position="rotary"), images=4)
    assert "rotary" in next(iter(positions.positions(turned))).reason


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
    shown, _ = objects.objects(store, facts.gather(store), file)
    rows = [row for row in shown[0].rows if row[0].endswith("001.png") and row[3] == "attention"]
    row = store.read("attention", (1, 0, 0)).astype(np.float64)[0, 1:].reshape(2, 4)
    assert rows[0][4] == pytest.approx(row[:, :2].sum() / row.sum(), rel=1e-5)
    assert rows[1][4] == pytest.approx(row[:, 2:].sum() / row.sum(), rel=1e-5)
    uniform = {row[0][-7:]: row[4:] for row in shown[0].rows if row[3] == "uniform"}
    assert uniform == {"001.png": (0.5, 0.5, 0.5), "002.png": (1.0, 1.0, 1.0)}
    (pair,) = shown[1].rows
    halves = [tokens[1, 1:].reshape(2, 4, 5)[:, at].mean(axis=(0, 1)) for at in (slice(0, 2), slice(2, 4))]
    wanted = halves[0] @ halves[1] / np.linalg.norm(halves[0]) / np.linalg.norm(halves[1])
    assert pair[-2] == pytest.approx(wanted, rel=1e-4)
    out = page.report(store.path, tmp_path / "r.html", boxes=file, examples=0, figures=tmp_path / "f")
    assert "none.png: the image is not in the store" in read(out)[1].text
    assert {"localisation", "object_similarity"} <= {p.stem for p in (tmp_path / "f").iterdir()}


def test_a_page_of_a_small_store_is_small(made: tuple[Store, Path, Path]) -> None:
    """Vectors are rounded and rasters packed: 12 figures in two forms each stay well below a megabyte."""
    assert made[1].stat().st_size < 1_200_000
