"""The store's own writer puts down what zarr would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.plan import make_plan
from attlas.engine.store import ArraySpec, Store, Template
from attlas.exporter.errors import AttlasError
from hypothesis import given, settings
from hypothesis import strategies as st
from support import chunk_files, make_spec


def make_store(path: Path, dtype: str, shape: tuple[int, ...], images: int, batch: int) -> Store:
    """A store of one array `attention`, shaped (images, *shape), and its plan."""
    plan = make_plan(images, layer_bytes=1, image_bytes=1 << 26, identity={}, batch=batch)
    fill: Any = np.nan if dtype.startswith("float") else 0
    dims = ("image", "layer", "head", "query", "key")[: 1 + len(shape)]
    template = Template("attention" if len(shape) == 4 else "values", dims, shape, dtype, fill)
    spec = make_spec()
    attrs = {"kept": {"layers": list(spec.layers)}}
    return Store.create(path, spec, plan, [ArraySpec.from_template(template, plan)], values={}, attrs=attrs)


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


def test_an_absent_array_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """So that a misspelling is seen at once."""
    store = make_store(tmp_path / "s", "float32", (3,), 4, 2)
    with pytest.raises(AttlasError, match="holds no attention; it has values"):
        store.array("attention")


def test_a_store_is_laid_out_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault on the way leaves nothing behind."""
    from attlas.engine import places

    def fail(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places, "_sync", fail)
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
