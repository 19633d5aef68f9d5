"""How well maps find the boxes of objects: the pointing game, and the mass inside.

On patches, as for masks (`segmentation`); an image's score is the mean over its objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.storage import Url
from ...engine.store.store import ArraySpec, Store, Template
from ..formulas.boxes import box_mass, pointing_hit
from ..objects import Objects
from ..statistics.clusters import cluster_codes, cluster_of, said
from ..statistics.inference import EQUAL, METHOD
from ..statistics.summary import spec_of
from .maps import Chosen
from .segmentation import Scores, stored, summed

__all__ = ["SCORES", "Localisation", "localise"]

type Floats = npt.NDArray[np.float64]

SCORES = ("pointing", "energy")


@dataclass(frozen=True, slots=True)
class Localisation(Scores):
    """By boxes; `objects`: in these images."""

    objects: int


def localise(where: Path | Url, second: str, maps: Sequence[Chosen], found: Sequence[Objects]) -> Localisation:
    """Score maps by the objects' boxes, and write rows per image, means, intervals and paired differences.

    Args:
        where: of the store.
        second: path or URL of the second store, or "".
        maps: with rows in it.
        found: objects of its images, as of `objects.find`.
    """
    store = Store(where, writable=True)
    other = Store(second) if second else store
    _lay_out(store, maps)
    rows = np.full((store.plan.images, len(maps), len(SCORES)), np.nan, np.float32)
    units = defaultdict[int, list[Objects]](list)
    for one in found:
        units[one.image // store.plan.unit].append(one)
    done = np.unique(np.flatnonzero(store.done_images) // store.plan.unit)
    for k in done.tolist():  # none keeps those of other boxes
        images, marked = store.plan.unit_range(k), units.get(k, ())
        for place, chosen in enumerate(maps):
            values = chosen.read(other if chosen.other else store, images) if marked else rows[:0]
            for one in marked:
                if np.isfinite(own := values[one.image - images.start]).all():
                    rows[one.image, place] = _scores(own, one)
            store.write(f"localisation.{chosen.name}", images.start, rows[images.start : images.stop, place])
    return _summed(store, [one.name for one in maps], rows, {one.image: len(one.boxes) for one in found})


def _scores(values: Floats, one: Objects) -> Floats:
    scores = [[float(pointing_hit(values, cover)), float(box_mass(values, cover))] for cover in one.covers]
    return np.asarray(np.mean(scores, axis=0))


def _lay_out(store: Store, maps: Sequence[Chosen]) -> None:
    """The arrays of rows; those of other boxes are made anew."""
    words = {"long_name": "scores of the map by the boxes of objects", "units": "1"}
    store.add(
        [
            ArraySpec.from_template(
                Template(
                    f"localisation.{one.name}",
                    ("image", "localisation_figure"),
                    (len(SCORES),),
                    "float32",
                    np.nan,
                    {**words, "map": one.name, **one.attrs},
                ),
                store.plan,
            )
            for one in maps
            if f"localisation.{one.name}" not in store
        ]
    )


def _summed(store: Store, names: Sequence[str], rows: Any, objects: dict[int, int]) -> Localisation:
    whole = np.flatnonzero(~np.isnan(rows).any(axis=(1, 2)))
    column = cluster_of(store)
    codes = cluster_codes([store], [whole], column)
    sums = summed(rows[whole].astype(np.float64), codes)
    count = sum(objects[int(image)] for image in whole)
    found = Localisation(tuple(names), len(whole), *sums, objects=count)
    attrs = {"images": found.images, "objects": found.objects}
    arrays = stored("localisation", found, SCORES, attrs, {"method": METHOD + EQUAL, **said(column, codes)})
    store.add([spec_of(name, one) for name, one in arrays.items()], {name: one.values for name, one in arrays.items()})
    return found
