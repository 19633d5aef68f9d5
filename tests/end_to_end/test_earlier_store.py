"""A store that an earlier version made opens, goes on where it stopped, and ends as one of today's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import attlas
import numpy as np
import pytest
from attlas.cli import cli
from attlas.engine import Store
from click.testing import CliRunner
from support import chunk_files

FIXTURES = Path(__file__).parents[1] / "fixtures"
BATCH = 2  # what the earlier run was asked for
BY_PROCESSOR = {"run/mtime_ns"}  # of the files as they were unpacked


class Earlier(NamedTuple):
    """The earlier version's graph, pictures and half-done store, and today's fresh store of the same."""

    graph: Path
    pictures: Path
    store: Path
    fresh: Path


def unpacked(folder: Path) -> Earlier:
    with zipfile.ZipFile(FIXTURES / "store_format1.zip") as archive:
        archive.extractall(folder)
    return Earlier(folder / "graph.onnx", folder / "pictures", folder / "store.zarr", folder / "fresh.zarr")


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    """As it was left: 10 of 20 units done, analysed, also by label."""
    return unpacked(tmp_path)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Earlier, dict[str, bytes], attlas.Store]:
    """The store after today's code did the rest, with the chunk files that it had before."""
    place = unpacked(tmp_path_factory.mktemp("earlier"))
    before = chunk_files(place.store)
    result = attlas.run(place.graph, place.pictures, place.store, batch_size=BATCH)
    assert (result.finished, result.done, result.errors) == (True, 20, 0)
    attlas.run(place.graph, place.pictures, place.fresh, batch_size=BATCH)
    return place, before, Store(place.store)


def array_of(key: str) -> str:
    """The array that a chunk file belongs to."""
    return key.rpartition("/c.")[0]


def assert_same_values(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal, but for the rounding of another processor where they are floats; in float16 that is one step."""
    if ours.dtype.kind == "f":
        rtol = 1e-3 if ours.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-6, err_msg=name)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_it_opens(earlier: Earlier) -> None:
    """Its plan, its rows, its statistics, and what is not done yet as fill."""
    store = Store(earlier.store)
    assert (store.plan.images, store.plan.batch, store.plan.units) == (40, BATCH, 20)
    assert list(np.flatnonzero(store.done)) == list(range(0, 20, 2))
    ds = attlas.open(earlier.store)
    assert int(ds.done.sum()) == 20
    assert ds.attention.dims == ("image", "layer", "head", "query", "key")
    done = ds.done.values
    np.testing.assert_allclose(ds.attention.values[done].sum(-1), 1, atol=2e-3)
    assert np.isnan(ds.attention.values[~done]).all()
    assert sorted(set(ds.label.values.tolist())) == [f"n{i:08d}" for i in range(4)]
    # The statistics are those of the rows beside them.
    for name in ("distance", "distance_renormalized", "entropy", "entropy_patch", "prefix_mass"):
        np.testing.assert_allclose(ds[f"{name}_mean"], ds[name].values[done].mean(0), rtol=1e-5, err_msg=name)
        by_label = [ds[name].values[done & (ds.label.values == label)].mean(0) for label in ds.label_group.values]
        np.testing.assert_allclose(ds[f"{name}_mean_by_label"], by_label, rtol=1e-5, err_msg=name)
    assert ds.label_group_images.values.tolist() == [6, 4, 6, 4]


def test_inspect_and_verify_take_it(earlier: Earlier) -> None:
    found = attlas.inspect(earlier.store)
    assert (found["attlas_format"], found["units_done"], found["units"], found["finished"]) == (1, 10, 20, False)
    assert (found["images_done"], found["images"], found["errors"]) == (20, 40, 0)
    assert found["graph_sha256"] == attlas.inspect(earlier.graph)["sha256"]
    checked = attlas.verify(earlier.store)
    assert (checked.units, checked.faults) == (10, {})
    for command in (["inspect"], ["verify"]):
        done = CliRunner().invoke(cli, [*command, str(earlier.store)])
        assert done.exit_code == 0, done.output


def test_a_flipped_bit_in_it_is_found(earlier: Earlier) -> None:
    """Its checksums are read as today's are."""
    path = Store(earlier.store).chunk_path("attention", (4, 1, 0, 0, 0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert list(attlas.verify(earlier.store).faults) == [4]


def test_what_was_done_keeps_its_bytes(resumed: tuple[Earlier, dict[str, bytes], Store]) -> None:
    """Every chunk file of a unit that the earlier version did, and of its layout."""
    place, before, _ = resumed
    after = chunk_files(place.store)
    assert {key for key in before if after.get(key) != before[key]} == set()
    assert len(before) == 248


def test_it_ends_as_a_fresh_store(resumed: tuple[Earlier, dict[str, bytes], Store]) -> None:
    """The same files; the same bytes in what is text or whole numbers, the same values in what is computed."""
    place, _, store = resumed
    fresh = Store(place.fresh)
    analyzed = set(store.attrs["analyzed"])
    ours = {key: data for key, data in chunk_files(place.store).items() if array_of(key) not in analyzed}
    theirs = chunk_files(place.fresh)
    assert ours.keys() == theirs.keys()
    other = {array_of(key) for key in ours if ours[key] != theirs[key]} - BY_PROCESSOR
    for name in sorted(other):
        assert fresh.array(name).dtype.kind == "f", f"{name}: other bytes"
        assert_same_values(name, store.read(name), fresh.read(name))
    assert attlas.verify(place.store).faults == {}


@pytest.mark.parametrize("by", ["", "label"])
def test_it_is_analysed_to_what_a_fresh_store_gives(earlier: Earlier, by: str) -> None:
    """Sums of the earlier version's units are taken over, and those of the new ones added."""
    attlas.run(earlier.graph, earlier.pictures, earlier.store, batch_size=BATCH)
    attlas.run(earlier.graph, earlier.pictures, earlier.fresh, batch_size=BATCH)
    found = attlas.analyze(earlier.store, by=by)
    assert (found.images, found.finished) == (40, True)
    attlas.analyze(earlier.fresh, by=by)
    ours, theirs = attlas.open(earlier.store), attlas.open(earlier.fresh)
    made = sorted(attlas.analyze(earlier.fresh, by=by).summed)
    assert made
    for name in made:
        assert_same_values(name, np.asarray(ours[name]), np.asarray(theirs[name]))
        assert ours[name].dims == theirs[name].dims


def test_half_of_it_is_analysed_again_to_the_same_numbers(earlier: Earlier) -> None:
    """With nothing new, today's statistics are those of the earlier version; inference has other methods."""
    before = attlas.open(earlier.store).load()
    for by in ("", "label"):
        attlas.analyze(earlier.store, by=by, overwrite=True)
    after = attlas.open(earlier.store).load()
    for name in map(str, before.data_vars):
        if name.endswith("_interval") or "_q_by_" in name:
            assert after[name].attrs["method"] != before[name].attrs.get("method")
        else:
            assert_same_values(name, after[name].values, before[name].values)


def test_a_report_is_made_of_it(earlier: Earlier, tmp_path: Path) -> None:
    """Of the half that is there, from the command line."""
    page = tmp_path / "report.html"
    done = CliRunner().invoke(cli, ["report", str(earlier.store), "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8")
    assert "tiny_test" in text
    assert "20" in text
