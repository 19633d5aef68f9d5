"""Where images come from: what IMAGES is, decided by looking at it."""

from __future__ import annotations

import os

from ...errors import AttlasError, UsageError
from . import files, parquet, remote
from .folder import Folder
from .items import SUFFIXES, BaseSource, ChangedError, Item, Items, Source, is_hidden
from .manifest import SUFFIXES as TABLES
from .manifest import Manifest
from .shards import Shards

__all__ = [
    "SUFFIXES",
    "BaseSource",
    "ChangedError",
    "Folder",
    "Item",
    "Items",
    "Manifest",
    "Shards",
    "Source",
    "open_source",
]

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")


def open_source(images: str | os.PathLike[str]) -> Source:
    """List the images at a place of this machine, or at a URL that fsspec reaches.

    A folder holds images; where it holds none, the `.tar` or `.parquet` files in it do. A `.tar` file holds images, a
    `.parquet` file does where it has a column of them; any other table, `.csv`, `.tsv`, `.jsonl`, `.ndjson` or
    `.parquet`, names them in its column `path`. A pattern, `train-{000..127}.tar` or `'train-*.parquet'`, is several
    such files.

    Raises:
        AttlasError: it is none of these, cannot be read, or holds no image.
    """
    place = files.place(images)
    try:
        return _open(place)
    except OSError as error:
        raise AttlasError(f"{place}: cannot be listed or read ({error.strerror or error})") from None


def _open(place: str) -> Source:
    several = any(mark in place for mark in "{*?") and not _exists(place)
    found = files.expand(place) if several else [place]
    if not found:
        raise AttlasError(f"{place}: no file has such a name")
    _refuse_other(place)
    if not several and _is_folder(place):
        return _folder(place)
    kinds = {os.path.splitext(one)[1].lower() for one in found}  # noqa: PTH122
    name = files.name_of(place)
    if kinds == {".tar"}:
        return Shards.scan(name, found)
    if place.lower().endswith(PACKED):
        if not (several or _exists(place)):
            raise AttlasError(f"{place}: there is no such file")
        raise AttlasError(
            f"{place}: is compressed, so that no image can be read by its offset; unpack it (`gunzip`, `unzip`)"
        )
    if kinds == {".parquet"} and (several or _is_image_table(place)):
        return parquet.Parquet.scan(name, found)
    if several:
        raise AttlasError(f"{place}: a pattern names .tar or .parquet files; it names {', '.join(sorted(kinds))}")
    if kinds <= TABLES.keys():
        return Manifest.scan(place)
    return Folder.scan(place)


def _folder(place: str) -> Source:
    """A folder of images; where it holds none, of archives or tables."""
    found = Folder.look(place)
    if found.items:
        return found
    names = sorted(key for key, _, _ in remote.listing(place)) if files.is_url(place) else sorted(os.listdir(place))  # noqa: PTH208
    names = [name for name in names if not is_hidden(name)]
    tars, tables = ([files.join(place, n) for n in names if n.lower().endswith(end)] for end in (".tar", ".parquet"))
    if tars and tables:
        raise AttlasError(f"{place}: holds .tar and .parquet files; say which with a pattern, '{place}/*.tar'")
    if tars:
        return Shards.scan(found.name, tars)
    return parquet.Parquet.scan(found.name, tables) if tables else Folder.scan(place)


def _refuse_other(place: str) -> None:
    """Say so where IMAGES is what another argument of `run` takes."""
    if place.lower().endswith(".onnx"):
        what = "is a graph, not images"
    elif place.rstrip("/").lower().endswith(".zarr") and _exists(files.join(place, "zarr.json")):
        what = "is an attention store, not images"
    else:
        return
    raise UsageError(f"{place}: {what}; the order is `attlas run GRAPH.onnx IMAGES -o STORE.zarr`")


def _is_image_table(place: str) -> bool:
    return _exists(place) and parquet.image_column(place) is not None


def _exists(place: str) -> bool:
    return remote.exists(place) if files.is_url(place) else os.path.lexists(place)


def _is_folder(place: str) -> bool:
    if not files.is_url(place):
        return os.path.isdir(place)  # noqa: PTH112
    # Folders are no more than common beginnings in a bucket: what is no file is listed.
    suffix = os.path.splitext(place)[1].lower()  # noqa: PTH122
    return suffix != ".tar" and suffix not in TABLES
