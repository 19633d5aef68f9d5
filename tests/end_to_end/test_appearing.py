"""A file is there whole, or as it was before; and JSON that nests too deeply is as any other that does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.conform.cases import Cases
from attlas.engine.sources import open_source
from attlas.errors import AttlasError
from attlas.exporter.spec import GraphSpec
from attlas.files import appearing, from_json
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
