"""
Rewards that compare answers with references: exact match and F1, summed over the objectives of a task (MEM1, arXiv 2506.15841).

There is no format reward: with it, the policy converges faster but to a lower score.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol.tagged_text import all_tagged
from ..trajectory import StopReason, Trajectory

ANSWER_SEPARATOR = ";"

# References of a task: for each objective, one accepted answer or a list of aliases.
Answers = Sequence[str | Sequence[str]]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """
    `text` in the form in which answers are compared: Unicode's form NFC, lower case, no punctuation, no articles, single spaces.

    Example:

    ```python
    >>> normalize_answer("  The Isle of  Man! ")
    'isle of man'
    ```
    """
    return " ".join(_ARTICLES.sub(" ", to_nfc(text).lower().translate(_PUNCTUATION)).split())


def to_nfc(text: str) -> str:
    """`text` in Unicode's form NFC: an accented letter is one character, however it was typed. No letter becomes another one."""
    return unicodedata.normalize("NFC", text)


def split_answers(text: str, n: int) -> list[str] | None:
    """
    The `n` answers in `text`, which are separated by semicolons and are in the order of the questions.

    Args:
        text (`str`):
            Text inside the answer tag, such as `"Paris; 26"`.
        n (`int`):
            Number of objectives of the task.

    Returns:
        `list[str]` or `None`: `n` stripped strings (any of them may be empty), or `None` if `text` does not contain exactly `n`
        answers, since they cannot be assigned to the questions then.
    """
    parts = [part.strip() for part in text.split(ANSWER_SEPARATOR)]
    return parts if len(parts) == n else None


def exact_match(answer_text: str | None, answers: Answers) -> float:
    """
    Number of objectives answered exactly, position by position: `sum_i max_{r in answers[i]} [a_i = r]`.

    Args:
        answer_text (`str` or `None`):
            All answers, separated by semicolons. `None` if the agent gave no answer.
        answers (`Sequence` of `str` or of `Sequence[str]`):
            For each objective, the accepted answer or the list of its aliases.

    Returns:
        `float`: between 0 and `len(answers)`; 0 if `answer_text` does not contain exactly `len(answers)` answers.

    Raises:
        `ValueError`: if there is no objective, or an objective without a reference.
    """
    return _sum_over_objectives(_equal, answer_text, answers)


def f1(answer_text: str | None, answers: Answers) -> float:
    """
    F1 over the sets of normalised words, best alias per objective, summed over the objectives.

    With `A` the set of words of an answer and `R` that of a reference, `F1 = 2 |A n R| / (|A| + |R|)`.

    Args:
        answer_text (`str` or `None`):
            All answers, separated by semicolons. `None` if the agent gave no answer.
        answers (`Sequence` of `str` or of `Sequence[str]`):
            For each objective, the accepted answer or the list of its aliases.

    Returns:
        `float`: between 0 and `len(answers)`; 0 if `answer_text` does not contain exactly `len(answers)` answers.

    Raises:
        `ValueError`: if there is no objective, or an objective without a reference.
    """
    return _sum_over_objectives(_word_overlap, answer_text, answers)


