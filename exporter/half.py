"""The float16 graph: half precision where it is fast, float32 where it would be wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

__all__ = ["to_float16"]

# Norms sum squares and softmax exponentials: both overflow or drown in half precision. Normalisation of the pixels
# is here since uint8 / 255 has no business being rounded twice.
_FLOAT32_OPS = (
    "Softmax", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
    "RMSNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Pow", "Sqrt", "Reciprocal", "Exp", "Sin", "Cos",
    "Resize", "Range", "CumSum", "TopK", "Where", "Clip",
)  # fmt: skip


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in half precision, inputs and outputs unchanged, with softmax, norms and scores in float32.

    The scores q @ k and what is added to them stay in float32 because they reach 26 in trained models, where a step of
    float16 is 0.016, which softmax turns into as many percent of a weight.
    """
    names = set(_scores(model.graph)) | set(_from_image(model.graph))
    return convert_float_to_float16(  # type: ignore[no-any-return]
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=list(_FLOAT32_OPS),
        node_block_list=sorted(names),
    )


def _scores(graph: onnx.GraphProto) -> Iterable[str]:
    """Nodes between a softmax and the product it is of, that product included."""
    maker = {output: node for node in graph.node for output in node.output}
    for softmax in graph.node:
        if softmax.op_type != "Softmax":
            continue
        waiting = [softmax.input[0]]
        while waiting:
            node = maker.get(waiting.pop())
            if node is None:
                continue
            yield node.name
            if node.op_type not in ("MatMul", "Gemm", "Einsum"):
                waiting.extend(node.input)


def _from_image(graph: onnx.GraphProto) -> Iterable[str]:
    """The pixels' normalisation: everything elementwise that follows the input."""
    users = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            users[value].append(node)
    waiting = ["image"]
    while waiting:
        for node in users[waiting.pop()]:
            if node.op_type in ("Transpose", "Cast", "Div", "Sub", "Mul", "Add"):
                yield node.name
                waiting.extend(node.output)
