"""Web access for agents: search engines, pages as text within limits, and a cache that makes a run repeatable."""

from .cache import WebCache
from .fetcher import Fetcher
from .local import LocalWeb
from .pages import FetchError, Page, PageFetcher, WebResult, WebSearch
from .search import CachedSearch, SearxngSearch, SerpApiSearch, SerperSearch

__all__ = [
    "CachedSearch",
    "FetchError",
    "Fetcher",
    "LocalWeb",
    "Page",
    "PageFetcher",
    "SearxngSearch",
    "SerpApiSearch",
    "SerperSearch",
    "WebCache",
    "WebResult",
    "WebSearch",
]
