"""Search engines behind HTTP: Serper, SerpAPI and SearXNG; and a memory for any of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlencode

from ..json_text import read_json
from ..printable import one_line
from ..retrying import BUSY_STATUSES, UnusableServer, asked_to_wait, backoff, with_retries
from .addresses import Address, read_address, resolve
from .cache import WebCache
from .exchange import Answer, exchange
from .pages import FetchError, WebResult, WebSearch
from .politeness import Locks

_MAX_BYTES = 8_000_000


class _Busy(Exception):
    """A search engine that has no time at the moment."""

    def __init__(self, answer: Answer):
        super().__init__(f"HTTP {answer.status}")
        self.headers = answer.headers


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    if not isinstance(error, (FetchError, _Busy)):
        return None
    asked = asked_to_wait(error.headers) if isinstance(error, _Busy) else None
    return backoff(attempt, first=0.5) if asked is None else asked


class _Engine:
    """
    What the engines share: asking, trying again, and keeping the key to itself.

    The key is read from the environment and stands in no message, log or representation.
    """

    name = ""
    variable: str | None = None
    parameters: Mapping[str, Any] = MappingProxyType({})
    """Those of each request that are not the engine's usual ones, without its key."""
    own: tuple[str, ...] = ()
    """Names of the usual ones."""
    usual = ""
    """Address that is asked unless another is given."""

    def __init__(self, url: str, timeout: float, max_retries: int) -> None:
        try:
            self._address = read_address(url)
        except FetchError as error:
            raise ValueError(f"The address of {self.name} cannot be used: {error}") from None
        self._path, _, query = self._address.target.partition("?")
        self._query = {
            name: values[0] if len(values) == 1 else values
            for name, values in parse_qs(query, keep_blank_values=True).items()
        }
        for name in self.own:
            if name in self._query:
                raise ValueError(
                    f"The address of {self.name} sets {name!r}, which the search sets itself: leave it out."
                )
        place = self._address
        self.address = None if url == self.usual else f"{place.scheme}://{place.host}:{place.port}{self._path}"
        """Where it is asked, if that is not the usual place; the query, which may hold a key, is left out."""
        self._timeout = timeout
        self._max_retries = max_retries
        self._key = ""
        if self.variable is not None:
            self._key = os.environ.get(self.variable, "").strip()
            if not self._key:
                raise ValueError(f"{self.name} needs a key: set the environment variable {self.variable}.")

    def _ask(self, parameters: dict[str, Any], headers: dict[str, str], body: bytes | None = None) -> dict[str, Any]:
        target = self._path + (f"?{urlencode(parameters, doseq=True)}" if parameters else "")
        address = Address(self._address.scheme, self._address.host, self._address.port, target)

        def ask() -> Answer:
            answer = exchange(
                address,
                resolve(address, allow_private=True),  # the address is the user's, not the agent's
                self._timeout,
                _MAX_BYTES,
                method="GET" if body is None else "POST",
                headers={"Accept": "application/json", **headers},
                body=body,
            )
            if answer.status in BUSY_STATUSES:
                raise _Busy(answer)
            return answer

        try:
            return self._read(with_retries(ask, self._max_retries, _seconds_to_wait))
        except (FetchError, _Busy) as error:
            raise ConnectionError(
                f"{self.name} gave no answer in {self._max_retries + 1} attempts ({error})."
            ) from None

    def _read(self, answer: Answer) -> dict[str, Any]:
        said = one_line(answer.body[:300].decode("utf-8", "replace"))
        if self._key:
            said = said.replace(self._key, "***")
        if answer.status in (401, 403):
            raise PermissionError(self._refused(answer.status, said))
        try:
            found = read_json(answer.body, nan_is_null=True)
        except ValueError:
            found = None
        if answer.status != 200 or not isinstance(found, dict):
            elsewhere = answer.headers.get("Location", "").partition("?")[0]  # the query holds the key
            said = f"it redirects to {elsewhere[:200]!r}" if elsewhere and answer.status < 400 else said
            raise UnusableServer(f"{self.name} did not answer a search (HTTP {answer.status}: {said}).")
        return found

    def _refused(self, status: int, said: str) -> str:
        return f"{self.name} refuses the key in {self.variable} (HTTP {status}: {said})."

    @staticmethod
    def _results(entries: Any, url: str, snippet: str, top_k: int) -> list[WebResult]:
        found = []
        for entry in entries or []:
            if isinstance(entry, dict) and isinstance(entry.get(url), str):
                title, text = (" ".join(str(entry.get(key) or "").split()) for key in ("title", snippet))
                found.append(WebResult(title or entry[url], entry[url], text))
        return found[:top_k]


class SerperSearch(_Engine):
    """
    Google through Serper (serper.dev). The key is read from the environment variable `SERPER_API_KEY`.

    Args:
        url (`str`, *optional*, defaults to `"https://google.serper.dev/search"`):
            Address of the API.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds for a request.
        max_retries (`int`, *optional*, defaults to `3`):
            How often a request is tried again when nothing answers or the service is busy.
        **parameters:
            Further fields of each request, such as `gl="us"` and `hl="en"`.

    Raises:
        `ValueError`: if there is no key.
    """

    name = "Serper"
    usual = "https://google.serper.dev/search"
    variable = "SERPER_API_KEY"

    def __init__(
        self,
        url: str = usual,
        timeout: float = 20.0,
        max_retries: int = 3,
        **parameters: Any,
    ) -> None:
        super().__init__(url, timeout, max_retries)
        self.parameters = parameters

    def search(self, query: str, top_k: int = 10) -> list[WebResult]:
        """The best results of a query, at most `top_k`."""
        body = json.dumps({**self.parameters, "q": query, "num": top_k}).encode()
        found = self._ask(self._query, {"X-API-KEY": self._key, "Content-Type": "application/json"}, body)
        return self._results(found.get("organic"), "link", "snippet", top_k)


