"""Samples of one prompt are trained in the same pass, which reads their prompt once, whatever TRL's shuffling has made of them."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.helpers import tiny_model
from support.trainer_helpers import (
    SHORT,
    NoReward,
    ScriptedGenerator,
    assert_same_tensors,
    planned,
    train_and_count,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

PROMPT = 120  # tokens


def step(tmp_path, tokenizer, monkeypatch, together, **settings):
    """One step of two micro-batches on four samples of each of two prompts; what was recorded, and the tokens of each pass with gradient."""
    torch.manual_seed(0)
    trainer = Mem1GRPOTrainer(
        model=tiny_model("llama"),
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path / str(together), num_generations=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                max_turns=2, max_observation_length=40, max_steps=1, beta=0.0, max_grad_norm=0.0, max_completion_length=40,
                **settings,
            )
        ),
        reward_funcs=lambda completions, **kwargs: [float(i % 3) for i in range(len(completions))],
        train_dataset=Dataset.from_dict({"prompt": ["q1" * (PROMPT // 2), "q2" * (PROMPT // 2)], "secret": ["1", "2"]}),
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
    )  # fmt: skip
    if not together:
        monkeypatch.setattr(trainer, "_prompts", lambda batch: None)
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(lambda i: (2, i % 3)))
    return train_and_count(trainer)


@pytest.mark.parametrize("budget", [None, 1000], ids=["whole", "within a budget"])
def test_a_prompt_is_read_once_and_the_gradient_is_the_same(tmp_path, tokenizer, monkeypatch, budget):
    apart, before = step(tmp_path, tokenizer, monkeypatch, False, max_tokens_per_micro_batch=budget)
    together, after = step(tmp_path, tokenizer, monkeypatch, True, max_tokens_per_micro_batch=budget)
    assert len(before) == len(after) == 2
    # Each pass reads one prompt in place of two: all of it but what two prompts have in common, and the last token, which each row repeats
    assert sum(before) - sum(after) >= 2 * (PROMPT - 10)
    assert_same_tensors(apart.gradients[0], together.gradients[0], 1e-4)
    assert together.logs[0]["loss"] == pytest.approx(apart.logs[0]["loss"], abs=1e-5)


def test_a_row_for_each_turn_has_nothing_to_share(tmp_path, tokenizer, monkeypatch):
    _, before = step(tmp_path, tokenizer, monkeypatch, False, layout="per_turn")
    _, after = step(tmp_path, tokenizer, monkeypatch, True, layout="per_turn")
    assert before == after
