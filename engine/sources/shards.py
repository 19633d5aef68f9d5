"""Images in tar archives, as plain trees or by WebDataset's convention, read in place."""

from __future__ import annotations

import dataclasses
import json
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
from . import files, remote
from .columns import Columns
from .files import Stamp
from .items import HIDDEN, BaseSource, ChangedError, Item, Items, is_hidden, is_image, label_of, repeated, text
from .tarfiles import BrokenError, Member, members

__all__ = ["Shards"]

# Of several images of one sample the first of these is the sample's own, as WebDataset users ask for "jpg;png;...".
ORDER = ("jpg", "jpeg", "png", "webp")
# In compound suffixes, such as `0001.seg.png`, these words say that it is about the image and not the image.
ABOUT = frozenset(
    {"seg", "segmentation", "mask", "masks", "matte", "alpha", "depth", "disparity", "flow", "normal", "normals",
     "edge", "edges", "canny", "semantic", "instance", "panoptic", "annotation", "label", "labels", "gt", "heatmap",
     "saliency", "thumb", "thumbnail"}
)  # fmt: skip
NOT_OWN = "images beside a sample's own (such as NAME.seg.png)"
# What stands beside an image under its own name: `0001.jpg`, `0001.cls`, `0001.json`, `0001.txt`.
BESIDE = {"cls": 4096, "json": 2**20, "txt": 2**18}
SCANS = 16  # archives elsewhere that are looked through at once: each waits for its answers
_SPLIT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)  # WebDataset's: the name up to its first dot


@dataclass(frozen=True, eq=False)
class Shards(BaseSource):
    """The images of one or several tar archives, in the archives' order and within each in that of its members.

    A key is the member's name; of several archives, the archive's name stands before it as a folder. Members under one
    name up to the first dot are a sample: the label is what its `.cls` says, else its `.json` under `label`, else what
    the image's own path says as in a folder (below a top folder that all share). Scalars of the `.json` and the text of
    a `.txt` are columns. A sample has one image, whose suffix is an image's alone: `0001.seg.png` is none.

    Attributes:
        name: of the archive, or of the folder or pattern that named several.
        shards: where each archive lies; `stamps`: what each was when it was listed.
        shard: (image) int32, which archive; `offset`: (image) int64, bytes from its beginning.
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
            AttlasError: an archive is not there, is none, is compressed or broken; a name is there twice; no image.
        """
        several = len(shards) > 1
        with ThreadPoolExecutor(SCANS if files.is_url(shards[0]) else 1) as pool:
            scans = list(pool.map(lambda place: _scan(place, len(shards)), shards))
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
            folders = [files.name_of(place) for place in shards]
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

    def subset(self, places: npt.NDArray[np.int64]) -> Shards:
        """See `Source`."""
        return dataclasses.replace(
            self, items=self.items.take(places).alone(), shard=self.shard[places], offset=self.offset[places]
        )

    def read(self, item: Item) -> bytes:
        """A member's bytes, from an archive that each thread keeps open."""
        shard = self.shard[item.index]
        return files.read_part(self.shards[shard], int(self.offset[item.index]), item.size, self.stamps[shard])


class _Scan:
    """One archive's images, and what stood beside them."""

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.names: list[str] = []
        self.labels: list[str | None] = []
        self.sizes, self.mtimes, self.offsets = array("q"), array("q"), array("q")
        self.columns = Columns()
        self.others: dict[str, int] = {}

    def leave(self, reason: str) -> None:
        self.others[reason] = self.others.get(reason, 0) + 1

    def close(self, images: Sequence[Member], said: Mapping[str, Any]) -> None:
        """One sample: its images, and what its other members say."""
        own = _own(images, sample=bool(said))
        for _ in range(len(images) - len(own)):
            self.leave(NOT_OWN)
        row: dict[str, Any] = {}
        if isinstance(said.get("json"), dict):
            row |= said["json"]
        label = row.pop("label", None) if said.get("cls") is None else said["cls"]
        if "txt" in said:
            row["txt"] = said["txt"]
        for image in own:
            self.names.append(image.name)
            plain = isinstance(label, str | int | float) and not isinstance(label, bool)
            self.labels.append(str(label) if plain else None)
            self.sizes.append(image.size)
            self.mtimes.append(image.mtime_ns)
            self.offsets.append(image.offset)
            self.columns.add(row)
        if not own and any(value is not None for value in said.values()):
            self.leave("samples without an image")


def _own(images: Sequence[Member], *, sample: bool) -> Sequence[Member]:
    """Which of the images that share a name up to its first dot count.

    With other members beside them they are a WebDataset's `sample`, which has one. Without, they are files of a plain
    tree, such as `scan.001.jpg`, that each stand for themselves, but for what is about another of them.
    """
    suffixes = {m: m.name.rpartition("/")[2].partition(".")[2].lower().split(".") for m in images}
    about = [m for m in images if ABOUT & set(suffixes[m][:-1])]
    plain = [m for m in images if m not in about]
    if not sample:
        return plain or images
    simple = [m for m in plain if len(suffixes[m]) == 1]
    ranks = {suffix: rank for rank, suffix in enumerate(ORDER)}
    return sorted(simple, key=lambda m: ranks.get(suffixes[m][0], len(ORDER)))[:1] or plain


def _scan(place: str, shards: int) -> _Scan:
    """Read an archive's headers."""
    try:
        stamp = files.stamp(place)
        if stamp is None:
            among = f" (one of {shards:,} that were named)" if shards > 1 else ""
            raise AttlasError(f"{place}: there is no such file{among}")
        found = _Scan(stamp)
        with remote.failures(), files.opened(place) as file:
            _fill(found, file)
    except BrokenError as error:
        raise AttlasError(f"{place}: {error}") from None
    except (OSError, ChangedError) as error:
        raise AttlasError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return found


def _fill(found: _Scan, file: BinaryIO) -> None:
    sample, images, said = "", list[Member](), dict[str, Any]()
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
            found.close(images, said)
            sample, images, said = base, [], {}
        if is_image(name):
            try:
                name.encode()
            except UnicodeEncodeError:
                found.leave("members whose name is no valid text")
                continue
            images.append(member._replace(name=name))
        elif suffix in BESIDE:
            try:
                said[suffix] = _said(suffix, member, file)
            except (ValueError, RecursionError):
                said[suffix] = None
                found.leave(f".{suffix} members that do not read")
        else:
            said[suffix] = None
            found.leave("members without an image suffix")
    found.close(images, said)


def _said(suffix: str, member: Member, file: BinaryIO) -> Any:
    """What a member beside an image says; a ValueError where that is too much, or no text."""
    if member.size > BESIDE[suffix]:
        raise ValueError(suffix)
    file.seek(member.offset)
    data = file.read(member.size)
    return json.loads(data) if suffix == "json" else data.decode("utf-8").strip()


def _labels(names: Sequence[str], said: Sequence[str | None]) -> list[str]:
    """What samples say of themselves, else what their paths say."""
    if all(label is not None for label in said):
        return [label or "" for label in said]
    # `tar -cf images.tar images/` puts one folder above all, which tells no image from another.
    top = names[0].partition("/")[0] + "/"
    depth = len(top) if all(name.startswith(top) and name.count("/") > 1 for name in names) else 0
    return [label_of(name[depth:]) if label is None else label for name, label in zip(names, said, strict=True)]
