"""Images in tar archives, as plain trees or by WebDataset's convention, read without unpacking."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from ...files import from_json
from . import files, remote
from .columns import Columns
from .files import Stamp
from .items import HIDDEN, BaseSource, ChangedError, Item, Items, is_hidden, is_image, label_of, repeated, text
from .tarfiles import BrokenError, Member, members

__all__ = ["Shards"]

# If a sample has several images, the one with the first of these suffixes is its own, as in WebDataset's "jpg;png;...".
ORDER = ("jpg", "jpeg", "png", "webp")
# In compound suffixes, such as `0001.seg.png`, these words mean that the file describes the image.
ABOUT = frozenset(
    {
        "seg",
        "segmentation",
        "mask",
        "masks",
        "matte",
        "alpha",
        "depth",
        "disparity",
        "flow",
        "normal",
        "normals",
        "edge",
        "edges",
        "canny",
        "semantic",
        "instance",
        "panoptic",
        "annotation",
        "label",
        "labels",
        "gt",
        "heatmap",
        "saliency",
        "thumb",
        "thumbnail",
    }
)
NOT_OWN = "images beside a sample's own (such as NAME.seg.png)"
# Suffixes of a sample's metadata (`0001.cls`, `0001.json`, `0001.txt` for `0001.jpg`), with limits in bytes.
BESIDE = {"cls": 4096, "json": 2**20, "txt": 2**18}
SCANS = 16  # remote archives that are scanned at once: each mostly waits
_SPLIT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)  # WebDataset's rule: the name up to its first dot


@dataclass(frozen=True, eq=False)
class Shards(BaseSource):
    """The images of one or several tar archives, in the order of the archives and their members.

    A key is the member's name; with several archives, it starts with the archive's name as a folder. Members with the
    same name up to the first dot are a sample. Its label is the text of its `.cls`, else `label` in its `.json`, else
    it is taken from the image's path as in a folder (without a top folder that all share). Scalars of the `.json` and
    the text of a `.txt` are columns. A sample has one image, with only an image suffix: not `0001.seg.png`.

    Attributes:
        name: name of the archive, or of the folder or pattern of several archives.
        shards: path or URL of each archive; `stamps`: the stamp of each archive when it was listed.
        shard: (image) int32, index of the archive; `offset`: (image) int64, bytes from its start.
    """

    name: str
    shards: Sequence[str]
    stamps: Sequence[Stamp]
    items: Items
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    others: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def scan(cls, name: str, shards: Sequence[str]) -> Shards:
        """Read every header once.

        Raises:
            AttlasError: an archive is missing, not a tar archive, compressed or broken; a name is repeated; no image.
        """
        several = len(shards) > 1
        with ThreadPoolExecutor(SCANS if files.is_url(shards[0]) else 1) as pool:
            scans = list(pool.map(lambda path: _scan(path, len(shards)), shards))
        others: dict[str, int] = {}
        columns = Columns()
        for scan in scans:
            columns.extend(scan.columns)
            for reason, count in scan.others.items():
                others[reason] = others.get(reason, 0) + count
        if columns.skipped:
            others["values of samples that are no plain text or number"] = sum(columns.skipped.values())
        names = [member for scan in scans for member in scan.names]
        if not names:
            seen = ", ".join(f"{n} {why}" for why, n in sorted(others.items())) or "nothing at all"
            raise AttlasError(f"{shards[0]}{' and the others' if several else ''}: no images found ({seen})")
        labels = _labels(names, [label for scan in scans for label in scan.labels])
        if several:
            folders = files.names_of(shards)
            names = [f"{folder}/{m}" for folder, scan in zip(folders, scans, strict=True) for m in scan.names]
        keys = text(names)
        twice = repeated(keys)
        if twice is not None:
            raise AttlasError(f"{name}: holds {keys[twice[0]]} twice; a name must lead to one image")
        sizes, mtimes, offsets = (
            np.concatenate([np.frombuffer(getattr(s, part), np.int64) for s in scans])
            for part in ("sizes", "mtimes", "offsets")
        )
        which = np.repeat(np.arange(len(scans), dtype=np.int32), [len(s.names) for s in scans])
        items = Items.make(keys, labels, sizes, mtimes, columns.arrays())
        return cls(name, tuple(shards), tuple(s.stamp for s in scans), items, which, offsets, others)

    def subset(self, indices: npt.NDArray[np.int64]) -> Shards:
        """See `Source`."""
        return dataclasses.replace(
            self, items=self.items.take(indices).alone(), shard=self.shard[indices], offset=self.offset[indices]
        )

    def read(self, item: Item) -> bytes:
        """A member's bytes; each thread keeps its archive open."""
        shard = self.shard[item.index]
        return files.read_part(self.shards[shard], int(self.offset[item.index]), item.size, self.stamps[shard])


