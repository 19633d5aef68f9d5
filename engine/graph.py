"""The graph as a run wants it: its spec read, an epilogue appended, the rest pruned. The module that knows onnx."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from ..exporter.errors import AttlasError
from ..exporter.spec import METADATA_KEY, GraphSpec

__all__ = ["Wanted", "graph_digest", "prepare", "read_spec"]

Form = Literal["float32", "float16", "uint8"]
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of the prepared graph: which of the graph's own, in what form.

    `uint8` is the companded code round(255 * sqrt(a)), for attention alone. `head_mean` averages axis 1 first.
    """

    source: str
    form: Form = "float32"
    head_mean: bool = False

    @property
    def name(self) -> str:
        """The output's name in the prepared graph; unchanged where nothing is appended."""
        if self.form == "float32" and not self.head_mean:
            return self.source
        return f"{self.source}{':mean' if self.head_mean else ''}:{self.form}"


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model without its external weights.

    Raises:
        AttlasError: there is no such file, or it is no ONNX model.
    """
    path = Path(path)
    if not path.is_file():
        raise AttlasError(f"{path}: there is no such graph; `attlas export MODEL -o {path}` makes one")
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.output:
            raise ValueError("no outputs")
    except Exception:  # protobuf raises its own, onnx others
        raise AttlasError(f"{path}: is no ONNX model") from None
    return model


def read_spec(path: str | os.PathLike[str], model: onnx.ModelProto | None = None) -> GraphSpec:
    """The spec in a graph's metadata.

    Raises:
        AttlasError: there is no such file, it is no ONNX model, has no metadata of ours, or of a newer format.
    """
    model = model or load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return GraphSpec.from_json(entry.value, str(path))
    raise AttlasError(
        f"{path}: is an ONNX model without attlas metadata, so its recipe, grid and tokens are unknown; "
        "export it with `attlas export`"
    )


def graph_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the graph's file and of its external weights."""
    path = Path(path)
    files = [path, *sorted({path.parent / name for name in _external(load(path))})]
    hasher = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as handle:
                while block := handle.read(1 << 24):
                    hasher.update(block)
        except OSError:
            raise AttlasError(f"{file}: the graph's weights are missing; keep them beside {path.name}") from None
    return hasher.hexdigest()


def prepare(path: str | os.PathLike[str], wanted: Sequence[Wanted]) -> bytes:
    """The graph in memory with exactly the `wanted` outputs, in that order.

    What no wanted output needs is left to onnxruntime, which drops dead nodes on loading. External weights stay in
    their files.

    Raises:
        AttlasError: an output is wanted that the graph does not have.
    """
    model = load(path)
    graph = model.graph
    have = {o.name: o for o in graph.output}
    outputs = []
    for want in wanted:
        if want.source not in have:
            raise AttlasError(f"{path}: has no output {want.source}; it has {', '.join(have)}")
        outputs.append(have[want.source] if want.name == want.source else _append(graph, want))
    del graph.output[:]
    graph.output.extend(outputs)
    data: bytes = model.SerializeToString()
    return data


def _append(graph: onnx.GraphProto, want: Wanted) -> onnx.ValueInfoProto:
    """Append the nodes that bring one output into the wanted form."""
    value = want.source

    def add(op: str, inputs: list[str], result: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [result], name=result, **attributes))
        return result

    def constant(name: str, kind: int, dims: list[int], values: list[float]) -> str:
        if all(i.name != name for i in graph.initializer):
            graph.initializer.append(helper.make_tensor(name, kind, dims, values))
        return name

    if want.head_mean:
        axes = constant("attlas.head_axis", TensorProto.INT64, [1], [1])
        value = add("ReduceMean", [value, axes], f"{want.source}:mean", keepdims=0)
    if want.form == "uint8":
        value = add("Sqrt", [value], f"{value}:root")
        value = add("Mul", [value, constant("attlas.255", TensorProto.FLOAT, [], [255.0])], f"{value}:scaled")
        value = add("Round", [value], f"{value}:rounded")
    value = add("Cast", [value], want.name, to=_TYPES[want.form])
    return helper.make_tensor_value_info(value, _TYPES[want.form], None)


def _external(model: onnx.ModelProto) -> set[str]:
    """The files that hold the model's external weights, relative to it."""
    return {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
