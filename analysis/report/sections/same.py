"""The same pictures through several stores, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ....engine.plan import spread
from ..images import MAPS, Example, example, map_of
from ..numbers import Floats
from ..plots.pictures import Column, Pictures, Row
from .base import Context, Figure, extent

__all__ = ["same_pictures"]

Images = npt.NDArray[np.int64]


def same_pictures(contexts: Sequence[Context], chosen: Sequence[Images]) -> Iterator[Figure]:
    """The same pictures through every store, one figure for each kind of map that all of them can give."""
    first = contexts[0]
    sample = np.flatnonzero(np.isin(chosen[0], first.store.plan.sample) | (first.images is not None))
    at = [int(sample[i]) for i in spread(len(sample), first.examples)] if sample.size else []
    if not at:
        return
    own = [
        [example(context.store, int(index[i]), first.images) for i in at]
        for context, index in zip(contexts, chosen, strict=True)
    ]
    titles = []
    for examples in zip(*own, strict=True):
        said = [
            f"{c.facts.label}: {one.predicted} ({one.probability:.2f})"
            for c, one in zip(contexts, examples, strict=True)
            if one.predicted
        ]
        known = [f"label {examples[0].truth}"] if examples[0].truth else []
        titles.append(" · ".join(said + known) or examples[0].path)
    for kind in MAPS:
        maps = [[map_of(c.store, one.image, kind) for one in row] for c, row in zip(contexts, own, strict=True)]
        found = [[values for values in row if values is not None] for row in maps]
        if all(len(row) == len(at) for row in found):
            yield _one_kind(contexts, kind, titles, own, found)


def _one_kind(
    contexts: Sequence[Context],
    kind: str,
    titles: Sequence[str],
    own: Sequence[Sequence[Example]],
    maps: Sequence[Sequence[Floats]],
) -> Figure:
    """A row for each picture, a column for each store, whose map lies over the crop that it saw."""
    how, facts = MAPS[kind], [context.facts for context in contexts]
    labels, paths = [one.label for one in facts], [one.path for one in own[0]]
    rows = [
        Row(
            title,
            own[0][at].pixels,
            tuple(row[at] for row in maps),
            tuple(row[at].pixels if row[at].pixels is not None else own[0][at].pixels for row in own),
        )
        for at, title in enumerate(titles)
    ]
    columns = [Column(f"{f.label}{'\n(baseline)' if f.baseline else ''}", how.unit, how.root) for f in facts]
    unit = "uniform attention" if kind == "attention" else "their mean over patches"
    title = how.heading.partition(",")[0]
    return Figure(
        name=f"compare_{kind}",
        title=f"The same pictures: {title}",
        caption=f"{len(paths)} images that all stores share, evenly spread over the sample of {labels[0]} by order "
        f"alone; above each what every model said of it. Maps are divided by {unit}; each has its own scale, from 0 to "
        "its maximum, which is printed on it. Recipes may crop differently. n = 1 image each.",
        alt=f"{len(paths)} pictures with the {title} of {len(facts)} stores: {'; '.join(titles)}.",
        plots=[Pictures(rows, columns, extent(contexts[0].store), first=f"input of\n{labels[0]}")],
        columns=("path", "store", "y", "x", "times_uniform"),
        rows=[
            (path, label, *cell, float(value))
            for at, path in enumerate(paths)
            for label, row in zip(labels, maps, strict=True)
            for cell, value in np.ndenumerate(row[at])
        ],
        methods=(how.method,),
    )
