"""Who is answered: this machine's own page alone, and nothing but what it may ask for."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support_report import make_store, read

pytest.importorskip("attlas.analysis.view.api")
from attlas.analysis.view import Atlas, Server, write
from attlas.cli import cli
from attlas.errors import AttlasError, UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_store(tmp_path_factory.mktemp("served") / "a.zarr", reduce=True, images=8).path)


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    server = Server(Atlas([path])).start()
    yield server
    server.close()


def ask(server: Server, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, headers=given)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_and_its_answers(server: Server) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}/{server.token}/"
    status, headers, body = ask(server, f"/{server.token}/")
    assert status == 200
    assert b"atlas.js" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(server, f"/{server.token}/atlas.css")[1]["Content-Type"].startswith("text/css")
    status, _, body = ask(server, f"/{server.token}/manifest", Origin=f"http://127.0.0.1:{server.port}")
    assert (status, json.loads(body)["images"]) == (200, 8)
    status, headers, body = ask(server, f"/{server.token}/manifest", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100
    assert ask(server, f"/{server.token}/manifest", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1:1"}, {"Host": ""},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)  # fmt: skip
def test_other_pages_are_refused(server: Server, headers: dict[str, str]) -> None:
    """Also one whose name was made to point here."""
    for target in ("/", "/manifest", "/atlas.js"):
        assert ask(server, f"/{server.token}{target}", **headers)[0] == 403


@pytest.mark.parametrize("target", ["/", "//", "", "/manifest", "/wrong/manifest", "/%61/", "*", "http://x/manifest"])
def test_without_the_token_nothing_is_told(server: Server, target: str) -> None:
    status, _, body = ask(server, target or "/?token=", Cookie=f"token={server.token}")
    assert status == 403
    assert b"name" not in body
    assert ask(server, f"/{server.token[:-1]}/manifest")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(server: Server, method: str) -> None:
    status, headers, _ = ask(server, f"/{server.token}/manifest", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "target",
    [
        "../../../../etc/passwd", "..%2f..%2fetc/passwd", "page/atlas.js", "./atlas.js", "api.py", "atlas.js/../api.py",
        "rows/0/-1/0", "rows/0/99999999999999999999999/0", "rows/0/0/9999999", "picture/0/1/../../../x", "%00",
        "column/0/%2e%2e%2f%2e%2e%2fzarr.json", "map/0/1/attention", "thumb/7/0",
    ],
)  # fmt: skip
def test_other_paths_are_not_there(server: Server, target: str) -> None:
    status, headers, body = ask(server, f"/{server.token}/{target}")
    assert status == 404
    assert headers["Content-Type"].startswith("text/plain")
    assert body.count(b"\n") == 1
    assert str(server.atlas.readers[0].store.path).encode() not in body


def test_a_port_that_is_taken_is_one_line(server: Server, path: Path) -> None:
    with pytest.raises(AttlasError, match=rf"port {server.port}: cannot be used .*without --port a free one"):
        Server(Atlas([path]), server.port)


def test_the_command_serves_until_ctrl_c(path: Path) -> None:
    command = [sys.executable, "-c", "from attlas.cli import main; main()", "view", str(path), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{32})/", url).groups()  # type: ignore[union-attr]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.request("GET", f"/{token}/rows/0/1/1")
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.splitlines() == ["the page is for this machine alone; Ctrl-C ends it", "attlas: ended"]


def test_wrong_usage_is_said(path: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["view", str(path), *arguments])
        assert isinstance(result.exception, UsageError)
        return str(result.exception)

    assert "is for a file" in said("--images", "3")
    assert "one folder, and one number" in said("--images", "3", "--images", "4")
    assert "shows one picture at least" in said("--images", "0", "-o", str(tmp_path / "x.html"))
    assert "name it x.html" in said("-o", str(tmp_path / "x.txt"))


def test_one_file_holds_all_it_shows(path: Path, tmp_path: Path) -> None:
    output = write([path], tmp_path / "one.html", count=2)
    html, seen = read(output)
    assert [one for one in seen.loaded if one != "data:,"] == []
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    (script,) = re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in html
    held: dict[str, Any] = dict(re.findall(r'data-path="([^"]+)" data-deflate>([^<]*)<', html))
    manifest = json.loads(zlib.decompress(base64.b64decode(held["manifest"])))
    images = manifest["images"]
    assert len(images) == 2
    whole = Atlas([path], levels=manifest["levels"])
    for image in images:
        for place in (0, 1):
            name = f"rows/0/{image}/{place}"
            assert zlib.decompress(base64.b64decode(held[name])) == whole.answer(name).body
    again = write([path], tmp_path / "again.html", count=2)
    assert again.read_bytes() == output.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        write([path], output)
