"""Statistics that weigh attention by its gradients, from whichever arrays of them a store holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Store, Template
from ..exporter.errors import AttlasError, UsageError
from ..exporter.spec import GraphSpec
from . import formulas, rollouts

__all__ = ["WEIGHTED", "Weighted", "check", "computed"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Weighted:
    """One statistic of attention times gradient; the fields are `catalog.Statistic`'s.

    `product` is the stored array that it is made from, where there is one; else attention and gradient are.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    long_name: str
    source: str
    product: str = ""
    per_image: bool = True

    @property
    def scalar(self) -> bool:
        """Whether it is one number per layer and head."""
        return set(self.dims) <= {"layer", "head"}

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes of its array."""
        return {"units": self.units, "long_name": self.long_name, "source": self.source}

    def template(self, spec: GraphSpec) -> Template:
        """The array of its rows."""
        known = {"layer": len(spec.layers), "head": spec.heads, "y": spec.grid[0], "x": spec.grid[1]}
        shape = tuple(known[dim] for dim in self.dims)
        return Template(self.name, ("image", *self.dims), shape, "float32", float("nan"), self.attrs)


WEIGHTED: dict[str, Weighted] = {
    s.name: s
    for s in (
        Weighted("gradient_rollout", ("y", "x"), "1", "rollout of attention times gradient, mean over heads, above 0",
                 "Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eqs. 3.4a to 3.4e", "gradient_mean"),
        Weighted("chefer", ("y", "x"), "1", "relevance by attention times gradient above 0, mean over heads",
                 "Chefer et al. 2021 (arXiv 2103.15679)", "gradient_positive"),
        Weighted("head_importance", ("layer", "head"), "1", "absolute sum of attention times gradient",
                 "Michel et al. 2019 (arXiv 1905.10650)"),
    )
}  # fmt: skip


def check(store: Store, name: str) -> None:
    """Say which choice of the run would have kept what a statistic needs.

    Raises:
        AttlasError: the store holds neither its product nor attention and gradient, or not of all layers.
        UsageError: the model's head reads by attention pooling, and the statistic follows a row.
    """
    statistic = WEIGHTED[name]
    whole = "attention" in store and "gradient" in store
    if not whole and not (statistic.product and statistic.product in store):
        product = f"{statistic.product}, or " if statistic.product else ""
        keep = statistic.product or "attention,gradient"
        raise AttlasError(
            f"{store.path}: {name} needs {product}attention and gradient; `attlas run --keep {keep}` with a graph of "
            "`attlas export --gradients` keeps them"
        )
    if statistic.product:
        if tuple(store.attrs["kept"]["layers"]) != tuple(range(store.spec.depth)):
            raise AttlasError(
                f"{store.path}: {name} follows all {store.spec.depth} layers; `attlas run` without --layers keeps them"
            )
        if store.spec.readout == "pool":
            raise UsageError(f"{name}: this model reads its tokens by attention pooling, not from a row")


def computed(store: Store, names: Sequence[str], at: slice) -> tuple[dict[str, Array], int]:
    """Statistics of the images `at` by name, each (image, ...) with the kept layers, and the bytes read."""
    spec, kept = store.spec, store.attrs["kept"]["layers"]
    found: dict[str, list[Array]] = {name: [] for name in names}
    read = 0
    for layer in kept:
        place = spec.layers.index(layer)
        pair: tuple[Array, Array] | None = None
        for name in names:
            product = WEIGHTED[name].product
            if product and product in store:
                values = store.read(product, (at, place))
                read += values.nbytes
                found[name].append(values)
                continue
            if pair is None:
                pair = store.read("attention", (at, place)), store.read("gradient", (at, place))
                read += sum(values.nbytes for values in pair)
            function = getattr(rollouts, product or name)
            found[name].append(np.asarray(function(*pair)))
    return {name: _finished(name, layers, spec) for name, layers in found.items()}, read


def _finished(name: str, layers: list[Array], spec: GraphSpec) -> Array:
    """From one array per layer to the statistic."""
    if not WEIGHTED[name].product:
        return np.stack(layers, axis=1)
    function = getattr(formulas, name)
    return np.asarray(function(layers, spec.grid, formulas.readout_rows(spec.prefix, spec.grid, spec.readout)))
