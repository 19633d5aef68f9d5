"""The distributions of queries: quantiles of counts are those of the values, and what is drawn is what was counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st
from support_report import BROKEN, IMAGES, attention_of, context_of, make_store, read, rows_of, spec_of

pytest.importorskip("matplotlib")
canvas = pytest.importorskip("attlas.analysis.report.plots.style")
catalog = pytest.importorskip("attlas.analysis.catalog")
distributions = pytest.importorskip("attlas.analysis.report.sections.distributions")
formulas = pytest.importorskip("attlas.analysis.formulas")
page = pytest.importorskip("attlas.analysis.report.page")
statistics = pytest.importorskip("attlas.analysis.statistics")

GOOD = [i for i in range(IMAGES) if i != BROKEN]
NAMES = ("entropy_histogram", "distance_histogram", "distance_renormalized_histogram")


def shown(store: Any) -> Any:
    """The figure of a store's queries."""
    return next(distributions.over_queries(context_of(store)))


def values_of(spec: Any, name: str) -> np.ndarray:
    """(image, layer, head, query) in float64, of the valid images, by their definition."""
    a = attention_of(spec)[GOOD].astype(np.float64)
    if name == "entropy_histogram":
        return np.asarray(-(a * np.log(np.where(a > 0, a, 1))).sum(axis=-1))
    front = len(spec.prefix)
    patches = a[..., front:, front:]
    distances = (patches * np.array(formulas.patch_distances(spec.grid, spec.patch_size))).sum(axis=-1)
    return np.asarray(distances if name == "distance_histogram" else distances / patches.sum(axis=-1))


