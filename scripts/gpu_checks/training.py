"""Two training steps of each trainer: in the layout that was asked for, of finite numbers, by tokens that were scored as sampled."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from support.trainer_helpers import (
    SHORT,
    NoReward,
    chat_tokenizer,
    copy_parameters,
    lookup_dataset,
    odd,
    trained_model,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

from .check import Check, Finding, Setting

TRAINERS: dict[str, tuple[Any, Any]] = {
    "GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig),
    "PPO": (Mem1PPOTrainer, Mem1PPOConfig),
}
SAMPLED = {"float32": 5e-3, "bfloat16": 1.0}
"""Nats between the log-prob that a token was sampled with and the one of the update, at most."""


def arguments(setting: Setting, directory: str, dtype: str, **more: Any) -> dict[str, Any]:
    """Arguments of a run of two steps."""
    return trainer_arguments(
        directory,
        **{
            "max_turns": 4,
            "max_observation_length": 40,
            "max_completion_length": 40,
            "num_generations": 2,
            "bf16": dtype == "bfloat16",
            "use_cpu": setting.device == "cpu",
            "rollout_batch_wait": 0.05,
            **more,
        },
    )


def policy(setting: Setting) -> Any:
    """A tiny model that acts, with heads of 16."""
    return trained_model(chat_tokenizer(), steps=40 if setting.short else 150, hidden_size=64)


def examine(finding: Finding, trainer: Any, before: dict[str, torch.Tensor], dtype: str) -> None:
    """Hold two steps that were made against what is expected of them."""
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    finding.measured["losses"] = losses
    finding.expect_equal("steps", len(losses), 2)
    finding.expect_equal("finite", all(bool(p.isfinite().all()) for p in trained.values()), True)
    still = [name for name, p in trained.items() if torch.equal(p.detach(), before[name])]
    finding.expect_equal("trained tensors that have not moved", still, [])
    gaps = [log[key] for log in trainer.state.log_history for key in ("sampling/max_logp_difference",) if key in log]
    finding.expect("nats between sampler and update", max(gaps, default=float("nan")), SAMPLED[dtype])


def check_trainer(name: str, dtype: str, setting: Setting) -> Finding:
    """Two steps of a trainer."""
    finding = Finding()
    trainer_class, config = TRAINERS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        trainer = trainer_class(
            model=policy(setting),
            args=config(**arguments(setting, directory, dtype)),
            train_dataset=lookup_dataset(8),
            processing_class=chat_tokenizer(),
            environment_factory=NoReward,
            reward_funcs=odd,  # which differ, so that there is something to learn in each step
            protocol=SHORT,
        )
        finding.expect_equal("layout", trainer.layout, "packed")
        finding.expect_equal("device", trainer.model.device.type, setting.device)
        before = copy_parameters(trainer.model)
        trainer.train()
        examine(finding, trainer, before, dtype)
        if name == "PPO":
            finding.expect_equal("layout of the critic", trainer.value_layout, "packed")
            critic = [log["value/loss"] for log in trainer.state.log_history if "value/loss" in log]
            finding.measured["value losses"] = critic
            finding.expect_equal("the critic's losses are finite", all(x == x and abs(x) < 1e6 for x in critic), True)
            finding.expect_equal("steps of the critic", len(critic), 2)
    return finding


def checks(short: bool) -> list[Check]:
    """One check for each trainer and data type."""
    kinds = ("float32",) if short else ("float32", "bfloat16")
    return [
        Check(f"two steps: {name}, {kind}", partial(check_trainer, name, kind)) for name in TRAINERS for kind in kinds
    ]
