"""Overlays of a whole dataset: a file for each image, from a store, with memory that does not grow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from ...engine.runtime.providers import cores
from ...engine.store.storage import locate
from ...engine.store.store import Store
from ...errors import AttlasError, UsageError
from ...files import appearing
from ...progress import Show, shows
from ..formulas import mass_mask
from ..originals import folder_of
from ..report.plots.overlay import Look, blended, colours_of
from ..statistic import INPUTS, Statistic
from .maps import SHARE, Choice, Layers, check_choice, mean_of, named
from .subject import Subject, of_batch
from .views import Request, hard, views_of

__all__ = ["overlays"]

LONGEST = 220  # bytes, of 255: `.png`, and what `appearing` puts around it, come on top


@shows("images")
def overlays(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    maps: tuple[str, ...] = (),
    layer: Layers = None,
    threshold: float | None = None,
    style: Look = "overlay",
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Show[int, int] = None,
) -> int:
    """Write one map of every image of a store over its picture: `folder`/PATH.png, as large as the crop.

    Each map has a scale of its own, from 0 to its maximum; of maps with heads their mean is taken.

    Args:
        path: of the store.
        folder: for the overlays; the paths of the images are kept below it.
        maps: one name of the catalog; the readout of the last layer by default.
        layer: the block, for maps that have layers.
        threshold: show the picture dark outside of the fewest patches that hold this share of the map.
        style: `overlay`, or `side` for the map's own colours without the picture.
        images: the run's folder of images; without it only the store's sample has pictures.
        overwrite: write into a folder that holds files.
        progress: True shows a bar; a function is called with (done, total) after each batch.

    Returns:
        How many were written.

    Raises:
        UsageError: more than one map is named, the folder holds files, or no picture is at hand.
        AttlasError: the store did not keep what the map needs, or a file cannot be written.
    """
    store, folder = Store(locate(path)), Path(folder)
    if len(maps) > 1 or layer == "all":
        raise UsageError("--all: writes one map of each image; name one --map, and one --layer")
    request = Request(Choice(layer), tuple(named(name) for name in maps), threshold=threshold, look=style)
    check_choice(request.maps, request.choice)
    _check(store, folder, images, overwrite)
    say = progress if callable(progress) else (lambda _done, _total: None)
    only = set(store.plan.sample) if images is None else None
    batches = [batch for batch in store.batches() if only is None or only & set(batch)]
    total, done, written = sum(map(len, batches)), 0, 0
    with ThreadPoolExecutor(cores()) as pool:
        for batch, subjects in zip(batches, _read(store, batches, request, images), strict=True):
            list(pool.map(lambda one: _write(one, request, folder), subjects))
            written, done = written + len(subjects), done + len(batch)
            say(done, total)
    return written


def _check(store: Store, folder: Path, images: str | os.PathLike[str] | None, overwrite: bool) -> None:
    """Refuse what would mix with other files, or could not show a picture."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; overlays need a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder}: holds files; choose another folder, or --overwrite")
    folder_of(images)
    if images is None and len(store.plan.sample) < store.plan.images:
        raise UsageError(
            f"{store.path}: holds the pictures of {len(store.plan.sample)} of its {store.plan.images} images; "
            "give the run's folder with --images"
        )


def _read(store: Store, batches: list[range], request: Request, images: Any) -> Iterator[list[Subject]]:
    """The pictures of each batch, with the arrays that the map needs."""
    names = {one.name for one in request.maps} | {INPUTS[name] for one in request.maps for name in one.needs}
    names |= {"gradient"} if any(set(one.needs) & {"weighted", "positive"} for one in request.maps) else set()
    if all(_whole(store, one) for one in request.maps) and request.maps:
        names = {one.name for one in request.maps}
    for batch in batches:
        pictures = of_batch(store, batch, names, None if images is None else Path(images))
        yield [one for one in pictures if one.pixels is not None]


def _whole(store: Store, one: Statistic) -> bool:
    """Whether a store holds a map's rows."""
    return one.follows and one.name in store


def _write(one: Subject, request: Request, folder: Path) -> None:
    """One overlay; it appears when it is whole."""
    views = views_of(one, request)
    values = mean_of(views)
    mask = None if request.threshold is None else mass_mask(values, request.threshold)
    values = hard(one, values) if views[0].unit == SHARE else values
    scale = colours_of(values, root=views[0].root)
    assert one.pixels is not None
    ground = one.pixels if request.look == "overlay" else np.full_like(one.pixels, 255)
    made = blended(ground, values, scale, mask=mask, opacity=0.8 if request.look == "overlay" else 1.0)
    path = folder / one.name.replace("::", "/").lstrip("/")
    path = path.with_name(_fitting(path.name))
    if ".." in path.relative_to(folder).parts:
        raise AttlasError(f"{one.name}: leads out of {folder}")
    with appearing(path, among=True) as beside:
        imsave(beside, made, format="png")


def _fitting(name: str) -> str:
    """The overlay's file by its image's, shortened where a file system would not take it, and still unlike others."""
    whole = name.encode(errors="replace")
    if len(whole) <= LONGEST:
        return f"{name}.png"
    return f"{whole[: LONGEST - 13].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:12]}.png"
