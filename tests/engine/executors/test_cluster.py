"""Units done by the workers of a Dask scheduler."""

from __future__ import annotations

import dataclasses
import os
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
from attlas.engine.executors.dispatch import TRIES, dispatch
from attlas.engine.executors.worker import Worker
from attlas.engine.job import make_job, open_store
from attlas.engine.runner import run
from attlas.errors import AttlasError, UsageError
from support import chunk_files
from support_workers import PATIENCE, Marks, Unsteady, asked, assert_analyzed_alike, command, until


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

    def have(self, count: int) -> None:
        """Go on with so many workers, known to the scheduler: with fewer, fewer units are in flight."""
        import distributed

        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < count:
            self.add()
        for worker in self.workers[count:]:
            worker.kill()
            worker.wait()
        del self.workers[count:]
        with distributed.Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.scheduler_info()["workers"]) == count)

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


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A scheduler, with the workers that the test before has left."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'attlas[distributed]'")
    cluster = Dask(tmp_path_factory.mktemp("dask"))
    try:
        yield cluster
    finally:
        cluster.end()


def test_a_cluster_of_two_workers_writes_what_one_process_does(
    dask: Dask,
    command: Callable[..., Any],
    tiny_graph: Path,
    pictures: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
) -> None:
    """Through the command line; the same cluster then analyses the store as this process does."""
    dask.have(2)
    done = command("run", tiny_graph, pictures, "-o", "s.zarr", "--scheduler", dask.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Dask at {dask.address}" in done.stderr
    assert chunk_files(tmp_path / "s.zarr") == whole
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert (record["executor"], record["images"]) == ("dask", 50)
    assert_analyzed_alike(command, tmp_path / "s.zarr", "--scheduler", dask.address)


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_a_cluster_whose_workers_are_killed_finishes(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Kill -9, with another worker in its place: no unit that was marked is done again."""
    dask.have(2)

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
    dask.have(2)

    def kill_with_answers() -> None:
        # Whoever asked is held up here, at the first of four answers, so that those that follow stay with the workers.
        until(lambda: len(list(marks.folder.glob("c.*"))) > 1)
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
    """One line; with another scheduler the same command goes on."""
    dying = Dask(tmp_path / "dask")
    try:
        dying.have(1)
        marks = Marks(tmp_path / "s.zarr", at5=dying.scheduler.kill)
        with pytest.raises(AttlasError, match="the scheduler is gone; what is done stays, the same command goes on"):
            attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dying.address, progress=marks)
    finally:
        dying.end()
    dask.have(2)
    result = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address)
    assert result.done < 50
    assert result.finished
    assert chunk_files(tmp_path / "s.zarr") == whole


def test_workers_of_another_version_are_refused(dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Naming both versions, before anything is done."""
    import onnxruntime

    (tmp_path / "sitecustomize.py").write_text("import onnxruntime\nonnxruntime.__version__ = '0.1'\n")
    dask.have(0)
    other = dask.add(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(
        AttlasError, match=f"worker tcp://.*: onnxruntime 0.1 there, {onnxruntime.__version__} here; install the same"
    ):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", scheduler=dask.address)
    assert not Store(tmp_path / "s.zarr").done.any()
    other.kill()
    other.wait()


def test_workers_that_do_not_see_the_files_are_refused(
    dask: Dask, tiny_graph: Path, pictures: Path, tmp_path: Path
) -> None:
    """Images, as a worker says; graph and store, as `Worker` says."""
    from attlas.engine.sources import Folder

    dask.have(2)
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


@pytest.mark.parametrize(
    "address", ["", "foo", "tcp://", "tcp://127.0.0.1", "http://127.0.0.1:8787", "inproc://1", "tcp://a:b"]
)
def test_what_is_no_address_is_refused_before_dask_tries_it(address: str) -> None:
    """Its client would be collected later, with a traceback that nothing catches."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'attlas[distributed]'")
    from attlas.engine.executors.cluster import ADDRESS, Cluster

    with pytest.raises(UsageError, match=r"is no address; write tcp://HOST:PORT"), Cluster(address):
        pass
    for known in ("tcp://10.0.0.1:8786", "tls://node-7.cluster:8786", "localhost:8786", "tcp://[fe80::1%eth0]:8786"):
        assert ADDRESS.fullmatch(known)


def test_a_scheduler_that_is_not_there_is_one_line(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Exit 1, and nothing is written."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'attlas[distributed]'")
    process = command(tiny_graph, pictures, tmp_path / "s.zarr", "--scheduler", "tcp://127.0.0.1:9")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("attlas: --scheduler tcp://127.0.0.1:9: cannot be reached")
    assert err.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()
