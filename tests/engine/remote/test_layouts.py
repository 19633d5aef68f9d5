"""Who may lay a store out in a bucket, and what stands there afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import attlas
import attlas.engine
import numpy as np
import pytest
from attlas.engine.sources import remote
from attlas.engine.store.storage import Bucket, Url, locate, storage_at
from attlas.engine.store.store import ArraySpec, Store, Template
from attlas.errors import AttlasError
from support import chunk_files, make_spec

for package, extra in (("fsspec", "remote"), ("s3fs", "remote"), ("moto", "dev"), ("flask", "dev")):
    pytest.importorskip(package, reason=f"needs {package}: `pip install 'attlas[{extra}]'`")


from attlas.engine.plan import make_plan  # noqa: E402
from support_remote import S3, after, forget_connections, one_in, run  # noqa: E402


def test_shards_that_begin_together_lay_out_one_store(s3: S3, tiny_graph: Path, few: Path, whole: Path) -> None:
    """Whoever comes second goes on with what the first laid out."""
    url = f"{s3.bucket()}/s.zarr"
    s3.faults(one_in(3, "slow", methods="PUT"))
    failed: list[BaseException] = []

    def part(k: int) -> None:
        try:
            run(tiny_graph, few, url, shard=(k, 2))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=part, args=(k,)) for k in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert chunk_files(url) == chunk_files(whole)


def layout(url: str, batch: int) -> Store:
    """Lay out a store of one array."""
    plan = make_plan(8, layer_bytes=1, image_bytes=1 << 26, identity={"batch": batch}, batch=batch)
    array = ArraySpec.from_template(Template("values", ("image", "x"), (3,), "float32", np.nan), plan)
    return Store.create(url, make_spec(), plan, [array], values={}, attrs={"kept": {"layers": [0, 1]}})


def test_a_layout_that_begins_between_two_looks_is_no_stranger(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loses that race opens what won it."""
    url, listing, began = f"{s3.bucket()}/s.zarr", Bucket.listing, []

    def late(place: Bucket, folder: str = "") -> Any:
        monkeypatch.setattr(Bucket, "listing", listing)  # once
        began.append(layout(url, 4))
        return listing(place, folder)

    monkeypatch.setattr(Bucket, "listing", late)
    assert layout(url, 4).plan == began[0].plan
    assert len(began) == 1


def test_an_interrupted_layout_is_no_store_and_keeps_others_out(s3: S3) -> None:
    """The same plan goes on; another one is refused until the place is cleared."""
    url = f"{s3.bucket()}/s.zarr"
    s3.faults(after(3, "403", lambda method, _path: method == "PUT"))
    with pytest.raises(AttlasError, match=r"cannot be written \(Access Denied\)"):
        layout(url, 2)
    s3.sound()
    with pytest.raises(AttlasError, match="there is no such store"):
        Store(url)
    with pytest.raises(AttlasError, match="another run is being laid out here"):
        layout(url, 4)
    assert layout(url, 2).plan.batch == 2
    with pytest.raises(AttlasError, match="another process laid out another run"):
        layout(url, 4)
    Store.remove(url)
    assert layout(url, 4).plan.batch == 4


def test_overwriting_deletes_the_old_store_wholly(s3: S3, tiny_graph: Path, few: Path) -> None:
    """Also where the first attempt was interrupted: no mark of the old one counts for the new one."""
    url = f"{s3.bucket()}/s.zarr"
    run(tiny_graph, few, url)
    s3.faults(after(2, "403", lambda method, path: "delete" in path or method == "DELETE"))
    with pytest.raises(AttlasError, match="cannot be deleted"):
        run(tiny_graph, few, url, overwrite=True, limit=4)
    s3.sound()
    with pytest.raises(AttlasError, match="there is no such store"):
        Store(url)
    assert run(tiny_graph, few, url, limit=4).done == 4
    assert attlas.verify(url).faults == {}
    assert Store(url).plan.images == 4


