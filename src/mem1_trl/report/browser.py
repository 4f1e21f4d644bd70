"""Data of the page's trajectory browser: a selection of episodes, each turn split into kept, dropped, generated and observed text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..protocol.tagged_text import find_whole
from ..turn_usage import TurnUsage, turn_usage
from .palette import PARTS

if TYPE_CHECKING:
    from ..trajectory import Trajectory
    from .run_directory import Result

KINDS = ("error", "wrong", "partly", "right", "unscored")
"""Outcomes of an episode: it failed; no objective is right; some are; all are, or it is a success; it could not be scored."""

_OPENING = re.compile(r"<([^<>/\s]{1,64})>")
_MOST_TAGS = 16
"""Opening tags that are tried for the state; it stands at the beginning."""


def outcome_of(record: dict[str, Any]) -> str:
    """
    The outcome, one of [`KINDS`], for a record of an evaluation's `.jsonl` file.

    Other files have no scores, so that the metrics of the episode are taken there.
    """
    trajectory: Trajectory | None = record.get("trajectory")
    if record.get("error") or (trajectory is not None and trajectory.error):
        return "error"
    scores = record.get("scores") or ({} if trajectory is None else trajectory.metrics)
    details = record.get("objectives_detail") or []
    success = scores.get("success")  # which the caller may have defined
    if success is not None and success >= 1:
        return "right"
    share = _share_right(scores, len(details))
    if share is None:
        return "unscored" if success is None else "wrong"
    if share >= 1:
        return "right"
    return "partly" if share > 0 or any(detail.get("correct") for detail in details) else "wrong"


def _share_right(scores: Mapping[str, float], objectives: int) -> float | None:
    """Share of the objectives that are right; `None` if there are no references, or their number is not known."""
    exact_match = scores.get("exact_match")
    if exact_match is not None and objectives:
        return exact_match / objectives
    share = scores.get("exact_match_per_objective")
    return 0.0 if share is None and exact_match == 0 else share


def index_of(record: dict[str, Any], position: int) -> Any:
    """Which task an episode is of: in evaluations, in what `collect_trajectories` has written, and elsewhere its place in the file."""
    row = record.get("row")  # in files of single episodes the columns of their task
    return record.get("index", row if isinstance(row, int) else position)


def choose(kinds: Sequence[str], count: int) -> list[int]:
    """
    Positions of the episodes to show. The choice is deterministic.

    The first half are the first episodes, so that agents can be compared on the same tasks. The second half is filled one by one
    with an episode of the outcome that has been chosen least so far, so that rare failures are shown.

    With the outcomes `right, right, right, right, wrong` and `count=2`, the positions are 0 and 4.

    Args:
        kinds (`Sequence[str]`):
            Outcome of every episode.
        count (`int`):
            Number of episodes to show.

    Returns:
        `list[int]`: ascending positions, `min(count, len(kinds))` of them.
    """
    count = min(count, len(kinds))
    chosen = list(range((count + 1) // 2))
    waiting = {kind: [i for i, k in enumerate(kinds) if k == kind and i >= len(chosen)] for kind in KINDS}
    while len(chosen) < count:
        shown = {kind: sum(kinds[i] == kind for i in chosen) for kind in KINDS if waiting[kind]}
        rarest = min(shown, key=lambda kind: (shown[kind], KINDS.index(kind)))
        chosen.append(waiting[rarest].pop(0))
    return sorted(chosen)


def completion_parts(text: str, state: str | None, action: str | None, action_input: str | None) -> list[list[str]]:
    """
    The `["state", ..]`, `["action", ..]` and `["text", ..]` pieces of a completion, which yield `text` when joined.

    Args:
        text (`str`):
            The completion.
        state, action, action_input (`str`, *optional*):
            As in [`~mem1_trl.Turn`].
    """
    marks: list[tuple[int, int, str]] = []
    if state is not None:
        names = dict.fromkeys(match[1] for match in islice(_OPENING.finditer(text), _MOST_TAGS))
        pieces = (find_whole(text, name, state) for name in names)
        first = min((piece for piece in pieces if piece is not None), key=lambda piece: piece.begin, default=None)
        if first is not None:
            marks.append((first.begin, first.end, "state"))
    if action is not None:
        called = find_whole(text, action, action_input or "", marks[0][1] if marks else 0)
        if called is not None:
            marks.append((called.begin, called.end, "action"))
    parts, end = [], 0
    for start, stop, kind in marks:
        if start > end:
            parts.append(["text", text[end:start]])
        parts.append([kind, text[start:stop]])
        end = stop
    if end < len(text):
        parts.append(["text", text[end:]])
    return parts


def _episode(record: dict[str, Any], kind: str, position: int) -> dict[str, Any]:
    """One episode in the format of the page's script."""
    task = record.get("task") or {}
    questions = task.get("questions")
    if not isinstance(questions, (list, tuple)):  # of an environment of one's own, where the name means something else
        questions = None
    trajectory: Trajectory | None = record.get("trajectory")
    shown: dict[str, Any] = {
        "index": index_of(record, position),
        "kind": kind,
        "title": "; ".join(map(str, questions)) if questions else _task_text(task.get("prompt")),
        "prompt": record.get("prompt_text") or _task_text(task.get("prompt")),
        "error": record.get("error"),
        "scores": {name: value for name, value in (record.get("scores") or {}).items() if _is_number(value)},
        "objectives": [
            _objective(detail, number, questions)
            for number, detail in enumerate(record.get("objectives_detail") or [])
        ],
        "answer": None,
        "stop": None,
        "turns": [],
    }
    if trajectory is None:
        return shown
    shown["answer"] = trajectory.answer
    shown["stop"] = str(trajectory.stop_reason)
    worths = record.get("memory_values") or [None] * len(trajectory.turns)
    for turn, usage, worth in zip(trajectory.turns, turn_usage(trajectory), worths):
        shown["turns"].append(
            {
                "context": {part: getattr(usage, part) for part in PARTS if part != "generated"},
                "new": [usage.new_state, usage.new_action],
                "kept": list(usage.kept),
                "dropped": list(usage.dropped),
                "droppedTokens": usage.dropped_tokens,
                "written": completion_parts(turn.text, turn.state, turn.action, turn.action_input),
                "worth": worth,
                "observation": turn.observation,
                "observationTokens": turn.observation_tokens,
            }
        )
    return shown


