"""The default statistics as a small ONNX graph, traced from the formulas: for where attention should not leave a card.

The formulas run on ndonnx's arrays, which write down operators in place of computing, so that each statistic stands
once. The engine appends the graph to a model's; it takes attention as that run stores it, a layer an input, with any
number of images. The one module that knows ndonnx, which is imported only where a run asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ndonnx as ndx
import numpy as np
import onnx
from onnx import helper

from ...engine.store.store import Template
from ...exporter.spec import GraphSpec
from .. import formulas
from ..catalog import CATALOG
from ..statistic import context

__all__ = ["trace"]


def trace(
    spec: GraphSpec, templates: Sequence[Template], dtype: Literal["float16", "float32"], *, codes: bool = False
) -> bytes:
    """The statistics of `templates` as an ONNX model.

    Its inputs are named like the outputs of the spec's graph: `attention.l` for every exported layer, each (image,
    head, query, key) in `dtype`, and `pool_attention` (image, head, query, key) float32 where the readout is the
    pool's. Values of float16 are widened first: statistics are of the attention as stored.

    Args:
        spec: of the graph that it will be appended to.
        templates: the statistics, in the form in which they are stored.
        dtype: of the attention.
        codes: take the statistics of the attention as its uint8 codes give it, which the store will hold.

    Returns:
        The model. Outputs: every template by name in its dtype, image first; `prefix_attention` (image, layer, head,
        prefix, key) in `dtype` where there are prefix tokens; `_finite` (image, layer), bool: whether all of a
        layer's attention is finite.
    """
    n, layers = spec.tokens, len(spec.layers)
    rolled = any(t.name == "rollout" for t in templates)
    kinds = {t.name: (t.shape, t.dtype) for t in templates} | {"_finite": ((layers,), "bool")}
    if spec.prefix:
        kinds["prefix_attention"] = ((layers, spec.heads, len(spec.prefix), n), dtype)
    graph = _Pieces()
    for layer in spec.layers:
        graph.input(f"attention.{layer}", (spec.heads, n, n), dtype)
    row = ""
    if rolled:
        source, piece = _start(spec, dtype)
        if source == "pool_attention":
            graph.input(source, _pool_shape(spec), "float32")
        row = graph.add(piece, "start", given=source)["row"]
    # One layer is traced, and stands there once for each: tracing costs half a second.
    piece = _layer(spec, [t for t in templates if t.name != "rollout"], dtype, rolled, codes)
    found: dict[str, list[str]] = {}
    for layer in reversed(spec.layers):
        outputs = graph.add(piece, f"layer{layer}", attention=f"attention.{layer}", row=row)
        row = outputs.pop("before", "")
        for name, value in outputs.items():
            found.setdefault(name, []).insert(0, value)
    for name, values in found.items():
        graph.node("Concat", values, name, axis=1)
    if rolled:
        graph.node("Identity", [graph.add(_end(spec), "end", row=row)["map"]], "rollout")
    return graph.model(kinds)


def _start(spec: GraphSpec, dtype: str) -> tuple[str, onnx.ModelProto]:
    """What the readout is made from, and from that (`given`) the readout as weights: `row` (image, query)."""
    n = spec.tokens
    if spec.readout != "pool":
        given = ndx.argument(shape=("image", spec.heads, n, n), dtype=getattr(ndx, dtype))
        rows = formulas.readout_rows(spec.prefix, spec.grid, spec.readout)
        weights = ndx.asarray([1 / len(rows) if t in rows else 0.0 for t in range(n)], dtype=ndx.float32)
        row = weights + ndx.zeros_like(given[:, 0, :, 0], dtype=ndx.float32)
        return f"attention.{spec.layers[-1]}", ndx.build({"given": given}, {"row": row})
    shape = _pool_shape(spec)
    given = ndx.argument(shape=("image", *shape), dtype=ndx.float32)
    weights, seen = ndx.mean(given, axis=(1, 2)), shape[-1]
    # Some pools attend to the patches alone: each weight goes to its token.
    places = ndx.asarray([[float(t == k + n - seen) for t in range(n)] for k in range(seen)], dtype=ndx.float32)
    return "pool_attention", ndx.build({"given": given}, {"row": ndx.sum(weights[:, :, None] * places, axis=1)})


def _layer(spec: GraphSpec, templates: Sequence[Template], dtype: str, rolled: bool, codes: bool) -> onnx.ModelProto:
    """One layer: from its `attention`, and the rollout's `row` behind it, the statistics and the row `before` it.

    Every output but the row has a layer axis of one, behind the image's.
    """
    n, count = spec.tokens, len(spec.prefix)
    stored = ndx.argument(shape=("image", spec.heads, n, n), dtype=getattr(ndx, dtype))
    raw = ndx.astype(stored, ndx.float32)
    a = formulas.decode_codes(ndx.round(255 * ndx.sqrt(raw))) if codes else raw
    known = context(spec) | {"attention": a}
    found = {t.name: ndx.astype(CATALOG[t.name](known), getattr(ndx, t.dtype)) for t in templates}
    # One bad entry makes its layer's sum infinite or NaN; the head mean is made for the rollout anyway.
    found["_finite"] = ndx.isfinite(ndx.sum(formulas.fuse(raw, "mean"), axis=(-2, -1)))
    if count:
        found["prefix_attention"] = stored[:, :, :count, :]
    outputs = {name: ndx.expand_dims(value, axis=1) for name, value in found.items()}
    inputs = {"attention": stored}
    if rolled:
        inputs["row"] = ndx.argument(shape=("image", n), dtype=ndx.float32)
        # A rollout through one layer, over a grid of all tokens, is one step: the row goes in, and a row comes out.
        outputs["before"] = formulas.rollout([a], (1, n), inputs["row"])[:, 0, :]
    return ndx.build(inputs, outputs)


def _end(spec: GraphSpec) -> onnx.ModelProto:
    """From the `row` before the first layer the rollout's `map` (image, y, x): its patch columns."""
    row = ndx.argument(shape=("image", spec.tokens), dtype=ndx.float32)
    return ndx.build({"row": row}, {"map": ndx.reshape(row[:, len(spec.prefix) :], (-1, *spec.grid))})


