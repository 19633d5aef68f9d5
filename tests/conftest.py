"""What the tests share: small graphs and pictures that they make, and real ones where these are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import make_graph, make_images


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images: `models/`, `images/`, `golden/`."""
    place = os.environ.get("ATTLAS_SHARED")
    if not place:
        pytest.skip("real weights and images are needed: set ATTLAS_SHARED to the folder that holds them")
    return Path(place)


@pytest.fixture(scope="session")
def tiny_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two layers, two heads, a class token and a grid of 2 x 3 patches."""
    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    make_graph(path)
    return path


@pytest.fixture
def graph_factory(tmp_path: Path) -> Callable[..., Path]:
    """Makes further graphs: takes what `make_spec` takes, and `seed`, `sharpness`."""
    count = 0

    def make(**changes: Any) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"graph{count}.onnx"
        make_graph(path, **changes)
        return path

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 50 pictures in four class folders."""
    return make_images(tmp_path_factory.mktemp("pictures"), 50)
