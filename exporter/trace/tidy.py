"""Clean up the graph that torch's exporter gives: constants, the batch axis, and traces of this machine."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import AttlasError
from ..spec import GraphSpec

__all__ = ["adopt_constants", "free_batch", "name_constants", "separate_square_weights", "strip"]


def free_batch(model: ir.Model, spec: GraphSpec) -> None:
    """Name the first axis of every input and output `batch`.

    Raises:
        AttlasError: the traced graph has a fixed batch size.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in ("position_embedding", "head_mask", "head_fill"):
            continue
        batch = None if value.shape is None else value.shape[0]
        if not isinstance(batch, ir.SymbolicDim):
            raise AttlasError(
                f"{spec.name}: the traced graph fixes its batch at {batch} in {value.name}; nothing was written"
            )
        assert value.shape is not None
        value.shape[0] = ir.SymbolicDim("batch")


def adopt_constants(graph: ir.Graph) -> None:
    """Register constants that the exporter's optimiser made but did not register (seen with two clamps, torch 2.15)."""
    for node in graph:
        for i, value in enumerate(node.inputs):
            if value is None or value.producer() is not None or value.const_value is None:
                continue
            if graph.initializers.get(value.name or "") is not value:
                constant = value.const_value
                own = ir.Value(name=f"{node.name}_constant_{i}", const_value=constant)
                own.shape, own.dtype = ir.Shape(constant.numpy().shape), constant.dtype
                graph.register_initializer(own)
                node.replace_input_with(i, own)


def name_constants(graph: ir.Graph) -> None:
    """Give each constant output its own node: not every runtime accepts an initializer as an output."""
    for i, value in enumerate(graph.outputs):
        if not value.is_initializer():
            continue
        name, value.name = value.name, f"{value.name}_constant"
        node = ir.node("Identity", [value], name=f"node_{name}")
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, value.type
        graph.append(node)
        graph.outputs[i] = node.outputs[0]


def separate_square_weights(graph: ir.Graph) -> None:
    """Store the transpose of each square weight as a separate weight, in place.

    The forward pass multiplies by a weight, the backward pass by its transpose. If both have the same shape and share
    data, OpenVINO 2026.4 silently confuses them. The cost is one more matrix for each twelve in a usual block.
    """
    for node in graph:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        values = weight.const_value.numpy()
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            continue
        name = f"{weight.name}_transposed"
        if name not in graph.initializers:
            made = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(values.T)))
            made.shape, made.dtype = ir.Shape(values.shape), weight.const_value.dtype
            graph.register_initializer(made)
        node.outputs[0].replace_all_uses_with(graph.initializers[name])
        graph.remove(node, safe=True)


def strip(model: ir.Model) -> None:
    """Remove what differs between exports or reveals this machine: stack traces, paths, doc strings."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.name = "attlas"
