"""The scores of one episode of an evaluation: its answer, its cost and its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..metrics import trajectory_metrics
from ..protocol.encoding import decode
from ..rewards import are_answers, score_answer
from .result import EvaluatedTask
from .retention import answers_lost, trace_objectives

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..protocol.protocol import Mem1Protocol
    from ..trajectory import Trajectory

Success = Callable[[Mapping[str, Any], "Trajectory"], bool]
"""Returns whether the task was solved; takes a row and its episode."""


def evaluate_episode(
    trajectory: Trajectory,
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    protocol: Mem1Protocol | None = None,
    memory: str = "state",
    *,
    index: int = 0,
    success: Success | None = None,
    rewarded: bool = True,
    answered: bool = True,
) -> EvaluatedTask:
    """
    The scores of an episode, which are also added to its `metrics`.

    Args:
        trajectory ([`Trajectory`]):
            The episode with its reward. With an `error`, every score of success is 0.
        row (`Mapping`):
            Task of the episode. The answer is scored against its `answers`, if it has any.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes contexts.
        protocol ([`Mem1Protocol`], *optional*):
            Protocol whose hints are removed from observations before gold answers are searched for.
        memory (`str`, *optional*, defaults to `"state"`):
            Where the agent remembers, see [`ContextRule.memory`]: gold answers are searched for there.
        index (`int`, *optional*, defaults to `0`):
            Position of the task in the data set.
        success (`Callable[[Mapping, Trajectory], bool]`, *optional*):
            Function that returns whether the task was solved. `None` means that all objectives must be answered exactly.
        rewarded (`bool`, *optional*, defaults to `True`):
            Whether the environment returns rewards, so that a failed episode has reward 0.
        answered (`bool`, *optional*, defaults to `True`):
            Whether an episode ends with an answer. If not, the `answers` of the row are left to the environment.

    Returns:
        [`EvaluatedTask`]
    """
    if trajectory.reward is not None and not math.isfinite(trajectory.reward):
        trajectory.error = trajectory.error or f"get_reward gave {trajectory.reward}"
        trajectory.reward = None
    failed = trajectory.error is not None
    answers = row.get("answers") if answered and are_answers(row.get("answers")) else None
    scores: dict[str, float] = {}
    if answers is not None:
        scores |= score_answer(trajectory.answer, answers)
    if success is not None:
        scores["success"] = 0.0 if failed else _number(success(row, trajectory), index)
    if trajectory.reward is not None or (failed and rewarded):
        scores["reward"] = trajectory.reward or 0.0
    if failed:
        scores = dict.fromkeys(scores, 0.0)
    costs = trajectory_metrics(trajectory) if trajectory.turns else {}
    trajectory.metrics = {**trajectory.metrics, **scores, **costs}
    traces = []
    if answers is not None and not failed:
        contexts = None
        if memory == "context":
            start = len(trajectory.prompt_ids)
            read = str if protocol is None else protocol.syntax(tokenizer).read_result
            contexts = [read(decode(tokenizer, turn.prompt_ids[start:])) for turn in trajectory.turns]
            if any(turn.replaced_turns is not None for turn in trajectory.turns):
                trajectory.metrics["summary_lost_answers"] = float(
                    answers_lost(trajectory, answers, contexts, protocol)
                )
        traces = trace_objectives(trajectory, answers, protocol, contexts)
    return EvaluatedTask(
        index=index,
        task=dict(row),
        prompt_text=decode(tokenizer, trajectory.prompt_ids) if trajectory.turns else _text_of(row["prompt"]),
        trajectory=trajectory,
        scores=dict(trajectory.metrics),
        objectives_detail=tuple(traces),
        error=trajectory.error,
    )


def _number(found: Any, index: int) -> float:
    """What `success` returned, as a score."""
    plain = found.item() if hasattr(found, "item") else found  # a number of NumPy or PyTorch
    if not isinstance(plain, (bool, int, float)) or not math.isfinite(plain):
        raise ValueError(
            f"success must return true, false or a finite number, but gave {found!r:.60} for row {index}."
        )
    return float(plain)


def _text_of(prompt: Any) -> str:
    """The text of a task that was never tokenized."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content", "")) for message in prompt)
