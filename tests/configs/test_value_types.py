"""Values of another type than their field: refused in one sentence when the configuration is made."""

from __future__ import annotations

import re
from dataclasses import fields

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
    with pytest.raises(ValueError, match=rf"^seed must be a whole number from 0 to 4294967295, got {value}\.$"):
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


# Ranges


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"beta": -1.0}, "beta must be at least 0, got -1.0."),
        ({"epsilon": -0.2}, "epsilon must be above 0, got -0.2."),
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0.0."),
        ({"epsilon_high": -0.1}, "epsilon_high must be above 0, got -0.1."),
        ({"delta": 0.0}, "delta must be above 0, got 0.0."),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0."),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5."),
        ({"top_k": -1}, "top_k must be at least 0, got -1."),
        ({"min_p": 1.1}, "min_p must be at least 0 and at most 1, got 1.1."),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0."),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 to train for num_train_epochs, got 0."),
        ({"max_steps": -2}, "max_steps must be at least 1, or -1 to train for num_train_epochs, got -2."),
        ({"num_train_epochs": -1}, "num_train_epochs must be above 0, or max_steps at least 1, got -1."),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0, or max_steps at least 1, got 0."),
        ({"per_device_train_batch_size": -4}, "per_device_train_batch_size must be at least 1, got -4."),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0."),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0."),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0."),
        ({"generation_batch_size": -8}, "generation_batch_size must be at least 1, got -8."),
        ({"steps_per_generation": 0}, "steps_per_generation must be at least 1, got 0."),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0."),
        ({"num_generations_eval": -1}, "num_generations_eval must be at least 1, got -1."),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0, got -1.0."),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1."),
        ({"adam_beta2": 1.0}, "adam_beta2 must be at least 0 and below 1, got 1.0."),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1."),
        ({"ref_model_mixup_alpha": 1.5}, "ref_model_mixup_alpha must be at least 0 and at most 1, got 1.5."),
        ({"top_entropy_quantile": 1.2}, "top_entropy_quantile must be at least 0 and at most 1, got 1.2."),
        ({"vllm_gpu_memory_utilization": 30}, "vllm_gpu_memory_utilization must be above 0 and at most 1, got 30."),
        ({"logging_steps": -1}, "logging_steps must be above 0 with logging_strategy='steps', got -1."),
        ({"eval_strategy": "steps", "eval_steps": -1}, "eval_steps must be at least 0 with eval_strategy='steps', got -1."),
        ({"epsilon": float("nan")}, "epsilon must be a number, got nan."),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused(tmp_path, kind, given, sentence):
    with pytest.raises(ValueError) as error:
        kind(str(tmp_path), bf16=False, **given)
    assert str(error.value) == sentence


@pytest.mark.parametrize("number", [0, 1, -2, None])
def test_a_group_has_at_least_two_episodes(tmp_path, number):
    with pytest.raises(
        ValueError,
        match=rf"^num_generations must be at least 2, since episodes of a task are compared, got {number}\.$",
    ):
        Mem1GRPOConfig(str(tmp_path), bf16=False, num_generations=number)


@pytest.mark.parametrize(
    "given",
    [
        {"beta": 0.0, "epsilon": 3e-4, "epsilon_high": 4e-4},  # GSPO
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"epsilon_high": None, "delta": None, "min_p": None, "num_generations_eval": None},
        {"max_steps": -1, "num_train_epochs": 0.5},
        {"max_steps": 3, "num_train_epochs": 0},
        {"top_p": 1, "top_k": 0, "min_p": 0.0},
        {"top_p": None, "top_k": None, "repetition_penalty": None},
        {"learning_rate": 0.0, "max_grad_norm": 0.0, "save_steps": -1, "warmup_steps": 0.1},
        {"logging_strategy": "no", "logging_steps": 0},
        {"eval_strategy": "steps", "eval_steps": 0},
        {"top_entropy_quantile": 0.0, "vllm_importance_sampling_clip_max": None, "vllm_importance_sampling_correction": False},
        {"pad_to_multiple_of": 8},
    ],
)  # fmt: skip
def test_what_trl_has_a_meaning_for_is_taken(tmp_path, given):
    Mem1GRPOConfig(str(tmp_path), bf16=False, **given)
    if given.get("loss_type") != "cispo":
        Mem1PPOConfig(str(tmp_path), bf16=False, **given)


