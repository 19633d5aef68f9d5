"""What the tests of workers start from."""

from __future__ import annotations

from pathlib import Path

import attlas
import pytest
from support import chunk_files


@pytest.fixture(scope="session")
def whole(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunk files that this process alone writes."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    attlas.run(tiny_graph, pictures, store)
    return chunk_files(store)
