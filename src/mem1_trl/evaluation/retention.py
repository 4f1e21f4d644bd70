"""
Information loss: what an agent saw and then forgot. The risk of a rewritten context that MEM1 (arXiv 2506.15841) names itself.

A gold answer is *seen* in the first turn whose observation holds it, and *kept* in a later turn if that turn's memory holds
it. The memory of a turn is the state it wrote; for agents that carry past text along (full or truncated history, an external
store), it is also what the turn read behind the task prompt, see `contexts` of [`trace_objectives`].

What becomes of an objective:

| outcome | the answer is | the gold answer was |
|---|---|---|
| `correct` | right | seen or not |
| `never_found` | wrong or missing | in no observation |
| `forgotten` | wrong or missing | seen, but not in the memory of the last turn |
| `misreported` | wrong or missing | seen, and in the memory of the last turn to the end |
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..rewards import Answers, exact_match, normalize_answer, split_answers

if TYPE_CHECKING:
    from ..protocol.protocol import Mem1Protocol
    from ..trajectory import Trajectory

OUTCOMES = ("never_found", "forgotten", "misreported", "correct")
"""What can become of an objective, see the top of this module."""

_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)|(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the"))
# Scripts that write words without spaces, or glue particles to them
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)


@dataclass(frozen=True, slots=True)
class ObjectiveTrace:
    """
    What became of one objective of an episode. Turns are counted from 1.

    Attributes:
        gold (`tuple[str, ...]`):
            Accepted answers.
        given (`str` or `None`):
            What the agent answered to this objective; `None` if it gave no answer, or not one for each objective.
        correct (`bool`):
            Whether `given` matches one of `gold` exactly, after normalisation.
        first_seen_turn (`int` or `None`):
            The first turn whose observation held a gold answer, or `None`.
        kept (`tuple[bool, ...]`):
            For each turn after that one, whether its memory held a gold answer.
        outcome (`str`):
            One of `OUTCOMES`.
    """

    gold: tuple[str, ...]
    given: str | None
    correct: bool
    first_seen_turn: int | None
    kept: tuple[bool, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class RetentionPoint:
    """
    One point of a retention curve.

    Attributes:
        age (`int`):
            Turns since the answer was first seen; 1 is the turn that read it.
        kept (`float`):
            Share of the answers seen that many turns ago that were in memory.
        count (`int`):
            Number of them.
    """

    age: int
    kept: float
    count: int


def contains_answer(text: str | None, answers: Iterable[str]) -> bool:
    """
    Whether one of `answers` stands in `text`, as whole words.

    Both are normalised as the paper normalises answers: lower case, no punctuation, no articles. Punctuation inside `text`
    may also part words ("France=Paris"), but not a number ("3.5", "1,000").

    Args:
        text (`str` or `None`):
            A state, an observation or any other text. `None` holds nothing.
        answers (`Iterable[str]`):
            Accepted answers. One that normalises to nothing ("A", "+") is looked for as it is written.

    Returns:
        `bool`

    Example:

    ```python
    >>> contains_answer("atomic number: 13.", ["3"]), contains_answer("it has 3 moons", ["3"])
    (False, True)
    >>> contains_answer("found so far: capital=The Hague;", ["Hague"])
    True
    ```
    """
    if not text:
        return False
    text = unicodedata.normalize("NFC", text)
    glued, parted = _padded(normalize_answer(text)), _padded(_parted(text))
    return any(_holds(text, glued, parted, unicodedata.normalize("NFC", answer)) for answer in answers)


def trace_objectives(
    trajectory: Trajectory,
    answers: Answers,
    protocol: Mem1Protocol | None = None,
    contexts: Sequence[str] | None = None,
) -> list[ObjectiveTrace]:
    """
    Follow the gold answer of every objective through an episode: seen, kept, reported.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        answers (`Sequence` of `str` or of `Sequence[str]`):
            Per objective the accepted answer, or the list of its aliases.
        protocol ([`Mem1Protocol`], *optional*):
            Its hints are taken out of the observations first: "You have 3 turns left" does not answer anything.
        contexts (`Sequence[str]`, *optional*):
            For each turn the text it read behind the task prompt. It then counts as memory beside the state the turn wrote.
            `None` looks at states alone, which is the memory of a MEM1 agent.

    Returns:
        `list[ObjectiveTrace]`: one for each objective.
    """
    turns = trajectory.turns
    if contexts is not None and len(contexts) != len(turns):
        raise ValueError(f"There are {len(turns)} turns and {len(contexts)} contexts: pass one for each turn.")
    golds = [(aliases,) if isinstance(aliases, str) else tuple(aliases) for aliases in answers]
    given = None if trajectory.answer is None else split_answers(trajectory.answer, len(golds))
    observations = [without_hint(turn.observation, protocol) for turn in turns]
    memories = [turn.state or "" for turn in turns]
    if contexts is not None:
        memories = [f"{without_hint(read, protocol)}\n{state}" for read, state in zip(contexts, memories)]
    traces = []
    for index, gold in enumerate(golds):
        answer = None if given is None else given[index]
        correct = answer is not None and exact_match(answer, [gold]) == 1.0
        seen = next((i for i, text in enumerate(observations, 1) if contains_answer(text, gold)), None)
        kept = () if seen is None else tuple(contains_answer(memory, gold) for memory in memories[seen:])
        if correct:
            outcome = "correct"
        elif seen is None:
            outcome = "never_found"
        else:  # seen in the very last turn, there was no turn to forget it in
            outcome = "forgotten" if kept and not kept[-1] else "misreported"
        traces.append(ObjectiveTrace(gold, answer, correct, seen, kept, outcome))
    return traces


def retention_curve(traces: Iterable[ObjectiveTrace]) -> list[RetentionPoint]:
    """
    Share of seen answers still in memory, by the number of turns since they were seen.

    An answer seen in turn 1 of an episode of 3 turns and kept in turn 2 only counts as kept at age 1 and lost at age 2.

    Args:
        traces (`Iterable[ObjectiveTrace]`):
            Objectives of any number of episodes.

    Returns:
        `list[RetentionPoint]`: for the ages 1, 2, ... that occur.
    """
    by_age: dict[int, list[bool]] = {}
    for trace in traces:
        for age, kept in enumerate(trace.kept, start=1):
            by_age.setdefault(age, []).append(kept)
    return [RetentionPoint(age, sum(kept) / len(kept), len(kept)) for age, kept in sorted(by_age.items())]


def count_outcomes(traces: Iterable[ObjectiveTrace]) -> dict[str, int]:
    """Number of objectives with each of `OUTCOMES`."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for trace in traces:
        counts[trace.outcome] += 1
    return counts


def without_hint(text: str | None, protocol: Mem1Protocol | None) -> str:
    """`text` without the hints about remaining turns that the protocol puts into observations."""
    if text is None or protocol is None:
        return text or ""
    for template in (protocol.hint_template, protocol.last_hint_template, protocol.over_hint_template):
        if template.strip():
            text = re.sub(re.escape(template).replace(re.escape("{n}"), r"-?\d+"), " ", text)
    return text


def _holds(text: str, glued: str, parted: str, answer: str) -> bool:
    words = normalize_answer(answer)
    if not words:
        raw = re.escape(answer.strip())
        return bool(raw) and re.search(rf"(?<!\w){raw}(?!\w)", text) is not None
    alike, apart = (words, _parted(answer)) if _UNSPACED.search(words) else (_padded(words), _padded(_parted(answer)))
    return alike in glued or (bool(apart.strip()) and apart in parted)


def _parted(text: str) -> str:
    """Lower-case words of `text`, parted by spaces and punctuation alike, numbers whole."""
    words = _WORD.findall(_DECIMAL_POINT.sub("", text.lower()))
    return " ".join(word for word in words if word not in _ARTICLES)


def _padded(words: str) -> str:
    return f" {words} "
