"""Statistics that weigh attention by its gradients, from whichever arrays of them a store holds, or of norms alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec
from ..declared import applied
from ..formulas import rollouts
from ..statistic import INPUTS, Statistic, context

if TYPE_CHECKING:
    from ...engine.store.store import Store

__all__ = ["check", "computed", "normed", "weighs"]

Array = npt.NDArray[Any]

PRODUCTS = ("weighted", "positive")  # of attention and gradient, by a formula that is named like the stored array


def weighs(statistic: Statistic) -> bool:
    """Whether it needs gradients."""
    return bool({"gradient", *PRODUCTS} & set(statistic.needs))


def normed(statistic: Statistic) -> bool:
    """Whether it is made of norms that the run kept, without attention."""
    return bool(statistic.needs) and set(statistic.needs) <= {"value_norm", "token_norm"}


def check(store: Store, statistic: Statistic) -> None:
    """Say which choice of the run would have kept what a statistic needs.

    Raises:
        AttlasError: the store holds neither its product nor attention and gradient, or not of all layers.
        UsageError: the model has no such statistic.
    """
    products = [INPUTS[name] for name in statistic.needs if name in PRODUCTS]
    whole = "attention" in store and "gradient" in store
    if not whole and not (products and all(product in store for product in products)):
        product = f"{products[0]}, or " if products else ""
        keep = products[0] if products else "attention,gradient"
        option = "--loss-gradients" if "logit" in statistic.refuses else "--gradients"
        raise AttlasError(
            f"{store.path}: {statistic.name} needs {product}attention and gradient; `attlas run --keep {keep}` with a "
            f"graph of `attlas export {option}` keeps them"
        )
    if statistic.follows and tuple(store.attrs["kept"]["layers"]) != tuple(range(store.spec.depth)):
        raise AttlasError(
            f"{store.path}: {statistic.name} follows all {store.spec.depth} layers; `attlas run` without --layers "
            "keeps them"
        )
    if why := statistic.unfit(store.spec):
        raise UsageError(f"{statistic.name}: {store.spec.name} {why}")


def computed(
    store: Store, statistics: Sequence[Statistic], at: slice, layers: Sequence[int] | None = None
) -> tuple[dict[str, Array], int]:
    """Statistics of the images `at` by name, each (image, ...) with these layers or the kept ones, and bytes read."""
    known, inputs = context(store.spec), {name: list[Array]() for s in statistics for name in s.needs}
    found: dict[str, list[Array]] = {s.name: [] for s in statistics}
    read = 0
    for layer in store.attrs["kept"]["layers"] if layers is None else layers:
        values, size = _inputs(store, list(inputs), (at, store.spec.layers.index(layer)))
        read += size
        for s in statistics:
            if not s.follows:
                found[s.name].append(_result(s, known | values, store.spec))
        for name in {name for s in statistics if s.follows for name in s.needs}:
            inputs[name].append(values[name])
    for s in statistics:
        if s.follows:
            found[s.name].append(_result(s, known | inputs, store.spec))
    return {s.name: found[s.name][0] if s.follows else np.stack(found[s.name], axis=1) for s in statistics}, read


def _inputs(store: Store, names: Sequence[str], at: tuple[slice, int]) -> tuple[dict[str, Array], int]:
    """What formulas take of one layer, (image, ...) each, read or made from attention and gradient."""
    found: dict[str, Array] = {}
    read = 0
    made = [name for name in names if name in PRODUCTS and INPUTS[name] not in store]
    for name in dict.fromkeys((*(n for n in names if n not in made), *(("attention", "gradient") if made else ()))):
        found[name] = store.read(INPUTS[name], at)
        read += found[name].nbytes
    for name in made:
        found[name] = np.asarray(getattr(rollouts, INPUTS[name])(found["attention"], found["gradient"]))
    return found, read


def _result(statistic: Statistic, known: dict[str, Any], spec: GraphSpec) -> Array:
    """Of all images at once, or of one after another where a formula was not made for that."""
    needs = statistic.needs
    first = known[needs[0]]
    images = len(first[0] if statistic.follows else first)
    shape = [n for dim, n in zip(statistic.dims, statistic.shape(spec), strict=True) if dim != "layer"]
    if "images" in statistic.kernels:
        return applied(statistic, known, (images, *shape))
    rows = []
    for image in range(images):
        own = {n: [a[image] for a in known[n]] if statistic.follows else known[n][image] for n in needs}
        rows.append(applied(statistic, known | own, shape))
    return np.stack(rows)
