"""The metadata of an exported graph, written by the exporter and read by the other rooms.

The same JSON is in the ONNX file's `metadata_props` under the key `attlas`, and in a file next to it (JavaScript
runtimes cannot read the metadata). This module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import AttlasError, UsageError
from ..files import from_json

__all__ = [
    "BESIDE_KEY",
    "FORMAT",
    "LARGEST_FILE",
    "METADATA_KEY",
    "NORMS",
    "QKV",
    "ClassName",
    "GraphSpec",
    "Output",
    "Pooling",
    "Position",
    "Readout",
    "Recipe",
    "Weights",
    "rebuilt",
]

FORMAT = 1
METADATA_KEY = "attlas"
BESIDE_KEY = "attlas.weights"  # of the SHA-256 of the weights' own file, where they have one

# Protobuf's limit is 2 GiB; some of it is left for the nodes. Larger weights go into a file next to the graph.
LARGEST_FILE = 2**31 - 2**24

LARGEST_EDGE = 2**16  # of pictures, patches, grids; more is damage

# The outputs per layer of a graph with norms.
NORMS = ("value_norm", "branch_ratio", "token_norm")

# Those of a graph with queries, keys and values.
QKV = ("query", "key", "value")

Readout = Literal["class", "mean", "pool", "distilled"]
Pooling = Literal["class", "mean", "class_mean", "mean_all", "max", "pool", "distilled", "none"]
Position = Literal["absolute", "rotary", "relative", "none"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture becomes the graph's input: resize, crop, and the normalisation, which the graph itself does.

    The names are timm's. `resize` is (height, width) in pixels; `crop_mode` says how it applies: `center` scales the
    shorter edge to it, `squash` scales both edges, `border` scales the longer edge and pads. `crop` is (height, width)
    in pixels. `mean` and `std` apply to RGB pixels in 0..1. `crop_rounding` says where the crop begins if an odd number
    of pixels is cut off: at half of it, rounded to the even pixel (timm) or down (transformers). `transparency` says
    what becomes of it: `dropped` (timm), `white` behind it (image processors of transformers that convert to RGB), or
    `resized`: pictures with transparency or a palette become RGB only after the crop (open_clip). Reading a graph does
    not call `check`, so graphs of earlier versions load even if their recipe would be refused today.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_rounding: Literal["even", "down"] = "even"
    transparency: Literal["dropped", "white", "resized"] = "dropped"

    def check(self, where: str = "recipe") -> None:
        """Refuse a recipe that no model was trained with.

        Args:
            where: the option or file that the recipe came from, for errors.

        Raises:
            UsageError: mean or std cannot be for RGB pixels in 0..1 (the error suggests values), the resize is smaller
                than the crop, or a mode is unknown.
        """
        for name in ("mean", "std"):
            _check_numbers(where, name, getattr(self, name))
        for name in ("resize", "crop"):
            edges = getattr(self, name)
            if len(edges) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in edges):
                raise UsageError(f"{where}: {name}={_commas(edges)} is no (height, width) in whole pixels from 1")
        if any(edge < cropped for edge, cropped in zip(self.resize, self.crop, strict=True)):
            size, crop = ("x".join(map(str, edges)) for edges in (self.resize, self.crop))
            raise UsageError(
                f"{where}: resize {size} is smaller than crop {crop}, and what is missing would be filled with one "
                f"colour; pass a resize of {crop} or more"
            )
        for name in ("crop_mode", "interpolation", "crop_rounding", "transparency"):
            allowed = typing.get_args(_hints(Recipe)[name])
            if getattr(self, name) not in allowed:
                raise UsageError(f"{where}: {name} {getattr(self, name)!r} is none of {', '.join(allowed)}")

    def __str__(self) -> str:
        def numbers(values: tuple[float, ...]) -> str:
            return " ".join(f"{v:g}" for v in values)

        def size(edges: tuple[int, int]) -> str:
            return f"{edges[0]}" if edges[0] == edges[1] else f"{edges[0]}x{edges[1]}"

        return (
            f"resize {size(self.resize)} ({self.crop_mode}, {self.interpolation}), crop {size(self.crop)}, "
            f"mean {numbers(self.mean)}, std {numbers(self.std)}"
        )


# Channel means and deviations of ImageNet and CLIP in BGR order, as OpenCV and Caffe give them.
_BGR = {
    "mean": ((0.406, 0.456, 0.485), (0.40821073, 0.4578275, 0.48145466)),
    "std": ((0.225, 0.224, 0.229), (0.27577711, 0.26130258, 0.26862954)),
}


def _check_numbers(where: str, name: str, values: tuple[float, ...]) -> None:
    """Check that the values can be the mean or std of RGB pixels in 0..1."""
    found = f"{where}: {name}={_commas(values)}"
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise UsageError(f"{found} is not three finite numbers, for red, green and blue")
    # A std below one step of an 8-bit pixel would make every input larger than 100.
    lowest = 0.0 if name == "mean" else 1 / 255 - 1e-6
    if name == "std" and min(values) <= 0:
        raise UsageError(f"{found} is not three positive numbers for pixels in 0..1")
    if max(values) > 1 or min(values) < lowest:
        factor = 1 / 255 if max(values) > 1 else 255.0
        scaled = tuple(float(f"{v * factor:.4g}") for v in values)
        fits = lowest <= min(scaled) and max(scaled) <= 1
        scale = "pixels in 0..255" if factor < 1 else "numbers divided by 255 once too often"
        reason = f"looks like {scale}" if fits else "belongs to no pixels"
        right = scaled[::-1] if fits and _is_bgr(name, scaled) else scaled
        order = ", in RGB order" if right != scaled else ""
        usual = "0.485,0.456,0.406" if name == "mean" else "0.229,0.224,0.225"
        advice = f"write {name}={_commas(right)}{order}" if fits else f"ImageNet's is {usual}"
        raise UsageError(f"{found} {reason}; the graph's pixels are in 0..1: {advice}")
    if _is_bgr(name, values):
        raise UsageError(f"{found} is in BGR order; the graph takes RGB: write {name}={_commas(values[::-1])}")


def _is_bgr(name: str, values: tuple[float, ...]) -> bool:
    return any(all(abs(a - b) < 6e-4 for a, b in zip(values, known, strict=True)) for known in _BGR[name])


def _commas(values: typing.Iterable[object]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights came from, and the SHA-256 over names, dtypes, shapes and bytes of the state dict.

    `key` is the part of the checkpoint that was used, such as `model_ema` or `teacher.backbone`. It is "" if the file
    had only one part, without a checkpoint, and in graphs of earlier versions.
    """

    source: Literal["pretrained", "checkpoint", "random"]
    sha256: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class ClassName:
    """One class of the head: a stable id (a WordNet id for ImageNet, else the index as text) and its name in words."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """One output of the graph. In `shape`, None is the batch axis."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Everything a reader needs to know about a graph without opening the model.

    Attributes:
        model: the architecture's name in its library; `tag`: timm's pretrained tag that the recipe and classes come
            from, or "". The weights are those of the tag only if `weights.source` is `pretrained`.
        dtype: the precision of the computation. Outputs are always float32.
        image_size: (height, width) in pixels of the input `image`, NHWC uint8 RGB.
        patch_size: (height, width) in input pixels of one token of the grid.
        grid: (rows, columns) of patch tokens.
        prefix: the kinds of the tokens before the patches, in order: class, distillation, register. A class token
            that is added only after the blocks is not included; the maps of its own blocks are `class_attention.L`.
        pooling: what the head reads: class, mean (of the patches), class_mean (both, side by side), mean_all (of all
            tokens), max (of the patches), pool (a learned query attends), distilled (class and distillation token),
            none.
        layers: the blocks whose attention is an output, by index from 0; `depth`: number of blocks of the model.
        heads: heads per block.
        attention_kind: probability (rows sum to 1) or mixed.
        position: the position encoding: absolute, rotary, relative or none.
        classes: the head's classes by index; empty without a head or if no names are known.
        outputs: every output, in the graph's order.
        gradients: whether the graph has a second input, `target` (image) int64: a class index, or -1 for the class
            with the largest logit; and outputs `gradient.L`, derivatives for that class.
        objective: what these derive: the class's logit, or the loss, -ln of its probability.
        norms: whether the graph has the outputs `value_norm.L`, `branch_ratio.L` and `token_norm.L`.
        ablate: whether the graph has the inputs `head_mask` (layer, head) float32, 1 keeps a head, and `head_fill`
            (layer, head, channel) float32, what stands in place of a head that is not kept; and outputs
            `head_output.L`.
        library: the library that the model comes from: timm, transformers, open_clip, or module for a model of one's
            own. Graphs of earlier versions are all of timm.
        processor: what the recipe reproduces, if not timm's transform: the image processor's class and its backend.
        versions: versions of the packages that wrote the graph.
    """

    model: str
    tag: str
    weights: Weights
    dtype: Literal["float32", "float16"]
    image_size: tuple[int, int]
    recipe: Recipe
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    prefix: tuple[str, ...]
    pooling: Pooling
    layers: tuple[int, ...]
    depth: int
    heads: int
    attention_kind: Literal["probability", "mixed"]
    position: Position
    outputs: tuple[Output, ...]
    classes: tuple[ClassName, ...] = ()
    gradients: bool = False
    objective: Literal["logit", "loss"] = "logit"
    norms: bool = False
    ablate: bool = False
    library: str = "timm"
    processor: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    attlas_format: int = FORMAT

    @property
    def patches(self) -> int:
        """Number of patch tokens: rows times columns."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """Number of tokens in the sequence: prefix and patches."""
        return len(self.prefix) + self.patches

    @property
    def readout(self) -> Readout:
        """The row of the attention that the head reads: the value of `readout="auto"` for this model."""
        match self.pooling:
            case "pool" | "distilled":
                return self.pooling
            case "class" | "class_mean" | "none":
                # A class token that is added after these blocks has no row in their maps.
                return "class" if "class" in self.prefix else "mean"
            case _:
                return "mean"

    @property
    def name(self) -> str:
        """The model's name in its library, with the pretrained tag only if the weights are those of the tag."""
        return f"{self.model}.{self.tag}" if self.tag and self.weights.source == "pretrained" else self.model

    def output(self, name: str) -> Output | None:
        """The output with that name, or None."""
        return next((o for o in self.outputs if o.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with `attlas_format` first."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"attlas_format": data.pop("attlas_format"), **data}

    def to_json(self, indent: int | None = None) -> str:
        """JSON text: equal specs give equal text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def _check(self) -> None:
        """Refuse values that no graph has, as ValueError: what reads them would fail elsewhere, and less clearly."""
        numbers = {name: getattr(self, name) for name in ("image_size", "patch_size", "grid")}
        numbers |= {"resize": self.recipe.resize, "depth": (self.depth,), "heads": (self.heads,)}
        for name, values in numbers.items():
            if not all(0 < value <= LARGEST_EDGE for value in values):
                raise ValueError(f"{name} {_commas(values)}")
        if self.recipe.crop != self.image_size:
            raise ValueError(f"crop {_commas(self.recipe.crop)} of pictures of {_commas(self.image_size)} pixels")
        if not self.layers or list(self.layers) != sorted({*self.layers} & {*range(self.depth)}):
            raise ValueError(f"layers {_commas(self.layers)} of {self.depth}")
        for output in self.outputs:
            sizes = [1 if k == 0 and size is None else size or 0 for k, size in enumerate(output.shape)]
            if len(output.dims) != len(sizes) or not all(0 < size < 2**31 for size in sizes):
                raise ValueError(f"output {output.name} of shape {_commas(output.shape)}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> GraphSpec:
        """Read `to_dict`'s values.

        Raises:
            AttlasError: `data` is not a spec of attlas, or has a newer format. `where` names its file.
        """
        number = data.get("attlas_format") if isinstance(data, Mapping) else None
        if not isinstance(number, int):
            raise AttlasError(f"{where}: its metadata has no attlas_format; export the model with `attlas export`")
        if number > FORMAT:
            raise AttlasError(
                f"{where}: written in format {number}, this attlas reads up to {FORMAT}; install a newer attlas"
            )
        try:
            found = typing.cast(GraphSpec, rebuilt(cls, data))
            found._check()
            return found
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise AttlasError(f"{where}: its attlas metadata is damaged ({error}); export the model again") from None

    @classmethod
    def from_json(cls, text: str, where: str) -> GraphSpec:
        """Read `to_json`'s text; errors as in `from_dict`."""
        try:
            data = from_json(text)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise AttlasError(f"{where}: its attlas metadata is no JSON object; export the model again")
        return cls.from_dict(data, where)


# Cached: a spec can have a thousand classes, and looking up their hints took most of the time of opening a store.
@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def rebuilt(kind: Any, value: Any) -> Any:
    """A value of the annotated type from JSON; unknown keys, as later versions may add, are ignored.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is none.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is no object")
        hints = _hints(typing.cast(Any, kind))
        known = {f.name: f for f in dataclasses.fields(kind)}
        needed = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        missing = [n for n in needed if n not in value]
        if missing:
            raise KeyError(f"no {', '.join(missing)}")
        return typing.cast(Any, kind)(**{n: rebuilt(hints[n], value[n]) for n in known if n in value})
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is no list")
        each = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(each) != len(value):
            raise ValueError(f"{value!r} should have {len(each)} entries")
        return tuple(rebuilt(k, v) for k, v in zip(each, value, strict=True))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        return None if value is None else rebuilt(next(a for a in arguments if a is not types.NoneType), value)
    if kind is float:
        return float(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{value!r} is neither true nor false")
        return value
    if kind in (int, str):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value
    return dict(value)
