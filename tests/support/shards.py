"""What tests of several processes compare a run in shards by."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.helpers import tiny_model
from transformers import AutoModelForCausalLM

from mem1_trl.update.critic.critic import ValueModel

# Means over micro-batches of means over tokens, which depend on how tokens are spread over them
OF_THE_SPLIT = {"step_time", "entropy", "value/loss", "micro_batch/tokens_max_over_mean", "micro_batch/parts"}


def relative_error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    a, b = (torch.cat([tensors[name].flatten() for name in one]) for tensors in (one, other))
    assert a.norm() > 0
    return float((a - b).norm() / a.norm())


def assert_went_on(whole: dict, second: dict, saved: Path, kind: str) -> None:
    """A run that was resumed ends as one that was not, and has saved what a single process holds, as it reads it."""
    for part, weights in whole["weights"].items():
        for name, weight in weights.items():
            assert torch.equal(second["weights"][part][name], weight), name
    head = load_file(saved / "critic" / "value_head.safetensors")
    assert torch.equal(head["weight"], second["weights"]["critic"]["head.weight"])
    if kind == "ppo":
        policy = AutoModelForCausalLM.from_pretrained(saved).state_dict()
        critic = ValueModel(tiny_model("llama").model)
        critic.load(saved / "critic")
        for part, state in (("policy", policy), ("critic", critic.state_dict())):
            for name, weight in second["weights"][part].items():
                assert torch.equal(state[name], weight), name
