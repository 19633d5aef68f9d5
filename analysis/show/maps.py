"""What can be laid over a picture: maps of the catalog by name, single heads and layers, a chosen patch, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec
from ...words import ranges
from .. import formulas
from ..catalog import CATALOG, resolved
from ..formulas import rollouts
from ..report import images as stored
from ..report.numbers import Floats
from ..statistic import INPUTS, Statistic, context
from ..statistics.gradients import weighs
from ..statistics.partials import attention_of, check
from .subject import Subject

__all__ = [
    "MEAN",
    "READS",
    "SHARE",
    "UNIFORM",
    "Choice",
    "View",
    "check_choice",
    "check_codes",
    "maps_of",
    "matrices",
    "mean_of",
    "mean_view",
    "named",
    "needed",
    "query_views",
    "readout_views",
    "rollout_view",
]

type Layers = int | Literal["all"] | None

UNIFORM, MEAN, SHARE = "× uniform", "× mean", ""
READS = {
    "class": "class token",
    "distilled": "class and distillation token",
    "mean": "mean of the patches",
    "pool": "attention pool",
}
GRID = ("y", "x")


@dataclass(frozen=True, slots=True)
class View:
    """One map of a picture.

    Attributes:
        label: which layer or head it is of, or "".
        values: (rows, columns).
        unit: after its printed maximum; `root`: whether colours follow square roots.
        patch: (row, column) of the patch that it is of.
        name: of the map, in words.
        layer: that it is of, None for what follows all layers.
    """

    label: str
    values: Floats
    unit: str = UNIFORM
    root: bool = True
    patch: tuple[int, int] | None = None
    name: str = ""
    layer: int | None = None

    @property
    def title(self) -> str:
        """The whole of what it is."""
        return ", ".join(filter(None, (self.name, self.label)))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which layers and heads are shown: None for the last layer, and for every head."""

    layers: Layers = None
    head: int | None = None

    def places(self, subject: Subject) -> list[int]:
        """Places on the layer axis.

        Raises:
            UsageError: the graph has no such layer, or the store did not keep it.
        """
        spec = subject.spec
        if self.layers == "all":
            return list(range(len(spec.layers)))
        if self.layers is None:
            return [len(spec.layers) - 1]
        if self.layers not in spec.layers:
            raise UsageError(f"--layer {self.layers}: {subject.where} has the layers {ranges(spec.layers)}")
        return [spec.layers.index(self.layers)]

    def heads(self, values: Floats, layer: int) -> list[tuple[str, Floats]]:
        """(head, ...) -> each head that is asked for, with its label; of all layers, their mean.

        Raises:
            UsageError: there is no such head, or only their mean was kept.
        """
        if self.head is not None and not 0 <= self.head < len(values):
            raise UsageError(f"--head {self.head}: there are heads 0 to {len(values) - 1}")
        if self.head is not None:
            return [(f"layer {layer}, head {self.head}", values[self.head])]
        if self.layers == "all":
            return [(f"layer {layer}", values.mean(axis=0))]
        return [(f"layer {layer}, head {h}", v) for h, v in enumerate(values)]


# -- maps by name ------------------------------------------------------------------------------------------------------


def named(text: str) -> Statistic:
    """A map of the catalog, `NAME` or `NAME:parameters`.

    Raises:
        UsageError: there is no such name or parameter, or it is nothing that lies on the grid of patches.
    """
    (one,) = resolved([text])
    if one.dims[-2:] != GRID or one.formula is None:
        known = [s.name for s in CATALOG.values() if s.listed and s.dims[-2:] == GRID and s.rows]
        raise UsageError(f"--map {one.name}: is no map over a picture's patches; there are {', '.join(known)}")
    return one


def check_choice(maps: Sequence[Statistic], choice: Choice, *, pinned: bool = False) -> None:
    """Refuse a layer or head that none of these maps has, nor a chosen patch (`pinned`).

    Raises:
        UsageError: with the first map.
    """
    if not maps or pinned:
        return
    for dim, value, why in (
        ("layer", choice.layers, "follows all layers"), ("head", choice.head, "is one map of all heads"),
    ):  # fmt: skip
        if value is not None and not any(dim in one.dims for one in maps):
            raise UsageError(f"--{dim} {value}: {maps[0].name.partition('.')[0]} {why}")


def needed(maps: Sequence[Statistic]) -> set[str]:
    """The outputs of a graph that these maps are made from, beyond attention."""
    asked = {name for one in maps for name in one.needs}
    return {"gradient" if name in ("weighted", "positive") else name for name in asked} - {"attention"}


