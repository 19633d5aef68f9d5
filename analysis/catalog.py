"""The catalog: every statistic that can be asked for by name, each one object that says everything of it."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..engine.store.coordinates import OWN
from ..errors import UsageError
from ..exporter.spec import GraphSpec
from . import formulas
from .declared import check_name
from .formulas import norms, row_entropy
from .formulas.arrays import Array, constant, floating, namespace, patch_part, prefix_of
from .formulas.histograms import distance_edges, entropy_edges, histogram
from .statistic import INPUTS, Statistic, sizes

if TYPE_CHECKING:
    from ..engine.store.store import Store

__all__ = ["CATALOG", "described", "find", "held", "named", "reserved", "resolved", "summed", "written"]

# How the arrays end that sum up one number per layer and head, with the dimensions of their own; how those by group do,
# and those that say which groups there are, behind the column's name.
ENDS, DIMS = ("_mean", "_std", "_quantile", "_interval"), ("quantile", "bound")
BY_GROUP, GROUP = ("_mean", "_std", "_count", "_difference", "_q"), ("_group", "_group_images")
# What begins the names of a judgement's arrays, which are no statistics of attention.
JUDGED = ("deletion", "insertion", "judged", "judged_heads", "segmentation", "localisation")
MEAN_SCORES = "score_matrix_mean"  # what an analysis makes beside the default statistics
PREDICTED = "predicted"  # the class of the largest logit, as a column to group by

DOSOVITSKIY = "Dosovitskiy et al. 2021 (arXiv 2010.11929), figs. 7 and 11", "dosovitskiy2021"
PARK = "Park et al. 2023 (arXiv 2305.00729), section 2", "park2023"
ABNAR = "Abnar & Zuidema 2020 (arXiv 2005.00928), section 3", "abnar2020"
RAGHU = "Raghu et al. 2021 (arXiv 2108.08810)", "raghu2021"
WALMER = "Walmer et al. 2023 (arXiv 2212.03862)", "walmer2023"
KOBAYASHI = "Kobayashi et al. 2020 (arXiv 2004.10102)", "kobayashi2020"
DARCET = "Darcet et al. 2024 (arXiv 2309.16588)", "darcet2024"
CARON = "Caron et al. 2021 (arXiv 2104.14294)", "caron2021"
MICHEL = "Michel et al. 2019 (arXiv 1905.10650)", "michel2019"
SEED = "Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eq. 3.3", "hebbar"

HEADS, MAPS, OFFSETS = ("layer", "head"), ("layer", "y", "x"), ("layer", "head", "offset_y", "offset_x")
GRIDS = ("layer", "head", "y", "x")


# -- formulas that are put together from others -----------------------------------------------------------------------


def _attention(attention: Array) -> Array:
    return attention


def _mass_mask(attention: Array, grid: tuple[int, int], readout: Any, *, threshold: float = 0.6) -> Array:
    maps = formulas.readout_map(attention, grid, readout)
    return namespace(maps).where(formulas.mass_mask(maps, threshold), maps * 0 + 1, maps * 0)


def _norm_weighted_readout_map(attention: Array, value_norm: Array, grid: tuple[int, int], readout: Any) -> Array:
    return formulas.readout_map(norms.norm_weighted(attention, value_norm), grid, readout)


def _norm_weighted_received(attention: Array, value_norm: Array, grid: tuple[int, int]) -> Array:
    return formulas.received_attention(norms.norm_weighted(attention, value_norm), grid)


def _entropies(attention: Array, spec: GraphSpec) -> Array:
    return histogram(row_entropy(attention), _entropy_edges(spec))


def _distances(attention: Array, spec: GraphSpec) -> tuple[Array, Array]:
    """Each patch query's distance, rows not renormalised, and its mass on patches."""
    xp, a = namespace(attention), patch_part(floating(attention), prefix_of(attention, spec.grid))
    far = constant(formulas.patch_distances(spec.grid, spec.patch_size), a)
    return xp.sum(a * far, axis=-1), xp.sum(a, axis=-1)


def _distance_counts(attention: Array, spec: GraphSpec) -> Array:
    return histogram(_distances(attention, spec)[0], _distance_edges(spec))


