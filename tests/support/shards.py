"""What tests of several processes compare a run in shards by."""

from __future__ import annotations

import torch

# Means over micro-batches of means over tokens, which depend on how tokens are spread over them
OF_THE_SPLIT = {"step_time", "entropy", "value/loss", "micro_batch/tokens_max_over_mean", "micro_batch/parts"}


def relative_error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    a, b = (torch.cat([tensors[name].flatten() for name in one]) for tensors in (one, other))
    assert a.norm() > 0
    return float((a - b).norm() / a.norm())
