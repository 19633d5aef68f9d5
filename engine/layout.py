"""What a run keeps: from the user's choices to the graph's wanted outputs and the store's arrays."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..exporter.errors import UsageError
from ..exporter.spec import GraphSpec, Output
from .graph import Wanted, appended_outputs
from .plan import Plan
from .sources.items import Item, Items, text
from .store import ArraySpec, Template

__all__ = ["KEEP", "STORE_DTYPES", "Keep", "Reducer", "templates", "to_append"]

# What `arrays` adds to the templates, and what stands beside it.
COORDINATES = ("path", "label", "label_class", "valid", "error", "height", "width")
OWN = frozenset(
    {*COORDINATES, "target", "sample", "layer", "prefix", "class", "class_name", "pixels", "row", "column",
     "channel_rgb", "image", "run", "done", "zarr.json"}
)  # fmt: skip
_NAME = re.compile(r"[^\W_][\w.+-]{0,127}")
GRADIENTS = ("gradient", "gradient_mean", "gradient_positive")
KEEP = ("attention", "attention_mean", *GRADIENTS, "tokens", "none")
_WORDS = {
    "value_norm": "norm of each key's value times its head's slice of the output projection",
    "branch_ratio": "norm of what the attention branch adds over that of the stream it is added to",
    "token_norm": "norm of the residual stream that enters the block",
    "class_attention": "attention of the class token in blocks where it alone attends",
}
STORE_DTYPES = ("float16", "float32", "uint8")
Statistics = Literal["auto", "graph", "host"]  # where they are computed


class Reducer(Protocol):
    """Statistics of a batch, handed to the engine by whoever knows them.

    It may have a method `graph(dtype) -> bytes | None`: the same statistics as an ONNX model to append to the graph,
    for an accelerator that attention need not leave then. `dtype` is that of the attention it takes, float16 or
    float32; its inputs are named like the graph's outputs; its outputs are the arrays of `templates`, `_finite`, and
    `prefix_attention` (image, layer, head, prefix, key) where there are prefix tokens. None where it cannot be made.

    Attributes:
        templates: the arrays it gives, one row per image.
    """

    templates: tuple[Template, ...]

    def __call__(
        self, attention: Sequence[npt.NDArray[Any]], pool: npt.NDArray[np.float32] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Reduce a batch.

        Args:
            attention: one (image, head, query, key) array per exported layer, float16 or float32.
            pool: the pool's own map (image, head, pool_query, key), float32, where the graph has one.

        Returns:
            The arrays of `templates` by name, and `_finite` (image, layer) bool: whether all attention was finite.
        """


