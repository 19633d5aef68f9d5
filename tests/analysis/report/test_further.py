"""Statistics without a figure of their own: of the user, with parameters, and what the registry says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas
from attlas.analysis.catalog import CATALOG, resolved
from attlas.engine.store.store import Store
from attlas.exporter.spec import GraphSpec
from support import make_spec
from support_report import context_of, make_store, read, rows_of, spec_of

pytest.importorskip("matplotlib")

analyze = pytest.importorskip("attlas.analysis.statistics").analyze
further = pytest.importorskip("attlas.analysis.report.sections.further")
methods = pytest.importorskip("attlas.analysis.report.text.methods")
page = pytest.importorskip("attlas.analysis.report.page")
Statistic = pytest.importorskip("attlas.analysis.statistic").Statistic

HARD = "costs $5, `code` *x* [@nobody]"


def first(attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(head, y, x): what the first token looks at."""
    return attention[:, 0, -grid[0] * grid[1] :].reshape(-1, *grid)


def peak(attention: np.ndarray, *, times: float = 1.0) -> np.ndarray:
    return attention.max(axis=(-2, -1)) * times


def total(attention: Sequence[np.ndarray]) -> float:
    return float(sum(a.sum() for a in attention))


PEAK = Statistic("peak", ("layer", "head"), peak, "1", HARD, "Nobody 2026")
OWN = [
    PEAK,
    PEAK.having({"times": 2.0}),
    Statistic("total", (), total, "keys", "all attention"),
    Statistic("firsts", ("layer", "head", "y", "x"), first, "1", "attention of the first token"),
    Statistic("plain", ("layer", "y", "x"), lambda attention, grid: first(attention, grid).mean(0), rows=False),
]
ASKED = ["entropy:bits", "rollout:start=1", "readout_map", "sink_share", "effective_tokens", "head_deviation"]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(tmp_path_factory.mktemp("further") / "s.zarr")
    analyze(store.path)
    analyze(store.path, [*OWN, *ASKED])
    return Store(store.path)


def test_numbers_of_heads_are_drawn_with_unit_words_and_uniform_value(analysed: Store) -> None:
    figure, table = further.further(context_of(analysed))
    drawn = {ax.get_title("left"): ax for ax in figure.draw(False).axes}
    assert drawn.keys() == {"peak", "peak.times-2", "entropy.unit-bits", "effective_tokens", "head_deviation"}
    assert "`sink_share` is not drawn" in figure.caption
    assert drawn["entropy.unit-bits"].get_ylabel() == "bits"
    assert drawn["head_deviation"].get_ylabel() == "standard deviation of attention over\nheads"
    assert drawn["peak"].get_ylabel() == "costs \\$5, `code` *x* [@nobody]"
    assert "`peak.times-2`: costs $5, 'code' ∗x∗ [ @nobody]; here times 2 [1]" in figure.caption
    rows = {row[:3]: row for row in figure.rows}
    assert rows["peak", 1, 0][3] == pytest.approx(analysed.read("peak_mean")[1, 0])
    assert rows["peak", 0, 0][-1] == ""
    assert rows["entropy.unit-bits", 0, 0][-1] == pytest.approx(np.log2(analysed.spec.tokens))
    assert rows["effective_tokens", 0, 1][-1] == pytest.approx(analysed.spec.tokens)
    (line,) = table.rows
    assert line[:4] == ("total", "all attention", "keys", f"{float(analysed.read('total_mean')):.4g}")


def test_maps_are_drawn_whatever_they_are_of(analysed: Store) -> None:
    figures = {figure.methods[0]: figure for figure in further.further_maps(context_of(analysed))}
    assert figures.keys() == {"readout_map", "firsts", "plain", "rollout.start-1"}
    rows, columns = analysed.spec.grid
    for name, panels in (("firsts", 4), ("plain", 2), ("rollout.start-1", 1)):
        figure, array = figures[name], "plain" if name == "plain" else f"{name}_mean"
        assert [row[-1] for row in figure.rows] == analysed.read(array).ravel().tolist()
        assert len(figure.rows) == panels * rows * columns
        assert figure.draw(True) is not None
    assert "`firsts`: attention of the first token [1]" in figures["firsts"].caption


@pytest.mark.usefixtures("quick_print")
def test_the_page_and_its_methods_name_them(analysed: Store, tmp_path: Path) -> None:
    _, seen = read(page.report(analysed.path, tmp_path / "r.html", examples=0, figures=tmp_path / "f"))
    assert "It cannot be drawn" not in seen.text
    assert {row["statistic"] for row in rows_of(tmp_path / "f" / "further.csv")} >= {"peak", "entropy.unit-bits"}
    text = methods.describe([analysed.path])
    for wanted in (
        "peak.times-2: costs $5, 'code' ∗x∗ [ @nobody]; here times 2 [1]. Nobody 2026.",
        "entropy.unit-bits: mean entropy of the attention rows over all keys; here unit bits [bits]. The formula is "
        "that of entropy.",
        "plain: a statistic of the user's own [1].",
        "rollout.start-1: ",
        "total: all attention [keys].",
    ):
        assert wanted in text
        assert wanted in seen.text
    assert text.count("score_matrix_mean: ") == 1
    assert " score_matrix: " not in text


# -- what uniform attention gives --------------------------------------------------------------------------------------


def test_the_uniform_value_is_that_of_the_closed_forms() -> None:
    spec = make_spec(grid=(3, 5), prefix=("class", "register"), layers=2, heads=3)
    n, distance = spec.tokens, formulas.uniform_distance(spec.grid, spec.patch_size)
    wanted: dict[str, Any] = {
        "distance": distance * spec.patches / n,
        "distance_renormalized": distance,
        "distance_unit_square": formulas.uniform_distance(spec.grid, (1 / 2, 1 / 4)),
        "entropy": np.log(n),
        "entropy_patch": np.log(spec.patches),
        "prefix_mass": 1 / n,
        "effective_tokens": n,
        "self_mass": 1 / n,
        "sink_share": 0,
        "normalized_mutual_information": 0,
        "position_deviation": 0,
        "head_deviation": 0,
    }
    for name, value in wanted.items():
        assert CATALOG[name].uniform(spec) == pytest.approx(value, rel=1e-9, abs=0), name
    masses = [CATALOG[name].uniform(spec) for name in ("self_mass", "neighbour_mass", "rest_mass", "prefix_mass")]
    assert sum(masses[:3]) + 2 * masses[3] == pytest.approx(1)
    (bits,) = resolved(["entropy:bits"])
    assert bits.uniform(spec) == pytest.approx(np.log2(n))


def test_what_is_no_single_number_has_no_uniform_value() -> None:
    spec: GraphSpec = spec_of()
    for name in ("rollout", "head_similarity", "readout_map", "norm_weighted_entropy", "head_importance", "value_norm"):
        assert CATALOG[name].uniform(spec) is None, name
    assert CATALOG["prefix_mass"].uniform(spec_of(prefix=())) is None
    assert CATALOG["entropy"].uniform(spec_of(attention_kind="mixed")) is None
