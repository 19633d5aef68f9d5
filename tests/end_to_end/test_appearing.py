"""A file is there whole, or as it was before; and JSON that nests too deeply is as any other that does not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.conform.cases import Cases
from attlas.engine.sources import open_source
from attlas.engine.store.storage import storage_at
from attlas.errors import AttlasError
from attlas.exporter.spec import GraphSpec
from attlas.files import appearing, drafting, from_json
from support import make_spec


def test_it_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    with appearing(path) as beside:
        beside.write_text("half")
        assert not path.exists()
        beside.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_where_the_work_fails(tmp_path: Path, end: type[BaseException]) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def fail() -> None:
        with appearing(path) as beside:
            beside.write_text("half")
            raise end

    with pytest.raises(end):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AttlasError, match=r"file: cannot be written \((File exists|Not a directory)"),
        appearing(tmp_path / "file" / "page.html"),
    ):
        pytest.fail("the work began")
    with pytest.raises(AttlasError, match=r"^other: cannot be written \(No space"), appearing(tmp_path / "page.html"):
        raise OSError(28, "No space left on device", "other")


def test_drafts_of_killed_processes_go_and_no_others(tmp_path: Path) -> None:
    """With the next of the same name: those that nobody holds, that are not new, and that are ours by their names."""
    path, old = tmp_path / "x", 1e9
    dead = [tmp_path / f".x.{middle}.partial" for middle in ("123", "ab_d5fgh", "0" * 32)]
    held = tmp_path / ".x.7.partial"
    kept = [tmp_path / name for name in (".x.y.7.partial", ".x.mine.partial", ".y.7.partial", "x.7.partial")]
    new = tmp_path / ".x.8.partial"
    for file in (*dead[:2], held, *kept, new):
        file.touch()
    dead[2].mkdir()
    (dead[2] / "zarr.json").touch()
    with drafting(held, tmp_path / "x"):
        for file in (*dead, held, *kept):
            os.utime(file, (old, old))
        with appearing(tmp_path / "z" / "x"), appearing(path, among=True):
            assert all(file.exists() for file in dead)
        with appearing(path) as beside:
            beside.write_text("whole")
            assert not any(file.exists() for file in dead)
    assert set(tmp_path.iterdir()) == {path, tmp_path / "z", held, new, *kept}
    assert path.read_text() == "whole"
    with appearing(path):
        assert not held.exists()


def test_a_store_that_is_laid_out_takes_earlier_drafts_away(tmp_path: Path) -> None:
    draft = tmp_path / f".s.zarr.{'a' * 32}.partial"
    draft.mkdir()
    os.utime(draft, (1e9, 1e9))
    assert storage_at(tmp_path / "s.zarr").lay_out({"a/b/c": b"1", "zarr.json": b"{}"}, b"")
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]
    assert (tmp_path / "s.zarr" / "a" / "b" / "c").read_bytes() == b"1"


DEEP = "[" * 100_000


def _cases(folder: Path) -> Any:
    np.savez(folder / "c.npz", attlas=np.array(DEEP))
    return Cases(folder / "c.npz", folder / "g.onnx", make_spec())


def _table(folder: Path) -> Any:
    (folder / "t.jsonl").write_text(DEEP)
    return open_source(folder / "t.jsonl")


def _store(folder: Path) -> Any:
    (folder / "s.zarr").mkdir()
    (folder / "s.zarr" / "zarr.json").write_text(DEEP)
    return attlas.inspect(folder / "s.zarr")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda _: GraphSpec.from_json(DEEP, "g.onnx"), "g.onnx: its attlas metadata is no JSON object"),
        (_cases, "c.npz: holds no cases"),
        (_table, r"line 1 is no JSON \(nested too deeply"),
        (_store, "s.zarr: is no attention store"),
    ],
)
def test_json_that_nests_too_deeply_is_one_line(read: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AttlasError, match=said):
        read(tmp_path)


def test_json_is_a_value_or_a_value_error() -> None:
    assert from_json(b'{"a": [1]}') == {"a": [1]}
    for text in (DEEP, "{", "", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            from_json(text)