def _renormalized_counts(attention: Array, spec: GraphSpec) -> Array:
    xp, (far, mass) = namespace(attention), _distances(attention, spec)
    nothing = mass == 0
    rows = xp.where(nothing, far * 0 + math.nan, far / xp.where(nothing, mass * 0 + 1, mass))
    return histogram(rows, _distance_edges(spec))


def _entropy_edges(spec: GraphSpec) -> Sequence[float]:
    return entropy_edges(spec.tokens)


def _distance_edges(spec: GraphSpec) -> Sequence[float]:
    return distance_edges(spec.grid, spec.patch_size)


# -- the statistics ---------------------------------------------------------------------------------------------------


def _layer(name: str) -> dict[str, Any]:
    return {"kernels": {"layer": name}}


_SHARE: dict[str, Any] = {"within": (0.0, 1.0)}
_ABOVE: dict[str, Any] = {"within": (0.0, math.inf)}  # lengths, entropies, absolute sums: never below 0
_FUSED: dict[str, Any] = {"default": True, "kernels": {"fused": "Reducer"}}
_IMAGES: dict[str, Any] = {"kernels": {"images": "formula"}}
_PEAKS: dict[str, Any] = {"kernels": {"batch": "query_peaks"}}

CATALOG: dict[str, Statistic] = {
    s.name: s
    for s in (
        # What every run makes.
        Statistic("distance", HEADS, formulas.distance, "pixels",
                  "mean attention distance between patches, rows not renormalised", *DOSOVITSKIY, **(_ABOVE | _FUSED)),
        Statistic("distance_renormalized", HEADS, formulas.distance_renormalized, "pixels",
                  "mean attention distance between patches, rows renormalised over patches", *PARK,
                  **(_ABOVE | _FUSED)),
        Statistic("entropy", HEADS, formulas.entropy, "nats", "mean entropy of the attention rows over all keys",
                  refuses=("mixed",), **(_ABOVE | _FUSED)),
        Statistic("entropy_patch", HEADS, formulas.entropy_patch, "nats",
                  "mean entropy of the attention rows over patches, renormalised", refuses=("mixed",),
                  **(_ABOVE | _FUSED)),
        Statistic("prefix_mass", (*HEADS, "prefix"), formulas.prefix_mass, "1",
                  "mean attention of the patch queries on each prefix token", cite="darcet2024", **_SHARE,
                  **_FUSED),
        Statistic("rollout", ("y", "x"), formulas.rollout, "1",
                  "attention rollout of the readout, patch columns, unscaled", *ABNAR, grouped="asked", **_FUSED),
        Statistic("rows_without_patch_mass", HEADS, formulas.rows_without_patch_mass, "rows",
                  "query rows without patch mass, left out where rows are renormalised", listed=False, dtype="int32",
                  fill=-1, **_FUSED),
        # What can be asked for.
        Statistic("rollout_vit_explain", ("y", "x"), formulas.rollout_vit_explain, "1",
                  "rollout of vit-explain: {fusion} over heads, {discard} discarded", "github.com/jacobgil/vit-explain",
                  "gildenblat", refuses=("codes", "pool"), kernels={"follow": "explain"}),
        Statistic("distance_unit_square", HEADS, formulas.distance_unit_square, "1",
                  "mean attention distance on a unit square, rows renormalised over patches", *WALMER,
                  **(_ABOVE | _layer("distance_unit_square"))),
        Statistic("effective_tokens", HEADS, formulas.effective_tokens, "keys", "mean of exp(entropy) over queries",
                  refuses=("mixed",), **(_ABOVE | _layer("effective_tokens"))),
        Statistic("self_mass", HEADS, formulas.self_mass, "1", "mean attention of a patch on itself",
                  **_SHARE, **_layer("self_mass")),
        Statistic("neighbour_mass", HEADS, formulas.neighbour_mass, "1",
                  "mean attention of a patch on its 8 neighbours", **_SHARE, **_layer("neighbour_mass")),
        Statistic("rest_mass", HEADS, formulas.rest_mass, "1", "mean attention of a patch on all farther patches",
                  **_SHARE, **_layer("rest_mass")),
        Statistic("border_mass", HEADS, formulas.border_mass, "1",
                  "mean share of a row's patch mass on the outer ring of patches", **_SHARE),
        Statistic("sink_share", HEADS, formulas.sink_share, "1",
                  "share of patches that receive more than {times} times the uniform attention", *DARCET,
                  refuses=("codes",), **(_SHARE | _layer("sink_share"))),
        Statistic("normalized_mutual_information", HEADS, formulas.normalized_mutual_information, "1",
                  "mutual information of query and key, normalised", "Park et al. 2023 (arXiv 2305.00729), eq. 2",
                  "park2023", **_SHARE, **_layer("information")),
        Statistic("position_deviation", HEADS, formulas.position_deviation, "1",
                  "standard deviation of attention over queries", *WALMER, **(_ABOVE | _layer("position_deviation"))),
        Statistic("head_deviation", ("layer",), formulas.head_deviation, "1",
                  "standard deviation of attention over heads", *WALMER, **(_ABOVE | _layer("head_deviation"))),
        Statistic("head_similarity", (*HEADS, "other_head"), formulas.head_similarity, "nats",
                  "Jensen-Shannon divergence between heads, mean over queries",
                  "Clark et al. 2019 (arXiv 1906.04341)", "clark2019", refuses=("mixed",), **_layer("divergences")),
        Statistic("score_matrix", MAPS, formulas.score_matrix, "1",
                  "largest attention along the {reading} axis, mean over the rest", *SEED, **_PEAKS),
        Statistic("received_attention", GRIDS, formulas.received_attention, "1",
                  "mean attention of {queries} queries on each patch", cite="darcet2024", grouped="always",
                  **_layer("received_attention")),
        Statistic("readout_map", GRIDS, formulas.readout_map, "1", "attention of the readout row on each patch",
                  *CARON, refuses=("pool",), grouped="always", **_layer("readout_map")),
        Statistic("class_token_weight", MAPS, formulas.class_token_weight, "1",
                  "largest attention over heads of the readout row on each patch", *CARON, refuses=("pool",)),
        Statistic("mass_mask", GRIDS, _mass_mask, "1",
                  "fewest patches that hold {threshold} of the readout row's patch mass: 1, others 0", *CARON,
                  refuses=("codes", "pool")),
        # Of these the dataset's mean alone is kept: their rows would outgrow the rest of the store.
        Statistic("score_matrix_mean", MAPS, formulas.score_matrix, "1",
                  "largest attention along the {reading} axis, mean over the rest and over images", *SEED, rows=False,
                  **_PEAKS),
        Statistic("score_matrix_key_mean", MAPS, functools.partial(formulas.score_matrix, reading="key"), "1",
                  "largest attention over keys, mean over heads and images", *SEED, rows=False, **_layer("key_peaks")),
        Statistic("score_matrix_head_mean", MAPS, functools.partial(formulas.score_matrix, reading="head"), "1",
                  "largest attention over heads, mean over queries and images", *SEED, rows=False,
                  **_layer("head_peaks")),
        Statistic("offset_map_mean", OFFSETS, functools.partial(formulas.offset_map, form="per_query"), "1",
                  "attention by offset of the key, mean over queries that have it and over images", rows=False,
                  **_layer("offset_map")),
        Statistic("offset_map_pooled_mean", OFFSETS, functools.partial(formulas.offset_map, form="pooled"), "1",
                  "share of the patch mass by offset of the key, mean over images", *WALMER, rows=False,
                  **_layer("offset_map_pooled")),
        Statistic("attention_matrix_mean", (*HEADS, "query", "key"), _attention, "1", "attention, mean over images",
                  rows=False, **_layer("attention")),
        # Counts of queries over all images, between edges that never change.
        Statistic("entropy_histogram", (*HEADS, "entropy_bin"), _entropies, "queries",
                  "queries by the entropy of their attention over all keys", refuses=("mixed",), rows=False,
                  edges=_entropy_edges, **_layer("entropy_counts")),
        Statistic("distance_histogram", (*HEADS, "distance_bin"), _distance_counts, "queries",
                  "patch queries by their attention distance, rows not renormalised", *RAGHU, rows=False,
                  edges=_distance_edges, **_layer("distance_counts")),
        Statistic("distance_renormalized_histogram", (*HEADS, "distance_bin"), _renormalized_counts, "queries",
                  "patch queries by their attention distance, rows renormalised over patches", rows=False,
                  edges=_distance_edges, **_layer("renormalized_counts")),
        # Norm-aware, where the run kept the lengths of the value vectors.
        Statistic("norm_weighted_entropy", HEADS, norms.norm_weighted_entropy, "nats",
                  "mean entropy of attention times value norm, rows divided by their sums", *KOBAYASHI,
                  **(_ABOVE | _layer("norm_weighted_entropy"))),
        Statistic("norm_weighted_distance", HEADS, norms.norm_weighted_distance, "pixels",
                  "mean distance of attention times value norm, rows renormalised over patches", *KOBAYASHI,
                  **(_ABOVE | _layer("norm_weighted_distance"))),
        Statistic("norm_weighted_readout_map_mean", GRIDS, _norm_weighted_readout_map, "1",
                  "attention times value norm, readout row on each patch, mean over images", *KOBAYASHI,
                  refuses=("pool",), rows=False, **_layer("norm_weighted_readout_map")),
        Statistic("norm_weighted_received_attention_mean", GRIDS, _norm_weighted_received, "1",
                  "attention times value norm, patch queries on each patch, mean over images", *KOBAYASHI, rows=False,
                  **_layer("norm_weighted_received")),
        # Attention weighted by its gradients.
        Statistic("gradient_rollout", ("y", "x"), formulas.gradient_rollout, "1",
                  "rollout of attention times gradient, mean over heads, above 0",
                  "Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eqs. 3.4a to 3.4e", "hebbar",
                  refuses=("pool", "loss"), **_IMAGES),
        Statistic("chefer", ("y", "x"), formulas.chefer, "1",
                  "relevance by attention times gradient above 0, mean over heads",
                  "Chefer et al. 2021 (arXiv 2103.15679)", "chefer2021", refuses=("pool", "loss"), **_IMAGES),
        Statistic("gradient_rollout_vit_explain", ("y", "x"), formulas.gradient_rollout_vit_explain, "1",
                  "gradient rollout of vit-explain: gradients by the scores, blocks in reverse, {discard} discarded",
                  "github.com/jacobgil/vit-explain", "gildenblat", refuses=("codes", "pool", "loss"), **_IMAGES),
        Statistic("head_importance", HEADS, functools.partial(formulas.head_importance, form="logit"), "logit",
                  "absolute sum of attention times gradient of the logit",
                  "compare Michel et al. 2019 (arXiv 1905.10650), whose score is of the loss", "michel2019",
                  refuses=("loss",), **(_ABOVE | _IMAGES)),
        Statistic("head_importance_loss", HEADS, functools.partial(formulas.head_importance, form="loss"), "nats",
                  "absolute sum of attention times gradient of the loss", *MICHEL, refuses=("logit",),
                  **(_ABOVE | _IMAGES)),
        Statistic("head_importance_michel", HEADS, functools.partial(formulas.head_importance, form="michel"), "nats",
                  "absolute sum over keys of attention times gradient of the loss, sum over queries", *MICHEL,
                  refuses=("logit",), **(_ABOVE | _IMAGES)),
        # What a run writes of graphs that were exported with `--norms`: their means are taken.
        Statistic("value_norm", ("layer", "head", "key"), units="1", cite="kobayashi2020",
                  long_name="norm of each key's value times its head's slice of the output projection"),
        Statistic("branch_ratio", ("layer", "token"), units="1",
                  long_name="norm of what the attention branch adds over that of the stream it is added to"),
        Statistic("token_norm", ("layer", "token"), units="1",
                  long_name="norm of the residual stream that enters the block"),
        Statistic("norm_outlier_share", ("layer",), norms.norm_outlier_share, "1",
                  "share of patches whose token has an outlying norm: above {above} if that is not 0, else {times} "
                  "times the median", *DARCET, **(_SHARE | _IMAGES)),
        Statistic("norm_outlier_map", MAPS, norms.norm_outlier_map, "1",
                  "1 for patches whose token has an outlying norm, 0 for others: above {above} if that is not 0, else "
                  "{times} times the median", *DARCET, **_IMAGES),
    )
}  # fmt: skip


