"""Arrays and their chunks, in a folder or a bucket: the only module that uses zarr.

Whole chunks are encoded and decoded by numcodecs in the caller's thread, which takes half the time of zarr
(docs/engine.md has the figures). The bytes are equal to those that zarr writes.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore

from ...files import from_json
from .schema import CODECS, ArraySpec
from .storage import ROOT, Part, Storage

__all__ = [
    "Array",
    "chunk_key",
    "decode",
    "encode",
    "encoded",
    "join",
    "laid_out",
    "member",
    "mend_metadata",
    "opened",
    "read",
    "zarr_store",
]

type Array = zarr.Array[Any]

SHUFFLES = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}
KEYS = ("default", "v2")  # Zarr's two kinds of chunk keys: `c.0.1`, and `0.1`, which a replacement uses
RESIDUE = 0x48674BC7  # CRC32C of any data followed by its own checksum: so the data need not be copied


def opened(storage: Storage, *, writable: bool) -> zarr.Group:
    """Open the group in a storage."""
    # Of a folder, too: zarr's own store would make one again that was moved away while it was written, and `read` would
    # not learn what is missing.
    return zarr.open_group(_Adapter(storage), mode="r+" if writable else "r", zarr_format=3)


def member(group: zarr.Group, name: str) -> Array:
    """The array with that name, for reading and writing.

    Raises:
        KeyError: there is no such array.
    """
    array = group[name]
    assert isinstance(array, zarr.Array)
    # By default zarr does not write a chunk of only fill values; then a missing chunk would not show a fault.
    return array.with_config({"write_empty_chunks": True})


def read(array: Array, selection: Any) -> tuple[npt.NDArray[Any], bool]:
    """Part of an array, and whether chunks of it are missing, which zarr fills."""
    missing = list[str]()
    token = _missing.set(missing)
    try:
        return np.asarray(array[selection]), bool(missing)
    finally:
        _missing.reset(token)


def zarr_store(storage: Storage) -> Any:
    """The object that zarr and xarray open: the path of a folder, or an adapter for a bucket."""
    return storage.path if isinstance(storage.path, Path) else _Adapter(storage)


def laid_out(attrs: Mapping[str, Any], arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a new group by key: metadata, and the chunks of `values`; "run/x" goes into the group `run`."""
    files: dict[str, Buffer] = {}
    memory = MemoryStore(files)
    root = zarr.create_group(memory, attributes=dict(attrs))
    root.create_group("run")
    chunks = _filled(root, arrays, values)
    with warnings.catch_warnings():
        # zarr warns that the v3 specification has no consolidated metadata yet; readers without it work as well.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(memory)
    return {key: data.to_bytes() for key, data in files.items()} | chunks