def are_answers(value: Any) -> bool:
    """Whether `value` can be the references of a task: for each objective, an accepted answer or a list of aliases."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(of_one, str)
            or (isinstance(of_one, (list, tuple)) and bool(of_one) and all(isinstance(alias, str) for alias in of_one))
            for of_one in value
        )
    )


def form_of_answers(value: Any) -> str:
    """What a message says about references that are not of the form that [`are_answers`] knows."""
    return f"answers={value!r:.60}: give a list with the accepted answers of each objective, such as [['Paris'], ['26', 'twenty-six']]"


def score_answer(answer_text: str | None, answers: Answers) -> dict[str, float]:
    """
    The scores of an answer by every metric of the paper.

    Args:
        answer_text (`str` or `None`):
            All answers, separated by semicolons. `None` if the agent gave no answer.
        answers (`Sequence` of `str` or of `Sequence[str]`):
            For each of the N objectives, the accepted answer or the list of its aliases.

    Returns:
        `dict[str, float]`: `exact_match` and `f1` (0 to N), `exact_match_per_objective` and `f1_per_objective` (the same
        divided by N), and `success` (1 if all objectives are answered exactly, else 0).
    """
    right, overlap = exact_match(answer_text, answers), f1(answer_text, answers)
    return {
        "exact_match": right,
        "exact_match_per_objective": right / len(answers),
        "f1": overlap,
        "f1_per_objective": overlap / len(answers),
        "success": float(right == len(answers)),
    }


def exact_match_reward(
    completions: list[Any],
    answers: list[Answers] | None = None,
    trajectories: list[Trajectory] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """
    [`exact_match`] as a TRL reward function, `reward_funcs=[exact_match_reward]`.

    Args:
        completions (`list` of `str` or of `list[dict]`):
            The completions, as text or as messages. They are read only without `trajectories`: the answer is then the text
            inside the last `<answer>...</answer>` that the model wrote (only messages of the assistant count).
        answers (`list`):
            Column `answers` of the dataset, see [`mem1_trl.tasks.compose_objectives`].
        trajectories (`list[Trajectory]`, *optional*):
            The episodes, whose `answer` is scored; this package's trainers pass them.

    Returns:
        `list[float | None]`: one reward per completion, between 0 and its number of objectives; `None` for a row that has no answers.

    Raises:
        `ValueError`: if the dataset has no column `answers`, or the lengths differ.
    """
    return _score_batch(exact_match, completions, answers, trajectories)


def f1_reward(
    completions: list[Any],
    answers: list[Answers] | None = None,
    trajectories: list[Trajectory] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """
    [`f1`] as a TRL reward function, `reward_funcs=[f1_reward]`. Arguments as in [`exact_match_reward`].

    Returns:
        `list[float | None]`: one reward per completion, between 0 and its number of objectives; `None` for a row that has no answers.
    """
    return _score_batch(f1, completions, answers, trajectories)


def _comparable(text: str) -> str:
    # "A" (a blood group) or "+" would normalise to an empty string, and would then equal every other such text.
    return normalize_answer(text) or " ".join(to_nfc(text).lower().split())


def _equal(answer: str, reference: str) -> float:
    return float(_comparable(answer) == _comparable(reference))


def _word_overlap(answer: str, reference: str) -> float:
    answer_words, reference_words = set(_comparable(answer).split()), set(_comparable(reference).split())
    total = len(answer_words) + len(reference_words)
    return 2 * len(answer_words & reference_words) / total if total else 0.0


def references_of(answers: Answers) -> list[list[str]]:
    """
    The accepted answers of each objective.

    Raises:
        `ValueError`: If they are no list with a text, or a list of texts, for each objective.
    """
    if are_answers(answers):
        return [[aliases] if isinstance(aliases, str) else list(aliases) for aliases in answers]
    of_one = [aliases if isinstance(aliases, (list, tuple)) else [aliases] for aliases in answers or () if aliases]
    if not isinstance(answers, str) and any(not isinstance(alias, str) for aliases in of_one for alias in aliases):
        raise ValueError(f"`answers` must hold texts, got {answers!r:.200}: write a number as '26'.")
    raise ValueError(f"`answers` needs at least one reference for every objective, got {answers!r:.200}.")


def _sum_over_objectives(score: Callable[[str, str], float], answer_text: str | None, answers: Answers) -> float:
    references = references_of(answers)
    given = None if answer_text is None else split_answers(answer_text, len(references))
    if given is None:
        return 0.0
    # An empty answer is never right, even if the reference normalises to an empty string.
    best = [max(score(answer, alias) for alias in aliases) for answer, aliases in zip(given, references) if answer]
    return float(sum(best))


def invalid_action_penalty(completions: list[Any], trajectories: list[Trajectory], **kwargs: Any) -> list[float]:
    """
    TRL reward function: -1 for an episode that ended because no action could be parsed, 0 for every other one.

    The reference code of MEM1 uses it for WebShop; in its question answering, such episodes have no reward at all. It is added
    to the reward of the environment: `Mem1GRPOTrainer(reward_funcs=invalid_action_penalty, environment_factory=...)`.

    Args:
        completions (`list`):
            One completion for each episode.
        trajectories (`list[Trajectory]`):
            The episodes, which the trainers pass.
        kwargs (*optional*):
            Further arguments that TRL passes.
    """
    return [-1.0 if trajectory.stop_reason == StopReason.INVALID_ACTION else 0.0 for trajectory in trajectories]


def _score_batch(
    score: Callable[[str | None, Answers], float],
    completions: list[Any],
    answers: list[Answers] | None,
    trajectories: list[Trajectory] | None,
) -> list[float | None]:
    if answers is None:
        raise ValueError("The dataset has no column 'answers': build it with mem1_trl.compose_objectives.")
    if trajectories is None:
        texts = [_answer_in_completion(completion) for completion in completions]
    else:
        texts = [trajectory.answer for trajectory in trajectories]
    if not len(texts) == len(answers) == len(completions):
        raise ValueError(
            f"There must be one of each per rollout, got {len(completions)} completions, {len(answers)} rows of answers and "
            f"{len(texts)} episodes."
        )
    return [None if references is None else score(text, references) for text, references in zip(texts, answers)]


def _answer_in_completion(completion: str | list[dict[str, Any]]) -> str | None:
    if not isinstance(completion, str):
        # Tool messages are left out: the text of the environment is not an answer of the model.
        contents = [message.get("content") or "" for message in completion if message.get("role") == "assistant"]
        completion = "\n".join(
            content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            for content in contents
        )
    answer = None
    for found in all_tagged(completion, "answer"):
        answer = found.inner.rpartition("<answer>")[2].strip()  # one that was begun twice begins with the last opening
    return answer
