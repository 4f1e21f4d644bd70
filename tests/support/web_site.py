"""A small web site on this machine, with the pages that go wrong on the real web. Real HTTP."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ROBOTS = "User-agent: *\nDisallow: /private/\nDisallow: /*.pdf$\n"


def article(title: str, *paragraphs: str) -> str:
    """A page with menus around its text."""
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return (
        f"<!doctype html><html><head><title>{title}</title><script>var tracking = 'secret script';</script></head><body>"
        "<nav><ul><li><a href='/'>Home of menus</a></li><li><a href='/login'>Log in</a></li></ul></nav>"
        f"<main><article><h1>{title}</h1>{body}</article></main><footer>Copyright menus</footer></body></html>"
    )


IRON = article(
    "Iron",
    "Iron is a chemical element with the symbol Fe and the atomic number 26. It is a metal that belongs to the first "
    "transition series and to group 8 of the periodic table.",
    "By mass, it is the most common element on Earth, forming much of the outer and inner core of the planet.",
)


class Site(ThreadingHTTPServer):
    """Serves what `PAGES` and the handler know; `requests` holds the path and the `Host` header of each request."""

    daemon_threads = True

    def __init__(self, robots: str | int = ROBOTS, host: str = "127.0.0.1", port: int = 0):
        super().__init__((host, port), _Handler)
        self.robots = robots
        self.requests: list[tuple[str, str]] = []
        self.agents: set[str] = set()
        self.failures: dict[str, int] = {}
        """Path -> how often it still answers 503."""
        self.locations: dict[str, bytes] = {}
        """Path -> where it redirects to, byte for byte."""

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def resolver(self, host: str, port: int, **kwargs: Any) -> list[Any]:
        """Every name is this machine."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append((self.path, self.headers["Host"]))
        self.server.agents.add(self.headers["User-Agent"])
        if self.server.failures.get(path, 0):
            self.server.failures[path] -= 1
            self._send(b"busy", status=503)
        elif path in self.server.locations:
            self.connection.sendall(
                b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: " + self.server.locations[path] + b"\r\n\r\n"
            )
        elif path == "/robots.txt":
            if isinstance(self.server.robots, int):
                self._send(b"", status=self.server.robots)
            else:
                self._send(self.server.robots.encode(), "text/plain")
        elif path in ("/", "/iron", "/private/iron"):
            self._send(IRON.encode())
        elif path == "/moved":
            self._send(b"", status=301, Location="/iron#history")
        elif path == "/loop":
            self._send(b"", status=302, Location="/loop")
        elif path == "/leave":
            self._send(b"", status=302, Location=self.path.split("?to=", 1)[1])
        elif path == "/gzip":
            self._send(gzip.compress(IRON.encode()), **{"Content-Encoding": "gzip"})
        elif path == "/bomb":
            self._send(gzip.compress(b"<p>" + b"iron " * 4_000_000), **{"Content-Encoding": "gzip"})
        elif path == "/wrong-charset":
            page = article(
                "Café", "Das Eisen heißt auf Französisch fer, und der Kaffee heißt dort café, très fort. " * 3
            )
            self._send(page.encode("latin-1"), "text/html; charset=utf-8")
        elif path == "/utf8-as-latin1":
            self._send(
                article("Café", "Un café très fort, s'il vous plaît. " * 5).encode(), "text/html; charset=iso-8859-1"
            )
        elif path == "/binary":
            self._send(bytes(range(256)) * 40, "application/octet-stream")
        elif path == "/binary-as-text":
            self._send(b"\x89PNG\r\n\0\0" * 200, "text/plain")
        elif path == "/plain":
            self._send(b"Iron has the symbol Fe.\n", "text/plain")
        elif path == "/empty":
            self._send(b"<html><head><title>x</title></head><body></body></html>")
        elif path == "/big":
            self._send(article("Big", *[f"Sentence number {n} about iron and steel." for n in range(3_000)]).encode())
        elif path == "/endless":
            self._drip(b"<p>iron</p>" * 1000, 0.0)
        elif path == "/slow":
            self._drip(b"<p>iron</p>", 0.1)
        elif path == "/broken":
            self.connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/html\r\n\r\n<p>iron"
            )
            self.close_connection = True
        elif path == "/nonsense":
            self.connection.sendall(b"\0\0\0 nothing like HTTP \r\n\r\n")
            self.close_connection = True
        else:
            self._send(b"nothing here", status=404)

    def _drip(self, piece: bytes, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(piece)
                time.sleep(seconds)

    def _send(self, data: bytes, kind: str = "text/html", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serve_site(server: ThreadingHTTPServer) -> Iterator[Any]:
    """A running server."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
