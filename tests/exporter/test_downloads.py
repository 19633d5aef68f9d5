"""Downloads of the model hub are shown with a total, on a terminal and off one."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")
file_download = pytest.importorskip("huggingface_hub.file_download")

from attlas.errors import UsageError  # noqa: E402
from attlas.exporter.libraries import hub  # noqa: E402
from attlas.exporter.libraries.quiet import unheard  # noqa: E402
from attlas.exporter.trace import export as module  # noqa: E402

SIZE = 21_000_000


@pytest.fixture
def address() -> Iterator[str]:
    """A server of one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE))
            self.end_headers()
            self.wfile.write(bytes(SIZE))

        def log_message(self, *unused: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/model.safetensors"
        server.shutdown()


def fetch(address: str, size: int = SIZE) -> int:
    """Download by the hub's own client, as every library does, with its noise suppressed."""
    file = io.BytesIO()
    with unheard():
        file_download.http_get(address, file, expected_size=size, displayed_filename="model.safetensors")
    return file.tell()


def test_download_is_told_with_its_total(address: str) -> None:
    """From nothing to all, and no more once the context has ended."""
    told: list[tuple[str, int, int]] = []
    with hub.downloads(lambda *now: told.append(now)):
        assert fetch(address) == SIZE
    assert told[0] == ("model.safetensors", 0, SIZE)
    assert told[-1] == ("model.safetensors", SIZE, SIZE)
    count = len(told)
    fetch(address)
    assert len(told) == count


@pytest.mark.parametrize("terminal", [False, True])
def test_export_shows_the_download(
    terminal: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line of its own off a terminal, on the bar of one, though the library's own bars go nowhere."""

    def build(*given: Any, **options: Any) -> Any:
        fetch(address)
        raise UsageError("that is all")

    monkeypatch.setattr(module, "build", build)
    for before in ("summarize", "refuse_too_large"):
        monkeypatch.setattr(module, before, lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with pytest.raises(UsageError, match="that is all"):
        module.export("vit_tiny_patch16_224", tmp_path / "vit.onnx", progress=True)
    shown = capsys.readouterr().err
    for line in ("0.00 of 0.02 GB of model.safetensors", "0.02 of 0.02 GB of model.safetensors"):
        assert (line[:17] if terminal else line) in shown
