"""A curriculum that is driven by success: its stages against arithmetic by hand, killed and resumed, and limits on turns."""

from __future__ import annotations

import json
import shutil

import pytest
from datasets import Dataset
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    copy_parameters,
    play_scripted,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.curriculum import compose_curriculum, turn_limit
from mem1_trl.trainers.stages import StagesBySuccess

QUESTIONS = Dataset.from_dict({"question": [f"q{i}?" for i in range(12)], "answer": [str(i % 3) for i in range(12)]})
# Batches of two tasks. Means of the last two: -, 0.4, 0.5 and on; of the second stage: -, 0.35, 0.5 and on; then the last, with no end
SUCCESS = [0.2, 0.6, 0.4, 0.1, 0.6, 0.4, 0.9, 0.9]
STAGES = [0, 0, 0, 1, 1, 1, 2, 2]
PLACES = [(0, 1), (2, 0), (1, 2), (0, 1), (2, 3), (0, 1), (0, 1), (0, 1)]  # three tasks, four, and two
TRAINERS = {"grpo": (Mem1GRPOTrainer, Mem1GRPOConfig), "ppo": (Mem1PPOTrainer, Mem1PPOConfig)}


def rewarding(trajectories, trainer_state, **kwargs):
    """Rewards that differ within each group, so that something is learned, and whose mean over a batch is that of `SUCCESS`."""
    mean = SUCCESS[trainer_state.global_step]
    return [mean + (0.25 if index % 2 else -0.25) for index in range(len(trajectories))]


def make(kind, tmp_path, path, tokenizer, stages=((3, {1: 1.0}), (4, {2: 1.0}), (2, {3: 1.0})), **settings):
    trainer_class, config = TRAINERS[kind]
    settings = {"num_generations": 2, "max_turns": 3, "max_observation_length": 40, "save_strategy": "steps", "save_steps": 1,
                "max_steps": len(SUCCESS), "shuffle_dataset": False, "curriculum_threshold": 0.5, "curriculum_steps": 2,
                "curriculum_metric": "reward", **settings}  # fmt: skip
    seen = []

    class Watched(LookupEnvironment):
        get_reward = None

        def reset(self, prompt="", curriculum_stage=None, **row):
            seen.append((curriculum_stage, prompt))
            return super().reset(prompt, "0")

    tasks = compose_curriculum(QUESTIONS, list(stages))
    trainer = trainer_class(
        model=path,
        args=config(**trainer_arguments(tmp_path, **settings)),
        reward_funcs=rewarding,
        train_dataset=tasks,
        processing_class=tokenizer,
        environment_factory=Watched,
        protocol=SHORT,
    )
    seen.clear()
    return trainer, seen, tasks


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_stage_ends_when_the_last_steps_reach_the_threshold_and_a_killed_run_goes_on_the_same(
    kind, tmp_path, tokenizer, actor_path
):
    whole, seen, tasks = make(kind, tmp_path / "whole", actor_path, tokenizer)
    whole.train()
    begins = {0: 0, 1: 3, 2: 7}
    expected = [
        (stage, tasks[begins[stage] + place]["prompt"])
        for stage, places in zip(STAGES, PLACES)
        for place in places
        for _ in range(2)  # episodes of a group
    ]
    assert [sorted(seen[i : i + 4]) for i in range(0, len(seen), 4)] == [
        sorted(expected[i : i + 4]) for i in range(0, len(expected), 4)
    ]
    logged = [log["curriculum/stage"] for log in whole.state.log_history if "reward" in log]
    assert logged == STAGES
    state = json.loads((tmp_path / "whole" / "checkpoint-5" / "mem1_curriculum.json").read_text())
    assert state == {"stage": 1, "taken": 4, "metric": "reward", "last": [pytest.approx(0.1), pytest.approx(0.6)]}

    # All that is left of the run is the checkpoint in the middle of the second stage
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "cut" / "checkpoint-5")
    rest, after, _ = make(kind, tmp_path / "cut", actor_path, tokenizer)
    rest.train(resume_from_checkpoint=True)
    assert sorted(after) == sorted(expected[20:])
    ours, theirs = copy_parameters(rest.model), copy_parameters(whole.model)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert rest.stages.stage == whole.stages.stage == 2 and rest.stages.last == whole.stages.last


