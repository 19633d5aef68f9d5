"""Sources of images: `open_source` finds out what IMAGES is and opens it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
    "source_of",
]

# Files that hold images: one, several that a pattern names, or those of a folder. A new kind is one more.
ARCHIVES: dict[str, Callable[[str, Sequence[str]], Source]] = {".tar": Shards.scan, ".parquet": parquet.Parquet.scan}
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")


def open_source(images: str | os.PathLike[str]) -> Source:
    """List the images at a local path, or at a URL that fsspec supports.

    A folder contains images; if it has none, its `.tar` or `.parquet` files are used. A `.tar` file contains images,
    and so does a `.parquet` file with a column of images. Any other table (`.csv`, `.tsv`, `.jsonl`, `.ndjson` or
    `.parquet`) lists paths of images in its column `path`. A pattern such as `train-{000..127}.tar` or
    `'train-*.parquet'` stands for several such files.

    Raises:
        AttlasError: it has another form, cannot be read, or contains no image.
    """
    path = files.expanded(images)
    if not path:
        raise UsageError("IMAGES is empty; name a folder, a table or an archive of images")
    try:
        return _open(path)
    except OSError as error:
        raise AttlasError(f"{path}: cannot be listed or read ({error.strerror or error})") from None


def source_of(images: str | os.PathLike[str] | Source) -> Source:
    """The images at a path or URL, or a source as it is.

    Raises:
        UsageError: it is neither.
        AttlasError: as for `open_source`.
    """
    if isinstance(images, str | os.PathLike):
        return open_source(images)
    wanted = ("name", "items", "read", "others", "reads_ahead", "subset")
    missing = [name for name in wanted if not hasattr(images, name)]
    if isinstance(images, list | tuple):
        raise UsageError(
            f"images: a {type(images).__name__} is no source; write its paths into a table, a .csv with the column "
            "path, and pass the table's path"
        )
    if missing:
        raise UsageError(
            f"images: {type(images).__name__} is no path, and no source, since it has no {', '.join(missing)}; derive "
            "one from attlas.engine.sources.BaseSource"
        )
    return images


def _open(path: str) -> Source:
    several = any(mark in path for mark in "{*?") and not _exists(path)
    found = files.expand(path) if several else [path]
    if not found:
        raise AttlasError(f"{path}: no file has such a name")
    _refuse_other(path)
    if not several and _is_folder(path):
        return _folder(path)
    kinds = {os.path.splitext(one)[1].lower() for one in found}  # noqa: PTH122
    name = files.name_of(path)
    if len(kinds) == 1 and kinds <= ARCHIVES.keys() and (several or kinds != {".parquet"} or _is_image_table(path)):
        return ARCHIVES[kinds.pop()](name, found)
    if path.lower().endswith(PACKED):
        if not (several or _exists(path)):
            raise AttlasError(f"{path}: there is no such file")
        raise AttlasError(
            f"{path}: is compressed, so that no image can be read by its offset; unpack it (`gunzip`, `unzip`)"
        )
    if several:
        raise AttlasError(f"{path}: a pattern names {' or '.join(ARCHIVES)} files; it names {', '.join(sorted(kinds))}")
    if kinds <= TABLES.keys():
        return Manifest.scan(path)
    return Folder.scan(path)


def _folder(path: str) -> Source:
    """A folder of images; if it has none, of archives or tables."""
    found = Folder.look(path)
    if found.items:
        return found
    names = sorted(name for name in _names(path) if not is_hidden(name))
    held = {end: [files.join(path, n) for n in names if n.lower().endswith(end)] for end in ARCHIVES}
    held = {end: those for end, those in held.items() if those}
    if len(held) > 1:
        raise AttlasError(
            f"{path}: holds {' and '.join(held)} files; say which with a pattern, "
            f"'{files.join(path, f'**/*{next(iter(held))}')}'"
        )
    for end, those in held.items():
        return ARCHIVES[end](found.name, those)
    return Folder.scan(path)


def _names(folder: str) -> Iterator[str]:
    """The files of a folder, at any depth, by their paths in it."""
    if files.is_url(folder):
        yield from (key for key, _, _ in remote.listing(folder))
        return
    for where, _, names in os.walk(folder):
        inner = os.path.relpath(where, folder)
        yield from names if inner == os.curdir else (f"{Path(inner).as_posix()}/{name}" for name in names)


def _refuse_other(path: str) -> None:
    """Refuse IMAGES that is a graph or a store, which are other arguments of `run`."""
    if path.lower().endswith(".onnx"):
        what = "is a graph, not images"
    elif path.rstrip("/").lower().endswith(".zarr") and _exists(files.join(path, "zarr.json")):
        what = "is an attention store, not images"
    else:
        return
    raise UsageError(
        f"{path}: {what}; the order is GRAPH.onnx IMAGES, as in `attlas run GRAPH.onnx IMAGES -o STORE.zarr`"
    )


def _is_image_table(path: str) -> bool:
    return _exists(path) and parquet.image_column(path) is not None


def _exists(path: str) -> bool:
    return remote.exists(path) if files.is_url(path) else os.path.lexists(path)


def _is_folder(path: str) -> bool:
    if not files.is_url(path):
        return os.path.isdir(path)  # noqa: PTH112
    # A bucket has no folders, only common prefixes: anything that does not look like a file is listed.
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    return suffix not in ARCHIVES and suffix not in TABLES
