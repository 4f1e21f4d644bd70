"""A limit of time and of size for an answer of a server, however it comes: slowly, byte by byte, or without an end."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

_PIECE = 2**16


_of_thread = threading.local()
"""The limit that this thread is under."""


class TimeLimit:
    """
    Shuts sockets when the time is over, which wakes the thread that waits on them. A timeout of a socket does not do that: each
    byte that arrives extends it.

    Args:
        seconds (`float`):
            The time, from entering.

    Attributes:
        over (`bool`):
            Whether the time was over before the end.

    Example:

    ```python
    with TimeLimit(20.0) as limit:
        limit.watch(connection.sock)
        body = connection.getresponse().read()  # an error after 20 seconds
    ```
    """

    def __init__(self, seconds: float):
        self.over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(0.0, seconds), self._end)
        self._timer.daemon = True

    def __enter__(self) -> TimeLimit:
        self._timer.start()
        _of_thread.limit = self
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _of_thread.limit = None
        with self._lock:  # a socket that goes back to a pool is not shut by a timer that is late
            self._sockets.clear()

    def watch(self, one: socket.socket) -> None:
        """Shut this socket, too, when the time is over; at once if it is."""
        with self._lock:
            self._sockets.append(one)
        if self.over:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


class _Watched:
    """What makes of a connection one that the limit of its thread shuts, be it new or taken from a pool."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._watch()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._watch()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _watch(self) -> None:
        limit: TimeLimit | None = getattr(_of_thread, "limit", None)
        if limit is not None and self.sock is not None:
            limit.watch(self.sock)


class _Connection(_Watched, HTTPConnection):
    pass


class _TlsConnection(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def limited_pool(max_connections: int) -> PoolManager:
    """Connections that are kept and used again, whose requests obey the [`TimeLimit`] of the thread that makes them."""
    pool = PoolManager(maxsize=max_connections)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


def read_at_most(response: Any, max_bytes: int) -> tuple[bytes, bool]:
    """
    The body of a response, decompressed, and whether it was longer than `max_bytes` and has been cut.

    Args:
        response (`urllib3.response.BaseHTTPResponse`):
            A response whose body is not loaded yet.
        max_bytes (`int`):
            Maximum number of bytes; the rest is not loaded.
    """
    data = bytearray()
    while len(data) <= max_bytes:
        piece = response.read(min(_PIECE, max_bytes + 1 - len(data)), decode_content=True)
        if not piece:
            break
        data += piece
    return bytes(data[:max_bytes]), len(data) > max_bytes
