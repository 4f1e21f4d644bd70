"""Random numbers that belong to an episode, so that what it samples does not depend on who is generated with it, or when."""

from __future__ import annotations

import numpy as np
import torch


def episode_seeds(count: int) -> list[int]:
    """A seed for each of `count` episodes, from PyTorch's generator of the CPU, which `set_seed` sets and checkpoints keep."""
    return torch.randint(2**62, (count,)).tolist()


def seed_of_episode(seed: int, row: int, sample: int) -> int:
    """The seed of an episode of a run that has a seed of its own: the same whenever, and after whatever else, it is played."""
    (found,) = np.random.SeedSequence([seed, row, sample]).generate_state(1, np.uint64)
    return int(found) % 2**62


def uniform_draws(seed: int, turn: int, count: int) -> np.ndarray:
    """
    The numbers that choose the tokens of one turn: token `i` is chosen by number `i`.

    Args:
        seed (`int`):
            Of the episode.
        turn (`int`):
            Number of turns before this one.
        count (`int`):
            Maximum number of tokens of a turn.

    Returns:
        `numpy.ndarray`: `count` numbers in `[0, 1)`, of shape `(count,)` and type float64.
    """
    return np.random.Generator(np.random.Philox(key=[seed, turn])).random(count)