def test_training_again_begins_with_the_first_stage(tmp_path, tokenizer, actor_path):
    trainer, seen, _ = make("grpo", tmp_path, actor_path, tokenizer)
    trainer.train()
    first, seen[:] = list(seen), []
    trainer.train()
    assert sorted(seen[:4]) == sorted(first[:4]) and {stage for stage, _ in seen[:4]} == {0}


def test_turns_are_limited_by_stage(tmp_path, tokenizer, actor_path):
    stages = ((3, {1: 1.0}, 1), (4, {2: 1.0}, 2), (2, {3: 1.0}))
    trainer, _, tasks = make(
        "grpo", tmp_path, actor_path, tokenizer, stages, save_strategy="no", per_device_train_batch_size=8
    )
    assert tasks["curriculum_max_turns"] == [1] * 3 + [2] * 4 + [None] * 2
    lengths: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}

    def watch(trajectories, curriculum_stage, **kwargs):
        for stage, trajectory in zip(curriculum_stage, trajectories):
            lengths[stage].add(len(trajectory.turns))
            last = trajectory.turns[-1]
            if trajectory.stop_reason == "max_turns":  # it was told that this turn is its last
                assert len(trajectory.turns) == {0: 1, 1: 2, 2: 3}[stage] and last.observation is None
                assert stage == 0 or trajectory.turns[-2].observation.endswith("</information>")
                assert stage == 0 or "last;" in trajectory.turns[-2].observation
        return [None] * len(trajectories)

    trainer.reward_funcs.append(watch)
    trainer.reward_func_names.append("watch")
    trainer.reward_processing_classes.append(None)
    trainer.reward_weights = trainer.reward_weights.new_ones(2)
    trainer.train()
    assert lengths[0] == {1} and max(lengths[1]) == 2 and max(lengths[2]) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shuffle_dataset": True}, "whose order a shuffle would undo"),
        ({"curriculum_steps": 0}, "curriculum_steps must be at least 1, got 0"),
        (
            {"stages": ((2, {1: 1.0}, 4), (2, {1: 1.0}))},
            "allows up to 4 turns, and max_turns=3 is the most of any episode",
        ),
    ],
)
def test_what_cannot_be_played_as_it_is_written_is_refused(tmp_path, tokenizer, actor_path, change, words):
    with pytest.raises(ValueError, match=words):
        make("grpo", tmp_path, actor_path, tokenizer, **change)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (Dataset.from_dict({"prompt": ["q0?"] * 4}), "needs a training data set with a column 'curriculum_stage', .* got 'prompt'"),
        (Dataset.from_dict({"prompt": ["q0?"] * 3, "curriculum_stage": [0, 1, 0]}), "must follow each other: sort it"),
        (Dataset.from_dict({"prompt": ["q0?"], "curriculum_stage": [0]}), "curriculum_metric='episode/success', which compares answers with the column 'answers', got"),
        (Dataset.from_dict({"prompt": ["q0?"], "curriculum_stage": [0]}).to_iterable_dataset(), "must not be a stream"),
    ],
)  # fmt: skip
def test_a_data_set_without_stages_is_refused(tmp_path, tokenizer, actor_path, tasks, words):
    settings = trainer_arguments(tmp_path, shuffle_dataset=False, curriculum_threshold=0.5, num_generations=2)
    with pytest.raises(ValueError, match=words):
        Mem1GRPOTrainer(
            model=actor_path, args=Mem1GRPOConfig(**settings), train_dataset=tasks, processing_class=tokenizer,
            environment_factory=LookupEnvironment, protocol=SHORT,
        )  # fmt: skip


