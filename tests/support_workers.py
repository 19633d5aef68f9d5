"""What the tests of workers share."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
from attlas.engine.executors.base import Task
from attlas.engine.executors.dispatch import Outcome
from attlas.engine.executors.worker import Worker
from attlas.engine.job import Request
from support import chunk_files

PATIENCE = 120  # seconds for what takes a few


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


def assert_analyzed_alike(command: Callable[..., Any], store: Path, *options: str) -> None:
    """`attlas analyze` with these options writes what it writes in threads of one process."""
    other = store.with_name("threads.zarr")
    shutil.copytree(store, other)
    attlas.analyze(other, ["entropy", "score_matrix_mean"])
    done = command("analyze", store, "entropy", "score_matrix_mean", *options, cwd=store.parent)
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
        codec="lz4",
        batch_size=None,
        provider="cpu",
        precision="float32",
        decoder="host",
        target="predicted",
        limit=limit,
        seed=0,
        reducer=None,
        statistics="auto",
        overwrite=False,
        dry_run=False,
    )
