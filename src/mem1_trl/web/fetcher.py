"""Pages of the web as text: over real HTTP, within limits, politely, and from a cache where there is one."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any

from ..version import __version__
from .addresses import Address, Resolver, read_address, resolve
from .cache import WebCache
from .exchange import Answer, exchange
from .pages import FetchError, Page
from .politeness import Locks, Pace, Robots
from .readable import READABLE, content_type, readable, trafilatura

_REDIRECTS = (301, 302, 303, 307, 308)
_ROBOTS_BYTES = 500 * 1024  # what RFC 9309 asks a reader to take at least


class Fetcher:
    """
    Loads web pages and gives their text. Needs `pip install "mem1-trl[web]"`.

    What an agent writes as an address is not trusted. Only http(s) is visited, on web ports; every host on the way,
    redirects included, must resolve to a public address, and the connection goes to that very address, so that a
    second look-up cannot lead elsewhere. Time and size are limited for the exchange as a whole. `robots.txt` is obeyed, and a
    host is not asked more often than it is polite. Pages need no JavaScript: there is no browser. Proxies are not used.

    It may be used by several threads at once; a page that several ask for at the same time is loaded once if there is a
    cache.

    Args:
        cache ([`WebCache`], *optional*):
            Remembers pages, and failures too. `None` loads them anew each time.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds for each request, and the longest wait for a turn at a host.
        max_bytes (`int`, *optional*, defaults to `1_000_000`):
            Most bytes of a page, decompressed. The text of a longer one is cut. Finding the text of a full one takes two or
            three seconds of processor time.
        max_redirects (`int`, *optional*, defaults to `5`):
            Most redirects from a page to another.
        requests_per_second (`float`, *optional*, defaults to `1.0`):
            Most requests per second to one host. A site that asks for less (`Crawl-delay`) gets less.
        user_agent (`str`, *optional*):
            Who is asking. Give an address where the owner of a site can reach you:
            `"my-study/1.0 (+https://example.org/contact)"`. What stands before the slash is the name that `robots.txt` is
            searched for.
        obey_robots (`bool`, *optional*, defaults to `True`):
            Whether `robots.txt` is obeyed. Set it to `False` for sites of your own only.
        allow_private (`bool`, *optional*, defaults to `False`):
            Whether hosts in private networks and on this machine are visited: for a site on `localhost`.
        tls (`ssl.SSLContext`, *optional*):
            Certificates to trust; `None` takes those of the system.
        resolver (`Callable`, *optional*, defaults to `socket.getaddrinfo`):
            Looks up the addresses of hosts.

    Raises:
        `ImportError`: if the libraries that it needs are not installed.
        `ValueError`: if a limit is not above 0.

    Example:

    ```python
    >>> fetcher = Fetcher(cache=WebCache("web.sqlite"))
    >>> print(fetcher.fetch("https://en.wikipedia.org/wiki/Iron").text[:100])
    ```
    """

    def __init__(
        self,
        cache: WebCache | None = None,
        timeout: float = 20.0,
        max_bytes: int = 1_000_000,
        max_redirects: int = 5,
        requests_per_second: float = 1.0,
        user_agent: str = f"mem1-trl/{__version__}",
        obey_robots: bool = True,
        allow_private: bool = False,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver = socket.getaddrinfo,
    ) -> None:
        for name, value in {
            "timeout": timeout,
            "max_bytes": max_bytes,
            "requests_per_second": requests_per_second,
        }.items():
            if value <= 0:
                raise ValueError(f"`{name}` is {value}: it must be above 0.")
        if max_redirects < 0:
            raise ValueError(f"`max_redirects` is {max_redirects}: it must be 0 or more.")
        if not user_agent.strip() or not user_agent.isprintable():
            raise ValueError(f"`user_agent` is {user_agent!r}: sites want to know who is asking.")
        trafilatura()  # if it is missing, then now and not on the first page
        self.cache = cache
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.max_redirects = max_redirects
        self.user_agent = user_agent
        self.allow_private = allow_private
        self._tls = tls
        self._resolver = resolver
        self._pace = Pace(requests_per_second)
        self._robots = Robots(self._load_robots, user_agent.split("/")[0].strip()) if obey_robots else None
        self._locks = Locks()

    def fetch(self, url: str) -> Page:
        """
        The page at an address.

        Args:
            url (`str`):
                The address.

        Returns:
            [`Page`]: its text.

        Raises:
            [`FetchError`]: if it cannot be read, or must not be; the message says why, fit for the agent to read.
        """
        address = read_address(url)
        if self.cache is None:
            return self._load(address)
        with self._locks(address.url):
            known = self.cache.get("page", address.url)
            if known is None and self.cache.replay:
                raise FetchError("This page was not visited when the run was recorded, and nothing is loaded now.")
            if known is None:
                known, passing = self._as_entry(address)
                self.cache.put("page", address.url, known, passing)
        if "error" in known:
            raise FetchError(known["error"])
        return Page(**known)

    def _as_entry(self, address: Address) -> tuple[dict[str, Any], bool]:
        try:
            page = self._load(address)
        except FetchError as error:
            return {"error": str(error)}, error.passing
        return {"url": page.url, "title": page.title, "text": page.text, "cut": page.cut}, False

    def _load(self, address: Address) -> Page:
        def wanted(status: int, headers: Mapping[str, str]) -> bool:
            return status == 200 and content_type(headers.get("Content-Type"))[0] in READABLE

        address, answer = self._follow(address, self.max_bytes, wanted, self._robots)
        if answer.status != 200:
            passing = answer.status in (408, 425, 429) or answer.status >= 500
            what = {401: "asks for a password", 403: "refuses", 404: "has no such page", 410: "has removed this page"}
            said = what.get(answer.status, "does not give this page")
            raise FetchError(f"{address.host} {said} (HTTP {answer.status}).", passing)
        kind, declared = content_type(answer.headers.get("Content-Type"))
        if kind not in READABLE:
            raise FetchError(f"This is no page of text but {kind[:80]!r}, which cannot be read.")
        title, text = readable(answer.body, kind, declared, address.url)
        return Page(address.url, title, text, answer.cut)

    def _load_robots(self, address: Address) -> tuple[int, str]:
        _, answer = self._follow(address, _ROBOTS_BYTES, lambda status, headers: status == 200, None)
        return answer.status, answer.body.decode("utf-8", "replace")

    def _follow(self, address: Address, max_bytes: int, wanted: Any, robots: Robots | None) -> tuple[Address, Answer]:
        """Ask, and go where the answer leads; every step is checked as the first one is."""
        for _ in range(self.max_redirects + 1):
            ips = resolve(address, self.allow_private, self._resolver)  # before anything is asked of the host
            delay = robots.check(address) if robots is not None else None
            self._pace.wait(address.host, self.timeout, delay)
            answer = exchange(
                address,
                ips,
                self.timeout,
                max_bytes,
                headers={"User-Agent": self.user_agent, "Accept": "text/html,text/plain;q=0.9,*/*;q=0.1"},
                wanted=wanted,
                tls=self._tls,
            )
            target = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not target:
                return address, answer
            address = read_address(target, base=address.url)
        raise FetchError(f"The page leads on to others more than {self.max_redirects} times.")