def test_a_metric_that_is_not_logged_and_a_checkpoint_of_another_run_are_refused(tmp_path, tokenizer, actor_path):
    trainer, _, _ = make("grpo", tmp_path / "a", actor_path, tokenizer, curriculum_metric="episode/won")
    with pytest.raises(
        ValueError, match=r"must be a metric of each batch, one of .*'episode/turns'.*, got 'episode/won'"
    ):
        trainer.train()
    plain, _, _ = make(
        "grpo",
        tmp_path / "b",
        actor_path,
        tokenizer,
        curriculum_threshold=None,
        curriculum_steps=10,
        curriculum_metric="episode/success",
        max_steps=1,
    )
    plain.train()
    trainer, _, _ = make("grpo", tmp_path / "b", actor_path, tokenizer)
    with pytest.raises(ValueError, match=r"has no mem1_curriculum\.json, so its run knew no curriculum_threshold"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_that_goes_on_by_another_metric_counts_its_batches_from_the_first(tmp_path, tokenizer, actor_path):
    trainer, _, _ = make("grpo", tmp_path, actor_path, tokenizer)
    trainer.stages.last = [0.6]
    trainer.stages.save(str(tmp_path))
    for metric, kept in (("reward", [0.6]), ("episode/success", [])):
        other, _, _ = make("grpo", tmp_path, actor_path, tokenizer, curriculum_metric=metric)
        other.stages.load(str(tmp_path))
        assert other.stages.last == kept


def test_a_curriculum_may_have_been_through_pandas_or_be_tensors(tmp_path, tokenizer, actor_path):
    tasks = compose_curriculum(QUESTIONS, [(2, {1: 1.0}, 2), (2, {1: 1.0})])
    back = Dataset.from_pandas(tasks.to_pandas())
    assert list(map(turn_limit, back["curriculum_max_turns"])) == [2, 2, None, None]
    with pytest.raises(ValueError, match="must hold whole numbers of at least 1, or nothing, got inf"):
        turn_limit(float("inf"))
    with pytest.raises(
        ValueError, match=r"'curriculum_max_turns' must hold whole numbers of at least 1, or nothing, got 2\.5"
    ):
        turn_limit(2.5)
    trainer, _, _ = make("grpo", tmp_path, actor_path, tokenizer)
    trainer.train_dataset = trainer.train_dataset.with_format("torch")
    assert StagesBySuccess(trainer).begins == [0, 3, 7, 9]


def test_an_outage_is_no_failure_of_the_agent(tmp_path, tokenizer, actor_path):
    """Successes of three batches: 1, none since every environment failed, 1. The stage ends with the third."""
    begun = []

    class Environment(NoReward):
        def reset(self, secret="7", prompt="", **row):
            begun.append(prompt)
            if 5 < len(begun) <= 9:  # after a first look and a batch
                raise KeyError("row")
            return super().reset(secret=secret)

    tasks = {"prompt": [f"q{i}?" for i in range(8)], "secret": ["0"] * 8, "answers": [[["0"]]] * 8}
    trainer = Mem1GRPOTrainer(
        model=actor_path,
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path, num_generations=2, max_steps=4, curriculum_threshold=0.9, curriculum_steps=2, shuffle_dataset=False,
                environment_retries=0, beta=0.0, max_turns=2,
            )
        ),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({**tasks, "curriculum_stage": [0] * 4 + [1] * 4}),
        processing_class=tokenizer,
        environment_factory=Environment,
        protocol=SHORT,
    )  # fmt: skip
    play_scripted(trainer, tokenizer, lambda index: (1, 0))
    recorder = record(trainer)
    trainer.train()
    assert [log.get("episode/success") for log in recorder.logs[:4]] == [1.0, None, 1.0, 1.0]
    assert [log["curriculum/stage"] for log in recorder.logs[:4]] == [0, 0, 0, 1]
