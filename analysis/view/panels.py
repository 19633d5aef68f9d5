"""The dataset's panels: every statistic of one number per layer and head, over depth, beside uniform attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store
from ..catalog import CATALOG

__all__ = ["offsets", "offsets_name", "panels", "plain"]

FIRST = ("distance_renormalized", "entropy", "distance", "entropy_patch")
ROWS = 20_000  # images up to which means are taken here, where `attlas analyze` has not
OFFSETS = ("offset_map_mean", "offset_map_pooled_mean")


def panels(store: Store, dims: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """For each statistic its mean over images, (layer, head), and the 95 % interval where the analysis made one."""
    names = [name.removesuffix("_mean") for name, own in dims.items() if own == ("layer", "head")]
    names = [name for name in names if f"{name}_mean" in dims]
    rows = [name for name, own in dims.items() if own == ("image", "layer", "head") and name not in names]
    found: list[dict[str, Any]] = []
    for name in sorted(
        {*names, *rows}, key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0)
    ):
        panel = _panel(store, name, name in names, dims)
        if panel is not None:
            found.append(panel)
    return found + _prefix(store, dims)


def _prefix(store: Store, dims: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """What patches give to each kind of prefix token."""
    if dims.get("prefix_mass_mean") != ("layer", "head", "prefix"):
        return []
    mean, prefix = store.read("prefix_mass_mean").astype(np.float64), np.array(store.spec.prefix)
    return [
        {
            "name": f"mass on {kind}", "title": f"mean attention of the patches on the {kind} token", "units": "1",
            "mean": plain(mean[..., prefix == kind].sum(axis=-1)), "analysed": True,
            "uniform": float((prefix == kind).sum() / store.spec.tokens),
        }
        for kind in dict.fromkeys(store.spec.prefix)
    ]  # fmt: skip


def _panel(store: Store, name: str, analysed: bool, dims: dict[str, tuple[str, ...]]) -> dict[str, Any] | None:
    attrs: dict[str, Any] = dict(store.array(f"{name}_mean" if analysed else name).attrs)
    if analysed:
        mean = store.read(f"{name}_mean").astype(np.float64)
    else:
        made = _mean(store, name)
        if made is None:
            return None
        mean = made
    panel: dict[str, Any] = {
        "name": name, "title": str(attrs.get("long_name", name)), "units": str(attrs.get("units", "")),
        "mean": plain(mean), "analysed": analysed,
        "uniform": CATALOG[name].uniform(store.spec) if name in CATALOG else None,
    }  # fmt: skip
    if analysed and dims.get(f"{name}_interval") == ("bound", "layer", "head"):
        panel["interval"] = plain(store.read(f"{name}_interval").astype(np.float64))
    return panel if np.isfinite(mean).any() else None


def _mean(store: Store, name: str) -> npt.NDArray[np.float64] | None:
    """The mean over the done images of a statistic that nobody has summed up; None where they are too many."""
    if store.plan.images > ROWS or store.array(name).dtype.kind != "f":
        return None
    values = store.read(name)[store.done_images].astype(np.float64)
    there = np.isfinite(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def offsets(store: Store) -> tuple[str, npt.NDArray[np.float32]] | None:
    """The mean offset maps of every head, (layer, head, dy, dx), and the array's name."""
    name = offsets_name(store)
    return (name, store.read(name).astype(np.float32)) if name else None


def plain(values: npt.NDArray[Any]) -> Any:
    """Nested lists with None for what is not finite, as JSON takes them."""
    return np.where(np.isfinite(values), values.astype(object), np.array(None, object)).tolist()


def offsets_name(store: Store) -> str:
    """The array of mean offset maps, or ""."""
    return next((name for name in OFFSETS if name in store), "")
