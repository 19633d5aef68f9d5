"""The default statistics as a small ONNX graph, traced from the formulas: for where attention should not leave a card.

The formulas run on ndonnx's arrays, which write down operators in place of computing, so that each statistic stands
once. The engine appends the graph to a model's; it takes attention as that run stores it, a layer an input, with any
number of images. The one module that knows ndonnx, which is imported only where a run asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ndonnx as ndx
import onnx
from onnx import helper

from ..engine.store import Template
from ..exporter.spec import GraphSpec
from . import formulas
from .arrays import Array

__all__ = ["trace"]

# Beyond this many bytes an array in the graph is looked for among those that are there already.
SHARED_BYTES = 256


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
        shape = output.shape[1:] if output is not None else (1, 1, n)
        pool = inputs["pool_attention"] = ndx.argument(shape=("image", *map(int, map(_known, shape))),
                                                       dtype=ndx.float32)  # fmt: skip
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


def _known(size: int | None) -> int:
    assert size is not None, "only the image axis of an output has no size"
    return size


def _finished(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]]) -> bytes:
    """Share equal constants, and give every output its whole shape.

    Every layer brings its own copy of the patch distances: 90 MB for 12 layers of 37 x 37 patches.
    """
    graph = model.graph
    kept, names, renamed = [], dict[bytes, str](), dict[str, str]()
    for node in graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is None or math.prod(value.dims) * 4 < SHARED_BYTES:
            kept.append(node)
            continue
        value.ClearField("name")
        key = value.SerializeToString()
        if key not in names:
            names[key] = node.output[0]
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        renamed[node.output[0]] = names[key]
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    for output in graph.output:
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, ["image", *sizes[output.name]]))
    del model.metadata_props[:]
    data: bytes = model.SerializeToString()
    return data
