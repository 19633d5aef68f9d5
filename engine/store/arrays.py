"""Arrays and their chunks, in a folder or a bucket: the one module that knows zarr.

A whole chunk is encoded and decoded by numcodecs in the caller's thread, which halves what zarr's way costs
(docs/engine.md has the figures); the bytes are those that zarr writes.
"""

from __future__ import annotations

import asyncio
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

from .schema import CODECS, ArraySpec
from .storage import ROOT, Storage

__all__ = [
    "Array",
    "chunk_key",
    "decode",
    "encode",
    "encoded",
    "join",
    "laid_out",
    "member",
    "opened",
    "zarr_store",
]

type Array = zarr.Array[Any]

SHUFFLES = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}
KEYS = ("default", "v2")  # the two kinds of chunk keys that Zarr has: `c.0.1`, and `0.1` for what replaces it
RESIDUE = 0x48674BC7  # what CRC32C gives of any data with its own checksum behind it: no copy without it is needed


def opened(storage: Storage, *, writable: bool) -> zarr.Group:
    """The group in a storage."""
    return zarr.open_group(zarr_store(storage), mode="r+" if writable else "r", zarr_format=3)


def member(group: zarr.Group, name: str) -> Array:
    """The array of that name, to read and to write.

    Raises:
        KeyError: there is none.
    """
    array = group[name]
    assert isinstance(array, zarr.Array)
    # zarr would not write a chunk that holds nothing but fill, and then its absence would prove nothing.
    return array.with_config({"write_empty_chunks": True})


def zarr_store(storage: Storage) -> Any:
    """What zarr, and xarray, open: a folder's own path, or a bucket's adapter."""
    return storage.path if isinstance(storage.path, Path) else _Adapter(storage)


