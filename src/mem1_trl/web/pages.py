"""What a search engine and a page give, and the two protocols that an environment needs."""

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
            Its address.
        snippet (`str`):
            A few words of it.
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
            The address it came from, after redirects.
        title (`str`):
            Its title; may be empty.
        text (`str`):
            What there is to read on it, without menus and markup.
        cut (`bool`):
            Whether it was longer than what was loaded.
    """

    url: str
    title: str
    text: str
    cut: bool = False


class FetchError(Exception):
    """
    A page that cannot be read. The message is fit for the agent to read.

    Args:
        sentence (`str`):
            Why.
        passing (`bool`, *optional*, defaults to `False`):
            Whether it may be otherwise next time, as with a time-out.
    """

    def __init__(self, sentence: str, passing: bool = False):
        super().__init__(sentence)
        self.passing = passing


@runtime_checkable
class WebSearch(Protocol):
    """A search engine. It is called from several threads at the same time."""

    def search(self, query: str, top_k: int) -> list[WebResult]:
        """The best results, at most `top_k`. Raises `ConnectionError` if the engine does not answer."""
        ...


@runtime_checkable
class PageFetcher(Protocol):
    """Loads pages. It is called from several threads at the same time."""

    def fetch(self, url: str) -> Page:
        """The page at an address. Raises [`FetchError`] if it cannot be read."""
        ...
