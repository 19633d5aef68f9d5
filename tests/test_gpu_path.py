"""The way of an accelerator, taken by a CPU: slots on a device, statistics in the graph, a batch that fits."""

from __future__ import annotations

import ctypes
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attlas
import numpy as np
import onnxruntime as ort
import pytest
from attlas.engine import Session, Store
from attlas.engine.contents import Choices, Contents, Reducer
from attlas.engine.keep import Keep
from attlas.engine.runner import run
from attlas.engine.runtime import providers as providers_module
from attlas.engine.runtime import session as session_module
from attlas.engine.runtime.cuda import RING, Cudart, OutOfMemoryError, Ring, fitting_batch, out_of_memory
from attlas.engine.runtime.graph import APPENDED, read_spec
from attlas.engine.runtime.outputs import Wanted
from attlas.engine.runtime.providers import CPU, CUDA, TENSORRT, Provider
from attlas.engine.runtime.session import probe_batch
from attlas.errors import AttlasError, UsageError

GRAPHS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers, 3 x 5": {"grid": (3, 5), "prefix": ("class", "register")},
    "no prefix": {"prefix": ()},
}


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions on the CPU take the way of a card."""
    monkeypatch.setattr(providers_module, "PROVIDERS", (Provider(CPU, device="cpu"),))


def black(session: Session, images: int) -> np.ndarray:
    return np.zeros((images, *session.spec.image_size, 3), np.uint8)


def assert_same_store(one: Path, other: Path, tolerance: float) -> None:
    """The same arrays, floats within `tolerance` of their largest value."""
    a, b = Store(one), Store(other)
    assert a.names == b.names
    for name in a.names:
        x, y = a.read(name), b.read(name)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if x.dtype.kind == "f" and tolerance:
            top = np.nanmax(np.abs(x), initial=0)
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * top, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


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


def test_slots_are_shared_and_bounded(tiny_graph: Path) -> None:
    """Many threads never hold more than the ring's slots, and none waits for ever."""
    session = Session(tiny_graph, provider="cpu", device="cpu")
    pixels = black(session, 2)
    made = []
    original = session_module.Slot

    def count(*arguments: Any) -> Any:
        made.append(1)
        return original(*arguments)

    session_module.Slot = count  # type: ignore[assignment, misc]
    try:
        threads = [
            threading.Thread(target=lambda: [session.run_into(pixels, session.buffers(2), 2) for _ in range(8)])
            for _ in range(3 * RING)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    finally:
        session_module.Slot = original  # type: ignore[misc]
    assert 1 <= len(made) <= RING


def test_the_next_batch_arrives_while_one_runs(tiny_graph: Path) -> None:
    """Only the run itself is exclusive: pixels go up and outputs come down beside it."""
    session = Session(tiny_graph, provider="cpu", device="cpu")
    real, copies = session._session, session._copies
    running, go_on, arrived = threading.Event(), threading.Event(), threading.Semaphore(0)

    def run_slowly(binding: Any) -> None:
        running.set()
        assert go_on.wait(30)
        real.run_with_iobinding(binding)

    def upload(value: Any, array: Any) -> None:
        copies.upload(value, array)
        arrived.release()

    session._session = SimpleNamespace(run_with_iobinding=run_slowly, io_binding=real.io_binding)
    session._copies = SimpleNamespace(upload=upload, download=copies.download, host=copies.host)  # type: ignore[assignment]
    threads = [
        threading.Thread(target=session.run_into, args=(black(session, 2), session.buffers(2), 2)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert running.wait(30)
    assert arrived.acquire(timeout=30)
    assert arrived.acquire(timeout=30)
    go_on.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_session_is_gone_with_its_last_user(tiny_graph: Path) -> None:
    """A device's memory waits for no collector."""
    session = Session(tiny_graph, provider="cpu", device="cpu")
    session.run_into(session.pixels(2), session.buffers(2), 2)
    gone = weakref.ref(session)
    del session
    assert gone() is None


def test_a_ring_goes_on_with_the_slots_that_memory_holds() -> None:
    """Where the second does not fit, the first is shared; where the first does not, the error is raised."""
    made = iter([object()])

    def make() -> Any:
        slot = next(made, None)
        if slot is None:
            raise RuntimeError("CUDA failure 2: out of memory")
        return slot

    ring = Ring(make, 4)
    entered = threading.Event()

    def second() -> None:
        with ring.slot():
            entered.set()

    with ring.slot():
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    waiting.join()
    with pytest.raises(RuntimeError), Ring(make, 4).slot():
        pass


@pytest.mark.parametrize("device", [None, "cpu"])
def test_too_little_memory_is_one_clear_line(device: str | None, tiny_graph: Path) -> None:
    """It names the batch, and what to choose instead; other failures are told apart."""
    session = Session(tiny_graph, provider="cpu", device=device)
    pixels, buffers = session.pixels(4), session.buffers(4)
    real = session._session

    def failing(text: str) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError(text)

        return SimpleNamespace(io_binding=real.io_binding, run_with_iobinding=fail)

    session._session = failing("BFCArena: Failed to allocate memory for requested buffer of size 123")
    with pytest.raises(OutOfMemoryError, match=r"batch of 4 images does not fit.*--batch-size"):
        session.run_into(pixels, buffers, 4)
    session._session = failing("CUBLAS failure 13: execution failed")
    with pytest.raises(AttlasError, match="CUBLAS failure 13") as caught:
        session.run_into(pixels, buffers, 4)
    assert not isinstance(caught.value, OutOfMemoryError)
    session._session = real
    session.run_into(pixels, buffers, 4)


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


# -- a batch that fits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "free", "used", "output", "expected"),
    [
        (64, 10_000, 640, 2, 64),  # plenty
        (64, 0, 640, 2, 32),  # the run fits, but not with the share that is left alone
        (64, 0, 6400, 100, 16),  # nothing but outputs: three sets do not fit where one does
        (48, 100, 4800, 0, 32),  # a power of two below what was tried
        (2, 0, 10, 1000, 1),  # never less than one image
        (8, 100, 0, 0, 8),  # a device that reports nothing
    ],
)
def test_the_batch_is_what_memory_holds(batch: int, free: int, used: int, output: int, expected: int) -> None:
    """Activations grow with the batch, and so do as many sets of outputs as the ring holds."""
    assert fitting_batch(batch, free=free, used=used, output=output, ring=3) == expected


def test_a_probe_halves_the_batch_until_it_fits(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session of its own each time; where not one image fits, the error is raised."""
    tried = []
    limit = 3
    original = Session.run_into

    def run_into(self: Session, pixels: Any, buffers: Any, count: int) -> None:
        tried.append(count)
        if count > limit:
            raise OutOfMemoryError("too many")
        original(self, pixels, buffers, count)

    monkeypatch.setattr(Session, "run_into", run_into)
    assert probe_batch(tiny_graph, 16, provider="cpu", device="cpu") == 2
    assert tried == [16, 8, 4, 2]
    limit = 0
    with pytest.raises(OutOfMemoryError):
        probe_batch(tiny_graph, 2, provider="cpu", device="cpu")
    tried.clear()
    assert probe_batch(tiny_graph, 16, provider="cpu") == 16
    assert not tried


def test_a_probe_asks_how_much_memory_is_left(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run took leaves room for fewer images than it ran."""
    free = iter([1 << 20, 0])
    monkeypatch.setattr(session_module.OrtCopies, "free", lambda self: next(free))
    wanted = [Wanted("attention.0")]
    # One image's output is 2 x 7 x 7 floats; beside it each of the 64 images took all but 392 of 16 KiB.
    assert probe_batch(tiny_graph, 64, provider="cpu", device="cpu", wanted=wanted) == 32


# -- CUDA's runtime library, played by the host ------------------------------------------------------------------------


class FakeCuda:
    """The functions of libcudart that are used, on the host's memory."""

    def __init__(self, fails: int = 0) -> None:
        self.freed: list[int] = []
        self.held: dict[int, Any] = {}
        self.copies: list[tuple[int, int]] = []
        self.fails = fails
        self.cudaGetErrorString = lambda code: {2: b"out of memory"}.get(code, b"unspecified launch failure")

    def cudaHostAlloc(self, pointer: Any, size: Any, flags: int) -> int:  # noqa: N802
        if self.fails:
            return self.fails
        block = ctypes.create_string_buffer(b"\x07" * size.value, size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.held[ctypes.addressof(block)] = block
        return 0

    def cudaFreeHost(self, pointer: Any) -> int:  # noqa: N802
        self.freed.append(pointer.value)
        return 0

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 123, 456
        return self.fails

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 1
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:  # noqa: N802
        self.copies.append((size.value, kind.value))
        if not self.fails:
            ctypes.memmove(target, source, size.value)
        return self.fails

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return 0


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
