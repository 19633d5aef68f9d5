"""Arrays and their chunks, in a folder or a bucket: the one module that knows zarr.

A whole chunk is encoded and decoded by numcodecs in the caller's thread, which halves what zarr's way costs
(docs/engine.md has the figures); the bytes are those that zarr writes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
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

from .places import ROOT, Storage
from .schema import CODECS, ArraySpec

__all__ = [
    "Array",
    "added",
    "chunk_key",
    "decode",
    "encode",
    "encoded",
    "enlist",
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


def added(arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of arrays that join a group, by key: metadata, and the chunks of `values`."""
    files: dict[str, Buffer] = {}
    chunks = _filled(zarr.create_group(MemoryStore(files)), arrays, values)
    return {key: data.to_bytes() for key, data in files.items() if key != ROOT} | chunks


def chunk_key(name: str, index: Iterable[int]) -> str:
    """The key of an array's chunk: a file in the array's folder."""
    return f"{name}/c.{'.'.join(map(str, index))}"


def enlist(storage: Storage, files: Mapping[str, bytes], attrs: Mapping[str, Any]) -> None:
    """Put the metadata among `added` files beside the others' in the root, which opens a store, and set attributes."""
    root = json.loads(storage.read(ROOT))
    root["attributes"] |= attrs
    if root.get("consolidated_metadata"):
        gathered = root["consolidated_metadata"]["metadata"]
        gathered |= {key[: -len(ROOT) - 1]: json.loads(files[key]) for key in files if key.endswith(ROOT)}
    storage.write(ROOT, json.dumps(root).encode())


def _filled(root: zarr.Group, arrays: Iterable[ArraySpec], values: Mapping[str, Any]) -> dict[str, bytes]:
    """Lay arrays out in a group in memory, with `values`; those chunks by key that are not written into it."""
    chunks: dict[str, bytes] = {}
    for array in arrays:
        made = _create(root, array)
        given = values.get(array.name)
        if given is None or not made.shape or 0 in made.shape:
            continue
        if made.chunks == np.shape(given) and encoded(made):
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
        chunk_key_encoding={"name": "default", "separator": "."},
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
