"""Each planted fault is found, and its layer and cause are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import attlas
import numpy as np
import onnx
import pytest
import support_conform as faults
from attlas.engine.conform import write_cases
from attlas.exporter.spec import METADATA_KEY, GraphSpec, Output
from onnx import TensorProto, helper, numpy_helper


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
    result = faults.judged(graph, cases, fault, layer, tmp_path)
    assert not result.conforms
    assert (result.layer, result.after) == (found, f"attention.{found - 1}" if found else "")
    assert cause in result.cause
    assert f"layer {found} is the first beyond the bound" in repr(result)
    if fault is not faults.tf32:
        assert all(line.largest == 0 for line in result.lines[:found])


def test_a_fault_after_the_last_map_is_told_by_what_follows(graph: Path, cases: Path, tmp_path: Path) -> None:
    result = faults.judged(graph, cases, faults.stale_weight, faults.LAYERS - 1, tmp_path)
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


def test_a_store_is_compared_in_all_that_it_holds(graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The class token's own maps, norms and tokens too; a fault in one of them alone is found."""
    model, path, store = onnx.load(graph), tmp_path / "more.onnx", tmp_path / "s.zarr"
    tokens = 17
    more = [
        Output(f"class_attention.{i}", ("image", "head", "class_query", "class_key"), (None, 2, 1, tokens))
        for i in (0, 1)
    ]
    more.append(Output("token_norm.3", ("image", "token"), (None, tokens)))
    for name, values in (("from", [0]), ("until", [1]), ("axis2", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "factor"))
    for i in (0, 1):
        model.graph.node.append(helper.make_node("Slice", [f"attention.{i}", "from", "until", "axis2"], [f"row{i}"]))
    model.graph.node.extend([
        helper.make_node("Identity", ["row0"], ["class_attention.0"]),
        helper.make_node("Mul", ["row1", "factor"], ["class_attention.1"]),
        helper.make_node("ReduceL2", ["tokens", "axis2"], ["token_norm.3"], keepdims=0),
    ])  # fmt: skip
    for output in more:
        shape = ["batch", *output.shape[1:]]
        model.graph.output.append(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    entry = next(one for one in model.metadata_props if one.key == METADATA_KEY)
    spec = GraphSpec.from_json(entry.value, "test")
    entry.value = dataclasses.replace(spec, outputs=(*spec.outputs, *more)).to_json()
    onnx.save(model, path)
    keep = ("attention", "tokens")
    attlas.run(path, pictures, store, limit=3, keep=keep, threads=1, provider="cpu", reducer=None)
    sound = attlas.conform(path, against=store, limit=2, threads=1, provider="cpu")
    assert sound.conforms
    held = ["attention.0", "attention.1", "attention.2", "token_norm.3", "attention.3"]
    assert [line.output for line in sound.lines] == [
        *held,
        "class_attention.0",
        "class_attention.1",
        "tokens",
        "logits",
    ]
    assert max(line.largest for line in sound.lines) < 1e-5
    faults._change(model, "factor", lambda value: value * 1.01)
    onnx.save(model, path)
    result = attlas.conform(path, against=store, limit=2, threads=1, provider="cpu")
    assert (result.conforms, result.after) == (False, "class_attention.0")
    assert result.first is not None
    assert (result.first.output, result.layer) == ("class_attention.1", None)
