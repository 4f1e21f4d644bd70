"""What GRPO learns from the turns of a batch: each is compared with turns of the other episodes of its group."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch

from ..update.group_advantages import digest, grouped_turn_advantages

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from ..configs import Mem1GRPOConfig
    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer
    from .trl_seam.batch import TrajectoryTrainer

_Record = tuple["list[float] | None", "list[bytes]", "list[str | None]"]
"""Of an episode: the reward of each turn (`None` if it is left out), the context that it read, and the observation before it."""


def credit_turns(
    trainer: Mem1Trainer, batch: dict[str, Any], trajectories: Sequence[Trajectory], rewards: torch.Tensor
) -> None:
    """
    Put advantages of turns, `(B, C)`, in the place of those of episodes in TRL's batch. All processes do it together.

    Args:
        trainer ([`Mem1Trainer`]):
            Its `args` say what is compared.
        batch (`dict`):
            TRL's batch with `advantages` of shape `(B,)`.
        trajectories (`Sequence[Trajectory]`):
            B episodes of this process.
        rewards (`torch.Tensor`):
            Shape `(B,)`; NaN where nothing scored an episode.
    """
    args = trainer.args
    own: list[_Record] = [
        _record(one, one.turn_rewards, total) for one, total in zip(trajectories, rewards.tolist(), strict=True)
    ]
    records: list[_Record] = trainer.gather_records(own)
    size = (trainer.num_generations if trainer.mode == "train" else trainer.num_generations_eval) or 1
    by_state = args.advantage_level == "state"
    groups, found = _advantages(args, records, size)
    counted = [one if numbers is not None else [] for (numbers, _, _), one in zip(records, groups)]
    sizes = Counter(key for keys in counted for key in keys)
    total = max(sum(sizes.values()), 1)
    trainer.log_metric("turn_groups/alone", sum(count == 1 for count in sizes.values()) / total)
    if by_state:
        trainer.log_metric("turn_groups/other_context", _other_context(records, size) / total)

    mask = trainer.sampled_mask(batch)
    advantages = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    first = trainer.accelerator.process_index * len(own)
    for row, of_turns in enumerate(found[first : first + len(own)]):
        if of_turns:
            numbers_of_tokens = batch["turn_ids"][row].clamp(max=len(of_turns) - 1)
            advantages[row] = torch.tensor(of_turns, device=mask.device)[numbers_of_tokens]
    if by_state:
        advantages = batch["advantages"][:, None] + args.state_group_weight * advantages
    batch["advantages"] = advantages * mask
    trainer.show_advantages(batch["advantages"].sum(1) / mask.sum(1).clamp(min=1))


def groups_without_credit(
    trainer: TrajectoryTrainer,
    trajectories: Sequence[Trajectory],
    turn_rewards: Sequence[list[float] | None],
    totals: list[float],
) -> list[int]:
    """
    Groups of a training batch in which every episode is scored and no turn has an advantage of its own, ascending. All processes find them
    together.

    Args:
        trainer ([`TrajectoryTrainer`]):
            Its `args` say what is compared.
        trajectories (`Sequence[Trajectory]`):
            B episodes of this process.
        turn_rewards (`Sequence[list[float]]`):
            The weighted rewards of the turns of each, `None` for one that has none.
        totals (`list[float]`):
            The reward of each, those of its turns included; NaN where nothing scored it.
    """
    own: list[_Record] = [_record(*one) for one in zip(trajectories, turn_rewards, totals, strict=True)]
    records: list[_Record] = trainer.gather_records(own)
    size = trainer.num_generations or 1
    _, found = _advantages(trainer.args, records, size)
    others = {
        index // size
        for index, (record, of_turns) in enumerate(zip(records, found))
        if record[0] is None or any(of_turns)
    }
    return [group for group in range(len(records) // size) if group not in others]


def _advantages(
    args: Mem1GRPOConfig, records: Sequence[_Record], size: int
) -> tuple[list[list[Hashable]], list[list[float]]]:
    """What each turn of all episodes is compared with, and what advantage it has from that."""
    by_state = args.advantage_level == "state"
    groups: list[list[Hashable]] = [
        [(index // size, number, *((context,) if by_state else ())) for number, context in enumerate(contexts)]
        for index, (_, contexts, _) in enumerate(records)
    ]
    numbers = [of_episode for of_episode, _, _ in records]
    return groups, grouped_turn_advantages(numbers, groups, args.gamma, args.lam, str(args.scale_rewards))


def _record(trajectory: Trajectory, turn_rewards: Sequence[float] | None, total: float) -> _Record:
    turns = trajectory.turns
    contexts = [digest(turn.prompt_ids) for turn in turns]
    before = [None, *(turn.observation for turn in turns)][: len(turns)]
    if total != total or not turns:
        return None, contexts, before
    numbers = list(turn_rewards or [0.0] * len(turns))
    numbers[-1] += total - sum(numbers)
    return numbers, contexts, before


def _other_context(records: Sequence[_Record], size: int) -> int:
    """
    Number of turns that are not compared with one after the same observation, because they read another context.

    Grouped by what the environment said last (as in GiGPO, arXiv 2505.10978) they would share a baseline, though what they may
    still get depends on what they remember: the bias that HGPO (arXiv 2602.22817) describes.
    """
    contexts: dict[Hashable, Counter[bytes]] = defaultdict(Counter)
    for index, (numbers, own, before) in enumerate(records):
        for turn, (context, observation) in enumerate(zip(own, before)):
            if numbers is not None and observation is not None:
                contexts[index // size, turn, observation][context] += 1
    return sum(counts.total() for counts in contexts.values() if len(counts) > 1)
