"""
Information loss: answers that an agent saw and then forgot, a risk of rewritten contexts that MEM1 (arXiv 2506.15841) mentions.

A gold answer is *seen* in the first turn whose observation contains it, and *kept* in a later turn if that turn's memory
contains it. The memory of a turn is the state it wrote; for agents that carry past text along (full or truncated history, an
external store), it is also the text that the turn read after the task prompt, see `contexts` of [`trace_objectives`].

Outcomes of an objective:

| outcome | the answer is | the gold answer was |
|---|---|---|
| `correct` | right | seen or not |
| `never_found` | wrong or missing | in no observation |
| `forgotten` | wrong or missing | seen, but not in the memory of the last turn |
| `misreported` | wrong or missing | seen, and in the memory of the last turn to the end |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ..protocol.protocol import CALLS_LEFT_OUT
from ..rewards import Answers, contains_answer, exact_match, split_answers

if TYPE_CHECKING:
    from ..protocol.protocol import Mem1Protocol
    from ..trajectory import Trajectory

OUTCOMES = ("never_found", "forgotten", "misreported", "correct")
"""Outcomes of an objective, see the top of this module."""


@dataclass(frozen=True, slots=True)
class ObjectiveTrace:
    """
    The outcome of one objective of an episode. Turns are counted from 1.

    Attributes:
        gold (`tuple[str, ...]`):
            Accepted answers.
        given (`str` or `None`):
            Answer of the agent to this objective; `None` if there was no answer, or not one for each objective.
        correct (`bool`):
            Whether `given` matches one of `gold` exactly, after normalisation.
        first_seen_turn (`int` or `None`):
            The first turn whose observation contained a gold answer, or `None`.
        kept (`tuple[bool, ...]`):
            For each turn after that one, whether its memory contained a gold answer.
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
            Number of turns since the answer was first seen; 1 is the turn that read it.
        kept (`float`):
            Share of the answers seen that many turns ago that were in memory.
        count (`int`):
            Number of answers seen that many turns ago.
    """

    age: int
    kept: float
    count: int


def trace_objectives(
    trajectory: Trajectory,
    answers: Answers,
    protocol: Mem1Protocol | None = None,
    contexts: Sequence[str] | None = None,
) -> list[ObjectiveTrace]:
    """
    For every objective, when its gold answer was seen, kept in memory and reported in an episode.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        answers (`Sequence` of `str` or of `Sequence[str]`):
            For each objective, the accepted answer or the list of its aliases.
        protocol ([`Mem1Protocol`], *optional*):
            Protocol whose hints are removed from the observations first: "You have 3 turns left" is not an answer.
        contexts (`Sequence[str]`, *optional*):
            For each turn, the text it read after the task prompt. It counts as memory in addition to the state that the turn
            wrote. `None` uses the states alone, which are the memory of a MEM1 agent.

    Returns:
        `list[ObjectiveTrace]`: one for each objective.
    """
    turns = trajectory.turns
    if contexts is not None and len(contexts) != len(turns):
        raise ValueError(
            f"contexts must have one entry per turn, got {len(turns)} turns and {len(contexts)} contexts."
        )
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
        else:  # an answer seen in the last turn cannot be forgotten, since no turn follows
            outcome = "forgotten" if kept and not kept[-1] else "misreported"
        traces.append(ObjectiveTrace(gold, answer, correct, seen, kept, outcome))
    return traces


def answers_lost(
    trajectory: Trajectory, answers: Answers, contexts: Sequence[str], protocol: Mem1Protocol | None = None
) -> int:
    """
    How many gold answers summaries have lost: those in the context of a turn whose summary replaced others, but not in the next one.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        answers (`Answers`):
            Accepted answers of each objective.
        contexts (`Sequence[str]`):
            Text of the context of each turn, without the task prompt.
        protocol ([`Mem1Protocol`], *optional*):
            Protocol whose hints are not searched.
    """
    golds = [(aliases,) if isinstance(aliases, str) else tuple(aliases) for aliases in answers]
    texts = [without_hint(text, protocol) for text in contexts]
    return sum(
        contains_answer(before, gold) and not contains_answer(after, gold)
        for turn, before, after in zip(trajectory.turns, texts, texts[1:])
        if turn.replaced_turns is not None
        for gold in golds
    )


def retention_curve(traces: Iterable[ObjectiveTrace]) -> list[RetentionPoint]:
    """
    Share of the seen answers that are still in memory, by the number of turns since they were seen.

    An answer that is seen in turn 1 of an episode of 3 turns and kept only in turn 2 counts as kept at age 1 and lost at age 2.

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
    """`text` without what the package itself puts into observations: the protocol's hints about remaining turns, and the note about calls that were not run."""
    if text is None or protocol is None:
        return text or ""
    for template in (protocol.hint_template, protocol.last_hint_template, protocol.over_hint_template, CALLS_LEFT_OUT):
        if template.strip():
            text = _hint(template).sub(" ", text)
    return text


@cache
def _hint(template: str) -> re.Pattern[str]:
    # A number is read from its first digit to its last, or not at all: else each digit of a long one is a place to begin
    return re.compile(re.sub(r"\\\{\w+\\\}", lambda _: r"(?<!\d)-?\d++", re.escape(template)))
