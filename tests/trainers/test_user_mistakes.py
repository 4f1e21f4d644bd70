"""Tests of mistakes that users make: each is one sentence that says what to do, before anything is trained."""

from __future__ import annotations

import pytest
from support.fault_environments import Importing
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


def make(tmp_path, model, tokenizer, environment=None, dataset=None, protocol=SHORT, **kwargs):
    settings = {"max_turns": 3, "max_observation_length": 60, "num_generations": 4, **kwargs.pop("args", {})}
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(8) if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=protocol,
        **kwargs,
    )


def test_a_package_that_an_action_lacks_ends_training(tmp_path, tokenizer, actor):
    rows = lookup_dataset(8).add_column("where", ["search"] * 8)
    trainer = make(tmp_path, actor, tokenizer, Importing, rows)
    trainer.rollout.generate = ScriptedGenerator(tokenizer, lambda *_: "<think>a</think><search>x</search>")
    with pytest.raises(ImportError, match="`search` of Importing cannot work here and would fail in every episode"):
        trainer.train()
    assert trainer.state.global_step == 0


# What the log says about a run that learns nothing


def train_with_rewards(tmp_path, model, tokenizer, caplog, rewards):
    """Lines about missing rewards, of a run whose batches all get one of these rewards in turn."""
    given = iter(rewards)

    def score(completions, **kwargs):
        return [next(given)] * len(completions)

    class Silent(LookupEnvironment):
        get_reward = None

    settings = {"max_steps": len(rewards), "learning_rate": 0.0}
    trainer = make(tmp_path, model, tokenizer, Silent, reward_funcs=score, args=settings)
    texts = ["<think>a</think><answer>1</answer>"] * 3 + ["<think>b</think>"]
    trainer.rollout.generate = ScriptedGenerator(tokenizer, lambda call, index, prompt: texts[index % 4])
    caplog.clear()
    trainer.train()
    return [record.getMessage() for record in caplog.records if "got a reward above 0" in record.getMessage()]


@pytest.mark.parametrize(
    ("rewards", "lines"), [([0.0] * 5, 1), ([0.0, -1.0, None], 1), ([0.0, 0.0, 1.0, 0.0, 0.0], 0), ([0.0] * 2, 0)]
)
def test_three_batches_without_reward_are_one_line(tmp_path, tokenizer, actor, caplog, rewards, lines):
    said = train_with_rewards(tmp_path, actor, tokenizer, caplog, rewards)
    assert len(said) == lines
    if said:
        assert (
            "No episode of the last 3 batches got a reward above 0. They ended with: answer 9, truncated 3." in said[0]
        )
        assert "<answer>1</answer>" in said[0]
