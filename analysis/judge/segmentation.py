"""How well maps find objects that people have outlined, by the protocol of Chefer, Gur & Wolf 2021 (arXiv 2012.09838).

The map is enlarged to the crop bilinearly. Above its own mean it says object, elsewhere background. Of these two
classes pixel accuracy and mean IoU are taken over the dataset's pixels, and average precision of each image; the
pointing game and the mass inside are taken on patches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.runtime.decode import DecodeError, decode_mask
from ...engine.store.store import Store, Template
from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec
from ..formulas.boxes import box_mass, pointing_hit
from ..statistics.clusters import Codes, cluster_codes, cluster_of, said
from ..statistics.inference import EQUAL, METHOD, apart, interval
from ..statistics.moments import Moments
from ..statistics.summary import Source, Summed, spec_of, texts
from .maps import Chosen
from .work import once, opened

__all__ = [
    "COUNTS",
    "SCORES",
    "Scores",
    "Segmentation",
    "check_masks",
    "counted",
    "rows_of",
    "segment_unit",
    "stored",
    "sum_up",
    "summed",
]

type Floats = npt.NDArray[np.float64]
type Mask = npt.NDArray[np.bool_]

# What is kept of an image and a map: shares of the crop's pixels, and three scores.
COUNTS = (
    "correct",
    "intersection_background",
    "union_background",
    "intersection_object",
    "union_object",
    "average_precision",
    "pointing",
    "energy",
)
SCORES = ("pixel_accuracy", "mean_iou", "average_precision", "pointing", "energy")


@dataclass(frozen=True, slots=True)
class Scores:
    """How well maps find objects, as the store holds it.

    Attributes:
        maps: their names.
        images: that show an object, and whose maps are all finite.
        mean: (map, figure), as in the module's `SCORES`; `bounds`: (bound, map, figure), 95 %.
        difference: (map, other, figure), paired; `difference_bounds`: (bound, map, other, figure).
    """

    maps: tuple[str, ...]
    images: int
    mean: Floats
    bounds: Floats
    difference: Floats
    difference_bounds: Floats


class Segmentation(Scores):
    """By masks, which have an object in the crop."""


def counted(values: npt.NDArray[Any], inside: Mask, spec: GraphSpec) -> Floats:
    """The numbers of `COUNTS` of one map (y, x) and the mask of an object (row, column)."""
    whole = enlarged(values, inside.shape)
    found = whole > whole.mean()
    low, high = whole.min(), whole.max()
    certain = (whole - low) / (high - low) if high > low else np.zeros_like(whole)
    both, neither = (found & inside).mean(), (~found & ~inside).mean()
    precision = average_precision(
        np.concatenate([1 - certain.ravel(), certain.ravel()]), np.concatenate([~inside.ravel(), inside.ravel()])
    )
    covered = _cover(inside, spec).tolist()
    hit, mass = (float(np.asarray(score(np.asarray(values), covered))) for score in (pointing_hit, box_mass))
    ious = (neither, (~found | ~inside).mean(), both, (found | inside).mean())
    return np.array([both + neither, *ious, precision, hit, mass])


def enlarged(values: npt.NDArray[Any], size: tuple[int, ...]) -> Floats:
    """A map (y, x) on `size` pixels, bilinearly between the patches' middles."""
    down, across = (_weights(n, m) for n, m in zip(size, np.shape(values), strict=True))
    return np.asarray(down @ np.asarray(values, np.float64) @ across.T)


@functools.lru_cache(maxsize=8)
def _weights(pixels: int, patches: int) -> Floats:
    """(pixel, patch), rows that sum to 1."""
    place = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, patches - 1)
    low = np.minimum(place.astype(int), max(patches - 2, 0))
    found = np.zeros((pixels, patches))
    at = np.arange(pixels)
    found[at, low] = 1 - (place - low)
    found[at, np.minimum(low + 1, patches - 1)] += place - low
    return found


def average_precision(certain: Floats, true: Mask) -> float:
    """Area under precision by recall, in steps over distinct values: sum of (R_n - R_n-1) P_n; 0 without a true one."""
    order = np.argsort(-certain, kind="stable")
    last = np.flatnonzero(np.append(np.diff(certain[order]) != 0, True))
    hits = np.cumsum(true[order])[last]
    if not hits[-1]:
        return 0.0
    return float((np.diff(np.concatenate([[0], hits])) * hits / (last + 1)).sum() / hits[-1])