# -- by name ----------------------------------------------------------------------------------------------------------


def resolved(names: Iterable[str | Statistic] | str | Statistic) -> list[Statistic]:
    """The statistics of these names, each once; a name may say parameters: `rollout:start=1,fusion=max`.

    Raises:
        UsageError: one is unknown, and near names are suggested; or it has no such parameter.
    """
    found: dict[str, Statistic] = {}
    for name in arguments.several(names, "names", (str, Statistic), "names or `Statistic`s"):
        one = name if isinstance(name, Statistic) else _named(name)
        check_name(one.name)
        if not _ours(one):
            _check_own(one)
        if found.setdefault(one.name, one) is not one and found[one.name] != one:
            raise UsageError(f"there are two statistics of the name {one.name}")
    _check_beside(list(found.values()))
    return list(found.values())


def _check_own(one: Statistic) -> None:
    """Refuse a statistic of somebody's own in the place of what is ours."""
    if reserved(one.name) or any(f"{end}_by_" in one.name for end in BY_GROUP):
        raise UsageError(
            f"{one.name}: has the name of one of ours, or of an array that a run or an analysis makes; choose another"
        )
    if taken := [dim for dim in one.sizes if reserved(dim, ()) or dim.endswith(GROUP[0])]:
        raise UsageError(f"{one.name}: sizes: {taken[0]} is a dimension of ours; leave it out, or choose another name")
    if any(kernel != ("images", "formula") for kernel in one.kernels.items()):
        raise UsageError(f"{one.name}: kernels are of our formulas; there is {{'images': 'formula'}} for one's own")