def join(storage: Storage, arrays: Sequence[ArraySpec], values: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Add or replace arrays of a group, all at once, and set attributes of the group.

    The root file lists the metadata of every array, which says which of the two kinds of keys the array's chunks have.
    A replacement writes new chunks next to the old ones, under keys of the other kind; they become valid when the root
    is replaced. So readers see the old values of all arrays or the new values of all arrays. The old chunks stay for
    readers that opened the group before, until the next replacement.

    An existing array is not changed if its values are equal or no values are given for it.
    """
    root = from_json(storage.read(ROOT))
    listed = (root.get("consolidated_metadata") or {}).get("metadata")
    metadata: dict[str, Any] = {}
    fresh: dict[str, bytes] = {}
    for array, (new, chunks) in zip(arrays, _files(arrays, values), strict=True):
        name = array.name
        old = _listed(storage, name) if listed is None else listed.get(name)
        if old is None:
            storage.clear(name)  # of an array that was never listed
        else:
            kind = _kind(old)
            if name not in values or (old == _of_kind(new, kind) and _there(storage, name, kind, chunks)):
                continue
            new = _of_kind(new, next(other for other in KEYS if other != kind))
        metadata[name] = new
        fresh |= {_key(name, tail, _kind(new)): data for tail, data in chunks.items()}
    for name in metadata:
        storage.make(name)
    for key, data in fresh.items():
        storage.send(key, data)
    storage.keep(fresh)
    for name, new in metadata.items():
        storage.write(f"{name}/{ROOT}", json.dumps(new, indent=2).encode())
    if not metadata and root["attributes"] == root["attributes"] | attrs:
        return
    root["attributes"] |= attrs
    if listed is not None:
        listed |= metadata
    storage.mark(ROOT, json.dumps(root).encode())


def mend_metadata(storage: Storage, *, repair: bool) -> dict[str, str]:
    """What is wrong with an array's own zarr.json, by array; repaired, it is again what the root lists.

    The record of runs, which `run/zarr.json` holds, has no second copy, and begins anew.
    """
    root = from_json(storage.read(ROOT))
    faults: dict[str, str] = {}
    for name, listed in sorted(((root.get("consolidated_metadata") or {}).get("metadata") or {}).items()):
        key = f"{name}/{ROOT}"
        try:
            own = from_json(storage.read(key))
            same = own == listed if listed["node_type"] == "array" else own["node_type"] == "group"
            fault = "" if same else f"{key} is not what the root says"
        except FileNotFoundError:
            fault = f"{key} is missing"
        except (ValueError, TypeError, LookupError, IsADirectoryError):
            fault = f"{key} does not read"
        if fault:
            faults[name] = fault
        if fault and repair:
            storage.make(name)
            storage.delete(key)
            storage.write(key, json.dumps(listed, indent=2).encode())
    return faults


def _files(arrays: Sequence[ArraySpec], values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Each array's metadata, and its chunks by key in the array's folder."""
    files: dict[str, Buffer] = {}
    # In memory: in the storage, zarr would look for existing files, a few milliseconds per array.
    written = _filled(zarr.create_group(MemoryStore(files)), arrays, values)
    whole: dict[str, dict[str, bytes]] = {array.name: {} for array in arrays}
    for key, data in ({key: data.to_bytes() for key, data in files.items() if key != ROOT} | written).items():
        name, _, tail = key.partition("/")
        whole[name][tail] = data
    for own in whole.values():
        yield json.loads(own.pop(ROOT)), own


def _listed(storage: Storage, name: str) -> Any:
    """An array's metadata, read from its own file, if the root does not list it."""
    try:
        return from_json(storage.read(f"{name}/{ROOT}"))
    except FileNotFoundError:
        return None


def _there(storage: Storage, name: str, kind: str, chunks: Mapping[str, bytes]) -> bool:
    try:
        return all(storage.read(_key(name, tail, kind)) == data for tail, data in chunks.items())
    except FileNotFoundError:
        return False


def _kind(metadata: Mapping[str, Any]) -> str:
    return str(metadata["chunk_key_encoding"]["name"])


def _of_kind(metadata: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {**metadata, "chunk_key_encoding": {**metadata["chunk_key_encoding"], "name": kind}}


def _key(name: str, tail: str, kind: str) -> str:
    """A chunk's key of the given kind; `tail` is the last part of its default key."""
    return f"{name}/{tail if kind == KEYS[0] else tail[2:] or '0'}"


def chunk_key(name: str, index: Iterable[int], array: Array | None = None) -> str:
    """The key of a chunk, a file in the array's folder. Without `array`, for an array that is never replaced."""
    kind = KEYS[0] if array is None else array.metadata.chunk_key_encoding.name  # type: ignore[union-attr]
    return _key(name, ".".join(("c", *map(str, index))), kind)


def _filled(root: zarr.Group, arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """Create arrays with `values` in a group in memory; returns, by key, the chunks that are not written into it."""
    chunks: dict[str, bytes] = {}
    for array in arrays:
        made = _create(root, array)
        given = values.get(array.name)
        if given is None or 0 in made.shape:
            continue
        if made.ndim and made.chunks == np.shape(given) and encoded(made):
            # The same bytes as zarr's, but without its event loop: every analysis writes dozens of small arrays.
            chunks[chunk_key(array.name, [0] * made.ndim)] = b"".join(encode(made, np.asarray(given)))
        else:
            made[...] = given
    return chunks


def _create(root: zarr.Group, array: ArraySpec) -> Array:
    """Create an array."""
    text = array.dtype == "str"
    chunks = tuple(
        max(1, c) if dim == "image" else max(1, min(c, n))
        for c, n, dim in zip(array.chunks, array.shape, array.dims, strict=True)
    )
    return root.create_array(
        array.name,
        shape=array.shape,
        chunks=chunks,
        dtype=str if text else array.dtype,
        fill_value=array.fill,
        compressors=_compressors(array),
        # Zarr's default is a folder per axis: four folders for every chunk, and a fifth of the time that an analysis
        # needs to write its rows.
        chunk_key_encoding={"name": KEYS[0], "separator": "."},
        dimension_names=array.dims,
        attributes=dict(array.attrs),
        config={"write_empty_chunks": True},
    )


def _compressors(array: ArraySpec) -> list[Any]:
    """The schema's codecs for an array; without compression for text, which zarr encodes."""
    codecs = CODECS[array.codec]
    if array.dtype == "str":
        return [codec for codec in codecs if codec["name"] != "blosc"]
    size = np.dtype(array.dtype).itemsize
    own = {"typesize": size} | ({"shuffle": "noshuffle"} if size == 1 else {})
    return [
        {**codec, "configuration": {**codec["configuration"], **own}} if codec["name"] == "blosc" else codec
        for codec in codecs
    ]


def encode(array: Array, block: npt.NDArray[Any]) -> tuple[Part, bytes]:
    """The bytes of one chunk's file: data, padded with fill at the array's end, and its checksum.

    Only for arrays for which `encoded` is true. Without compression the data are the block's own memory.
    """
    dtype = array.dtype.newbyteorder("<")
    if len(block) < array.chunks[0]:
        padded = np.full(array.chunks, array.fill_value, dtype)
        padded[: len(block)] = block
        block = padded
    _, *blosc, _ = _codecs(array)
    block = np.ascontiguousarray(block, dtype)
    data: Part = block.reshape(-1).view(np.uint8)
    if blosc:
        data = _compressor(**blosc[0]["configuration"]).encode(block)
    return data, google_crc32c.value(data).to_bytes(4, "little")


def encoded(array: Array) -> bool:
    """Whether the array's chunks are numbers, with or without blosc, and a checksum: `encode` and `decode` do these.

    For other arrays zarr reads and writes every chunk. The codecs' names are those in the store's metadata, which no
    version of zarr can change.
    """
    codecs = _codecs(array)
    big = codecs[0].get("configuration", {}).get("endian") == "big"
    return [codec["name"] for codec in codecs] in (["bytes", "blosc", "crc32c"], ["bytes", "crc32c"]) and not big


def decode(array: Array, data: bytes, out: npt.NDArray[Any]) -> None:
    """Decode the bytes of a chunk's file of `array` into `out`, of the chunk's shape.

    Raises:
        ValueError, RuntimeError: the data are damaged.
    """
    if len(data) <= 4 or google_crc32c.value(data) != RESIDUE:
        raise ValueError("its checksum does not fit")
    body = memoryview(data)[:-4]
    if len(_codecs(array)) == 3:
        numcodecs.Blosc().decode(body, out=out)
    else:
        out[...] = np.frombuffer(body, array.dtype.newbyteorder("<")).reshape(out.shape)


def _codecs(array: Array) -> list[dict[str, Any]]:
    """The codecs in the array's metadata."""
    metadata: Any = array.metadata
    return [codec.to_dict() for codec in metadata.codecs]


@functools.lru_cache(maxsize=32)
def _compressor(*, cname: str, clevel: int, shuffle: str, blocksize: int, **_: Any) -> Any:
    """Numcodecs' compressor with these settings."""
    return numcodecs.Blosc(cname, clevel, SHUFFLES[shuffle], blocksize)


# The keys that were asked for and are not there. zarr's event loop works in the context of who asked.
_missing: contextvars.ContextVar[list[str]] = contextvars.ContextVar("missing")


class _Adapter(ZarrStore):
    """A zarr store on a `Storage`, so that its requests are repeated, and fail, like all others."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, storage: Storage, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Adapter) and other._storage.path == self._storage.path

    def __str__(self) -> str:
        return str(self._storage.path)

    def with_read_only(self, read_only: bool = False) -> _Adapter:
        return _Adapter(self._storage, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            data = await asyncio.to_thread(self._storage.read, key)
        except FileNotFoundError:
            _missing.get([]).append(key)
            return None
        match byte_range:
            case RangeByteRequest():
                data = data[byte_range.start : byte_range.end]
            case OffsetByteRequest():
                data = data[byte_range.offset :]
            case SuffixByteRequest():
                data = data[-byte_range.suffix :]
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._storage.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self._storage.write, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        self._check_writable()
        await asyncio.to_thread(self._storage.delete, key)

    def list(self) -> AsyncIterator[str]:
        return self._each(lambda: [key for key, _ in self._storage.listing()])

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._each(lambda: [key for key, _ in self._storage.listing(prefix.rstrip("/"))])

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._each(lambda: self._storage.names(prefix.rstrip("/")))

    async def _each(self, found: Callable[[], Iterable[str]]) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(found):
            yield key
