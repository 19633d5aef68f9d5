"""Every figure of the report as a function on matplotlib's Axes: `attlas.plot.distance("deit.zarr", ax)`.

The report draws through the same plots. `store` is a path, a `Store`, or what `attlas.open` gives; without `ax` a
figure of its own is made. Of a figure with several panels the first is drawn, or the one that `panel` names. Every
function returns the Axes, and raises `AttlasError` where the store cannot give the figure, saying why, and `UsageError`
for a panel that there is not. `attlas.plot.figures()` lists them; docs/statistics.md has the statistics' formulas.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..arguments import Paths, Where
from ..errors import AttlasError, UsageError
from ..words import counted

if TYPE_CHECKING:
    from ..engine.runtime.results import Result
    from ..engine.store.store import Store
    from .report.sections.base import Context, Figure
    from .show.subject import Subject


__all__ = [
    "compare",
    "differences",
    "distance",
    "distance_sorted",
    "distributions",
    "entropy",
    "examples",
    "extremes",
    "figures",
    "further",
    "group_rollout",
    "groups",
    "head_similarity",
    "heads",
    "judged",
    "judgement",
    "localisation",
    "masses",
    "matrices",
    "matrices_mean",
    "mean_map",
    "norms",
    "object_similarity",
    "offset_map",
    "overlay",
    "position_similarity",
    "prefix_mass",
    "queries",
    "query_map",
    "received_attention",
    "rollout_mean",
    "score_matrix",
    "score_matrix_mean",
]

# The section of the report and its figure, by the name of the function.
FIGURES = {
    "distance": ("distance", "distance"),
    "entropy": ("entropy", "entropy"),
    "prefix_mass": ("prefix_mass", "prefix_mass"),
    "masses": ("masses", "masses"),
    "distance_sorted": ("sorted_heads", "distance_sorted"),
    "distributions": ("over_images", "distributions"),
    "queries": ("over_queries", "queries"),
    "offset_map": ("offsets", "offset_map"),
    "rollout_mean": ("mean_rollout", "rollout_mean"),
    "received_attention": ("received", "received_attention"),
    "score_matrix_mean": ("mean_scores", "score_matrix_mean"),
    "head_similarity": ("similarity", "head_similarity"),
    "norms": ("norms", "norms"),
    "further": ("further", "further"),
    "matrices_mean": ("mean_matrices", "matrices_mean"),
    "position_similarity": ("positions", "position_similarity"),
    "judgement": ("judgement", "judgement-*"),
    "judged": ("judgement", "judgement-disagreement"),
    "examples": ("examples", "examples"),
    "extremes": ("extremes", "extremes"),
    "heads": ("heads_of_one", "heads"),
    "query_map": ("query_of_one", "query_map"),
    "score_matrix": ("scores_of_one", "score_matrix"),
    "matrices": ("matrices_of_one", "matrices"),
    "differences": ("groups", "differences_by_*"),
    "groups": ("groups", "groups_by_*"),
    "group_rollout": ("groups", "rollout_mean_by_*"),
    "mean_map": ("further_maps", "map_*"),
    "localisation": ("objects", "localisation"),
    "object_similarity": ("objects", "object_similarity"),
    "compare": ("compare", "compare_*"),
}


def figures() -> dict[str, str]:
    """What each function here draws, in a line, by its name."""
    found = [name for name in __all__ if name != "figures"]
    return {name: str(globals()[name].__doc__).partition("\n")[0].rstrip(".") for name in found}


def overlay(
    of: Result | Where,
    ax: Any = None,
    *,
    image: int | str | os.PathLike[str] = 0,
    map: str = "",
    layer: int | None = None,
    head: int | None = None,
    patch: tuple[int, int] | None = None,
    **options: Any,
) -> Any:
    """One picture with a map laid over it, its maximum printed: the row that the model's head reads, or another.

    Args:
        of: what `Session(...)(pictures)` gives, or a store.
        ax: matplotlib's Axes.
        image: the index of the picture in it, or its path or name.
        map: a map of the catalog by name, such as `rollout` or `rollout:start=1`.
        layer: the block's index; by default the last. `head`: by default the mean over heads.
        head: its index.
        patch: (row, column) of a patch whose attention is shown instead.
        options: `limit`, `opacity`, `style`, `root`, `mask`, `printed`, `size` of the overlay
            (`attlas.analysis.report.plots.overlay`).

    Raises:
        AttlasError: the store lacks the picture's pixels, or what the map needs.
        UsageError: there is no such picture, map, layer, head or patch.
    """
    from .report.plots.overlay import overlay as over
    from .show.maps import Choice, maps_of, mean_of, named, query_views, readout_views

    one, choice = _subject(of, image), Choice(layer, arguments.whole_or_none(head, "head"))
    patch = None if patch is None else arguments.pair(patch, "patch", "(row, column), such as (3, 7)")
    if map:
        views = maps_of(one, named(map), choice)
    else:
        views = readout_views(one, choice) if patch is None else query_views(one, patch, choice)
    if one.pixels is None:
        raise AttlasError(f"{one.where}: holds no pixels of {one.name}; choose an image of its sample")
    height, width = one.pixels.shape[:2]
    ax = _axes(2.6, 2.6 * height / width, sheet=True) if ax is None else _checked(ax)
    first = views[0]
    printed = f"max {{:.3g}} {first.unit}".rstrip()
    given: dict[str, Any] = {"root": first.root, "printed": printed, "patch": first.patch} | options
    over(ax, one.pixels, mean_of(views), **given)
    return ax


def _subject(of: Any, image: Any) -> Subject:
    from ..engine.runtime.results import Result
    from .show.choose import Selection
    from .show.subject import of_result, of_store

    store = None if isinstance(of, Result) else _store(of)
    if store is not None and isinstance(image, str | os.PathLike):
        (image,) = Selection(arguments.path(image, "image")).of(store)
    image = arguments.whole(image, "image", "an index" if store is None else "an index or a path")
    count = len(of.pixels) if store is None else store.plan.images
    if not 0 <= image < count:
        raise UsageError(f"image {image}: there are {count}, counted from 0")
    return of_result(of, of.spec.name, image) if store is None else of_store(store, image)


def distance(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Attention distance of every head by depth: x the layer, y pixels; panels distance, distance_renormalized."""
    return _drawn("distance", store, ax, panel)