def _check_beside(statistics: Sequence[Statistic]) -> None:
    """Refuse statistics of somebody's own that would share an array, or a dimension of another size."""
    arrays: dict[str, str] = {}
    lengths: dict[str, tuple[str, int]] = {}
    for one in (one for one in statistics if not _ours(one)):
        for array in set(written([one])).difference(DIMS):
            if arrays.setdefault(array, one.name) != one.name:
                raise UsageError(f"{one.name} and {arrays[array]} both make an array {array}; rename one")
        for dim, size in one.sizes.items():
            other, length = lengths.setdefault(dim, (one.name, size))
            if size != length:
                raise UsageError(f"{one.name}: {dim} has {size} entries, and {length} of {other}; rename it")


def _ours(one: Statistic) -> bool:
    base = CATALOG.get(one.name.partition(".")[0])
    return base is not None and base.formula is one.formula


def named(one: Statistic) -> str | Statistic:
    """What another process finds it by: its name, where it is one of ours."""
    return one.name if _ours(one) else one


def find(names: Iterable[str]) -> list[str]:
    """The names under which statistics are stored that are asked for by these; errors as in `resolved`."""
    return [one.name for one in resolved(names)]


def _named(text: str) -> Statistic:
    name, colon, said = text.partition(":")
    if not colon:
        name, _, said = text.partition(".")
    if name not in CATALOG or not CATALOG[name].listed:
        known = [one.name for one in CATALOG.values() if one.listed]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"there is no statistic {name}; {hint}")
    return CATALOG[name].asked(said) if said else CATALOG[name]


