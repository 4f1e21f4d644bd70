"""One HTTP request to one network address, within limits of time and size. Requests are not logged: addresses may hold keys."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from .addresses import Address
from .pages import FetchError

_PIECE = 2**16


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
    late = threading.Event()
    connection = _connect(address, ips, deadline, tls)
    socket_ = connection.sock

    def give_up() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket_.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on the socket

    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        sent = {
            "Host": address.authority,
            "Accept-Encoding": "gzip, deflate",
            "Connection": "close",
            **(headers or {}),
        }
        connection.request(method, address.target, body=body, headers=sent, preload_content=False)
        response = connection.getresponse()
        data = bytearray()
        if wanted(response.status, response.headers):
            while len(data) <= max_bytes:
                piece = response.read(min(_PIECE, max_bytes + 1 - len(data)), decode_content=True)
                if not piece:
                    break
                data += piece
        if late.is_set():  # the watchdog closed the connection
            raise TimeoutError
        return Answer(response.status, response.headers, bytes(data[:max_bytes]), len(data) > max_bytes)
    except (OSError, HTTPError, ValueError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise FetchError(f"{address.host} did not answer within {timeout:g} seconds.", passing=True) from None
        raise FetchError(f"The connection to {address.host} broke ({type(error).__name__}).", passing=True) from None
    except Exception as error:  # http.client's own errors about malformed answers
        raise FetchError(
            f"{address.host} sent a malformed HTTP answer ({type(error).__name__}).", passing=True
        ) from None
    finally:
        watchdog.cancel()
        connection.close()


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
        raise FetchError(f"{address.host} does not have a trusted certificate.") from None
    raise FetchError(f"{address.host} does not answer.", passing=True) from None