def entropy(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Attention entropy of every head by depth: x the layer, y nats; panels entropy, entropy_patch."""
    return _drawn("entropy", store, ax, panel)


def prefix_mass(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Attention on prefix tokens by depth: x the layer, y a share of 1; a panel for each token."""
    return _drawn("prefix_mass", store, ax, panel)


def masses(store: Where, ax: Any = None) -> Any:
    """Where a patch's attention goes: x the layer, y shares that add up to 1, stacked."""
    return _drawn("masses", store, ax)


def distance_sorted(store: Where, ax: Any = None) -> Any:
    """Heads sorted by distance: x the rank, y pixels, a line for each layer (Raghu et al. 2021, fig. 3)."""
    return _drawn("distance_sorted", store, ax)


def distributions(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Each head's quantiles over images: x the layer, y the unit; panels distance_renormalized, entropy."""
    return _drawn("distributions", store, ax, panel)


def queries(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Distributions of single queries: x the unit, y the layer; panels by histogram, such as entropy."""
    return _drawn("queries", store, ax, panel)


def offset_map(store: Where, ax: Any = None) -> Any:
    """Attention by offset from the query: a map for every head (down) and layer (across); probabilities."""
    return _drawn("offset_map", store, ax)


def rollout_mean(store: Where, ax: Any = None) -> Any:
    """Rollout averaged over images, divided by its mean over patches."""
    return _drawn("rollout_mean", store, ax)


def received_attention(store: Where, ax: Any = None) -> Any:
    """Attention that each patch receives, × uniform: a map for every head (down) and layer (across)."""
    return _drawn("received_attention", store, ax)


def score_matrix_mean(store: Where, ax: Any = None) -> Any:
    """Largest attention that each patch receives, mean over heads and images: a map for each layer."""
    return _drawn("score_matrix_mean", store, ax)


def head_similarity(store: Where, ax: Any = None) -> Any:
    """Jensen-Shannon divergence between the heads of each layer: matrices (head, head), nats."""
    return _drawn("head_similarity", store, ax)


def norms(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Norms of tokens: a histogram of the last layer, and by depth; panels token_norm, branch_ratio, value_norm."""
    return _drawn("norms", store, ax, panel)


def further(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Any other statistic of heads or layers by depth: x the layer, y its unit; a panel for each."""
    return _drawn("further", store, ax, panel)


def matrices_mean(store: Where, ax: Any = None) -> Any:
    """Attention matrices averaged over images and heads, × uniform: rows queries, columns keys."""
    return _drawn("matrices_mean", store, ax)


def position_similarity(store: Where, ax: Any = None) -> Any:
    """Cosine between position embeddings: a map for each patch, at its place."""
    return _drawn("position_similarity", store, ax)


def judgement(store: Where, ax: Any = None, *, panel: str = "") -> Any:
    """Curves of `attlas judge`: x the share of patches, y the class's probability; panels deletion, insertion."""
    return _drawn("judgement", store, ax, panel)


def judged(store: Where, ax: Any = None) -> Any:
    """Pictures on which maps disagree most, with these maps over them; areas between the curves above."""
    return _drawn("judged", store, ax)


def examples(store: Where, ax: Any = None, *, count: int = 4) -> Any:
    """Pictures of the store's sample with their maps laid over them, each with its maximum printed."""
    return _drawn("examples", store, ax, examples=arguments.whole(count, "count"))


def extremes(store: Where, ax: Any = None) -> Any:
    """Pictures with the lowest and the highest entropy in the last layer, chosen after looking."""
    return _drawn("extremes", store, ax)


def heads(store: Where, ax: Any = None) -> Any:
    """What each head of the last layer reads out of the first example, × uniform, on one scale."""
    return _drawn("heads", store, ax)


def query_map(store: Where, ax: Any = None) -> Any:
    """What the central patch of the first example looks at, × uniform: a map for each layer."""
    return _drawn("query_map", store, ax)


def score_matrix(store: Where, ax: Any = None) -> Any:
    """Score matrix of the first example: largest attention that each patch receives, a map for each layer."""
    return _drawn("score_matrix", store, ax)


def matrices(store: Where, ax: Any = None) -> Any:
    """Attention matrices of the first example, mean over heads, × uniform: rows queries, columns keys."""
    return _drawn("matrices", store, ax)


def mean_map(store: Where, name: str, ax: Any = None) -> Any:
    """A statistic's mean map over images, `readout_map` or one's own: maps of the grid, of layers, or of heads."""
    return _drawn("mean_map", store, ax, named=f"map_{name}")


def differences(store: Where, ax: Any = None, *, by: str = "label", panel: str = "") -> Any:
    """Differences between groups of images: x the difference in its unit, y -log10 q; after `analyze(store, by=by)`."""
    return _drawn("differences", store, ax, panel, named=f"differences_by_{by}")


def groups(store: Where, ax: Any = None, *, by: str = "label", panel: str = "") -> Any:
    """Few groups of images by depth: x the layer, y the unit, a line for each group with its 95 % interval."""
    return _drawn("groups", store, ax, panel, named=f"groups_by_{by}")


def group_rollout(store: Where, ax: Any = None, *, by: str = "label") -> Any:
    """Mean rollout of the largest groups of images, divided by its mean over patches: a map for each."""
    return _drawn("group_rollout", store, ax, named=f"rollout_mean_by_{by}")


def localisation(store: Where, boxes: str | os.PathLike[str], ax: Any = None, *, panel: str = "") -> Any:
    """How well maps find the boxes of a COCO file: x the measure, y the maps; a panel for each measure."""
    return _drawn("localisation", store, ax, panel, boxes=boxes)


def object_similarity(store: Where, boxes: str | os.PathLike[str], ax: Any = None) -> Any:
    """A picture with its boxes, and matrices of the cosines between what they hold."""
    return _drawn("object_similarity", store, ax, boxes=boxes)


def compare(
    stores: Paths,
    ax: Any = None,
    *,
    statistic: str = "distance_renormalized",
    difference: bool = False,
    names: Sequence[str] | str = (),
) -> Any:
    """Several stores over relative depth: y in image widths or shares of uniform entropy; or their differences.

    Args:
        stores: two or more, compared on the images that all share.
        ax: matplotlib's Axes.
        statistic: what is compared.
        difference: draw differences from the first store, image by image; of distance_renormalized and entropy.
        names: what they are called; by default by their models.
    """
    from ..engine.store.store import Store
    from .report.facts import labels
    from .report.sections.base import Figure
    from .report.sections.comparison import comparison

    found = [Store(path) for path in arguments.paths(stores, "stores", "the paths of two stores or more")]
    if len(found) < 2:
        raise UsageError("to compare takes two stores or more")
    called = list(arguments.names(names, "names")) or labels(found)
    if len(called) != len(found):
        raise UsageError(f"{counted(len(called), 'name')} for {counted(len(found), 'store')}: give one each")
    sections = comparison([_context(store, label) for store, label in zip(found, called, strict=True)])
    parts = [part for one in sections[1:] for part in one.parts(_context(found[0]))]
    wanted = f"compare_{statistic}{'_difference' if difference else ''}"
    drawn = {part.name: part for part in parts if isinstance(part, Figure)}
    if wanted in drawn:
        return _on(drawn[wanted], ax, "")
    others = drawn.get("compare_further")
    if others is not None and not difference and statistic in [getattr(plot, "title", "") for plot in others.plots]:
        return _on(others, ax, statistic)
    raise AttlasError(f"there is no {wanted} of these stores: {_why(parts)}")


# -- how all of them draw ----------------------------------------------------------------------------------------------


def _store(of: Any) -> Store:
    from ..engine.store.store import Store

    return of if isinstance(of, Store) else Store(of)


def _context(store: Store, label: str = "", **options: Any) -> Context:
    from .report.facts import gather
    from .report.sections.base import Context

    return Context(store, gather(store, label, accuracy=False), **{"examples": 4} | options)


def _drawn(name: str, of: Any, ax: Any, panel: str = "", named: str = "", **options: Any) -> Any:
    """A figure of a section on the Axes."""
    from .report.sections import SECTIONS
    from .report.sections.base import Figure

    wanted, pattern = FIGURES[name]
    (section,) = (one for one in SECTIONS if one.name == wanted)
    context, parts = _context(_store(of), **options), []
    for part in section.parts(context):
        if isinstance(part, Figure) and fnmatch.fnmatchcase(part.name, named or pattern):
            return _on(part, ax, panel)
        parts.append(part)
    raise AttlasError(f"{context.store.path}: does not give {named or name}: {_why(parts)}")


def _why(parts: Sequence[Any]) -> str:
    """What the report would say instead."""
    from .report.text.markup import plain

    reasons = [plain(part.reason) for part in parts if hasattr(part, "reason")]
    return " ".join(reasons) or "it holds nothing of it"


def _on(figure: Figure, ax: Any, panel: str) -> Any:
    """One plot of a figure, on Axes with the user's settings, or on new ones with the report's."""
    from .report.plots.style import NARROW, WIDE, style

    titles = [getattr(plot, "title", "") for plot in figure.plots]
    panel = arguments.text(panel, "panel")
    if panel and panel not in titles:
        near = difflib.get_close_matches(panel, titles, n=1)
        hint = f"did you mean {near[0]}? there" if near else "there"
        raise UsageError(f"panel {panel}: {hint} are {', '.join(filter(None, titles)) or 'none'}")
    plot = figure.plots[titles.index(panel) if panel else 0]
    if ax is not None:
        plot.draw(_checked(ax))
        return ax
    width = WIDE if plot.sheet and figure.wide else NARROW
    with style():
        ax = _axes(width, plot.height(width), sheet=plot.sheet)
        plot.draw(ax)
    return ax


def _checked(ax: Any) -> Any:
    if not hasattr(ax, "get_figure"):
        raise UsageError(f"ax: pass matplotlib's Axes, not {arguments.brief(ax)}")
    return ax


def _axes(width: float, height: float, *, sheet: bool) -> Any:
    """New Axes in a figure that a notebook shows; a sheet fills it."""
    import matplotlib.pyplot as plt

    if sheet:
        return plt.figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    return plt.subplots(figsize=(width, height), layout="constrained")[1]
