"""What the tests of a judgement start from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import attlas
import pytest
from support import make_graph, make_images

pytest.importorskip("scipy")
pytest.importorskip("numba")


class Made(NamedTuple):
    graph: Path
    images: Path
    store: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A graph of 2 x 3 patches, 12 pictures, and their store with rollout and readout maps."""
    place = tmp_path_factory.mktemp("judge")
    make_graph(place / "g.onnx")
    make_images(place / "images", 12)
    (place / "images" / "n00000001" / "broken.jpg").write_bytes(b"no picture")
    attlas.run(place / "g.onnx", place / "images", place / "s.zarr")
    attlas.analyze(place / "s.zarr", ["rollout", "readout_map"])
    return Made(place / "g.onnx", place / "images", place / "s.zarr")