@dataclass(frozen=True, slots=True)
class Keep:
    """What of each image is kept.

    Attributes:
        arrays: a subset of `KEEP` without "none".
        layers: the blocks whose attention is kept.
        dtype: of the stored attention.
    """

    arrays: tuple[str, ...]
    layers: tuple[int, ...]
    dtype: Literal["float16", "float32", "uint8"]

    @classmethod
    def choose(cls, spec: GraphSpec, keep: Sequence[str], layers: Sequence[int] | None, dtype: str) -> Keep:
        """Check the choices against the graph.

        Raises:
            UsageError: a name, a layer or a dtype that is not there, or uint8 for attention that it cannot carry.
        """
        for name in keep:
            if name in GRADIENTS and not spec.gradients:
                raise UsageError(
                    f"--keep {name}: this graph gives no gradients; `attlas export --gradients` makes one that does"
                )
            if name not in KEEP:
                raise UsageError(f"--keep {name}: choose from {', '.join(KEEP)}")
        if "none" in keep and len(set(keep)) > 1:
            raise UsageError("--keep none: goes with nothing else")
        missing = sorted(set(layers or ()) - set(spec.layers))
        if missing:
            raise UsageError(
                f"--layers {','.join(map(str, missing))}: the graph gives layers {_ranges(spec.layers)}, counted from 0"
            )
        if dtype not in STORE_DTYPES:
            raise UsageError(f"--store-dtype {dtype}: choose from {', '.join(STORE_DTYPES)}")
        if dtype == "uint8" and spec.attention_kind == "mixed":
            raise UsageError(
                "--store-dtype uint8: needs attention whose rows are distributions, and this model's is mixed after "
                "the softmax; use float16"
            )
        arrays = tuple(name for name in KEEP if name in keep and name != "none")
        return cls(arrays, tuple(sorted(set(layers if layers is not None else spec.layers))), dtype)  # type: ignore[arg-type]

    @property
    def gradients(self) -> bool:
        """Whether anything kept is of gradients, so that every image has a class to derive."""
        return any(name in GRADIENTS for name in self.arrays)

    @property
    def reduced(self) -> Literal["float16", "float32"]:
        """The form in which statistics see attention: the stored one, and float16 where codes or nothing is stored."""
        return "float32" if self.dtype == "float32" else "float16"

    @property
    def widths(self) -> set[str]:
        """The dtypes of what has one chunk per layer."""
        return {self.reduced, "float32"} if self.gradients else {self.reduced}

    def wanted(self, spec: GraphSpec, *, appended: bool = False) -> dict[str, Wanted]:
        """The prepared graph's outputs by role.

        Roles: result, pool_attention, tokens, attention.l, code.l, mean.l, gradient.l, gradient_mean.l,
        gradient_positive.l, and the names of `per_layer`.
        With the statistics `appended` to the graph, attention is an output only where it is stored.
        """
        result = "logits" if spec.output("logits") else "features"
        found = {"result": Wanted(result)}
        if spec.output("pool_attention"):
            found["pool_attention"] = Wanted("pool_attention")
        if "tokens" in self.arrays:
            found["tokens"] = Wanted("tokens", self.reduced)
        found |= {o.name: Wanted(o.name) for outputs in per_layer(spec).values() for o in outputs}
        stored = self.layers if "attention" in self.arrays and self.dtype != "uint8" else ()
        for layer in stored if appended else spec.layers:
            found[f"attention.{layer}"] = Wanted(f"attention.{layer}", self.reduced)
        for layer in self.layers:
            if "attention" in self.arrays and self.dtype == "uint8":
                found[f"code.{layer}"] = Wanted(f"attention.{layer}", "uint8")
            if "attention_mean" in self.arrays:
                found[f"mean.{layer}"] = Wanted(f"attention.{layer}", self.reduced, head_mean=True)
            found |= self._derived(layer)
        return found

    def _derived(self, layer: int) -> dict[str, Wanted]:
        """What is kept of one layer's gradients: float32, since float16 would lose most of them."""
        source, times = f"gradient.{layer}", f"attention.{layer}"
        forms = {
            "gradient": Wanted(source),
            "gradient_mean": Wanted(source, head_mean=True, times=times),
            "gradient_positive": Wanted(source, head_mean=True, times=times, positive=True),
        }
        return {f"{name}.{layer}": form for name, form in forms.items() if name in self.arrays}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to resume."""
        return {"keep": list(self.arrays), "layers": list(self.layers), "store_dtype": self.dtype}


def to_append(
    spec: GraphSpec, keep: Keep, reducer: Reducer | None, where: Statistics, *, accelerator: bool
) -> bytes | None:
    """The statistics as a model to append to the graph, or None where they are computed on the host.

    Args:
        spec: of the graph.
        keep: what the run keeps.
        reducer: who knows the statistics.
        where: `graph`, `host`, or `auto`, which is in the graph on an accelerator.
        accelerator: whether one runs the graph.

    Raises:
        UsageError: `where` is `graph`, and the reducer has no model.
    """
    if reducer is None or where == "host" or (where == "auto" and not accelerator):
        return None
    make = getattr(reducer, "graph", None)
    model: bytes | None = make(keep.reduced) if make is not None else None
    if model is not None:
        promised = {t.name for t in reducer.templates} | {"_finite"} | ({"prefix_attention"} if spec.prefix else set())
        missing = promised - appended_outputs(model).keys()
        assert not missing, f"the appended statistics lack {', '.join(sorted(missing))}"
    elif where == "graph":
        raise UsageError("statistics in the graph need ndonnx: `pip install 'attlas[gpu]'` brings it")
    return model


def per_layer(spec: GraphSpec) -> dict[str, list[Output]]:
    """What else the graph gives of each layer, by its array's name: small, and therefore always kept."""
    found: dict[str, list[Output]] = {}
    for output in spec.outputs:
        kind, dot, _ = output.name.partition(".")
        if dot and kind not in ("attention", "gradient"):
            found.setdefault(kind, []).append(output)
    return found