@given(st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_quantiles_of_counts_are_those_of_values_spread_over_their_bins(counts: list[list[int]]) -> None:
    """Every query written out, at even steps inside its bin."""
    given_counts, edges = np.array(counts), np.array([0.0, 1.0, 2.0, 4.0, 5.0, 9.0])
    found = distributions.quantiles(distributions.shares(given_counts), edges)
    times = 200  # so fine that numpy's own interpolation between two values does not show
    for row, mine in zip(given_counts, found.T, strict=True):
        written = np.concatenate([
            edges[i] + (edges[i + 1] - edges[i]) * (np.arange(times * n) + 0.5) / max(times * n, 1)
            for i, n in enumerate(row)
        ])  # fmt: skip
        for at, value in zip((0.1, 0.5, 0.9), mine, strict=True):
            # Where one falls between two values, whatever lies between them is a quantile.
            below, above = (np.quantile(written, at + side, method="inverted_cdf") for side in (-1e-6, 1e-6))
            assert below - 0.03 <= value <= above + 0.03


def test_a_quantile_between_two_values_is_the_middle_and_nothing_counted_is_nan() -> None:
    edges = np.arange(5.0)
    parts = distributions.shares(np.array([[3, 0, 0, 3], [0, 0, 0, 0]]))
    np.testing.assert_allclose(distributions.quantiles(parts, edges, (0.5,)), [[2.0, np.nan]], atol=1e-6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with the three histograms."""
    made = make_store(tmp_path_factory.mktemp("queries") / "s.zarr")
    statistics.analyze(made.path, NAMES)
    return Store(made.path)


@pytest.mark.parametrize("name", NAMES)
def test_medians_and_bands_are_those_of_the_single_queries(store: Any, name: str) -> None:
    """Computed from the attention by itself; bins place them to within a bin's width."""
    values = values_of(store.spec, name)
    title = name.removesuffix("_histogram")
    rows = [row for row in shown(store).rows if row[0] == title]
    width = rows[0][7]
    for layer in range(2):
        for head in range(2):
            (row,) = [row for row in rows if row[1:3] == (layer, head)]
            single = values[:, layer, head].ravel()
            assert row[3] == single.size
            np.testing.assert_allclose(row[4:7], np.quantile(single, (0.1, 0.5, 0.9)), atol=width)
            np.testing.assert_allclose(sum(row[8:]), 1)
        (row,) = [row for row in rows if row[1:3] == (layer, "mean")]
        np.testing.assert_allclose(row[4:7], np.quantile(values[:, layer], (0.1, 0.5, 0.9)), atol=width)
        counts, _ = np.histogram(values[:, layer], np.arange(65) * width)
        # float16 attention can put a value that lies on an edge on either side of it.
        np.testing.assert_allclose(row[8:], counts / counts.sum(), atol=2 / counts.sum())


def test_uniform_attention_is_beside_them(store: Any) -> None:
    spec = store.spec
    even = np.full((1, 1, 1, spec.tokens, spec.tokens), 1 / spec.tokens)
    front = len(spec.prefix)
    distances = np.array(formulas.patch_distances(spec.grid, spec.patch_size))
    wanted = {
        "entropy": np.full(17, math.log(17)),
        "distance": (even[0, 0, 0, front:, front:] * distances).sum(axis=-1),
        "distance_renormalized": distances.mean(axis=-1),
    }
    rows = {row[0]: row for row in shown(store).rows if row[1] == "uniform"}
    assert rows.keys() == wanted.keys()
    for title, values in wanted.items():
        np.testing.assert_allclose(rows[title][4:7], np.quantile(values, (0.1, 0.5, 0.9)))
        np.testing.assert_allclose(sum(rows[title][8:]), 1)
    assert rows["entropy"][8 + 63] == 1


def test_what_is_drawn_are_those_numbers(store: Any) -> None:
    """Medians stand where they are in the numbers, the dark part spans the band, and each head has its dot."""
    exhibit = shown(store)
    drawn = exhibit.draw(False)
    assert drawn.get_figwidth() == canvas.WIDE
    assert exhibit.draw(True).get_figwidth() == canvas.NARROW
    assert [ax.get_title("left") for ax in drawn.axes] == ["entropy", "distance", "distance_renormalized"]
    labels = [[text.get_text() for text in ax.get_yticklabels()] for ax in drawn.axes]
    assert labels == [["0", "1", "uniform"], [], []]
    for ax in drawn.axes:
        rows = [row for row in exhibit.rows if row[0] == ax.get_title("left")]
        bands = [row[4:7] for row in rows if row[2] in ("mean", "")]
        medians = [line.get_segments()[0][0][0] for line in ax.collections]
        np.testing.assert_allclose(medians, [middle for _, middle, _ in bands])
        filled = [part.get_xy()[:, 0] for part in ax.patches]
        np.testing.assert_allclose([(x.min(), x.max()) for x in filled[1::2]], [(low, high) for low, _, high in bands])
        dots = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(dots[:2], [[r[5] for r in rows if r[1] == i and r[2] != "mean"] for i in (0, 1)])
        low, high = ax.get_xlim()
        assert low == 0
        assert high >= max(float(x[np.flatnonzero(x)].max()) for x in (np.array(b) for b in bands))


@pytest.mark.usefixtures("quick_print")
def test_the_page_has_the_figure_with_its_definitions(store: Any, tmp_path: Path) -> None:
    """After the distributions over images; printed with its numbers."""
    _, seen = read(page.report(store.path, tmp_path / "r.html", figures=tmp_path / "f", examples=0))
    titles = [caption.split(". ")[1] for caption in seen.captions]
    assert titles[titles.index("Distributions over images") + 1] == "Distributions over queries"
    (caption,) = [c for c in seen.captions if "Distributions over queries" in c]
    assert "357 of each head, bins of 0.0443 nats, n = 21 images" in caption
    assert "315 of each head" in caption
    assert "Raghu et al. 2021" in caption
    assert "Quantiles are interpolated linearly within a bin" in seen.text
    rows = rows_of(tmp_path / "f" / "queries.csv")
    assert len(rows) == 3 * (2 * 3 + 1)
    assert {p.suffix for p in (tmp_path / "f").glob("queries.*")} == {".pdf", ".svg", ".png", ".csv"}


def test_one_histogram_of_one_layer_and_one_head_is_enough(tmp_path: Path) -> None:
    """Without prefix tokens, too; and without a histogram there is no figure."""
    made = make_store(tmp_path / "s.zarr", spec_of(prefix=(), layers=1, heads=1), images=8)
    assert not list(distributions.over_queries(context_of(made)))
    statistics.analyze(made.path, ["distance_renormalized_histogram"])
    made = Store(made.path)
    exhibit = shown(made)
    assert not exhibit.wide
    assert exhibit.draw(False).get_figwidth() == canvas.NARROW
    assert [row[1:4] for row in exhibit.rows] == [(0, 0, 7 * 15), (0, "mean", 7 * 15), ("uniform", "", "")]
    assert exhibit.rows[0][4:] == exhibit.rows[1][4:]


def test_layers_that_were_not_kept_have_no_curve(
    store: Any, graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """A run that kept the second of three layers: the others have no numbers, and no line of their own."""
    attlas.run(graph_factory(layers=3), pictures, tmp_path / "s.zarr", keep=["attention"], layers=[1], limit=8)
    statistics.analyze(tmp_path / "s.zarr", NAMES)
    exhibit = shown(Store(tmp_path / "s.zarr"))
    assert "Layers without a curve were not kept" in exhibit.caption
    assert "not kept" not in shown(store).caption
    assert [row[1:4] for row in exhibit.rows if row[0] == "entropy"] == [
        (1, 0, 8 * 7), (1, 1, 8 * 7), (1, "mean", 2 * 8 * 7), ("uniform", "", ""),
    ]  # fmt: skip
    assert "entropy: layer 1, median" in exhibit.alt
    assert "layer 0" not in exhibit.alt
    for ax in exhibit.draw(True).axes:
        assert len(ax.collections) == 2
        assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1", "2", "uniform"]


def test_a_head_that_counted_nothing_weighs_nothing(tmp_path: Path) -> None:
    """As one whose rows have no patch mass: the layer's shares are those of the other head."""
    made = make_store(tmp_path / "s.zarr", images=8)
    statistics.analyze(made.path, ["distance_renormalized_histogram"])
    made = Store(made.path, writable=True)
    array = made.array("distance_renormalized_histogram")
    counts = np.asarray(array[...])
    counts[0, 1] = 0
    array[...] = counts
    rows = {row[1:3]: row for row in shown(Store(made.path)).rows}
    assert (0, 1) not in rows
    assert rows[(0, "mean")][3:] == rows[(0, 0)][3:]
    assert rows[(1, "mean")][3] == 2 * rows[(1, 0)][3]


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_named_with_statistics_that_the_store_can_give(tmp_path: Path) -> None:
    """A model whose rows are no distributions is not told to ask for entropies."""
    for kind in ("probability", "mixed"):
        made = make_store(tmp_path / f"{kind}.zarr", spec_of(attention_kind=kind), images=8)
        _, seen = read(page.report(made.path, tmp_path / f"{kind}.html", examples=0))
        command = seen.text.partition("Where attention goes in detail")[2].partition(" adds it")[0]
        names = command.partition(f"attlas analyze {made.path.name} ")[2].split()
        assert "distance_renormalized_histogram" in names
        assert ("entropy_histogram" in names) == (kind == "probability")
        statistics.analyze(made.path, catalog.find(names))
