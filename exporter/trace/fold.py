"""Compute once, at export, whatever in a graph depends on no image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

__all__ = ["fixed_nodes", "fold_constants"]


def fixed_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that depend on no input of the graph, in the order in which they can be computed.

    Without those that compute nothing: the transpose of a weight, which would only store it twice, and the node that
    gives a constant output its name.
    """
    fixed: set[ir.Value | None] = {None, *graph.initializers.values()}
    for node in graph:
        if not set(node.inputs) <= fixed or "Random" in node.op_type or _has_graphs(node):
            continue
        weight = node.op_type in ("Transpose", "Identity") and node.inputs[0] in graph.initializers.values()
        if not weight:
            fixed.update(node.outputs)
            yield node


def fold_constants(graph: ir.Graph) -> None:
    """Replace in place what depends on no image by its value; onnxruntime computes it, in which the graph is checked.

    Torch's exporter leaves large constants alone, and a runtime may compute them wrong: OpenVINO 2026.4 does so in
    silence with the antialiased resize of a position table.
    """
    nodes = list(fixed_nodes(graph))
    values: dict[ir.Value, NDArray[Any]] = {}
    for node in nodes:
        values.update(zip(node.outputs, _computed(node, values, graph.opset_imports), strict=True))
    made = {value: _constant(array) for value, array in values.items() if _leaves(value, nodes)}
    for value, constant in made.items():
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
    names = {constant: value.name for value, constant in made.items()}
    for node in reversed(nodes):
        graph.remove(node, safe=True)
    for constant, name in names.items():
        constant.name = name
        graph.register_initializer(constant)
    for name in [
        name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()
    ]:
        del graph.initializers[name]


def _leaves(value: ir.Value, nodes: Iterable[ir.Node]) -> bool:
    """Whether something that depends on an image, or an output of the graph, uses a value."""
    inside = set(nodes)
    return value.is_graph_output() or any(user not in inside for user in value.consumers())


def _constant(array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array)
    return ir.Value(const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))


def _computed(node: ir.Node, values: Mapping[ir.Value, NDArray[Any]], opsets: Mapping[str, int]) -> list[NDArray[Any]]:
    """The outputs of one node, in onnxruntime."""
    given: dict[str, NDArray[Any]] = {}
    for value in node.inputs:
        if value is not None:
            assert value.name is not None
            known = values[value] if value in values else value.const_value and value.const_value.numpy()
            assert known is not None
            given[value.name] = np.asarray(known)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(value.name or "") for value in node.outputs]
    made = onnx.helper.make_graph([ir.serde.serialize_node(node)], "fold", inputs, outputs)
    imports = [onnx.helper.make_opsetid(name, version) for name, version in opsets.items()]
    model = onnx.helper.make_model(made, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, given)]


def _has_graphs(node: ir.Node) -> bool:
    """Whether a node holds graphs of its own, which may use any value."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())
