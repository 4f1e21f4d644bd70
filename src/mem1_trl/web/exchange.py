"""One HTTP request to one network address, within limits of time and size. Requests are not logged: addresses may hold keys."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from ..retrying import ending_with_cancellation
from ..time_limit import TimeLimit, read_at_most
from .addresses import Address
from .pages import FetchError


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The answer to a request.

    Attributes:
        status (`int`):
            HTTP status.
        headers (`Mapping[str, str]`):
            Headers; their names are case-insensitive.
        body (`bytes`):
            The body, decompressed; empty if it was not wanted.
        cut (`bool`):
            Whether the body was longer and has been cut.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool


@cache
def default_tls() -> ssl.SSLContext:
    """A TLS context with the certificates of the system, and those of certifi if it is installed."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def exchange(
    address: Address,
    ips: list[str],
    timeout: float,
    max_bytes: int,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    wanted: Callable[[int, Mapping[str, str]], bool] = lambda status, headers: True,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """
    The answer to one request. Redirects are not followed.

    Args:
        address (`Address`):
            Address to request. Its host must match the TLS certificate and is sent in the `Host` header.
        ips (`list[str]`):
            Network addresses to connect to; if one refuses, the next one is tried.
        timeout (`float`):
            Seconds for the whole exchange. A server that sends a byte now and then does not extend it.
        max_bytes (`int`):
            Maximum number of bytes of the body, decompressed; the rest is not loaded.
        method (`str`, *optional*, defaults to `"GET"`):
            HTTP method.
        headers (`Mapping[str, str]`, *optional*):
            Further headers.
        body (`bytes`, *optional*):
            Body to send.
        wanted (`Callable`, *optional*):
            Function of status and headers that returns whether to load the body.
        tls (`ssl.SSLContext`, *optional*):
            Certificates to trust; `None` uses [`default_tls`].

    Raises:
        [`FetchError`]: if the host does not answer, or not in time.
    """
    deadline = time.monotonic() + timeout
    connection = _connect(address, ips, deadline, tls)
    sent = {"Host": address.authority, "Accept-Encoding": "gzip, deflate", "Connection": "close", **(headers or {})}
    limit = TimeLimit(deadline - time.monotonic())
    with contextlib.closing(connection), _shut_in_time(connection, limit), _explained(address, timeout, limit):
        connection.request(method, address.target, body=body, headers=sent, preload_content=False)
        response = connection.getresponse()
        loaded, cut = b"", False
        if wanted(response.status, response.headers):
            loaded, cut = read_at_most(response, max_bytes)
        if limit.over:  # what was read ends where the connection was shut
            raise TimeoutError
        return Answer(response.status, response.headers, loaded, cut)


def exchange_lines(
    address: Address,
    ips: list[str],
    timeout: float,
    max_bytes: int,
    headers: Mapping[str, str],
    body: bytes,
) -> tuple[int, Mapping[str, str], Iterator[str]]:
    """
    Status, headers and lines of the answer to a `POST`, each line as soon as it has come. The arguments are those of [`exchange`].

    The connection is closed with the lines: when they have all come, or their iterator is closed.

    Raises:
        [`FetchError`]: if the host does not answer, or not in time; the lines raise it, too.
    """
    deadline = time.monotonic() + timeout
    connection = _connect(address, ips, deadline, None)
    sent = {"Host": address.authority, "Connection": "close", **headers}
    limit = TimeLimit(deadline - time.monotonic())

    def lines() -> Iterator[str]:
        try:
            with _explained(address, timeout, limit):
                size = 0
                # A compressed line would wait for those after it
                for line in iter(lambda: response.readline(max_bytes + 1), b""):
                    size += len(line)
                    if size > max_bytes:
                        raise ValueError("too long")
                    yield line.decode("utf-8", errors="replace").rstrip("\r\n")
                if limit.over:
                    raise TimeoutError
        finally:
            stack.close()

    with contextlib.ExitStack() as opened:
        opened.enter_context(contextlib.closing(connection))
        opened.enter_context(_shut_in_time(connection, limit))
        with _explained(address, timeout, limit):
            connection.request("POST", address.target, body=body, headers=sent, preload_content=False)
            response: Any = connection.getresponse()
        stack = opened.pop_all()
    return response.status, response.headers, lines()


@contextlib.contextmanager
def _shut_in_time(connection: HTTPConnection, limit: TimeLimit) -> Iterator[None]:
    """Shut a connection when its time is over, or when the answer is no longer wanted."""
    open_socket = connection.sock

    def shut() -> None:
        with contextlib.suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)

    with limit, ending_with_cancellation(shut):
        limit.watch(open_socket)
        yield


@contextlib.contextmanager
def _explained(address: Address, timeout: float, limit: TimeLimit) -> Iterator[None]:
    """Failures of a connection as a [`FetchError`] that says what happened."""
    try:
        yield
    except (OSError, HTTPError, ValueError) as error:
        if limit.over or isinstance(error, TimeoutError):
            raise FetchError(f"{address.authority} did not answer within {timeout:g} seconds.", passing=True) from None
        raise FetchError(
            f"The connection to {address.authority} broke ({type(error).__name__}).", passing=True
        ) from None
    except Exception as error:  # http.client's own errors about malformed answers
        raise FetchError(
            f"{address.authority} sent a malformed HTTP answer ({type(error).__name__}).", passing=True
        ) from None


def _connect(address: Address, ips: list[str], deadline: float, tls: ssl.SSLContext | None) -> HTTPConnection:
    problem: Exception | None = None
    for ip in ips:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection: HTTPConnection
        if address.scheme == "https":
            connection = HTTPSConnection(
                ip,
                address.port,
                timeout=left,
                server_hostname=address.host,
                assert_hostname=address.host,
                ssl_context=tls or default_tls(),
            )
        else:
            connection = HTTPConnection(ip, address.port, timeout=left)
        try:
            connection.connect()
            return connection
        except (OSError, HTTPError, ValueError) as error:  # a certificate for another name is a ValueError
            connection.close()
            problem = error
    if isinstance(problem, ssl.SSLError) or type(problem).__name__ in ("SSLError", "CertificateError"):
        raise FetchError(f"{address.authority} does not have a trusted certificate.") from None
    raise FetchError(f"{address.authority} does not answer.", passing=True) from None