def held(store: Store, own: Iterable[Statistic] = ()) -> list[Statistic]:
    """The statistics that a store has rows or sums of, in the catalog's order; those that nobody knows any more, too.

    These are read as they are: what an analysis by somebody with a statistic of their own left. `own` are known.
    """
    known = CATALOG | {one.name: one for one in own}
    by = {name.partition("_mean_by_")[0] for name in store.names if "_mean_by_" in name}
    found = {name: one for name, one in known.items() if {name, one.sum_name} & {*store.names, *by}}
    for name in store.attrs.get("analyzed", ()):
        dims = store.dims(name)
        base = name.partition(".")[0]
        if name in known or base in JUDGED or (dims[:1] != ("image",) and base not in CATALOG):
            continue
        if base in CATALOG and base != name:
            ends = (name, *(name.removesuffix(end) for end in ENDS), name.partition("_mean_by_")[0])
            one = next(filter(None, map(_perhaps, ends if dims[:1] != ("image",) else [name])), None)
        else:
            attrs: Any = store.array(name).attrs
            words: dict[str, Any] = {key: attrs[key] for key in ("units", "long_name", "source") if key in attrs}
            words |= {} if set(dims[1:]) <= {"layer", "head", "prefix"} else {"grouped": "asked"}
            one = Statistic(name, dims[1:], sizes=_own_sizes(store, name), **words)
        if one is not None:
            found.setdefault(one.name, one)
    return list(found.values())