class _Scan:
    """One archive's images and their metadata."""

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.names: list[str] = []
        self.labels: list[str | None] = []
        self.sizes, self.mtimes, self.offsets = array("q"), array("q"), array("q")
        self.columns = Columns()
        self.others: dict[str, int] = {}

    def leave(self, reason: str) -> None:
        self.others[reason] = self.others.get(reason, 0) + 1

    def close(self, images: Sequence[Member], metadata: Mapping[str, Any]) -> None:
        """Finish one sample: add its images, with the metadata from its other members by suffix."""
        own = _own(images, sample=bool(metadata))
        for _ in range(len(images) - len(own)):
            self.leave(NOT_OWN)
        row: dict[str, Any] = {}
        if isinstance(metadata.get("json"), dict):
            row |= metadata["json"]
        label = row.pop("label", None) if metadata.get("cls") is None else metadata["cls"]
        if "txt" in metadata:
            row["txt"] = metadata["txt"]
        for image in own:
            self.names.append(image.name)
            plain = isinstance(label, str | int | float) and not isinstance(label, bool)
            self.labels.append(str(label) if plain else None)
            self.sizes.append(image.size)
            self.mtimes.append(image.mtime_ns)
            self.offsets.append(image.offset)
            self.columns.add(row)
        if not own and any(value is not None for value in metadata.values()):
            self.leave("samples without an image")


def _own(images: Sequence[Member], *, sample: bool) -> Sequence[Member]:
    """The images to use among those with the same name up to its first dot.

    With other members they are a WebDataset `sample`, which has one image. Otherwise they are files of a plain tree,
    such as `scan.001.jpg`, and all are used except those that describe another image.
    """
    suffixes = {m: m.name.rpartition("/")[2].partition(".")[2].lower().split(".") for m in images}
    about = [m for m in images if ABOUT & set(suffixes[m][:-1])]
    plain = [m for m in images if m not in about]
    if not sample:
        return plain or images
    simple = [m for m in plain if len(suffixes[m]) == 1]
    ranks = {suffix: rank for rank, suffix in enumerate(ORDER)}
    return sorted(simple, key=lambda m: ranks.get(suffixes[m][0], len(ORDER)))[:1] or plain


def _scan(path: str, shards: int) -> _Scan:
    """Read an archive's headers."""
    try:
        stamp = files.stamp(path)
        if stamp is None:
            among = f" (one of {shards:,} that were named)" if shards > 1 else ""
            raise AttlasError(f"{path}: there is no such file{among}")
        found = _Scan(stamp)
        with remote.failures(), files.opened(path) as file:
            _fill(found, file)
    except BrokenError as error:
        raise AttlasError(f"{path}: {error}") from None
    except (OSError, ChangedError) as error:
        raise AttlasError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return found


def _fill(found: _Scan, file: BinaryIO) -> None:
    sample, images, metadata = "", list[Member](), dict[str, Any]()
    for member in members(file, found.stamp.size):
        if member.other:
            found.leave(member.other)
            continue
        name = posixpath.normpath(member.name)
        if name.startswith(("/", "../")) or name == "..":
            found.leave("members whose name leads out of the archive")
            continue
        if is_image(name) and is_hidden(name):
            found.leave(HIDDEN)
            continue
        parts = _SPLIT.fullmatch(name)
        if parts is None:
            found.leave("members without an image suffix")
            continue
        base, suffix = parts[1], parts[2].lower()
        if base != sample:
            found.close(images, metadata)
            sample, images, metadata = base, [], {}
        if is_image(name):
            try:
                name.encode()
            except UnicodeEncodeError:
                found.leave("members whose name is no valid text")
                continue
            images.append(member._replace(name=name))
        elif suffix in BESIDE:
            try:
                metadata[suffix] = _metadata(suffix, member, file)
            except ValueError:
                metadata[suffix] = None
                found.leave(f".{suffix} members that do not read")
        else:
            metadata[suffix] = None
            found.leave("members without an image suffix")
    found.close(images, metadata)


def _metadata(suffix: str, member: Member, file: BinaryIO) -> Any:
    """The value of a metadata member; ValueError if it is too large or not text."""
    if member.size > BESIDE[suffix]:
        raise ValueError(suffix)
    file.seek(member.offset)
    data = file.read(member.size)
    return from_json(data) if suffix == "json" else data.decode("utf-8").strip()


def _labels(names: Sequence[str], own: Sequence[str | None]) -> list[str]:
    """The labels: the samples' `own`, else from their paths."""
    if all(label is not None for label in own):
        return [label or "" for label in own]
    # `tar -cf images.tar images/` puts one folder above all, which is not a label.
    top = names[0].partition("/")[0] + "/"
    depth = len(top) if all(name.startswith(top) and name.count("/") > 1 for name in names) else 0
    return [label_of(name[depth:]) if label is None else label for name, label in zip(names, own, strict=True)]
