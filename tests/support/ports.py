"""Ports that no other process is given."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """
    A local port that nothing listens on and that no other process is given.

    A port that was merely found free may go to any other process before its server has started. This one stays bound without
    listening, so the system gives it to no other process, and a connection to it is refused. A server can still listen on it
    if it sets `SO_REUSEADDR`. Those of torch, asyncio and `http.server` do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
