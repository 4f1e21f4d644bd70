"""Multi-objective question answering over a corpus: search with BM25, then answer. The task of MEM1's main results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from ..facts import load_facts
from ..retrieval import Bm25Index
from ..rewards import Answers, exact_match


class RetrievalQAEnvironment:
    """
    Answer `N` questions with the help of a search engine (MEM1, arXiv 2506.15841, section on multi-objective QA).

    It follows the protocol of TRL's `environment_factory`, so it runs in `GRPOTrainer` as well as in this package's
    trainers: `search` and `answer` are the actions, `get_reward` scores the episode. One instance runs one episode at a
    time and may be reset often.

    Args:
        index ([`Bm25Index`], *optional*):
            What to search in; shared, never changed. `None` searches the bundled facts.
        top_k (`int`, *optional*, defaults to `3`):
            Number of passages per search.

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

    def __init__(self, index: Bm25Index | None = None, top_k: int = 3) -> None:
        if top_k < 1:
            raise ValueError(f"`top_k` is {top_k}: a search needs at least one passage.")
        self._index = _facts_index() if index is None else index
        self._top_k = top_k
        self._answers: Answers | None = None
        self.done = False
        self.final_answer: str | None = None

    @classmethod
    def factory(
        cls, corpus: Bm25Index | Iterable[Mapping[str, Any]] | Iterable[tuple[str, str]], top_k: int = 3
    ) -> Callable[[], RetrievalQAEnvironment]:
        """
        A factory for `environment_factory`. The corpus is indexed once, here; all instances share the index.

        Args:
            corpus (`datasets.Dataset`, iterable of mappings or of pairs, or [`Bm25Index`]):
                Passages with `title` and `text`, see [`Bm25Index`], or an index built with other settings.
            top_k (`int`, *optional*, defaults to `3`):
                Number of passages per search.

        Returns:
            `Callable[[], RetrievalQAEnvironment]`: takes no argument.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` is {top_k}: a search needs at least one passage.")
        return partial(cls, corpus if isinstance(corpus, Bm25Index) else Bm25Index(corpus), top_k)

    def reset(
        self,
        prompt: str | list[dict[str, Any]] | None = None,
        questions: Sequence[str] | None = None,
        answers: Answers | None = None,
        **row: Any,
    ) -> str | None:
        """
        Start an episode on a row of a dataset made by [`mem1_trl.tasks.compose_objectives`].

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                The task as the agent is shown it.
            questions (`Sequence[str]`, *optional*):
                The questions of the task, one per objective.
            answers (`Sequence` of `str` or of `Sequence[str]`, *optional*):
                Per question the accepted answer or the list of its aliases. Needed by `get_reward` only.
            **row:
                Further columns, not used.

        Returns:
            `str` or `None`: the questions joined by `"; "` if the row has no prompt of its own, else `None`.

        Raises:
            `ValueError`: if there are not as many `answers` as `questions`.
        """
        if questions is not None and answers is not None and len(questions) != len(answers):
            raise ValueError(
                f"The row has {len(questions)} questions but {len(answers)} answers: build it with compose_objectives."
            )
        self._answers = answers
        self.done = False
        self.final_answer = None
        return "; ".join(questions) if prompt is None and questions is not None else None

    def search(self, query: str) -> str:
        """
        Search the corpus for passages about one question.

        Args:
            query: A few keywords, such as the name of what the question is about.

        Returns:
            The best passages with their titles, best first.
        """
        [passages] = self._index.search([query], self._top_k)
        if not passages:
            return "No passage matches this query.\n"
        # The format the reference code shows to the agent.
        return "".join(
            f"Doc {position}(Title: {passage.title}) {passage.text}\n" for position, passage in enumerate(passages, 1)
        )

    def answer(self, answer: str) -> str:
        """
        Give the final answer and end the task.

        Args:
            answer: The answers to all questions in their order, separated by semicolons.

        Returns:
            A confirmation.
        """
        self.final_answer = answer
        self.done = True
        return "Answer recorded."

    def get_reward(self) -> float | None:
        """
        The reward of the episode: the number of questions answered exactly, 0 to N (0 if none was answered).

        `None`, which is TRL's word for "not scored", if the row of this episode had no `answers`.
        """
        if self._answers is None:
            return None
        return exact_match(self.final_answer, self._answers)


@cache
def _facts_index() -> Bm25Index:
    return Bm25Index(load_facts().corpus)