class SerpApiSearch(_Engine):
    """
    Google, or another engine, through SerpAPI (serpapi.com). The key is read from the environment variable
    `SERPAPI_API_KEY`.

    Args:
        url (`str`, *optional*, defaults to `"https://serpapi.com/search.json"`):
            Address of the API. A query of the address is sent with each search.
        engine (`str`, *optional*, defaults to `"google"`):
            The search engine.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds for a request.
        max_retries (`int`, *optional*, defaults to `3`):
            How often a request is tried again when nothing answers or the service is busy.
        **parameters:
            Further parameters of each request, such as `gl="us"` and `hl="en"`.

    Raises:
        `ValueError`: if there is no key.
    """

    name = "SerpAPI"
    usual = "https://serpapi.com/search.json"
    variable = "SERPAPI_API_KEY"
    own = ("engine", "q", "num", "api_key")

    def __init__(
        self,
        url: str = usual,
        engine: str = "google",
        timeout: float = 20.0,
        max_retries: int = 3,
        **parameters: Any,
    ) -> None:
        super().__init__(url, timeout, max_retries)
        parameters = {**self._query, **parameters}
        self.parameters = parameters if engine == "google" else {**parameters, "engine": engine}
        self._engine = engine

    def search(self, query: str, top_k: int = 10) -> list[WebResult]:
        """The best results of a query, at most `top_k`."""
        asked = {**self.parameters, "engine": self._engine, "q": query, "num": top_k, "api_key": self._key}
        found = self._ask(asked, {})
        return self._results(found.get("organic_results"), "link", "snippet", top_k)


class SearxngSearch(_Engine):
    """
    A SearXNG instance, your own as a rule: no key, but it must allow JSON (`search.formats` in its `settings.yml`).

    Args:
        url (`str`):
            Address of the instance, such as `"http://localhost:8080"`. A query of the address is sent with each search.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds for a request.
        max_retries (`int`, *optional*, defaults to `3`):
            How often a request is tried again when nothing answers or the service is busy.
        **parameters:
            Further parameters of each request, such as `language="en"` and `engines="wikipedia"`.

    Raises:
        `ValueError`: if `url` is not an http(s) address.
    """

    name = "SearXNG"
    own = ("q", "format")

    def __init__(self, url: str, timeout: float = 20.0, max_retries: int = 3, **parameters: Any) -> None:
        super().__init__(url, timeout, max_retries)
        self._path = self._path.rstrip("/") + "/search"
        self.parameters = {**self._query, **parameters}

    def search(self, query: str, top_k: int = 10) -> list[WebResult]:
        """The best results of a query, at most `top_k`."""
        found = self._ask({**self.parameters, "q": query, "format": "json"}, {})
        return self._results(found.get("results"), "url", "content", top_k)

    def _refused(self, status: int, said: str) -> str:
        return f"The SearXNG instance gives no JSON (HTTP {status}): add json to `search.formats` in its settings.yml."


class CachedSearch:
    """
    A search engine whose answers are remembered.

    Args:
        search ([`WebSearch`]):
            The engine. In a replay it is not asked.
        cache ([`WebCache`]):
            Remembers what it found, by engine, query and number of results. An engine is told from others by its class, its `parameters`
            beside the usual ones, its `address` and the `checksum` of what it searches, as far as it has them; give one of your own what it
            needs of these.
    """

    def __init__(self, search: WebSearch, cache: WebCache) -> None:
        self.engine = search
        self._cache = cache
        self._locks = Locks()

    def _recorded_elsewhere(self, key: str, plain: str) -> Any:
        """What is known under a key before files knew of addresses, or of parameters (`plain`); or at another address."""
        for older in (key, plain):
            known = self._cache.get("search", older)
            if known is not None:
                return known
        return self._cache.get_of_any("search", f'{key.removesuffix("]")}, "')

    def search(self, query: str, top_k: int = 10) -> list[WebResult]:
        """
        The best results of a query, at most `top_k`.

        Raises:
            `LookupError`: in a replay, if this was not searched for when the run was recorded.
            `ConnectionError`: if the engine did not answer, and in a replay, if it did not answer when the run was recorded.
        """
        plain = [type(self.engine).__name__, top_k, query]
        own = getattr(self.engine, "parameters", None)
        parameters = [dict(own)] if isinstance(own, Mapping) and own else []
        told = (getattr(self.engine, name, None) for name in ("address", "checksum"))
        place = [str(one) for one in told if one is not None]
        key, of_parameters = (
            json.dumps(parts, sort_keys=True, default=str)
            for parts in ([*plain, *parameters, *place], [*plain, *parameters])
        )
        with self._locks(key):
            known = self._cache.get("search", key)
            if known is None and self._cache.replay:
                known = self._recorded_elsewhere(of_parameters, json.dumps(plain))
            if known is None and self._cache.replay:
                raise LookupError("This was not searched for when the run was recorded, and nothing is searched now.")
            if known is None:
                try:
                    found = self.engine.search(query, top_k)
                except ConnectionError as error:
                    self._cache.put("search", key, {"error": str(error)}, passing=True)
                    raise
                known = [[result.title, result.url, result.snippet] for result in found]
                self._cache.put("search", key, known)
        if isinstance(known, dict):
            raise ConnectionError(known["error"])
        return [WebResult(*result) for result in known]
