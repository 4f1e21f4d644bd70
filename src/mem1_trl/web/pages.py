"""Results of a search engine, pages, and the protocols of search engines and page loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class WebResult:
    """
    One result of a search engine.

    Attributes:
        title (`str`):
            Title of the page.
        url (`str`):
            Address of the page.
        snippet (`str`):
            A few words of the page.
    """

    title: str
    url: str
    snippet: str


@dataclass(frozen=True, slots=True)
class Page:
    """
    A page as text.

    Attributes:
        url (`str`):
            Address that the page came from, after redirects.
        title (`str`):
            Title of the page; may be empty.
        text (`str`):
            Text of the page, without menus and markup.
        cut (`bool`):
            Whether the page was longer than the part that was loaded.
    """

    url: str
    title: str
    text: str
    cut: bool = False


class FetchError(Exception):
    """
    Raised for a page that cannot be read. The message is phrased for the agent.

    Args:
        sentence (`str`):
            Reason why the page cannot be read.
        passing (`bool`, *optional*, defaults to `False`):
            Whether the failure is temporary, such as a time-out, so that the page may be readable later.
    """

    def __init__(self, sentence: str, passing: bool = False):
        super().__init__(sentence)
        self.passing = passing


@runtime_checkable
class WebSearch(Protocol):
    """A search engine. Several threads call it concurrently."""

    def search(self, query: str, top_k: int) -> list[WebResult]:
        """The best results, at most `top_k`. Raises `ConnectionError` if the engine does not answer."""
        ...


@runtime_checkable
class PageFetcher(Protocol):
    """Loads pages. Several threads call it concurrently."""

    def fetch(self, url: str) -> Page:
        """The page at an address. Raises [`FetchError`] if it cannot be read."""
        ...
