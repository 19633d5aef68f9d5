"""Stores in a bucket: the same files as in a folder, whatever the network does. A real S3 server, with a bad wire."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from support import chunk_files, make_images, make_spec

for package, extra in (("fsspec", "remote"), ("s3fs", "remote"), ("moto", "dev"), ("flask", "dev")):
    pytest.importorskip(package, reason=f"needs {package}: `pip install 'attlas[{extra}]'`")

import s3fs  # noqa: E402
from attlas.engine.plan import make_plan  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

SECRET = "a-secret-that-nobody-stores"
XML = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "403": (403, "AccessDenied", "Access Denied"),
}
Faults = Callable[[str, str], str]


class Wire(BaseHTTPRequestHandler):
    """Hands requests on to the server behind, or does to them what `faults` says."""

    protocol_version = "HTTP/1.1"
    server: Any

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.server.faults(self.command, self.path)
        if fault == "cut":
            self.rfile.read(length // 2)
            self.hang_up()
            return
        body = self.rfile.read(length)
        if fault == "slow":
            time.sleep(0.3)
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            self.reply(status, [("Content-Type", "application/xml")], XML.format(code, message).encode())
            return
        behind = http.client.HTTPConnection(*self.server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
        behind.request(self.command, self.path, body, headers)
        found = behind.getresponse()
        data = found.read()
        behind.close()
        if fault == "lost":
            self.hang_up()
        else:
            self.reply(found.status, found.getheaders(), data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def reply(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        sizes = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", sizes[0] if self.command == "HEAD" and sizes else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


class S3:
    """A server, the wire before it, and as many buckets as asked for."""

    def __init__(self) -> None:
        import logging

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.wire: Any = ThreadingHTTPServer(("127.0.0.1", 0), Wire)
        self.wire.behind = self.server.get_host_and_port()
        self.wire.daemon_threads = True
        self.sound()
        threading.Thread(target=self.wire.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.wire.server_port}"
        self.buckets = 0

    def sound(self) -> None:
        self.wire.faults = lambda _method, _path: ""

    def faults(self, faults: Faults) -> None:
        self.wire.faults = faults

    def bucket(self) -> str:
        self.buckets += 1
        connection = http.client.HTTPConnection(*self.wire.behind)
        connection.request("PUT", f"/bucket-{self.buckets}")
        assert connection.getresponse().status == 200
        return f"s3://bucket-{self.buckets}"

    def stop(self) -> None:
        self.wire.shutdown()
        self.wire.server_close()
        self.server.stop()


def forget_connections() -> None:
    """Read the environment anew."""
    remote._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "2")  # boto's own, before s3fs and attlas try again
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_connections()
        yield server
    forget_connections()
    server.stop()


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    yield server
    server.sound()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("few"), 8)


@pytest.fixture(scope="module")
def whole(tiny_graph: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that every other one is compared with."""
    return Path(run(tiny_graph, few, tmp_path_factory.mktemp("whole") / "s.zarr").path)


def run(graph: Path, images: Path, store: Any, **choices: Any) -> Any:
    """Without statistics, so that there are fewer files: four units of about ten."""
    return attlas.engine.run(graph, images, store, batch_size=2, threads=1, **choices)


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
    cut = {"image": 4, "layer": 2}
    opened = attlas.open(url, chunks=cut)
    assert opened.attention.chunks[:2] == ((4, 4), (2,))
    assert opened.identical(attlas.open(copy, chunks=cut).compute())
    page = attlas.report([url], tmp_path / "r.html", examples=1)
    assert "tiny_test" in page.read_text("utf-8")


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


def one_in(count: int, *faults: str, methods: str = "GET HEAD PUT POST DELETE") -> Faults:
    """Every `count`-th request on average, seeded, has one of these faults."""
    dice, lock = random.Random(0), threading.Lock()

    def choose(method: str, _path: str) -> str:
        with lock:
            return dice.choice(faults) if method in methods and not dice.randrange(count) else ""

    return choose


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


def after(count: int, fault: str, what: Callable[[str, str], bool]) -> Faults:
    """From the `count`-th request of a kind on, each of them has the fault."""
    lock, seen = threading.Lock(), [0]

    def choose(method: str, path: str) -> str:
        with lock:
            seen[0] += what(method, path)
            return fault if what(method, path) and seen[0] >= count else ""

    return choose


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
