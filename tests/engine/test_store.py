"""The store's own writer puts down what zarr would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.plan import make_plan
from attlas.engine.store import arrays as chunks
from attlas.engine.store import schema, storage
from attlas.engine.store.store import ArraySpec, DamagedError, Store, Template
from attlas.errors import AttlasError
from hypothesis import given, settings
from hypothesis import strategies as st
from support import chunk_files, make_spec


def make_store(
    path: Path, dtype: str, shape: tuple[int, ...], images: int, batch: int, codec: str = schema.CODEC
) -> Store:
    """A store of one array `attention`, shaped (images, *shape), and its plan."""
    plan = make_plan(images, layer_bytes=1, image_bytes=1 << 26, identity={}, batch=batch)
    fill: Any = np.nan if dtype.startswith("float") else 0
    dims = ("image", "layer", "head", "query", "key") if len(shape) == 4 else ("image", "value")[: 1 + len(shape)]
    template = Template("attention" if len(shape) == 4 else "values", dims, shape, dtype, fill)
    spec = make_spec()
    attrs = {"kept": {"layers": list(spec.layers)}}
    return Store.create(path, spec, plan, [ArraySpec.from_template(template, plan, codec)], values={}, attrs=attrs)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int32", "bool"])
@pytest.mark.parametrize("shape", [(2, 2, 7, 7), (3,), ()])
def test_chunks_are_the_bytes_that_zarr_writes(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Whole chunks and the padded one at the array's end, in every dtype."""
    rng = np.random.default_rng(0)
    values = (rng.random((11, *shape)) * 200).astype(dtype)
    ours = make_store(tmp_path / "ours", dtype, shape, 11, 4)
    theirs = make_store(tmp_path / "theirs", dtype, shape, 11, 4)
    name = ours.names[0]
    for k in range(ours.plan.units):
        for batch in ours.plan.batches(k):
            at = slice(batch.start, batch.stop)
            for layer in range(2) if len(shape) == 4 else (None,):
                where = (at,) if layer is None else (at, slice(layer, layer + 1))
                ours.write(name, batch.start, values[where], layer=None if layer is None else where[1])
                theirs.array(name)[where] = values[where]
    assert chunk_files(ours.path) == chunk_files(theirs.path)
    assert len(chunk_files(ours.path)) > 1
    np.testing.assert_array_equal(ours.read(name), values)


def test_an_arrays_codecs_are_those_of_the_schema(tmp_path: Path) -> None:
    """As its metadata names them; were they not known again, every chunk would go zarr's slow way without a word."""
    for dtype, size in (("float16", 2), ("float32", 4), ("int32", 4), ("uint8", 1), ("bool", 1)):
        array = make_store(tmp_path / dtype, dtype, (3,), 4, 4).array("values")
        assert chunks.encoded(array), dtype
        stored = json.loads((tmp_path / dtype / "values" / "zarr.json").read_text())["codecs"]
        blosc = dict(schema.CODECS[schema.CODEC][0]["configuration"]) | {"typesize": size}
        blosc |= {"shuffle": "noshuffle"} if size == 1 else {}
        assert stored[1:] == [{"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]


def test_another_codec_is_one_line_of_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another setting of blosc goes the same way; of a compressor that is not known here zarr does every chunk."""
    blosc, checksum = schema.CODECS[schema.CODEC]
    zstd = {"name": "blosc", "configuration": {**blosc["configuration"], "cname": "zstd", "clevel": 3}}
    values = np.arange(33, dtype=np.float32).reshape(11, 3)
    for name, codecs, known in (
        ("zstd", (zstd, checksum), True),
        ("zarr's zstd", ({"name": "zstd", "configuration": {"level": 1, "checksum": False}}, checksum), False),
    ):
        monkeypatch.setattr(chunks, "CODECS", {schema.CODEC: codecs})
        ours, theirs = (make_store(tmp_path / f"{name}-{who}", "float32", (3,), 11, 4) for who in ("ours", "theirs"))
        assert chunks.encoded(ours.array("values")) is known
        for start in (0, 4, 8):
            ours.write("values", start, values[start : start + 4])
        theirs.array("values")[:] = values
        assert chunk_files(ours.path) == chunk_files(theirs.path)
        np.testing.assert_array_equal(ours.read("values"), values)
        ours.mark_done(0)
        assert list(np.flatnonzero(ours.done)) == list(np.flatnonzero(ours.read("run/done"))) == [0]


@pytest.mark.parametrize("codec", schema.CODECS)
def test_chunks_of_every_codec_are_the_bytes_that_zarr_writes(tmp_path: Path, codec: str) -> None:
    """And are written and read in the caller's thread, also the padded one; a flipped bit is noticed."""
    values = np.random.default_rng(0).random((11, 2, 2, 7, 7)).astype(np.float16)
    ours, theirs = (make_store(tmp_path / who, "float16", (2, 2, 7, 7), 11, 4, codec) for who in ("ours", "theirs"))
    assert chunks.encoded(ours.array("attention"))
    for start in (0, 4, 8):
        for layer in range(2):
            part = slice(layer, layer + 1)
            block = values[start : start + 4, part].copy()
            ours.write("attention", start, block, layer=part, later=True)
            block[:] = 0  # a run uses its memory again
    ours.mark_done(0)
    theirs.array("attention")[:] = values
    files = chunk_files(ours.path)
    assert {name: files[name] for name in chunk_files(theirs.path)} == chunk_files(theirs.path)
    np.testing.assert_array_equal(ours.array("attention")[:], values)
    found = np.empty((4, 1, 2, 7, 7), np.float16)
    assert ours.read_chunk("attention", (2, 1, 0, 0, 0), found)
    np.testing.assert_array_equal(found[:3, 0], values[8:, 1])
    path = ours.chunk_path("attention", (0, 0, 0, 0, 0))
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="attention"):
        ours.read_chunk("attention", (0, 0, 0, 0, 0), found)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 9), count=st.integers(1, 5))
