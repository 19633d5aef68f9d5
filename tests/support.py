"""Small graphs and pictures that the tests make for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from attlas.engine.store.storage import storage_at
from attlas.exporter.spec import METADATA_KEY, ClassName, GraphSpec, Output, Recipe, Weights
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

PATCH = 8


def make_spec(
    grid: tuple[int, int] = (2, 3), prefix: Sequence[str] = ("class",), layers: int = 2, heads: int = 2,
    classes: int = 4, **changes: Any,
) -> GraphSpec:  # fmt: skip
    """The spec of a graph that `make_graph` makes."""
    size = (grid[0] * PATCH, grid[1] * PATCH)
    n = len(prefix) + grid[0] * grid[1]
    outputs = [
        Output("logits", ("image", "class"), (None, classes)),
        Output("tokens", ("image", "token", "channel"), (None, n, 16)),
        Output("position_embedding", ("token", "channel"), (n, 16)),
    ]
    outputs += [Output(f"attention.{i}", ("image", "head", "query", "key"), (None, heads, n, n)) for i in range(layers)]
    values: dict[str, Any] = {
        "model": "tiny_test", "tag": "", "weights": Weights("random", "0" * 64), "dtype": "float32",
        "image_size": size, "recipe": Recipe(size, size, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3),
        "patch_size": (PATCH, PATCH), "grid": grid, "prefix": tuple(prefix),
        "pooling": "class" if "class" in prefix else "mean", "layers": tuple(range(layers)), "depth": layers,
        "heads": heads, "attention_kind": "probability", "position": "absolute", "outputs": tuple(outputs),
        "classes": tuple(ClassName(f"n{i:08d}", f"name {i}, other {i}") for i in range(classes)),
    }  # fmt: skip
    return GraphSpec(**(values | changes))


class _Nodes:
    """The nodes and weights of a graph that grows, its weights drawn in order."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.constant(name, (self.rng.normal(size=shape) * scale).astype(np.float32))

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output


def _embedded(g: _Nodes, spec: GraphSpec, channels: int) -> str:
    """Patches with their prefix tokens and positions."""
    x = g.add("Cast", ["image"], "float", to=TensorProto.FLOAT)
    x = g.add("Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    x = g.add("Mul", [x, g.constant("over127", np.float32(1 / 127.5))], "scaled")
    x = g.add("Sub", [x, g.constant("one", np.float32(1))], "normal")
    x = g.add("Conv", [x, g.weight("embed", channels, 3, PATCH, PATCH, scale=0.2)], "patches", strides=[PATCH, PATCH])
    x = g.add("Reshape", [x, g.constant("flat", np.array([0, channels, -1]))], "flattened")
    x = g.add("Transpose", [x], "tokens0", perm=[0, 2, 1])
    if spec.prefix:
        batch = g.add("Shape", ["image"], "batch_size", start=0, end=1)
        rest = g.constant("prefix_shape", np.array([len(spec.prefix), channels]))
        shape = g.add("Concat", [batch, rest], "prefix_full", axis=0)
        prefix = g.add("Expand", [g.weight("prefix", 1, len(spec.prefix), channels), shape], "prefixes")
        x = g.add("Concat", [prefix, x], "sequence", axis=1)
    x = g.add("Add", [x, g.weight("position", spec.tokens, channels)], "placed")
    g.add("Identity", ["position"], "position_embedding")
    return x


def _block(g: _Nodes, x: str, layer: int, channels: int, split: str, sharpness: float) -> str:
    """One block of attention alone, with its residual connection."""
    parts = {}
    normal = g.add("LayerNormalization", [x, g.constant(f"g{layer}", np.ones(channels, np.float32))], f"norm{layer}")
    for part in "qkv":
        y = g.add("MatMul", [normal, g.weight(f"w{part}{layer}", channels, channels, scale=0.25)], f"{part}{layer}")
        y = g.add("Reshape", [y, split], f"{part}split{layer}")
        order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        parts[part] = g.add("Transpose", [y], f"{part}heads{layer}", perm=order)
    scores = g.add("MatMul", [parts["q"], parts["k"]], f"scores{layer}")
    scores = g.add("Mul", [scores, g.constant(f"sharp{layer}", np.float32(sharpness))], f"sharpened{layer}")
    attention = g.add("Softmax", [scores], f"attention.{layer}", axis=-1)
    y = g.add("MatMul", [attention, parts["v"]], f"mixed{layer}")
    y = g.add("Transpose", [y], f"merged{layer}", perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, g.constant(f"merge{layer}", np.array([0, 0, channels]))], f"joined{layer}")
    return g.add("Add", [x, y], f"x{layer}")


def make_graph(path: Path, *, seed: int = 0, sharpness: float = 3.0, **changes: Any) -> GraphSpec:
    """Write a small real vision transformer, by hand, with attention far from uniform."""
    spec, g, channels = make_spec(**changes), _Nodes(seed), 16
    x = _embedded(g, spec, channels)
    split = g.constant("split", np.array([0, 0, spec.heads, channels // spec.heads]))
    for layer in range(spec.depth):
        x = _block(g, x, layer, channels, split, sharpness)
    g.add("LayerNormalization", [x, g.constant("gain", np.ones(channels, np.float32))], "tokens")
    pooled = g.add("ReduceMean", ["tokens", g.constant("axis", np.array([1]))], "pooled", keepdims=0)
    g.add("MatMul", [pooled, g.weight("head", channels, len(spec.classes))], "logits")
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *spec.image_size, 3])]
    outputs = [
        helper.make_tensor_value_info(o.name, TensorProto.FLOAT, ["batch" if s is None else s for s in o.shape])
        for o in spec.outputs
    ]
    graph = helper.make_graph(g.nodes, "tiny", inputs, outputs, g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    onnx.save(model, path)
    return spec


def make_picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A picture with structure: coloured gradients and a bright rectangle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([[[height]], [[width]]])
    planes = [np.sin(x * rng.uniform(1, 9) + y * rng.uniform(1, 9) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = (np.stack(planes, axis=-1) * 100 + 128).astype(np.uint8)
    top, left = rng.integers(0, height // 2 + 1), rng.integers(0, width // 2 + 1)
    pixels[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def make_images(folder: Path, count: int, classes: int = 4) -> Path:
    """`count` JPEGs and PNGs of different sizes in folders named after the classes' ids."""
    for i in range(count):
        place = folder / f"n{i % classes:08d}"
        place.mkdir(parents=True, exist_ok=True)
        picture = make_picture(i, 30 + 7 * (i % 5), 26 + 5 * (i % 7))
        picture.save(place / f"{i:05d}.{'png' if i % 3 == 0 else 'jpg'}")
    return folder


def chunk_files(store: str | Path) -> dict[str, bytes]:
    """Every chunk file of a store by its path: what two runs must agree on."""
    place = storage_at(store)
    return {key: place.read(key) for key, _ in sorted(place.listing()) if "/c." in key}