def _cover(inside: Mask, spec: GraphSpec) -> Floats:
    """Share of each patch inside the mask, (y, x)."""
    (height, width), (rows, columns) = spec.patch_size, spec.grid
    part = inside[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return np.asarray(part.mean(axis=(1, 3)))


# -- masks ------------------------------------------------------------------------------------------------------------


def check_masks(store: Store, folder: Path, usable: Mask) -> None:
    """Refuse a folder that lacks the mask of a valid image, or has one for images of several folders.

    Raises:
        UsageError: there is no such folder.
        AttlasError: a mask is missing, or whose it is cannot be told.
    """
    if not folder.is_dir():
        raise UsageError(f"--masks {folder}: there is no such folder")
    paths = [str(path) for path in store.read("path")[usable]]
    missing = [path for path in paths if _mask_file(folder, path) is None]
    if missing:
        named = PurePosixPath(missing[0]).with_suffix(".png")
        raise AttlasError(
            f"{folder}: lacks the masks of {len(missing):,} of {len(paths):,} images (the first: {named}); a mask is a "
            "PNG of the image's name"
        )
    owners: dict[Path, str] = {}
    for path in paths:
        file = _mask_file(folder, path)
        assert file is not None
        other = owners.setdefault(file, path)
        if PurePosixPath(other).parent != PurePosixPath(path).parent:
            raise AttlasError(
                f"{file}: would be the mask of {other} and of {path}; put masks into folders as the images"
            )


def _mask_file(folder: Path, path: str) -> Path | None:
    """`class/name.png`, or `name.png`."""
    named = PurePosixPath(path).with_suffix(".png")
    return next((file for file in (folder / named, folder / named.name) if file.is_file()), None)


def _read_mask(store: Store, folder: Path, image: int) -> Mask:
    file = _mask_file(folder, str(store.read("path", image)))
    assert file is not None
    known = (int(store.read("height", image)), int(store.read("width", image)))
    try:
        inside, size = decode_mask(file.read_bytes(), store.spec.recipe, known)
    except (OSError, DecodeError) as error:
        raise AttlasError(f"{file}: cannot be read as a mask ({error})") from None
    if size not in (known, store.spec.recipe.crop):
        raise AttlasError(f"{file}: has {size[1]}x{size[0]} pixels, its image {known[1]}x{known[0]}; make them equal")
    return inside


# -- units and the dataset --------------------------------------------------------------------------------------------


def rows_of(chosen: Chosen) -> Template:
    """The array of one map's rows."""
    attrs = {"long_name": "counts and scores of the map as a segmentation", "units": "1", "map": chosen.name}
    dims = ("image", "segmentation_count")
    return Template(f"segmentation.{chosen.name}", dims, (len(COUNTS),), "float32", np.nan, attrs | chosen.attrs)


def segment_unit(
    where: tuple[str, str, str], folder: str, maps: Sequence[Chosen], k: int, valid: Mask, wanted: Sequence[str]
) -> int:
    """Write the rows of one unit; returns its number of images.

    Args:
        where: path of the store, of the second store or "", and the call's own name.
        folder: of the masks.
        maps: without formulas; `wanted` are the names of those that lack rows.
        k: the unit.
        valid: its images that could be read.
        wanted: names of maps.
    """
    store = once(opened, where[0], where[2])
    other = once(opened, where[1], where[2]) if where[1] else store
    images = store.plan.unit_range(k)
    masks = {i: _read_mask(store, Path(folder), images[i]) for i in np.flatnonzero(valid)}
    for chosen in (one for one in maps if one.name in wanted):
        values = chosen.read(other if chosen.other else store, images)
        rows = np.full((len(images), len(COUNTS)), np.nan, np.float32)
        for i, inside in masks.items():
            if inside.any() and np.isfinite(values[i]).all():  # an object that the crop has cut off is found by none
                rows[i] = counted(values[i], inside, store.spec)
        store.write(f"segmentation.{chosen.name}", images.start, rows)
    return len(images)


def sum_up(source: Source, maps: Sequence[Chosen]) -> Segmentation:
    """Means, intervals and paired differences of these maps, written into the store, all at once."""
    store = Store(source.store.path, writable=True)
    names = [one.name for one in maps]
    rows = np.stack([store.read(f"segmentation.{name}")[source.mask] for name in names], axis=1).astype(np.float64)
    whole = ~np.isnan(rows).any(axis=(1, 2))
    rows, column = rows[whole], cluster_of(store)
    codes = cluster_codes([store], [np.flatnonzero(source.mask)[whole]], column)
    found = Segmentation(tuple(names), len(rows), *summed(_values(rows), codes))
    _write(store, found, {"method": METHOD + EQUAL, **said(column, codes)})
    return found


def summed(values: Floats, codes: Codes | None) -> tuple[Floats, Floats, Floats, Floats]:
    """Of (image, map, figure), all shares: means, intervals, and both of the paired differences, as in `Scores`.

    `codes` are the images' clusters. Of a map of both signs the energy may be no share; then its range is not known.
    """
    maps, figures = values.shape[1:]
    mean = Moments.of(values).average
    share = (mean >= 0) & (mean <= 1)
    least, most = np.where(share, 0, -np.inf), np.where(share, 1, np.inf)
    one, two = np.triu_indices(maps, 1)
    difference, edges = np.zeros((maps, maps, figures)), np.zeros((2, maps, maps, figures))
    off = values[:, one] - values[:, two]
    ends = apart((least[one], most[one]), (least[two], most[two]))
    bounds = np.stack(interval(off, clusters=codes, within=ends))
    difference[one, two] = Moments.of(off).average
    difference[two, one] = -difference[one, two]
    edges[:, one, two], edges[:, two, one] = bounds, -bounds[::-1]
    return mean, np.stack(interval(values, clusters=codes, within=(least, most))), difference, edges


def _values(rows: Floats) -> Floats:
    """(image, map, count) to (image, map, figure) whose means over images are the dataset's figures.

    An IoU of the dataset is a ratio of two sums over images. An image's value is what it adds to the ratio, linearised,
    so that the interval of the mean is that of the ratio.
    """
    ious = []
    for kind in ("background", "object"):
        inter, union = (rows[..., COUNTS.index(f"{what}_{kind}")] for what in ("intersection", "union"))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = inter.sum(axis=0) / union.sum(axis=0)
            ious.append(ratio + (inter - ratio * union) / union.mean(axis=0) if len(rows) else inter)
    plain = [rows[..., COUNTS.index(name)] for name in ("correct", "average_precision", "pointing", "energy")]
    return np.stack([plain[0], (ious[0] + ious[1]) / 2, *plain[1:]], axis=-1)


def stored(
    kind: str, found: Scores, figures: Sequence[str], attrs: dict[str, Any], drawn: dict[str, Any]
) -> dict[str, Summed]:
    """The arrays of scores, by names that begin with `kind`; intervals also have the attributes `drawn`."""
    dims, pairs = (f"{kind}_map", f"{kind}_figure"), (f"{kind}_map", f"{kind}_other", f"{kind}_figure")
    return {
        f"{kind}_map": Summed((f"{kind}_map",), texts(found.maps), {}),
        f"{kind}_figure": Summed((f"{kind}_figure",), texts(figures), {}),
        f"{kind}_mean": Summed(dims, found.mean, attrs),
        f"{kind}_interval": Summed(("bound", *dims), found.bounds, {**attrs, **drawn}),
        f"{kind}_difference": Summed(pairs, found.difference, attrs),
        f"{kind}_difference_interval": Summed(("bound", *pairs), found.difference_bounds, {**attrs, **drawn}),
    }


def _write(store: Store, found: Segmentation, drawn: dict[str, Any]) -> None:
    arrays = {
        "segmentation_count": Summed(("segmentation_count",), texts(COUNTS), {}),
        **stored("segmentation", found, SCORES, {"images": found.images}, drawn),
    }
    store.add([spec_of(name, one) for name, one in arrays.items()], {name: one.values for name, one in arrays.items()})
