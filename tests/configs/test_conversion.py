"""What becomes of a `GRPOConfig` of a script that was written for TRL, where TRL's defaults follow the loss."""

from __future__ import annotations

import re
import warnings

import pytest
from trl import GRPOConfig

from mem1_trl import Mem1GRPOConfig
from mem1_trl.configs import from_grpo_config

STEPS = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, bf16=False, use_cpu=True)
BEST = {"load_best_model_at_end": True}
SAID = "metric_for_best_model='reward' with greater_is_better=True (TRL: 'loss')"


def converted(tmp_path, **settings) -> tuple[Mem1GRPOConfig, str]:
    """The configuration, and the warning."""
    args = GRPOConfig(str(tmp_path), num_generations_eval=1, **STEPS, **settings)
    before = dict(vars(args))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = from_grpo_config(args)
    assert vars(args) == before
    return config, next(str(one.message) for one in caught if "A GRPOConfig is run" in str(one.message))


def followed(config):
    return config.metric_for_best_model, config.greater_is_better, (config.lr_scheduler_kwargs or {}).get("mode")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BEST, ("reward", True, None)),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ("reward", True, "max")),
        ({"lr_scheduler_type": "greedy"}, ("reward", True, "max")),
        ({**BEST, "lr_scheduler_type": "reduce_lr_on_plateau"}, ("reward", True, "max")),
    ],
)
def test_what_follows_the_loss_by_default_follows_the_reward(tmp_path, settings, expected):
    config, said = converted(tmp_path, **settings)
    assert followed(config) == expected
    assert SAID in said
    assert ("mode='max' in lr_scheduler_kwargs" in said) == (expected[2] is not None)
    ours = Mem1GRPOConfig(str(tmp_path), num_generations_eval=1, **STEPS, **settings)
    assert followed(ours) == expected and ours.lr_scheduler_kwargs == config.lr_scheduler_kwargs


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, None, None)),
        ({"metric_for_best_model": "loss"}, ("loss", False, None)),  # nothing goes by it
        ({**BEST, "metric_for_best_model": "eval_loss"}, ("eval_loss", False, None)),
        (
            {**BEST, "metric_for_best_model": "episode/turns", "greater_is_better": False},
            ("episode/turns", False, None),
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "eval_reward"},
            ("eval_reward", True, "max"),
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "min", "patience": 2}},
            ("reward", True, "min"),
        ),
    ],
)
def test_what_was_chosen_stays(tmp_path, settings, expected):
    config, said = converted(tmp_path, **settings)
    assert followed(config) == expected
    assert bool(re.search(r"TRL: 'loss'", said)) == (expected[0] == "reward")
