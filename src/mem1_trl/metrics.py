"""
What an episode cost: context, compute, turns, state. Source: MEM1, arXiv 2506.15841, section on metrics.

Keys of [`trajectory_metrics`], all `float`:

| key | meaning |
|---|---|
| `turns` | calls of the model |
| `generated_tokens` | tokens sampled over all turns |
| `peak_tokens` | largest context plus output of any turn, the task prompt included |
| `peak_tokens_without_prompt` | the same without the task prompt, as the paper counts |
| `dependency_length` | attention pairs computed for the generated tokens |
| `state_tokens` | tokens of internal state per turn, averaged over the turns |
| `valid_action_rate` | share of turns that held a complete action |
"""

from __future__ import annotations

from .trajectory import Trajectory


def peak_tokens(trajectory: Trajectory, include_prompt: bool = True) -> int:
    """
    Peak token usage: the largest `len(prompt_ids) + len(completion_ids)` over the turns.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        include_prompt (`bool`, *optional*, defaults to `True`):
            Whether the task prompt (the context of the first turn) counts. The paper leaves it out.

    Returns:
        `int`: a number of tokens.
    """
    peak = max(len(turn.prompt_ids) + len(turn.completion_ids) for turn in trajectory.turns)
    return peak if include_prompt else peak - len(trajectory.prompt_ids)


def dependency_length(trajectory: Trajectory) -> float:
    """
    Dependency length: `sum over turns of (C + l / 2) * l`, with `C` context tokens and `l` generated ones.

    It counts the pairs of a generated token and a token it attends to, so it grows with the compute of the episode.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `float`: a number of token pairs.
    """
    lengths = [(len(turn.prompt_ids), len(turn.completion_ids)) for turn in trajectory.turns]
    return sum((context + generated / 2) * generated for context, generated in lengths)


def turns(trajectory: Trajectory) -> int:
    """Number of calls of the model."""
    return len(trajectory.turns)


def generated_tokens(trajectory: Trajectory) -> int:
    """Number of tokens the model sampled over all turns, in thoughts, actions and answers."""
    return trajectory.num_generated_tokens


def state_tokens(trajectory: Trajectory) -> float:
    """Tokens of internal state per turn, averaged over all turns (a turn without state counts as 0)."""
    return sum(turn.state_tokens for turn in trajectory.turns) / len(trajectory.turns)


def valid_action_rate(trajectory: Trajectory) -> float:
    """Share of turns that held a complete action, between 0 and 1."""
    return sum(turn.action is not None for turn in trajectory.turns) / len(trajectory.turns)


def trajectory_metrics(trajectory: Trajectory) -> dict[str, float]:
    """
    All numbers of this module about one episode.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `dict[str, float]`: always the same keys, listed at the top of this module.
    """
    return {
        "turns": float(turns(trajectory)),
        "generated_tokens": float(generated_tokens(trajectory)),
        "peak_tokens": float(peak_tokens(trajectory)),
        "peak_tokens_without_prompt": float(peak_tokens(trajectory, include_prompt=False)),
        "dependency_length": dependency_length(trajectory),
        "state_tokens": state_tokens(trajectory),
        "valid_action_rate": valid_action_rate(trajectory),
    }
