"""The critic's own optimizer, for engines that take only the policy's parameters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..sharded_tensors import cut_as, whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

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

    def save(self, directory: str | os.PathLike[str], write: bool = True) -> None:
        """
        Write the state of the optimizer into a directory, whole.

        Args:
            directory (`str` or `os.PathLike`):
                The directory.
            write (`bool`, *optional*, defaults to `True`):
                Whether this process writes. If parameters are split over processes all call this method, and one writes.
        """
        state = self.optimizer.state_dict()
        state["state"] = {index: _each(numbers, whole) for index, numbers in state["state"].items()}
        if write:
            torch.save(state, Path(directory) / OPTIMIZER_FILE)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read a state that [`~FollowingOptimizer.save`] wrote; if parameters are split over processes, in all of them together."""
        state = torch.load(Path(directory) / OPTIMIZER_FILE, map_location="cpu", weights_only=True, mmap=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, numbers in state["state"].items():
            state["state"][index] = _each(numbers, partial(_cut_if_like, parameters[index]))
        self.optimizer.load_state_dict(state)


def _cut_if_like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A moment, split as its parameter is; a number of steps as it is."""
    return cut_as(value, parameter) if value.shape == parameter.shape else value


def _each(numbers: dict[str, Any], function: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """What an optimizer remembers of one parameter, with a function applied to its tensors."""
    return {name: function(value) if isinstance(value, torch.Tensor) else value for name, value in numbers.items()}
