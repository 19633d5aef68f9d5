"""What an analysis has to do: which statistics, of which units, and what is there already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import ArraySpec, Store
from ...errors import AttlasError, UsageError
from ..catalog import CATALOG, MEAN_SCORES, PREDICTED, held, written
from ..kernels.fused import fused
from ..statistic import Statistic
from .clusters import ALONE, cluster_of, inferred
from .groups import check_column, check_groups
from .partials import Partial, attention_of, beside, check, groupable, kept_layers, templates
from .summary import Source, stored_groups, stored_sum, summed_units

__all__ = ["Work", "grouped_before", "means_by", "planned"]

Mask = npt.NDArray[np.bool_]


@dataclass
class Work:
    """One pass: what it makes of which units, and what is gathered so far."""

    store: Store
    source: Source
    statistics: list[Statistic]
    by: str
    grouped: list[Statistic]
    # Whether rows that an earlier analysis wrote are made again.
    anew: bool = False
    # Per name the units that it lacks; under the name of the array for groups.
    lacking: dict[str, Mask] = field(default_factory=dict)
    gathered: Partial = field(default_factory=Partial)

    @property
    def rows(self) -> list[Statistic]:
        """What is asked, and what has been by group, whose rows it is made of."""
        more = [one for one in self.grouped if one.scalar]
        return list({one.name: one for one in (*self.statistics, *more)}.values())

    def job(self, k: int) -> tuple[list[Statistic], list[Statistic]]:
        """What is to be made of unit k, and what by group."""
        return (
            [one for one in self.rows if self.lacking[one.name][k]],
            [one for one in self.grouped if not one.scalar and self.lacking[means_by(one, self.by)][k]],
        )

    @property
    def units(self) -> list[int]:
        """The units that something is to be made of."""
        return [int(k) for k in np.flatnonzero(np.any(list(self.lacking.values()), axis=0))] if self.lacking else []


def means_by(one: Statistic, by: str) -> str:
    """The array of its means by group."""
    return f"{one.name}_mean_by_{by}"


def planned(store: Store, asked: list[Statistic] | None, by: str, overwrite: bool, cluster: str | None = None) -> Work:
    """The pass that makes what is asked; errors as in `analyze`."""
    before = cluster_of(store)
    column = before if cluster is None else "" if cluster == ALONE else cluster
    source = Source.of(store, column)
    # Rows that were lost read as fill, whose mean would take the place of one that was finished.
    analyzed = store.attrs.get("analyzed", ())
    store.check_whole((name for name in store.names if name not in analyzed), np.flatnonzero(source.done))
    if by:
        check_column(store, by)
        check_groups(store, by, source.mask)
    if column:
        check_column(store, column, "--cluster")
    statistics = _default(store) if asked is None else asked
    if column != before:
        statistics = _with_inferred(store, statistics, by, column)
    # A map that is made by group whatever is asked leaves no rows.
    statistics = [one for one in statistics if one.name in store or not (by and one.by_group == "always")]
    grouped = _grouped(store, asked, by)
    for one in {one.name: one for one in (*statistics, *grouped)}.values():
        check(store, one)
    work = Work(store, source, statistics, by, grouped, overwrite)
    _refuse_columns(work)
    _lay_out(work)
    stored: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    lacking: dict[str, Mask] = {}
    for one in work.rows:
        work.lacking[one.name] = _rows_lacking(work, one, lacking)
        if not one.scalar:
            had = np.zeros_like(source.done) if overwrite else summed_units(store, one.sum_name, source.done)
            if (had & work.lacking[one.name]).any():  # rows were lost that the sum has
                had[:] = False
            work.lacking[one.name] = source.done & ~had
            if had.any():
                stored[one.name] = stored_sum(store, one)
    for one in (one for one in grouped if not one.scalar):
        # Groups by a column of that name are of something else.
        parts = (f"{one.name}_count_by_{by}", f"{by}_group")
        lost = not all(store.whole(name) for name in parts if name in store)
        renewed = overwrite or lost or (by == PREDICTED and by in store)
        had = np.zeros_like(source.done) if renewed else summed_units(store, means_by(one, by), source.done)
        work.lacking[means_by(one, by)] = source.done & ~had
        if had.any():
            groups[one.name] = stored_groups(store, one, by)
    work.gathered = Partial(sums=stored, groups=groups)
    return work


def _default(store: Store) -> list[Statistic]:
    """The default statistics, the mean score matrix where attention is there, and what an earlier analysis made."""
    analyzed = store.attrs.get("analyzed", ())
    # Earlier versions laid out rows before a formula saw its parameters, and left them there empty.
    there = [one for one in held(store) if one.listed and one.name in store and not one.refused(store.spec)]
    found = [
        one for one in there if (one.name in analyzed or one.default or one.formula is None) and _whole(store, one)
    ]
    if attention_of(store):
        made = fused(store.spec, kept_layers(store))
        found += [one for one in (*made, CATALOG[MEAN_SCORES]) if one.listed]
    names = {one.name: one for one in found}
    if not names:
        raise AttlasError(
            f"{store.path}: holds neither attention nor statistics; `attlas run --keep attention` keeps attention"
        )
    return sorted(names.values(), key=_place)


def _with_inferred(store: Store, statistics: list[Statistic], by: str, column: str) -> list[Statistic]:
    """These, and all that have intervals or q values of other clusters, which are to be made again with them.

    Raises:
        AttlasError: one of them lacks images that are done, and nobody knows how to compute it.
    """
    names = {one.name for one in statistics}
    other = [one for one in held(store) if one.scalar and one.name in store and one.name not in names]
    made = inferred(store)
    other = [
        one for one in other if any(n == f"{one.name}_interval" or n.startswith(f"{one.name}_q_by_") for n in made)
    ]
    lost = next((one for one in other if not _whole(store, one)), None)
    if lost is not None:
        raise AttlasError(
            f"{store.path}: {lost.name} has intervals of other clusters than {column or ALONE}, and lacks images that "
            f"are done now; nobody knows it here, so that `attlas.analyze(store, [{lost.name}, ...], "
            f"cluster={column or ALONE!r})` has to be given it again"
        )
    return [*statistics, *other]


def grouped_before(work: Work) -> Iterator[tuple[str, list[Statistic], Source]]:
    """The other columns whose q values are of other clusters, with their statistics and the units that they are of."""
    store = work.store
    for column in sorted({name.partition("_q_by_")[2] for name in store.names if "_q_by_" in name} - {work.by}):
        statistics = [one for one in held(store, work.statistics) if f"{one.name}_q_by_{column}" in store]
        q = [dict[str, Any](store.array(f"{one.name}_q_by_{column}").attrs) for one in statistics]
        if any(attrs.get("cluster", "") != work.source.cluster for attrs in q):
            units = summed_units(store, means_by(statistics[0], column), work.source.done)
            yield column, statistics, Source.within(store, units, work.source.cluster)


def _place(one: Statistic) -> tuple[int, str]:
    """Where it stands: in the catalog's order, and what is not in it after that."""
    names = list(CATALOG)
    return (names.index(one.name) if one.name in CATALOG else len(names), one.name)


