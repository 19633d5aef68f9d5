"""Pages of stores that lack something."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.store.store import Store
from attlas.exporter.spec import Weights
from support_report import (
    add,
    attention_of,
    context_of,
    fill_unit,
    make_store,
    read,
    spec_of,
)

pytest.importorskip("matplotlib")

page = pytest.importorskip("attlas.analysis.report.page")


@pytest.mark.usefixtures("undrawn")
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
        fill_unit(store, k, attention_of(spec), None)
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", only=["distance"], overwrite=True))
    assert "Partial" not in seen.text
    assert "n = 21 images" in seen.captions[0]


@pytest.mark.usefixtures("quick_print")
def test_where_attention_was_not_kept_the_prefix_rows_still_show_and_the_rest_names_the_option(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", keep=("none",), reduce=True)
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", figures=tmp_path / "f"))
    names = {p.stem for p in (tmp_path / "f").iterdir()}
    assert names == {
        "distance", "entropy", "prefix_mass", "distributions", "rollout_mean", "examples", "heads", "extremes",
        "distance_sorted",
    }  # fmt: skip
    assert seen.text.count("attlas run --keep attention would have kept the score matrix") == 2
    assert "no large array" in seen.text


def test_without_attention_and_statistics_the_page_says_how_to_have_them(tmp_path: Path) -> None:
    """Prefix-free, nothing kept: only facts and pictures are left, and no traceback."""
    make_store(tmp_path / "s.zarr", spec_of(prefix=()), keep=("none",))
    _, seen = read(page.report([tmp_path / "s.zarr"], tmp_path / "r.html", examples=1))
    assert "Attention distance by depth is not shown." in seen.text
    assert "--keep attention" in seen.text


def test_layers_that_are_not_held_are_no_nan_in_words(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two layers the second is kept: shares that add up to 1 are of it alone, and captions count what is known."""
    depth, heads = (pytest.importorskip(f"attlas.analysis.report.sections.{name}") for name in ("depth", "heads"))
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", layers=[1], limit=8)
    masses = ["self_mass", "neighbour_mass", "rest_mass"]
    attlas.analyze(tmp_path / "s.zarr", [*masses, "prefix_mass", "border_mass", "offset_map_mean", "head_similarity"])
    context = context_of(Store(tmp_path / "s.zarr"))
    (shares,) = depth.masses(context)
    assert {row[0] for row in shares.rows} == {1}
    assert sum(row[-1] for row in shares.rows) == pytest.approx(1, abs=1e-3)
    monkeypatch.setattr(depth, "FAR", 0.0)
    border = depth._border(context.store)
    figures = [shares, *heads.offsets(context), *heads.similarity(context)]
    assert "none, " in figures[1].alt
    for said in (border, *(figure.alt for figure in figures)):
        assert "nan" not in said


def test_stores_of_some_layers_are_paired_block_by_block(tmp_path: Path) -> None:
    """Not with the nearest block that there is: what one lacks, or never computed, is in no difference."""
    comparison = pytest.importorskip("attlas.analysis.report.sections.comparison")
    measure = comparison._Measure(comparison.CATALOG["entropy"])

    def reads(*stores: Store) -> list[Any]:
        return list(comparison._Stores([context_of(store) for store in stores]).read(measure))

    def made(name: str, depth: int, layers: tuple[int, ...], seed: int) -> Store:
        spec = dataclasses.replace(spec_of(prefix=()), depth=depth, layers=layers)
        store = make_store(tmp_path / name, spec, keep=("none",), images=8)
        values = np.random.default_rng(seed).random((store.plan.images, depth, spec.heads), np.float32)
        return add(store, "entropy", ("image", "layer", "head"), values[:, list(layers)])

    one, other = made("a.zarr", 6, (0, 2, 5), 1), made("b.zarr", 6, (1, 2, 4, 5), 2)
    first, second = reads(one, other)
    difference, x = comparison._paired(second, first)
    np.testing.assert_allclose(x, [3 / 6, 6 / 6])
    np.testing.assert_allclose(difference, second.rows[:, [1, 3]] - first.rows[:, [1, 2]])
    assert ": 2 blocks, without 3 that one of them lacks" in comparison._left_out([first, second])
    (row,) = comparison._table_rows([first, second], "entropy")
    assert float(row[2]) == pytest.approx(difference.mean(), rel=0.01)
    shallow = made("c.zarr", 4, (0, 1, 2, 3), 3)  # its blocks lie at 0.5, 2, 3.5 and 5 of six
    deep, few = reads(other, shallow)
    difference, x = comparison._paired(few, deep)
    np.testing.assert_allclose(x, [2 / 4, 4 / 4])
    np.testing.assert_allclose(difference, few.rows[:, [1, 3]] - deep.rows[:, [1, 3]])
    whole = made("d.zarr", 6, tuple(range(6)), 4)
    deep, few = reads(whole, shallow)
    between = (deep.rows[:, [0, 3]] + deep.rows[:, [1, 4]]) / 2
    wanted = np.stack([between[:, 0], deep.rows[:, 2], between[:, 1], deep.rows[:, 5]], axis=1)
    np.testing.assert_allclose(comparison._paired(few, deep)[0], few.rows - wanted)
