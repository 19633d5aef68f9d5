"""Write a graph to a file without a second copy of its weights in memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from ...errors import AttlasError
from ..spec import BESIDE_KEY, LARGEST_FILE

__all__ = ["save"]


def save(model: ir.Model, path: Path) -> None:
    """Write a graph; weights above the size of a protobuf go into `NAME.onnx.data` beside it, whose digest it holds.

    The model loses its weights.

    Raises:
        AttlasError: the graph would hold a path of this machine.
    """
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > LARGEST_FILE:
        beside = path.with_name(f"{path.name}.data")
        ir.save(model, path, external_data=beside.name)
        with beside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        graph = onnx.load(path, load_external_data=False)
        graph.metadata_props.add(key=BESIDE_KEY, value=digest)
        content = graph.SerializeToString()
        _refuse_paths(content, path, model)
        path.write_bytes(content)
    else:
        _write(model, path)


def _write(model: ir.Model, path: Path) -> None:
    """Write the bytes that protobuf would: messages in the order of their fields, but one weight after the other."""
    tensors = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        tensors.append(tensor)
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor("", None, None, tensor.dtype, shape=shape, name=name)
    before = ir.serde.serialize_model(model)
    after, graph = onnx.ModelProto(), before.graph
    after.opset_import.extend(before.opset_import)
    after.metadata_props.extend(before.metadata_props)
    named = onnx.GraphProto(name=graph.name, node=graph.node)
    heads = []
    for empty in graph.initializer:
        empty.ClearField("external_data")
        empty.ClearField("data_location")
        heads.append(empty.SerializeToString())
    for field in ("node", "name", "initializer"):
        graph.ClearField(field)
    parts = [named.SerializeToString(), graph.SerializeToString()]
    for done in ("graph", "opset_import", "metadata_props"):
        before.ClearField(done)
    _refuse_paths(b"".join([*parts, *heads, after.SerializeToString()]), path, model)
    raws = [_field(9, tensor.nbytes) for tensor in tensors]
    sizes = [len(head) + len(raw) + tensor.nbytes for head, raw, tensor in zip(heads, raws, tensors, strict=True)]
    total = sum(map(len, parts)) + sum(len(_field(5, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(before.SerializeToString() + _field(7, total) + parts[0])
        for head, raw, size, tensor in zip(heads, raws, sizes, tensors, strict=True):
            file.write(_field(5, size) + head + raw)
            file.write(_bytes(tensor))
        file.write(parts[1] + after.SerializeToString())


def _bytes(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """A weight's bytes, without a copy where they lie in memory as in the file."""
    array = tensor.numpy()
    if array.dtype != np.float32 or not array.ndim or not array.size or sys.byteorder != "little":
        return tensor.tobytes()
    if not array.flags.c_contiguous:  # a transposed weight, which torch copies in a third of NumPy's time
        array = torch.from_numpy(array).contiguous().numpy()
    return array.data.cast("B")


def _field(number: int, size: int) -> bytes:
    """What stands before a message, string or bytes of `size` in protobuf: its field's number, then the size."""
    return bytes([number << 3 | 2, *_varint(size)])


def _varint(number: int) -> Iterator[int]:
    """Seven bits at a time, the lowest first; the eighth says that more follow."""
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number


def _refuse_paths(content: bytes, path: Path, model: ir.Model) -> None:
    """Refuse a graph that contains a path of this machine."""
    paths = (Path.cwd(), Path.home(), path.parent.resolve(), Path(sys.prefix), Path(__file__).parents[1])
    # A short path such as "/" reveals nothing and is in every file.
    found = [str(p) for p in paths if len(p.parts) > 2 and str(p).encode() in content]
    if found:
        raise AttlasError(f"{path.name}: the graph would hold the path {found[0]}; nothing was written")
