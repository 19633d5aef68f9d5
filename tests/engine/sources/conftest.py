"""What the tests of sources start from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attlas.engine.sources import Folder
from support import make_images
from support_sources import Row

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 pictures in four class folders."""
    return make_images(tmp_path_factory.mktemp("few"), 13)


@pytest.fixture(scope="session")
def rows(few: Path) -> list[Row]:
    """Key, label and bytes of its pictures, in order."""
    source = Folder.scan(few)
    return [(item.key, item.label, source.read(item)) for item in source.items]


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system that lies in memory, empty."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()
