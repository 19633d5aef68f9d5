"""A weight that differs by one part in a hundred moves a map as far as a rounding does: what tells them apart."""

from __future__ import annotations

from pathlib import Path

import attlas
import numpy as np
import onnx
import pytest
import support_conform as faults
from attlas.engine.conform import write_cases
from onnx import numpy_helper


def perturbed(graph: Path, weight: str, path: Path) -> Path:
    """The graph with noise of 1 % on a weight."""
    model, noise = onnx.load(graph), np.random.default_rng(1)
    held = next(one for one in model.graph.initializer if one.name == weight)
    value = numpy_helper.to_array(held)
    noisy = value + 0.01 * value.std() * noise.normal(size=value.shape)
    held.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), weight))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("weight", "layer"), [("wq1", 1), ("wk2", 2), ("wv1", 2)])
def test_weight_off_by_one_percent_is_no_rounding(weight: str, layer: int, tmp_path: Path) -> None:
    """A rounding of that size begins in the first layer; and where the graph itself has changed, that is said."""
    graph, cases = faults.make_biased(tmp_path / "g.onnx"), tmp_path / "cases.npz"
    write_cases(graph, cases, limit=2, threads=1)
    changed = perturbed(graph, weight, tmp_path / "p.onnx")
    came = faults.results_of(changed, cases, tmp_path / "r.npz")
    result = attlas.conform(graph, cases, results=came, threads=1)
    assert (result.conforms, result.layer) == (False, layer)
    assert "no rounding, which would begin before" in result.cause
    result = attlas.conform(changed, cases, provider="cpu", threads=1)
    assert (result.conforms, result.layer) == (False, layer)
    assert "the graph gives the same on the processor" in result.cause
