"""A graph as hardware with fewer bits computes it: its factors or scores are rounded by nodes of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import TARGET, prepare
from .ort import OrtGraph
from .outputs import Wanted
from .providers import CPU, cores

__all__ = ["ROUNDINGS", "Edit", "Rounded", "last_bits"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")

# Changes a graph before one of its outputs, which is named.
type Edit = Callable[[onnx.GraphProto, str], None]


class _Editor:
    """Puts nodes before an operator's inputs or after its output."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._count = 0

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        name = f"attlas.rounded.{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: float) -> str:
        if all(i.name != name for i in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def split(self, value: str, dropped: int) -> str:
        """Without its last `dropped` bits, rounded to nearest, by Veltkamp's splitting."""
        factor = self.constant(f"attlas.split{dropped}", 2.0**dropped + 1)
        large = self.add("Mul", [value, factor])
        return self.add("Sub", [large, self.add("Sub", [large, value])])

    def half(self, value: str) -> str:
        """Through float16."""
        return self.add("Cast", [self.add("Cast", [value], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT)


def _edit(
    graph: onnx.GraphProto,
    ops: tuple[str, ...],
    change: Callable[[_Editor, str], str],
    *,
    after: bool = False,
    only: str | None = None,
) -> None:
    """Change the first two inputs of the operators `ops`, and with `after` also what they give.

    With `only`, of the one that gives this value.
    """
    editor = _Editor(graph)
    for node in graph.node:
        if node.op_type not in ops or only not in (None, node.output[0]):
            editor.nodes.append(node)
            continue
        for i, name in enumerate(node.input[:2]):
            node.input[i] = change(editor, name)
        editor.nodes.append(node)
        if after:
            given, node.output[0] = node.output[0], f"{node.output[0]}.exact"
            change(editor, node.output[0])
            editor.nodes[-1].output[0] = given
    del graph.node[:]
    graph.node.extend(editor.nodes)


def _tf32_products(graph: onnx.GraphProto, _output: str) -> None:
    _edit(graph, ("MatMul", "Gemm"), lambda editor, name: editor.split(name, 13))


def _tf32(graph: onnx.GraphProto, _output: str) -> None:
    _edit(graph, _PRODUCTS, lambda editor, name: editor.split(name, 13))


def _bfloat16(graph: onnx.GraphProto, _output: str) -> None:
    _edit(graph, _PRODUCTS, lambda editor, name: editor.split(name, 16), after=True)


def _scores(graph: onnx.GraphProto, _output: str) -> None:
    _edit(graph, ("Softmax",), lambda editor, name: editor.half(name))


def _scores_here(graph: onnx.GraphProto, output: str) -> None:
    _edit(graph, ("Softmax",), lambda editor, name: editor.half(name), only=_nearest(graph, output, "Softmax"))


def _float16(graph: onnx.GraphProto, _output: str) -> None:
    _edit(graph, (*_PRODUCTS, "Softmax"), lambda editor, name: editor.half(name), after=True)


def last_bits(graph: onnx.GraphProto, _output: str, *, dropped: int) -> None:
    """Drop the last bit, or the last two, of what is multiplied: what float32 itself leaves open.

    Measured on a sharp model (gemma4_vit_167m, random weights, 16 layers) and on deit_tiny: rows move as far as by
    other sound float32 code, onnxruntime's fused nodes 0.7 to 1.1 and OpenVINO 1.2 to 1.8 times as far.
    """
    _edit(graph, _PRODUCTS, lambda editor, name: editor.split(name, dropped))


def _tf32_here(graph: onnx.GraphProto, output: str) -> None:
    scores = _nearest(graph, _nearest(graph, output, "Softmax"), "MatMul")
    _edit(graph, ("MatMul",), lambda editor, name: editor.split(name, 13), only=scores)


def _nearest(graph: onnx.GraphProto, value: str, op: str) -> str:
    """What the nearest operator `op` at or before a value gives; "" if there is none."""
    return next((str(node.output[0]) for node in _before(graph, value) if node.op_type == op), "")


def _before(graph: onnx.GraphProto, value: str) -> Iterator[onnx.NodeProto]:
    """The nodes that a value is computed from, nearest first."""
    by_output = {name: node for node in graph.node for name in node.output}
    front, seen = [value], {value}
    while front:
        node = by_output.pop(front.pop(0), None)
        if node is None:
            continue
        yield node
        fresh = [name for name in node.input if name not in seen]
        front += fresh
        seen.update(fresh)


def _keep_only(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Leave out what these outputs do not need: without optimisations onnxruntime would compute it, too."""
    needed = {name for output in outputs for node in _before(graph, output) for name in node.output}
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    used = {name for node in nodes for name in node.input}
    weights = [one for one in graph.initializer if one.name in used]
    for part, kept in ((graph.node, nodes), (graph.initializer, weights)):
        del part[:]
        part.extend(kept)


# What hardware rounds, in words, with the edit that does the same to the graph before an output.
ROUNDINGS: dict[str, Edit] = {
    "the factors of matrix products are rounded to TF32 (10 bits)": _tf32_products,
    "the factors of matrix products and convolutions are rounded to TF32 (10 bits)": _tf32,
    "queries and keys of this layer are rounded to TF32 (10 bits) where they are multiplied": _tf32_here,
    "scores, of this layer at least, are rounded to float16 before the softmax": _scores_here,
    "all scores are rounded to float16 before the softmax": _scores,
    "it computes in float16": _float16,
    "it computes in bfloat16": _bfloat16,
}


class Rounded:
    """Outputs of a graph with a rounding, on the processor, without optimisations."""

    def __init__(self, path: str | os.PathLike[str], edit: Edit | None, outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Load it.

        Args:
            path: path of the graph.
            edit: a value of `ROUNDINGS`, or `last_bits`; None leaves the graph as it is.
            outputs: shapes without the image axis by name. A rounding of one layer is that of the first of them.

        Raises:
            AttlasError: onnxruntime cannot load it.
        """
        self._outputs = dict(outputs)
        model = onnx.load_from_string(prepare(path, [Wanted(name) for name in outputs]))
        _keep_only(model.graph, outputs)
        if edit is not None:
            edit(model.graph, next(iter(outputs)))
        self._graph = OrtGraph(
            model.SerializeToString(), Path(path), [CPU], threads=cores(), strict=False, half=False, optimize=False
        )

    def __call__(
        self, pixels: npt.NDArray[np.uint8], target: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs by name.

        Args:
            pixels: (image, row, column, channel) uint8.
            target: (image), for outputs that take a class.
        """
        found = {name: np.zeros((len(pixels), *shape), np.float32) for name, shape in self._outputs.items()}
        given: dict[str, npt.NDArray[Any]] = {"image": pixels}
        if TARGET in self._graph.inputs and target is not None:
            given[TARGET] = target
        for i in range(len(pixels)):  # one after the other, as a session does on a processor
            part = slice(i, i + 1)
            self._graph.fill({n: v[part] for n, v in given.items()}, {n: v[part] for n, v in found.items()})
        return found
