"""The attention store: what it promises, and the one module that knows zarr.

A store is a Zarr v3 group. Every array names its dimensions and begins with the spec of the graph and the plan in the
group's attributes. The group `run` holds the done-marks: a unit counts only when its mark is there, and the mark is
written last, after the unit's chunks have reached the disk.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors
from zarr.codecs import BloscCodec, Crc32cCodec

from ..exporter.errors import AttlasError
from ..exporter.spec import FORMAT, GraphSpec
from .plan import Plan

__all__ = ["FLOAT16_ATTRS", "ArraySpec", "Store", "Template"]

KIND = "attlas.store"
# Arrays with a chunk per batch and layer, and those with a chunk per batch; the others have a chunk per unit.
LAYERED = ("attention", "attention_code", "attention_mean", "gradient", "gradient_mean", "gradient_positive")
LARGE = (*LAYERED, "tokens")

# numpy and xarray add float16 in float16, which makes a mean over 20,000 rows a third too small. With a CF scale
# factor xarray decodes to float64 on reading, so that plain `xarray.open_zarr` does not mislead.
FLOAT16_ATTRS: Mapping[str, Any] = {"scale_factor": 1.0}


@dataclass(frozen=True, slots=True)
class Template:
    """One result per image: `dims` begins with "image", `shape` leaves the image axis out."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store: `dtype` is numpy's name, or "str" for text."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_template(cls, template: Template, plan: Plan) -> ArraySpec:
        """A per-image result whose chunks are the plan's units (batches and single layers for the large arrays)."""
        shape = (plan.images, *template.shape)
        if template.name in LARGE:
            layered = template.name in LAYERED
            chunks = (plan.batch, 1, *template.shape[1:]) if layered else (plan.batch, *template.shape)
        else:
            chunks = (plan.unit, *template.shape)
        attrs = dict(template.attrs)
        if template.dtype == "float16":
            attrs |= FLOAT16_ATTRS
        return cls(template.name, template.dims, shape, chunks, template.dtype, template.fill, attrs)


