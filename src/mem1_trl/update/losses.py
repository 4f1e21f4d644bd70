"""The value loss of PPO, and how much of the returns the values explain."""

from __future__ import annotations

import torch


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    PPO's clipped value loss per token (arXiv 1707.06347 defines the policy's; this is its common counterpart).

    $$L = \tfrac12 \max\big((V - R)^2,\ (V_{old} + \mathrm{clip}(V - V_{old}, -\epsilon, \epsilon) - R)^2\big)$$

    Args:
        values, old_values, returns (`torch.Tensor`):
            Same shape, float32. Only `values` carries a gradient.
        cliprange (`float` or `None`):
            `epsilon`, in units of the reward. `None` does not clip.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The loss and whether the clip was active, in the shape of `values`.
    """
    squared = (values - returns) ** 2
    if cliprange is None:
        return 0.5 * squared, torch.zeros_like(values)
    moved = values - old_values
    clipped = old_values + moved.clamp(-cliprange, cliprange)
    squared_clipped = (clipped - returns) ** 2
    # Within the range the two differ by rounding
    active = (moved.abs() > cliprange) & (squared_clipped > squared)
    return 0.5 * torch.maximum(squared, squared_clipped), active.float()


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """
    Share of the variance of the returns that the values explain: `1 - Var(R - V) / Var(R)` over `mask`.

    1 is perfect, 0 as good as a constant, below 0 worse. NaN if the returns do not vary: by less than 1e-4 (standard deviation) of
    the larger of 1 and their size, as after equal rewards, whether by rounding or by a small penalty for the KL divergence.
    """
    mask = mask.bool()
    target, error = returns[mask].double(), (returns - values)[mask].double()
    if target.numel() < 2:
        return float("nan")
    variance = target.var()
    if variance < 1e-8 * max(1.0, float(target.square().mean())):
        return float("nan")
    return float(1 - error.var() / variance)
