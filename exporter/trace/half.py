"""The float16 graph: half precision where it is fast, float32 where it would be wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

__all__ = ["to_float16"]

# Norms sum squares and softmax sums exponentials: both overflow or drown in half precision. Angles of rotary positions
# lose their fraction in it, and the operators in the last row take float32 by definition or cost nothing.
_FLOAT32_OPS = frozenset({
    "Softmax", "LogSoftmax", "Exp", "LayerNormalization", "GroupNormalization", "InstanceNormalization",
    "BatchNormalization", "RMSNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Pow", "Sqrt",
    "Reciprocal", "Sin", "Cos",
    "Resize", "Range", "CumSum", "Cast", "OneHot", "Identity",
})  # fmt: skip
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})


def to_float16(model: ir.Model) -> None:
    """Turn the graph to half precision in place; its inputs and outputs keep their types.

    Before: every node of the graph computes in float32. After: matrix products, convolutions and what lies between
    them take and give float16; softmax, norms and their ratios, the pixels' normalisation and the scores q @ k, with
    whatever is added to them, stay in float32. Scores reach 26 in trained models, where a step of float16 is 0.016,
    which softmax turns into as many percent of a weight.
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
    """Casts of values, one a value and direction; weights are rounded here instead of in every run."""

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
        """Put a float32 value in the place of an output, under its name."""
        name, value.name = value.name, f"{value.name}_float16"
        node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"node_{name}")
        node.outputs[0].name, node.outputs[0].shape = name, value.shape
        node.outputs[0].dtype = ir.DataType.FLOAT
        self.graph.append(node)
        return node.outputs[0]

    def _round(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        largest = float(np.finfo(np.float16).max)
        # A mask of -inf stays one; a finite weight beyond the range becomes the largest there is.
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
    """Nodes between a softmax and the product it is of, that product included."""
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
    """Quotients of norms, which are outputs: nothing is gained by rounding them."""
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if node.op_type == "Div" and all(m is not None and m.op_type == "ReduceL2" for m in makers):
            yield node


def _pixels(graph: ir.Graph) -> Iterator[ir.Node]:
    """The normalisation of the pixels: everything elementwise that follows the input."""
    waiting = [*graph.inputs]
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in ("Transpose", "Cast", "Div", "Sub", "Mul", "Add"):
                yield node
                waiting.extend(node.outputs)