def test_what_is_no_whole_chunk_is_written_as_well(
    tmp_path_factory: pytest.TempPathFactory, start: int, count: int
) -> None:
    """Through zarr, leaving the neighbours alone."""
    store = make_store(tmp_path_factory.mktemp("s") / "s", "float32", (3,), 16, 4)
    values = np.arange(48, dtype=np.float32).reshape(16, 3)
    store.write("values", 0, values)
    store.write("values", start, -values[start : start + count])
    values[start : start + count] *= -1
    np.testing.assert_array_equal(store.read("values"), values)


@pytest.mark.parametrize(
    "part",
    [
        (),
        slice(3, 9),
        slice(0, 4),
        slice(-5, -1),
        slice(6, 6),
        slice(2, 90),
        (slice(1, 7), slice(1, 3)),
        (slice(None), 2),
        slice(None, None, 2),
        5,
    ],
)
def test_rows_read_as_zarr_reads_them(tmp_path: Path, part: Any) -> None:
    """Whatever is asked for, also where a chunk is not there, which means fill."""
    store = make_store(tmp_path / "s", "float32", (3,), 11, 4)
    store.write("values", 0, np.arange(33, dtype=np.float32).reshape(11, 3))
    store.chunk_path("values", (1, 0)).unlink()
    got, wanted = store.read("values", part), np.asarray(store.array("values")[part])
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)
    assert np.isnan(store.read("values")[4:8]).all()


def test_a_chunk_that_is_damaged_is_no_number(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", "float32", (3,), 11, 4)
    store.write("values", 0, np.arange(33, dtype=np.float32).reshape(11, 3))
    path = store.chunk_path("values", (1, 0))
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="values"):
        store.read("values", slice(0, 8))
    np.testing.assert_array_equal(store.read("values", slice(0, 4))[:, 0], [0, 3, 6, 9])


def test_a_file_that_does_not_reach_the_disk_is_no_unit_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be found full only when a file is synced, which happens beside the run."""
    store = make_store(tmp_path / "s", "float32", (3,), 4, 4)

    def full(path: Path, *, forget: bool = False) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "sync", full)
        store.write("values", 0, np.zeros((4, 3), np.float32), later=True)
        with pytest.raises(OSError, match="No space left"):
            store.mark_done(0)
    assert not store.done.any()
    store.write("values", 0, np.ones((4, 3), np.float32), later=True)
    store.mark_done(0)
    assert store.done.all()


def test_an_absent_array_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """So that a misspelling is seen at once."""
    store = make_store(tmp_path / "s", "float32", (3,), 4, 2)
    with pytest.raises(AttlasError, match="holds no attention; it has values"):
        store.array("attention")


def test_a_store_is_laid_out_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault on the way leaves nothing behind."""
    from attlas.engine.store import storage

    def fail(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", fail)
    with pytest.raises(AttlasError, match="No space left"):
        make_store(tmp_path / "s", "float32", (3,), 4, 2)
    assert list(tmp_path.iterdir()) == []


def test_units_are_done_by_their_marks_alone(tmp_path: Path) -> None:
    """And `reopen` takes a mark away."""
    store = make_store(tmp_path / "s", "float32", (3,), 4, 2)
    store.write("values", 0, np.zeros((4, 3), np.float32))
    assert not store.done.any()
    for k in range(store.plan.units):
        store.mark_done(k)
    assert store.done.all()
    assert store.done_images.all()
    assert store.read("run/done").all()
    store.reopen(0)
    assert list(np.flatnonzero(~store.done)) == [0]


def test_a_killed_deletion_neither_stops_the_next_nor_stays(tmp_path: Path) -> None:
    """Process numbers repeat in containers: what an earlier process left has no name that another may need."""
    for number in (1, 2):
        left = tmp_path / f".s.zarr.{number}.deleted" / "attention"
        left.mkdir(parents=True)
        (left / "c.0").write_bytes(b"half")
    other = tmp_path / ".other.zarr.1.deleted"
    other.mkdir()
    make_store(tmp_path / "s.zarr", "float16", (2, 2, 7, 7), 4, 4)
    Store.remove(tmp_path / "s.zarr")
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
