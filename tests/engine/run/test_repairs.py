"""Whatever of a store is damaged: verify finds it, and what it says to do mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine.store.store import DamagedError


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _drop(file: Path) -> None:
    file.unlink()


def _garbage(file: Path) -> None:
    file.write_text("[")


# What happens to a file of an array, and what is said to write it again.
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "layer": ("*[0-9]", _flip, "the same `attlas run`"),
    "path": ("*[0-9]", _flip, "the same `attlas run`"),
    "position_embedding": ("*[0-9]", _drop, "the same `attlas run`"),
    "run/size": ("*[0-9]", _folder, "the same `attlas run`"),
    "rollout_mean": ("*[0-9]", _flip, "`attlas analyze`"),
    "distance_mean": ("*[0-9]", _folder, "`attlas analyze`"),
    "self_mass": ("*1.0.0", _flip, "`attlas analyze`"),
    "label_group": ("*[0-9]", _flip, "`attlas analyze --by label`"),
    "rollout_count_by_label": ("*[0-9]", _drop, "`attlas analyze --by label`"),
    "entropy": ("zarr.json", _drop, "zarr.json is missing"),
    "entropy_mean": ("zarr.json", _garbage, "zarr.json does not read"),
    "run/done": ("zarr.json", _folder, "zarr.json does not read"),
    "run": ("zarr.json", _garbage, "zarr.json does not read"),
}


def _values(path: Path) -> dict[str, np.ndarray]:
    store = Store(path)
    return {name: store.read(name) for name in sorted({*store.names, *store.fixed})}


def test_what_is_damaged_is_found_said_and_mended(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """In units and outside them, in data and metadata: no advice leads nowhere, and every value is there again."""
    path = tmp_path / "s.zarr"

    def again() -> None:
        attlas.run(tiny_graph, pictures, path, limit=8, batch_size=2)
        attlas.analyze(path, by="label")

    attlas.run(tiny_graph, pictures, path, limit=8, batch_size=2)
    attlas.analyze(path, ["self_mass"])
    again()
    before = _values(path)
    assert attlas.verify(path).arrays == {}
    for name, (which, damage, _) in DAMAGES.items():
        damage(next((path / name).glob(which)))
    _folder(next((path / "height").glob("c.1")))
    shutil.rmtree(path / "error")
    with pytest.raises(DamagedError, match=r"layer does not read .*removes it, and the same `attlas run` writes it"):
        Store(path).read("layer")
    found = attlas.verify(path)
    assert found.arrays.keys() == {*DAMAGES, "error"}
    for name, (_, _, said) in DAMAGES.items():
        assert said in found.arrays[name]
    assert found.faults.keys() == {0, 1, 2, 3}
    assert attlas.verify(path, repair=True).repaired
    again()
    found = attlas.verify(path)
    assert (found.faults, found.arrays) == ({}, {})
    after = _values(path)
    assert after.keys() == before.keys()
    for name, values in before.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(after[name], values, rtol=1e-12)
        else:
            assert after[name].tolist() == values.tolist()
