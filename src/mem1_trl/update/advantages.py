"""Credit across turns: generalised advantage estimation over the tokens an agent generated, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def token_rewards(
    rewards: torch.Tensor, mask: torch.Tensor, kl: torch.Tensor | None = None, kl_coef: float = 0.0
) -> torch.Tensor:
    """
    Spread rewards over tokens: the episode's reward on its last generated token, a KL penalty on every one.

    `r_t = -kl_coef * (log pi_old(a_t) - log pi_ref(a_t)) + [t is last] * R`, the estimator k1, unclamped, so that its mean
    is the divergence (a clamp at zero makes it one-sided and biased).

    Args:
        rewards (`torch.Tensor`):
            Shape `(B,)`, reward of each episode.
        mask (`torch.Tensor`):
            Shape `(B, T)`, 1 on generated tokens.
        kl (`torch.Tensor`, *optional*):
            Shape `(B, T)`, `log pi_old - log pi_ref` in nats.
        kl_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the penalty.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, float32, zero outside `mask`.
    """
    mask = mask.bool()
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    if kl is not None:
        result = result - kl_coef * kl.float()
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1)
    has_tokens = last >= 0
    rows = torch.arange(len(mask), device=mask.device)[has_tokens]
    result[rows, last[has_tokens]] += rewards.float()[has_tokens]
    return result.masked_fill(~mask, 0.0)


def turn_end_rewards(
    turn_rewards: Sequence[Sequence[float] | None], turn_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Put the reward of each turn on its last generated token.

    Args:
        turn_rewards (`Sequence[Sequence[float] | None]`):
            For each of B rows, one number for each turn, or `None` for no reward of any turn.
        turn_ids (`torch.Tensor`):
            Shape `(B, T)`, int64, turn of each token.
        mask (`torch.Tensor`):
            Shape `(B, T)`, 1 on generated tokens.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, float32, zero elsewhere.
    """
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row, numbers in enumerate(turn_rewards):
        for turn, number in enumerate(numbers or ()):
            places = (mask[row].bool() & (turn_ids[row] == turn)).nonzero().flatten()
            if len(places):
                result[row, places[-1]] = number
    return result


def generalized_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
    final_values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Generalised advantage estimation (arXiv 1506.02438, equations 11 to 16) over the generated tokens of a row.

    $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad A_t = \delta_t + \gamma \lambda A_{t+1}$$

    where `t + 1` is the *next generated token*, across everything between two turns (observations and contexts are
    not actions, so no discount is taken over them). After the last generated token nothing follows, or `final_values`.
    With `gamma = lam = 1` the return is the sum of the rewards from `t` on, and the final value.

    Args:
        rewards (`torch.Tensor`):
            Shape `(B, T)`, reward of each generated token.
        values (`torch.Tensor`):
            Shape `(B, T)`, `V(s_t)`: the critic's estimate *before* token `t` is generated.
        mask (`torch.Tensor`):
            Shape `(B, T)`, 1 on generated tokens. Rewards and values elsewhere are ignored.
        gamma (`float`):
            Discount per generated token.
        lam (`float`):
            Trace decay per generated token.
        final_values (`torch.Tensor`, *optional*):
            Shape `(B,)`, `V` of the state after the last generated token of each row: 0 where the episode ended, the critic's
            estimate where it was cut. `None` is 0 everywhere.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Advantages and returns (`advantages + values`), each `(B, T)`, float32, zero
        outside `mask`.
    """
    mask = mask.bool()
    counts = mask.sum(dim=1)
    steps = int(counts.max()) if counts.numel() else 0
    # Generated tokens of each row, moved to the front in order: a stable sort of "not generated"
    order = torch.sort((~mask).to(torch.int8), dim=1, stable=True).indices[:, :steps]
    present = torch.arange(steps, device=mask.device)[None] < counts[:, None]
    r = rewards.float().gather(1, order).masked_fill(~present, 0.0)
    v = values.float().gather(1, order).masked_fill(~present, 0.0)
    advantage = torch.zeros_like(r)
    running = torch.zeros(len(mask), device=mask.device)
    next_value = torch.zeros(len(mask), device=mask.device)
    for step in reversed(range(steps)):
        if final_values is not None:
            next_value = torch.where(counts == step + 1, final_values.float(), next_value)
        delta = r[:, step] + gamma * next_value - v[:, step]
        running = (delta + gamma * lam * running).masked_fill(~present[:, step], 0.0)
        next_value = v[:, step]
        advantage[:, step] = running
    empty = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    # Places beyond a row's count point at tokens that were not generated, and carry zero
    return empty.scatter(1, order, advantage), empty.scatter(1, order, (advantage + v).masked_fill(~present, 0.0))


def masked_whiten(
    values: torch.Tensor, mask: torch.Tensor, gather: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """
    Shift and scale to mean 0 and standard deviation 1 over the generated tokens of the whole batch, all processes included.

    Args:
        values (`torch.Tensor`):
            Shape `(B, T)`.
        mask (`torch.Tensor`):
            Shape `(B, T)`, 1 on generated tokens; others neither count nor are set.
        gather (`Callable`, *optional*):
            Concatenates a 1-D tensor over processes; `None` for a single process.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, float32, zero outside `mask`. Fewer than two tokens are only centred.
    """
    mask = mask.bool()
    values = values.float()

    def total(x: torch.Tensor) -> torch.Tensor:
        local = x[mask].double().sum().reshape(1)
        return local.sum() if gather is None else gather(local).sum()

    count = total(torch.ones_like(values))
    mean = total(values) / count.clamp(min=1)
    variance = total((values.double() - mean) ** 2) / (count - 1).clamp(min=1)
    scale = torch.rsqrt(variance + 1e-8) if count > 1 else torch.ones_like(variance)
    return ((values - mean) * scale).float().masked_fill(~mask, 0.0)
