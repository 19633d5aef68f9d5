"""Arrays that sum up a dataset of one store or more: means, deviations, quantiles, intervals, differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...engine.store.store import ArraySpec, Store
from ..statistic import Statistic
from .clusters import cluster_codes, said
from .differences import TEST, Compared, group_differences
from .groups import Key, gathered, key_order, read_column
from .inference import EQUAL, METHOD, interval
from .moments import QUANTILES, Moments, Totals, quantiles

__all__ = ["Source", "Summed", "spec_of", "stored_groups", "stored_sum", "summed_units", "sums_up", "texts"]

COLUMN_BYTES = 256 * 2**20  # of per-image values held at once while they are summed up

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Summed(NamedTuple):
    """One array of the dataset's statistics. The order of the fields is that of `xarray.Variable`."""

    dims: tuple[str, ...]
    values: Array
    attrs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """One store that is summed up.

    Attributes:
        done: (unit), and `mask`: (image), the valid images of those units.
        cluster: the column of images that depend on each other, or "".
    """

    store: Store
    done: Mask
    mask: Mask
    cluster: str = ""

    @classmethod
    def of(cls, store: Store, cluster: str = "") -> Source:
        """The store as it is now, so that a run that goes on meanwhile changes nothing."""
        return cls.within(store, store.done, cluster)

    @classmethod
    def within(cls, store: Store, units: Mask, cluster: str = "") -> Source:
        """Only these units of the store."""
        images = np.repeat(units, store.plan.unit)[: store.plan.images]
        return cls(store, units, np.asarray(store.read("valid").astype(np.bool_) & images), cluster)

    @property
    def units(self) -> list[list[int]]:
        """[start, stop) of each run of consecutive units that are done."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.done.astype(np.int8), [0]])))
        return [[int(start), int(stop)] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def spec_of(name: str, summed: Summed) -> ArraySpec:
    """The array's specification for a store: dtype, fill value and chunks."""
    text = summed.values.dtype.kind in "TUO"
    dtype = "str" if text else str(summed.values.dtype)
    fill: Any = "" if text else math.nan if summed.values.dtype.kind == "f" else 0
    shape = summed.values.shape
    return ArraySpec(name, summed.dims, shape, tuple(max(1, n) for n in shape), dtype, fill, summed.attrs)


# -- what an earlier analysis left ------------------------------------------------------------------------------------


def summed_units(store: Store, array: str, done: Mask) -> Mask:
    """The units that an earlier analysis summed up in this array: (unit). None if any was reopened since."""
    had = np.zeros_like(done)
    if array in store and store.whole(array):  # else it was lost, and is made again
        attrs: Any = store.array(array).attrs
        with store.reading_attrs(array):
            for start, stop in attrs.get("units_summed", ()):
                had[start:stop] = True
    # A share cannot be taken out again.
    return np.zeros_like(done) if (had & ~done).any() else had


def stored_sum(store: Store, statistic: Statistic) -> Totals | Array:
    """The sum of a map or histogram that an earlier analysis wrote."""
    values = store.read(statistic.sum_name)
    if statistic.edges is not None:
        return values
    attrs: Any = store.array(statistic.sum_name).attrs
    with store.reading_attrs(statistic.sum_name):
        return Totals.of_mean(values, float(attrs["images"]))


def stored_groups(store: Store, statistic: Statistic, by: str) -> dict[Key, Totals]:
    """The sums of a map by group that an earlier analysis wrote."""
    means, counts = (store.read(f"{statistic.name}_{what}_by_{by}") for what in ("mean", "count"))
    keys = [key.item() if isinstance(key, np.generic) else str(key) for key in store.read(f"{by}_group")]
    return {key: Totals.of_mean(mean, float(n)) for key, mean, n in zip(keys, means, counts, strict=True) if n}


# -- summing up -------------------------------------------------------------------------------------------------------


def sums_up(
    sources: Sequence[Source],
    statistics: Sequence[Statistic],
    sums: Mapping[str, Any],
    by: str = "",
    grouped: Iterable[Statistic] = (),
    groups: Mapping[str, Mapping[Key, Any]] = {},
) -> dict[str, Summed]:
    """The dataset's arrays by name.

    Args:
        sources: the stores, whose rows give what is one number per image, layer and head.
        statistics: which.
        sums: of maps and histograms among them, over all images of the sources.
        by: the column of the groups.
        grouped: statistics to sum up by group.
        groups: sums by group of the maps among them.
    """
    found: dict[str, Summed] = {}
    images = sum(int(source.mask.sum()) for source in sources)
    for one in (one for one in statistics if one.name in sums):
        found |= _of_sum(one, sums[one.name], _attrs(sources, one, images), sources)
    found |= _scalars(sources, [one for one in statistics if one.scalar and one.name not in sums], images)
    if any(summed.dims[:1] == ("quantile",) for summed in found.values()):
        found["quantile"] = Summed(("quantile",), np.array(QUANTILES), {})
        found["bound"] = Summed(("bound",), texts(["lower", "upper"]), {})
    if by:
        found |= _by_group(sources, by, list(grouped), groups)
    return found


