"""Each planted fault is found, and its layer and cause are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attlas
import pytest
import support_conform as faults
from attlas.engine.conform import write_cases


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_biased(tmp_path_factory.mktemp("conform") / "biased.onnx")


@pytest.fixture(scope="module")
def cases(graph: Path) -> Path:
    write_cases(graph, graph.with_name("cases.npz"), limit=4, threads=1)
    return graph.with_name("cases.npz")


@pytest.mark.parametrize(
    ("fault", "layer", "found", "cause"),
    [
        (faults.wrong_scale, 2, 2, "all scores are multiplied by 0.7071"),
        (faults.dropped_bias, 1, 1, "a weight, a bias, or an operator differs"),
        (faults.swapped_heads, 3, 3, "the heads are in another order: 1, 0"),
        (faults.float16_scores, 1, 1, "scores, of this layer at least, are rounded to float16 before the softmax"),
        (faults.wrong_axis, 2, 2, "softmax over the wrong axis"),
        (faults.tf32_scores, 1, 1, "queries and keys of this layer are rounded to TF32"),
        (faults.tf32, 0, 0, "the factors of matrix products are rounded to TF32 (10 bits)"),
        # Values act after the softmax of their own layer, so the next map is the first that can show them.
        (faults.stale_weight, 1, 2, "a weight, a bias, or an operator differs"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_found(
    graph: Path, cases: Path, tmp_path: Path, fault: Callable[..., None], layer: int, found: int, cause: str
) -> None:
    faulty = faults.planted(graph, fault, layer, tmp_path / "faulty.onnx")
    result = attlas.conform(graph, cases, results=faults.results_of(faulty, cases, tmp_path / "r.npz"), threads=1)
    assert not result.conforms
    assert (result.layer, result.after) == (found, f"attention.{found - 1}" if found else "")
    assert cause in result.cause
    assert f"layer {found} is the first beyond the bound" in repr(result)
    if fault is not faults.tf32:
        assert all(line.largest == 0 for line in result.lines[:found])


def test_a_fault_after_the_last_map_is_told_by_what_follows(graph: Path, cases: Path, tmp_path: Path) -> None:
    faulty = faults.planted(graph, faults.stale_weight, faults.LAYERS - 1, tmp_path / "faulty.onnx")
    result = attlas.conform(graph, cases, results=faults.results_of(faulty, cases, tmp_path / "r.npz"), threads=1)
    assert (result.layer, result.after) == (None, f"attention.{faults.LAYERS - 1}")
    assert result.first is not None
    assert result.first.output == "tokens"


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_store_finds_what_its_rounding_does_not_hide(graph: Path, pictures: Path, tmp_path: Path, dtype: str) -> None:
    """The sound graph lies within the rounding of every store, and a wrong scale in none."""
    store = tmp_path / "s.zarr"
    attlas.run(graph, pictures, store, limit=6, store_dtype=dtype, threads=1, provider="cpu", reducer=None)
    sound = attlas.conform(graph, against=store, limit=4, threads=1, provider="cpu")
    assert (sound.conforms, sound.pictures, sound.same_top1) == (True, 4, 4)
    assert sound.hidden == pytest.approx({"float32": 0, "float16": 2.5e-4, "uint8": 8.1e-3}[dtype], rel=0.03)
    # The metadata are those of the sound graph: only the numbers can tell.
    faulty = faults.planted(graph, faults.wrong_scale, 1, tmp_path / "faulty.onnx")
    result = attlas.conform(faulty, pictures, against=store, limit=4, threads=1, provider="cpu")
    assert (result.conforms, result.layer) == (False, 1)
    assert result.cause.startswith("the graph gives the same on the processor: the reference is of another")