def test_what_is_no_store_is_neither_overwritten_nor_laid_out_over(s3: S3, tiny_graph: Path, few: Path) -> None:
    """Somebody else's data stay as they are."""
    url = f"{s3.bucket()}/data"
    storage_at(url).write("notes.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(AttlasError, match="holds something that is no attention store"):
            run(tiny_graph, few, url, overwrite=overwrite)
    storage_at(url).write("zarr.json", b"{}")
    for overwrite in (False, True):
        with pytest.raises(AttlasError, match="is no attention store"):
            run(tiny_graph, few, url, overwrite=overwrite)
    assert storage_at(url).read("notes.txt") == b"mine"


def test_places_that_cannot_be_written_are_named_in_one_line(
    s3: S3, tiny_graph: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bucket, no permission, no credentials."""
    with pytest.raises(AttlasError, match=r"s3://nowhere/s.zarr: cannot be written .*bucket does not exist"):
        run(tiny_graph, few, "s3://nowhere/s.zarr")
    url = f"{s3.bucket()}/s.zarr"
    s3.faults(lambda method, _path: "403" if method == "PUT" else "")
    line = [sys.executable, "-m", "attlas.cli", "run", str(tiny_graph), str(few), "-o", url]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"attlas: {url}: cannot be written (Access Denied)"
    s3.sound()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    forget_connections()
    try:
        with pytest.raises(AttlasError, match=r"Unable to locate credentials"):
            run(tiny_graph, few, url)
    finally:
        monkeypatch.undo()
        forget_connections()


def test_any_file_system_of_fsspec_will_do(tiny_graph: Path, few: Path, whole: Path) -> None:
    """Here the one in memory."""
    url = "memory://somewhere/s.zarr"
    assert run(tiny_graph, few, url).finished
    assert chunk_files(url) == chunk_files(whole)
    assert run(tiny_graph, few, url, overwrite=True, limit=4).done == 4
    assert attlas.verify(url).faults == {}
    Store.remove(url)
    assert not Url(url).exists()


def test_a_file_url_is_a_path_of_this_machine(tmp_path: Path) -> None:
    """With locks, renames and all."""
    assert locate(f"file://{tmp_path}/s.zarr") == tmp_path / "s.zarr"
    assert isinstance(locate("s3://bucket/s.zarr/"), Url)
    assert locate("s3://bucket/s.zarr/").name == "s.zarr"


def test_verify_asks_once_for_each_chunk(tiny_graph: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asked whether each is there, and then for it: 42 requests for these 20 chunks."""
    url, asked = "memory://verified/s.zarr", list[str]()
    run(tiny_graph, few, url, limit=4)
    chunks = [key for k in range(2) for key in Store(url).unit_keys(k)]
    for name in ("read", "stamp"):
        real: Any = getattr(remote, name)
        monkeypatch.setattr(remote, name, lambda where, real=real: asked.append(where) or real(where))
    assert attlas.verify(url).faults == {}
    assert sorted(where for where in asked if where in {f"{url}/{key}" for key in chunks}) == sorted(
        f"{url}/{key}" for key in chunks
    )


def test_an_unfinished_store_is_read_once(tiny_graph: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows were asked for again when the first that is not there yet was met."""
    url, asked = "memory://unfinished/s.zarr", list[str]()
    run(tiny_graph, few, url)
    store = Store(url, writable=True)
    store.reopen(1)
    for key in store.unit_keys(1):
        store.storage.delete(key)
    real = remote.read
    monkeypatch.setattr(remote, "read", lambda where: asked.append(where) or real(where))
    read = Store(url)
    asked.clear()
    values = {name: read.read(name) for name in ("valid", "error", "height", "logits")}
    assert sorted(asked) == sorted(
        f"{url}/{name}/c.{k}{'.0' * (name == 'logits')}" for name in values for k in range(4)
    )
    assert values["valid"].tolist() == [True, True, False, False, *[True] * 4]
    assert np.isnan(values["logits"][2:4]).all()
    store.storage.delete("height/c.0")
    with pytest.raises(AttlasError, match=r"height lacks rows of unit 0, which is done \(height/c\.0 is missing\)"):
        read.read("height")


def test_a_web_server_that_does_not_answer_has_no_missing_files() -> None:
    """Its own kind of error is fsspec's word for a file that is not there."""
    with pytest.raises(OSError, match="Cannot connect") as caught:
        remote.stamp("http://127.0.0.1:9/list.csv")
    assert not isinstance(caught.value, FileNotFoundError)
