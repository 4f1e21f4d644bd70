"""Credit between turns: one advantage for each turn, or generalised advantage estimation on two levels."""

from __future__ import annotations

import torch

from .advantages import generalized_advantages

ADVANTAGE_LEVELS = ("token", "turn", "two_level")
"""What a step of generalised advantage estimation is: a generated token, a turn, or both."""


def turn_begins(mask: torch.Tensor, turn_ids: torch.Tensor) -> torch.Tensor:
    """
    The first generated token of each turn.

    Args:
        mask (`torch.Tensor`):
            Shape `(B, T)`, 1 on generated tokens.
        turn_ids (`torch.Tensor`):
            Shape `(B, T)`, int64, turn of each token.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, bool.
    """
    own = _tokens_of_turns(mask, turn_ids)
    begins = torch.zeros_like(mask, dtype=torch.int64).scatter_add(1, _first(own), own.any(2).long())
    return begins > 0


def turn_level_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    turn_ids: torch.Tensor,
    gamma: float,
    lam: float,
    final_values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Generalised advantage estimation (arXiv 1506.02438) with a turn as its step, and one advantage for all tokens of a turn.

    $$\delta_k = r_k + \gamma V_{k+1} - V_k, \qquad A_k = \delta_k + \gamma \lambda A_{k+1}$$

    `r_k` is the sum of the rewards of the tokens of turn `k`, `V_k` the value before its first token, the only value of the turn that is
    used. After the last turn nothing follows, or `final_values`.

    Args:
        rewards, values, mask, final_values:
            As in [`generalized_advantages`].
        turn_ids (`torch.Tensor`):
            Shape `(B, T)`, int64, turn of each token.
        gamma (`float`):
            Discount per turn.
        lam (`float`):
            Trace decay per turn.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Shape `(B, T)`, float32: `A_k` on each generated token of turn `k`; and `A_k + V_k` on its
        first token only. Zero elsewhere.
    """
    own = _tokens_of_turns(mask, turn_ids)
    advantages, returns = _between_turns(rewards, values, own, gamma, lam, final_values)
    begins = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).scatter_add(1, _first(own), returns)
    return (own * advantages[:, :, None]).sum(1), begins


def two_level_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    turn_ids: torch.Tensor,
    gamma: float,
    lam: float,
    token_gamma: float,
    token_lam: float,
    final_values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Generalised advantage estimation between turns, and then over the tokens inside each turn.

    With `A_k` and `V_k` of [`turn_level_advantages`], `G_k = A_k + V_k` is what a turn is worth. It is paid out inside the turn: its tokens
    keep their own rewards (a KL penalty), and the last gets the rest, so that they add up to `G_k`,

    $$\tilde r_t = r_t + [t \text{ is last of its turn}]\,\big(G_k - \textstyle\sum_{u \in k} r_u\big)$$

    over which estimation starts again in each turn, with nothing after its last token:

    $$\delta_t = \tilde r_t + \gamma_{token} V(s_{t+1}) - V(s_t), \qquad A_t = \delta_t + \gamma_{token} \lambda_{token} A_{t+1}$$

    This is the two-level estimation of VAGEN (arXiv 2510.16907), with two differences from its released code: the value of a turn is
    that before its first token (theirs: before its last), so that a turn is judged as a whole; and the rewards of tokens
    before the last of a turn count between turns, too. Where all four coefficients are 1 it equals estimation over tokens.

    Args:
        rewards, values, mask, turn_ids, gamma, lam, final_values:
            As in [`turn_level_advantages`].
        token_gamma (`float`):
            Discount per token inside a turn.
        token_lam (`float`):
            Trace decay per token inside a turn.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Advantages and returns (`advantages + values`), each `(B, T)`, float32, zero
        outside `mask`.
    """
    own = _tokens_of_turns(mask, turn_ids)
    size, turns, length = own.shape
    _, worth = _between_turns(rewards, values, own, gamma, lam, final_values)
    of_tokens = rewards.float()[:, None].expand(own.shape).masked_fill(~own, 0.0)
    last = torch.where(own, torch.arange(length, device=own.device), -1).amax(2).clamp(min=0)
    rest = (worth - of_tokens.sum(2)).masked_fill(~own.any(2), 0.0)
    paid = of_tokens.scatter_add(2, last[:, :, None], rest[:, :, None])
    inside = generalized_advantages(
        paid.flatten(0, 1),
        values.float()[:, None].expand(own.shape).flatten(0, 1),
        own.flatten(0, 1),
        token_gamma,
        token_lam,
    )
    advantages, returns = (found.view(size, turns, length).sum(1) for found in inside)
    return advantages, returns


def _tokens_of_turns(mask: torch.Tensor, turn_ids: torch.Tensor) -> torch.Tensor:
    """Which generated tokens belong to each turn, shape `(B, K, T)`, bool, with at least one turn."""
    mask = mask.bool()
    turns = int(turn_ids.masked_fill(~mask, 0).max()) + 1 if mask.numel() else 1
    return mask[:, None] & (turn_ids[:, None] == torch.arange(turns, device=mask.device)[None, :, None])


def _first(own: torch.Tensor) -> torch.Tensor:
    """The place of the first token of each turn, shape `(B, K)`; of a turn without tokens, some place."""
    length = own.shape[2]
    return torch.where(own, torch.arange(length, device=own.device), length - 1).amin(2)


def _between_turns(
    rewards: torch.Tensor,
    values: torch.Tensor,
    own: torch.Tensor,
    gamma: float,
    lam: float,
    final_values: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of turns, shape `(B, K)`, zero where a row has no such turn."""
    of_turns = rewards.float()[:, None].expand(own.shape).masked_fill(~own, 0.0).sum(2)
    before = values.float().gather(1, _first(own))
    return generalized_advantages(of_turns, before, own.any(2), gamma, lam, final_values)