def _pool_shape(spec: GraphSpec) -> tuple[int, ...]:
    output = spec.output("pool_attention")
    assert output is not None, "a model that pools by attention gives its pool's map"
    return tuple(size for size in output.shape if size is not None)


class _Pieces:
    """A graph put together from traced pieces, which may stand in it more than once."""

    def __init__(self) -> None:
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._version, self._ir = 0, 0

    def input(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """One more input: `shape` without the image axis."""
        self._inputs.append(_info(name, shape, dtype))

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """One more operator."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def add(self, piece: onnx.ModelProto, name: str, **inputs: str) -> dict[str, str]:
        """Put a piece in, its inputs joined to values that are there; the names of its outputs' values."""
        self._version, self._ir = piece.opset_import[0].version, piece.ir_version
        outputs = {output.name: f"{name}/{output.name}" for output in piece.graph.output}
        for node in _alive(_unguarded(piece.graph.node), set(outputs)):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{name}/{node.name}"
            copy.input[:] = [inputs.get(value) or f"{name}/{value}" for value in node.input]
            copy.output[:] = [f"{name}/{value}" for value in node.output]
            self._nodes.append(copy)
        return outputs

    def model(self, outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> bytes:
        """The whole, with outputs of these shapes (without the image axis) and dtypes."""
        nodes, constants = _shared(self._nodes)
        found = [_info(name, shape, dtype) for name, (shape, dtype) in outputs.items()]
        graph = helper.make_graph(nodes, "statistics", self._inputs, found, constants)
        opset = [helper.make_opsetid("", self._version)]
        data: bytes = helper.make_model(graph, opset_imports=opset, ir_version=self._ir).SerializeToString()
        return data


def _info(name: str, shape: tuple[int, ...], dtype: str) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, ["image", *shape])


def _unguarded(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Without two guards that cost a card much: a branch around each product, and whole arrays of one number.

    ndonnx asks before every matrix product whether it is empty, which no batch is, so that the branch with the product
    takes the place of the question. And where(a == 0, ones_like(a), a) needs no array of ones: a itself has the shape.
    """
    found: list[onnx.NodeProto] = []
    made = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "If":
            branch = next(a.g for a in node.attribute if a.name == "else_branch")
            inner = [n for n in branch.node if n.op_type != "Identity"]
            if [n.op_type for n in inner] == ["MatMul"]:
                node = helper.make_node("MatMul", inner[0].input, node.output, name=node.name)
        elif node.op_type == "Where":
            expanded = made.get(node.input[1])
            if expanded is not None and expanded.op_type == "Expand":
                shape = made.get(expanded.input[1])
                if shape is not None and shape.op_type == "Shape" and shape.input[0] == node.input[2]:
                    node.input[1] = expanded.input[0]
        found.append(node)
    return found


def _alive(nodes: Sequence[onnx.NodeProto], needed: set[str]) -> list[onnx.NodeProto]:
    """The nodes that an output needs, in their order."""
    found = []
    for node in reversed(nodes):
        if needed & set(node.output):
            found.append(node)
            needed |= {*node.input, *(name for a in node.attribute for n in a.g.node for name in n.input)}
    return found[::-1]


def _shared(nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes without their constants, and the constants, each once.

    Every layer brings its own copy of the patch distances: 90 MB for 12 layers of 37 x 37 patches.
    """
    kept: list[onnx.NodeProto] = []
    constants: dict[bytes, onnx.TensorProto] = {}
    renamed: dict[str, str] = {}
    for node in nodes:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is None:
            kept.append(node)
            continue
        value.ClearField("name")
        tensor = constants.setdefault(value.SerializeToString(), value)
        if not tensor.name:
            tensor.name = node.output[0]
        renamed[node.output[0]] = tensor.name
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    return kept, list(constants.values())
