"""robots.txt, rate limits per host, and request de-duplication."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from ..optional_packages import require
from .addresses import Address
from .pages import FetchError

_KNOWN_SITES = 10_000
_HOUR = 3600.0


class Locks:
    """A lock for each key in use: the second caller waits, and then finds the result of the first one in the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def __call__(self, key: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._held.pop(key)
                if users > 1:
                    self._held[key] = (lock, users - 1)


class Pace:
    """
    Spreads the requests to a host over time.

    Args:
        per_second (`float`):
            Maximum number of requests per second and host.
    """

    def __init__(self, per_second: float):
        self._interval = 1 / per_second
        self._lock = threading.Lock()
        self._free: OrderedDict[str, float] = OrderedDict()

    def wait(self, host: str, patience: float, interval: float | None = None) -> None:
        """
        Wait until the rate limit of a host allows the next request.

        Raises:
            [`FetchError`]: if the wait would exceed `patience` seconds.
        """
        interval = max(self._interval, interval or 0.0)
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._free.pop(host, now))
            if turn - now > patience:
                self._free[host] = turn
                raise FetchError(f"Too many pages of {host} are requested: try again later.", passing=True)
            self._free[host] = turn + interval
            while len(self._free) > _KNOWN_SITES:
                self._free.popitem(last=False)
        time.sleep(max(0.0, turn - now))


class Robots:
    """
    The rules of sites for robots (`robots.txt`, RFC 9309); the rules of a site are loaded once an hour.

    Args:
        load (`Callable[[Address], tuple[int, str]]`):
            Loads `robots.txt` and returns its status and text. May raise [`FetchError`].
        user_agent (`str`):
            Name that the rules are looked up for.
    """

    def __init__(self, load: Callable[[Address], tuple[int, str]], user_agent: str):
        self._parse = require("protego", "web", "Reading the web").Protego.parse
        self._load = load
        self._name = user_agent
        self._locks = Locks()
        self._lock = threading.Lock()
        self._rules: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    def check(self, address: Address) -> float | None:
        """
        Seconds that the site asks for between two requests; `None` if it does not say.

        Raises:
            [`FetchError`]: if the site does not allow robots to read the page, or if its rules cannot be loaded.
        """
        with self._locks(address.origin):
            with self._lock:
                until, rules = self._rules.get(address.origin, (0.0, None))
            if until < time.monotonic():
                rules, seconds = self._rules_of(address)
                with self._lock:
                    self._rules[address.origin] = (time.monotonic() + seconds, rules)
                    while len(self._rules) > _KNOWN_SITES:
                        self._rules.popitem(last=False)
        if rules is None:
            raise FetchError(
                f"The rules of {address.host} for robots are not known (its robots.txt fails).", passing=True
            )
        if not rules.can_fetch(address.url, self._name):
            raise FetchError(f"{address.host} does not allow robots to read this page.")
        delay = rules.crawl_delay(self._name)
        return None if delay is None else float(delay)

    def _rules_of(self, address: Address) -> tuple[Any, float]:
        """The rules of a site and the seconds they are valid. A site without the file allows everything, a site that fails
        allows nothing (RFC 9309, 2.3.1)."""
        try:
            status, text = self._load(Address(address.scheme, address.host, address.port, "/robots.txt"))
        except FetchError:
            return None, _HOUR / 12
        if status >= 500 or status == 429:
            return None, _HOUR / 12
        return self._parse(text if status < 300 else ""), _HOUR
