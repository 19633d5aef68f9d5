"""Prepare the graph for a run: read its spec, select outputs, append nodes.

With `rounded`, the only engine module that uses onnx.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from ...errors import AttlasError, one_line
from ...exporter.spec import BESIDE_KEY, METADATA_KEY, GraphSpec
from .outputs import Form, Wanted

__all__ = [
    "APPENDED",
    "HEADS",
    "TARGET",
    "antialiased",
    "appended_outputs",
    "graph_digest",
    "prepare",
    "read_spec",
    "weight_files",
]

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
_FORMS: dict[int, Form] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}

# The second input of a graph with gradients: (image) int64, a class index.
TARGET = "target"

# Inputs of a graph whose heads can be silenced, with what they are where nobody silences one.
HEADS = {"head_mask": 1.0, "head_fill": 0.0}

# Prefix of all names of an appended model, so that they differ from the graph's names.
APPENDED = "appended:"


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model without its external weights.

    Raises:
        AttlasError: there is no such file, it may not be read, or it is not an ONNX model.
    """
    path = Path(path)
    if path.is_dir():
        raise AttlasError(f"{path}: is a folder, not a graph; name the .onnx file that `attlas export` wrote")
    if not path.is_file():
        raise AttlasError(f"{path}: there is no such graph; `attlas export MODEL -o {path}` makes one")
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.output:
            raise ValueError("no outputs")
    except OSError as error:
        raise AttlasError(f"{path}: cannot be read ({error.strerror or one_line(error, 200)})") from None
    except Exception:  # protobuf and onnx raise many types
        raise AttlasError(f"{path}: is no ONNX model, or is cut off; `attlas export` makes one") from None
    return model


def read_spec(path: str | os.PathLike[str]) -> GraphSpec:
    """The spec in a graph's metadata.

    Raises:
        AttlasError: there is no such file, it is not an ONNX model, has no attlas metadata, or has a newer format.
    """
    path = Path(path)
    found = path.stat() if path.is_file() else None
    return _spec(path, *((found.st_mtime_ns, found.st_size) if found else (0, 0)))


# Cached: a run reads the spec five times, and each time would parse the whole file with its weights.
@functools.lru_cache(maxsize=8)
def _spec(path: Path, _mtime_ns: int, _size: int) -> GraphSpec:
    model = load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            spec = GraphSpec.from_json(entry.value, str(path))
            _compare(spec, model.graph, path)
            return spec
    raise AttlasError(
        f"{path}: is an ONNX model without attlas metadata, so its recipe, grid and tokens are unknown; "
        "export it with `attlas export`"
    )


def _compare(spec: GraphSpec, graph: onnx.GraphProto, path: Path) -> None:
    """Refuse a spec that says other shapes than the graph, by which buffers are made."""
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output}
    for output in spec.outputs:
        known = shapes.get(output.name, [])  # a size of 0 is not known
        said = [size or 0 for size in output.shape]
        if known and (len(known) != len(said) or any(a and b and a != b for a, b in zip(known, said, strict=True))):
            raise AttlasError(
                f"{path}: its attlas metadata is damaged (output {output.name} has another shape in the graph); "
                "export the model again"
            )


def graph_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the graph's file and of its external weights.

    Raises:
        AttlasError: there is no such graph, or its weights are missing or another graph's.
    """
    path = Path(path)
    model, whole = load(path), hashlib.sha256()
    said = [entry.value for entry in model.metadata_props if entry.key == BESIDE_KEY]
    for file in (path, *_beside(model, path)):
        own = hashlib.sha256()
        try:
            with file.open("rb") as handle:
                while block := handle.read(1 << 24):
                    whole.update(block)
                    if said:
                        own.update(block)
        except OSError:
            raise AttlasError(f"{file}: the graph's weights are missing; keep them beside {path.name}") from None
        if said and file != path and own.hexdigest() not in said:
            raise AttlasError(f"{file}: is not the file of weights that {path.name} was exported with")
    return whole.hexdigest()


def antialiased(path: str | os.PathLike[str]) -> bool:
    """Whether a graph resizes with antialiasing, as those of naflexvit did before such constants were folded."""
    return any(
        node.op_type == "Resize" and any(attribute.name == "antialias" and attribute.i for attribute in node.attribute)
        for node in load(path).graph.node
    )


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files with a graph's external weights."""
    return _beside(load(path), Path(path))


def _beside(model: onnx.ModelProto, path: Path) -> list[Path]:
    return sorted(path.parent / name for name in _external(model))


