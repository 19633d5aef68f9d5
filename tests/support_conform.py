"""Faults planted in a small graph, each in one layer, and what a faulty runtime gives for cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import attlas
import numpy as np
import onnx
from attlas.engine.conform.measures import Conformity
from attlas.engine.runtime.session import Session
from onnx import TensorProto, helper, numpy_helper
from support import make_graph

LAYERS, HEADS, CHANNELS = 4, 2, 16


def make_biased(path: Path, *, layers: int = LAYERS, sharpness: float = 2.0, seed: int = 0) -> Path:
    """A graph of four layers on 32 x 32 pixels whose queries have a bias."""
    make_graph(path, grid=(4, 4), layers=layers, heads=HEADS, sharpness=sharpness, seed=seed)
    model, rng = onnx.load(path), np.random.default_rng(1)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name or node.op_type != "MatMul" or not node.output[0].startswith("q"):
            continue
        layer = node.output[0][1:]
        bias = rng.normal(size=CHANNELS).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, f"bias{layer}"))
        node.output[0] = f"bare{layer}"
        nodes.append(helper.make_node("Add", [f"bare{layer}", f"bias{layer}"], [f"q{layer}"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def _change(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = next(one for one in model.graph.initializer if one.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)).astype(np.float32), name))


def _insert(
    model: onnx.ModelProto, ops: tuple[str, ...], output: str, before: Callable[[str], list[onnx.NodeProto]]
) -> None:
    """Put nodes before every input of the operators whose output begins with `output`."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type in ops and node.output[0].startswith(output):
            for i, name in enumerate(node.input):
                nodes += before(name)
                node.input[i] = nodes[-1].output[0]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def wrong_scale(model: onnx.ModelProto, layer: int) -> None:
    _change(model, f"sharp{layer}", lambda value: value * 0.5**0.5)


def dropped_bias(model: onnx.ModelProto, layer: int) -> None:
    _change(model, f"bias{layer}", np.zeros_like)


def swapped_heads(model: onnx.ModelProto, layer: int) -> None:
    for name in (f"wq{layer}", f"wk{layer}", f"bias{layer}"):
        _change(model, name, lambda value: np.roll(value, CHANNELS // HEADS, axis=-1))


def float16_scores(model: onnx.ModelProto, layer: int) -> None:
    def through(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", [name], [f"{name}.half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [f"{name}.half"], [f"{name}.single"], to=TensorProto.FLOAT),
        ]

    _insert(model, ("Softmax",), f"attention.{layer}", through)


def wrong_axis(model: onnx.ModelProto, layer: int) -> None:
    node = next(one for one in model.graph.node if f"attention.{layer}" in one.output)
    node.attribute[0].i = -2


def stale_weight(model: onnx.ModelProto, layer: int) -> None:
    _change(model, f"wv{layer}", lambda value: np.random.default_rng(9).normal(size=value.shape) * 0.25)


def tf32_scores(model: onnx.ModelProto, layer: int) -> None:
    """Queries and keys of a layer with 10 bits, where they are multiplied."""
    _tf32(model, f"scores{layer}")


def tf32(model: onnx.ModelProto, _layer: int) -> None:
    """Every product, as a card does it unless told not to."""
    _tf32(model, "")


def _tf32(model: onnx.ModelProto, output: str) -> None:
    number = itertools.count()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2**13 + 1), "splitter"))

    def through(name: str) -> list[onnx.NodeProto]:
        new = f"{name}.{next(number)}"
        return [
            helper.make_node("Mul", [name, "splitter"], [f"{new}.large"]),
            helper.make_node("Sub", [f"{new}.large", name], [f"{new}.off"]),
            helper.make_node("Sub", [f"{new}.large", f"{new}.off"], [f"{new}.tf32"]),
        ]

    _insert(model, ("MatMul",), output, through)


def planted(graph: Path, fault: Callable[[onnx.ModelProto, int], None], layer: int, path: Path) -> Path:
    """The graph with a fault in one layer."""
    model = onnx.load(graph)
    fault(model, layer)
    onnx.save(model, path)
    return path


def results_of(graph: Path, cases: Path, path: Path, **changes: np.ndarray | None) -> Path:
    """What a runtime gives for cases, as a user saves it; `changes` replace outputs, or drop them."""
    held = np.load(cases)
    session = Session(graph, provider="cpu", threads=1, optimize=False)
    buffers = session.buffers(len(held["image"]))
    session.run_into(held["image"], buffers, len(held["image"]))
    values = {name: value for name, value in (buffers | changes).items() if value is not None}
    np.savez(path, **values)
    return path


def judged(
    graph: Path, cases: Path, fault: Callable[[onnx.ModelProto, int], None], layer: int, folder: Path
) -> Conformity:
    """What conform says of a runtime with a fault in one layer."""
    faulty = planted(graph, fault, layer, folder / "faulty.onnx")
    return attlas.conform(graph, cases, results=results_of(faulty, cases, folder / "r.npz"), threads=1)
