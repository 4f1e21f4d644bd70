"""Addresses that servers of this package listen at."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def address_family(host: str) -> socket.AddressFamily:
    """Family of sockets that listen at an address: that of IPv6 if it has colons."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def http_address(host: str, port: int) -> str:
    """`"http://127.0.0.1:8000"`; an address of IPv6 stands in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def naming_address(host: str, port: int) -> Iterator[None]:
    """
    Errors of listening say which of both is at fault, and what to do.

    Args:
        host (`str`):
            Address or name of this machine.
        port (`int`):
            Number of the port.

    Raises:
        `OSError`: If what is done inside raises one.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise OSError(
                f"{host!r} is not an address of this machine ({reason}): use 127.0.0.1, or 0.0.0.0 for all of them."
            ) from None
        raise OSError(f"Port {port} of {host} cannot be listened at ({reason}): choose another.") from None
