"""Units done by processes of this machine."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attlas
import pytest
from attlas.engine import Store
from attlas.engine.executors import processes
from attlas.engine.executors.base import Task
from attlas.engine.executors.dispatch import dispatch
from attlas.engine.executors.threads import Threads
from attlas.engine.job import make_job, open_store
from attlas.engine.runner import run
from attlas.errors import AttlasError, Interrupted, UsageError
from support import chunk_files
from support_workers import PATIENCE, Marks, Unsteady, asked, assert_analyzed_alike, command, until

# -- processes of this machine -----------------------------------------------------------------------------------------


def test_two_processes_write_what_one_does(
    command: Callable[..., Any], tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Every chunk file; and the record says who it was."""
    result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", workers=2)
    assert (result.done, result.finished) == (50, True)
    assert chunk_files(tmp_path / "s.zarr") == whole
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert (record["executor"], record["workers"], record["images"]) == ("processes", 2, 50)
    assert set(record["stages"]) == {"decode", "inference", "reduce", "write", "commit"}
    assert not multiprocessing.active_children()
    assert_analyzed_alike(command, tmp_path / "s.zarr", "--workers", "2")


def test_an_executor_of_one_s_own_is_given_as_the_scheduler(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """It is entered and left by the run, whose record says who it was; the number of workers is its own."""

    class Own(Threads):
        kind = "own"
        left = False

        def __exit__(self, *_: object) -> None:
            self.left = True

    own = Own(2)
    with pytest.raises(UsageError, match="its own workers do the work"):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=own, workers=2)
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=own)
    assert own.left
    assert chunk_files(tmp_path / "s.zarr") == whole
    assert attlas.inspect(tmp_path / "s.zarr")["runs"][0]["executor"] == "own"


