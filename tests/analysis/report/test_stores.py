"""Pages of stores that lack something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attlas.exporter.spec import Weights
from support_report import (
    attention_of,
    fill_unit,
    make_store,
    read,
    spec_of,
)

pytest.importorskip("matplotlib")

page = pytest.importorskip("attlas.analysis.report.page")


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
