"""A statistic is one object: its formula, its name and units, and everything else attlas needs to know about it.

`catalog` lists ours. A user's own is made the same way, from a plain function of one image's attention, and is computed
in the same pass: `attlas.analyze(store, [mine])`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .. import arguments
from ..engine.store.schema import Template
from ..errors import UsageError
from ..exporter.spec import GraphSpec
from .declared import check_declared
from .formulas import readout_rows
from .formulas.histograms import BINS

__all__ = ["CONTEXT", "INPUTS", "Parameter", "Statistic", "context", "sizes"]

# What a formula may take, by the names of its arguments: arrays of the store, with their names there, and what
# the graph says.
INPUTS = {
    "attention": "attention",
    "gradient": "gradient",
    "weighted": "gradient_mean",
    "positive": "gradient_positive",
    "value_norm": "value_norm",
    "token_norm": "token_norm",
}
CONTEXT = (*INPUTS, "grid", "patch_size", "prefix", "kind", "readout", "spec")
READOUTS = ("class", "mean", "distilled")
SHORT = {"start_layer": "start"}  # how a parameter is called where it is not by its name in Python

type Refusal = Literal["mixed", "codes", "pool", "logit", "loss"]
type Grouping = Literal["no", "asked", "always"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A keyword argument of a formula that the user may set.

    Attributes:
        name: in requests; `keyword`: in the formula.
        default: the formula's default.
        kind: type of the value: bool, int, float, str (one of `choices`) or tuple (rows of queries).
        choices: all values of a str.
    """

    name: str
    keyword: str
    default: Any
    kind: type
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value that a text means.

        Raises:
            ValueError: none; the message says which there are.
        """
        if self.kind is bool and text in ("true", "false"):
            return text == "true"
        if self.kind is str and text in self.choices:
            return text
        try:
            if self.kind is tuple:
                return text if text == "readout" else tuple(int(n) for n in text.replace("_", "+").split("+"))
            if self.kind in (int, float):
                return self.kind(text)
        except ValueError:
            pass
        raise ValueError(f"{self.name}={text}: {self.words}")

    @property
    def words(self) -> str:
        """What it may be, as a sentence."""
        kinds = {
            bool: "it is true or false",
            int: "it is a whole number",
            float: "it is a number",
            tuple: "it is rows as 0+3, or readout",
        }
        return f"there is {', '.join(self.choices)}" if self.choices else kinds[self.kind]

    @property
    def values(self) -> str:
        """What it may be: max|min, or 0.5 as an example of a number."""
        kinds: dict[type, str] = {bool: "true|false", tuple: "readout|0+3"}
        return "|".join(self.choices) or kinds.get(self.kind) or _spelled(self.default)


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of attention.

    Attributes:
        name: in requests and in the store.
        dims: of one image's result. With "layer" the formula is called per layer, without it once for all layers.
        formula: a plain function. It gets what its arguments name (`CONTEXT`): `attention` is one image's (head,
            query, key) of one layer, float32, or, if `dims` lack "layer", a sequence of these from input to output;
            `value_norm` is (head, key), `token_norm` (token); `grid`, `patch_size`, `readout` and `kind` are as in
            `formulas`, `prefix` is the number of prefix tokens, `spec` the graph's. Other arguments need defaults: they
            are its parameters. None if the run writes the rows.
        units: of the values; `long_name`: a short description, in which `{threshold}` stands for the value of that
            parameter; `words` has it filled in.
        source: the publication; `cite`: its key in the report's bibliography.
        refuses: what it cannot be computed from: "mixed" attention, which is not a probability; uint8 "codes", if it
            depends on single values; a model with attention "pool"ing, if it needs the row that the head reads;
            gradients of the "logit", or of the "loss".
        rows: keep one result per image; if False, only the mean or counts over images, under the bare name.
        grouped: also summed up by groups of images: if "asked" for, or "always".
        edges: bin edges of a histogram, whose counts add up; the last dimension is the bins.
        sizes: of dimensions that the model does not have, by name.
        default: computed by every run.
        listed: can be requested by name.
        kernels: faster implementations, by name: in the "fused" pass over a batch; from one "layer" of an image, or of
            a whole "batch"; by "follow"ing the layers; for gradients, the formula on all "images" of a batch.
        given: parameters that differ from their defaults, by keyword.
        within: the smallest and the largest value that there can be, where intervals should know them.
        dtype, fill: of its rows; the fill is of images that cannot be read.

    Raises:
        UsageError: something of this does not fit; or the formula takes what there is not.
    """

    name: str
    dims: tuple[str, ...]
    formula: Callable[..., Any] | None = None
    units: str = "1"
    long_name: str = ""
    source: str = ""
    cite: str = ""
    refuses: tuple[Refusal, ...] = ()
    rows: bool = True
    grouped: Grouping | None = None
    edges: Callable[[GraphSpec], Sequence[float]] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    default: bool = False
    listed: bool = True
    kernels: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    within: tuple[float, float] | None = None
    dtype: str = "float32"
    fill: Any = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", arguments.names(self.dims, "dims"))
        arguments.text(self.name, "name")
        if self.formula is None:
            return
        check_declared(self)
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        try:
            taken = inspect.signature(self.formula).parameters
        except ValueError:
            raise UsageError(
                f"{self.name}: the arguments of {self.formula!r} cannot be read; wrap it in a def"
            ) from None
        for name, argument in taken.items():
            if name not in CONTEXT and argument.default is inspect.Parameter.empty:
                raise UsageError(
                    f"{self.name}: its formula takes {name}, without a default; there are {', '.join(CONTEXT)}"
                )

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def arguments(self) -> tuple[str, ...]:
        """What its formula takes of `CONTEXT`."""
        return () if self.formula is None else tuple(name for name in _signature(self.formula) if name in CONTEXT)

    @property
    def needs(self) -> tuple[str, ...]:
        """What its formula takes of `INPUTS`."""
        return tuple(name for name in self.arguments if name in INPUTS)

    @property
    def follows(self) -> bool:
        """Whether it is made of all layers together."""
        return "layer" not in self.dims and self.formula is not None

    @property
    def exact(self) -> bool:
        """Whether single values decide, so that uint8 codes will not do."""
        return "codes" in self.refuses or bool(self.given.get("discard"))

    @property
    def scalar(self) -> bool:
        """Whether it is one number per layer, head or prefix token, summed up with deviation, quantiles, interval."""
        return self.rows and self.listed and set(self.dims) <= {"layer", "head", "prefix"}

    @property
    def words(self) -> str:
        """Its `long_name` with the values of its parameters; what it does not name stands behind it."""
        text, more = self.long_name or (self.name if self.given else ""), list[str]()
        for name, one in self.parameters.items():
            value = _spelled(self.given.get(one.keyword, one.default))
            if f"{{{name}}}" in text:
                text = text.replace(f"{{{name}}}", value)
            elif one.keyword in self.given:
                more.append(f"{name} {value}")
        return f"{text}; here {', '.join(more)}" if more else text

    @property
    def by_group(self) -> Grouping:
        """Whether it is summed up by groups of images."""
        return self.grouped or ("asked" if self.scalar else "no")

    @property
    def sum_name(self) -> str:
        """The array that holds the mean over images, or the counts."""
        return f"{self.name}_mean" if self.rows else self.name

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes of its array."""
        found = {"units": self.units, "long_name": self.words, "source": self.source}
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in self.given.items()}
        return {key: value for key, value in (found | {"parameters": given}).items() if value}

    def shape(self, spec: GraphSpec) -> tuple[int, ...]:
        """Of one image's result."""
        known = {**sizes(spec), **self.sizes}
        unknown = [dim for dim in self.dims if dim not in known]
        if unknown:
            raise UsageError(f"{self.name}: dimension {unknown[0]} has no size; give it by sizes={{{unknown[0]!r}: n}}")
        return tuple(int(known[dim]) for dim in self.dims)

    def template(self, spec: GraphSpec, layers: int | None = None) -> Template:
        """The array of its rows, with all layers of the graph or so many."""
        shape = tuple(
            layers if dim == "layer" and layers is not None else size
            for dim, size in zip(self.dims, self.shape(spec), strict=True)
        )
        attrs = self.attrs
        if self.default and "readout" in self.arguments:
            attrs = {key: attrs[key] for key in ("units", "long_name")} | {"readout": spec.readout} | attrs
        return Template(self.name, ("image", *self.dims), shape, self.dtype, self.fill, attrs)

    def __call__(self, known: Mapping[str, Any]) -> Any:
        """The formula's result, its arguments taken by name from `known`, which `context` begins."""
        assert self.formula is not None
        values = {name: known[name] for name in self.arguments}
        for name, value in self.given.items():
            if value == "readout" or name == "readout":
                spec: GraphSpec = known["spec"]
                value = readout_rows(spec.prefix, spec.grid, spec.readout if value == "readout" else value)
            values[name] = value
        return self.formula(**values)

    def unfit(self, spec: GraphSpec) -> str:
        """Why a model has no such statistic, empty where it has."""
        if "prefix" in self.dims and not spec.prefix:
            return "has no prefix tokens"
        if "mixed" in self.refuses and spec.attention_kind != "probability":
            return "mixes its attention after the softmax: its rows are no probabilities"
        if "pool" in self.refuses and spec.readout == "pool":
            return "reads its tokens by attention pooling, not from a row; `pool_attention` is its map"
        if spec.gradients and spec.objective in self.refuses:
            option = "--gradients" if spec.objective == "loss" else "--loss-gradients"
            return f"gives gradients of the {spec.objective}; a graph of `attlas export {option}` gives the other ones"
        return ""

    def bounds(self, spec: GraphSpec) -> tuple[float, float] | None:
        """`within`, of a model whose attention it holds for: mixed attention is no probability, and may be below 0."""
        mixed = spec.attention_kind != "probability" and "attention" in self.needs
        return None if mixed else self.within

    def uniform(self, spec: GraphSpec) -> float | None:
        """The formula's value for uniform attention, A_ij = 1/N; None if that is not a single number."""
        known = context(spec)
        scalar = set(self.dims) <= {"layer", "head", "prefix"} and self.needs == ("attention",) and not self.follows
        if not scalar or self.unfit(spec) or not known.keys() | {"attention"} >= set(self.arguments):
            return None
        n = spec.tokens
        value = float(np.mean(self({**known, "attention": np.full((2, n, n), 1 / n)})))
        return float(f"{value:.12g}") if abs(value) > 1e-12 else 0.0  # rounding error

    def refused(self, spec: GraphSpec) -> str:
        """What its formula has against its parameters, asked with uniform attention; empty where they fit the model."""
        if not self.given:
            return ""
        n = spec.tokens
        heads = np.broadcast_to(np.float32(1 / n), (spec.heads, n, n))
        known: dict[str, Any] = {
            "attention": heads,
            "gradient": heads,
            "value_norm": heads[:, 0],
            "token_norm": heads[0, 0],
        }
        known |= {"weighted": heads[0], "positive": heads[0]}
        if self.follows:
            known = {name: [value] * len(spec.layers) for name, value in known.items()}
        try:
            self({"readout": heads[0, 0]} | context(spec) | known)
        except UsageError as error:
            return str(error)
        return ""

    # -- its parameters -----------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What may be said to its formula, by the name under which it is."""
        if self.formula is None:
            return {}
        found = [_parameter(name, one) for name, one in _signature(self.formula).items()]
        return {one.name: one for one in found if one is not None}

    def having(self, values: Mapping[str, Any]) -> Statistic:
        """The same with other parameters, by name; its own name says which."""
        known = self.parameters
        chosen = {p.keyword: values[n] for n, p in known.items() if n in values and values[n] != p.default}
        if not chosen:
            return self
        names = {p.keyword: n for n, p in known.items()}
        spelled = [f"{names[keyword]}-{_spelled(value)}" for keyword, value in chosen.items()]
        units = "1" if chosen.get("normalized") else chosen.get("unit", self.units)
        return dataclasses.replace(
            self,
            name=".".join([self.name, *spelled]),
            units=units,
            given={**self.given, **chosen},
            kernels={},
            default=False,
        )

    def asked(self, text: str) -> Statistic:
        """The same with the parameters of `start=1,fusion=max`, or of `start-1.fusion-max` as names have them.

        Raises:
            UsageError: there is no such parameter or value.
        """
        values: dict[str, Any] = {}
        for part in _parts(text):
            name, equals, value = part.partition("=")
            try:
                if not equals:  # a value that only one parameter has, or what may be true
                    having = [n for n, p in self.parameters.items() if part in p.choices]
                    if len(having) > 1:
                        raise ValueError(f"{part}: say {' or '.join(f'{n}={part}' for n in having)}")
                    name, value = (having[0], part) if having else (part, "true")
                values[name] = self.parameters[name].read(value)
            except KeyError:
                listed = ", ".join(f"{n}={p.values}" for n, p in self.parameters.items())
                raise UsageError(
                    f"{self.name}: has no parameter {name}; {f'there are {listed}' if listed else 'it has none'}"
                ) from None
            except ValueError as error:
                raise UsageError(f"{self.name}: {error}") from None
        return self.having(values)