def laid_out(attrs: Mapping[str, Any], arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a new group by key: metadata, and the chunks of `values`; "run/x" goes into the group `run`."""
    files: dict[str, Buffer] = {}
    memory = MemoryStore(files)
    root = zarr.create_group(memory, attributes=dict(attrs))
    root.create_group("run")
    chunks = _filled(root, arrays, values)
    with warnings.catch_warnings():
        # zarr warns that the v3 specification has no consolidated metadata yet; readers without it lose nothing.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(memory)
    return {key: data.to_bytes() for key, data in files.items()} | chunks


def join(storage: Storage, arrays: Sequence[ArraySpec], values: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Put arrays into a group, in place of those of the same names, all of them at once, and set attributes of it.

    The root lists the metadata of every array, and with it under which of two kinds of keys the array's chunks lie. The
    chunks of one that is replaced are written beside those that are there, under keys of the other kind, and hold from
    the moment in which the root is replaced: whoever reads has the old values of all arrays, or the new ones. The old
    chunks stay for those who opened the group before, until they are replaced in their turn.

    An array that is there with equal values, or that none are given of, stays as it is.
    """
    root = json.loads(storage.read(ROOT))
    listed = (root.get("consolidated_metadata") or {}).get("metadata")
    metadata: dict[str, Any] = {}
    fresh: dict[str, bytes] = {}
    for array, (new, chunks) in zip(arrays, _files(arrays, values), strict=True):
        name = array.name
        old = _listed(storage, name) if listed is None else listed.get(name)
        if old is None:
            storage.clear(name)  # of one that never was listed
        else:
            kind = _kind(old)
            if name not in values or (old == _of_kind(new, kind) and _there(storage, name, kind, chunks)):
                continue
            new = _of_kind(new, next(other for other in KEYS if other != kind))
        metadata[name] = new
        fresh |= {_key(name, tail, _kind(new)): data for tail, data in chunks.items()}
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


def _files(arrays: Sequence[ArraySpec], values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Each array's metadata, and its chunks by their key in the array's folder."""
    files: dict[str, Buffer] = {}
    # In memory: zarr would ask the storage for what may be there already, a few milliseconds for each array.
    written = _filled(zarr.create_group(MemoryStore(files)), arrays, values)
    whole: dict[str, dict[str, bytes]] = {array.name: {} for array in arrays}
    for key, data in ({key: data.to_bytes() for key, data in files.items() if key != ROOT} | written).items():
        name, _, tail = key.partition("/")
        whole[name][tail] = data
    for own in whole.values():
        yield json.loads(own.pop(ROOT)), own


def _listed(storage: Storage, name: str) -> Any:
    """An array's metadata, where the root does not list it."""
    try:
        return json.loads(storage.read(f"{name}/{ROOT}"))
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
    """A chunk's key, of which `tail` is the default kind's."""
    return f"{name}/{tail if kind == KEYS[0] else tail[2:] or '0'}"


def chunk_key(name: str, index: Iterable[int], array: Array | None = None) -> str:
    """The key of a chunk: a file in the array's folder. Without its `array`, of one that never is replaced."""
    kind = KEYS[0] if array is None else array.metadata.chunk_key_encoding.name  # type: ignore[union-attr]
    return _key(name, ".".join(("c", *map(str, index))), kind)


def _filled(root: zarr.Group, arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """Lay arrays out in a group in memory, with `values`; those chunks by key that are not written into it."""
    chunks: dict[str, bytes] = {}
    for array in arrays:
        made = _create(root, array)
        given = values.get(array.name)
        if given is None or 0 in made.shape:
            continue
        if made.ndim and made.chunks == np.shape(given) and encoded(made):
            # The same bytes, without zarr's way over an event loop: dozens of small arrays end every analysis.
            chunks[chunk_key(array.name, [0] * made.ndim)] = b"".join(encode(made, np.asarray(given)))
        else:
            made[...] = given
    return chunks


def _create(root: zarr.Group, array: ArraySpec) -> Array:
    """Lay an array out."""
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
        compressors=_compressors(array.dtype),
        # Zarr's default is a folder per axis: four folders around every chunk, and a fifth of the time that an
        # analysis takes to write its rows.
        chunk_key_encoding={"name": KEYS[0], "separator": "."},
        dimension_names=array.dims,
        attributes=dict(array.attrs),
        config={"write_empty_chunks": True},
    )


def _compressors(dtype: str) -> list[Any]:
    """The schema's codecs for numbers of this dtype; text has a codec of zarr's, and no compressor."""
    if dtype == "str":
        return [codec for codec in CODECS if codec["name"] != "blosc"]
    size = np.dtype(dtype).itemsize
    own = {"typesize": size} | ({"shuffle": "noshuffle"} if size == 1 else {})
    return [
        {**codec, "configuration": {**codec["configuration"], **own}} if codec["name"] == "blosc" else codec
        for codec in CODECS
    ]


def encode(array: Array, block: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """One chunk of numbers, padded with fill at the array's end, as its file's bytes: the data and its checksum.

    Only of arrays that are `encoded`.
    """
    dtype = array.dtype.newbyteorder("<")
    if len(block) < array.chunks[0]:
        padded = np.full(array.chunks, array.fill_value, dtype)
        padded[: len(block)] = block
        block = padded
    _, blosc, _ = _codecs(array)
    data = _compressor(**blosc["configuration"]).encode(np.ascontiguousarray(block, dtype))
    return data, google_crc32c.value(data).to_bytes(4, "little")


def encoded(array: Array) -> bool:
    """Whether the array's chunks are numbers, blosc and a checksum, which `encode` and `decode` know.

    Of others zarr writes and reads every chunk. The names are those that a store's metadata holds, which no version of
    zarr can change.
    """
    codecs = _codecs(array)
    big = codecs[0].get("configuration", {}).get("endian") == "big"
    return [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"] and not big


def decode(data: bytes, out: npt.NDArray[Any]) -> None:
    """The numbers of a chunk's file, into an array of the chunk's shape.

    Raises:
        ValueError, RuntimeError: it is damaged.
    """
    if len(data) <= 4 or google_crc32c.value(data) != RESIDUE:
        raise ValueError("its checksum does not fit")
    numcodecs.Blosc().decode(memoryview(data)[:-4], out=out)


def _codecs(array: Array) -> list[dict[str, Any]]:
    """What the array's metadata says of its codecs."""
    metadata: Any = array.metadata
    return [codec.to_dict() for codec in metadata.codecs]


@functools.lru_cache(maxsize=32)
def _compressor(*, cname: str, clevel: int, shuffle: str, blocksize: int, **_: Any) -> Any:
    """Numcodecs' compressor of these settings."""
    return numcodecs.Blosc(cname, clevel, SHUFFLES[shuffle], blocksize)


class _Adapter(ZarrStore):
    """A storage as a store of zarr's, so that its requests are retried, and fail, as all others."""

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
