"""What the tests of remote share."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attlas
import attlas.engine
import pytest
from attlas.engine.sources import remote

for package, extra in (("fsspec", "remote"), ("s3fs", "remote"), ("moto", "dev"), ("flask", "dev")):
    pytest.importorskip(package, reason=f"needs {package}: `pip install 'attlas[{extra}]'`")


import s3fs  # noqa: E402
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


def run(graph: Path, images: Path, store: Any, **choices: Any) -> Any:
    """Without statistics, so that there are fewer files: four units of about ten."""
    return attlas.engine.run(graph, images, store, batch_size=2, threads=1, **choices)


def one_in(count: int, *faults: str, methods: str = "GET HEAD PUT POST DELETE") -> Faults:
    """Every `count`-th request on average, seeded, has one of these faults."""
    dice, lock = random.Random(0), threading.Lock()

    def choose(method: str, _path: str) -> str:
        with lock:
            return dice.choice(faults) if method in methods and not dice.randrange(count) else ""

    return choose


def after(count: int, fault: str, what: Callable[[str, str], bool]) -> Faults:
    """From the `count`-th request of a kind on, each of them has the fault."""
    lock, seen = threading.Lock(), [0]

    def choose(method: str, path: str) -> str:
        with lock:
            seen[0] += what(method, path)
            return fault if what(method, path) and seen[0] >= count else ""

    return choose
