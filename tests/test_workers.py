"""Whoever does the units, in whatever number, dying or late: the same chunk files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attlas
import pytest
from attlas.engine import Store
from attlas.engine.executors.base import Task
from attlas.engine.executors.dispatch import TRIES, Outcome, dispatch
from attlas.engine.executors.worker import Worker
from attlas.engine.job import Request, make_job, open_store
from attlas.engine.runner import run
from attlas.errors import AttlasError, Interrupted, UsageError
from support import chunk_files

PATIENCE = 120  # seconds for what takes a few


@pytest.fixture(scope="module")
def whole(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunk files that this process alone writes."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    attlas.run(tiny_graph, pictures, store)
    return chunk_files(store)


class Marks:
    """A progress callback that watches the done-marks, and acts at the given ones of its calls."""

    def __init__(self, store: Path, **acts: Callable[[], None]) -> None:
        self.folder, self.acts = store / "run" / "done", acts
        self.seen: dict[str, int] = {}
        self.calls = 0

    def __call__(self, progress: Any) -> None:
        self.look()
        self.calls += 1
        if f"at{self.calls}" in self.acts:
            self.acts[f"at{self.calls}"]()

    def look(self) -> None:
        """Every unit that was marked once is never marked again."""
        for mark in self.folder.glob("c.*"):
            with contextlib.suppress(FileNotFoundError):
                time = mark.stat().st_mtime_ns
                assert self.seen.setdefault(mark.name, time) == time, f"unit {mark.name} was done twice"


# -- processes of this machine -----------------------------------------------------------------------------------------


def test_two_processes_write_what_one_does(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Every chunk file; and the record says who it was."""
    result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", workers=2)
    assert (result.done, result.finished) == (50, True)
    assert chunk_files(tmp_path / "s.zarr") == whole
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert (record["executor"], record["workers"], record["images"]) == ("processes", 2, 50)
    assert set(record["stages"]) == {"decode", "inference", "reduce", "write", "commit"}
    assert not multiprocessing.active_children()
    assert_analyzed_alike(tmp_path / "s.zarr", "--workers", "2")


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


# -- any scheduler -----------------------------------------------------------------------------------------------------


class Unsteady:
    """A scheduler of one worker that loses every unit on its first tries, and some after they were marked."""

    loss = "was lost"

    def __init__(self, task: Task, tries: int) -> None:
        self.worker, self.tries = Worker(task, threads=1, cores=1), tries
        self.flying: list[tuple[Any, int]] = []
        self.most = 0

    def room(self) -> int:
        return 2 - len(self.flying)

    def submit(self, unit: Any, attempt: int) -> None:
        self.flying.append((unit, attempt))
        self.most = max(self.most, len(self.flying))

    def wait(self) -> list[Outcome]:
        unit, attempt = self.flying.pop(0)
        if attempt < self.tries:
            if unit.k % 3 == 0:
                self.worker.do(unit)  # and nobody hears of it
            return [Outcome(unit.k, lost="no reason")]
        return [Outcome(unit.k, self.worker.do(unit))]


def test_a_scheduler_needs_three_methods(
    tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Units that were lost are done again, those that were marked are not; a unit that is always lost ends the run."""
    from attlas.analysis.kernels.fused import Reducer

    request = dataclasses.replace(asked(tiny_graph, tmp_path / "s.zarr"), reducer=Reducer)
    job = make_job(request, pictures)
    store = open_store(job)
    todo, stop = list(range(job.plan.units)), threading.Event()
    scheduler = Unsteady(Task.of(job, store), tries=TRIES)
    with pytest.raises(AttlasError, match=r"unit 1 was lost \(no reason\); what is done stays"):
        list(dispatch(scheduler, todo, job.unit, store, stop))
    assert not scheduler.flying
    assert store.is_done(0)
    assert not store.is_done(1)
    scheduler = Unsteady(Task.of(job, store), tries=2)
    left = [k for k in todo if not store.is_done(k)]
    results = list(dispatch(scheduler, left, job.unit, store, stop))
    assert sum(result.images for result in results) == sum(len(job.plan.unit_range(k)) for k in left)
    assert scheduler.most == 2
    assert chunk_files(tmp_path / "s.zarr") == whole


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


# -- a Dask cluster ----------------------------------------------------------------------------------------------------


class Dask:
    """A real scheduler and real workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.workers: list[subprocess.Popen[str]] = []
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port)
        until(lambda: self._listens(int(port)))

    def add(self, **environment: str) -> subprocess.Popen[str]:
        """One more worker of one thread."""
        worker = self._start(
            "worker",
            self.address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--local-directory",
            str(self.folder),
            **environment,
        )
        self.workers.append(worker)
        return worker

    def _start(self, what: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", what, *options, "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    def end(self) -> None:
        """Leave nothing running."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    """A scheduler without workers."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'attlas[distributed]'")
    cluster = Dask(tmp_path / "dask")
    try:
        yield cluster
    finally:
        cluster.end()


