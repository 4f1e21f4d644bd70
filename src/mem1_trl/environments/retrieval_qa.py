"""Multi-objective question answering over a corpus: search, then answer. MEM1's main results are for this task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..facts import load_facts
from ..retrieval import Bm25Index, Retriever, open_retriever
from ..retrieval.passages import check_found
from .qa import QuestionAnswering
from .recipe import Recipe, recipe_of_call


class RetrievalQAEnvironment(QuestionAnswering):
    """
    Answer `N` questions with the help of a search engine (MEM1, arXiv 2506.15841, section on multi-objective QA).

    It follows the protocol of TRL's `environment_factory`, so it runs in `GRPOTrainer` as well as in this package's
    trainers: `search` and `answer` are the actions, `get_reward` scores the episode. One instance runs one episode at a
    time and may be reset any number of times.

    Args:
        index ([`~mem1_trl.retrieval.Retriever`], *optional*):
            Retriever to search with, such as a [`Bm25Index`], a [`~mem1_trl.retrieval.DenseIndex`] or an
            [`~mem1_trl.retrieval.HttpRetriever`]; shared by all episodes, never changed. `None` searches the bundled facts.
        top_k (`int`, *optional*, defaults to `3`):
            Number of passages per search.
        corpus (`str` or `Path`, *optional*):
            Path or address that `index` was made from, which a model card names.
        title, text (`str`, *optional*, defaults to `"title"` and `"text"`):
            Columns of the passages there.

    Attributes:
        done (`bool`):
            Whether the agent has answered, which ends the episode.
        final_answer (`str` or `None`):
            The recorded answer.

    Example:

    ```python
    >>> from mem1_trl.environments import RetrievalQAEnvironment
    >>> from mem1_trl.facts import load_facts

    >>> make_env = RetrievalQAEnvironment.factory(load_facts().corpus, top_k=3)
    >>> environment = make_env()
    >>> environment.reset(prompt="What is the capital of France?", answers=[["Paris"]])
    >>> environment.answer("Paris")
    'Answer recorded.'
    >>> environment.get_reward()
    1.0
    ```
    """

    def __init__(
        self,
        index: Retriever | None = None,
        top_k: int = 3,
        corpus: str | Path | None = None,
        title: str = "title",
        text: str = "text",
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        super().__init__()
        self._index = _facts_index() if index is None else index
        self._corpus: Any = "facts" if index is None else corpus or index
        self._columns = {name: key for name, key in (("title", title), ("text", text)) if key != name}
        self._top_k = top_k

    @property
    def mem1_settings(self) -> dict[str, Any]:
        """The settings that a model trained in this environment needs when it is run; they are saved with the model."""
        return {"top_k": self._top_k}

    @property
    def _recipe(self) -> Recipe:
        if self._corpus == "facts":
            return recipe_of_call("RetrievalQAEnvironment", top_k=self._top_k)
        recipe = recipe_of_call(
            "RetrievalQAEnvironment.factory", "()", corpus=self._corpus, top_k=self._top_k, **self._columns
        )
        return replace(recipe, contents={"corpus": self._index})

    @classmethod
    def factory(
        cls,
        corpus: Retriever | str | Path | Iterable[Mapping[str, Any]] | Iterable[tuple[str, str]],
        top_k: int = 3,
        title: str = "title",
        text: str = "text",
    ) -> Callable[[], RetrievalQAEnvironment]:
        """
        A factory for `environment_factory`. This call indexes or opens the corpus once; all instances share it.

        Args:
            corpus (`datasets.Dataset`, iterable of mappings or of pairs, `str`, `Path` or [`~mem1_trl.retrieval.Retriever`]):
                Passages with `title` and `text`, a file of them (JSON lines, JSON, CSV, Parquet), or a folder of text files,
                which are indexed in memory; a directory that `mem1 index` wrote; the address of a retriever that speaks the API of Search-R1
                (`"http://127.0.0.1:8000"`); or any retriever. See [`~mem1_trl.retrieval.open_retriever`].
            top_k (`int`, *optional*, defaults to `3`):
                Number of passages per search.
            title, text (`str`, *optional*, defaults to `"title"` and `"text"`):
                Columns of the passages.

        Returns:
            `Callable[[], RetrievalQAEnvironment]`: takes no argument.

        Raises:
            `ConnectionError`: if no retriever answers at the address.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        if isinstance(corpus, (str, Path)):
            return partial(cls, open_retriever(corpus, title, text), top_k, corpus, title, text)
        if corpus is load_facts().corpus:
            _facts_index()
            return partial(cls, None, top_k)
        return partial(cls, open_retriever(corpus, title, text), top_k)

    def search(self, query: str) -> str:
        """
        Search the corpus for passages about one question.

        Args:
            query: A few keywords, such as the name of what the question is about.

        Returns:
            The best passages with their titles, best first.
        """
        [passages] = check_found(self._index, self._index.search([query], self._top_k), 1)
        if not passages:
            return "No passage matches this query.\n"
        # The format the reference code shows to the agent.
        return "".join(
            f"Doc {position}(Title: {passage.title}) {passage.text}\n" for position, passage in enumerate(passages, 1)
        )


@cache
def _facts_index() -> Bm25Index:
    return Bm25Index(load_facts().corpus)
