"""Tests of `optimizers=(optimizer, scheduler)`: policy and critic are both trained by them, or the pair is refused."""

from __future__ import annotations

import pytest
import torch
from support.ppo_helpers import LORA, make
from support.trainer_helpers import SHORT, LookupEnvironment, copy_parameters, lookup_dataset, trainer_arguments
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.update.critic.critic import build_value_model

FRACTIONS = (1.0, 0.25, 0.5, 0.5)


def given(parameters, lr=0.05):
    """Plain gradient descent, and a schedule that no built-in one has."""
    optimizer = torch.optim.SGD(parameters, lr=lr)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: FRACTIONS[step])


class Gradients(TrainerCallback):
    """Gradients of policy and critic before each step, and the parameters after it."""

    def __init__(self):
        self.steps: list[dict] = []
        self.trainer = None

    def modules(self):
        return {"policy": self.trainer.model, "critic": self.trainer.value_model}

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.steps.append(
            {
                name: {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
                for name, module in self.modules().items()
            }
        )

    def on_step_end(self, *args, **kwargs):
        self.steps[-1]["after"] = {name: copy_parameters(module) for name, module in self.modules().items()}


@pytest.mark.parametrize("critic", [None, "shared"])
def test_both_are_trained_at_their_rates_along_the_given_schedule(tmp_path, actor, tokenizer, critic):
    callback = Gradients()
    trainer = make(
        tmp_path,
        actor,
        tokenizer,
        optimizers=given(actor.parameters()),
        value_model=critic,
        callbacks=[callback],
        optim="sgd",
        value_learning_rate=0.4,
        max_grad_norm=0.0,
        beta=0.0,
    )
    callback.trainer = trainer
    torch.manual_seed(0)
    torch.nn.init.normal_(trainer.value_model.head.weight)
    before = {name: copy_parameters(module) for name, module in callback.modules().items()}
    trainer.train()
    assert len(callback.steps) == 2
    for fraction, step in zip(FRACTIONS, callback.steps):
        for name, rate in (("policy", 0.05), ("critic", 0.4)):
            assert step[name], f"the {name} has gradients"
            for key, gradient in step[name].items():
                expected = before[name][key] - rate * fraction * gradient
                assert torch.allclose(step["after"][name][key], expected, atol=1e-7), f"{name} {key}"
        before = step["after"]


def test_an_optimizer_that_holds_the_critic_too_keeps_it(tmp_path, actor, tokenizer):
    """A critic made beforehand may be a group of the given optimizer, with a rate of its own."""
    critic = build_value_model(None, actor)
    groups = [{"params": list(actor.parameters()), "lr": 0.05}, {"params": list(critic.parameters()), "lr": 0.3}]
    callback = Gradients()
    trainer = make(
        tmp_path, actor, tokenizer, optimizers=given(groups), value_model=critic, callbacks=[callback],
        max_grad_norm=0.0, beta=0.0, max_steps=1,
    )  # fmt: skip
    callback.trainer = trainer
    before = copy_parameters(critic)
    trainer.train()
    (step,) = callback.steps
    assert trainer.critic_optimizer is None
    assert step["critic"]
    for key, gradient in step["critic"].items():
        assert torch.allclose(step["after"]["critic"][key], before[key] - 0.3 * gradient, atol=1e-7)


def test_a_run_with_given_optimizers_resumes_to_the_last_digit(tmp_path, tokenizer, actor_path):
    """The critic's Adam has moments, which are part of a checkpoint."""
    from transformers import AutoModelForCausalLM

    def run(directory, **settings):
        model = AutoModelForCausalLM.from_pretrained(actor_path, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return make(directory, model, tokenizer, optimizers=(optimizer, schedule), beta=0.0, **settings)

    whole = run(tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = run(tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in ((whole.model, resumed.model), (whole.value_model, resumed.value_model)):
        for key, parameter in copy_parameters(one).items():
            assert torch.equal(parameter, dict(other.named_parameters())[key]), key


def test_an_optimizer_alone_leaves_the_schedule_to_the_configuration(tmp_path, actor, tokenizer):
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.05)
    trainer = make(
        tmp_path, actor, tokenizer, optimizers=(optimizer, None), beta=0.0, max_steps=1, lr_scheduler_type="constant"
    )
    before = copy_parameters(trainer.value_model)
    trainer.train()
    assert any(not torch.equal(p, before[key]) for key, p in trainer.value_model.named_parameters())


@pytest.mark.parametrize("name", ["GRPO", "PPO"])
def test_an_optimizer_of_other_weights_is_refused(tmp_path, actor, tokenizer, name):
    """An adapter that the trainer adds is in no optimizer that was made before; the run would train nothing."""
    kind, config = {"GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig), "PPO": (Mem1PPOTrainer, Mem1PPOConfig)}[name]
    settings = {"num_generations": 2} if name == "GRPO" else {}
    with pytest.raises(ValueError, match="The optimizer must hold weights that the policy trains, got none"):
        kind(
            model=actor,
            args=config(**trainer_arguments(tmp_path, **settings)),
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
            environment_factory=LookupEnvironment,
            protocol=SHORT,
            optimizers=given(actor.parameters()),
            peft_config=LORA,
        )
