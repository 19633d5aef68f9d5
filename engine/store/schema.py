"""The schema of a store: every array that a run may write, and how its chunks are compressed.

To add an array, add an entry to `FROM_GRAPH`, which is filled from a graph output, or to `DESCRIBING`, which `unit`
fills. Each array has a row per image. Arrays that are known before the run are in `coordinates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...exporter.spec import QKV, GraphSpec, Output
from ..plan import Plan
from ..runtime.outputs import Form, Wanted

__all__ = [
    "CODEC",
    "CODECS",
    "DESCRIBING",
    "FLOAT16_ATTRS",
    "FROM_GRAPH",
    "GRADIENTS",
    "KEEP",
    "LARGE",
    "LAYERED",
    "STORE_DTYPES",
    "ArraySpec",
    "Entry",
    "Template",
    "per_layer",
]

CHECKSUM: Mapping[str, Any] = {"name": "crc32c"}


def _blosc(name: str) -> Mapping[str, Any]:
    settings = {"cname": name, "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
    return {"name": "blosc", "configuration": settings}


# The choices of `--codec`, in the form of Zarr's metadata; the first is the default. Attention hardly compresses, so it
# is the fastest compressor (docs/engine.md has the table). A checksum follows: a flipped bit is an error on reading,
# never a wrong number.
CODECS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "lz4": (_blosc("lz4"), CHECKSUM),
    "zstd": (_blosc("zstd"), CHECKSUM),
    "none": (CHECKSUM,),
}
CODEC = next(iter(CODECS))

# numpy and xarray sum float16 in float16, which makes a mean over 20,000 rows a third too small. With a CF scale factor
# xarray decodes to float64 on reading, so that `xarray.open_zarr` gives correct means.
FLOAT16_ATTRS: Mapping[str, Any] = {"scale_factor": 1.0}


@dataclass(frozen=True, slots=True)
class Template:
    """One result per image: `dims` begins with "image", `shape` is without the image axis."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store: `dtype` is numpy's name, or "str" for text; `codec` is a key of `CODECS`."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)
    codec: str = CODEC

    @classmethod
    def from_template(cls, template: Template, plan: Plan, codec: str = CODEC) -> ArraySpec:
        """A per-image array in chunks of the plan's units (for large arrays: of batches and single layers).

        `codec` is that of large arrays; others have the default.
        """
        shape = (plan.images, *template.shape)
        if template.name in LAYERED:
            chunks = (plan.batch, 1, *template.shape[1:])
        else:
            chunks = (plan.batch if template.name in LARGE else plan.unit, *template.shape)
        attrs = dict(template.attrs)
        if template.dtype == "float16":
            attrs |= FLOAT16_ATTRS
        codec = codec if template.name in LARGE else CODEC
        return cls(template.name, template.dims, shape, chunks, template.dtype, template.fill, attrs, codec)


MAX_CHUNK = 2**31 - 2**10  # bytes, uncompressed: blosc's limit
KEPT = "kept"  # stands for the dtype of the stored attention
STORE_DTYPES = ("float16", "float32", "uint8")
MATRIX = ("layer", "head", "query", "key")
MEAN = ("layer", "query", "key")


@dataclass(frozen=True, slots=True)
class Entry:
    """One array that a run may store.

    Attributes:
        name: name of the array.
        dims: dimensions of one image's row; empty for those of the graph's output.
        long_name: its description; `attrs`: other attributes.
        output: the graph output that fills it; without the layer's number if chunks are per layer.
        keep: the names of `--keep` that select it; if empty, it is stored whenever the graph has the output.
        store_dtypes: the dtypes of stored attention for which it is stored.
        dtype: numpy's name, "str", or `KEPT`; `fill`: the value for images that cannot be read.
        chunk: the contents of a chunk: one layer of a batch, a batch, or a unit.
        when: whether a graph has it.
    """

    name: str
    dims: tuple[str, ...] = ()
    long_name: str = ""
    output: Wanted | None = None
    keep: tuple[str, ...] = ()
    store_dtypes: tuple[str, ...] = STORE_DTYPES
    dtype: str = "float32"
    fill: Any = math.nan
    chunk: Literal["layer", "batch", "unit"] = "unit"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    when: Callable[[GraphSpec], bool] = lambda _spec: True

    def wanted(self, kept: Form, layers: Sequence[int]) -> tuple[Wanted, ...]:
        """The graph outputs that fill it: one per layer if chunks are per layer, else one or none.

        `kept` is the dtype of the stored attention.
        """
        if self.output is None:
            return ()
        want = replace(self.output, form=kept if self.dtype == KEPT else self.output.form)
        if self.chunk != "layer":
            return (want,)
        return tuple(
            replace(want, source=f"{want.source}.{layer}", times=f"{want.times}.{layer}" if want.times else "")
            for layer in layers
        )

    def template(self, spec: GraphSpec, kept: Form) -> Template:
        """The template of the array for a run of this graph."""
        output = spec.output(self.output.source) if self.output is not None and self.chunk != "layer" else None
        dims = self.dims or (output.dims[1:] if output is not None else ())
        sizes = {"layer": len(spec.layers), "head": spec.heads, "prefix": len(spec.prefix)}
        sizes |= dict.fromkeys(("query", "key", "token"), spec.tokens)
        if output is not None:
            sizes |= {dim: size for dim, size in zip(dims, output.shape[1:], strict=True) if size is not None}
        dtype = kept if self.dtype == KEPT else self.dtype
        attrs = {"long_name": self.long_name or self.name, **self.attrs}
        return Template(self.name, ("image", *dims), tuple(sizes[dim] for dim in dims), dtype, self.fill, attrs)


