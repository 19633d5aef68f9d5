"""Plain mistakes in Python are one line everywhere: what was found, and what is meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attlas
import numpy as np
import pytest
from attlas import arguments
from attlas.errors import AttlasError, UsageError
from support import make_images

pytest.importorskip("numba")
pytest.importorskip("xarray")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, tiny_graph: Path) -> SimpleNamespace:
    """A graph, two pictures, their store, and a place to write."""
    folder = tmp_path_factory.mktemp("doors")
    images = make_images(folder / "images", 2)
    store = attlas.run(tiny_graph, images, folder / "a.zarr").path
    attlas.analyze(store)
    return SimpleNamespace(store=store, graph=tiny_graph, images=images, new=folder / "new")


def _run(a: Any, **options: Any) -> Any:
    return attlas.run(a.graph, a.images, a.new, **options)


def _judge(a: Any, **options: Any) -> Any:
    return attlas.judge(a.store, a.graph, a.images, **{"maps": "rollout", "steps": 2} | options)


MISTAKES: list[tuple[Callable[[Any], Any], str]] = [
    # texts that are no list
    (lambda a: attlas.analyze(a.store, "self_mas"), "no statistic self_mas"),
    (lambda a: _judge(a, maps="rollou"), "rollou"),
    (lambda a: attlas.report(a.store, "r.html", only="distanc"), "--only distanc: .* did you mean distance"),
    (lambda a: attlas.report(a.store, "r.html", names=5), "names: pass a name, or a list of them, not 5 .int"),
    (lambda a: _run(a, keep="tokes"), "--keep tokes: choose from"),
    (lambda a: _run(a, layers="all"), "layers: pass a list of whole numbers, not 'all'"),
    (lambda a: attlas.plot.compare(str(a.store)), "takes two stores or more"),
    (lambda a: attlas.Statistic("x", 5, lambda attention: 0), "dims: pass a name"),  # type: ignore[arg-type]
    # numbers
    (lambda a: _run(a, limit="5"), "limit: pass a whole number, not '5' .str"),
    (lambda a: _run(a, limit=2.5), "limit: pass a whole number, not 2.5"),
    (lambda a: _run(a, batch_size="x"), "batch_size: pass a whole number"),
    (lambda a: _run(a, seed=None), "seed: pass a whole number"),
    (lambda a: _run(a, workers="2"), "workers: pass a whole number"),
    (lambda a: _run(a, threads=True), "threads: pass a whole number, not True"),
    (lambda a: _run(a, shard="1/2"), "shard: pass two whole numbers, such as .1, 4., not '1/2'"),
    (lambda a: _run(a, shard=(1, 2, 3)), "shard: pass two"),
    (lambda a: _judge(a, steps="4"), "steps: pass a whole number"),
    (lambda a: attlas.analyze(a.store, workers=1.5), "workers: pass a whole number"),
    (lambda a: attlas.report(a.store, "r.html", examples="3"), "examples: pass a whole number"),
    (lambda a: attlas.report(a.store, "r.html", explore="3"), "explore: pass a whole number"),
    (lambda a: attlas.view(a.store, "v.html", count="3"), "count: pass a whole number"),
    (lambda a: attlas.conform(a.graph, limit="3"), "limit: pass a whole number"),
    (lambda a: attlas.show(a.store, head="x"), "head: pass a whole number"),
    (lambda a: attlas.show(a.store, target="cat"), "target: pass the index of a class, or -1, not 'cat'"),
    (lambda a: attlas.show(a.store, threshold="half"), "threshold: pass a number"),
    (lambda a: attlas.Session(a.graph)(np.zeros((1, 16, 24, 3), np.uint8), target="cat"), "target: pass a list of"),
    (lambda a: attlas.plot.examples(a.store, count="x"), "count: pass a whole number"),
    # choices
    (lambda a: _run(a, provider=5), "provider: pass a name, not 5"),
    (lambda a: _run(a, codec=["lz4"]), "codec: pass a name"),
    (lambda a: _run(a, statistics="x"), "statistics: pass one of auto, card, graph, host, not 'x'"),
    (lambda a: _run(a, scheduler=5), "scheduler: pass its address, such as tcp://HOST:8786, or an Executor, not 5"),
    (lambda a: _judge(a, provider=5), "provider: pass a name"),
    (lambda a: attlas.Session(a.graph, provider=5), "provider: pass a name"),
    (lambda a: attlas.report(a.store, "r.html", style=["paper"]), "style: pass a name"),
    (lambda a: attlas.plot.distance(a.store, panel=5), "panel: pass a name"),
    (lambda a: attlas.Statistic("x", "layer", "y"), "x: 'y' is no function"),
    # pairs and indices
    (lambda a: attlas.show(a.store, patch=5), "patch: pass .row, column., such as .3, 7., not 5"),
    (lambda a: attlas.show(a.store, at=(1, 2, 3)), "at: pass .x, y. in pixels"),
    (lambda a: attlas.show(a.store, image=2.5), "image: pass a path or an index"),
    (lambda a: attlas.plot.overlay(a.store, image=2.5), "image: pass an index or a path"),
    (lambda a: attlas.plot.overlay(a.store, image="camera.jpg"), "camera.jpg: .* no such path"),
    (lambda a: attlas.plot.overlay(a.store, patch="3"), "patch: pass"),
    (lambda a: attlas.plot.distance(a.store, 5), "ax: pass matplotlib's Axes, not 5"),
    # paths
    (lambda a: attlas.run(5, a.new, a.new), "graph: pass the path of an ONNX file, not 5"),
    (lambda a: attlas.run(a.graph, 5, a.new), "images: int is no path, and no source"),
    (lambda a: attlas.run(a.graph, ["a.jpg"], a.new), "images: a list is no source; .* column path"),
    (lambda a: attlas.run(a.graph, a.images, None), "store: pass the path of a store"),
    (lambda a: attlas.judge(a.store, a.graph, 5, maps="rollout", steps=2), "images: int is no path"),
    (lambda a: attlas.open(5), "store: pass the path of a store, a Store, or what `attlas.open` gives, not 5"),
    (lambda a: attlas.open(b"a.zarr"), "store: pass .*, not b'a.zarr' .bytes"),
    (lambda a: attlas.analyze(5), "store_path: pass a path, not 5"),
    (lambda a: attlas.inspect(5), "pass the path of a store"),
    (lambda a: attlas.verify(5), "pass the path of a store"),
    (lambda a: attlas.compare(a.store, 5), "pass the path of a store"),
    (lambda a: attlas.view(5), "stores: pass the path of a store, or a list of them, not 5"),
    (lambda a: attlas.view([5]), "stores: pass .* not 5"),
    (lambda a: attlas.report(5, "r.html"), "stores: pass the path of a store"),
    (lambda a: attlas.report(a.store, 5), "output: pass the path of the page"),
    (lambda a: attlas.report(a.store, "r.html", boxes=5), "boxes: pass a path"),
    (lambda a: attlas.report(a.store, "r.html", images=5), "images: pass the path of a folder"),
    (lambda a: attlas.show(5), "source: pass the path of a graph or a store"),
    (lambda a: attlas.show(a.store, output=5), "output: pass a path"),
    (lambda a: attlas.plot.distance(5), "pass the path of a store, a Store"),
    (lambda a: attlas.demo(5), "folder: pass a path"),
    (lambda a: attlas.conform(a.graph, results=5), "results: pass a path"),
    (lambda a: attlas.conform(5), "graph: pass the path of an ONNX file"),
    # names and statistics
    (lambda a: _run(a, keep=5), "keep: pass a name, or a list of them, not 5"),
    (lambda a: _run(a, keep=None), "keep: pass a name, or a list of them, not None"),
    (lambda a: _run(a, target=None), "--target None"),
    (lambda a: attlas.analyze(a.store, 5), "names: pass names or `Statistic`s, not 5"),
    (lambda a: attlas.analyze(a.store, [5]), "names: pass names or `Statistic`s, not 5"),
    (lambda a: attlas.analyze(a.store, [lambda attention: 1]), "names: pass names or `Statistic`s, not <function"),
    (lambda a: attlas.analyze(a.store, by=["label"]), "by: pass a name, not .'label'"),
    (lambda a: attlas.analyze(a.store, cluster=5), "cluster: pass a name"),
    (lambda a: _judge(a, maps=5), "maps: pass names or `Statistic`s, not 5"),
]


@pytest.mark.parametrize(("call", "said"), MISTAKES)
def test_a_mistake_is_one_line(at: SimpleNamespace, call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(AttlasError, match=said) as caught:
        call(at)
    assert "\n" not in str(caught.value)
    assert not at.new.exists()


def test_a_text_is_a_list_of_one(at: SimpleNamespace, tmp_path: Path) -> None:
    assert "self_mass" in attlas.analyze(at.store, "self_mass").made
    mine = attlas.Statistic("mine", "layer", lambda attention: attention.mean())
    assert mine.dims == ("layer",)
    assert attlas.analyze(at.store, mine).made == ("mine",)
    one = np.int64(1)
    result = attlas.run(at.graph, at.images, tmp_path / "b.zarr", keep="none", layers=1, limit=one, batch_size=one)
    assert (result.images, "attention" in attlas.Store(result.path)) == (1, False)


def test_a_store_is_its_path_a_store_or_a_dataset(at: SimpleNamespace, tmp_path: Path) -> None:
    """The same of each, at every door."""
    found = attlas.open(at.store)
    for one in (str(at.store), attlas.Store(at.store), found):
        assert attlas.open(one).sizes == found.sizes
        assert attlas.inspect(one)["images"] == found.sizes["image"]
        assert attlas.verify(one).faults == {}
        assert np.allclose(attlas.compare(one, found).divergence, 0, atol=1e-6)
        with pytest.raises(UsageError, match="--only nothing"):
            attlas.report(one, tmp_path / "r.html", only="nothing")
    assert attlas.analyze(found).path == at.store


def test_a_part_of_a_store_is_not_taken_for_the_whole(at: SimpleNamespace, tmp_path: Path) -> None:
    """Of images or layers; a selection of variables is another matter."""
    found = attlas.open(at.store)
    said = r"this Dataset holds 1 of 2 along (image|layer) of .*a\.zarr, .* pass the store"
    for part in (found.isel(image=[1]), found.isel(image=0), found.sel(layer=1)):
        for call in (attlas.plot.distance, attlas.analyze, attlas.inspect, attlas.open):
            with pytest.raises(UsageError, match=said):
                call(part)
        with pytest.raises(UsageError, match=said):
            attlas.report([at.store, part], tmp_path / "r.html")
    assert attlas.inspect(found[["entropy_mean"]])["images"] == 2


def test_what_counts_as_a_number_or_a_path() -> None:
    assert (arguments.whole(np.int8(3), "x"), type(arguments.whole(np.int8(3), "x"))) == (3, int)
    assert arguments.numbers(np.arange(3), "x") == (0, 1, 2)
    assert arguments.numbers(np.array(2), "x") == arguments.numbers(2, "x") == (2,)
    assert arguments.path(Path("a") / "b") == str(Path("a") / "b")
    assert arguments.paths("ab", "x") == ["ab"]
    assert arguments.names(iter("ab"), "x") == ("a", "b")
    with pytest.raises(UsageError, match=r"x: pass a list of whole numbers, not 0\.5 \(float"):
        arguments.numbers([1, 0.5], "x")


def test_what_is_listed_is_what_is_meant_for_callers() -> None:
    assert sorted(dir(attlas)) == sorted([*attlas.__all__, "__version__"])


def test_results_are_readable(at: SimpleNamespace, tmp_path: Path) -> None:
    """What the command prints, in a notebook without a terminal: no dump of arrays or specs."""
    planned = attlas.run(at.graph, at.images, tmp_path / "x.zarr", dry_run=True)
    ran, judged = attlas.run(at.graph, at.images, tmp_path / "y.zarr", limit=1), _judge(at)
    analyzed, compared = attlas.analyze(at.store), attlas.compare(at.store, at.store)
    said = (
        (planned, "2 units of 1 image, batches of 1; 0 done"),
        (ran, "y.zarr: 1 image in "),
        (analyzed, "a.zarr: 2 images, "),
        (judged, "\nmap      deletion"),
        (compared, "2 images in both\nlayer,other_layer,"),
    )
    for result, words in said:
        shown = repr(result)
        assert words in shown
        assert not re.search(r"array\(|Result\(|Estimate\(|dtype", shown)
        assert len(shown.splitlines()) <= 20
        assert max(map(len, shown.splitlines())) <= 240
