"""Batches for a card: several chunks at once, fixed shapes, and runs recorded as CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attlas
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attlas.engine import Session, Store
from attlas.engine.executors import base
from attlas.engine.runtime import providers as providers_module
from attlas.engine.runtime import slots
from attlas.engine.runtime.graph import prepare
from attlas.engine.runtime.outputs import Wanted
from attlas.engine.runtime.providers import CPU, CUDA, Provider
from attlas.engine.runtime.slots import RING
from attlas.engine.unit import Buffers
from support import chunk_files
from support_devices import assert_same_store

MADE = [Wanted("logits"), Wanted("attention.0"), Wanted("attention.1")]


def test_several_chunks_are_inferred_at_once(
    accelerated: None, tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the chunks of a store whose batches are inferred one by one; the plan keeps the number."""
    asked: list[Any] = []

    def probe(graph: Path, batch: int, **choices: Any) -> int:
        asked.append((batch, choices["most"]))
        return 4 * batch

    monkeypatch.setattr(base, "probe_batch", probe)
    one = attlas.run(tiny_graph, pictures, tmp_path / "one.zarr", statistics="host")
    monkeypatch.undo()
    plan = Store(one.path).plan
    assert asked == [(2, 2)]
    assert (plan.batch, plan.at_once, plan.unit) == (2, 8, 8)
    other = attlas.run(tiny_graph, pictures, tmp_path / "other.zarr", batch_size=2)
    assert_same_store(one.path, other.path, tolerance=1e-5)
    names = {name for name in chunk_files(one.path) if name.startswith("attention/")}
    assert names == {name for name in chunk_files(other.path) if name.startswith("attention/")}


@pytest.mark.parametrize("prefix", [("class", "register"), ()])
def test_a_fixed_batch_leaves_no_arithmetic_with_shapes(
    prefix: tuple[str, ...], graph_factory: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever is of shapes alone runs on the host, and each of its results is copied to the card."""

    def operators(batch: int | None) -> set[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        model = prepare(graph, [Wanted("logits"), Wanted("attention.1", "float16")], batch=batch)
        session = ort.InferenceSession(model, options, providers=[CPU])
        assert session.get_inputs()[0].shape[0] == (batch or "batch")
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}

    graph = graph_factory(prefix=prefix)
    shapes = {"Shape", "Gather", "Expand", "ConstantOfShape", "Unsqueeze", "Range"}
    assert not operators(4) & shapes
    assert bool(operators(None) & shapes) == bool(prefix)


def test_threads_that_wait_for_a_card_leave_no_core_idle(
    accelerated: None, tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more of them than cores, by as many as batches are on the card; unless the user says how many."""

    def at_once(name: str, threads: int | None) -> int:
        made = attlas.run(tiny_graph, pictures, tmp_path / name, threads=threads, batch_size=2, statistics="host")
        return int(Store(made.path).record["runs"][-1]["units_at_once"])

    monkeypatch.setattr("attlas.engine.executors.threads.cores", lambda: 2)
    assert at_once("card.zarr", None) == 2 + RING
    assert at_once("asked.zarr", 1) == 1
    monkeypatch.undo()
    monkeypatch.setattr("attlas.engine.executors.threads.cores", lambda: 2)
    assert at_once("processor.zarr", None) == 2


def test_a_thread_gets_its_memory_with_its_first_unit(
    accelerated: None, tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory takes long, and only the first thread's is awaited before a run begins."""
    made: list[int] = []

    class Counted(Buffers):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(1)

    monkeypatch.setattr("attlas.engine.executors.worker.Buffers", Counted)
    seen: list[int] = []
    choices: dict[str, Any] = {"statistics": "host", "batch_size": 2, "threads": 3}
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", progress=lambda _: seen.append(len(made)), **choices)
    assert seen[:2] == [0, 1]
    assert seen[-1] == 3


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CPU takes the way of a card that records; the numbers of the slots whose runs it was told to record."""
    seen: list[int] = []

    class Options(ort.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            seen.append(int(value))

    monkeypatch.setattr(providers_module, "PROVIDERS", (Provider(CPU, device="cpu", captures={"record": "1"}),))
    monkeypatch.setattr(slots, "ort", SimpleNamespace(RunOptions=Options, OrtValue=ort.OrtValue))
    return seen


def test_a_card_records_each_slot_before_any_work(recording: list[int], tiny_graph: Path, pictures: Path) -> None:
    """And repeats that with the same results; sessions for any number of images record nothing."""
    images = sorted(pictures.rglob("*.jpg"))[:4]
    plain = Session(tiny_graph, provider="cpu")(images)
    assert recording == []
    recorded = Session(tiny_graph, provider="cpu", wanted=MADE, batch=4)
    for _ in range(2):
        for name, values in recorded(images).items():
            np.testing.assert_allclose(values, plain[name], atol=1e-6, err_msg=name)
    assert recording == list(range(1, RING + 1))


def test_the_next_run_waits_where_runs_are_recorded(recording: list[int], tiny_graph: Path) -> None:
    """So that a card which ends one waits for no other thread of the host."""
    session = Session(tiny_graph, provider="cpu", wanted=MADE, batch=2)
    sets = [(session.pixels(2), session.buffers(2)) for _ in range(2)]
    session.run_into(*sets[0], 2)
    assert session._recorder is not None
    submit, run, both = session._recorder.submit, session._run_slot, threading.Event()
    sent: list[Any] = []

    def count(*arguments: Any) -> Any:
        sent.append(submit(*arguments))
        if len(sent) == 2:
            both.set()
        return sent[-1]

    def wait(slot: Any) -> float:
        assert both.wait(5)
        return run(slot)

    session._recorder.submit = count  # type: ignore[method-assign]
    session._run_slot = wait  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda own: session.run_into(*own, 2), sets))


def test_where_a_run_cannot_be_recorded_it_goes_on_without(
    recording: list[int], tiny_graph: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of memory, or whatever a runtime says."""

    def fail(_: Any) -> None:
        raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    images = sorted(pictures.rglob("*.jpg"))[:2]
    plain = Session(tiny_graph, provider="cpu")(images)
    monkeypatch.setattr(slots.ort, "RunOptions", fail)
    session = Session(tiny_graph, provider="cpu", wanted=MADE, batch=2)
    np.testing.assert_allclose(session(images)["logits"], plain["logits"], atol=1e-6)
    assert not session._graph.captures


def test_a_graph_that_is_not_wholly_on_the_card_is_not_recorded(
    tiny_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused by onnxruntime; the session is made without, and falls back as before."""
    tried: list[str | None] = []

    class Fake:
        def __init__(self, model: bytes, options: Any, providers: Any, **_: Any) -> None:
            tried.append(dict(providers)[CUDA].get("enable_cuda_graph"))
            if tried[-1]:
                raise RuntimeError("as all compute graph nodes have not been partitioned to the CUDAExecutionProvider")

        def get_providers(self) -> list[str]:
            return [CUDA, CPU]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="image")]

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Fake)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    session = Session(tiny_graph, provider="cuda", batch=8)
    assert tried == ["1", None]
    assert not session._graph.captures
    assert session.provider == CUDA