def test_a_cluster_of_two_workers_writes_what_one_process_does(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Through the command line; the same cluster then analyses the store as this process does."""
    dask.add()
    dask.add()
    process = command(tiny_graph, pictures, tmp_path / "s.zarr", "--scheduler", dask.address)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert f"Dask at {dask.address}" in err
    assert chunk_files(tmp_path / "s.zarr") == whole
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert (record["executor"], record["images"]) == ("dask", 50)
    assert_analyzed_alike(tmp_path / "s.zarr", "--scheduler", dask.address)


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_a_cluster_whose_workers_are_killed_finishes(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Kill -9, with another worker in its place: no unit that was marked is done again."""
    dask.add()
    dask.add()

    def kill() -> None:
        dask.workers[0].kill()
        dask.workers.pop(0).wait()
        dask.add()

    marks = Marks(tmp_path / "s.zarr", at5=kill, at10=kill)
    result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address, progress=marks)
    marks.look()
    assert result.finished
    assert marks.calls > 10
    assert chunk_files(tmp_path / "s.zarr") == whole


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_an_answer_that_dies_with_its_worker_is_asked_for_again(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """The unit is marked, and so not done again; that no answer came is no reason to think the scheduler gone."""
    dask.add()
    dask.add()

    def kill_with_answers() -> None:
        # Whoever asked is held up here, so that what its workers finish meanwhile stays with them.
        until(lambda: len(list(marks.folder.glob("c.*"))) > marks.calls)
        time.sleep(0.5)  # and said to be done
        for worker in dask.workers:
            worker.kill()
            worker.wait()
        dask.workers.clear()
        time.sleep(0.5)  # and said to be lost
        dask.add()

    marks = Marks(tmp_path / "s.zarr", at3=kill_with_answers)
    assert attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address, progress=marks).finished
    marks.look()
    assert chunk_files(tmp_path / "s.zarr") == whole


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_a_scheduler_that_dies_ends_the_run_resumably(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """One line; with a new scheduler the same command goes on."""
    dask.add()
    marks = Marks(tmp_path / "s.zarr", at5=dask.scheduler.kill)
    with pytest.raises(AttlasError, match="the scheduler is gone; what is done stays, the same command goes on"):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address, progress=marks)
    dask.end()
    again = Dask(tmp_path / "again")
    try:
        again.add()
        result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=again.address)
    finally:
        again.end()
    assert result.done < 50
    assert result.finished
    assert chunk_files(tmp_path / "s.zarr") == whole


def test_workers_of_another_version_are_refused(dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Naming both versions, before anything is done."""
    import onnxruntime

    (tmp_path / "sitecustomize.py").write_text("import onnxruntime\nonnxruntime.__version__ = '0.1'\n")
    dask.add(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(
        AttlasError, match=f"worker tcp://.*: onnxruntime 0.1 there, {onnxruntime.__version__} here; install the same"
    ):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address)
    assert not Store(tmp_path / "s.zarr").done.any()


def test_workers_that_do_not_see_the_files_are_refused(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path
) -> None:
    """Images, as a worker says; graph and store, as `Worker` says."""
    from attlas.engine.sources import Folder

    dask.add()
    gone = dataclasses.replace(Folder.scan(pictures), root=str(tmp_path / "gone"))
    with pytest.raises(AttlasError, match=r"worker tcp://.*: sees no image n0.*: give it a file system that it shares"):
        run(tiny_graph, gone, tmp_path / "s.zarr", scheduler=dask.address)
    job = make_job(asked(tiny_graph, tmp_path / "s.zarr"), pictures)
    task = Task.of(job, open_store(job))
    for other in (dataclasses.replace(task, graph="/no/graph.onnx"), dataclasses.replace(task, store="/no/s.zarr")):
        with pytest.raises(AttlasError, match=r"sees no /no/.*: give it a file system that it shares"):
            Worker(other, threads=1, cores=1)
    with pytest.raises(AttlasError, match="sees another store"):
        Worker(dataclasses.replace(task, plan=dataclasses.replace(task.plan, images=7)), threads=1, cores=1)


def test_a_scheduler_that_is_not_there_is_one_line(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Exit 1, and nothing is written."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'attlas[distributed]'")
    process = command(tiny_graph, pictures, tmp_path / "s.zarr", "--scheduler", "tcp://127.0.0.1:9")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("attlas: --scheduler tcp://127.0.0.1:9: cannot be reached")
    assert err.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()


def assert_analyzed_alike(store: Path, *options: str) -> None:
    """`attlas analyze` with these options writes what it writes in threads of one process."""
    other = store.with_name("threads.zarr")
    shutil.copytree(store, other)
    attlas.analyze(other, ["entropy", "score_matrix_mean"])
    done = subprocess.run(
        [sys.executable, "-m", "attlas.cli", "analyze", str(store), "entropy", "score_matrix_mean", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert chunk_files(store) == chunk_files(other)


def command(graph: Path, images: Path, store: Path, *options: str, **named: Any) -> subprocess.Popen[str]:
    """`attlas run` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "attlas.cli", "run", str(graph), str(images), "-o", str(store), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **named,
    )


def until(true: Callable[[], Any]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(graph: Path, output: Path, limit: int | None = None) -> Request:
    """What `run` would ask for by default."""
    return Request(
        graph=graph,
        output=output,
        keep=("attention",),
        layers=None,
        store_dtype="float16",
        batch_size=None,
        provider="cpu",
        target="predicted",
        limit=limit,
        seed=0,
        reducer=None,
        statistics="auto",
        overwrite=False,
        dry_run=False,
    )
