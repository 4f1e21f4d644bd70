"""Ports that no other process is given."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """
    A local port that nothing listens on, and that only who is told of it can come to use.

    A port that was merely found free may go to any other process before its server has started. This one stays bound, without
    listening: the system hands it to nobody, a connection to it is refused, and a server that sets `SO_REUSEADDR`, as those of
    torch, asyncio and `http.server` do, can listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
