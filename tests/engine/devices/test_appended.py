"""Statistics as part of the graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Session, Store
from attlas.engine.contents import Choices, Contents, Reducer
from attlas.engine.keep import Keep
from attlas.engine.runtime.graph import APPENDED, read_spec
from attlas.engine.runtime.outputs import Wanted
from attlas.engine.runtime.slots import RING
from attlas.errors import AttlasError, UsageError
from support_devices import assert_same_store

GRAPHS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers, 3 x 5": {"grid": (3, 5), "prefix": ("class", "register")},
    "no prefix": {"prefix": ()},
}


# -- statistics in the graph -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "dtype"), [("none", "float16"), ("attention", "float32"), ("attention", "uint8")])
@pytest.mark.parametrize("kind", GRAPHS)
def test_statistics_in_the_graph_store_what_those_of_the_host_do(
    kind: str, keep: str, dtype: str, graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """The same arrays within 1e-5, stored attention and prefix rows to the bit."""
    graph = graph_factory(**GRAPHS[kind])
    paths = [
        attlas.run(
            graph, pictures, tmp_path / f"{where}.zarr", keep=(keep,), store_dtype=dtype, limit=12, statistics=where
        ).path
        for where in ("host", "graph")
    ]
    assert_same_store(*paths, tolerance=1e-5)
    for name in {"attention", "prefix_attention"} & set(Store(paths[0]).names):
        np.testing.assert_array_equal(Store(paths[0]).read(name), Store(paths[1]).read(name))


def test_with_statistics_in_the_graph_only_stored_attention_is_an_output(tiny_graph: Path) -> None:
    """With `--keep none` kilobytes leave the device, with one layer kept that layer."""
    spec = read_spec(tiny_graph)

    def names(keep: str, layers: list[int] | None, dtype: str, *, appended: bool) -> list[str]:
        contents = Contents.derive(spec, Choices(Keep.choose(spec, (keep,), layers, dtype)))
        return [want.name for want in contents.wanted(appended=appended)]

    assert names("none", None, "float16", appended=True) == ["logits"]
    assert len(names("none", None, "float16", appended=False)) == 1 + len(spec.layers)
    assert names("attention", [1], "float16", appended=True) == ["logits", "attention.1:float16"]
    assert names("attention", [1], "uint8", appended=True) == ["logits", "attention.1:uint8"]


def test_where_statistics_are_computed_can_be_told(tiny_graph: Path) -> None:
    """In the graph on an accelerator, on the host elsewhere, unless told otherwise."""
    from attlas.analysis.kernels.fused import Reducer as Known

    class Bare(Reducer):
        def __init__(self, spec: Any) -> None:
            self.templates = ()

    spec = read_spec(tiny_graph)

    def model(reducer: Any, where: Any, *, accelerator: bool) -> bytes | None:
        choices = Choices(Keep.choose(spec, ("none",), None, "float16"), reducer, where)
        return Contents.derive(spec, choices).appended(accelerator=accelerator)

    assert model(Known, "auto", accelerator=False) is None
    assert model(Known, "host", accelerator=True) is None
    assert model(None, "graph", accelerator=True) is None
    assert model(Known, "auto", accelerator=True) is not None
    assert model(Bare, "auto", accelerator=True) is None
    with pytest.raises(UsageError, match="ndonnx"):
        model(Bare, "graph", accelerator=True)


def test_attention_that_is_not_finite_ends_a_run_with_statistics_in_the_graph(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Naming layer and image, although attention never came to the host."""
    graph = graph_factory(sharpness=float("inf"))
    with pytest.raises(AttlasError, match=r"n0\d+/.*: attention of layer 0 is not finite"):
        attlas.run(graph, pictures, tmp_path / "s.zarr", keep=("none",), statistics="graph")


def test_an_appended_model_that_does_not_fit_is_refused(tiny_graph: Path, graph_factory: Callable[..., Path]) -> None:
    """One for more layers than the graph has, in a line that names the output."""
    from attlas.analysis.kernels.fused import Reducer

    deeper = Reducer(read_spec(graph_factory(layers=3))).graph("float16")
    with pytest.raises(AttlasError, match=r"no output attention\.2"):
        Session(tiny_graph, provider="cpu", wanted=[Wanted("logits")], appended=deeper)


def test_appended_outputs_have_names_of_their_own(tiny_graph: Path) -> None:
    """So that a graph may call its values what it likes."""
    from attlas.analysis.kernels.fused import Reducer

    model = Reducer(read_spec(tiny_graph)).graph("float32")
    session = Session(tiny_graph, provider="cpu", wanted=[Wanted("logits")], appended=model)
    assert session.shapes()[f"{APPENDED}rollout"] == ((2, 3), "float32")
    assert session.shapes()[f"{APPENDED}_finite"] == ((2,), "bool")
    assert session.buffers(4)[f"{APPENDED}rows_without_patch_mass"].dtype == np.int32


# -- the way of a card -------------------------------------------------------------------------------------------------


def test_a_session_gives_the_same_on_a_device(tiny_graph: Path, pictures: Path) -> None:
    """Slots, uploads and downloads change nothing but the last bits of a product."""
    images = sorted(pictures.rglob("*.jpg"))[:5]
    plain, slots = Session(tiny_graph, provider="cpu"), Session(tiny_graph, provider="cpu", device="cpu")
    for count in (5, 1, 3):
        expected, got = plain(images[:count]), slots(images[:count])
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("statistics", ["graph", "host"])
def test_a_run_by_way_of_a_device_stores_the_same(
    statistics: str,
    accelerated: None,
    graph_factory: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full batches, the padded tail, a broken picture, more threads than slots."""
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    min(folder.rglob("*.jpg")).write_bytes(b"no picture at all")
    graph = graph_factory(**GRAPHS["registers, 3 x 5"])
    one = attlas.run(graph, folder, tmp_path / "one.zarr", batch_size=4, threads=RING + 2, statistics=statistics)
    monkeypatch.undo()
    other = attlas.run(graph, folder, tmp_path / "other.zarr", batch_size=4)
    assert (one.errors, one.done) == (1, 50)
    assert_same_store(one.path, other.path, tolerance=1e-5)
