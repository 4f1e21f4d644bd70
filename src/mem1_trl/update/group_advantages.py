"""Credit of turns without a critic: each is compared with the turns of other episodes of its group."""

from __future__ import annotations

import hashlib
import math
import statistics
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

GROUP_LEVELS = ("episode", "turn", "state")
"""What is compared within a group of GRPO: episodes, turns of the same number, or also turns that read the same context."""

_EPSILON = 1e-4  # TRL's, so that turns of equal returns divide by it as episodes of equal rewards do


def turn_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    r"""
    Returns of the turns of an episode: $G_k = r_k + \gamma G_{k+1}$, and nothing after the last.

    Args:
        rewards (`Sequence[float]`):
            The reward of each turn.
        gamma (`float`):
            Discount per turn.
    """
    result: list[float] = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + gamma * following
        result.append(following)
    return result[::-1]


def grouped_turn_advantages(
    rewards: Sequence[Sequence[float] | None],
    groups: Sequence[Sequence[Hashable]],
    gamma: float,
    lam: float,
    scale: str = "group",
) -> list[list[float]]:
    r"""
    Advantages of turns, whose values are the mean returns of the turns they are compared with.

    With `G_k` of [`turn_returns`] and `b_k`, its mean over all turns with the same entry in `groups`,

    $$\delta_k = r_k + \gamma b_{k+1} - b_k, \qquad A_k = \delta_k + \gamma \lambda A_{k+1}$$

    which is `G_k - b_k` where `lam` is 1, as in GRPO (arXiv 2402.03300) for one turn. A turn with nothing to be compared with has
    advantage 0.

    Two episodes of one group, the first with turns of rewards 1 and 0, the second with one turn of reward 3, `gamma = lam = 1`:
    returns are 1, 0 | 3, baselines 2, 0 | 2, advantages -1, 0 | 1.

    Args:
        rewards (`Sequence[Sequence[float] | None]`):
            For each episode, the reward of each turn; `None` for an episode that is left out.
        groups (`Sequence[Sequence[Hashable]]`):
            For each episode and turn, what it is compared with: all turns that have the same here.
        gamma (`float`):
            Discount per turn.
        lam (`float`):
            Trace decay per turn: below 1, what comes after the next turn is partly replaced by the mean of that turn's group.
        scale (`str`, *optional*, defaults to `"group"`):
            What advantages are divided by: their root mean square in the same group, with one degree of freedom less (`"group"`), the
            standard deviation of the returns of all turns (`"batch"`), or nothing (`"none"`). Where `lam` is 1 the first is the standard
            deviation of the returns of the group. Below 1 turns of equal returns may have advantages, which that would not bound.

    Returns:
        `list[list[float]]`: For each episode, the advantage of each turn; empty for one that is left out.
    """
    returns = [None if numbers is None else turn_returns(numbers, gamma) for numbers in rewards]
    members: dict[Hashable, list[float]] = {}
    for own, keys in zip(returns, groups, strict=True):
        for value, key in zip(own or (), keys):
            members.setdefault(key, []).append(value)
    # Of equal numbers it is that number and not its neighbour, so that their advantages are 0
    means = {key: values[0] if len(set(values)) == 1 else statistics.fmean(values) for key, values in members.items()}
    everywhere = _deviation([value for values in members.values() for value in values])
    result: list[list[float]] = []
    squares = dict.fromkeys(members, 0.0)
    for numbers, keys in zip(rewards, groups, strict=True):
        advantages: list[float] = []
        running = following = 0.0
        for reward, key in zip(reversed(numbers or ()), reversed(keys)):
            running = reward + gamma * following - means[key] + gamma * lam * running
            following = means[key]
            squares[key] += running**2
            advantages.append(running if len(members[key]) > 1 else 0.0)
        result.append(advantages[::-1])
    if scale == "none":
        return result
    divisors = {
        key: everywhere if scale == "batch" else math.sqrt(total / max(len(members[key]) - 1, 1))
        for key, total in squares.items()
    }
    return [
        [number / (divisors[key] + _EPSILON) for number, key in zip(row, keys)]
        for row, keys in zip(result, groups, strict=True)
    ]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def digest(ids: Sequence[int]) -> bytes:
    """A name of token ids that is the same in all processes; other ids have another."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()
