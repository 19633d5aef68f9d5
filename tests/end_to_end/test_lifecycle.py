"""A store through all that may happen to it, in any order: what was finished stays, and it ends as one run's would."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.errors import AttlasError
from crashes import Crash
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import make_images

pytest.importorskip("attlas.analysis.statistics")

IMAGES, BATCH = 8, 2
ROWS = ("attention", "logits", "distance", "entropy", "rollout")
EXTRAS = ("self_mass", "entropy_histogram")  # rows of each image, and counts of all
PARTS = st.floats(0, 1, exclude_max=True)
KILLS = st.none() | PARTS  # the part of the work after which it is killed
# ATTLAS_HYPOTHESIS=long looks for what the short one, which is the same each time, does not meet.
LONG = os.environ.get("ATTLAS_HYPOTHESIS") == "long"
SETTINGS = settings(
    max_examples=150 if LONG else 6,
    stateful_step_count=20 if LONG else 8,
    phases=list(Phase) if LONG else [Phase.generate],  # shrinking takes minutes
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class World:
    """What every example starts from, and what it must end as."""

    graph: Path
    pictures: Path
    whole: Path  # of one run, and everything analysed
    changes: dict[str, int]  # how many changes each kind of work makes on the disk
    crash: Crash

    @functools.cached_property
    def end(self) -> Seen:
        """What every store must be in the end."""
        return Seen(self.whole)

    def run(self, store: Path, **choices: Any) -> Any:
        """The same command each time; one thread, so that a kill at the n-th change is the same moment each time."""
        return attlas.run(self.graph, self.pictures, store, batch_size=BATCH, threads=1, **choices)


@pytest.fixture(scope="module")
def world(tiny_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pictures = make_images(folder / "pictures", IMAGES, 2)
    crash, store, changes = Crash(), folder / "s.zarr", dict[str, int]()
    made = World(tiny_graph, pictures, store, changes, crash)
    work = {
        "run": lambda: made.run(store),
        "overwrite": lambda: made.run(store, overwrite=True),
        "analyze": lambda: attlas.analyze(store, workers=1),
        "extras": lambda: attlas.analyze(store, EXTRAS, workers=1),
        "label": lambda: attlas.analyze(store, by="label", workers=1),
        "analyze again": lambda: attlas.analyze(store, overwrite=True, workers=1),
        "label again": lambda: attlas.analyze(store, by="label", overwrite=True, workers=1),
    }
    for name, does in work.items():
        with crash.at(folder) as counted:
            does()
        changes[name] = counted.count
    return made


class Seen:
    """A store as it is at one moment. Opening one costs more than all that is asked of it here."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.done = self.store.done
        self.analyzed = frozenset(self.store.attrs.get("analyzed", ()))

    @functools.cached_property
    def files(self) -> dict[str, bytes]:
        """What a run alone writes, by path: chunks, marks and metadata, but for its account, locks and leftovers."""
        found, path = {}, Path(self.store.path)
        for file in path.rglob("*"):
            key = file.relative_to(path).as_posix()
            beside = file.name.startswith(".lock") or file.name.endswith(".partial")
            if file.is_file() and not beside and key.partition("/")[0] not in self.analyzed:
                found[key] = file.read_bytes()
        return {key: data for key, data in found.items() if key not in ("zarr.json", "run/zarr.json")}

    @functools.cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """Every array that an analysis wrote, whole."""
        return {name: self.store.read(name) for name in self.analyzed}

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Some of what a run wrote of each image."""
        return {name: self.store.read(name) for name in ROWS}


def assert_numbers_alike(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """The same values, but for the order in which sums were added up."""
    for name, values in ours.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, theirs[name], rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def assert_old_or_new(now: dict[str, np.ndarray], old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> None:
    """Every array that was there holds what it held, or what the work was to write: never fill, never nothing."""
    assert old.keys() <= now.keys(), f"gone: {sorted(old.keys() - now.keys())}"
    for name, values in old.items():
        if not np.array_equal(now[name], values, equal_nan=values.dtype.kind == "f"):
            assert name in new, f"{name} is neither what it was nor anything that was to be written"
            np.testing.assert_array_equal(now[name], new[name], err_msg=f"{name} is neither old nor new")


class Lifecycle(RuleBasedStateMachine):
    """One store's life. The model is what is damaged, and what the analyses have written so far.

    A run writes on several threads, so that what a kill leaves is not the same each time. Hypothesis needs the same
    choices each time: none depends on the store, and a rule that does not fit does nothing.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.folder = Path(tempfile.mkdtemp(dir=world.whole.parent))
        self.store = self.folder / "s.zarr"
        self.damaged: dict[int, str] = {}  # unit -> file
        self.numbers: dict[str, np.ndarray] = {}
        self._seen: Seen | None = None

    @property
    def there(self) -> bool:
        return self.store.exists()

    @property
    def seen(self) -> Seen:
        """As it is since the last rule."""
        self._seen = self._seen or Seen(self.store)
        return self._seen

    # -- what happens to it -----------------------------------------------------------------------------------------

    @initialize(kill=KILLS, torn=st.booleans())
    def begin(self, kill: float | None, torn: bool) -> None:
        """The first run."""
        self.run(kill, torn)

    @rule(kill=KILLS, torn=st.booleans())
    def run(self, kill: float | None, torn: bool) -> None:
        """The command of the first run, again."""
        before = self.seen.done if self.there else np.zeros(IMAGES, np.bool_)
        with self._killed("run", kill, torn):
            result = self.world.run(self.store)
            assert result.finished
            assert not result.done or self._leftovers(analysis=False) == []
        if self.there:  # units that were not done and now are, are whole
            self.damaged = {k: key for k, key in self.damaged.items() if before[k] or not self.seen.done[k]}

    @rule(kill=KILLS, torn=st.booleans())
    def overwrite(self, kill: float | None, torn: bool) -> None:
        """From the beginning; what the old store held is given up."""
        if not self.there:
            return
        self.numbers = {}
        with self._killed("overwrite", kill, torn):
            assert self.world.run(self.store, overwrite=True).done == IMAGES
        # Killed before the old store was put aside, it is as it was.
        self.damaged = {
            k: key for k, key in self.damaged.items() if self.there and self.seen.done[k] and self._other(key)
        }
        self.numbers = self.seen.numbers if self.there else {}

    @rule(what=st.sampled_from(["analyze", "extras", "label"]), overwrite=st.booleans(), kill=KILLS, torn=st.booleans())
    def analyze(self, what: str, overwrite: bool, kill: float | None, torn: bool) -> None:
        """Some of the statistics, or all of them, or by label."""
        if not self.there:
            return
        names, by = EXTRAS if what == "extras" else None, "label" if what == "label" else ""
        ended = False
        copy = self.folder / "copy.zarr"
        if kill is not None or self.damaged:
            shutil.copytree(self.store, copy)
        with self._killed(what, kill, torn):
            attlas.analyze(self.store, names, by=by, overwrite=overwrite, workers=1)
            ended = True
            assert self._leftovers(analysis=True) == []
        now, new = self.seen.numbers, dict[str, np.ndarray]()
        if not ended:
            with contextlib.suppress(AttlasError):
                attlas.analyze(copy, names, by=by, overwrite=overwrite, workers=1)
                new = Seen(copy).numbers
            assert_old_or_new(now, self.numbers, new)
        shutil.rmtree(copy, ignore_errors=True)
        self.numbers = now

    @rule(kill=KILLS)
    def repair(self, kill: float | None) -> None:
        """Faulty units are opened again."""
        if not self.there:
            return
        with self._killed("repair", kill, torn=False):
            found = attlas.verify(self.store, repair=True)
            assert found.repaired == bool(found.faults)
            assert attlas.verify(self.store).faults == {}

    @rule(k=st.integers(0, IMAGES // BATCH - 1), part=PARTS, how=st.sampled_from(["flip", "cut", "delete"]))
    def damage(self, k: int, part: float, how: str) -> None:
        """A chunk of a unit that is done."""
        if not self.there or k in self.damaged or not self.seen.done[k]:
            return
        keys = sorted(self.seen.store.unit_keys(k))
        key = keys[int(part * len(keys))]
        path = self.store / key
        self._seen = None
        held = bytearray(path.read_bytes())
        held[len(held) // 2] ^= 1
        if how == "delete":
            path.unlink()
        else:
            path.write_bytes(held[: len(held) // 2] if how == "cut" else held)
        self.damaged[k] = key

    @rule(name=st.sampled_from(["attention", "run/done", "valid", "distance_mean"]))
    def leftover(self, name: str) -> None:
        """What a writer leaves that was killed in the middle of a file."""
        if self.there and (self.store / name).exists():
            (self.store / name / "c.0.9999-1.partial").write_bytes(b"half a")

    # -- what holds at every moment ---------------------------------------------------------------------------------

    @precondition(lambda self: self.there)
    @invariant()
    def every_done_unit_verifies_or_is_named(self) -> None:
        """No more units, and no fewer."""
        faults = attlas.verify(self.store).faults
        assert sorted(faults) == sorted(k for k in self.damaged if self.seen.done[k])

    @precondition(lambda self: self.there and not self.damaged and self.seen.done.all())
    @invariant()
    def a_finished_store_is_that_of_one_run(self) -> None:
        """File by file."""
        ours, theirs = self.seen.files, self.world.end.files
        # An analysis that was killed may leave arrays that it did not enlist yet.
        beside = self.world.end.analyzed
        assert {key for key in ours if key.partition("/")[0] not in beside} == theirs.keys()
        assert [key for key in theirs if ours[key] != theirs[key]] == []

    @precondition(lambda self: self.there)
    @invariant()
    def nothing_that_was_finished_reads_as_fill(self) -> None:
        """Rows of units that are done, and every number that an analysis wrote."""
        whole = set(np.flatnonzero(self.seen.done).tolist()) - self.damaged.keys()
        rows = self.seen.rows if not self.damaged else {}
        for k in whole:
            images = self.seen.store.plan.unit_range(k)
            for name, values in rows.items():
                at = slice(images.start, images.stop)
                np.testing.assert_array_equal(values[at], self.world.end.rows[name][at], err_msg=name)
        now = self.seen.numbers
        assert_old_or_new(now, self.numbers, {})
        for name, values in now.items():
            if name.endswith(("_mean", "_std", "_interval", "_quantile", "_mean_by_label")):
                assert np.isfinite(values).all(), f"{name} reads as fill"

    def teardown(self) -> None:
        """Whatever happened: repaired, run and analysed once more, it is what one run and one analysis give."""
        try:
            if not self.there:
                self.world.run(self.store)
            attlas.verify(self.store, repair=True)
            assert self.world.run(self.store).finished
            self.damaged, self._seen = {}, None
            self.a_finished_store_is_that_of_one_run()
            for by in ("", "label"):
                attlas.analyze(self.store, by=by, workers=1)
            found = Seen(self.store).numbers
            assert "distance_mean_by_label" in found
            assert_numbers_alike(found, self.world.end.numbers)
        finally:
            shutil.rmtree(self.folder)

    # -- how it happens ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _killed(self, work: str, kill: float | None, torn: bool) -> Iterator[None]:
        """Do it whole, or up to a part of what it writes. Only a damaged store may refuse."""
        changes = self.world.changes.get(work, 4)
        self._seen = None
        with self.world.crash.at(self.folder, None if kill is None else 1 + int(kill * changes), torn=torn):
            try:
                yield
            except AttlasError:
                if not self.damaged and not self.world.crash.dead:
                    raise

    def _leftovers(self, *, analysis: bool) -> list[Path]:
        """Half-written files of runs, or of analyses; each goes with the next of its kind."""
        own = {key.partition("/")[0] for key in self.world.end.files}
        found = (file.relative_to(self.store) for file in self.store.rglob("*.partial"))
        return [file for file in found if (file.parts[0] in own) != analysis]

    def _other(self, key: str) -> bool:
        return self.seen.files.get(key) != self.world.end.files[key]


def test_whatever_happens_nothing_finished_is_lost(world: World) -> None:
    """Runs, kills at any write, repairs, analyses and damage in any order."""
    run_state_machine_as_test(lambda: Lifecycle(world), settings=SETTINGS)


@pytest.mark.parametrize(
    ("part", "torn"), [(0, True), (0.2, False), (0.4, True), (0.6, False), (0.8, True), (0.99, False)]
)
@pytest.mark.parametrize("what", ["analyze", "label"])
def test_an_analysis_killed_at_any_write_keeps_every_number(
    world: World, tmp_path: Path, part: float, what: str, torn: bool
) -> None:
    """Those of before or those of after, whole; and the next analysis does the rest."""
    store = tmp_path / "s.zarr"
    shutil.copytree(world.whole, store)
    before = Seen(store).numbers
    by = "label" if what == "label" else ""
    with world.crash.at(tmp_path, 1 + int(part * world.changes[f"{what} again"]), torn=torn) as crash:
        attlas.analyze(store, by=by, overwrite=True, workers=1)
    assert crash.dead
    assert_old_or_new(Seen(store).numbers, before, before)
    attlas.analyze(store, by=by, overwrite=True, workers=1)
    assert_numbers_alike(Seen(store).numbers, before)


@pytest.mark.skipif(os.name != "posix", reason="kills with signal 9")
def test_a_process_killed_while_it_analyses_keeps_every_number(world: World, tmp_path: Path) -> None:
    """Kill -9, as soon as something changes."""
    store = tmp_path / "s.zarr"
    shutil.copytree(world.whole, store)
    before = Seen(store).numbers

    def state() -> list[tuple[str, int]]:
        return sorted((path.name, path.stat().st_mtime_ns) for path in store.iterdir() if "_" in path.name)

    untouched = state()
    command = [sys.executable, "-m", "attlas.cli", "analyze", str(store), "--overwrite"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if state() != untouched:
                break
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert process.returncode == -9
    assert_old_or_new(Seen(store).numbers, before, before)
    attlas.analyze(store)
    assert_numbers_alike(Seen(store).numbers, before)