def templates(spec: GraphSpec, keep: Keep, reducer: Reducer | None) -> list[Template]:
    """Every per-image array that a run writes, the large ones first."""
    n, layers, nan = spec.tokens, len(spec.layers), math.nan
    result = spec.output("logits") or spec.output("features")
    assert result is not None
    found = []
    matrix = ("image", "layer", "head", "query", "key")
    if "attention" in keep.arrays:
        shape = (layers, spec.heads, n, n)
        if keep.dtype == "uint8":
            attrs = {"long_name": "attention as codes", "formula": "round(255 * sqrt(attention))", "units": "1"}
            found.append(Template("attention_code", matrix, shape, "uint8", 0, attrs))
        else:
            found.append(
                Template("attention", matrix, shape, keep.dtype, nan, {"long_name": "attention", "units": "1"})
            )
    if "attention_mean" in keep.arrays:
        attrs = {"long_name": "attention, mean over heads", "units": "1"}
        found.append(
            Template("attention_mean", ("image", "layer", "query", "key"), (layers, n, n), keep.reduced, nan, attrs)
        )
    found += _gradient_templates(spec, keep)
    if "tokens" in keep.arrays:
        tokens = spec.output("tokens")
        assert tokens is not None
        size = tokens.shape[-1]
        assert size is not None
        found.append(
            Template("tokens", ("image", "token", "channel"), (n, size), keep.reduced, nan,
                     {"long_name": "tokens after the final norm"})
        )  # fmt: skip
    width = result.shape[-1]
    assert width is not None
    found.append(
        Template(result.name, ("image", result.dims[-1]), (width,), "float32", nan, {"long_name": result.name})
    )
    if spec.prefix:
        found.append(
            Template("prefix_attention", ("image", "layer", "head", "prefix", "key"),
                     (layers, spec.heads, len(spec.prefix), n), keep.reduced, nan,
                     {"long_name": "attention of the prefix tokens", "units": "1"})
        )  # fmt: skip
    pool = spec.output("pool_attention")
    if pool is not None:
        pool_shape = tuple(size for size in pool.shape if size is not None)
        # The pool has heads of its own, and xarray wants one size for one name.
        found.append(
            Template("pool_attention", ("image", "pool_head", "pool_query", "key"), pool_shape, "float32", nan,
                     {"long_name": "attention of the pool's own queries", "units": "1"})
        )  # fmt: skip
    for name, outputs in per_layer(spec).items():
        axis = "class_layer" if name == "class_attention" else "layer"
        sizes = tuple(size for size in outputs[0].shape if size is not None)
        attrs = {"long_name": _WORDS.get(name, name), "units": "1"}
        found.append(
            Template(name, ("image", axis, *outputs[0].dims[1:]), (len(outputs), *sizes), "float32", nan, attrs)
        )
    if reducer is not None:
        found.extend(reducer.templates)
    found.append(Template("valid", ("image",), (), "bool", False, {"long_name": "the image could be read"}))
    found.append(Template("error", ("image",), (), "str", "", {"long_name": "why the image could not be read"}))
    for edge in ("height", "width"):
        attrs = {"long_name": f"{edge} of the original image", "units": "pixel"}
        found.append(Template(edge, ("image",), (), "int32", 0, attrs))
    return found


def _gradient_templates(spec: GraphSpec, keep: Keep) -> list[Template]:
    """The arrays of gradients, and the class each image's are of."""
    n, layers = spec.tokens, len(spec.layers)
    found = []
    if "gradient" in keep.arrays:
        attrs = {"long_name": "derivative of the target's logit by attention", "units": "1"}
        shape = (layers, spec.heads, n, n)
        found.append(
            Template("gradient", ("image", "layer", "head", "query", "key"), shape, "float32", math.nan, attrs)
        )
    words = {
        "gradient_mean": "attention times gradient, mean over heads",
        "gradient_positive": "attention times gradient where above 0, mean over heads",
    }
    for name in (name for name in words if name in keep.arrays):
        attrs = {"long_name": words[name], "units": "1"}
        found.append(Template(name, ("image", "layer", "query", "key"), (layers, n, n), "float32", math.nan, attrs))
    if found:
        attrs = {"long_name": "index of the class whose logit is derived, -1 where the image could not be read"}
        found.append(Template("target", ("image",), (), "int32", -1, attrs))
    return found