GRADIENTS = ("gradient", "gradient_mean", "gradient_positive")

# The large ones first.
FROM_GRAPH: tuple[Entry, ...] = (
    Entry(
        "attention", MATRIX, "attention", Wanted("attention"), keep=("attention",),
        store_dtypes=("float16", "float32"), dtype=KEPT, chunk="layer", attrs={"units": "1"},
    ),
    Entry(
        "attention_code", MATRIX, "attention as codes", Wanted("attention", "uint8"), keep=("attention",),
        store_dtypes=("uint8",), dtype="uint8", fill=0, chunk="layer",
        attrs={"formula": "round(255 * sqrt(attention))", "units": "1"},
    ),
    Entry(
        "attention_mean", MEAN, "attention, mean over heads", Wanted("attention", head_mean=True),
        keep=("attention_mean",), dtype=KEPT, chunk="layer", attrs={"units": "1"},
    ),
    # Gradients are always float32: most of them are too small for float16.
    Entry(
        "gradient", MATRIX, "derivative of the target's logit or loss by attention", Wanted("gradient"),
        keep=("gradient",), chunk="layer", attrs={"units": "1"},
    ),
    Entry(
        "gradient_mean", MEAN, "attention times gradient, mean over heads",
        Wanted("gradient", head_mean=True, times="attention"), keep=("gradient_mean",), chunk="layer",
        attrs={"units": "1"},
    ),
    Entry(
        "gradient_positive", MEAN, "attention times gradient where above 0, mean over heads",
        Wanted("gradient", head_mean=True, times="attention", positive=True), keep=("gradient_positive",),
        chunk="layer", attrs={"units": "1"},
    ),
    Entry(
        "target", (), "index of the class whose logit is derived, -1 where the image could not be read",
        keep=GRADIENTS, dtype="int32", fill=-1,
    ),
    Entry(
        "tokens", ("token", "channel"), "tokens after the final norm", Wanted("tokens"), keep=("tokens",),
        dtype=KEPT, chunk="batch",
    ),
    Entry("logits", output=Wanted("logits")),
    Entry("features", output=Wanted("features"), when=lambda spec: spec.output("logits") is None),
    Entry(
        "prefix_attention", ("layer", "head", "prefix", "key"), "attention of the prefix tokens", dtype=KEPT,
        attrs={"units": "1"}, when=lambda spec: bool(spec.prefix),
    ),
    # The pool has its own heads, and xarray requires one size per dimension name.
    Entry(
        "pool_attention", ("pool_head", "pool_query", "key"), "attention of the pool's own queries",
        Wanted("pool_attention"), attrs={"units": "1"},
    ),
)  # fmt: skip

DESCRIBING: tuple[Entry, ...] = (
    Entry("valid", (), "the image could be read", dtype="bool", fill=False),
    Entry("error", (), "why the image could not be read", dtype="str", fill=""),
    Entry("height", (), "height of the original image", dtype="int32", fill=0, attrs={"units": "pixel"}),
    Entry("width", (), "width of the original image", dtype="int32", fill=0, attrs={"units": "pixel"}),
)

# Other outputs per layer are small and always kept. These are the descriptions of the known ones.
LONG_NAMES = {
    "value_norm": "norm of each key's value times its head's slice of the output projection",
    "branch_ratio": "norm of what the attention branch adds over that of the stream it is added to",
    "token_norm": "norm of the residual stream that enters the block",
    "head_output": "what the head writes before the output projection, mean over tokens",
    "class_attention": "attention of the class token in blocks where it alone attends",
}

KEEP = (*dict.fromkeys(name for entry in FROM_GRAPH for name in entry.keep), "none")
LAYERED = tuple(entry.name for entry in FROM_GRAPH if entry.chunk == "layer")
LARGE = (*LAYERED, *(entry.name for entry in FROM_GRAPH if entry.chunk == "batch"))


def per_layer(spec: GraphSpec) -> dict[str, list[Output]]:
    """The small outputs per layer, by the name of their array: not attention, gradients, queries, keys and values."""
    found: dict[str, list[Output]] = {}
    for output in spec.outputs:
        kind, dot, _ = output.name.partition(".")
        if dot and kind not in ("attention", "gradient", *QKV):
            found.setdefault(kind, []).append(output)
    return found


def stacked(name: str, outputs: list[Output]) -> Template:
    """The template for one array of `per_layer`, with its outputs stacked on a layer axis."""
    axis = "class_layer" if name == "class_attention" else "layer"
    shape = (len(outputs), *(size for size in outputs[0].shape if size is not None))
    attrs = {"long_name": LONG_NAMES.get(name, name), "units": "1"}
    return Template(name, ("image", axis, *outputs[0].dims[1:]), shape, "float32", math.nan, attrs)