class Store:
    """A store opened for reading, or by a run for writing.

    Attributes:
        path: where it lies.
        spec: of the graph that made it.
        plan: of the run that made it.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        """Open an existing store.

        Raises:
            AttlasError: there is no store of ours at `path`, or it has a newer format.
        """
        self.path = Path(path)
        attrs = read_attrs(self.path)
        self.spec = GraphSpec.from_dict(attrs["spec"], str(path))
        self.plan = Plan.from_dict(attrs["plan"])
        self._group = zarr.open_group(self.path, mode="r+" if writable else "r", use_consolidated=False)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes: `attlas_format`, `spec`, `plan`, `dataset`, `versions` and what analysis added."""
        return dict(self._group.attrs)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays, sorted."""
        return tuple(sorted(p.parent.name for p in self.path.glob("*/zarr.json") if _is_array(p)))

    def __contains__(self, name: str) -> bool:
        return bool(name) and (self.path / name / "zarr.json").is_file()

    def array(self, name: str) -> zarr.Array[Any]:
        """The zarr array of that name, for slicing; `run/done` reaches into the group `run`.

        Raises:
            AttlasError: there is none.
        """
        if name not in self._arrays:
            try:
                array = self._group[name]
            except KeyError:
                raise AttlasError(f"{self.path}: holds no {name}; it has {', '.join(self.names)}") from None
            assert isinstance(array, zarr.Array)
            # zarr would not write a chunk that holds nothing but fill, and then its absence would prove nothing.
            self._arrays[name] = array.with_config({"write_empty_chunks": True})
        return self._arrays[name]

    def dims(self, name: str) -> tuple[str, ...]:
        """The dimension names of an array."""
        metadata: Any = self.array(name).metadata
        return tuple(metadata.dimension_names or ())

    def read(self, name: str, selection: Any = ()) -> npt.NDArray[Any]:
        """Part of an array, in the dtype it is stored in; the whole of it by default."""
        try:
            return np.asarray(self.array(name)[selection])
        except (ValueError, RuntimeError, OSError) as error:
            raise AttlasError(
                f"{self.path}: {name} does not read ({_one_line(error)}); `attlas verify --repair` reopens its units"
            ) from None

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """Which units are done: (unit), bool. Read anew at each call."""
        done = np.zeros(self.plan.units, np.bool_)
        # A mark's file is written whole and last, so that its being there is the mark; one listing costs what one
        # read would.
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.path / "run" / "done" / "c"):
                if entry.name.isdigit() and int(entry.name) < done.size:
                    done[int(entry.name)] = True
        return done

    @property
    def done_images(self) -> npt.NDArray[np.bool_]:
        """Which images lie in done units: (image), bool."""
        return np.repeat(self.done, self.plan.unit)[: self.plan.images]

    def batches(self) -> Iterator[range]:
        """The batches of the units that are done, in order: what can be read now."""
        for k in np.flatnonzero(self.done):
            yield from self.plan.batches(int(k))

    # -- writing ------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], spec: GraphSpec, plan: Plan, arrays: Iterable[ArraySpec],
        *, values: Mapping[str, Any], attrs: Mapping[str, Any],
    ) -> Store:  # fmt: skip
        """Lay a store out: every array with its metadata, `values` written, no unit done.

        It is laid out beside its place and renamed, so that a store is there whole or not at all.

        Raises:
            AttlasError: something is at `path` already, or the place cannot be written.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            root = zarr.create_group(
                beside,
                attributes={
                    "attlas_format": FORMAT, "kind": KIND, **attrs, "spec": spec.to_dict(), "plan": plan.to_dict(),
                },
            )  # fmt: skip
            run = root.create_group("run")
            for array in arrays:
                parent, name = (run, array.name[4:]) if array.name.startswith("run/") else (root, array.name)
                _create_array(parent, array, name)
                if array.name in values:
                    _fill(parent, name, values[array.name])
            _create_array(run, ArraySpec("run/done", ("unit",), (plan.units,), (1,), "uint8", 0), "done")
            consolidate(beside)
            sync_tree(beside)
            beside.rename(path)
            sync_directory(path.parent)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            if path.exists():
                raise AttlasError(f"{path}: another process laid a store out here just now; run again") from None
            raise AttlasError(f"{path}: cannot be written ({_one_line(error)})") from None
        return cls(path, writable=True)

    def write(self, name: str, start: int, block: npt.NDArray[Any], layer: slice | None = None) -> None:
        """Write `block`, whose first axis is image, from image `start` on; one layer's place where `layer` is given.

        What is exactly one chunk, and a run writes nothing else, is encoded and written in the caller's thread. The
        bytes are those that zarr writes; its own way leads over an event loop and two further threads for each chunk,
        where a run spent 44 % of its workers' time waiting.
        """
        array = self.array(name)
        first = array.chunks[0]
        index = (start // first, layer.start if layer else 0, *[0] * (array.ndim - 2))[: array.ndim]
        whole = start % first == 0 and (len(block) == first or first > len(block) == array.shape[0] - start)
        if whole and block.shape[1:] == array.chunks[1:] and array.dtype.kind in "biuf" and array.ndim:
            self._write_chunk(name, index, block)
        else:
            where: Any = slice(start, start + len(block))
            array[where if layer is None else (where, layer)] = block

    def _write_chunk(self, name: str, index: tuple[int, ...], block: npt.NDArray[Any]) -> None:
        """Encode one chunk, padded with fill at the array's end, and put it in its place whole."""
        array = self.array(name)
        dtype = array.dtype.newbyteorder("<")
        if len(block) < array.chunks[0]:
            padded = np.full(array.chunks, array.fill_value, dtype)
            padded[: len(block)] = block
            block = padded
        data = numcodecs.Blosc(**_blosc(dtype.itemsize)).encode(np.ascontiguousarray(block, dtype))
        path = self.chunk_path(name, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
        with beside.open("wb") as file:
            file.write(data)
            file.write(google_crc32c.value(data).to_bytes(4, "little"))
        beside.replace(path)

    def mark_done(self, k: int) -> None:
        """Mark unit k done, durably: first its chunks reach the disk, then the mark, then the mark's own entry."""
        for path in self.unit_files(k):
            _sync_file(path)
        self.array("run/done")[k] = 1
        marks = self.path / "run" / "done" / "c"
        _sync_file(marks / str(k))
        sync_directory(marks)

    def reopen(self, k: int) -> None:
        """Take unit k's mark away, so that the next run does it again."""
        (self.path / "run" / "done" / "c" / str(k)).unlink(missing_ok=True)

    def chunk_path(self, name: str, index: Iterable[int]) -> Path:
        """Where the chunk of that index lies: zarr's default key, a folder per axis."""
        return self.path / name / "c" / "/".join(map(str, index))

    def unit_files(self, k: int) -> Iterator[Path]:
        """The chunk files that unit k writes, in every array whose first dimension is image, and its pictures."""
        images = self.plan.unit_range(k)
        for name, dim in self.unit_arrays():
            array = self.array(name)
            if dim == "sample":
                first: Iterable[int] = (place for place, _ in self.plan.sampled(images))
            else:
                first = range(images.start // array.chunks[0], -(-images.stop // array.chunks[0]))
            rest: list[Iterable[int]] = [
                range(-(-n // c)) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True)
            ]
            if name in LAYERED and "layer" in self.dims(name):
                # Layers that are not kept have no chunks: they read as fill.
                rest[0] = self.kept_layers
            for index in itertools.product(first, *rest):
                yield self.chunk_path(name, index)

    @functools.cached_property
    def kept_layers(self) -> list[int]:
        """The places on the layer axis whose attention was kept."""
        kept = self.attrs["kept"]["layers"]
        return [place for place, layer in enumerate(self.spec.layers) if layer in kept]

    @functools.lru_cache(maxsize=1)  # noqa: B019 - the layout never changes while a run writes
    def unit_arrays(self) -> list[tuple[str, str]]:
        """(name, first dimension) of the arrays whose chunks belong to units."""
        analyzed = self.attrs.get("analyzed", ())
        found = [(name, (*self.dims(name), "")[0]) for name in self.names if name not in FIXED]
        return [(name, dim) for name, dim in found if dim in ("image", "sample") and name not in analyzed]

    def add(self, arrays: Sequence[ArraySpec], values: Mapping[str, Any] = {}) -> None:
        """Add arrays to a finished layout (analysis does), replacing those of the same name, and note them.

        Names land in the attribute `analyzed`: they belong to the analysis and not to the run's units.
        """
        for array in arrays:
            self._arrays.pop(array.name, None)
            if array.name in self:
                if array.name not in self.attrs.get("analyzed", ()):
                    raise AttlasError(f"{self.path}: {array.name} was written by the run and is not replaced")
                shutil.rmtree(self.path / array.name)
            _create_array(self._group, array, array.name)
            if array.name in values:
                _fill(self._group, array.name, values[array.name])
        analyzed = sorted({*self.attrs.get("analyzed", ()), *(a.name for a in arrays)})
        self._group.attrs["analyzed"] = analyzed
        consolidate(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """What the runs recorded of themselves: versions, provider, seconds per stage. Read anew at each call."""
        try:
            data = json.loads((self.path / "run" / "zarr.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return dict(data.get("attributes", {}))

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace the runs' record (whole and atomically)."""
        path = self.path / "run" / "zarr.json"
        data = json.loads(path.read_text("utf-8"))
        data["attributes"] = dict(record)
        beside = path.with_name(f"zarr.json.{os.getpid()}.partial")
        beside.write_text(json.dumps(data, indent=2), "utf-8")
        beside.replace(path)

    def sweep(self) -> int:
        """Remove what a killed writer left half written; returns how many files."""
        leftovers = list(self.path.rglob("*.partial"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)


# Written whole when the store is laid out, so that no unit owns their chunks.
FIXED = frozenset({"path", "label", "label_class", "sample"})


def read_attrs(path: Path) -> dict[str, Any]:
    """The attributes of the store at `path`.

    Raises:
        AttlasError: there is nothing, no store of ours, or one of a newer format.
    """
    if not path.exists():
        raise AttlasError(f"{path}: there is no such store; `attlas run GRAPH.onnx IMAGES -o {path}` makes one")
    try:
        data = json.loads((path / "zarr.json").read_text("utf-8"))
        attrs: dict[str, Any] = data["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AttlasError(f"{path}: is no attention store (it has no readable zarr.json)") from None
    if attrs.get("kind") != KIND or not {"spec", "plan"} <= attrs.keys():
        raise AttlasError(f"{path}: is a zarr group, but no attention store")
    if attrs.get("attlas_format", 0) > FORMAT:
        raise AttlasError(
            f"{path}: written in format {attrs['attlas_format']}, this attlas reads up to {FORMAT}; "
            "install a newer attlas"
        )
    return attrs


def consolidate(path: Path) -> None:
    """Gather the metadata of every array into the root, so that one read opens the store."""
    with warnings.catch_warnings():
        # zarr warns that the v3 specification has no consolidated metadata yet; readers without it lose nothing.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _create_array(parent: zarr.Group, array: ArraySpec, name: str) -> None:
    text = array.dtype == "str"
    # A checksum behind the compressor: a flipped bit is an error on reading, never a number.
    compressors: list[Any] = [Crc32cCodec()]
    if not text:
        size = np.dtype(array.dtype).itemsize
        blosc = _blosc(size)
        shuffle: Any = "bitshuffle" if blosc["shuffle"] else "noshuffle"
        compressors.insert(
            0, BloscCodec(cname=blosc["cname"], clevel=blosc["clevel"], shuffle=shuffle, typesize=size, blocksize=0)
        )
    chunks = tuple(max(1, min(c, n)) if d != "image" else max(1, c) for c, n, d in
                   zip(array.chunks, array.shape, array.dims, strict=True))  # fmt: skip
    parent.create_array(
        name,
        shape=array.shape,
        chunks=chunks,
        dtype=str if text else array.dtype,
        fill_value=array.fill,
        compressors=compressors,
        dimension_names=array.dims,
        attributes=dict(array.attrs),
        config={"write_empty_chunks": True},
    )


def _blosc(itemsize: int) -> dict[str, Any]:
    """The compressor's setting: attention hardly compresses, so the fastest (docs/engine.md has the table)."""
    shuffle = numcodecs.Blosc.BITSHUFFLE if itemsize > 1 else numcodecs.Blosc.NOSHUFFLE
    return {"cname": "lz4", "clevel": 1, "shuffle": shuffle, "blocksize": 0}


def _fill(parent: zarr.Group, name: str, values: Any) -> None:
    array = parent[name]
    assert isinstance(array, zarr.Array)
    if array.shape and 0 not in array.shape:
        array[...] = values


def _is_array(metadata: Path) -> bool:
    return '"node_type": "array"' in metadata.read_text("utf-8")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable, where the system can."""
    if os.name == "posix":
        _sync_file(path)


def sync_tree(path: Path) -> None:
    """Make every file below `path` durable."""
    for found in path.rglob("*"):
        if found.is_file():
            _sync_file(found)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
