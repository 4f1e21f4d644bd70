"""The critic's own optimizer, for engines that take only the policy's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import os

OPTIMIZER_FILE = "optimizer.pt"


class FollowingOptimizer:
    """
    An optimizer that follows the schedule of another one.

    At every step its learning rates are its own initial ones times the fraction that the other's schedule is at, as if its
    parameters were a group of the other. So no schedule has to be saved.

    Args:
        optimizer ([`~torch.optim.Optimizer`]):
            An optimizer of the critic's parameters at their initial learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.initial = [group["lr"] for group in optimizer.param_groups]

    def step(self, leader: Any) -> None:
        """
        Step at the fraction of the initial learning rate that `leader` is at.

        Args:
            leader ([`~torch.optim.Optimizer`]):
                An optimizer with a schedule. If its initial learning rate is 0, its schedule counts as constant.
        """
        group = leader.param_groups[0]
        initial = group.get("initial_lr", group["lr"])
        fraction = float(group["lr"]) / float(initial) if initial else 1.0
        for own, rate in zip(self.optimizer.param_groups, self.initial, strict=True):
            own["lr"] = rate * fraction
        self.optimizer.step()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the state of the optimizer into a directory."""
        torch.save(self.optimizer.state_dict(), Path(directory) / OPTIMIZER_FILE)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read a state that [`~FollowingOptimizer.save`] wrote."""
        self.optimizer.load_state_dict(torch.load(Path(directory) / OPTIMIZER_FILE, weights_only=True))