def test_a_shard_may_have_worker_processes(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Its units and no others, and then the rest."""
    seen: list[Any] = []
    first = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", workers=1, shard=(1, 2), progress=seen.append)
    assert not first.finished
    assert seen[-1].done == first.done == int(Store(tmp_path / "s.zarr").done_images.sum())
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", shard=(2, 2))
    assert chunk_files(tmp_path / "s.zarr") == whole


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_killed_processes_are_replaced(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Kill -9 again and again: the run finishes, and no unit that was marked is done again."""
    killed: list[int] = []

    def kill() -> None:
        for worker in multiprocessing.active_children()[:1]:
            os.kill(int(worker.pid or 0), signal.SIGKILL)
            worker.join()  # a process takes a moment to end, and units may be done faster
            killed.append(int(worker.pid or 0))

    marks = Marks(tmp_path / "s.zarr", at4=kill, at9=kill, at14=kill)
    result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", workers=2, progress=marks)
    marks.look()
    assert len(set(killed)) == 3
    assert result.finished
    assert chunk_files(tmp_path / "s.zarr") == whole


DEADLY = """
import os, signal

class Deadly:
    templates = ()

    def __init__(self, spec):
        pass

    def __call__(self, attention, pool=None):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_a_unit_that_takes_every_worker_down_ends_the_run(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few attempts, in one line that says how they died."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    deadly = importlib.import_module("deadly").Deadly
    with pytest.raises(AttlasError, match=r"unit 0 took its worker process down 5 times \(SIGKILL.*same command"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", workers=1, reducer=deadly, limit=1)
    assert not multiprocessing.active_children()


def test_what_a_worker_raises_ends_the_run_in_one_line(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its own words, and nothing is left running."""
    from attlas.engine.sources import Folder

    source = Folder.scan(pictures)
    gone = dataclasses.replace(source, root=str(tmp_path / "gone"))
    with pytest.raises(AttlasError, match=r"cannot be read \(No such file.*same command"):
        run(tiny_graph, gone, tmp_path / "s.zarr", workers=2)
    assert not multiprocessing.active_children()
    assert run(tiny_graph, source, tmp_path / "s.zarr").finished


def test_processes_share_cores_and_cards_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every core belongs to one of them, where there are enough; cards are those that CUDA is shown."""
    from attlas.engine.executors.processes import _cards, _cores

    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    for workers in (1, 2, 3, 7):
        parts = [_cores(number, workers) for number in range(workers)]
        assert all(parts)
        assert set().union(*parts) == set(mine)
        assert workers > len(mine) or sum(map(len, parts)) == len(mine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert _cards() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _cards() == []


def test_what_cannot_travel_is_refused(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Statistics that only this process knows."""
    with pytest.raises(UsageError, match=r"--workers: .*define it in a module"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", workers=1, reducer=lambda _spec: None)  # type: ignore


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a group")
def test_an_interrupt_of_the_group_lets_units_in_flight_end(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Exit 130 without a traceback or a process left; the same command goes on to the same bytes."""
    store = tmp_path / "s.zarr"
    process = command(tiny_graph, pictures, store, "--workers", "2", start_new_session=True)
    until(lambda: len(list((store / "run" / "done").glob("c.*"))) >= 2 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert process.returncode in (130, 0)
    with pytest.raises(ProcessLookupError):
        until(lambda: os.killpg(process.pid, 0))  # raises when nobody is left
    assert attlas.run(tiny_graph, pictures, store, workers=2).finished
    assert chunk_files(store) == whole


def test_stop_ends_a_run_of_processes_after_the_units_in_flight(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """It is interrupted, and resumes in another form to the same bytes."""
    stop = threading.Event()
    marks = Marks(tmp_path / "s.zarr", at4=stop.set)
    with pytest.raises(Interrupted, match="same command"):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", workers=2, progress=marks, stop=stop)
    assert 0 < Store(tmp_path / "s.zarr").done.sum() < Store(tmp_path / "s.zarr").plan.units
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr")
    assert chunk_files(tmp_path / "s.zarr") == whole


def test_shards_started_at_once_share_a_new_store(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """One lays it out, the other takes its plan; both do their part."""
    both = [command(tiny_graph, pictures, tmp_path / "s.zarr", "--shard", f"{k}/2") for k in (1, 2)]
    said = [process.communicate(timeout=PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert chunk_files(tmp_path / "s.zarr") == whole


def test_who_loses_the_race_for_the_layout_takes_the_plan_that_won(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch size is taken over, another run is refused."""
    import attlas.engine.runner as runner

    first: list[Any] = []

    def beaten(job: Any) -> Store:
        if not first:
            first.append(job)
            run(tiny_graph, pictures, job.request.output, keep=job.request.keep[:1], batch_size=5)
        return open_store(job)

    monkeypatch.setattr(runner, "open_store", beaten)
    result = run(tiny_graph, pictures, tmp_path / "s.zarr")
    assert (result.done, result.estimate.plan.batch) == (0, 5)
    first.clear()
    with pytest.raises(AttlasError, match="holds another run"):
        run(tiny_graph, pictures, tmp_path / "t.zarr", keep=("attention", "tokens"))


def test_a_unit_travels_with_its_own_images_alone(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The source it brings reads the same bytes, from a folder and from an archive."""
    import tarfile

    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(pictures, arcname="images")
    for images in (pictures, tmp_path / "images.tar"):
        job = make_job(asked(tiny_graph, tmp_path / "s.zarr", limit=40), images)
        unit = job.unit(3)
        alone = unit.alone()
        assert len(alone.source.items) == len(unit.items) < len(job.source.items)
        assert [alone.source.read(i) for i in alone.items] == [job.source.read(i) for i in unit.items]


def test_images_are_read_ahead_where_reading_waits(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """A source that says so is read by several threads at once, to the same bytes; another by none but the worker's."""
    from attlas.engine.sources import BaseSource, Folder

    together = threading.Barrier(3, timeout=PATIENCE)
    folder = Folder.scan(pictures)

    class Far(BaseSource):
        name, reads_ahead = folder.name, 3
        items = folder.items

        def read(self, item: Any) -> bytes:
            if item.index < 3:
                together.wait()  # passes only where three are asked for at once
            return folder.read(item)

    assert run(tiny_graph, Far(), tmp_path / "far.zarr", threads=1, batch_size=4).finished
    run(tiny_graph, pictures, tmp_path / "near.zarr", batch_size=4)
    assert chunk_files(tmp_path / "far.zarr") == chunk_files(tmp_path / "near.zarr")


def test_units_in_flight_end_whatever_happens(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Whoever takes the results may raise: what was handed out is marked all the same, and no more is."""
    job = make_job(asked(tiny_graph, tmp_path / "s.zarr"), pictures)
    store = open_store(job)
    scheduler = Unsteady(Task.of(job, store), tries=0)
    results = dispatch(scheduler, list(range(job.plan.units)), job.unit, store, threading.Event())
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not scheduler.flying
    assert store.done.sum() == 2


def test_a_worker_without_enough_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with a traceback, and its unit was tried again in vain."""
    sent = list[tuple[str, Any]]()

    class Pipe:
        def recv(self) -> Any:
            raise MemoryError("Unable to allocate 5.1 TiB for an array")

        def send(self, said: tuple[str, Any]) -> None:
            sent.append(said)

    monkeypatch.setattr(processes, "_ignore_signals", lambda: None)
    monkeypatch.setattr(processes, "_pin", lambda _cores: None)
    processes._serve(cast(Any, Pipe()), [0], None, 1)
    ((word, error),) = sent
    assert (word, type(pickle.loads(pickle.dumps(error)))) == ("failed", MemoryError)
