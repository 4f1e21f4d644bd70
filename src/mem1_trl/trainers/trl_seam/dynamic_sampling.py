"""
Groups whose rewards are all equal are played again (dynamic sampling, DAPO, arXiv 2503.14476), before TRL builds its batch.

A group of GRPO teaches by the differences in it; one whose episodes all succeed, or all fail, has advantages of 0. Such groups are played again,
up to a limit, each in its own place, so that the batch keeps its size and its tasks. Where turns are compared, those are meant in which no turn
has an advantage.

Rewards are asked for by TRL's `_calculate_rewards`, which gathers those of all processes: so a process that has fewer episodes to play
again fills up with ones that count as failed, which no reward function is asked about. While functions are asked about episodes that are
played again, what they log goes into other dictionaries (`_pending_metrics`, `_pending_extra_logs`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import nanstd

from ...trajectory import StopReason, Trajectory
from ..group_credit import groups_without_credit
from .helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..reward_gate import RewardGate
    from .batch import TrajectoryTrainer
    from .generation_batch import GenerationBatch


@dataclass(slots=True)
class Scores:
    """
    What reward functions gave for the episodes of this process.

    Attributes:
        per_function (`torch.Tensor`):
            Shape `(B, F)`; NaN for `None`.
        gate ([`RewardGate`]):
            Knows problems, and rewards of turns.
    """

    per_function: torch.Tensor
    gate: RewardGate


def equal_groups(rewards: Sequence[Any], size: int) -> list[int]:
    """
    Groups all of whose episodes have the same reward.

    Args:
        rewards (`Sequence`):
            The reward of each episode, or what else tells episodes apart; `None` for one without reward, whose group does not count.
        size (`int`):
            Number of episodes of a group.

    Returns:
        `list[int]`: Indices of groups, ascending.
    """
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    return [index for index, group in enumerate(groups) if None not in group and all(one == group[0] for one in group)]


def play_equal_groups_again(trainer: TrajectoryTrainer, current: GenerationBatch, prompts: list[Any]) -> None:
    """
    Score the episodes of a batch, and play those of groups of equal rewards again until there is none, or the limit is reached.

    All processes do it together. `current` and the episodes of the trainer are changed in place; what was played first stays in
    `current.first_play`, for the statistics.

    Args:
        trainer ([`TrajectoryTrainer`]):
            The trainer.
        current ([`GenerationBatch`]):
            The batch, whose episodes have been played.
        prompts (`list`):
            The prompts of its rows.
    """
    size = trainer.num_generations or 1
    scores = current.scores = trainer.ask_rewards(current.rows, prompts, current.trajectories)
    first = trainer.accelerator.gather(_without_failed(current, scores))
    current.first_play = first, list(current.trajectories)
    equal = _without_credit(trainer, current, scores)
    begun, rounds = equal, 0
    while equal and rounds < trainer.args.dynamic_sampling_max_rounds:
        rounds += 1
        _play_again(trainer, current, {size * group + place for group in equal for place in range(size)})
        equal = _without_credit(trainer, current, scores)
    groups = len(first) // size
    trainer.log_metric("dynamic_sampling/groups_played_again", len(begun) / groups)
    trainer.log_metric("dynamic_sampling/groups_left_equal", len(equal) / groups)
    trainer.log_metric("dynamic_sampling/rounds", rounds)


def note_first_plays(trainer: TrajectoryTrainer, per_function: torch.Tensor) -> None:
    """
    Replace TRL's metrics of rewards, which are of the batch that is trained, by those of what was played first.

    The choice of groups would bias them: they would no longer be the mean of what the policy gets.

    Args:
        trainer ([`TrajectoryTrainer`]):
            Whose metrics TRL has just logged.
        per_function (`torch.Tensor`):
            Shape `(B, F)`, of all processes; NaN where nothing was scored.
    """
    rewards = trainer.total_rewards(per_function)
    groups = nanstd(rewards.view(-1, trainer.num_generations or 1), dim=1)
    found = {
        "reward": rewards.nanmean(),
        "reward_std": nanstd(rewards),
        "frac_reward_zero_std": torch.isclose(groups, torch.zeros_like(groups)).float().mean(),
    }
    for column, name in enumerate(trainer.reward_func_names):
        found[f"rewards/{name}/mean"] = per_function[:, column].nanmean()
        found[f"rewards/{name}/std"] = nanstd(per_function[:, column])
    for name, value in found.items():
        trainer._metrics["train"][name][-1:] = [value.item()]


def _play_again(trainer: TrajectoryTrainer, current: GenerationBatch, places: set[int]) -> None:
    """Play some episodes, by their places among those of all processes, again, and put them and their scores in these places."""
    count = len(current.rows)
    begin = trainer.accelerator.process_index * count
    own = [index for index in range(count) if begin + index in places]
    most = max(trainer.gather_records([len(own)]))
    before: list[Any] = list(trainer.episodes)
    assert current.scores is not None
    # The metrics of episodes are of those that were played first
    with trainer.metrics_not_kept():
        rows = trainer.prepare_rows([current.dataset_rows[index] for index in own])
        trajectories = trainer.run_episodes(rows)
    after = list(trainer.episodes)
    filling = most - len(own)
    failed = [Trajectory([], stop_reason=StopReason.ERROR, error="It was not played again.") for _ in range(filling)]
    trainer.episodes = [*after, *([before[0]] * filling)]
    asked = [*rows, *([current.rows[0]] * filling)]
    columns: Any = defaultdict(list)
    kept_trajectories, current.trajectories = current.trajectories, [*trajectories, *failed]
    with (
        instance_attribute(trainer, "_pending_extra_logs", columns),
        instance_attribute(trainer, "_pending_metrics", defaultdict(list)),
    ):
        scores = trainer.ask_rewards(asked, [row["prompt"] for row in asked], current.trajectories)
    current.trajectories = kept_trajectories
    for place, index in enumerate(own):
        before[index] = after[place]
        current.trajectories[index] = trajectories[place]
        current.rows[index].update(rows[place])
        current.scores.per_function[index] = scores.per_function[place]
        current.scores.gate.take(index, scores.gate, place)
    for column, values in columns.items():
        kept = trainer._pending_extra_logs[column]
        kept.extend([None] * (count - len(kept)))
        for place, index in enumerate(own):
            kept[index] = values[place]
    trainer.episodes = before


def _without_failed(current: GenerationBatch, scores: Scores) -> torch.Tensor:
    failed = [index in scores.gate.problems or one.error is not None for index, one in enumerate(current.trajectories)]
    rows = torch.tensor(failed, device=scores.per_function.device)
    return scores.per_function.masked_fill(rows[:, None], torch.nan)


def _without_credit(trainer: TrajectoryTrainer, current: GenerationBatch, scores: Scores) -> list[int]:
    """Groups of all processes that would teach nothing: of equal rewards and, where turns are compared, none of which has an advantage."""
    totals = trainer.total_rewards(_without_failed(current, scores)).tolist()
    equal: list[int] = []
    if trainer.args.advantage_level != "turn":
        rewards = trainer.gather_records([None if total != total else total for total in totals])
        equal = equal_groups(rewards, trainer.num_generations or 1)
    if trainer.args.advantage_level == "episode":
        return equal
    weights = trainer.reward_weights.tolist()
    turns = [scores.gate.weighted_turns(index, weights) for index in range(len(totals))]
    found = groups_without_credit(trainer, current.trajectories, turns, totals)
    return found if trainer.args.advantage_level == "turn" else [group for group in found if group in equal]
