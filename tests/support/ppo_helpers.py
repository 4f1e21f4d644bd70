"""A PPO trainer on the lookup task, and oracles for what it computes."""

from __future__ import annotations

import torch
from peft import LoraConfig
from support.helpers import oracle_logprobs
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    trainer_arguments,
)
from transformers import TrainerCallback

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.update.critic.critic import ValueModel

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def make(tmp_path, model, tokenizer, layout="packed", environment=LookupEnvironment, plan=None, **kwargs):
    """A PPO trainer on the lookup task, scripted if there is a plan."""
    own = {
        key: kwargs.pop(key)
        for key in (
            "reward_funcs",
            "teacher_model",
            "train_dataset",
            "eval_dataset",
            "peft_config",
            "value_model",
            "callbacks",
            "optimizers",
        )
        if key in kwargs
    }
    settings = {"max_turns": 4, "max_observation_length": 40, "layout": layout, **kwargs}
    trainer = Mem1PPOTrainer(
        model=model,
        args=Mem1PPOConfig(**trainer_arguments(tmp_path, **settings)),
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
        **{"train_dataset": lookup_dataset(), **own},
    )
    if plan is not None:
        trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(plan))
    return trainer


def four_plans(i: int) -> tuple[int, int]:
    """One to four turns, answers that are right for some."""
    return 1 + i % 4, i % 3


def wake(trainer, head: float = 0.5, policy: float = 0.0) -> None:
    """Give the critic's head weights, so that values differ, and move the policy away from its reference."""
    torch.manual_seed(11)
    with torch.no_grad():
        trainer.value_model.head.weight.normal_(std=head)
        for parameter in trainer.model.parameters():
            parameter.add_(policy * torch.randn_like(parameter) * parameter.std())


def oracle_values(critic: ValueModel, trajectory) -> torch.Tensor:
    """The value before every sampled token, each turn forwarded on its own by the plain critic."""
    values = []
    for turn in trajectory.turns:
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
        values.append(critic(input_ids=ids)[0, len(turn.prompt_ids) - 1 : -1])
    return torch.cat(values)


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Advantage of each token as the sum it is defined to be (arXiv 1506.02438, equation 16)."""
    size = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < size else 0.0) - values[t] for t in range(size)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, size)) for t in range(size)]


def watch_credit(trainer) -> list[dict]:
    """For each batch: what it holds, and oracles for values and log-probs computed at the same moment."""
    seen = []
    extend = trainer.extend_batch

    def spy(batch, trajectories, rewards):
        extend(batch, trajectories, rewards)
        with torch.no_grad():
            seen.append(
                {
                    "batch": batch,
                    "mask": (batch["completion_mask"] * batch["tool_mask"]).bool(),
                    "rewards": rewards.clone(),
                    "trajectories": trajectories,
                    "values": [oracle_values(trainer.value_model, t) for t in trajectories],
                    "logps": [torch.cat(oracle_logprobs(trainer.model, t)) for t in trajectories],
                    "ref": None
                    if trainer.ref_model is None
                    else [torch.cat(oracle_logprobs(trainer.ref_model, t)) for t in trajectories],
                }
            )

    trainer.extend_batch = spy
    return seen


def stir(module: torch.nn.Module, seed: int) -> None:
    """Give every trainable adapter weight a value of its own."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))


class Gradients(TrainerCallback):
    """Copies of the gradients of a module, by name, before each step."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None})
