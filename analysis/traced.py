"""The default statistics as a small ONNX graph, traced from the formulas: for where attention should not leave a card.

The formulas run on ndonnx's arrays, which write down operators in place of computing, so that each statistic stands
once. The engine appends the graph to a model's; it takes attention as that run stores it, a layer an input, with any
number of images. The one module that knows ndonnx, which is imported only where a run asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import ndonnx as ndx
import onnx
from onnx import helper

from ..engine.store import Template
from ..exporter.spec import GraphSpec
from . import formulas
from .arrays import Array

__all__ = ["trace"]


def trace(spec: GraphSpec, templates: Sequence[Template], dtype: Literal["float16", "float32"]) -> bytes:
    """The statistics of `templates` as an ONNX model.

    Its inputs are named like the outputs of the spec's graph: `attention.l` for every exported layer, each (image,
    head, query, key) in `dtype`, and `pool_attention` (image, head, query, key) float32 where the readout is the
    pool's. Values of float16 are widened first: statistics are of the attention as stored.

    Args:
        spec: of the graph that it will be appended to.
        templates: the statistics, in the form in which they are stored.
        dtype: of the attention.

    Returns:
        The model. Outputs: every template by name in its dtype, image first; `prefix_attention` (image, layer, head,
        prefix, key) in `dtype` where there are prefix tokens; `_finite` (image, layer), bool: whether all of a
        layer's attention is finite.
    """
    n = spec.tokens
    inputs = {
        f"attention.{layer}": ndx.argument(shape=("image", spec.heads, n, n), dtype=getattr(ndx, dtype))
        for layer in spec.layers
    }
    stored = list(inputs.values())
    layers = [ndx.astype(a, ndx.float32) for a in stored]
    pool = None
    if spec.readout == "pool" and any(t.name == "rollout" for t in templates):
        output = spec.output("pool_attention")
        sizes_of_pool = [size for size in output.shape if size is not None] if output is not None else [1, 1, n]
        pool = inputs["pool_attention"] = ndx.argument(shape=("image", *sizes_of_pool), dtype=ndx.float32)
    outputs = {t.name: ndx.astype(_statistic(t.name, layers, pool, spec), getattr(ndx, t.dtype)) for t in templates}
    if spec.prefix:
        outputs["prefix_attention"] = ndx.stack([a[:, :, : len(spec.prefix), :] for a in stored], axis=1)
    # One bad entry makes its layer's sum infinite or NaN; the head mean is made for the rollout anyway.
    sums = [ndx.sum(formulas.fuse(a, "mean"), axis=(-2, -1)) for a in layers]
    outputs["_finite"] = ndx.stack([ndx.isfinite(s) for s in sums], axis=1)
    sizes = {t.name: t.shape for t in templates}
    sizes |= {"prefix_attention": (len(layers), spec.heads, len(spec.prefix), n), "_finite": (len(layers),)}
    return _finished(ndx.build(inputs, outputs), sizes)


def _statistic(name: str, layers: Sequence[Array], pool: Array | None, spec: GraphSpec) -> Array:
    """One statistic of a batch: (image, ...)."""
    if name == "rollout":
        return formulas.rollout(layers, spec.grid, _readout(layers[-1], pool, spec))
    count = len(spec.prefix)
    per_layer: dict[str, Callable[[Array], Array]] = {
        "distance": lambda a: formulas.distance(a, spec.grid, spec.patch_size),
        "distance_renormalized": lambda a: formulas.distance_renormalized(a, spec.grid, spec.patch_size),
        "entropy": lambda a: formulas.entropy(a, kind=spec.attention_kind),
        "entropy_patch": lambda a: formulas.entropy_patch(a, count, kind=spec.attention_kind),
        "prefix_mass": lambda a: formulas.prefix_mass(a, count),
        "rows_without_patch_mass": lambda a: formulas.rows_without_patch_mass(a, count),
    }
    return ndx.stack([per_layer[name](a) for a in layers], axis=1)


def _readout(last: Array, pool: Array | None, spec: GraphSpec) -> Any:
    """The rows that the head reads, or the pool's map as weights over queries: (image, query)."""
    if pool is None:
        return formulas.readout_rows(spec.prefix, spec.grid, spec.readout)
    weights = ndx.mean(pool, axis=(1, 2))
    missing = spec.tokens - pool.shape[-1]
    if not missing:
        return weights
    # Some pools attend to the patches alone.
    return ndx.concat([ndx.zeros_like(last[:, 0, 0, :missing]), weights], axis=1)


def _finished(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]]) -> bytes:
    """Leave out what no batch of ours needs, share equal constants, and give every output its whole shape."""
    graph = model.graph
    nodes = _alive(_unguarded(graph.node), {output.name for output in graph.output})
    kept, constants = _shared(nodes)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    for output in graph.output:
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, ["image", *sizes[output.name]]))
    del model.metadata_props[:]
    data: bytes = model.SerializeToString()
    return data


def _unguarded(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
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
