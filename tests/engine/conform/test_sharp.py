"""The bounds follow a sharp model's own rounding, and faults are found all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import attlas
import pytest
import support_conform as faults
from attlas.engine.conform import write_cases
from attlas.engine.conform.measures import Line
from attlas.exporter.differences import TIMES_OWN

LAYERS = 8


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose last maps are wrong by 1e-2 where float32's last bits differ."""
    return faults.make_biased(tmp_path_factory.mktemp("sharp") / "sharp.onnx", layers=LAYERS, sharpness=60)


@pytest.fixture(scope="module")
def cases(graph: Path) -> Path:
    write_cases(graph, graph.with_name("cases.npz"), limit=4, threads=1)
    return graph.with_name("cases.npz")


def test_sound_runtime_of_a_sharp_model_conforms(graph: Path, cases: Path) -> None:
    """Onnxruntime's own optimisations."""
    result = attlas.conform(graph, cases, provider="cpu", threads=1)
    assert (result.conforms, result.same_top1) == (True, 4)
    lines = {line.output: line for line in result.lines}
    last, early = lines["attention.7"], lines["attention.0"]
    assert last.own is not None
    assert last.own_mean is not None
    assert early.own is not None
    assert last.largest > 1e-3, "it is not sharp enough for this test"
    assert last.bound == pytest.approx(1e-3 + TIMES_OWN * last.own)
    assert last.mean_bound == pytest.approx(1e-4 + TIMES_OWN * last.own_mean)
    assert 0 < early.own < 1e-4, "layers that are not sharp keep their bound"
    assert "the model is sharp" in repr(result)
    assert result.table[0]["own"] == early.own


@pytest.mark.parametrize(("seed", "sharpness"), [(1, 20), (3, 60)])
def test_bounds_do_not_hang_on_one_trial(seed: int, sharpness: float, tmp_path: Path) -> None:
    """Which rows of a sharp model move is chance: a sound runtime was beyond what one rounding allows."""
    graph = faults.make_biased(tmp_path / "g.onnx", layers=LAYERS, sharpness=sharpness, seed=seed)
    result = attlas.conform(graph, provider="cpu", threads=1, limit=8)
    assert result.conforms
    assert max(line.own for line in result.lines if line.own is not None) > 1e-3


def test_own_rounding_is_measured_only_beyond_the_usual_bounds(graph: Path, cases: Path) -> None:
    same = faults.results_of(graph, cases, graph.with_name("r.npz"))
    result = attlas.conform(graph, cases, results=same, threads=1)
    assert result.conforms
    assert {line.own for line in result.lines} == {None}
    assert "the model is sharp" not in repr(result)


@pytest.mark.parametrize(
    ("fault", "layer", "found", "cause"),
    [
        (faults.wrong_scale, 2, 2, "all scores are multiplied by 0.7071"),
        (faults.dropped_bias, 1, 1, "a weight, a bias, or an operator differs"),
        (faults.swapped_heads, 7, 7, "the heads are in another order: 1, 0"),
        (faults.tf32, 0, 0, "the factors of matrix products are rounded to TF32 (10 bits)"),
        (faults.stale_weight, 6, 7, "a weight, a bias, or an operator differs"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_fault_is_found_in_a_sharp_model(
    graph: Path, cases: Path, tmp_path: Path, fault: Callable[..., None], layer: int, found: int, cause: str
) -> None:
    result = faults.judged(graph, cases, fault, layer, tmp_path)
    assert (result.conforms, result.layer) == (False, found)
    assert cause in result.cause
    assert result.first is not None
    assert result.first.own is not None, "found under the wider bounds"


def test_fault_of_the_reference_does_not_widen_its_own_bounds(graph: Path, tmp_path: Path) -> None:
    """Cases of other weights with the same metadata: the model's rounding is measured here, not from them."""
    faulty = faults.planted(graph, faults.stale_weight, 2, tmp_path / "faulty.onnx")
    write_cases(faulty, tmp_path / "cases.npz", limit=2, threads=1)
    result = attlas.conform(graph, tmp_path / "cases.npz", provider="cpu", threads=1)
    assert (result.conforms, result.layer) == (False, 3)
    assert "the graph gives the same on the processor" in result.cause


def test_model_that_the_last_bits_alone_change_cannot_be_compared(tmp_path: Path) -> None:
    graph = faults.make_biased(tmp_path / "g.onnx", layers=12, sharpness=100)
    result = attlas.conform(graph, provider="cpu", limit=4, threads=1)
    assert not result.conforms
    assert result.first is not None
    assert result.first.hidden
    assert "too sharp for runtimes to be compared" in result.cause


def test_line_is_hidden_by_its_mean() -> None:
    line = Line("attention.0", 0, 0.1, 0.2, 1e-4, 1e-3, "a", own_mean=0.011, own=0.02)
    assert line.hidden
    assert not replace(line, own_mean=0.009).hidden
    assert not replace(line, own_mean=None, own=None).hidden
