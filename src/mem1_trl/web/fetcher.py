"""Web pages as text: loaded over HTTP, within limits and by the rules of the sites, or from a cache."""

from __future__ import annotations

import inspect
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from ..retrying import BUSY_STATUSES
from ..version import __version__
from .addresses import Address, Resolver, read_address, read_redirect, resolve
from .cache import WebCache
from .exchange import Answer, exchange
from .pages import FetchError, Page
from .politeness import Locks, Pace, Robots
from .readable import READABLE, content_type, readable, trafilatura

_REDIRECTS = (301, 302, 303, 307, 308)
_ROBOTS_BYTES = 500 * 1024  # the minimum that a parser must accept by RFC 9309


class Fetcher:
    """
    Loads web pages and returns their text. Needs `pip install "mem1-trl[web]"`.

    Addresses that an agent writes are not trusted. Only http(s) is visited, on web ports. Every host on the way, redirects
    included, must resolve to a public address, and the connection uses exactly that address, so that a second look-up cannot
    lead elsewhere. Time and size are limited for the exchange as a whole. `robots.txt` is obeyed, and the rate of requests per
    host is limited. JavaScript is not executed, since there is no browser. Proxies are not used.

    Several threads may use it concurrently. With a cache, a page that several threads request at the same time is loaded once.

    Args:
        cache ([`WebCache`], *optional*):
            Stores pages, and failures too. `None` loads them again each time.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds for each request, and the longest wait until the rate limit of a host allows a request.
        max_bytes (`int`, *optional*, defaults to `1_000_000`):
            Maximum number of bytes of a page, decompressed. The text of a longer page is cut. Extracting the text of a page of
            this size takes two or three seconds of processor time.
        max_redirects (`int`, *optional*, defaults to `5`):
            Maximum number of redirects from one page to another.
        requests_per_second (`float`, *optional*, defaults to `1.0`):
            Maximum number of requests per second to one host. A site that asks for fewer (`Crawl-delay`) gets fewer.
        user_agent (`str`, *optional*):
            Name of the client. Include an address where the owner of a site can reach you:
            `"my-study/1.0 (+https://example.org/contact)"`. The part before the slash is the name that is looked up in
            `robots.txt`.
        obey_robots (`bool`, *optional*, defaults to `True`):
            Whether `robots.txt` is obeyed. Set it to `False` only for your own sites.
        allow_private (`bool`, *optional*, defaults to `False`):
            Whether hosts in private networks and on this machine may be visited, for instance a site on `localhost`.
        tls (`ssl.SSLContext`, *optional*):
            Certificates to trust; `None` uses those of the system.
        resolver (`Callable`, *optional*, defaults to `socket.getaddrinfo`):
            Looks up the addresses of hosts.

    Raises:
        `ImportError`: if a required library is not installed.
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
                raise ValueError(f"{name} must be greater than 0, got {value}.")
        if max_redirects < 0:
            raise ValueError(f"max_redirects must be at least 0, got {max_redirects}.")
        if not user_agent.strip() or not user_agent.isprintable():
            raise ValueError(f"user_agent must name the client for the sites that are visited, got {user_agent!r}.")
        given = dict(
            timeout=timeout,
            max_bytes=max_bytes,
            max_redirects=max_redirects,
            user_agent=user_agent,
            obey_robots=obey_robots,
            allow_private=allow_private,
        )
        usual = inspect.signature(Fetcher).parameters
        self.is_usual = all(usual[name].default == value for name, value in given.items())
        """Whether it loads the pages that one without arguments would."""
        trafilatura()  # raises now if it is missing, not on the first page
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
            [`FetchError`]: if the page cannot or must not be read; the message is phrased for the agent and says why.
        """
        address = read_address(url)
        if self.cache is None:
            return self._load(address)
        key = self._cache_key(address)
        with self._locks(address.url):
            known = self.cache.get("page", key)
            if known is None and self.cache.replay:
                known = self.cache.get("page", address.url)  # a record of earlier versions
            if known is None and self.cache.replay:
                raise FetchError(
                    "This page was not visited when the run was recorded, and no page is loaded in a replay."
                )
            if known is None:
                known, passing = self._as_entry(address)
                self.cache.put("page", key, known, passing)
        if "error" in known:
            raise FetchError(known["error"])
        return Page(**known)

    def _cache_key(self, address: Address) -> str:
        """The address, with the arguments that decide what is read there, where they are not the defaults."""
        limits = {
            "max_bytes": self.max_bytes,
            "max_redirects": self.max_redirects,
            "allow_private": self.allow_private,
            "obey_robots": self._robots is not None,
        }
        others = {name: value for name, value in limits.items() if value != _DEFAULTS[name]}
        return json.dumps([address.url, others], sort_keys=True) if others else address.url

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
            passing = answer.status in BUSY_STATUSES or answer.status >= 500
            what = {401: "asks for a password", 403: "refuses", 404: "has no such page", 410: "has removed this page"}
            said = what.get(answer.status, "does not give this page")
            raise FetchError(f"{address.host} {said} (HTTP {answer.status}).", passing)
        kind, declared = content_type(answer.headers.get("Content-Type"))
        if kind not in READABLE:
            raise FetchError(f"This page is not text but {kind[:80]!r}, which cannot be read.")
        title, text = readable(answer.body, kind, declared, address.url)
        return Page(address.url, title, text, answer.cut)

    def _load_robots(self, address: Address) -> tuple[int, str]:
        _, answer = self._follow(address, _ROBOTS_BYTES, lambda status, headers: status == 200, None)
        return answer.status, answer.body.decode("utf-8", "replace")

    def _follow(self, address: Address, max_bytes: int, wanted: Any, robots: Robots | None) -> tuple[Address, Answer]:
        """The answer to a request, after following redirects; every redirect is checked like the first address."""
        for _ in range(self.max_redirects + 1):
            ips = resolve(address, self.allow_private, self._resolver)  # before any request to the host
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
            address = read_redirect(target, address)
        raise FetchError(f"The page redirects more than {self.max_redirects} times.")


_DEFAULTS = {name: one.default for name, one in inspect.signature(Fetcher).parameters.items()}
