"""What the device's own library is asked for, with a library that only writes it down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attlas
import numpy as np
import onnxruntime as ort
import pytest
from attlas.engine import Session
from attlas.engine.runner import run
from attlas.engine.runtime import providers as providers_module
from attlas.engine.runtime import session as session_module
from attlas.engine.runtime.cuda import Cudart, OutOfMemoryError, out_of_memory
from attlas.engine.runtime.providers import CPU, CUDA, TENSORRT, create_session
from attlas.errors import AttlasError
from support_devices import FakeCuda, assert_same_store


def test_a_provider_s_entry_says_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on the processor has its statistics on the host, as the CPU does; of an unknown one a card is assumed."""
    dnnl = "DnnlExecutionProvider"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [dnnl, CPU])
    assert not providers_module.accelerates("cpu")
    assert providers_module.accelerates("dnnl")
    monkeypatch.setattr(
        providers_module, "PROVIDERS", (*providers_module.PROVIDERS, providers_module.Provider(dnnl, host=True))
    )
    assert not providers_module.accelerates("dnnl")


def test_tensorrt_leaves_the_rest_to_cuda(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried first, without float16 and without a cache, then CUDA without TF32, then the CPU."""
    seen: list[Any] = []

    class Fake:
        def __init__(self, model: bytes, options: Any, providers: Any, **_: Any) -> None:
            seen.extend(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in seen]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="image")]

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Fake)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    session = Session(tiny_graph, provider="tensorrt")
    assert session.provider == TENSORRT
    assert [name for name, _ in seen] == [TENSORRT, CUDA, CPU]
    assert seen[0][1]["trt_fp16_enable"] == seen[0][1]["trt_engine_cache_enable"] == "0"
    assert seen[1][1]["use_tf32"] == "0"
    del seen[:]
    create_session(b"", None, [CUDA, CPU], tiny_graph, strict=True, half=True)
    assert dict(seen)[CUDA]["use_tf32"] == "1"  # scores of float16 values


# -- CUDA's runtime library, played by the host ------------------------------------------------------------------------


def test_copies_by_cudas_library_move_what_they_say() -> None:
    """Up whole, down as many images as are wanted, from and to pinned memory that is black at first."""
    library = FakeCuda()
    cuda = Cudart(library)
    pinned = cuda.host((4, 3), "float16")
    assert pinned.shape == (4, 3)
    assert not pinned.any()
    pinned[:] = np.arange(12).reshape(4, 3)
    value = ort.OrtValue.ortvalue_from_shape_and_type([4, 3], np.float16, "cpu", 0)
    cuda.upload(value, pinned)
    np.testing.assert_array_equal(value.numpy(), pinned)
    part = np.zeros((2, 3), np.float16)
    cuda.download(part, value)
    np.testing.assert_array_equal(part, pinned[:2])
    assert library.copies == [(24, Cudart.TO_DEVICE), (12, Cudart.TO_HOST)]
    assert cuda.free() == 123


def test_pinned_memory_is_freed_with_its_last_array() -> None:
    """Not before, though only a part of it is still held."""
    library = FakeCuda()
    part = Cudart(library).host((4, 3), "float32")[1:]
    assert not library.freed
    del part
    assert library.freed == list(library.held)


def test_where_no_memory_can_be_pinned_ordinary_memory_serves() -> None:
    """The copies are slower, and right."""
    array = Cudart(FakeCuda(fails=2)).host((2, 2), "float32")
    assert array.base is None
    assert not array.any()


def test_errors_of_cudas_library_are_told() -> None:
    """Out of memory apart from the others, by the library's own words."""
    value = ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cpu", 0)
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        Cudart(FakeCuda(fails=2)).download(np.zeros(1, np.float32), value)
    with pytest.raises(AttlasError, match="unspecified launch failure") as caught:
        Cudart(FakeCuda(fails=719)).download(np.zeros(1, np.float32), value)
    assert not out_of_memory(caught.value)


def test_a_run_through_cudas_library_stores_the_same(
    accelerated: None, tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned buffers and streams of every worker, played by the host."""
    monkeypatch.setattr(session_module, "OrtCopies", lambda: Cudart(FakeCuda()))
    one = run(tiny_graph, pictures, tmp_path / "one.zarr", batch_size=3, threads=3)
    monkeypatch.undo()
    other = run(tiny_graph, pictures, tmp_path / "other.zarr", batch_size=3)
    assert_same_store(one.path, other.path, tolerance=1e-6)


def test_where_a_card_does_not_work_a_run_is_as_without_one(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` tries it, falls back to the CPU, and leaves the statistics to the host."""
    monkeypatch.setattr(providers_module, "_has_driver", lambda: True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda model, options, **_: real(model, options, [CPU]))
    one = attlas.run(tiny_graph, pictures, tmp_path / "one.zarr", keep=("none",), batch_size=4)
    monkeypatch.undo()
    other = attlas.run(tiny_graph, pictures, tmp_path / "other.zarr", keep=("none",), batch_size=4)
    assert one.provider == CPU
    assert_same_store(one.path, other.path, tolerance=0)


def test_missing_libraries_print_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A command's output is its own, JSON at times: what onnxruntime cannot load is no line of it."""
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcurand.so.10"), raising=False)  # noqa: T201
    providers_module.preload()
    assert capfd.readouterr() == ("", "")
