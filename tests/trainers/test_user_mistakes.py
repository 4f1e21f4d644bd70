"""Tests of mistakes that users make: each is one sentence that says what to do, before anything is trained."""

from __future__ import annotations

import pytest
from support.fault_environments import Importing
from support.trainer_helpers import SHORT, ScriptedGenerator, lookup_dataset, trainer_arguments

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
