"""The float16 graph: half precision where it is fast, float32 where it would be wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

__all__ = ["to_float16"]

# Norms sum squares and softmax sums exponentials: both overflow or underflow in half precision. Angles of rotary
# positions lose their fraction, and the last six operators need float32 or cost nothing.
_FLOAT32_OPS = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "Exp",
        "LayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "RMSNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL2",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Sin",
        "Cos",
        "Resize",
        "Range",
        "CumSum",
        "Cast",
        "OneHot",
        "Identity",
    }
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})


def to_float16(model: ir.Model) -> None:
    """Convert a float32 graph to half precision in place; its inputs and outputs keep their types.

    Matrix products, convolutions and the nodes between them become float16. Softmax, norms and their ratios, the
    normalisation of the pixels, and the scores q @ k with everything added to them stay float32: scores reach 26 in
    trained models, where a float16 step is 0.016, and softmax turns that into an error of 1.6 % of a weight.
    """
    graph = model.graph
    kept = set(_scores(graph)) | set(_pixels(graph)) | set(_ratios(graph))
    nodes = list(graph)
    caster = _Caster(graph)
    for node in nodes:
        half = node not in kept and node.op_type not in _FLOAT32_OPS
        takes_float = False
        for i, value in enumerate(node.inputs):
            if value is not None and _is_float(value):
                takes_float = True
                node.replace_input_with(i, caster.cast(value, half=half, before=node))
        if half and takes_float:
            for value in node.outputs:
                if value.dtype in (ir.DataType.FLOAT, None):
                    value.dtype = ir.DataType.FLOAT16
    for i, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.FLOAT16:
            graph.outputs[i] = caster.output(value)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


class _Caster:
    """Makes casts, one per value and direction; weights are rounded here, once, and not in every run."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[ir.Value, bool], ir.Value] = {}

    def cast(self, value: ir.Value, *, half: bool, before: ir.Node) -> ir.Value:
        wanted = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        if value.dtype == wanted:
            return value
        key = (value, half)
        if key not in self.made:
            self.made[key] = self._round(value) if value.is_initializer() else self._node(value, wanted, before)
        return self.made[key]

    def output(self, value: ir.Value) -> ir.Value:
        """A float32 value that replaces a float16 output under the same name."""
        name, value.name = value.name, f"{value.name}_float16"
        node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"node_{name}")
        node.outputs[0].name, node.outputs[0].shape = name, value.shape
        node.outputs[0].dtype = ir.DataType.FLOAT
        self.graph.append(node)
        return node.outputs[0]

    def _round(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        largest = float(np.finfo(np.float16).max)
        # A mask of -inf stays -inf; a finite weight outside the range is clipped to it.
        array = value.const_value.numpy()
        rounded = np.where(np.isfinite(array), array.clip(-largest, largest), array).astype(np.float16)
        own = ir.Value(name=f"{value.name}_float16", const_value=ir.tensor(rounded, name=f"{value.name}_float16"))
        own.shape, own.dtype = ir.Shape(rounded.shape), ir.DataType.FLOAT16
        self.graph.register_initializer(own)
        return own

    def _node(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        name = f"{value.name}_{'float16' if wanted == ir.DataType.FLOAT16 else 'float32'}"
        node = ir.node("Cast", [value], {"to": wanted.value}, name=f"node_{name}")
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].dtype = name, value.shape, wanted
        self.graph.insert_before(before, node)
        return node.outputs[0]


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _scores(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes from each softmax back to the matrix product of its scores, product included."""
    for softmax in graph:
        if softmax.op_type != "Softmax":
            continue
        waiting = [softmax.inputs[0]]
        while waiting:
            value = waiting.pop()
            node = None if value is None else value.producer()
            if node is None:
                continue
            yield node
            if node.op_type not in _PRODUCTS:
                waiting.extend(node.inputs)


def _ratios(graph: ir.Graph) -> Iterator[ir.Node]:
    """Quotients of norms: they are outputs, so rounding them gains nothing."""
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if node.op_type == "Div" and all(m is not None and m.op_type == "ReduceL2" for m in makers):
            yield node


def _pixels(graph: ir.Graph) -> Iterator[ir.Node]:
    """The normalisation of the pixels: the elementwise nodes after the input."""
    waiting = [*graph.inputs]
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in ("Transpose", "Cast", "Div", "Sub", "Mul", "Add"):
                yield node
                waiting.extend(node.outputs)
