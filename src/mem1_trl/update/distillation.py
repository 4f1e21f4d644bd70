r"""
On-policy distillation: a teacher scores what the student sampled, under contexts of its own.

Turn `k` of a student that rewrites its context was sampled as `c_k` after `P h_{k-1}` (task prompt, last turn and its observation). A teacher
that needs no memory reads `P h_1 h_2 ... h_{k-1}` and scores the same tokens `c_k`. What a token costs is the estimate

$$g_t = \log \pi(c_t) - \log \pi_T(c_t)$$

of the reverse KL divergence, whose mean over what the student samples is the divergence itself.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ..model_traits import longest_pass
from ..trajectory import Trajectory
from .scoring import score_without_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

TEACHER_CONTEXTS = ("full", "same")
"""What a teacher reads before a turn: all turns before it, or what the student read."""


def teacher_logprobs(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    contexts: Sequence[Sequence[Sequence[int]]],
    layout: str = "packed",
    temperature: float = 1.0,
    batch_size: int = 8,
) -> list[list[torch.Tensor | None]]:
    """
    Log-probs of what was sampled in some episodes, by a teacher that reads other contexts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The teacher, a causal language model with the same tokens. It is scored in evaluation mode, without gradient.
        trajectories (`Sequence[Trajectory]`):
            The episodes.
        contexts (`Sequence[Sequence[Sequence[int]]]`):
            For each episode and each of its turns, token ids of what the teacher reads before it.
        layout, temperature, batch_size (*optional*):
            As in [`score_trajectories`].

    Returns:
        `list[list[torch.Tensor | None]]`: For each episode and turn, a float32 tensor with a log-prob in nats for each sampled token;
        `None` where context and completion are longer than the teacher's positions.
    """
    limit = longest_pass(model)
    found: list[list[torch.Tensor | None]] = [[None] * len(one.turns) for one in trajectories]
    asked: list[Trajectory] = []
    places: list[tuple[int, list[int]]] = []
    for index, (trajectory, own) in enumerate(zip(trajectories, contexts, strict=True)):
        turns = {
            number: dataclasses.replace(turn, prompt_ids=tuple(context), logprobs=None)
            for number, (turn, context) in enumerate(zip(trajectory.turns, own, strict=True))
            if limit is None or len(context) + len(turn.completion_ids) <= limit
        }
        if turns:
            asked.append(Trajectory(list(turns.values())))
            places.append((index, list(turns)))
    scored = score_without_training(model, asked, layout, temperature, batch_size)
    for (index, numbers), logprobs in zip(places, scored, strict=True):
        for number, one in zip(numbers, logprobs, strict=True):
            found[index][number] = one
    return found


def on_sampled_tokens(
    logprobs: Sequence[Sequence[torch.Tensor | None]], trajectories: Sequence[Trajectory], sampled: torch.Tensor
) -> torch.Tensor:
    """
    Log-probs of turns in the places of their tokens in rows.

    Args:
        logprobs (`Sequence[Sequence[torch.Tensor | None]]`):
            As [`teacher_logprobs`] returns them, for each of B trajectories; empty for one whose row is left out.
        trajectories (`Sequence[Trajectory]`):
            The B trajectories.
        sampled (`torch.Tensor`):
            Shape `(B, C)`, 1 on the tokens that the model sampled: those of all turns, in their order, whatever the layout; none in a row
            that is left out.

    Returns:
        `torch.Tensor`: Shape `(B, C)`, float32; NaN on sampled tokens that nothing scored, 0 on all that are not sampled.
    """
    result = torch.zeros(sampled.shape, dtype=torch.float32, device=sampled.device).masked_fill(
        sampled.bool(), torch.nan
    )
    for row, (own, trajectory) in enumerate(zip(logprobs, trajectories, strict=True)):
        if own:
            numbers = [
                torch.full((len(turn.completion_ids),), torch.nan) if one is None else one.float().cpu()
                for one, turn in zip(own, trajectory.turns, strict=True)
            ]
            result[row, sampled[row].bool()] = torch.cat(numbers).to(sampled.device)
    return result


def teacher_gaps(
    logps: torch.Tensor, teacher_logps: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How much likelier each sampled token is to the student than to its teacher, in nats.

    Args:
        logps, teacher_logps (`torch.Tensor`):
            Shape `(B, C)`: log-probs by the student and, NaN where it has none, by the teacher.
        mask (`torch.Tensor`):
            Shape `(B, C)`: 1 on the tokens that are trained.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The gaps, shape `(B, C)`, 0 where there is none; and 1 where there is one.
    """
    known = mask.bool() & ~teacher_logps.isnan()
    return torch.where(known, logps - teacher_logps.nan_to_num(0.0), 0.0), known.to(mask.dtype)


def distillation_loss(gaps: torch.Tensor) -> torch.Tensor:
    r"""
    Half the squared gap of each token (k2, http://joschu.net/blog/kl-approx.html), shape as given.

    Its gradient, $g_t \nabla \log \pi(c_t)$, is on average that of the reverse KL divergence at each token where the student has sampled it.
    The gap itself would not do: the mean of its gradient is 0.
    """
    return 0.5 * gaps**2