def prepare(
    path: str | os.PathLike[str],
    wanted: Sequence[Wanted],
    appended: bytes | None = None,
    *,
    ablate: bool = False,
    batch: int | None = None,
) -> bytes:
    """The serialised graph with exactly the `wanted` outputs, in that order, followed by those of the appended model.

    Unused nodes stay: onnxruntime drops them on loading. External weights stay in their files.

    Args:
        path: path of the graph.
        wanted: the outputs and their form.
        appended: an ONNX model whose inputs have the names of graph outputs. They are float32 or float16, and the
            graph's outputs are converted to that. Its own outputs get the prefix `APPENDED`.
        ablate: keep the inputs that silence heads.
        batch: the number of images of every run, so that all arithmetic with shapes is done on loading; by default any.

    Raises:
        AttlasError: the graph does not have a wanted output, or the model does not fit the graph.
    """
    model = load(path)
    for name, size in sorted(_external(model).items()):
        file = Path(path).parent / name
        if not file.is_file():
            raise AttlasError(f"{path}: its weights, {name}, are missing; keep them beside the graph")
        if (found := file.stat().st_size) < size:
            raise AttlasError(f"{file}: is cut off (of {size:,} bytes {found:,} are there); copy or export it again")
    graph = model.graph
    have = {o.name: o for o in graph.output}
    made: dict[str, onnx.ValueInfoProto] = dict(have)

    def form(want: Wanted) -> onnx.ValueInfoProto:
        if want.source not in have:
            raise AttlasError(f"{path}: has no output {want.source}; it has {', '.join(have)}")
        if want.name not in made:
            made[want.name] = _append(graph, want)
        return made[want.name]

    outputs = [form(want) for want in wanted]
    if not any(want.source.startswith("gradient.") for want in wanted):
        _fix_target(graph)
    if not ablate:
        _fix_heads(graph)
    if appended is not None:
        outputs += _splice(model, appended, form, str(path))
    del graph.output[:]
    graph.output.extend(outputs)
    if batch is not None:
        for entry in graph.input:
            if entry.name not in HEADS:
                entry.type.tensor_type.shape.dim[0].dim_value = batch
    data: bytes = model.SerializeToString()
    return data


def appended_outputs(appended: bytes) -> dict[str, tuple[tuple[int, ...], str]]:
    """For every output of a model to append: its shape without the image axis, and numpy's name of its dtype."""
    found = {}
    for output in onnx.load_from_string(appended).graph.output:
        kind = output.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim[1:])
        found[output.name] = (shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)
    return found


def _splice(
    model: onnx.ModelProto, appended: bytes, form: Callable[[Wanted], onnx.ValueInfoProto], where: str
) -> list[onnx.ValueInfoProto]:
    """Append a model to the graph, and return its outputs."""
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    addition = onnx.load_from_string(appended)
    try:
        if any(o.version != version for o in addition.opset_import):
            addition = version_converter.convert_version(addition, version)
        addition = compose.add_prefix(addition, APPENDED)
    except Exception as error:  # onnx's converters raise many types
        raise AttlasError(f"{where}: the statistics do not fit its opset {version} ({error})") from None
    graph = model.graph
    for entry in addition.graph.input:
        kind = _FORMS[entry.type.tensor_type.elem_type]
        value = form(Wanted(entry.name.removeprefix(APPENDED), kind))
        graph.node.append(helper.make_node("Identity", [value.name], [entry.name], name=entry.name))
    graph.node.extend(addition.graph.node)
    graph.initializer.extend(addition.graph.initializer)
    return list(addition.graph.output)


def _append(graph: onnx.GraphProto, want: Wanted) -> onnx.ValueInfoProto:
    """Append the nodes that convert one output to the wanted form."""
    value = want.source
    # Prefix of the nodes that are only for this output.
    stem = want.name.removesuffix(f":{want.form}")

    def add(op: str, inputs: list[str], result: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [result], name=result, **attributes))
        return result

    def constant(name: str, kind: int, dims: list[int], values: list[float]) -> str:
        if all(i.name != name for i in graph.initializer):
            graph.initializer.append(helper.make_tensor(name, kind, dims, values))
        return name

    if want.times:
        value = add("Mul", [value, want.times], f"{stem}:product")
    if want.positive:
        value = add("Relu", [value], f"{stem}:above")
    if want.head_mean:
        axes = constant("attlas.head_axis", TensorProto.INT64, [1], [1])
        value = add("ReduceMean", [value, axes], stem, keepdims=0)
    if want.form == "uint8":
        value = add("Sqrt", [value], f"{value}:root")
        value = add("Mul", [value, constant("attlas.255", TensorProto.FLOAT, [], [255.0])], f"{value}:scaled")
        value = add("Round", [value], f"{value}:rounded")
    value = add("Cast", [value], want.name, to=_TYPES[want.form])
    return helper.make_tensor_value_info(value, _TYPES[want.form], None)


def _fix_target(graph: onnx.GraphProto) -> None:
    """Make the target classes a constant instead of an input, for runs without gradients."""
    for i, entry in enumerate(graph.input):
        if entry.name == TARGET:
            del graph.input[i]
            graph.initializer.append(helper.make_tensor(TARGET, TensorProto.INT64, [1], [-1]))
            return


def _fix_heads(graph: onnx.GraphProto) -> None:
    """Keep every head: make the inputs that silence heads constants."""
    for entry in [entry for entry in graph.input if entry.name in HEADS]:
        shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        graph.input.remove(entry)
        graph.initializer.append(numpy_helper.from_array(np.full(shape, HEADS[entry.name], np.float32), entry.name))


def _external(model: onnx.ModelProto) -> dict[str, int]:
    """The files with the model's external weights, relative to the model's folder, and how long each is at least."""
    found: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            if name := told.get("location"):
                end = int(told.get("offset", 0)) + int(told.get("length", 0))
                found[name] = max(found.get(name, 0), end)
    return found
