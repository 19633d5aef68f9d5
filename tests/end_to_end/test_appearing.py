"""A file is there whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest
from attlas.errors import AttlasError
from attlas.files import appearing


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
