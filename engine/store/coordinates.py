"""Arrays that are known before the first image: the source's columns, and the coordinates of every axis."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...exporter.spec import GraphSpec
from ..plan import Plan
from ..sources.items import Item, Items, text
from .schema import CODEC, DESCRIBING, FROM_GRAPH, ArraySpec, Template
from .schema import LONG_NAMES as PER_LAYER

__all__ = ["COORDINATES", "Reserved", "arrays", "nothing_reserved", "with_room"]

COORDINATES = ("path", "label", "label_class", *(entry.name for entry in DESCRIBING))
OWN = frozenset(
    {
        *COORDINATES,
        "target",
        "sample",
        "layer",
        "prefix",
        "class",
        "class_name",
        "pixels",
        "row",
        "column",
        "channel_rgb",
        "image",
        "run",
        "done",
        "zarr.json",
        # What this run does not keep, another does: of a store that has the name, it would be taken for that array.
        *(entry.name for entry in FROM_GRAPH),
        *(dim for entry in FROM_GRAPH for dim in entry.dims),
        *PER_LAYER,
        "position_embedding",
    }
)
_NAME = re.compile(r"[^\W_][\w.+-]{0,127}")

# Descriptions of coordinates that do not have an image axis.
DIMS: Mapping[str, tuple[str, ...]] = {
    "layer": ("layer",),
    "prefix": ("prefix",),
    "class": ("class",),
    "class_name": ("class",),
    "sample": ("sample",),
}
LONG_NAMES = {
    "label_class": "index of the label's class, -1 where the label names none",
    "sample": "index of the image whose pixels are stored",
    "layer": "index of the block, from 0",
}
FILL: Mapping[str, Any] = {"U": "", "T": "", "O": "", "f": math.nan}


type Reserved = Callable[[str, Collection[str]], bool]


def nothing_reserved(_name: str, _columns: Collection[str]) -> bool:
    """Every name is free."""
    return False


def with_room(
    items: Items, spec: GraphSpec, kept: Sequence[Template], reserved: Reserved = nothing_reserved
) -> tuple[Items, dict[str, str]]:
    """Rename columns whose names a store cannot use; returns the items, and the new names by old name.

    A name with characters that an array's name cannot have is changed: `Patient ID` becomes `Patient_ID`. A name that
    the store itself uses, or that is `reserved`, gets a prefix: `height` becomes `column_height`.

    Args:
        items: the items of a source.
        spec: the graph's spec.
        kept: the per-image arrays of the run.
        reserved: whether a name is reserved for arrays that may be added later, given the columns' names.
    """
    taken = {*OWN} | {t.name for t in kept} | {d for t in kept for d in t.dims}
    taken |= {o.name for o in spec.outputs} | {d for o in spec.outputs for d in o.dims}
    columns = {*COORDINATES, *(t.name for t in kept if len(t.dims) == 1)}
    columns |= {new for name in (*columns, *items.columns) for new in (name, *itertools.islice(_aside(name), 3))}

    def free(name: str) -> bool:
        return _NAME.fullmatch(name) is not None and name not in taken and not reserved(name, columns)

    names = {name: name for name in items.columns if free(name)}
    taken |= names.keys()
    for name in [name for name in items.columns if name not in names]:
        names[name] = next(filter(free, _aside(name)))
        taken.add(names[name])
    values = {names[name]: column for name, column in items.columns.items()}
    renamed = {name: names[name] for name in items.columns if names[name] != name}
    return dataclasses.replace(items, columns=values), renamed


def _aside(name: str) -> Iterator[str]:
    """Alternative names for a column, the most similar first."""
    plain = re.sub(r"^[\W_]+|_+$", "", re.sub(r"[^\w.+-]+", "_", name))[:100] or "unnamed"
    yield from (plain, f"column_{plain}", f"{plain}_column")
    yield from (f"column_{plain}_{n}" for n in itertools.count(2))


def arrays(
    spec: GraphSpec,
    plan: Plan,
    kept: Sequence[Template],
    items: Sequence[Item],
    label_class: npt.NDArray[np.int32],
    constants: Mapping[str, npt.NDArray[np.float32]] = {},
    codec: str = CODEC,
) -> tuple[list[ArraySpec], dict[str, Any]]:
    """The layout of a store: every array, and the values that are known before the run.

    `constants` are outputs of the graph that do not depend on the image; `codec` is that of the large arrays.
    """
    items = Items.of(items)
    assert plan.images == len(items)
    found = [ArraySpec.from_template(t, plan, codec) for t in kept]
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
    found += [_coordinate(name, value) for name, value in values.items()]
    for name, value in constants.items():
        output = spec.output(name)
        assert output is not None
        found.append(ArraySpec(name, output.dims, value.shape, value.shape, "float32", math.nan))
    picture = (*spec.recipe.crop, 3)
    dims, attrs = ("sample", "row", "column", "channel_rgb"), {"long_name": "the crop that the model saw"}
    found.append(ArraySpec("pixels", dims, (len(plan.sample), *picture), (1, *picture), "uint8", 0, attrs))
    return found, values | dict(constants)


def _coordinate(name: str, value: npt.NDArray[Any]) -> ArraySpec:
    """The array for values that are known before the run."""
    kind = value.dtype.kind
    dtype = "str" if kind in "UTO" else str(value.dtype)
    attrs = {"long_name": LONG_NAMES[name]} if name in LONG_NAMES else {}
    chunk = min(len(value), 1 << 16)
    return ArraySpec(name, DIMS.get(name, ("image",)), value.shape, (chunk,), dtype, FILL.get(kind, 0), attrs)
