"""Runs that are stopped, killed, doubled, or find the disk full."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine.inspect import screen
from attlas.engine.outcome import outcome_data, outcome_lines
from attlas.engine.runner import run
from attlas.engine.store.schema import CODECS, ArraySpec
from attlas.engine.unit import UnitResult
from attlas.errors import AttlasError, Interrupted
from support import chunk_files, make_images, make_picture
from support_run import paths


def test_a_finished_store_is_left_as_it_is(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The same command is a no-op."""
    run(tiny_graph, pictures, tmp_path / "s.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}
    result = run(tiny_graph, pictures, tmp_path / "s.zarr")
    assert result.done == 0
    assert result.finished
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}


@pytest.mark.parametrize("codec", CODECS)
def test_a_stopped_run_resumes_to_the_same_bytes(tiny_graph: Path, pictures: Path, tmp_path: Path, codec: str) -> None:
    """Every chunk file of every array, statistics included."""
    attlas.run(tiny_graph, pictures, tmp_path / "whole.zarr", codec=codec)
    stop = threading.Event()
    seen = []

    def progress(p: Any) -> None:
        seen.append(p.done)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", codec=codec, progress=progress, stop=stop)
    part = Store(tmp_path / "parts.zarr")
    assert 0 < part.done.sum() < part.plan.units
    result = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", codec=codec)
    assert result.finished
    assert result.done < 50
    assert attlas.verify(tmp_path / "parts.zarr").faults == {}
    assert chunk_files(tmp_path / "parts.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_shards_together_equal_one_run(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """1/2 and 2/2 write every unit once."""
    attlas.run(tiny_graph, pictures, tmp_path / "whole.zarr")
    first = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", shard=(1, 2))
    assert not first.finished
    second = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", shard=(2, 2))
    assert second.finished
    assert first.done + second.done == 50
    assert chunk_files(tmp_path / "parts.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tiny_graph: Path, tmp_path: Path) -> None:
    """Kill -9, again and again, then the same command."""
    folder = make_images(tmp_path / "images", 160)
    attlas.run(tiny_graph, folder, tmp_path / "whole.zarr")
    command = [sys.executable, "-m", "attlas.cli", "run", str(tiny_graph), str(folder), "-o", str(tmp_path / "k.zarr")]
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(4):  # most of a round is a new process
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
        marks = tmp_path / "k.zarr" / "run" / "done"
        deadline = time.monotonic() + 60
        had = len(list(marks.glob("c.*")))
        while process.poll() is None and len(list(marks.glob("c.*"))) <= had and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        if process.poll() is None:
            kills += 1
        process.kill()
        process.wait()
    assert kills >= 2
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert chunk_files(tmp_path / "k.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_an_interrupt_ends_with_130_and_a_hint(tiny_graph: Path, tmp_path: Path) -> None:
    """SIGTERM finishes the units in flight; the same command does the rest."""
    folder = make_images(tmp_path / "images", 400)
    command = [sys.executable, "-m", "attlas.cli", "run", str(tiny_graph), str(folder), "-o", "s.zarr"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    marks = tmp_path / "s.zarr" / "run" / "done"
    while process.poll() is None and not list(marks.glob("c.*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert attlas.run(tiny_graph, folder, tmp_path / "s.zarr").finished
    assert Store(tmp_path / "s.zarr").done.all()


def test_a_file_that_changed_since_the_plan_is_recorded(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its rows are fill: the plan is what the numbers belong to."""
    from attlas.engine.sources import Folder

    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    source = Folder.scan(folder)
    make_picture(77, 50, 50).save(folder / "n00000001" / "00001.jpg")
    store = Store(run(tiny_graph, source, tmp_path / "s.zarr").path)
    errors = dict(zip(paths(store), store.read("error"), strict=True))
    assert {key for key, text in errors.items() if text} == {"n00000001/00001.jpg"}
    assert "changed" in errors["n00000001/00001.jpg"]


def test_a_file_that_vanished_ends_the_run_resumably(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """It may come back, on a network above all; then the same command goes on."""
    from attlas.engine.sources import Folder

    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    source = Folder.scan(folder)
    gone = folder / "n00000003" / "00043.jpg"
    gone.rename(tmp_path / "aside.jpg")
    with pytest.raises(AttlasError, match=r"00043\.jpg: cannot be read .* same command"):
        run(tiny_graph, source, tmp_path / "s.zarr")
    (tmp_path / "aside.jpg").rename(gone)
    assert run(tiny_graph, source, tmp_path / "s.zarr").finished


def test_two_runs_into_one_slice_are_refused(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The lock of a living process holds, that of a dead one does not."""
    from attlas.engine.store.locks import locked

    store = tmp_path / "s.zarr"
    run(tiny_graph, pictures, store, shard=(1, 2))
    with locked(store, (2, 2)), pytest.raises(AttlasError, match="another run is writing shard 2/2"):
        run(tiny_graph, pictures, store, shard=(2, 2))
    with locked(store, (2, 2)), pytest.raises(AttlasError, match="another run is writing shard 1/1"):
        run(tiny_graph, pictures, store)
    with locked(store, (1, 1)), pytest.raises(AttlasError, match="another run is writing shard 2/2"):
        run(tiny_graph, pictures, store, shard=(2, 2))
    assert run(tiny_graph, pictures, store, shard=(2, 2)).finished


def test_shards_of_a_file_system_with_other_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS gives a shared lock only of a file that can be read; where there are no locks, none is another run's."""
    from attlas.engine.store.locks import locked

    fcntl = pytest.importorskip("fcntl")
    refused = []

    def flock(file: Any, operation: int) -> None:
        if lacking or (operation & fcntl.LOCK_SH and not file.readable()):
            refused.append(operation)
            raise OSError(errno.ENOTSUP, "no lock")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "run").mkdir()
    for lacking in (False, True):
        with locked(tmp_path, (1, 2)), locked(tmp_path, (2, 2)):
            assert bool(refused) == lacking


def test_a_store_that_is_being_written_is_not_overwritten(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its writer keeps it; afterwards it goes."""
    from attlas.engine.store.locks import locked

    store = tmp_path / "s.zarr"
    run(tiny_graph, pictures, store, limit=3)
    with locked(store, (1, 1)), pytest.raises(AttlasError, match="a run is writing it"):
        run(tiny_graph, pictures, store, overwrite=True)
    assert Store(store).plan.images == 3
    run(tiny_graph, pictures, store, overwrite=True)
    assert Store(store).plan.images == 50


def test_runs_that_end_at_once_are_all_recorded(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Shards share the record, and none's account is lost."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=2, keep=("none",))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Store(tmp_path / "s.zarr").record_run({"number": n}), range(64)))
    runs = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert runs[0]["images"] == 2
    assert {entry["number"] for entry in runs[1:]} == set(range(64))


def test_the_record_has_seconds_of_each_stage_and_batch(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Every stage with its sum, and the mean and the slowest batch; `inspect` shows them."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2)
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert set(record["stages"]) == {"decode", "inference", "reduce", "write", "commit"}
    assert record["batches"] == 25
    for name, seconds in record["seconds_per_batch"].items():
        assert 0 < seconds["mean"] <= 25 * seconds["max"]
        assert seconds["mean"] * 25 == pytest.approx(record["stages"][name], abs=2e-3)


def test_a_stage_alone_is_as_fast_as_its_threads_are() -> None:
    """One thread per worker commits, and one device per worker infers, whatever the threads wait for it."""
    seconds = {"decode": 2.0, "inference": 8.0, "write": 4.0, "commit": 0.5}
    assert UnitResult(images=100, seconds=seconds).alone(4, 2) == {
        "inference": 50.0, "write": 100.0, "decode": 200.0, "commit": 400.0,
    }  # fmt: skip
    on_card = UnitResult(images=100, seconds={**seconds, "device": 1.0}).alone(4, 2)
    assert next(iter(on_card.items())) == ("write", 100.0)
    assert on_card["inference"] == 200.0
    assert UnitResult().alone(4, 2) == {}


def test_a_run_says_which_stage_was_the_limit(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """At its end, in its record and in `inspect`: the same rates, the slowest first."""
    result = run(tiny_graph, pictures, tmp_path / "s.zarr", threads=2)
    assert set(result.alone) == {"decode", "inference", "reduce", "write", "commit"}
    assert list(result.alone.values()) == sorted(result.alone.values())
    for name in ("decode", "inference", "reduce", "write"):
        assert result.alone[name] == pytest.approx(2 * 50 / result.stages[name], abs=0.01)
    limit = next(iter(result.alone))
    data = attlas.inspect(tmp_path / "s.zarr")
    assert data["runs"][0]["alone"] == result.alone
    (line,) = (line for line in screen(data) if line.startswith("its stages"))
    assert f"{limit} was the limit; each stage alone, images/s: {limit} " in line
    assert outcome_data(result)["limit"] == limit
    assert outcome_lines(result)[1] in line
    assert run(tiny_graph, pictures, tmp_path / "s.zarr").alone == {}  # nothing was left to do


def test_a_full_disk_ends_the_run_resumably(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever write it happens: a clear line, and the same bytes after resuming."""
    run(tiny_graph, pictures, tmp_path / "whole.zarr")
    write = Store.write
    for after in (0, 3, 11, 40):
        count = 0

        def full(self: Store, *values: Any, after: int = after, **named: Any) -> None:
            nonlocal count
            count += 1
            if count > after:
                raise OSError(28, "No space left on device")
            write(self, *values, **named)

        monkeypatch.setattr(Store, "write", full)
        with pytest.raises(AttlasError, match=r"cannot be written \(No space left on device\).*same command"):
            run(tiny_graph, pictures, tmp_path / f"{after}.zarr")
        monkeypatch.setattr(Store, "write", write)
        assert run(tiny_graph, pictures, tmp_path / f"{after}.zarr").finished
        assert chunk_files(tmp_path / f"{after}.zarr") == chunk_files(tmp_path / "whole.zarr")


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_store_that_goes_away_ends_the_run_and_leaves_no_ghost(
    tiny_graph: Path, pictures: Path, tmp_path: Path, how: str
) -> None:
    """Nothing is made where it was; a moved one keeps what was done, and is finished where it is now."""
    path, aside = tmp_path / "s.zarr", tmp_path / "aside.zarr"

    def progress(now: Any) -> None:
        if now.done and path.exists():  # a busy machine reports several units at once
            path.rename(aside)

    with pytest.raises(AttlasError, match=r"s\.zarr: is no longer there \(moved or deleted"):
        run(tiny_graph, pictures, path, limit=12, batch_size=2, threads=1, progress=progress)
    assert [found.name for found in tmp_path.iterdir()] == ["aside.zarr"]
    gone = Store(aside, writable=True)
    done = gone.done.sum()
    assert done >= 1
    if how == "moved":
        assert run(tiny_graph, pictures, aside, limit=12, batch_size=2, threads=1).finished
        assert attlas.verify(aside).faults == {}
        return
    shutil.rmtree(aside)
    block, text = np.zeros((2, 4), np.float32), np.array(["", ""], np.dtypes.StringDType())
    writes = [
        lambda: gone.write("logits", 2, block),
        lambda: gone.write("error", 2, text),
        lambda: gone.mark_done(2),
        lambda: gone.add([ArraySpec("more", ("unit",), (1,), (1,), "uint8", 0)]),
        lambda: gone.read("logits"),
    ]
    for write in writes:
        with pytest.raises(AttlasError, match="is no longer there"):
            write()
    assert not list(tmp_path.iterdir())


def test_verify_finds_what_is_damaged_and_repair_reopens_it(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """A flipped bit, a missing chunk, rows that do not sum to 1; the same run then mends it."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2)
    whole = chunk_files(tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr", writable=True)
    assert attlas.verify(store.path).faults == {}
    flipped = next(f for f in map(store.path.joinpath, store.unit_keys(3)) if "attention/c." in f.as_posix())
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    next(f for f in map(store.path.joinpath, store.unit_keys(5)) if "logits/c." in f.as_posix()).unlink()
    images = store.plan.unit_range(7)
    store.write(
        "attention",
        images.start,
        store.read("attention", slice(images.start, images.start + 2))[:, :1] * 0.5,
        layer=slice(0, 1),
    )
    found = attlas.verify(store.path)
    assert set(found.faults) == {3, 5, 7}
    assert "does not read" in found.faults[3]
    assert "missing" in found.faults[5]
    assert "does not sum to 1" in found.faults[7]
    assert attlas.verify(store.path, repair=True).repaired
    assert run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2).finished
    assert chunk_files(tmp_path / "s.zarr") == whole


def test_a_store_begun_before_an_array_was_added_says_so(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its rows would be there for half of the images."""
    path = tmp_path / "s.zarr"
    attlas.run(tiny_graph, pictures, path, limit=4)
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"]["width"]
    (path / "zarr.json").write_text(json.dumps(root))
    shutil.rmtree(path / "width")
    Store(path, writable=True).reopen(0)
    with pytest.raises(AttlasError, match=r"s.zarr: was begun by attlas \d\S*, which had no width; finish it"):
        attlas.run(tiny_graph, pictures, path, limit=4)
