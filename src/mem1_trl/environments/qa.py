"""The base of all question answering environments: the row with its answers, the final answer, and the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rewards import Answers, exact_match


class QuestionAnswering:
    """
    Base of the environments in which an agent looks something up and then answers `N` questions (MEM1, arXiv 2506.15841).
    A subclass adds the actions to look things up with.

    Attributes:
        done (`bool`):
            Whether the agent has answered, which ends the episode.
        final_answer (`str` or `None`):
            The recorded answer.
    """

    def __init__(self) -> None:
        self._answers: Answers | None = None
        self.done = False
        self.final_answer: str | None = None

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
                Task prompt as shown to the agent.
            questions (`Sequence[str]`, *optional*):
                The questions of the task, one per objective.
            answers (`Sequence` of `str` or of `Sequence[str]`, *optional*):
                For each question, the accepted answer or a list of accepted aliases. Only `get_reward` needs them.
            **row:
                Further columns, not used.

        Returns:
            `str` or `None`: the questions joined by `"; "` if the row has no prompt of its own, else `None`.

        Raises:
            `ValueError`: if the numbers of `answers` and `questions` differ.
        """
        if questions is not None and answers is not None and len(questions) != len(answers):
            raise ValueError(
                f"A row must have one answer for each question, got {len(questions)} questions and {len(answers)} answers: "
                "build it with compose_objectives."
            )
        self._answers = answers
        self.done = False
        self.final_answer = None
        return "; ".join(questions) if prompt is None and questions is not None else None

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
        The reward of the episode: the number of questions answered exactly, 0 to N (0 if there was no answer).

        `None`, which means "not scored" in TRL, if the row of this episode had no `answers`.
        """
        if self._answers is None:
            return None
        return exact_match(self.final_answer, self._answers)
