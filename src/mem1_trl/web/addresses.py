"""Web addresses: which URLs may be requested, and which network addresses may be connected to."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from .pages import FetchError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[..., list[Any]]
"""Takes the arguments of `socket.getaddrinfo` and returns the same kind of list."""

_PORTS = {"http": 80, "https": 443}
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_ASCII = bytes(range(128))
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class _NoAddress(FetchError):
    """Raised for a text that is not an address that may be visited: what is wrong with it, and what to write instead."""

    def __init__(self, fact: str, advice: str = ""):
        super().__init__(f"{fact}: {advice}." if advice else f"{fact}.")
        self.fact = fact


@dataclass(frozen=True, slots=True)
class Address:
    """
    An http(s) address, parsed once, so that the address that is checked is the one that is connected to.

    Attributes:
        scheme (`str`):
            `"http"` or `"https"`.
        host (`str`):
            Name or IP address of the host, in lower case, without brackets.
        port (`int`):
            Port number.
        target (`str`):
            Path and query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and, if it is not the default port of the scheme, port, as in the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The full address, without a fragment."""
        return self.origin + self.target


def read_address(url: str, base: str | None = None) -> Address:
    """
    The parsed form of an address.

    Args:
        url (`str`):
            The address.
        base (`str`, *optional*):
            Address of the page that contains it, against which a relative address is resolved.

    Raises:
        [`FetchError`]: if it is not a plain http(s) address: another scheme, a user name, a port that is not a web
            server's, or characters that different programs read differently.
    """
    url = url.strip()
    if _FORBIDDEN.search(url):
        raise _NoAddress(
            "The address must not contain a space, a backslash or a control character", "write it as in the link"
        )
    if base is not None:
        with contextlib.suppress(ValueError):  # brackets that do not match, which are refused below
            url = urljoin(base, url)
    if "://" not in url or url.split("://", 1)[0].lower() not in _PORTS:
        raise _NoAddress(
            f"{url[:200]!r} is not a web address", "write the full address, beginning with http:// or https://"
        )
    try:
        parsed = parse_url(url)
        host = (parsed.host or "").lower().removeprefix("[").removesuffix("]").rstrip(".")
    except (LocationParseError, UnicodeError, ValueError):
        raise _NoAddress(f"{url[:200]!r} is not a web address") from None
    if parsed.auth is not None:
        raise _NoAddress("Addresses with a user name or password are not visited")
    if not host or "%" in host:
        raise _NoAddress(f"{url[:200]!r} does not name a host")
    scheme = parsed.scheme or ""
    port = parsed.port or _PORTS[scheme]
    if port not in _PORTS.values() and port < 1024:
        raise _NoAddress(f"Port {port} is not a port of a web server")
    target = (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")
    return Address(scheme, host, port, target)


def read_redirect(location: str, address: Address) -> Address:
    """
    Where an address redirects to. Sites write letters and spaces as they are in the header, which is read as Latin-1:
    `/cafÃ©` is `/caf%C3%A9`.

    Args:
        location (`str`):
            The header `Location`.
        address ([`Address`]):
            The address that redirects.

    Raises:
        [`FetchError`]: if that is not an address that may be visited.
    """
    try:
        return read_address(_readable(location), base=address.url)
    except _NoAddress as error:
        raise FetchError(f"{address.host} redirects to an address that cannot be visited ({error.fact}).") from None


def _readable(location: str) -> str:
    """A header `Location` as an address: spaces and bytes that are not UTF-8 are percent-encoded, other letters are as written."""
    sent = location.strip().encode("latin-1", "replace")
    try:
        return sent.decode("utf-8").replace(" ", "%20")
    except UnicodeDecodeError:
        return quote(sent, safe=_ASCII).replace(" ", "%20")


def is_public(address: IpAddress) -> bool:
    """
    Whether a network address belongs to the public internet.

    Private, loopback, link-local (the metadata services of clouds), shared, reserved and multicast addresses do not, nor
    do IPv6 addresses that contain such an IPv4 address: mapped, 6to4, Teredo and NAT64.
    """
    if isinstance(address, ipaddress.IPv6Address):
        held = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if any(address in network for network in _NAT64):
            held.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = [ip for ip in held if ip is not None]
        if inner:
            return all(is_public(ip) for ip in inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def resolve(address: Address, allow_private: bool, resolver: Resolver = socket.getaddrinfo) -> list[str]:
    """
    The network addresses of a host that may be connected to. The connection must use one of exactly these addresses, since a
    second look-up may return others (DNS rebinding).

    Raises:
        [`FetchError`]: if the host is not known, or has only private addresses.
    """
    try:
        answers = resolver(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"The host {address.host!r} is not known.", passing=True) from None
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    usable = [ip for ip in found if allow_private or is_public(ipaddress.ip_address(ip.split("%")[0]))]
    if not usable:
        raise FetchError(f"{address.host!r} is in a private network, and these are not visited.")
    return usable
