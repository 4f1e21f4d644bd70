"""Web access for agents: search engines, pages as text within limits, and a cache that makes a run repeatable."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .cache import WebCache as WebCache
    from .fetcher import Fetcher as Fetcher
    from .local import LocalWeb as LocalWeb
    from .pages import FetchError as FetchError
    from .pages import Page as Page
    from .pages import PageFetcher as PageFetcher
    from .pages import WebResult as WebResult
    from .pages import WebSearch as WebSearch
    from .search import CachedSearch as CachedSearch
    from .search import SearxngSearch as SearxngSearch
    from .search import SerpApiSearch as SerpApiSearch
    from .search import SerperSearch as SerperSearch

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CachedSearch": "search",
        "FetchError": "pages",
        "Fetcher": "fetcher",
        "LocalWeb": "local",
        "Page": "pages",
        "PageFetcher": "pages",
        "SearxngSearch": "search",
        "SerpApiSearch": "search",
        "SerperSearch": "search",
        "WebCache": "cache",
        "WebResult": "pages",
        "WebSearch": "pages",
    },
)