INF = float("inf")


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "temperature", "eval_temperature", "beta", "weight_decay", "adam_epsilon", "logging_steps", "save_steps", "entropy_coef_max"],
)  # fmt: skip
def test_an_infinite_number_is_refused(tmp_path, kind, name):
    with pytest.raises(ValueError) as error:
        kind(str(tmp_path), bf16=False, **{name: INF})
    assert str(error.value) == f"{name} must be a finite number, got inf."


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"vf_coef": INF}, "vf_coef must be a finite number, got inf."),
        ({"value_learning_rate": INF}, "value_learning_rate must be a finite number, got inf."),
        ({"curriculum_threshold": INF, "curriculum_metric": "reward"}, "curriculum_threshold must be a finite number, got inf."),
        ({"num_train_epochs": INF}, "num_train_epochs must be finite, or max_steps at least 1, got inf."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("generations", [1, 2])
def test_an_infinite_number_of_the_critic_is_refused(tmp_path, given, sentence, generations):
    with pytest.raises(ValueError) as error:
        Mem1PPOConfig(str(tmp_path), bf16=False, num_generations=generations, per_device_train_batch_size=2, **given)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "given",
    [
        {"max_grad_norm": INF, "epsilon": INF, "epsilon_high": INF, "delta": INF, "environment_timeout": INF},
        {"max_steps": 3, "num_train_epochs": INF},
    ],
)
def test_a_limit_may_be_infinite(tmp_path, given):
    assert getattr(Mem1GRPOConfig(str(tmp_path), bf16=False, **given), next(reversed(given))) == INF
    assert Mem1PPOConfig(str(tmp_path), bf16=False, cliprange_value=INF, **given).cliprange_value == INF


# Lists and mappings


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("reward_weights", ["a"], "a list, each entry a number or null"),
        ("reward_weights", [1.0, None], "a list, each entry a number or null"),
        ("reward_weights", [True], "a list, each entry a number or null"),
        ("reward_weights", {"a": 1.0}, "a list, each entry a number or null"),
        ("report_to", [3], "null or text or a list, each entry text"),
        ("model_init_kwargs", ["dtype"], "an object or text or null"),
        ("context_kwargs", [4], "an object or text or null"),
        ("learning_rate", [1e-6], "a number"),
        ("max_turns", (3,), "a whole number"),
        ("curriculum_metric", ["reward"], "text"),
    ],
)
def test_a_list_of_another_type_is_refused(tmp_path, name, value, wanted):
    with pytest.raises(ValueError) as error:
        Mem1GRPOConfig(str(tmp_path), bf16=False, **{name: value})
    assert str(error.value) == f"{name} must be {wanted}, got {value!r}."


@pytest.mark.parametrize(
    "given",
    [
        {"reward_weights": (1, 0.5)},
        {"reward_weights": [np.float32(0.5), np.int64(2)]},
        {"report_to": ["none"]},
        {"debug": ["underflow_overflow"]},
        {"lr_scheduler_kwargs": {"num_cycles": 2}},
        {"generation_kwargs": {"bad_words_ids": [[1, 2]]}},
    ],
)
def test_lists_and_mappings_of_the_right_type_are_taken(tmp_path, given):
    args = Mem1GRPOConfig(str(tmp_path), bf16=False, **given)
    assert Mem1GRPOConfig(
        **{one.name: getattr(args, one.name) for one in fields(args) if one.init and one.name in given}, bf16=False
    )


@pytest.mark.parametrize(
    "name", ["context_kwargs", "generation_kwargs", "model_init_kwargs", "lr_scheduler_kwargs", "accelerator_config"]
)
def test_a_text_that_is_no_json_object_is_refused_by_name(tmp_path, name):
    """It was told what JSON expects, and not of which setting."""
    given = {name: "{bad", **({"context": "compact"} if name == "context_kwargs" else {})}
    with pytest.raises(ValueError) as error:
        Mem1GRPOConfig(str(tmp_path), bf16=False, **given)
    words = f"{name} must be a mapping, or a JSON object as text, got '{{bad': Expecting property name enclosed in double quotes"
    assert str(error.value).startswith(words)


def test_a_text_that_is_a_json_object_is_taken(tmp_path):
    args = Mem1GRPOConfig(str(tmp_path), bf16=False, context="compact", context_kwargs='{"every": 4}')
    assert args.context_kwargs == {"every": 4}


def test_a_path_of_a_teacher_is_its_text(tmp_path):
    args = Mem1GRPOConfig(
        str(tmp_path), bf16=False, distillation_weight=0.5, teacher_model_name_or_path=tmp_path / "teacher"
    )
    assert args.teacher_model_name_or_path == str(tmp_path / "teacher")


def test_a_configuration_of_trl_has_its_numbers_checked(tmp_path):
    with pytest.raises(ValueError, match=r"^beta must be at least 0, got -1\.0\.$"):
        from_grpo_config(GRPOConfig(str(tmp_path), bf16=False, beta=-1.0))
