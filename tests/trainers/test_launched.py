"""What `accelerate launch` sets in a run whose arguments say nothing of it: its precision is that of the run, its compilation is refused."""

from __future__ import annotations

import pytest
from support.helpers import tiny_model
from support.ppo_helpers import make
from support.trainer_helpers import trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig
from mem1_trl.estimate import EpisodeShape, estimate_run


def test_a_launchers_bfloat16_trains_as_that_of_the_arguments(tmp_path, actor_path, tokenizer, monkeypatch):
    """The self-check allows for its rounding, and every number of two steps is the same."""
    numbers = []
    for asked in (True, False):
        if not asked:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        trainer = make(tmp_path / str(asked), actor_path, tokenizer, bf16=asked)
        assert trainer.args.bf16 == asked
        assert trainer.accelerator.mixed_precision == "bf16"
        assert not trainer.single_precision
        assert trainer.layout == "packed" and trainer.self_check.layouts["packed"].largest > 2e-3
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "reward" in entry]
        numbers.append([(entry["loss"], entry["grad_norm"], entry["value/loss"]) for entry in logs])
    assert len(numbers[0]) == 2
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_estimate_counts_a_launchers_precision(tmp_path, precision, monkeypatch):
    def of_a_run(**settings):
        args = Mem1PPOConfig(**trainer_arguments(tmp_path, use_cpu=True, **settings))
        return estimate_run(
            tiny_model("llama").config, args, EpisodeShape(prompt=40, turns=4, completion=30, observation=80)
        )

    whole = of_a_run(bf16=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    launched = of_a_run(bf16=False)
    assert launched.memory["activations"] != whole.memory["activations"]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    if precision == "bf16":
        assert launched.memory == of_a_run(bf16=True).memory


@pytest.mark.parametrize("config", [Mem1GRPOConfig, Mem1PPOConfig])
def test_a_launchers_compilation_is_refused_as_that_of_the_arguments(tmp_path, config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(
        ValueError,
        match=r"`torch_compile` is not supported: .* accelerate was given dynamo_backend INDUCTOR: set it to 'no'",
    ):
        config(**trainer_arguments(tmp_path, num_generations=2))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # what `accelerate launch` sets without one
    assert not config(**trainer_arguments(tmp_path, num_generations=2)).torch_compile
