"""A forward pass with gradient that gives numbers before the loss of its batch is computed, which then goes on from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class KeptPass:
    """
    What one forward pass of the policy gave for a whole batch of `B` rows, with its graph.

    Args:
        episode_ids (`torch.Tensor`):
            Which episode of the generation batch each row is, shape `(B,)`.
        outputs (`tuple`):
            What TRL's `_get_per_token_logps_and_entropies` returned: log-probs and entropies, shape `(B, C)`, and no loss of experts.
        read (`torch.Tensor`, *optional*):
            What was read off the hidden states beside them, shape `(B, C)`.
    """

    episode_ids: torch.Tensor
    outputs: tuple[Any, ...]
    read: torch.Tensor | None

    @property
    def logps(self) -> torch.Tensor:
        """Log-probs without gradient, shape `(B, C)`."""
        return self.outputs[0].detach()

    def of_rows(self, episode_ids: torch.Tensor) -> KeptPass | None:
        """The same in the order in which these rows stand, or `None` if they are not the rows of the pass."""
        if len(episode_ids) != len(self.episode_ids):
            return None
        same = episode_ids[:, None] == self.episode_ids
        if not same.any(1).all():
            return None
        order = same.int().argmax(1)
        outputs = tuple(value[order] if isinstance(value, torch.Tensor) else value for value in self.outputs)
        return KeptPass(episode_ids, outputs, None if self.read is None else self.read[order])