def _grouped(store: Store, asked: list[Statistic] | None, by: str) -> list[Statistic]:
    """What is summed up by group: what is asked, and what an earlier analysis has, since the groups may be more now."""
    if not by:
        return []
    if asked is None:
        chosen = groupable(_default(store))
        maps = [one for one in CATALOG.values() if one.by_group == "always"] if attention_of(store) else []
        chosen += [one for one in maps if not one.unfit(store.spec)]
    else:
        chosen = groupable(asked)
        if len(chosen) < len(asked):
            wrong = next(one for one in asked if one not in chosen)
            maps = [one for one in groupable(CATALOG.values()) if not one.scalar]
            raise UsageError(
                f"{wrong.name}: not by {by}; there are the statistics of one number per image, layer and head, and "
                f"{', '.join(one.name for one in maps)}"
            )
    names = {one.name for one in chosen}
    there = [one for one in groupable(held(store, asked or ())) if means_by(one, by) in store and one.name not in names]
    lost = next((one for one in there if not _whole(store, one)), None)
    if lost is not None:
        raise AttlasError(
            f"{store.path}: {lost.name} was summed up by {by}, and lacks images that are done now; nobody knows it "
            f"here, so that `attlas.analyze(store, [{lost.name}, ...], by={by!r})` has to be given it again"
        )
    return [*chosen, *there]


def _whole(store: Store, one: Statistic) -> bool:
    """Whether a statistic that can only be read has rows of all that is done."""
    if one.formula is not None or one.name in CATALOG:
        return True
    return bool(store.has_rows(one.name)[store.done].all())


def _refuse_columns(work: Work) -> None:
    """Refuse to write where the images' source had a column of that name: nothing of the run's is replaced."""
    store, analyzed = work.store, work.store.attrs.get("analyzed", ())
    for name in written(work.statistics, work.by, work.grouped):
        if name in store and name not in analyzed and store.dims(name) == ("image",):
            raise AttlasError(
                f"{store.path}: its column {name} has the name of an array of this analysis; run again into another "
                "store, with that column renamed, or name statistics that do not need it"
            )


def _lay_out(work: Work) -> None:
    """Lay out the arrays of rows that are not there."""
    store, analyzed = work.store, work.store.attrs.get("analyzed", ())
    wanted = templates(store, [one for one in work.statistics if one.name not in store or one.name in analyzed])
    fresh = [t for name, t in wanted.items() if name not in store]
    if fresh:
        store.add([ArraySpec.from_template(t, store.plan) for t in fresh])


def _rows_lacking(work: Work, one: Statistic, known: dict[str, Mask]) -> Mask:
    """The done units that lack its rows, or those of what is made with it; `known` are those of each array."""
    store, done = work.store, work.source.done
    lacking = np.zeros_like(done)
    for array in beside(store, one):
        if array not in known:
            known[array] = done if work.anew else done & ~store.has_rows(array)
        lacking |= known[array]
    return lacking
