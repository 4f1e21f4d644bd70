"""
A retriever behind HTTP: the API of Search-R1, which MEM1's reference code uses too.

`POST /retrieve` with `{"queries": ["..."], "topk": 3, "return_scores": true}` gives
`{"result": [[{"document": {"id": "0", "contents": "Title\\nText"}, "score": 1.5}, ...]]}`, one list for each query.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.util import Retry, Timeout, parse_url

from ..json_text import read_json
from ..printable import one_line
from ..retrying import BUSY_STATUSES, UnusableServer, asked_to_wait, backoff, with_retries
from ..time_limit import TimeLimit, limited_pool, read_at_most
from ..waiting import wait_until
from .passages import Passage, check_search, read_corpus

_MAX_BYTES = 128 * 2**20
"""Of one answer: the passages of some hundred queries."""


@dataclass(eq=False, slots=True)
class _Search:
    """A call of `search`: it waits until another has brought its results, or until it may send a request itself."""

    queries: list[str]
    top_k: int
    woken: threading.Event = field(default_factory=threading.Event)
    batch: list[_Search] | None = None
    """With a connection: the searches to send, this one first."""
    results: list[list[Passage]] | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """End with an error, which is raised where the search was called."""
        self.error = error
        self.woken.set()


class HttpRetriever:
    """
    Client of a retriever that speaks the API of Search-R1 and MEM1, such as the one `mem1 retriever` starts.

    The searches of the episodes of a batch come at the same time from as many threads. Up to `max_connections` requests
    are under way at once; searches that come meanwhile wait and then go together in one request, which a retriever with a
    GPU answers about as fast as a single query. A search never waits for others to come, nor for a connection once another
    search has taken it along.

    Args:
        url (`str`):
            Address of the server, such as `"http://127.0.0.1:8000"`; without a path, `/retrieve` is added.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds for a request with its whole answer. A server that sends a byte now and then does not extend them.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is tried again after a failed connection, a time-out or the status of a busy server, after
            0.5, 1, 2, ... seconds, or what the server asks for.
        max_connections (`int`, *optional*, defaults to `4`):
            Most requests at once.
        max_batch_size (`int`, *optional*, defaults to `256`):
            Most queries of one request, unless one `search` has more.

    Raises:
        `ValueError`: if `url` is not an http(s) address.

    Example:

    ```python
    >>> retriever = HttpRetriever("http://127.0.0.1:8000")
    >>> retriever.search(["symbol of gold"], top_k=3)
    ```
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        max_retries: int = 5,
        max_connections: int = 4,
        max_batch_size: int = 256,
    ) -> None:
        try:
            parsed: Any = parse_url(url)
        except urllib3.exceptions.LocationParseError:
            parsed = None
        if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is no address of a retriever: pass one such as 'http://127.0.0.1:8000'.")
        for name, value in (("max_connections", max_connections), ("max_batch_size", max_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}: it must be 1 or more.")
        if parsed.auth is not None:
            raise ValueError("The address of a retriever must have no user name or password: these would not be sent.")
        self.url = parsed._replace(path="/retrieve").url if parsed.path in (None, "", "/") else url
        self._arguments = (url, timeout, max_retries, max_connections, max_batch_size)
        self._timeout = Timeout(connect=min(timeout, 10.0), read=timeout)
        self._seconds = timeout
        self._max_retries = max_retries
        self._max_batch_size = max_batch_size
        self._pool = limited_pool(max_connections)
        self._lock = threading.Lock()
        self._free = max_connections
        self._waiting: list[_Search] = []

    def __reduce__(self) -> Any:
        return HttpRetriever, self._arguments

    def check(self) -> None:
        """
        Ask for one passage, without retries, to see whether a retriever is there.

        Raises:
            `ConnectionError`: if nothing answers.
            `UnusableServer`: if what answers is not a retriever.
        """
        self._post(["test"], 1, 0)

    def search(self, queries: Sequence[str], top_k: int = 3) -> list[list[Passage]]:
        """
        The best passages for each query, as the server ranks them.

        Args:
            queries (`Sequence[str]`):
                Any number of queries.
            top_k (`int`, *optional*, defaults to `3`):
                Largest number of passages per query.

        Returns:
            `list[list[Passage]]`: one list per query, best first. The title is the first line of the `contents`, as it is.

        Raises:
            `TypeError`: if `queries` is a single string, or holds something else than strings.
            `ValueError`: if `top_k` is below 1.
            `ConnectionError`: if nothing answers, after all retries.
            `UnusableServer`: if the server refuses the request, or answers something else than passages.
        """
        check_search(queries, top_k)
        if not queries:
            return []
        search = _Search(list(queries), top_k)
        try:
            with self._lock:
                self._waiting.append(search)
                self._use_free_connections()
            wait_until(search.woken.wait)
            if search.batch is not None:
                self._answer(search.batch)
        finally:
            self._leave(search)
        if search.error is not None:
            raise type(search.error)(*search.error.args)
        assert search.results is not None
        return search.results

    def _use_free_connections(self) -> None:
        """Let those that wait longest send a request, each with the others that can go along. The lock is held."""
        while self._free and self._waiting:
            first = self._waiting[0]
            batch, size = [first], len(first.queries)
            for other in self._waiting[1:]:
                if other.top_k == first.top_k and size + len(other.queries) <= self._max_batch_size:
                    batch.append(other)
                    size += len(other.queries)
            self._waiting = [search for search in self._waiting if search not in batch]
            self._free -= 1
            first.batch = batch
            first.woken.set()

    def _leave(self, search: _Search) -> None:
        """Hand the connection of a search to the next one. If it was interrupted, the searches that it took along end with an error."""
        with self._lock:
            if search in self._waiting:
                self._waiting.remove(search)
            if search.batch is not None:
                for one in search.batch:
                    if one.results is None and one.error is None:
                        one.fail(ConnectionError("The search was interrupted."))
                self._free += 1
                self._use_free_connections()

    def _answer(self, batch: list[_Search]) -> None:
        """Bring the results of all searches of a batch, or the error that each ends with."""
        try:
            found = self._post(
                [query for search in batch for query in search.queries], batch[0].top_k, self._max_retries
            )
        except Exception as error:
            if isinstance(error, UnusableServer) and len(batch) > 1:
                for search in batch:  # one query that the server does not like must not fail the others
                    self._answer([search])
                return
            for search in batch:
                search.fail(error)
            return
        for search in batch:
            search.results, found = found[: len(search.queries)], found[len(search.queries) :]
            search.woken.set()

    def _post(self, queries: list[str], top_k: int, max_retries: int) -> list[list[Passage]]:
        body = json.dumps({"queries": queries, "topk": top_k, "return_scores": True}).encode()
        try:
            status, said = with_retries(lambda: self._exchange(body), max_retries, _seconds_to_wait)
        except _Busy as error:
            status, said = error.status, error.said
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionError(
                f"No retriever answers at {self.url} ({one_line(reason, 300)}): start one with `mem1 retriever --corpus "
                "CORPUS.jsonl`, or correct the address."
            ) from None
        if status != 200:
            text = one_line(said.decode("utf-8", "replace"), 200)
            raise UnusableServer(
                f"The retriever at {self.url} refused a search (HTTP {status}{': ' if text else ''}{text})."
            )
        try:
            result = read_json(said, nan_is_null=True)["result"]
            if len(result) != len(queries):
                raise ValueError
            # Some servers send as many as they like
            return [[_passage(entry) for entry in entries[:top_k]] for entries in result]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            text = one_line(said[:200].decode("utf-8", "replace"))
            raise UnusableServer(
                f"What answers at {self.url} is no retriever: it should give {{'result': [[{{'document': {{'contents': "
                f"...}}}}]]}}, one list for each query, but gave {text!r}."
            ) from None

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to one request."""
        with TimeLimit(self._seconds) as limit:
            try:
                response = self._pool.request(
                    "POST",
                    self.url,
                    body=body,
                    headers={"Content-Type": "application/json", "Accept": "application/json"},
                    timeout=self._timeout,
                    retries=Retry(total=None, connect=0, read=0, status=0, other=0, redirect=3, allowed_methods=None),
                    preload_content=False,
                )
                # A connection whose answer was read to its end is back in the pool by then
                with contextlib.closing(response):
                    said, cut = read_at_most(response, _MAX_BYTES)
            except (urllib3.exceptions.HTTPError, OSError):
                if not limit.over:
                    raise
            if limit.over:  # what was read ends where the connection was shut
                raise TimeoutError(f"its answer timed out after {self._seconds:g} s")
        if cut:
            raise UnusableServer(f"What answers at {self.url} gives more than {_MAX_BYTES >> 20} MB for one request.")
        if response.status in BUSY_STATUSES:
            raise _Busy(response.status, response.headers, said)
        return response.status, said


class _Busy(Exception):
    """A retriever that has no time at the moment."""

    def __init__(self, status: int, headers: Mapping[str, str], said: bytes):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers
        self.said = said


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    if not isinstance(error, (_Busy, urllib3.exceptions.HTTPError, OSError)):
        return None
    asked = asked_to_wait(error.headers) if isinstance(error, _Busy) else None
    return backoff(attempt, first=0.5) if asked is None else asked


def _passage(entry: dict[str, Any]) -> Passage:
    """
    A passage of an answer; some servers put the document itself where others have it beside its score. A score that is missing
    or not a number is 0.
    """
    document = entry.get("document", entry)
    [(title, text)] = read_corpus([document])
    score = float(entry.get("score") or 0.0)
    return Passage(title, text, score if math.isfinite(score) else 0.0)
