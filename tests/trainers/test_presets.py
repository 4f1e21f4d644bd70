"""The presets of PPO: the numbers of their sources, and that fields of the caller win."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from mem1_trl import Mem1PPOConfig

PUBLISHED = Path(__file__).parents[2] / "examples" / "paper" / "published.yaml"


def test_the_paper_is_the_published_file():
    """`examples/paper/published.yaml` says for 8 GPUs what the preset says for any number."""
    file = yaml.safe_load(PUBLISHED.read_text())
    shape = {name: file[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    preset = Mem1PPOConfig.paper("out", bf16=False, use_cpu=True, **shape)
    shared = [name for name in file if hasattr(preset, name)]
    its_own = {"output_dir", "bf16", "gradient_checkpointing", "max_steps", "save_steps", "logging_steps", "report_to"}
    own_too = {"log_completions", "conversational"}
    differ = {name for name in shared if getattr(preset, name) != file[name]} - its_own - own_too
    assert not differ and {"gamma", "lam", "beta", "learning_rate", "steps_per_generation", "max_turns"} <= set(shared)
    assert preset.lr_scheduler_type == "constant_with_warmup" and preset.warmup_steps == 25
    assert preset.entropy_coef == 0.001 and preset.advantage_level == "token"


def test_a_batch_is_trained_on_in_two_steps():
    preset = Mem1PPOConfig.paper(
        "out", bf16=False, use_cpu=True, per_device_train_batch_size=16, gradient_accumulation_steps=4
    )
    assert preset.generation_batch_size == 128 and preset.steps_per_generation == 8
    given = Mem1PPOConfig.paper(
        "out", bf16=False, use_cpu=True, per_device_train_batch_size=4, generation_batch_size=4
    )
    assert given.generation_batch_size == 4 and given.steps_per_generation == 1


def test_between_turns():
    preset = Mem1PPOConfig.turn_level("out", bf16=False, use_cpu=True)
    assert (preset.advantage_level, preset.gamma, preset.lam) == ("turn", 0.99, 0.9)
    plain = Mem1PPOConfig("out", bf16=False, use_cpu=True)
    names = {field.name for field in dataclasses.fields(plain)} - {"logging_dir", "run_name"}
    changed = {name for name in names if getattr(preset, name) != getattr(plain, name)}
    assert changed == {"advantage_level", "gamma", "lam"}


def test_the_caller_wins():
    assert Mem1PPOConfig.turn_level("out", bf16=False, use_cpu=True, lam=0.5).lam == 0.5
    assert Mem1PPOConfig.paper("out", bf16=False, use_cpu=True, learning_rate=1e-4).learning_rate == 1e-4
    with pytest.raises(TypeError, match="gama"):
        Mem1PPOConfig.paper("out", bf16=False, use_cpu=True, gama=0.9)
