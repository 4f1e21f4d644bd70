"""What follows a metric follows the reward: schedules, and the best checkpoint; and numbers of an interrupted run stay out of the next one."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from support.ppo_helpers import LORA
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import AutoModelForCausalLM

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


class NoReward(LookupEnvironment):
    get_reward = None


def make(directory, model, tokenizer, reward, **settings):
    settings = {"num_generations": 2, "max_turns": 2, "beta": 0.0, "save_strategy": "no", **settings}
    return Mem1GRPOTrainer(
        model=model, args=Mem1GRPOConfig(**trainer_arguments(directory, **settings)), reward_funcs=[reward],
        train_dataset=lookup_dataset(4), eval_dataset=lookup_dataset(2), processing_class=tokenizer,
        environment_factory=NoReward, protocol=SHORT,
    )  # fmt: skip


@pytest.mark.parametrize(("direction", "rates"), [(1.0, [1e-3] * 4), (-1.0, [1e-3, 1e-3, 1e-4, 1e-5])])
def test_a_rate_falls_when_the_reward_does_not_rise(tmp_path, actor_path, tokenizer, direction, rates):
    def reward(trajectories, trainer_state, **kwargs):
        return [direction * trainer_state.global_step + 0.25 * (index % 2) for index in range(len(trajectories))]

    trainer = make(
        tmp_path, actor_path, tokenizer, reward, max_steps=4, eval_strategy="steps", eval_steps=1, logging_steps=1, learning_rate=1e-3,
        lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0},
    )  # fmt: skip
    trainer.train()
    assert trainer.lr_scheduler.mode == "max"
    logged = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert logged == pytest.approx(rates)


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_an_evaluation_without_a_reward_leaves_the_rate(tmp_path, actor_path, tokenizer, schedule):
    """As where every environment of an evaluation fails; the evaluations with a reward are followed as if there were no others."""

    def reward(trajectories, trainer_state, **kwargs):
        falls = [-float(trainer_state.global_step) + 0.25 * (index % 2) for index in range(len(trajectories))]
        return falls if trainer_state.global_step != 2 or trainer.model.training else [None] * len(trajectories)

    trainer = make(
        tmp_path, actor_path, tokenizer, reward, max_steps=4, eval_strategy="steps", eval_steps=1, logging_steps=1, learning_rate=1e-3,
        lr_scheduler_type=schedule, lr_scheduler_kwargs={"patience": 0},
    )  # fmt: skip
    trainer.train()
    assert [log["eval_reward"] is None for log in trainer.state.log_history if "eval_reward" in log] == [
        False, True, False, False,
    ]  # fmt: skip
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    if schedule == "reduce_lr_on_plateau":
        assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    else:
        assert rates[1] == rates[2] > rates[3]


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "max"),
        ({"metric_for_best_model": "loss"}, "min"),
        ({"metric_for_best_model": "episode/turns", "greater_is_better": False}, "min"),
        ({"lr_scheduler_kwargs": {"mode": "min"}}, "min"),
    ],
)
def test_the_direction_is_that_of_the_metric(tmp_path, settings, mode):
    for schedule in ("reduce_lr_on_plateau", "greedy"):
        given = {
            "num_generations": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "lr_scheduler_type": schedule,
            **settings,
        }
        args = Mem1GRPOConfig(**trainer_arguments(tmp_path, **given))
        assert args.lr_scheduler_kwargs["mode"] == mode


def test_what_an_interrupted_run_would_have_logged_is_forgotten(tmp_path, actor_path, tokenizer):
    calls = []

    def reward(trajectories, **kwargs):
        calls.append(len(trajectories))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [100.0 if len(calls) < 3 else float(index % 2) for index in range(len(trajectories))]

    trainer = make(tmp_path, actor_path, tokenizer, reward, max_steps=4, logging_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "reward" in log]
    assert log["reward"] == log["rewards/reward/mean"] == 0.5


@pytest.mark.parametrize("name", ["default", "mine"])
def test_the_best_adapter_is_loaded_whatever_its_name(tmp_path, actor_path, tokenizer, name):
    def falling(trajectories, trainer_state, **kwargs):
        return [0.25 * (index % 2) - trainer_state.global_step for index in range(len(trajectories))]

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA, adapter_name=name)
    trainer = make(
        tmp_path, model, tokenizer, falling, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    folder = "" if name == "default" else name
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / folder / "adapter_model.safetensors") for step in (1, 2))
    here = get_peft_model_state_dict(trainer.model, adapter_name=name)
    assert all(torch.equal(here[key], best[key]) for key in best)
    assert not all(torch.equal(here[key], last[key]) for key in last)
