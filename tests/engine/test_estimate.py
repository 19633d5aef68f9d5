"""What a run says it will take is what it takes."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest

CHOICES = {
    "none": {"keep": ["none"]},
    "attention": {"keep": ["attention"]},
    "attention_mean": {"keep": ["attention_mean"]},
    "tokens": {"keep": ["tokens"]},
    "all": {"keep": ["attention", "attention_mean", "tokens"]},
    "uint8": {"keep": ["attention"], "store_dtype": "uint8"},
    "float32": {"keep": ["attention", "attention_mean", "tokens"], "store_dtype": "float32"},
    "layers": {"keep": ["attention"], "layers": [1]},
    "zstd": {"keep": ["attention", "attention_mean", "tokens"], "codec": "zstd"},
    "not compressed": {"keep": ["attention", "tokens"], "codec": "none"},
}


def numbers_written(store: attlas.Store) -> int:
    """Bytes of all numbers in a store that a run fills, counted without the engine's own layout."""
    total = 0
    for name in store.names:
        array = store.array(name)
        if array.dtype.kind == "T" or name == "done":
            continue
        share = 1.0
        if name.startswith("attention"):
            share = len(store.attrs["kept"]["layers"]) / len(store.spec.layers)
        total += round(math.prod(array.shape) * array.dtype.itemsize * share)
    return total


def text_written(store: attlas.Store) -> int:
    """Bytes of all text: four for each length, and UTF-8."""
    names = [name for name in store.names if store.array(name).dtype.kind == "T" and name != "error"]
    texts = [str(text) for name in names for text in np.asarray(store.read(name)).reshape(-1)]
    return sum(4 + len(text.encode()) for text in texts) + 4 * store.plan.images


@pytest.mark.parametrize("choice", CHOICES)
def test_raw_bytes_are_those_of_every_array(tiny_graph: Path, pictures: Path, tmp_path: Path, choice: str) -> None:
    """The sample's pixels and what no image changes are counted, too."""
    choices: dict[str, Any] = CHOICES[choice]
    dry = attlas.run(tiny_graph, pictures, tmp_path / "s", dry_run=True, **choices).estimate
    assert not (tmp_path / "s").exists()
    attlas.run(tiny_graph, pictures, tmp_path / "s", **choices)
    store = attlas.Store(tmp_path / "s")
    run_own = 2 * 8 * store.plan.images  # size and time of every file, which the store keeps for itself
    assert dry.bytes_raw == numbers_written(store) + text_written(store) + run_own
    assert "pixels" in store.names


def test_pixels_of_larger_pictures_are_in_the_estimate(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Where nothing is kept, the sample's pixels are most of a store."""
    graph = graph_factory(grid=(12, 12), layers=1, heads=1)
    estimate = attlas.run(graph, pictures, tmp_path / "s", keep=["none"], dry_run=True).estimate
    pixels = 50 * 96 * 96 * 3
    assert estimate.bytes_raw > pixels
    assert 0.85 * pixels < estimate.bytes_expected


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_expected_bytes_are_those_on_the_disk(deit: Path, shared: Path, tmp_path: Path, choice: str) -> None:
    """Of a trained model on photographs, within 15 %."""
    choices: dict[str, Any] = CHOICES[choice]
    result = attlas.run(deit, shared / "images", tmp_path / "s", limit=24, **choices)
    written = sum(file.stat().st_size for file in (tmp_path / "s").rglob("*") if file.is_file())
    shutil.rmtree(tmp_path / "s")
    assert result.estimate.bytes_expected == pytest.approx(written, rel=0.15)
