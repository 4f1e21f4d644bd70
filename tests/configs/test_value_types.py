"""Values of another type than their field: refused in one sentence when the configuration is made."""

from __future__ import annotations

import re

import numpy as np
import pytest
from trl import GRPOConfig

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig
from mem1_trl.configs import from_grpo_config


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("max_turns", 3.5, "a whole number"),
        ("max_turns", True, "a whole number"),
        ("max_turns", None, "a whole number"),
        ("max_completion_length", 16.5, "a whole number or null"),
        ("max_observation_length", 10.5, "a whole number"),
        ("max_context_length", 99.5, "a whole number or null"),
        ("memory_top_k", 1.5, "a whole number"),
        ("environment_retries", 1.5, "a whole number"),
        ("environment_concurrency", 2.5, "a whole number"),
        ("max_tokens_per_micro_batch", 10.5, "a whole number or null"),
        ("curriculum_steps", 2.5, "a whole number"),
        ("dynamic_sampling_max_rounds", True, "a whole number"),
        ("per_device_train_batch_size", 2.5, "a whole number"),
        ("seed", 1.5, "a whole number"),
        ("prefix_cache", 1, "true or false"),
        ("use_vllm", 0, "true or false"),
        ("gamma", None, "a number"),
        ("learning_rate", True, "a number"),
        ("output_dir", 3, "text or null"),
        ("output_dir", True, "text or null"),
        ("curriculum_metric", 3, "text"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, kind, name, value, wanted):
    given = {"output_dir": str(tmp_path), "bf16": False, name: value}
    with pytest.raises(ValueError) as error:
        kind(**given)
    assert str(error.value) == f"{name} must be {wanted}, got {value!r}."


def test_a_fraction_of_a_setting_of_the_critic_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^critic_warmup_steps must be a whole number, got 1\.5\.$"):
        Mem1PPOConfig(str(tmp_path), bf16=False, critic_warmup_steps=1.5)


def test_a_text_for_a_boolean_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^prefix_cache must be true or false, got the text 'off'\.$"):
        Mem1GRPOConfig(str(tmp_path), bf16=False, prefix_cache="off")


def test_a_configuration_of_trl_is_checked_too(tmp_path):
    args = GRPOConfig(str(tmp_path), bf16=False, max_completion_length=16.5)
    with pytest.raises(ValueError, match=r"^max_completion_length must be a whole number or null, got 16\.5\.$"):
        from_grpo_config(args)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 2**32)])
def test_a_seed_that_numpy_refuses_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"^seed must be from 0 to 4294967295, got {value}\.$"):
        Mem1GRPOConfig(str(tmp_path), bf16=False, seed=value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"check": False}, "off"),
        ({"check": True}, "on"),
        ({"gamma": 1}, 1),
        ({"max_turns": np.int64(4)}, 4),
        ({"scale_rewards": False}, "none"),
        ({"environment_timeout": None}, None),
        ({"save_steps": 5}, 5),
    ],
)
def test_what_means_the_same_is_taken(tmp_path, given, kept):
    (name,) = given
    assert getattr(Mem1PPOConfig(str(tmp_path), bf16=False, **given), name) == kept


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect here: leave it 0.0"),
        ({"data_seed": 3}, "data_seed=3 has no effect here: set seed"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' has no effect here: set shuffle_dataset=False"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint=True saves in the middle of an optimizer step"),
    ],
)  # fmt: skip
def test_settings_that_nothing_reads_are_refused(tmp_path, given, sentence):
    for kind in (Mem1GRPOConfig, Mem1PPOConfig):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            kind(str(tmp_path), bf16=False, **given)