def with_room(
    items: Items, spec: GraphSpec, kept: Sequence[Template], reserved: Callable[[str], bool] = lambda _name: False
) -> tuple[Items, dict[str, str]]:
    """The items with every column under a name that is free in a store, and the new names of those that had none.

    A name that an array cannot have loses what is wrong with it: `Patient ID` becomes `Patient_ID`. One that the store
    uses itself, or that `reserved` says is needed later, is put aside: `height` becomes `column_height`.

    Args:
        items: of a source.
        spec: of the graph.
        kept: the per-image arrays of the run.
        reserved: whether a name is to be left free for what may be added to the store.
    """
    taken = {*OWN} | {t.name for t in kept} | {d for t in kept for d in t.dims}
    taken |= {o.name for o in spec.outputs} | {d for o in spec.outputs for d in o.dims}

    def free(name: str) -> bool:
        return _NAME.fullmatch(name) is not None and name not in taken and not reserved(name)

    names = {name: name for name in items.columns if free(name)}
    taken |= names.keys()
    for name in [name for name in items.columns if name not in names]:
        names[name] = next(filter(free, _aside(name)))
        taken.add(names[name])
    columns = {names[name]: values for name, values in items.columns.items()}
    renamed = {name: names[name] for name in items.columns if names[name] != name}
    return dataclasses.replace(items, columns=columns), renamed


def _aside(name: str) -> Iterator[str]:
    """Names that a column may have instead, the nearest first."""
    plain = re.sub(r"^[\W_]+|_+$", "", re.sub(r"[^\w.+-]+", "_", name))[:100] or "unnamed"
    yield from (plain, f"column_{plain}", f"{plain}_column")
    yield from (f"column_{plain}_{n}" for n in itertools.count(2))


def arrays(
    spec: GraphSpec, plan: Plan, kept: Sequence[Template], items: Sequence[Item], label_class: npt.NDArray[np.int32],
    constants: Mapping[str, npt.NDArray[np.float32]] = {},
) -> tuple[list[ArraySpec], dict[str, Any]]:  # fmt: skip
    """The whole layout of a store: every array, and the values of those that are known before the run.

    `constants` are outputs of the graph that no image changes.
    """
    count, height, width = plan.images, *spec.recipe.crop
    items = Items.of(items)
    found = [ArraySpec.from_template(t, plan) for t in kept]
    values: dict[str, Any] = {
        "path": items.keys,
        "label": items.labels,
        "label_class": label_class,
        "sample": np.array(plan.sample, np.int64),
        "layer": np.array(spec.layers, np.int32),
        "run/size": items.sizes,
        "run/mtime_ns": items.mtimes,
        **items.columns,
    }
    if spec.prefix:
        values["prefix"] = text(spec.prefix)
    if spec.classes:
        values["class"] = text([c.id for c in spec.classes])
        values["class_name"] = text([c.name for c in spec.classes])
    dims: Mapping[str, tuple[str, ...]] = {
        "layer": ("layer",), "prefix": ("prefix",), "class": ("class",), "class_name": ("class",),
        "sample": ("sample",),
    }  # fmt: skip
    notes = {
        "label_class": {"long_name": "index of the label's class, -1 where the label names none"},
        "sample": {"long_name": "index of the image whose pixels are stored"},
        "layer": {"long_name": "index of the block, from 0"},
    }
    fill = {"U": "", "T": "", "O": "", "f": math.nan}
    for name, value in values.items():
        own = dims.get(name, ("image",))
        dtype = "str" if value.dtype.kind in "UTO" else str(value.dtype)
        chunk = min(len(value), 1 << 16)
        found.append(
            ArraySpec(name, own, value.shape, (chunk,), dtype, fill.get(value.dtype.kind, 0), notes.get(name, {}))
        )
    for name, value in constants.items():
        output = spec.output(name)
        assert output is not None
        found.append(ArraySpec(name, output.dims, value.shape, value.shape, "float32", math.nan))
        values[name] = value
    found.append(
        ArraySpec("pixels", ("sample", "row", "column", "channel_rgb"), (len(plan.sample), height, width, 3),
                  (1, height, width, 3), "uint8", 0, {"long_name": "the crop that the model saw"})
    )  # fmt: skip
    assert count == len(items)
    return found, values


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 7: a short way to write a list of layers."""
    parts: list[str] = []
    for n in numbers:
        if parts and n == int(parts[-1].split("-")[-1]) + 1:
            parts[-1] = f"{parts[-1].split('-')[0]}-{n}"
        else:
            parts.append(str(n))
    return ", ".join(parts)
