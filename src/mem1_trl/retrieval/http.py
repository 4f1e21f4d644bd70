"""
A retriever behind HTTP: the API of Search-R1, which MEM1's reference code uses too.

`POST /retrieve` with `{"queries": ["..."], "topk": 3, "return_scores": true}` gives
`{"result": [[{"document": {"id": "0", "contents": "Title\\nText"}, "score": 1.5}, ...]]}`, one list for each query.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.util import Retry, Timeout, parse_url

from ..json_text import read_json
from ..retrying import BUSY_STATUSES, backoff
from .passages import Passage, check_search, read_corpus


@dataclass(eq=False, slots=True)
class _Search:
    """A call of `search` that waits for its results."""

    queries: list[str]
    top_k: int
    ready: threading.Event = field(default_factory=threading.Event)
    results: list[list[Passage]] | None = None
    error: Exception | None = None


class HttpRetriever:
    """
    Client of a retriever that speaks the API of Search-R1 and MEM1, such as the one `mem1 retriever` starts.

    The searches of the episodes of a batch come at the same time from as many threads. Up to `max_connections` requests
    are under way at once; searches that come meanwhile wait and then go together in one request, which a retriever with a
    GPU answers about as fast as a single query. A search never waits for others to come.

    Args:
        url (`str`):
            Address of the server, such as `"http://127.0.0.1:8000"`; without a path, `/retrieve` is added.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds until a request without an answer counts as failed.
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
            parsed = parse_url(url)
        except urllib3.exceptions.LocationParseError:
            parsed = None
        if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is no address of a retriever: pass one such as 'http://127.0.0.1:8000'.")
        for name, value in (("max_connections", max_connections), ("max_batch_size", max_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}: it must be 1 or more.")
        self.url = url.rstrip("/") + "/retrieve" if parsed.path in (None, "", "/") else url
        self._arguments = (url, timeout, max_retries, max_connections, max_batch_size)
        self._timeout = Timeout(connect=min(timeout, 10.0), read=timeout)
        self._retries = _Retry(
            total=max_retries,
            redirect=3,
            allowed_methods=None,  # a search changes nothing, so POST may be repeated
            status_forcelist=BUSY_STATUSES,
            raise_on_status=False,
        )
        self._max_batch_size = max_batch_size
        self._pool = urllib3.PoolManager(maxsize=max_connections)
        self._slots = threading.BoundedSemaphore(max_connections)
        self._lock = threading.Lock()
        self._waiting: list[_Search] = []

    def __reduce__(self) -> Any:
        return HttpRetriever, self._arguments

    def check(self) -> None:
        """
        Ask for one passage, without retries, to see whether a retriever is there.

        Raises:
            `ConnectionError`: if nothing answers.
            `RuntimeError`: if what answers is not a retriever.
        """
        self._post(["test"], 1, Retry(total=0, redirect=3, raise_on_status=False))

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
            `RuntimeError`: if the server refuses the request, or answers something else than passages.
        """
        check_search(queries, top_k)
        if not queries:
            return []
        search = _Search(list(queries), top_k)
        with self._lock:
            self._waiting.append(search)
        with self._slots:
            batch = self._take(search)
            if batch:
                self._answer(batch)
        search.ready.wait()  # if another thread took it, it is under way there
        if search.error is not None:
            raise type(search.error)(*search.error.args)
        assert search.results is not None
        return search.results

    def _take(self, search: _Search) -> list[_Search]:
        """This search with the others that can go along; none if another thread took it already."""
        with self._lock:
            if search not in self._waiting:
                return []
            batch, size = [search], len(search.queries)
            for other in self._waiting:
                fits = size + len(other.queries) <= self._max_batch_size
                if other is not search and other.top_k == search.top_k and fits:
                    batch.append(other)
                    size += len(other.queries)
            self._waiting = [other for other in self._waiting if other not in batch]
            return batch

    def _answer(self, batch: list[_Search]) -> None:
        try:
            try:
                found = self._post(
                    [query for search in batch for query in search.queries], batch[0].top_k, self._retries
                )
            except RuntimeError:
                if len(batch) == 1:
                    raise
                for search in batch:  # one query that the server does not like must not fail the others
                    self._answer([search])
                return
            for search in batch:
                search.results, found = found[: len(search.queries)], found[len(search.queries) :]
        except BaseException as error:
            for search in batch:
                search.error = (
                    error if isinstance(error, Exception) else ConnectionError("The search was interrupted.")
                )
            if not isinstance(error, Exception):
                raise
        finally:
            for search in batch:
                search.ready.set()

    def _post(self, queries: list[str], top_k: int, retries: Retry) -> list[list[Passage]]:
        try:
            response = self._pool.request(
                "POST",
                self.url,
                body=json.dumps({"queries": queries, "topk": top_k, "return_scores": True}).encode(),
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                timeout=self._timeout,
                retries=retries,
            )
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionError(
                f"No retriever answers at {self.url} ({_one_line(reason)}): start one with `mem1 retriever --corpus "
                "CORPUS.jsonl`, or correct the address."
            ) from None
        if response.status != 200:
            said = _one_line(response.data.decode("utf-8", "replace"))
            raise RuntimeError(
                f"The retriever at {self.url} refused a search (HTTP {response.status}{': ' if said else ''}{said:.200})."
            )
        try:
            result = read_json(response.data, nan_is_null=True)["result"]
            if len(result) != len(queries):
                raise ValueError
            return [[_passage(entry) for entry in entries] for entries in result]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            said = _one_line(response.data[:200].decode("utf-8", "replace"))
            raise RuntimeError(
                f"What answers at {self.url} is no retriever: it should give {{'result': [[{{'document': {{'contents': "
                f"...}}}}]]}}, one list for each query, but gave {said!r}."
            ) from None


class _Retry(Retry):
    """`Retry` whose waits are those of the package, and draw nothing from the global random state."""

    def get_backoff_time(self) -> float:
        attempts = len([entry for entry in self.history if entry.redirect_location is None])
        return backoff(attempts, first=0.5) if attempts else 0.0


def _passage(entry: dict[str, Any]) -> Passage:
    """A passage of an answer; some servers put the document itself where others have it beside its score."""
    document = entry.get("document", entry)
    [(title, text)] = read_corpus([document])
    return Passage(title, text, float(entry.get("score", 0.0)))


def _one_line(what: Any) -> str:
    return " ".join(str(what).split())
