"""What a run would learn nothing right from, though nothing fails, is said: groups of several tasks, answers that nothing can compare."""

from __future__ import annotations

import itertools

import pytest
from datasets import Dataset
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    chat_tokenizer,
    lookup_dataset,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.checks import check_answers
from mem1_trl.trainers.run_stopped import RunStopped

TASKS = itertools.count()


class DrawsItsTask(LookupEnvironment):
    """Another task whenever it begins."""

    def reset(self, **row):
        super().reset()
        return f"Task {next(TASKS)}."


class TaskOfTheRow(DrawsItsTask):
    def reset(self, prompt="", **row):
        super().reset()
        return f"The task of {prompt}."


def one(completions, **kwargs):
    return [1.0] * len(completions)


def trainer_of(tmp_path, model, tokenizer, environment=LookupEnvironment, **arguments):
    settings = {
        "max_turns": 2, "max_observation_length": 60, "num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 2,
        **arguments.pop("args", {}),
    }  # fmt: skip
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
        **arguments,
    )


@pytest.mark.parametrize("environment", [DrawsItsTask, TaskOfTheRow])
def test_groups_of_several_tasks_are_said_once(tmp_path, tokenizer, actor_path, caplog, environment):
    trainer = trainer_of(
        tmp_path,
        actor_path,
        tokenizer,
        environment,
        train_dataset=None if environment is DrawsItsTask else lookup_dataset(),
    )
    trainer.train()
    said = caplog.text.count("The episodes of 2 of 2 groups begin with different contexts")
    assert said == (environment is DrawsItsTask)


def with_answers(*answers):
    return lookup_dataset(len(answers)).add_column("answers", list(answers))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (with_answers("a", "b"), r"Row 0 of the set has answers='a': give a list with the accepted answers of each objective, such as"),
        (with_answers([["5"]], []), r"Row 1 of the set has answers=\[\]: give a list"),
        (with_answers({"text": ["5"]}, {"text": ["6"]}), "Row 0 of the set has answers={'text': .*}: give a list"),
        (with_answers([["5"]], [["6"]]).with_format("numpy"), "The set gives its `answers` as arrays, since it is formatted as 'numpy': pass"),
    ],
)  # fmt: skip
def test_answers_of_another_form_are_said(caplog, dataset, words):
    """They were passed over, and `memory_value_weight` rewarded what the next action makes of a state instead."""
    with pytest.raises(ValueError, match=f"{words}.* memory_value_weight needs them"):
        check_answers("set", dataset, needed=True)
    assert caplog.text == ""
    check_answers("set", dataset, needed=False)
    assert "no metric compares answers with them" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    "dataset", [lookup_dataset(), with_answers([["5"], ["6", "7"]], None), with_answers(["5"], ["6"])]
)
def test_answers_that_can_be_compared_are_taken(caplog, dataset):
    for needed in (False, True):
        check_answers("set", dataset, needed)
    assert caplog.text == ""


def test_a_stream_with_answers_of_another_form_ends_the_run(tmp_path, tokenizer, actor_path):
    trainer = trainer_of(
        tmp_path, actor_path, tokenizer, args={"memory_value_weight": 0.5}, train_dataset=with_answers(*"abcd").to_iterable_dataset()
    )  # fmt: skip
    with pytest.raises(RunStopped, match=r"A row has answers='.': give a list"):
        trainer.train()


def test_reward_functions_of_one_name_have_metrics_of_their_own(tmp_path, tokenizer, actor_path):
    """The means of both went into one metric, and in an evaluation those of the first were lost in it."""
    two = [
        lambda completions, **kwargs: [1.0] * len(completions),
        lambda completions, **kwargs: [3.0] * len(completions),
    ]
    trainer = trainer_of(
        tmp_path, actor_path, tokenizer, NoReward, reward_funcs=[*two, one], train_dataset=lookup_dataset(), eval_dataset=lookup_dataset(),
        args={"eval_strategy": "steps", "eval_steps": 1},
    )  # fmt: skip
    recorder = record(trainer)
    trainer.train()
    names = ["<lambda>", "<lambda>_2", "one"]
    assert trainer.reward_func_names == names
    for prefix in ("", "eval_"):
        log = next(log for log in recorder.logs if f"{prefix}rewards/one/mean" in log)
        assert [log[f"{prefix}rewards/{name}/mean"] for name in names] == [1.0, 3.0, 1.0]


@pytest.mark.parametrize("messages", [True, False])
def test_a_stream_without_an_environment_says_what_its_tasks_are(tmp_path, actor_path, messages):
    """Messages of a stream were saved as texts, so that an agent would have read their Python form."""
    prompts = [[{"role": "user", "content": "q?"}] if messages else "q?" for _ in range(4)]
    trainer = Mem1GRPOTrainer(
        model=actor_path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, conversational=None)),
        reward_funcs=one,
        train_dataset=Dataset.from_dict({"prompt": prompts}).to_iterable_dataset(),
        processing_class=chat_tokenizer(),
    )
    assert trainer.agent_settings().conversational is messages
    trainer.train()
    assert trainer.state.global_step == 2
