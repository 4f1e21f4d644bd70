"""Columns of data sets that would not arrive where they are read are one sentence, before anything is trained."""

from __future__ import annotations

import pytest
from support.trainer_helpers import SHORT, LookupEnvironment, NoReward, lookup_dataset, trainer_arguments
from trl import GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


class Reached(Exception):
    """All checks before the model have passed."""


@pytest.fixture
def build(monkeypatch, tmp_path, tokenizer, actor_path):
    def reached(*args, **kwargs):
        raise Reached

    monkeypatch.setattr(GRPOTrainer, "__init__", reached)

    def built(environment=NoReward, **arguments):
        settings = {"max_turns": 3, "max_observation_length": 60, "num_generations": 2, **arguments.pop("args", {})}
        return Mem1GRPOTrainer(
            model=actor_path,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
            processing_class=tokenizer,
            environment_factory=environment,
            protocol=SHORT,
            **{"train_dataset": lookup_dataset(), **arguments},
        )

    return built


def with_column(name):
    return lookup_dataset().add_column(name, ["x"] * 4)


def without(name):
    return lookup_dataset().remove_columns(name)


def right(completions, secret, **kwargs):
    return [float(one == "1") for one in secret]


def exact(
    prompts, completions, completion_ids, trajectories, trainer_state, log_extra, log_metric, environments, secret
):
    return [1.0] * len(prompts)


def of_completion(completions, completion, **kwargs):
    return [1.0] * len(completions)


class Strict(LookupEnvironment):
    def reset(self, prompt, secret):
        return super().reset(secret=secret)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reward_funcs": right, "eval_dataset": without("secret")},
         "'right' must take .* by name for the eval dataset, got a signature .*: missing a required argument: 'secret'; .*or the column that is missing"),
        ({"reward_funcs": right, "eval_dataset": {"one": lookup_dataset(), "two": without("secret")}},
         "'right' must take .* by name for the eval dataset 'two', got"),
        ({"environment": Strict, "eval_dataset": without("secret")},
         r"The eval dataset has no column 'secret', which `reset` of Strict needs \(it has prompt\): add it, or give"),
        ({"environment": Strict, "eval_dataset": {"two": with_column("level")}},
         r"columns of a row of the eval dataset 'two' \(prompt, secret, level\), got .*unexpected keyword argument 'level'"),
        # TRL keeps this column from reward functions
        ({"reward_funcs": of_completion, "train_dataset": with_column("completion")}, "missing a required argument: 'completion'"),
        ({"reward_funcs": right, "train_dataset": with_column("trajectories")}, "The train dataset has a column 'trajectories', and reward functions are given"),
        ({"reward_funcs": right, "eval_dataset": with_column("environments")}, "The eval dataset has a column 'environments', and reward functions"),
        ({"environment": LookupEnvironment, "train_dataset": with_column("completions")},
         "The train dataset has a column 'completions', which is the name of an argument of reward functions: rename it"),
        ({"reward_funcs": right, "train_dataset": with_column("prompts")}, "The train dataset has a column 'prompts'"),
        ({"environment": LookupEnvironment, "args": {"remove_unused_columns": True}},
         "remove_unused_columns=True would take 'secret' from the train dataset before `reset` and reward functions see a row"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_would_not_arrive_is_refused(build, arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"reward_funcs": right, "eval_dataset": {"one": lookup_dataset(2), "two": lookup_dataset(3)}},
        {"environment": Strict, "eval_dataset": lookup_dataset(2)},
        {"reward_funcs": exact, "train_dataset": with_column("completion")},
        # Which only the environment reads
        {"environment": LookupEnvironment, "train_dataset": with_column("trajectories")},
        {
            "environment": LookupEnvironment,
            "train_dataset": without("secret"),
            "args": {"remove_unused_columns": True},
        },
    ],
    ids=lambda value: None,
)
def test_what_arrives_is_taken(build, arguments):
    with pytest.raises(Reached):
        build(**arguments)
