"""A server of the page for this machine's own browser: loopback only, a secret in the address, and nothing is written.

Whoever may ask is decided before anything is read. The secret keeps other users of the machine out; the Host header
keeps out a web page whose name was made to point here (DNS rebinding), and Origin and Sec-Fetch-Site any other page.
A path is compared with a fixed list: no part of it ever becomes a file's name.
"""

from __future__ import annotations

import functools
import hmac
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from ...errors import AttlasError
from .api import AbsentError, Answer, Atlas, MissingError

__all__ = ["Server", "asset"]

ADDRESS = "127.0.0.1"
ASSETS = {
    "": ("index.html", "text/html; charset=utf-8"),
    "atlas.js": ("atlas.js", "text/javascript; charset=utf-8"),
    "atlas.css": ("atlas.css", "text/css; charset=utf-8"),
}
# The page may load what this server gives, and nothing else from anywhere.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@functools.cache
def asset(name: str) -> str:
    """A file of the page."""
    return files(__package__).joinpath("page", name).read_text("utf-8")


class Server:
    """Serves an atlas until it is closed.

    Attributes:
        url: the page's address, with the secret.
    """

    def __init__(self, atlas: Atlas, port: int = 0, token: str | None = None) -> None:
        """Bind the port; 0 takes a free one.

        Raises:
            AttlasError: the port is taken.
        """
        self.atlas, self.token = atlas, token or secrets.token_urlsafe(24)
        try:
            self._server = _Loopback((ADDRESS, port), _Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise AttlasError(f"port {port}: cannot be used ({reason}); without --port a free one is taken") from None
        self._server.page = self
        self.port = int(self._server.server_address[1])
        self.hosts = {f"{ADDRESS}:{self.port}", f"localhost:{self.port}"}
        self.url = f"http://{ADDRESS}:{self.port}/{self.token}/"

    def run(self) -> None:
        """Serve until `close`, or KeyboardInterrupt."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()

    def start(self) -> Server:
        """Serve in the background."""
        threading.Thread(target=self.run, daemon=True).start()
        return self

    def close(self) -> None:
        """End, after `start`."""
        self._server.shutdown()


class _Loopback(ThreadingHTTPServer):
    daemon_threads = True
    page: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has left is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Loopback
    server_version, sys_version = "attlas", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an idle connection stays open

    def do_GET(self) -> None:
        """Answer what is asked for, or say why not."""
        page = self.server.page
        path, _, _ = self.path.partition("?")
        _, token, *rest = path.split("/", 2) if path.startswith("/") else ("", "")
        if self._foreign():
            self._send(403, _text("this server answers its own page alone"))
        elif not hmac.compare_digest(token.encode(), page.token.encode()):
            self._send(403, _text("the address lacks its token: open the one that `attlas view` printed"))
        elif not rest:
            self._send(308, _text("the page is one / further"), Location=f"/{page.token}/")
        elif rest[0] in ASSETS:
            name, kind = ASSETS[rest[0]]
            self._send(200, Answer(kind, asset(name).encode()))
        else:
            try:
                self._send(200, page.atlas.answer(rest[0]))
            except AbsentError as error:
                self._send(200, _text(str(error)))  # a sentence is the answer, and no fault for the console
            except MissingError as error:
                self._send(404, _text(str(error)))
            except AttlasError as error:
                self._send(500, _text(str(error)))

    do_HEAD = do_GET  # noqa: N815

    def _foreign(self) -> bool:
        """Whether it is not this page, in a browser of this machine, that asks."""
        page = self.server.page
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        own = {f"http://{host}" for host in page.hosts}
        return (
            self.headers.get_all("Host") not in [[host] for host in page.hosts]
            or (origin is not None and origin not in own)
            or site not in ("same-origin", "none")
        )

    def _send(self, status: int, answer: Answer, **more: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))} | HEADERS | more
        # A picture and its maps never change while a page is open, but a growing store's manifest does.
        headers["Cache-Control"] = "private, max-age=600" if answer.kind == "image/jpeg" else "no-store"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line, also for a method that there is not; and the connection ends, whatever else was sent."""
        self.close_connection = True
        status = 405 if code == 501 else code
        self._send(
            status,
            _text(message or "not here"),
            Connection="close",
            **({"Allow": "GET, HEAD"} if status == 405 else {}),
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses hold the secret."""


def _text(line: str) -> Answer:
    return Answer("text/plain; charset=utf-8", f"{line}\n".encode())
