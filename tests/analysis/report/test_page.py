"""The page of an ordinary store."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from support_report import (
    make_store,
    read,
    rows_of,
)

pytest.importorskip("matplotlib")

page = pytest.importorskip("attlas.analysis.report.page")

facts = pytest.importorskip("attlas.analysis.report.facts")

formulas = pytest.importorskip("attlas.analysis.formulas")

LINK = re.compile(r"^https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.|github\.com/)")


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


def test_pictures_to_walk_through_stand_in_a_frame_and_only_its_script_may_run(
    made: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    """The atlas of `attlas view`, whole, in the page itself; the policy allows that one script by its hash."""
    single = pytest.importorskip("attlas.analysis.view.single")
    text = page.report(made[0].path, tmp_path / "r.html", only=["distance"], explore=2).read_text("utf-8")
    assert f"img-src data: blob:; script-src {single.script_hash()}; style-src 'unsafe-inline'" in text
    frame = re.search(r'<iframe class="atlas"[^>]* srcdoc="([^"]*)"', text)
    assert frame is not None
    assert unescape(frame[1]) == single.embedded(made[0].path, 2)
    assert unescape(frame[1]).count('data-path="picture/0/') == 2
    assert "<script" not in text.replace(frame[1], "")


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
        "tiny_test", "tagged", "ab" * 32, "cd" * 32, "pictures <b>", "all 22 images", "float16", "class, register",
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
    assert len(seen.captions) == len(seen.alts) == 13
    assert all(re.search(r"n = (21 images|7 images|1 image)", caption) for caption in seen.captions)
    assert all(len(alt) > 40 for alt in seen.alts)
    assert [c.partition(".")[0] for c in seen.captions] == [f"Figure {i}" for i in range(1, 14)]


def test_figures_are_printed_with_their_numbers_beside_them(made: tuple[Store, Path, Path]) -> None:
    store, _, folder = made
    names = {p.stem for p in folder.iterdir()}
    assert names == {
        "distance", "entropy", "prefix_mass", "rollout_mean", "examples", "heads", "score_matrix", "score_matrix_mean",
        "query_map", "matrices", "extremes", "distributions", "distance_sorted",
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
    page.report([made[0].path], output, overwrite=True, only=["distance"])
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


def test_a_page_of_a_small_store_is_small(made: tuple[Store, Path, Path]) -> None:
    """Vectors are rounded and rasters packed: 13 figures in two forms each stay well below a megabyte."""
    assert made[1].stat().st_size < 1_200_000