def _objective(detail: dict[str, Any], number: int, questions: Sequence[Any] | None) -> dict[str, Any]:
    gold = detail.get("gold") or []
    question = detail.get("question") or (questions[number] if questions and number < len(questions) else None)
    return {
        "question": None if question is None else str(question),
        "gold": [str(alias) for alias in ([gold] if isinstance(gold, str) else gold)],
        "given": detail.get("given"),
        "outcome": detail.get("outcome"),
        "seen": detail.get("first_seen_turn"),
        "kept": detail.get("kept") or [],
    }


def _task_text(prompt: Any) -> str:
    """A prompt, which is a text or a list of messages, as text."""
    if isinstance(prompt, list):
        return "\n".join(str(message.get("content", "")) for message in prompt if isinstance(message, dict))
    return "" if prompt is None else str(prompt)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def browse(result: Result, count: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """
    The episodes of one evaluation to show, and the mean token usage of all its episodes.

    Args:
        result ([`Result`][mem1_trl.report.run_directory.Result]):
            The evaluation.
        count (`int`):
            Number of episodes to show.

    Returns:
        `tuple`: the data of the page's script, with `total`, `kinds` (outcome -> number of episodes in the file) and `episodes`;
        and the mean token usage of every turn, as returned by [`mean_usage`].
    """
    kinds: list[str] = []
    usages = []
    for record in result.episodes():
        kinds.append(outcome_of(record))
        if record.get("trajectory") is not None:
            usages.append(turn_usage(record["trajectory"]))
    wanted = set(choose(kinds, count))
    episodes = [
        _episode(record, kinds[position], position)
        for position, record in enumerate(result.episodes())
        if position in wanted
    ]
    data = {
        "agent": result.agent,
        "objectives": result.objectives,
        "total": len(kinds),
        "kinds": {kind: kinds.count(kind) for kind in KINDS if kind in kinds},
        "episodes": episodes,
    }
    return data, mean_usage(usages)


def mean_usage(usages: Iterable[Sequence[TurnUsage]]) -> list[dict[str, float]]:
    """
    Mean tokens of every part, turn by turn, over the episodes that reached the turn.

    Args:
        usages (`Iterable[Sequence[TurnUsage]]`):
            One sequence per episode.

    Returns:
        `list[dict[str, float]]`: one per turn, with the keys of `PARTS` and `episodes`.
    """
    turns: list[dict[str, float]] = []
    for usage in usages:
        for number, turn in enumerate(usage):
            if number == len(turns):
                turns.append({**dict.fromkeys(PARTS, 0.0), "episodes": 0.0})
            for part in PARTS:
                turns[number][part] += turn.new_state + turn.new_action if part == "generated" else getattr(turn, part)
            turns[number]["episodes"] += 1
    return [
        {**{part: turn[part] / turn["episodes"] for part in PARTS}, "episodes": turn["episodes"]} for turn in turns
    ]