def _attrs(sources: Sequence[Source], one: Statistic, images: int) -> dict[str, Any]:
    store = sources[0].store
    own: Any = dict(store.array(one.name).attrs) if one.rows and one.name in store else one.attrs
    attrs: dict[str, Any] = {
        key: own[key] for key in ("units", "long_name", "source", "parameters", "computed_from") if key in own
    }
    attrs["images"] = images
    if len(sources) == 1:
        attrs["units_summed"] = sources[0].units
    return attrs


def _of_sum(one: Statistic, total: Any, attrs: dict[str, Any], sources: Sequence[Source]) -> dict[str, Summed]:
    if one.edges is None:
        return {one.sum_name: Summed(one.dims, total.average, attrs)}
    kind = one.dims[-1].removesuffix("_bin")
    edges = np.asarray(one.edges(sources[0].store.spec))
    unit = {"units": "nats" if kind == "entropy" else "pixels", "long_name": f"edges of the bins of {kind}"}
    return {one.sum_name: Summed(one.dims, total, attrs), f"{kind}_edge": Summed((f"{kind}_edge",), edges, unit)}


def _clusters(sources: Sequence[Source]) -> npt.NDArray[np.int64] | None:
    """The cluster of each image of all sources, (image); None without clusters."""
    return cluster_codes([one.store for one in sources], [one.mask for one in sources], sources[0].cluster)


def _scalars(sources: Sequence[Source], statistics: Sequence[Statistic], images: int) -> dict[str, Summed]:
    """Mean, deviation, quantiles and interval of one number per layer (and head, prefix token)."""
    if not statistics:
        return {}
    clusters = _clusters(sources)
    parts: dict[str, list[tuple[Floats, Floats, Floats, Floats]]] = {one.name: [] for one in statistics}
    within = {one.name: one.bounds(sources[0].store.spec) for one in statistics}
    for block in _blocks(sources, list(parts)):
        columns = [_column(sources, name, layers) for name, layers in block]
        for (name, _), values in zip(block, columns, strict=True):
            moments, bounds = Moments.of(values), interval(values, clusters=clusters, within=within[name])
            parts[name].append((moments.average, moments.std, quantiles(values), np.stack(bounds)))
    found: dict[str, Summed] = {}
    for one in statistics:
        attrs = _attrs(sources, one, images) | said(sources[0].cluster, clusters)
        found |= _scalar(sources, one, attrs, parts[one.name])
    return found


def _blocks(sources: Sequence[Source], names: Sequence[str]) -> Iterator[list[tuple[str, slice]]]:
    """Split the statistics into blocks of layers that fit into memory together."""
    total = sum(source.mask.size for source in sources)
    block: list[tuple[str, slice]] = []
    held = 0
    for name in names:
        layers, *rest = sources[0].store.array(name).shape[1:] or (1,)
        for layer in range(layers):
            size = math.prod(rest) * total * 8
            if block and held + size > COLUMN_BYTES:
                yield block
                block, held = [], 0
            if block and block[-1][0] == name:
                block[-1] = (name, slice(block[-1][1].start, layer + 1))
            else:
                block.append((name, slice(layer, layer + 1)))
            held += size
    if block:
        yield block


def _scalar(
    sources: Sequence[Source],
    one: Statistic,
    attrs: dict[str, Any],
    parts: list[tuple[Floats, Floats, Floats, Floats]],
) -> dict[str, Summed]:
    first, name = sources[0].store, one.name
    dims = first.dims(name)[1:]
    mean, std, quantile, bounds = zip(*parts, strict=True)
    own = {**attrs, "long_name": attrs.get("long_name", name)}
    if name in ("distance_renormalized", "entropy_patch") and "rows_without_patch_mass" in first:
        left_out = [source.store.read("rows_without_patch_mass")[source.mask] for source in sources]
        own["rows_left_out"] = int(sum(np.maximum(rows, 0).sum() for rows in left_out))
    within = one.bounds(first.spec)
    drawn = {"method": METHOD + (EQUAL if within and np.isfinite(within).all() else ""), "level": 0.95}
    return {
        f"{name}_mean": Summed(dims, _joined(mean), own),
        f"{name}_std": Summed(dims, _joined(std), {**own, "ddof": 1}),
        f"{name}_quantile": Summed(("quantile", *dims), _joined(quantile, axis=1), own),
        f"{name}_interval": Summed(("bound", *dims), _joined(bounds, axis=1), own | drawn),
    }


