"""A store in a bucket, over a network that fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import attlas
import attlas.engine
import numpy as np
import pytest
from attlas.engine.store.storage import storage_at
from attlas.engine.store.store import Store
from attlas.errors import AttlasError
from support import chunk_files

for package, extra in (("fsspec", "remote"), ("s3fs", "remote"), ("moto", "dev"), ("flask", "dev")):
    pytest.importorskip(package, reason=f"needs {package}: `pip install 'attlas[{extra}]'`")


from support_remote import S3, SECRET, Faults, after, one_in, run  # noqa: E402


def test_a_store_in_a_bucket_holds_the_same_files_as_in_a_folder(
    s3: S3, tiny_graph: Path, few: Path, tmp_path: Path
) -> None:
    """And is run, resumed, verified, inspected, analysed, opened and reported like one."""
    url, whole = f"{s3.bucket()}/deep/in/it/s.zarr", tmp_path / "whole.zarr"
    attlas.run(tiny_graph, few, whole, batch_size=4)
    result = attlas.run(tiny_graph, few, url, batch_size=4)
    assert (result.finished, result.path, result.done) == (True, url, 8)
    assert chunk_files(url) == chunk_files(whole)
    assert attlas.run(tiny_graph, few, url, batch_size=4).done == 0
    assert attlas.verify(url).faults == {}
    here, there = attlas.inspect(whole), attlas.inspect(url)
    same = ("bytes", "arrays", "units_done", "finished", "model", "plan")
    assert {k: here.get(k) for k in same} == {k: there.get(k) for k in same}
    copy = tmp_path / "s.zarr"
    for key, _ in storage_at(url).listing():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(storage_at(url).read(key))
    made = [attlas.analyze(place, ["entropy", "rollout_vit_explain"]) for place in (copy, url)]
    assert made[0].made == made[1].made
    assert chunk_files(url) == chunk_files(copy)
    again = attlas.analyze(url, ["entropy", "rollout_vit_explain"])
    assert again.read == 0
    cut, lists = {"image": 4, "layer": 2}, list[str]()
    s3.faults(lambda _method, path: lists.append(path) or "" if "list-type" in path else "")
    opened = attlas.open(url, chunks=cut)
    s3.sound()
    assert len(lists) == 2  # the marks, and everything
    assert opened.attention.chunks[:2] == ((4, 4), (2,))
    assert opened.identical(attlas.open(copy, chunks=cut).compute())
    page = attlas.report([url], tmp_path / "r.html", examples=1, only=["distance", "examples"])
    assert "tiny_test" in page.read_text("utf-8")
    storage_at(url).delete("entropy_patch/c.1.0.0")
    for reads in (lambda: attlas.analyze(url), lambda: attlas.open(url), lambda: Store(url).read("entropy_patch")):
        with pytest.raises(AttlasError, match="entropy_patch lacks rows of unit 1, which is done"):
            reads()


def test_neither_credentials_nor_endpoint_are_stored(s3: S3, tiny_graph: Path, few: Path) -> None:
    """In no file of the store."""
    url = f"{s3.bucket()}/s.zarr"
    run(tiny_graph, few, url, limit=2)
    place = storage_at(url)
    port = s3.endpoint.rpartition(":")[2].encode()
    for key, _ in place.listing():
        data = place.read(key)
        assert SECRET.encode() not in data
        assert b"127.0.0.1" not in data
        assert not (key.endswith("zarr.json") and port in data)


@pytest.mark.parametrize(
    "faults",
    [one_in(20, "500", "503"), one_in(20, "slow"), one_in(10, "cut", "lost", methods="PUT")],
    ids=["errors", "slow", "cut"],
)
def test_a_bad_network_changes_no_byte(s3: S3, tiny_graph: Path, few: Path, whole: Path, faults: Faults) -> None:
    """5 % of requests failing, 5 % slow, and a tenth of the puts cut in the middle or their answers lost."""
    url = f"{s3.bucket()}/s.zarr"
    s3.faults(faults)
    assert run(tiny_graph, few, url).finished
    s3.sound()
    assert chunk_files(url) == chunk_files(whole)


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_an_outage_ends_the_run_with_one_line_and_the_same_command_goes_on(
    s3: S3, tiny_graph: Path, few: Path, whole: Path, fault: str
) -> None:
    """What was done stays, and is not done again."""
    url = f"{s3.bucket()}/s.zarr"
    s3.faults(after(40, fault, lambda method, path: method == "PUT" and "/c." in path and "run/" not in path))
    with pytest.raises(AttlasError, match=r"cannot be written .* run the same command again") as caught:
        run(tiny_graph, few, url)
    assert "\n" not in str(caught.value)
    s3.sound()
    done = int(Store(url).done_images.sum())
    assert 0 < done < 8
    assert run(tiny_graph, few, url).done == 8 - done
    assert chunk_files(url) == chunk_files(whole)


def test_a_run_that_is_killed_goes_on(s3: S3, tiny_graph: Path, few: Path, whole: Path) -> None:
    """With kill -9 in the middle of a put."""
    url = f"{s3.bucket()}/s.zarr"
    process: Any = None
    puts = threading.Semaphore(0)

    def kill(method: str, path: str) -> str:
        if method == "PUT" and "/c." in path and "run/" not in path:
            puts.release()
            if puts._value > 30:
                process.kill()
                process.wait()
                return "cut"
        return ""

    s3.faults(kill)
    code = "import sys; from attlas.engine import run; run(*sys.argv[1:], batch_size=2, threads=1)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tiny_graph), str(few), url])
    assert process.wait(120) == -9
    s3.sound()
    assert not Store(url).done.all()
    assert run(tiny_graph, few, url).finished
    assert chunk_files(url) == chunk_files(whole)


def test_verify_finds_damage_and_does_not_take_an_outage_for_it(
    s3: S3, tiny_graph: Path, few: Path, whole: Path
) -> None:
    """Repair reopens what is damaged or missing; where the bucket cannot be reached, nothing."""
    url = f"{s3.bucket()}/s.zarr"
    run(tiny_graph, few, url)
    s3.faults(after(1, "403", lambda method, path: method == "GET" and "prefix_attention/c." in path))
    with pytest.raises(AttlasError, match="cannot be read now"):
        attlas.verify(url, repair=True)
    s3.sound()
    store = Store(url, writable=True)
    assert store.done.all()
    damaged = store.chunk_key("logits", (0, 0))
    data = bytearray(store.storage.read(damaged))
    data[-6] ^= 1
    store.storage.write(damaged, bytes(data))
    store.storage.delete(store.chunk_key("prefix_attention", (2, 0, 0, 0, 0)))
    assert set(attlas.verify(url, repair=True).faults) == {0, 2}
    assert list(np.flatnonzero(~store.done)) == [0, 2]
    run(tiny_graph, few, url)
    assert chunk_files(url) == chunk_files(whole)
