"""The maps that are judged: any statistic that is a map of the patch grid, and what knows nothing of the picture."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import arguments
from ...engine.store.store import Store
from ...errors import UsageError
from ...exporter.spec import GraphSpec
from ...words import ranges
from ..catalog import CATALOG, held, resolved
from ..statistic import Statistic
from ..statistics.partials import kept_layers

__all__ = ["BASELINES", "Chosen", "baselines", "chosen", "split", "stored"]

type Floats = npt.NDArray[np.float64]

SELECTORS = ("layer", "head")
OTHER = "other."  # begins the name of a map that is taken from a second store


@dataclass(frozen=True, slots=True)
class Chosen:
    """One map of each image.

    Attributes:
        name: in requests spelled, and in the store.
        statistic: whose rows it is, or None for a baseline.
        layer: index of the block, for a statistic with a map of every layer.
        head: index of the head, or None for the mean over heads.
        other: whether the rows are those of a second store.
    """

    name: str
    statistic: Statistic | None = None
    layer: int | None = None
    head: int | None = None
    other: bool = False

    @property
    def attrs(self) -> dict[str, Any]:
        """What a store says of it, so that `stored` finds its rows again."""
        if self.statistic is None or self.other:
            return {}
        found: dict[str, Any] = {"statistic": self.statistic.name, "layer": self.layer, "head": self.head}
        return {key: value for key, value in found.items() if value is not None}

    def read(self, store: Store, images: range) -> Floats:
        """The maps of some images, (image, y, x)."""
        if self.statistic is None:
            return np.stack([BASELINES[self.name](store.spec, image) for image in images])
        return self.of(store.read(self.statistic.name, slice(images.start, images.stop)), store.spec)

    def of(self, rows: npt.NDArray[Any], spec: GraphSpec) -> Floats:
        """Rows of the statistic as maps: (image, [layer, [head,]] y, x) -> (image, y, x)."""
        assert self.statistic is not None
        if "layer" in self.statistic.dims:
            assert self.layer is not None
            rows = rows[:, spec.layers.index(self.layer)]
        if "head" in self.statistic.dims:
            rows = rows.mean(axis=1, dtype=np.float64) if self.head is None else rows[:, self.head]
        return np.asarray(rows, np.float64)


def _uniform(spec: GraphSpec, image: int) -> Floats:
    """The same everywhere: ties, which are broken by chance."""
    return np.ones(spec.grid)


def _centre(spec: GraphSpec, image: int) -> Floats:
    """A Gaussian in the middle, with a standard deviation of a quarter of each edge."""
    y, x = ((np.arange(n) - (n - 1) / 2) / (n / 4) for n in spec.grid)
    return np.asarray(np.exp(-(y[:, None] ** 2 + x**2) / 2))


def _random(spec: GraphSpec, image: int) -> Floats:
    """Uniform noise, another for each image."""
    return np.random.default_rng([1, image]).random(spec.grid)


BASELINES: dict[str, Callable[[GraphSpec, int], Floats]] = {"uniform": _uniform, "centre": _centre, "random": _random}


def stored(store: Store, name: str, attrs: Mapping[str, Any]) -> Chosen | None:
    """The map of a judgement whose array has these attributes, where its rows are in this store."""
    base = str(attrs.get("statistic", ""))
    if base not in store:
        return None
    return Chosen(name, Statistic(base, store.dims(base)[1:]), attrs.get("layer"), attrs.get("head"))


def baselines() -> list[Chosen]:
    """Maps that know nothing of the picture."""
    return [Chosen(name) for name in BASELINES]


def split(text: str) -> list[str]:
    """Names separated by commas; a part that only sets a parameter belongs to the name before it."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        sets = "=" in part and ":" not in part.partition("=")[0]
        if sets and found:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def chosen(store: Store, names: Iterable[str | Statistic] | str | Statistic) -> list[Chosen]:
    """The maps of these names, each once: `rollout:start=1`, `readout_map:layer=11,head=2`, or your own `Statistic`.

    A statistic that has a map of every layer gives that of the last one, and one of every head their mean, unless
    `layer` and `head` say which.

    Raises:
        UsageError: a name is unknown, is no map of single images, or the model has no such layer or head, or the store
            does not hold the layer's attention.
    """
    found = {}
    for name in arguments.several(names, "maps", (str, Statistic), "names or `Statistic`s"):
        one = _chosen(store, name)
        found[one.name] = one
    if not found:
        raise UsageError("no map is named; --maps rollout,readout_map:layer=11 names two")
    return list(found.values())


def _chosen(store: Store, name: str | Statistic) -> Chosen:
    if isinstance(name, Statistic):
        return _with(store, resolved([name])[0], {})
    base, _, said = name.partition(":")
    parts = [part for part in said.split(",") if part]
    own = {part.partition("=")[0]: part.partition("=")[2] for part in parts if part.partition("=")[0] in SELECTORS}
    rest = ",".join(part for part in parts if part.partition("=")[0] not in SELECTORS)
    theirs = {one.name: one for one in held(store) if one.name not in CATALOG and one.rows}
    if base in theirs and not rest:  # what somebody's own analysis left
        return _with(store, theirs[base], own)
    if base in BASELINES:
        raise UsageError(f"{base}: is judged beside every map without being asked for")
    return _with(store, resolved([f"{base}:{rest}" if rest else base])[0], own)


def _with(store: Store, one: Statistic, said: dict[str, str]) -> Chosen:
    """The statistic's map with the layer and the head that were said."""
    if one.dims[-2:] != ("y", "x") or not set(one.dims[:-2]) <= set(SELECTORS) or not one.rows:
        maps = [s.name for s in CATALOG.values() if s.rows and s.listed and s.dims[-2:] == ("y", "x")]
        near = difflib.get_close_matches(one.name, maps, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(maps)}"
        raise UsageError(f"{one.name}: is no map of each image over the patches; {hint}")
    spec = store.spec
    layer = _index(one, "layer", said, spec.layers)
    head = _index(one, "head", said, range(spec.heads))
    if "layer" in one.dims and layer is None:
        layer = max(spec.layers)
    kept = kept_layers(store) if one.name in CATALOG and "attention" in one.needs else ()
    if kept and layer is not None and layer not in kept:
        raise UsageError(
            f"{one.name}: layer {layer} was not kept in {store.path}; say layer=, of {ranges(kept)}, or run without "
            "--layers"
        )
    given = {"layer": layer if said.get("layer") else None, "head": head}
    spelled = [f"{key}-{value}" for key, value in given.items() if value is not None]
    return Chosen(".".join([one.name, *spelled]), one, layer, head)


def _index(one: Statistic, key: str, said: dict[str, str], known: Sequence[int]) -> int | None:
    if key not in said:
        return None
    if key not in one.dims:
        raise UsageError(f"{one.name}: is one map for all {key}s, so {key}={said[key]} says nothing")
    if not said[key].isdecimal() or int(said[key]) not in known:
        raise UsageError(f"{one.name}: {key}={said[key]}: there are {key}s {min(known)} to {max(known)}")
    return int(said[key])
