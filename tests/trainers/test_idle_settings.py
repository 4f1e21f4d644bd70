"""Settings that another one turns off are refused, and so is a curriculum that could not go on."""

from __future__ import annotations

import pytest
from support.trainer_helpers import lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"curriculum_steps": 3}, "curriculum_steps=3 has no effect with curriculum_threshold=None: set it, or leave it 10"),
        ({"curriculum_metric": "reward"}, "curriculum_metric='reward' has no effect with curriculum_threshold=None"),
        ({"memory_top_k": 5}, "memory_top_k=5 has no effect with context='mem1': use 'external', or leave it 3"),
        ({"rollout_mode": "lockstep", "rollout_batch_wait": 0.5}, "rollout_batch_wait=0.5 has no effect with rollout_mode='lockstep'"),
        ({"curriculum_threshold": 70.0}, "curriculum_threshold must be at most 1 for curriculum_metric='episode/success'.* got 70.0"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(tmp_path, settings, words):
    arguments = {**trainer_arguments(tmp_path), "rollout_batch_wait": 0.02, "num_generations": 2, **settings}
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(**arguments)


@pytest.mark.parametrize("name", ["loss_type", "importance_sampling_level", "multi_objective_aggregation"])
def test_a_word_that_trl_does_not_know_is_refused_at_once(tmp_path, name):
    """TRL says so in the first update, after an hour of episodes."""
    with pytest.raises(ValueError, match=f"{name} must be one of '.*', got 'gropo'"):
        Mem1GRPOConfig(**{**trainer_arguments(tmp_path), "num_generations": 2, name: "gropo"})


def test_what_has_an_effect_is_taken(tmp_path):
    arguments = {**trainer_arguments(tmp_path), "num_generations": 2}
    config = Mem1GRPOConfig(
        **{**arguments, "curriculum_threshold": 70.0, "curriculum_metric": "reward", "curriculum_steps": 3}
    )
    assert config.curriculum_steps == 3
    assert Mem1GRPOConfig(**{**arguments, "context": "external", "memory_top_k": 5}).memory_top_k == 5


def test_values_of_episodes_that_are_left_out_are_not_asked_for(tmp_path):
    both = {"bootstrap_truncated": True, "mask_truncated_completions": True}
    with pytest.raises(
        ValueError, match="bootstrap_truncated=True has no effect on episodes that mask_truncated_completions"
    ):
        Mem1PPOConfig(**trainer_arguments(tmp_path, **both))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_turns": 3}, "max_turns=3 is about episodes with an environment, and there is none: pass `environment_factory`, or leave it 6"),
        ({"context": "full"}, "context='full' is about episodes with an environment"),
        ({"max_observation_length": 50}, "max_observation_length=50 is about .* or leave it 1000"),
        ({"environment_timeout": 5.0}, "environment_timeout=5.0 is about"),
    ],
)  # fmt: skip
def test_settings_of_episodes_need_an_environment(tmp_path, tokenizer, actor_path, settings, words):
    """They were ignored: a forgotten environment looked like a run of several turns."""
    arguments = {**trainer_arguments(tmp_path), "num_generations": 2, "max_turns": 1, **settings}
    with pytest.raises(ValueError, match=words):
        Mem1GRPOTrainer(
            model=actor_path,
            args=Mem1GRPOConfig(**arguments),
            reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
        )