def summed(store: Store) -> list[Statistic]:
    """The statistics whose mean or counts over images a store holds, each array once.

    These are `held`, and those of somebody's own that have no rows, only a mean.
    """
    found = {one.sum_name: one for one in held(store) if one.sum_name in store}
    known = set(written(found.values()))
    for name in store.attrs.get("analyzed", ()):
        dims, attrs = store.dims(name), dict[str, Any](store.array(name).attrs)
        own = "units_summed" in attrs and dims[:1] != ("image",) and "_by_" not in name
        if own and name not in known and name not in found:
            words = {key: attrs[key] for key in ("units", "long_name", "source") if key in attrs}
            found[name] = Statistic(name, dims, rows=False, sizes=_own_sizes(store, name), **words)
    return list(found.values())


def _own_sizes(store: Store, name: str) -> dict[str, int]:
    """The sizes of an array's dimensions that are not the model's."""
    there = dict(zip(store.dims(name), store.array(name).shape, strict=True))
    return {dim: size for dim, size in there.items() if dim != "image" and dim not in sizes(store.spec)}


def _perhaps(name: str) -> Statistic | None:
    try:
        return _named(name)
    except UsageError:
        return None


def described() -> dict[str, str]:
    """Every name that can be asked for, in words, with its unit, what it needs, and its parameters."""
    found = {}
    for one in CATALOG.values():
        if not one.listed:
            continue
        needs = ", ".join(INPUTS[name] for name in one.needs if name != "attention")
        needs = "a graph of `attlas export --norms`" if one.formula is None else needs
        notes = ["default"] if one.default or one.name == MEAN_SCORES else [f"needs {needs}"] if needs else []
        said = ",".join(f"{p.name}={p.values}" for p in one.parameters.values())
        notes += [f"takes :{said}"] if said else []
        found[one.name] = f"{one.words} [{one.units}]{''.join(f', {note}' for note in notes)}"
    return found


def written(statistics: Iterable[Statistic], by: str = "", grouped: Iterable[Statistic] = ()) -> Iterator[str]:
    """The arrays that an analysis of these statistics, some of them by groups of a column, writes."""
    for one in statistics:
        if one.rows and one.formula is not None:
            yield one.name
        if one.scalar:
            yield from (f"{one.name}{end}" for end in ENDS)
            yield from DIMS
        elif one.listed:
            yield one.sum_name
        if one.edges is not None:
            yield f"{one.dims[-1].removesuffix('_bin')}_edge"
    if by:
        yield from (f"{by}{end}" for end in GROUP)
        yield from (f"{one.name}{end}_by_{by}" for one in grouped for end in BY_GROUP)


@functools.cache
def _own_names() -> frozenset[str]:
    dims = {dim for one in CATALOG.values() for dim in one.dims}
    return frozenset({*CATALOG, *written(CATALOG.values()), *dims, PREDICTED})


def reserved(name: str, columns: Collection[str] | None = None) -> bool:
    """Whether an array of that name is, or may become, one of an analysis, so that no column should have it.

    `columns` are those that images may be grouped by; with None, any.
    """
    statistic, _, column = name.partition("_by_")
    by_group = bool(column) and any(statistic == f"{own}{end}" for own in _own_names() for end in BY_GROUP)
    grouped = {name.removesuffix(end) for end in GROUP if name.endswith(end)}
    by_group |= bool(grouped) if columns is None else not grouped.isdisjoint((PREDICTED, *columns))
    base = name.partition(".")[0]
    # A source's columns make room for the run's own arrays, whichever these are.
    laid_out = columns is None and name in OWN
    ours = name in _own_names() or base in CATALOG or base in JUDGED or name.startswith("judged_")
    return ours or by_group or laid_out
