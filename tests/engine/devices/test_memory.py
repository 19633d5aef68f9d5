"""Slots, batches and memory of a device."""

from __future__ import annotations

import threading
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from attlas.engine import Session
from attlas.engine.runtime import session as session_module
from attlas.engine.runtime.cuda import OutOfMemoryError
from attlas.engine.runtime.outputs import Wanted
from attlas.engine.runtime.probe import probe_batch
from attlas.engine.runtime.slots import RING, Ring, fitting_batch
from attlas.errors import AttlasError


def black(session: Session, images: int) -> np.ndarray:
    return np.zeros((images, *session.spec.image_size, 3), np.uint8)


def test_slots_are_shared_and_bounded(tiny_graph: Path) -> None:
    """Many threads never hold more than the ring's slots, and none waits for ever."""
    session = Session(tiny_graph, provider="cpu", device="cpu")
    pixels = black(session, 2)
    made = []
    original = session_module.Slot

    def count(*arguments: Any, **choices: Any) -> Any:
        made.append(1)
        return original(*arguments, **choices)

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
    real, copies = session._graph.session, session._copies
    running, go_on, arrived = threading.Event(), threading.Event(), threading.Semaphore(0)

    def run_slowly(binding: Any) -> None:
        running.set()
        assert go_on.wait(30)
        real.run_with_iobinding(binding)

    def upload(value: Any, array: Any) -> None:
        copies.upload(value, array)
        arrived.release()

    session._graph.session = SimpleNamespace(run_with_iobinding=run_slowly, io_binding=real.io_binding)
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

    def make(_k: int) -> Any:
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
    real = session._graph.session

    def failing(text: str) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError(text)

        return SimpleNamespace(io_binding=real.io_binding, run_with_iobinding=fail)

    session._graph.session = failing("BFCArena: Failed to allocate memory for requested buffer of size 123")
    with pytest.raises(OutOfMemoryError, match=r"batch of 4 images does not fit.*--batch-size"):
        session.run_into(pixels, buffers, 4)
    session._graph.session = failing("CUBLAS failure 13: execution failed")
    with pytest.raises(AttlasError, match="CUBLAS failure 13") as caught:
        session.run_into(pixels, buffers, 4)
    assert not isinstance(caught.value, OutOfMemoryError)
    session._graph.session = real
    session.run_into(pixels, buffers, 4)


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


def test_a_probe_takes_the_most_that_are_faster(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit, all timed in one session; what gains less than 3 % is not worth its memory."""
    seconds, made = {4: 4.0, 8: 7.0, 16: 13.8, 32: 27.5, 64: 55.0}, []
    monkeypatch.setattr(Session, "run_into", lambda self, pixels, buffers, count: made.append(self) or seconds[count])
    probe = partial(probe_batch, tiny_graph, 4, provider="cpu", device="cpu")
    assert [probe(most=most) for most in (None, 4, 8, 15, 64)] == [4, 4, 8, 8, 8]
    seconds[64] = 50.0
    assert probe(most=127) == 64
    made.clear()
    assert probe(most=63) == 8
    assert len(set(map(id, made))) == 1


def test_a_probe_that_fills_the_memory_tries_fewer(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First half of the most, and so on; below the chunk, too."""
    limit, tried = 20, []

    def run_into(self: Session, pixels: Any, buffers: Any, count: int) -> float:
        tried.append(count)
        if count > limit:
            raise OutOfMemoryError("too many")
        return 1.0

    monkeypatch.setattr(Session, "run_into", run_into)
    probe = partial(probe_batch, tiny_graph, 8, provider="cpu", device="cpu", most=64)
    assert probe() == 16
    assert list(dict.fromkeys(tried)) == [64, 32, 16, 8]
    limit = 5
    assert probe() == 4


def test_a_probe_asks_how_much_memory_is_left(tiny_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run took leaves room for fewer images than it ran."""
    free = iter([1 << 20, 0])
    monkeypatch.setattr(session_module.OrtCopies, "free", lambda self: next(free))
    wanted = [Wanted("attention.0")]
    # One image's output is 2 x 7 x 7 floats; beside it each of the 64 images took all but 392 of 16 KiB.
    assert probe_batch(tiny_graph, 64, provider="cpu", device="cpu", wanted=wanted) == 32
    free = iter([1 << 20, 0])
    monkeypatch.setattr(Session, "run_into", lambda self, pixels, buffers, count: count / (1 + count))
    assert probe_batch(tiny_graph, 4, provider="cpu", device="cpu", wanted=wanted, most=64) == 32  # more is faster
