"""Numbers that are not finite: which rows of a batch hold them, and which weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..update.sharded_tensors import own_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def non_finite_rows(
    batch: Mapping[str, Any], mask: torch.Tensor, logps: torch.Tensor | None, values: torch.Tensor | None
) -> dict[int, list[str]]:
    """
    What a loss was computed from that is not finite, or makes it overflow.

    Args:
        batch (`Mapping[str, Any]`):
            The batch: of its keys, `advantages`, the log-probs, `old_values` and `returns`.
        mask (`torch.Tensor`):
            Shape `(B, C)`, 1 on the tokens that are trained.
        logps (`torch.Tensor`, *optional*):
            Shape `(B, C)`, log-probs of the policy.
        values (`torch.Tensor`, *optional*):
            Shape `(B, C)`, values of the critic.

    Returns:
        `dict[int, list[str]]`: For each row that has something, its names.
    """
    advantages = batch["advantages"]
    named: dict[str, torch.Tensor | None] = {
        "advantages": advantages if advantages.ndim > 1 else advantages[:, None],
        "log-probs": logps,
        "values": values,
    }
    for key, name in (
        ("old_per_token_logps", "old log-probs"),
        ("ref_per_token_logps", "reference log-probs"),
        ("old_values", "old values"),
        ("returns", "returns"),
    ):
        named[name] = batch.get(key)
    # Finite numbers that overflow in what TRL and the critic compute from them
    if logps is not None:
        old, reference = batch.get("old_per_token_logps"), batch.get("ref_per_token_logps")
        named["ratio to the old policy"] = None if old is None else (logps - old).exp()
        named["ratio to the reference"] = None if reference is None else (reference - logps).exp()
    if values is not None and "returns" in batch:
        named["squared error of the values"] = (values - batch["returns"]) ** 2
    found: dict[int, list[str]] = {}
    for name, tensor in named.items():
        if tensor is None:
            continue
        # A row whose numbers are finite may still have a sum that is not
        numbers = tensor.float().expand_as(mask).masked_fill(~mask.bool(), 0.0)
        for row in (~numbers.sum(dim=1).isfinite()).nonzero().flatten().tolist():
            found.setdefault(row, []).append(name)
    return found


def first_non_finite(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """
    Name of the first of some named tensors that holds a number that is not finite, or `None`.

    One question to each device, however many tensors there are. What holds no floating-point numbers is passed over, and of a
    tensor that is split over processes only the part of this one is looked at.
    """
    flags: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
            flags.setdefault(tensor.device, []).append((name, own_part(tensor.detach()).isfinite().all()))
    for pairs in flags.values():
        fine = torch.stack([flag for _, flag in pairs]).tolist()
        if not all(fine):
            return pairs[fine.index(False)][0]
    return None