@functools.cache
def _signature(formula: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Its arguments; those that a partial gives are no more."""
    fixed = formula.keywords if isinstance(formula, functools.partial) else {}
    try:
        found = inspect.signature(formula, eval_str=True).parameters
    except (NameError, TypeError):  # annotations that name what is not there
        found = inspect.signature(formula).parameters
    return {name: one for name, one in found.items() if name not in fixed}


def _parameter(keyword: str, argument: inspect.Parameter) -> Parameter | None:
    """An argument as a parameter, where it is one."""
    if keyword == "readout":
        return Parameter(keyword, keyword, None, str, READOUTS)
    if keyword in CONTEXT:
        return None
    name, default, hint = SHORT.get(keyword, keyword), argument.default, argument.annotation
    if keyword == "rows":
        return Parameter(name, keyword, default, tuple)
    if typing.get_origin(hint) is Literal:
        return Parameter(name, keyword, default, str, typing.get_args(hint))
    return Parameter(name, keyword, default, type(default)) if type(default) in (bool, int, float) else None


def _spelled(value: Any) -> str:
    """A value as names have it: 0.9, max, true, 0_3."""
    if isinstance(value, tuple):
        return "_".join(map(str, value))
    if isinstance(value, float):
        short = f"{value:.12f}".rstrip("0").rstrip(".")
        # Very large and very small ones have an exponent: 1e-13 is not 0.
        plain = abs(value) < 1e16 and math.isclose(float(short), value, rel_tol=1e-9)
        return short if plain else repr(float(value)).replace("+", "")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parts(text: str) -> list[str]:
    """`start=1,fusion=max`, or `start-1.fusion-max.discard-0.9` as names have it, as `name=value` each."""
    if "=" in text or "," in text or "-" not in text:
        return text.split(",")
    parts: list[str] = []
    for piece in text.split("."):
        if piece[:1].isdigit() and parts:
            parts[-1] += f".{piece}"
        else:
            parts.append(piece.replace("-", "=", 1))
    return parts


def sizes(spec: GraphSpec) -> dict[str, int]:
    """How long each dimension of a result is."""
    (rows, columns), n = spec.grid, spec.tokens
    return {
        "layer": len(spec.layers),
        "head": spec.heads,
        "other_head": spec.heads,
        "prefix": len(spec.prefix),
        "y": rows,
        "x": columns,
        "offset_y": 2 * rows - 1,
        "offset_x": 2 * columns - 1,
        "query": n,
        "key": n,
        "token": n,
        "entropy_bin": BINS,
        "distance_bin": BINS,
    }


def context(spec: GraphSpec) -> dict[str, Any]:
    """What a formula may take of the graph, by name; of a model that reads by a pool the readout is an image's own."""
    found = {
        "grid": spec.grid,
        "patch_size": spec.patch_size,
        "prefix": len(spec.prefix),
        "kind": spec.attention_kind,
        "spec": spec,
    }
    if spec.readout != "pool":
        found["readout"] = readout_rows(spec.prefix, spec.grid, spec.readout)
    return found