def maps_of(subject: Subject, one: Statistic, choice: Choice) -> list[View]:
    """The views of a map: one, or one for each layer and head that it has.

    Raises:
        UsageError: the model has no such map, layer or head.
        AttlasError: the store did not keep what it needs.
    """
    if why := one.unfit(subject.spec):
        raise UsageError(f"--map {one.name}: {subject.spec.name} {why}")
    said = [f"{key.replace('_', ' ')} {value}" for key, value in one.given.items()]
    name = one.name.partition(".")[0].removesuffix("_mean").replace("_", " ")
    if subject.target and weighs(one):
        name += f" for {subject.target}"
    name = ", ".join([name, *said])
    if one.follows:
        values = _whole(subject, one)
        root = bool({"weighted", "positive"} & set(one.needs))
        return [View("all layers", values / (values.mean() or 1), MEAN, root, name=name)]
    unit, factor = (MEAN, 0.0) if "value_norm" in one.needs else (UNIFORM, float(subject.spec.tokens))
    if one.name.partition(".")[0] == "mass_mask":
        unit, factor = SHARE, 1.0
    views = []
    for place in choice.places(subject):
        values, layer = _of_layer(subject, one, place), subject.spec.layers[place]
        values = values * (factor or 1 / (values.mean() or 1))
        each = choice.heads(values, layer) if "head" in one.dims else [(f"layer {layer}", values)]
        views += [View(label, v, unit, name=name, layer=layer) for label, v in each]
    return views


def _whole(subject: Subject, one: Statistic) -> Floats:
    """A map that follows all layers: as the store has it, else computed: (y, x)."""
    if one.name in subject.store:
        found: Floats = subject.store.read(one.name, subject.image).astype(np.float64)
        if np.isfinite(found).all():
            return found
    spec = subject.spec
    if spec.layers != tuple(range(spec.depth)) or len(subject.store.kept_layers) != spec.depth:
        raise AttlasError(
            f"{subject.where}: {one.name} follows all {spec.depth} layers, and not all of them are kept; "
            "leave out --layers in `attlas run` or `attlas export`"
        )
    known: dict[str, Any] = {name: [] for name in one.needs}
    for place in range(spec.depth):
        for name, values in _inputs(subject, one, place).items():
            known[name].append(values)
    if spec.readout == "pool":
        pool = subject.store.read("pool_attention", subject.image).astype(np.float32).mean(axis=(0, 1))
        known["readout"] = np.pad(pool, (spec.tokens - pool.size, 0))
    made: Floats = np.asarray(one(context(spec) | known), np.float64)
    return made


def _of_layer(subject: Subject, one: Statistic, place: int) -> Floats:
    """A map of one layer, from what the graph gives or the store kept."""
    spec = subject.spec
    if one.name == "readout_map":  # more stores hold this row than whole matrices
        row = stored.readout_row(subject.store, subject.image, place)
        if row is not None:
            return stored.patches(row, spec.grid).astype(np.float64)
    made: Floats = np.asarray(one(context(spec) | _inputs(subject, one, place)), np.float64)
    return made


def _inputs(subject: Subject, one: Statistic, place: int) -> dict[str, Floats]:
    """What a formula takes of one layer."""
    store, image, found = subject.store, subject.image, dict[str, Floats]()
    for name in one.needs:
        array = INPUTS[name]
        if name == "attention":
            found[name] = attention(subject, place, one.name)
        elif array in store:
            found[name] = store.read(array, (image, place)).astype(np.float32)
        elif name in ("weighted", "positive") and "gradient" in store:
            product = getattr(rollouts, array)
            gradient = store.read("gradient", (image, place)).astype(np.float32)
            found[name] = np.asarray(product(attention(subject, place, one.name), gradient))
        else:
            raise AttlasError(
                f"{subject.where}: {one.name} needs {array}; `attlas run --keep {array}` keeps it, with a graph of "
                f"`attlas export {'--norms' if name == 'value_norm' else '--gradients'}`"
            )
    return found


def attention(subject: Subject, place: int, what: str) -> Floats:
    """(head, query, key) float32 of one layer.

    Raises:
        AttlasError: the store did not keep it; `what` needs it.
    """
    found = stored.attention(subject.store, subject.image, place)
    if found is None:
        raise AttlasError(
            f"{subject.where}: {what} needs the attention of layer {subject.spec.layers[place]}, which was not kept; "
            "`attlas run --keep attention` keeps it"
        )
    return found


