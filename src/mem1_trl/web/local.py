"""A web without a network: given pages, searched by BM25."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..retrieval import Bm25Index
from ..words import words_of_passage, words_of_query
from .pages import FetchError, Page, WebResult

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])(?!\s|$)|\n+")
_SNIPPET = 200


class LocalWeb:
    """
    A search engine ([`WebSearch`]) and a fetcher ([`PageFetcher`]) over given pages: for training offline, for tests, and for
    the documents of a company.

    Args:
        pages (`datasets.Dataset` or iterable of mappings):
            Pages, each with `url`, `title` and `text`.

    Raises:
        `ValueError`: if there is no page, one lacks a column, or two have the same address.

    Example:

    ```python
    >>> web = LocalWeb([{"url": "https://example.org/iron", "title": "Iron", "text": "Iron has the symbol Fe."}])
    >>> web.search("symbol of iron", top_k=1)[0].url
    'https://example.org/iron'
    >>> web.fetch("https://example.org/iron").text
    'Iron has the symbol Fe.'
    ```
    """

    def __init__(self, pages: Iterable[Mapping[str, str]]) -> None:
        self._pages: dict[str, Page] = {}
        for number, page in enumerate(pages):
            missing = [key for key in ("url", "title", "text") if not isinstance(page.get(key), str)]
            if missing:
                raise ValueError(f"Page {number} has no {missing[0]!r}: a page must have url, title and text.")
            if page["url"] in self._pages:
                raise ValueError(f"Two pages have the address {page['url']!r}: every page must have its own.")
            self._pages[page["url"]] = Page(page["url"], page["title"], page["text"])
        # The address is stored in the title, since a passage has no other field for it
        self._index = Bm25Index([(f"{page.title}\n{page.url}", page.text) for page in self._pages.values()])

    def __len__(self) -> int:
        """Number of pages."""
        return len(self._pages)

    @property
    def checksum(self) -> str:
        """Tells the pages apart from others."""
        return self._index.checksum

    def search(self, query: str, top_k: int = 10) -> list[WebResult]:
        """The best pages for a query, at most `top_k`, each with the sentence that contains most words of the query."""
        [passages] = self._index.search([query], top_k)
        words = set(words_of_query(query))
        found = []
        for passage in passages:
            title, _, url = passage.title.rpartition("\n")
            sentences = _SENTENCE.split(passage.text)
            best = max(sentences, key=lambda sentence: len(words & set(words_of_passage(sentence))))
            snippet = best if len(best) <= _SNIPPET else f"{best[:_SNIPPET].rsplit(' ', 1)[0]} ..."
            found.append(WebResult(title, url, snippet))
        return found

    def fetch(self, url: str) -> Page:
        """
        The page at an address.

        Raises:
            [`FetchError`]: if no page has this address.
        """
        page = self._pages.get(url.strip()) or self._pages.get(url.strip().split("#")[0])
        if page is None:
            raise FetchError("There is no such page: visit an address that a search has returned.")
        return page