def _joined(parts: Sequence[Floats], axis: int = 0) -> Floats:
    """Blocks of layers; what has no layers is one."""
    return np.concatenate(parts, axis) if len(parts) > 1 else np.asarray(parts[0])


def _column(sources: Sequence[Source], name: str, layers: slice = slice(None)) -> Array:
    """Rows of valid images, of all sources one after another."""
    parts = [(source, source.store.array(name).ndim) for source in sources]
    return np.concatenate(
        [source.store.read(name, (slice(None), layers) if ndim > 1 else ())[source.mask] for source, ndim in parts]
    )


# -- by group ---------------------------------------------------------------------------------------------------------


def _by_group(
    sources: Sequence[Source], by: str, statistics: list[Statistic], groups: Mapping[str, Mapping[Key, Any]]
) -> dict[str, Summed]:
    """Everything by group, and the groups themselves."""
    columns = [read_column(source.store, by) for source in sources]
    values = np.concatenate([keys[source.mask] for source, (keys, _) in zip(sources, columns, strict=True)])
    there = np.concatenate([known[source.mask] for source, (_, known) in zip(sources, columns, strict=True)])
    sizes = gathered(values, values, there, len)
    keys, dim = key_order(sizes), f"{by}_group"
    if not keys:
        return {}
    left_out = int((~there).sum())
    found = {
        dim: Summed((dim,), texts(keys) if isinstance(keys[0], str) else np.array(keys), {"column": by}),
        f"{dim}_images": Summed((dim,), np.array([sizes[key] for key in keys], np.int64), {"left_out": left_out}),
    }
    clusters = _clusters(sources)
    group = np.unique(values[there], return_inverse=True)[1]  # in the keys' order
    own = clusters[there] if clusters is not None else None
    for one in statistics:
        attrs = _attrs(sources, one, int(there.sum())) | {"column": by}
        if one.name in groups:
            found |= _group_maps(one, by, keys, groups[one.name], attrs)
        else:
            column = _column(sources, one.name)
            moments = gathered(column, values, there, Moments.of)
            compared = group_differences(column[there], group, own)
            attrs |= said(sources[0].cluster, own)
            found |= _group_scalars(one, by, [moments[key] for key in keys], compared, attrs)
    return found


def _group_maps(
    one: Statistic, by: str, keys: list[Key], totals: Mapping[Key, Totals], attrs: dict[str, Any]
) -> dict[str, Summed]:
    name, dim = one.name, f"{by}_group"
    nothing = Totals(0.0, np.zeros_like(next(iter(totals.values())).total))
    of = [totals.get(key, nothing) for key in keys]
    return {
        f"{name}_mean_by_{by}": Summed((dim, *one.dims), np.stack([t.average for t in of]), attrs),
        f"{name}_count_by_{by}": Summed((dim,), np.array([int(t.count) for t in of], np.int64), attrs),
    }


def _group_scalars(
    one: Statistic, by: str, moments: list[Moments], compared: Compared, attrs: dict[str, Any]
) -> dict[str, Summed]:
    name, dims = one.name, (f"{by}_group", *one.dims)
    untested = int(np.isnan(compared.q).all(axis=tuple(range(1, compared.q.ndim))).sum())
    test = {"method": TEST, "random_groups": compared.draws, "seed": 0, "groups_without_test": untested}
    return {
        f"{name}_mean_by_{by}": Summed(dims, np.stack([m.average for m in moments]), attrs),
        f"{name}_std_by_{by}": Summed(dims, np.stack([m.std for m in moments]), {**attrs, "ddof": 1}),
        f"{name}_count_by_{by}": Summed(dims, np.stack([m.count for m in moments]).astype(np.int64), attrs),
        f"{name}_difference_by_{by}": Summed(dims, compared.difference, attrs),
        f"{name}_q_by_{by}": Summed(dims, compared.q, {**attrs, "units": "1"} | test),
    }


def texts(values: Sequence[Any]) -> Array:
    """Text as zarr keeps it: (value) of variable length."""
    return np.array(values, dtype=np.dtypes.StringDType())