def check_codes(
    subject: Subject, maps: Sequence[Statistic], patch: tuple[int, int] | None, threshold: float | None
) -> None:
    """Refuse what depends on single values of attention where the store holds codes, as `attlas analyze` does.

    Raises:
        UsageError: with what to do.
    """
    store, spec = subject.store, subject.spec
    if attention_of(store) != "attention_code":
        return
    coded = [one for one in maps if "attention" in one.needs and not (one.follows and one.name in store)]
    for one in coded:
        if one.exact:
            check(store, replace(one, name=f"--map {one.name}"))
    # Prefix tokens' rows are kept as they are.
    rows = [one for one in coded if one.name != "readout_map"] or patch is not None
    if threshold is not None and (rows or (spec.readout == "mean" and (coded or not maps))):
        check(store, replace(CATALOG["mass_mask"], name=f"--threshold {threshold:g}", refuses=("codes",)))


# -- readout, patch, matrix --------------------------------------------------------------------------------------------


def readout_views(subject: Subject, choice: Choice) -> list[View]:
    """The row that the model's head reads, × uniform: a view for each head, or for each layer (mean over heads)."""
    views = []
    for place in choice.places(subject):
        row = stored.readout_row(subject.store, subject.image, place)
        if row is None and subject.spec.readout == "pool":
            raise UsageError(
                f"--layer {subject.spec.layers[place]}: {subject.spec.name} reads its tokens by attention pooling "
                "after the last layer; choose a patch with --patch, or a --map"
            )
        if row is None:
            row = attention(subject, place, "the readout")[:, list(readout_rows(subject.spec))].mean(axis=1)
        values = stored.times_uniform(row, subject.spec.grid)
        layer = subject.spec.layers[place]
        name = READS[subject.spec.readout]
        if subject.spec.readout == "mean" and len(values) < subject.spec.heads:  # a store that kept their mean alone
            if choice.head is not None:
                raise UsageError(f"--head {choice.head}: {subject.where} kept the mean over heads alone")
            views.append(View(f"layer {layer}, mean over heads", values[0], name=name, layer=layer))
            continue
        views += [View(label, v, name=name, layer=layer) for label, v in choice.heads(values, layer)]
    return views


def mean_of(views: Sequence[View]) -> Floats:
    """The mean of several maps: (rows, columns)."""
    mean: Floats = np.mean([view.values for view in views], axis=0)
    return mean


def readout_rows(spec: GraphSpec) -> tuple[int, ...]:
    """The rows of queries that the head reads."""
    return formulas.readout_rows(spec.prefix, spec.grid, spec.readout)


def query_views(subject: Subject, patch: tuple[int, int], choice: Choice) -> list[View]:
    """What a patch looks at, × uniform: a view for each head, or for each layer (mean over heads).

    Raises:
        UsageError: the patch does not lie on the grid.
    """
    views, spec = [], subject.spec
    for place in choice.places(subject):
        whole = attention(subject, place, "a patch's row")
        values = np.asarray(formulas.query_map(whole, spec.grid, *patch), np.float64) * spec.tokens
        layer = spec.layers[place]
        views += [View(label, v, patch=patch, layer=layer) for label, v in choice.heads(values, layer)]
    return views


def rollout_view(subject: Subject) -> list[View]:
    """Rollout, where the graph or the store gives it."""
    values = stored.rollout_map(subject.store, subject.image)
    return [] if values is None else [View("all layers", values / values.mean(), MEAN, False, name="rollout")]


def mean_view(subject: Subject, views: Sequence[View]) -> View:
    """The mean of one layer's heads."""
    spec = subject.spec
    label = f"layer {spec.layers[-1]}" + ", mean over heads" * (spec.heads > 1)
    return View(label, mean_of(views), name=READS[spec.readout], layer=spec.layers[-1])


def matrices(subject: Subject, choice: Choice) -> list[View]:
    """Whole matrices (query, key), × uniform: the mean over heads and each head, or the mean of every layer."""
    views, spec = [], subject.spec
    for place in choice.places(subject):
        whole = attention(subject, place, "the matrix").astype(np.float64) * spec.tokens
        if choice.head is None and choice.layers != "all" and len(whole) > 1:
            views.append(View(f"layer {spec.layers[place]}, mean over heads", whole.mean(axis=0)))
        views += [View(label, v) for label, v in choice.heads(whole, spec.layers[place])]
    return views
