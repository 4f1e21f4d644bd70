"""Question answering on the web: search, visit, read on, answer (MEM1, arXiv 2506.15841, section on online web QA)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..text_parts import split_text
from ..web import CachedSearch, Fetcher, FetchError, Page, PageFetcher, WebCache, WebResult, WebSearch
from .qa import QuestionAnswering
from .recipe import Recipe, recipe_of_call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUMBER = re.compile(r"\[?(\d{1,3})[\].]?")


class WebQAEnvironment(QuestionAnswering):
    """
    Answer `N` questions with a search engine and the pages it finds.

    The actions are `search` (numbered titles, addresses and snippets), `visit` (the text of a page, its first part), `read_more`
    (the next part) and `answer`. It follows the protocol of TRL's `environment_factory`; rewards are those of
    [`RetrievalQAEnvironment`]. The content of pages is only ever treated as text. A page that cannot or must not be read is an
    observation that says so, while a failing search engine is an error.

    Args:
        search ([`~mem1_trl.web.WebSearch`]):
            The search engine; shared by all episodes.
        fetcher ([`~mem1_trl.web.PageFetcher`]):
            Loads pages; shared by all episodes.
        top_k (`int`, *optional*, defaults to `5`):
            Number of results per search.
        page_length (`int`, *optional*, defaults to `3000`):
            Maximum length of one part of a page, in characters, or in tokens if `tokenizer` is given. The rollout cuts an
            observation at `max_observation_length` tokens and drops the rest, so parts should be shorter. English has about
            four characters per token.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer that `page_length` is counted with. It must be a fast tokenizer.

    Attributes:
        done (`bool`):
            Whether the agent has answered, which ends the episode.
        final_answer (`str` or `None`):
            The recorded answer.

    Example:

    ```python
    >>> from mem1_trl.environments import WebQAEnvironment
    >>> from mem1_trl.web import SerperSearch, WebCache

    >>> make_env = WebQAEnvironment.factory(SerperSearch(), cache=WebCache("web.sqlite"))
    ```
    """

    def __init__(
        self,
        search: WebSearch,
        fetcher: PageFetcher,
        top_k: int = 5,
        page_length: int = 3000,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        if page_length < 1:
            raise ValueError(f"page_length must be at least 1, got {page_length}.")
        if tokenizer is not None and not tokenizer.is_fast:
            raise ValueError(
                "`tokenizer` must be a fast tokenizer, which knows the position of its tokens in the text."
            )
        super().__init__()
        self._search = search
        self._fetcher = fetcher
        self._top_k = top_k
        self._page_length = page_length
        self._tokenizer = tokenizer
        self._results: list[WebResult] = []
        self._page: Page | None = None
        self._parts: list[str] = []
        self._part = 0

    @property
    def mem1_settings(self) -> dict[str, Any]:
        """The settings that a model trained in this environment needs when it is run; they are saved with the model."""
        return {"top_k": self._top_k, "page_length": self._page_length}

    @property
    def _recipe(self) -> Recipe:
        engine = self._search.engine if isinstance(self._search, CachedSearch) else self._search
        known: dict[str, Any] = {"top_k": self._top_k, "page_length": self._page_length}
        if self._tokenizer is not None:
            known["tokenizer"] = self._tokenizer
        if self._fetcher is not engine and not (isinstance(self._fetcher, Fetcher) and self._fetcher.is_usual):
            known["fetcher"] = self._fetcher
        return recipe_of_call("WebQAEnvironment.factory", "()", search=engine, **known)

    @classmethod
    def factory(
        cls,
        search: WebSearch,
        fetcher: PageFetcher | None = None,
        cache: WebCache | None = None,
        top_k: int = 5,
        page_length: int = 3000,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Callable[[], WebQAEnvironment]:
        """
        A factory for `environment_factory`; all instances share search engine, fetcher and cache.

        Args:
            search ([`~mem1_trl.web.WebSearch`]):
                The search engine, such as [`~mem1_trl.web.SerperSearch`], [`~mem1_trl.web.SearxngSearch`] or
                [`~mem1_trl.web.LocalWeb`].
            fetcher ([`~mem1_trl.web.PageFetcher`], *optional*):
                Loads pages. `None` uses `search` if it also has the pages ([`~mem1_trl.web.LocalWeb`]), else a
                [`~mem1_trl.web.Fetcher`] with its defaults.
            cache ([`~mem1_trl.web.WebCache`], *optional*):
                Stores searches, and the pages of the default fetcher. Pass it to your own fetcher yourself.
            top_k, page_length, tokenizer (*optional*):
                As in [`WebQAEnvironment`].

        Returns:
            `Callable[[], WebQAEnvironment]`: takes no argument.

        Raises:
            `TypeError`: if `search` has no method `search`, or `fetcher` no method `fetch`.
        """
        if not isinstance(search, WebSearch):
            raise TypeError(f"`search` must have a method `search(query, top_k)`, got a {type(search).__name__}.")
        if fetcher is None:
            fetcher = search if isinstance(search, PageFetcher) else Fetcher(cache=cache)
        if not isinstance(fetcher, PageFetcher):
            raise TypeError(f"`fetcher` must have a method `fetch(url)`, got a {type(fetcher).__name__}.")
        engine = CachedSearch(search, cache) if cache is not None else search
        cls(engine, fetcher, top_k, page_length, tokenizer)  # validate the arguments now
        return partial(cls, engine, fetcher, top_k, page_length, tokenizer)

    def reset(self, *args: Any, **row: Any) -> str | None:
        """Start an episode; see [`RetrievalQAEnvironment.reset`]."""
        self._results, self._page, self._parts, self._part = [], None, [], 0
        return super().reset(*args, **row)

    def search(self, query: str) -> str:
        """
        Search the web.

        Args:
            query: A few keywords about one question.

        Returns:
            Numbered results, best first, each with title, address and snippet.
        """
        if not query.strip():
            return "The query is empty: write a few keywords.\n"
        self._results = self._search.search(query.strip(), self._top_k)
        if not self._results:
            return "Nothing was found.\n"
        return "\n".join(
            f"{number}. {result.title}\nURL: {result.url}\n{result.snippet}\n"
            for number, result in enumerate(self._results, start=1)
        )

    def visit(self, url: str) -> str:
        """
        Open a web page and read its first part.

        Args:
            url: The address of the page, or the number of a result of the last search.

        Returns:
            Title, address and text of the page.
        """
        number = _NUMBER.fullmatch(url.strip())
        if number is not None:
            place = int(number[1])
            if not 1 <= place <= len(self._results):
                return f"The last search has no result {place}: give the address of the page.\n"
            url = self._results[place - 1].url
        try:
            self._page = self._fetcher.fetch(url)
        except FetchError as error:
            return f"This page cannot be read. {error}\n"
        self._parts = split_text(self._page.text, self._longest, self._reach) or ["[the page has no text]"]
        self._part = 0
        return self._show()

    def read_more(self) -> str:
        """
        Read the next part of the page that was opened last.

        Returns:
            Title, address and text of the page.
        """
        if self._page is None:
            return "No page is open: visit one first.\n"
        if self._part + 1 == len(self._parts):
            return "That was the end of the page.\n"
        self._part += 1
        return self._show()

    def _show(self) -> str:
        assert self._page is not None
        head = f"Title: {self._page.title}\nURL: {self._page.url}\n"
        if len(self._parts) > 1:
            head += f"Part {self._part + 1} of {len(self._parts)}\n"
        end = "\n"
        if self._page.cut and self._part + 1 == len(self._parts):
            end = "\n[the page is longer than what was loaded]\n"
        return f"{head}\n{self._parts[self._part]}{end}"

    @property
    def _longest(self) -> int:
        """Characters of one part at most; a whole book need not be tokenized for its first page."""
        return self._page_length * (1 if self._tokenizer is None else 32)

    def _reach(self, head: str) -> int:
        """Number of characters of the head of a text that fit into one part."""
        if self._tokenizer is None:
            return len(head)
        places = self._tokenizer(head, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return max(1, places[self._page_length - 1][1]) if len(places) > self._page_length else len(head)
