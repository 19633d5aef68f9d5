"""What inspect and verify show: a screen of a store, and nothing where they are interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attlas
import pytest
from attlas.engine.inspect import screen
from attlas.engine.messages import facts_lines
from attlas.engine.runner import run
from attlas.words import counted, left_out, part_of, ranges

INTERRUPTED = """
import asyncio, signal, sys
from attlas.engine.store.arrays import _Adapter
from attlas.engine.store.verify import verify

get = _Adapter.get

async def slow(self, *arguments, **options):
    await asyncio.sleep(1.5)
    return await get(self, *arguments, **options)

def stop(*_):
    raise KeyboardInterrupt

def begun(done, total):
    _Adapter.get = slow
    signal.setitimer(signal.ITIMER_REAL, 0.7)

signal.signal(signal.SIGALRM, stop)
try:
    verify(sys.argv[1], progress=begun)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def store(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    run(tiny_graph, pictures, path, limit=8, batch_size=4)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timer")
def test_an_interrupted_verify_leaves_no_complaint_of_an_event_loop(store: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(store)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_every_array_is_listed_in_columns_whatever_its_name() -> None:
    array = {"dtype": "float64", "dims": {"layer": 2}, "bytes": 5}
    name = "distance_renormalized_difference_by_label"
    lines = facts_lines({"arrays": {"entropy": array, name: array}})
    assert [line.index("float64") for line in lines[1:]] == [len(name) + 4] * 2


def test_a_store_without_statistics_shows_its_arrays(store: Path) -> None:
    lines = list(screen(attlas.inspect(store)))
    assert "statistics" not in lines
    assert any(line.split()[:2] == ["attention", "float16"] for line in lines)
    assert any(line.startswith("columns ") and "label_class" in line for line in lines)


def test_a_full_store_fits_a_screen_and_names_each_statistic_once(store: Path) -> None:
    """Every array is on it by its own name, or by the statistic that it sums up."""
    pytest.importorskip("attlas.analysis.statistics")
    attlas.analyze(store, by="label")
    data = attlas.inspect(store)
    lines = list(screen(data))
    assert len(data["arrays"]) > 60
    assert len(lines) <= 40
    found = [line.split() for line in lines if line.startswith("  entropy ")]
    assert len(found) == 1
    text = " ".join(found[0])
    assert "rows (image, layer, head); mean, std, quantile, interval; by label: mean, std, count, difference, q" in text
    words = {word.strip(",") for line in lines for word in line.split()}
    assert {"rollout", "readout_map", "label_group", "score_matrix", "error", "pixels", "8"} <= words
    for name in data["arrays"]:
        assert name in words or any(name.startswith(f"{word}_") for word in words)


def test_facts_say_nothing_of_what_is_empty_and_ranges_of_layers(store: Path, tiny_graph: Path) -> None:
    for path in (tiny_graph, store):
        lines = facts_lines(attlas.inspect(path))
        assert not [line for line in lines if len(line.split()) == 1 and line.endswith(" ")]
        assert [line.split(None, 1)[1] for line in lines if line.split()[0] == "layers"] == ["0 to 1"]


def test_one_is_no_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]
    assert [counted(n, "box is", "boxes are") for n in (1, 2)] == ["1 box is", "2 boxes are"]
    assert [part_of(n, 2000, "image") for n in (1, 2)] == ["1 of 2,000 images is", "2 of 2,000 images are"]
    assert part_of(1, 1, "unit") == "1 of 1 unit is"
    assert (
        left_out({"special files": 1, "links that lead nowhere": 2}) == "links that lead nowhere: 2, special files: 1"
    )
    assert [ranges(one) for one in ((), (3,), (0, 1), (0, 1, 2, 5, 7, 8))] == ["", "3", "0 to 1", "0 to 2, 5, 7 to 8"]


def test_a_store_that_keeps_nothing_large_says_so(store: Path) -> None:
    data = attlas.inspect(store)
    said = {keep: next(line for line in screen(data | {"kept": data["kept"] | {"keep": list(keep)}}) if "codec" in line)
            for keep in ((), ("attention",))}  # fmt: skip
    assert said[()].split(None, 1)[1] == "no large array, codec lz4"
    assert said["attention",].split(None, 1)[1] == "attention, layers 0 to 1, float16, codec lz4"
