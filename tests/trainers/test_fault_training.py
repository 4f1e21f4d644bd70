"""Tests of training and evaluation where environments fail: nothing ends the run, and what failed teaches nothing."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import random
import re

import pytest
import torch
from datasets import Dataset
from support.fault_environments import Unlucky
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    assert_same_tensors,
    copy_parameters,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer, StopReason
from mem1_trl.evaluation import Evaluation
from mem1_trl.evaluation.evaluate import evaluate_agent

KINDS = {"grpo": (Mem1GRPOTrainer, Mem1GRPOConfig), "ppo": (Mem1PPOTrainer, Mem1PPOConfig)}


def make(
    kind, tmp_path, model, tokenizer, environment, dataset=None, reward_funcs=None, eval_dataset=None, **settings
):
    trainer_class, config_class = KINDS[kind]
    defaults = {"max_turns": 4, "max_observation_length": 60, "environment_retries": 0}
    if kind == "grpo":
        defaults["num_generations"] = 4
    else:
        defaults["beta"] = 0.0
    return trainer_class(
        model=model,
        args=config_class(**trainer_arguments(tmp_path, **{**defaults, **settings})),
        train_dataset=lookup_dataset(8) if dataset is None else dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        environment_factory=environment,
        reward_funcs=reward_funcs,
        protocol=SHORT,
    )


class Frail(LookupEnvironment):
    """Fails where its row says."""

    def reset(self, prompt=None, secret="7", fails="", **row):
        self.fails = fails
        if fails == "reset":
            raise RuntimeError("no such task")
        return super().reset(prompt, secret)

    def search(self, query: str) -> str:
        """Look the secret up."""
        if self.fails == "search":
            raise RuntimeError("index is gone")
        return super().search(query)

    def get_reward(self):
        if self.fails == "nan":
            return float("nan")
        if self.fails == "reward":
            raise RuntimeError("judge is down")
        return super().get_reward()


# Random failures of all kinds


@pytest.mark.parametrize("on_error", ["observe", "drop_group"])
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_random_failures_everywhere_end_no_run(kind, on_error, tmp_path, tokenizer, actor):
    Unlucky.seen.clear()
    Unlucky.luck, Unlucky.rate = random.Random(0), 0.2
    seen_by_reward = []

    def length(completions, trajectories, environments, log_extra, secret, **kwargs):
        """As users write them: sure that there is a turn and an environment."""
        seen_by_reward.extend(len(t.turns[-1].text) + len(e.secret) for t, e in zip(trajectories, environments))
        assert len(completions) == len(trajectories) == len(secret)
        log_extra("texts", [t.turns[0].text for t in trajectories])
        return [0.1 * len(t.turns) for t in trajectories]

    trainer = make(
        kind, tmp_path, actor, tokenizer, Unlucky, lookup_dataset(32), reward_funcs=[length], on_environment_error=on_error, max_steps=4,
        per_device_train_batch_size=8, environment_timeout=0.5, log_completions=True, gradient_accumulation_steps=2,
    )  # fmt: skip
    recorder = record(trainer)
    trainer.train()
    assert trainer.state.global_step == 4 and seen_by_reward
    assert {where for where, _ in Unlucky.seen} == {"reset", "search", "answer", "get_reward"}
    steps = [logs for logs in recorder.logs if "loss" in logs]
    names = {"error_rate", "timeouts", "retries", "restarts"} | (
        {"dropped_groups"} if on_error == "drop_group" else set()
    )
    for logs in steps:
        assert names <= {key.removeprefix("environment/") for key in logs if key.startswith("environment/")}
        assert logs["loss"] == logs["loss"]
    assert sum(logs["environment/error_rate"] for logs in steps) > 0
    assert sum(logs["environment/restarts"] for logs in steps) > 0
    for tensor in copy_parameters(trainer.model).values():
        assert tensor.isfinite().all()


class Undone(LookupEnvironment):
    """Cannot say whether the episodes of some rows are over."""

    @property
    def done(self):
        if self.secret != "0":
            raise RuntimeError("no score board")
        return False


def test_failures_of_done_are_counted_and_the_first_is_traced(tmp_path, tokenizer, actor, caplog):
    rows = Dataset.from_dict({"prompt": ["q?"] * 4, "secret": ["0", "1", "1", "1"]})
    trainer = make(
        "ppo", tmp_path, actor, tokenizer, Undone, rows, max_steps=1, shuffle_dataset=False, environment_retries=0,
    )  # fmt: skip
    texts = ["<think>a</think><search>x</search>", "<think>b</think><answer>0</answer>"]
    trainer.rollout.generate = ScriptedGenerator(tokenizer, lambda call, index, prompt: texts[min(call, 1)])
    trainer.rollout.mode = "lockstep"
    recorder = record(trainer)
    caplog.clear()
    trainer.train()
    assert [episode.error is None for episode in trainer.episodes] == [True, False, False, False]
    (logs,) = (logs for logs in recorder.logs if "loss" in logs)
    # Beside them 4 of `reset`, 4 of `search`, 1 of `answer` and 1 of `get_reward`
    assert logs["environment/error_rate"] == pytest.approx(3 / 13)
    (line,) = (one for one in caplog.records if one.getMessage().startswith("`done` of Undone failed."))
    assert str(line.exc_info[1]) == "no score board"


def test_two_hundred_unlucky_tasks_lose_none(tokenizer, actor):
    Unlucky.seen.clear()
    Unlucky.luck, Unlucky.rate = random.Random(1), 0.3
    agent = Mem1Agent(
        actor, tokenizer, SHORT, max_turns=4, max_completion_length=12, max_observation_length=60,
        environment_timeout=0.5, environment_retries=1, batch_size=100, conversational=False,
    )  # fmt: skip
    tasks = [{**row, "answers": [[row["secret"]]]} for row in lookup_dataset(200)]
    result = evaluate_agent(agent, tasks, Unlucky, batch_size=100)
    assert [task.index for task in result.tasks] == list(range(200))
    failed = [task for task in result.tasks if task.error is not None]
    assert 0 < len(failed) < 150 and result.errors == len(failed) / 200
    assert all(task.scores.get("reward", 0.0) == 0.0 for task in failed)
    assert {kind for _, kind in Unlucky.seen} == set(Unlucky.kinds)
    assert result.environment["timeouts"] >= Unlucky.seen["search", "hang"]
    assert result.environment["error_rate"] > 0 and result.environment["retries"] > 0
    assert result.environment["restarts"] > 0
    assert json.loads(json.dumps(result.to_dict("x")))["environment"] == result.environment


# What is left out leaves no trace


def dropped_and_smaller(
    kind, tmp_path, model, tokenizer, fails, on_error, actor_path=None, micro_batches=False, **settings
):
    """Gradients of a batch of two groups, of which the second fails, and of the first group alone."""
    runs = []
    for count in (2, 1):
        rows = lookup_dataset(2 if kind == "grpo" else 8)
        rows = rows.add_column("fails", ["", fails] if kind == "grpo" else [""] * 4 + [fails] * 4)
        rows = rows.select(range(count if kind == "grpo" else 4 * count))
        trainer = make(
            kind, tmp_path / str(count), actor_path or copy.deepcopy(model), tokenizer, Frail, rows,
            on_environment_error=on_error, max_steps=1, max_grad_norm=0.0, shuffle_dataset=False,
            per_device_train_batch_size=1 if micro_batches else 4 * count,
            gradient_accumulation_steps=4 * count if micro_batches else 1, **settings,
        )  # fmt: skip
        critic = {}
        if kind == "ppo":
            for name, parameter in trainer.value_model.named_parameters():
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name, critic=critic: critic.update({name: p.grad.clone()})
                )
        # Three kinds of episodes, so that advantages differ; a failed one must not shift who plays which
        plan = planned(lambda i: (1 + i % 3, i % 2))
        trainer.rollout.generate = ScriptedGenerator(tokenizer, plan)
        recorder = record(trainer)
        trainer.train()
        runs.append((recorder, critic))
    return runs


@pytest.mark.parametrize(
    ("fails", "on_error", "settings"),
    [
        ("nan", "observe", {"loss_type": "dapo"}),
        ("nan", "observe", {"loss_type": "grpo"}),
        ("nan", "drop_group", {"loss_type": "grpo", "scale_rewards": "batch"}),
        ("reward", "drop_group", {"loss_type": "bnpo"}),
        ("reset", "observe", {"loss_type": "dr_grpo"}),
        ("reset", "drop_group", {"loss_type": "grpo", "entropy_coef": 0.01}),
        ("reset", "drop_group", {"loss_type": "dapo", "multi_objective_aggregation": "normalize_then_sum"}),
        ("search", "drop_group", {"loss_type": "dapo", "layout": "per_turn"}),
        ("search", "drop_group", {"loss_type": "sapo"}),
    ],
)
def test_a_dropped_group_leaves_the_gradient_of_the_rest(fails, on_error, settings, tmp_path, tokenizer, actor):
    (both, _), (alone, _) = dropped_and_smaller("grpo", tmp_path, actor, tokenizer, fails, on_error, **settings)
    (gradients,), (expected,) = both.gradients, alone.gradients
    assert max(float(g.abs().max()) for g in expected.values()) > 0
    assert_same_tensors(gradients, expected, 1e-5)
    assert int(both.batches[0]["num_items_in_batch"]) == int(alone.batches[0]["num_items_in_batch"])
    for key in ("reward", "reward_std", "loss"):
        assert both.logs[0][key] == pytest.approx(alone.logs[0][key], abs=1e-6), key
    assert both.logs[0].get("environment/dropped_groups", 1.0) == 1.0


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "bnpo"}, {"loss_type": "grpo", "entropy_coef": 0.5}, {"loss_type": "dapo", "entropy_coef": 0.5}],
)
def test_a_micro_batch_of_nothing_but_failures_is_no_part_of_a_mean(settings, tmp_path, tokenizer, actor):
    """Rows of one a micro-batch: the mean over eight, of which four are empty, is that over the other four."""
    (both, _), (alone, _) = dropped_and_smaller(
        "grpo", tmp_path, actor, tokenizer, "reset", "drop_group", micro_batches=True, **settings
    )
    assert len(both.losses) == 8 and len(alone.losses) == 4
    assert_same_tensors(both.gradients[0], alone.gradients[0], 1e-5)
    assert both.logs[0]["loss"] == pytest.approx(alone.logs[0]["loss"], abs=1e-6)


def test_kl_of_what_is_left_out_counts_for_nothing(tmp_path, tokenizer, actor_path):
    (both, _), (alone, _) = dropped_and_smaller(
        "grpo", tmp_path, None, tokenizer, "reward", "drop_group", actor_path, loss_type="grpo", beta=0.1,
        num_iterations=2,
    )  # fmt: skip
    assert_same_tensors(both.gradients[0], alone.gradients[0], 1e-5)


@pytest.mark.parametrize(
    ("fails", "settings"),
    [
        ("nan", {"whiten_advantages": True}),
        ("reset", {"whiten_advantages": True, "gamma": 0.97, "lam": 0.9}),
        ("reward", {"whiten_advantages": False, "loss_type": "grpo"}),
    ],
)
@pytest.mark.parametrize("on_error", ["observe", "drop_group"])
def test_a_dropped_episode_is_in_neither_loss_of_ppo(fails, settings, on_error, tmp_path, tokenizer, actor):
    (both, critic), (alone, expected) = dropped_and_smaller(
        "ppo", tmp_path, actor, tokenizer, fails, on_error, **settings
    )
    assert_same_tensors(both.gradients[0], alone.gradients[0], 1e-5)
    assert_same_tensors(critic, expected, 1e-5)
    for key in ("value/loss", "value/return_mean", "value/advantage_abs_mean", "reward"):
        assert both.logs[0][key] == pytest.approx(alone.logs[0][key], abs=1e-6), key


def test_a_failed_sample_is_no_part_of_its_group_and_takes_the_group_along_if_told(tmp_path, tokenizer, actor):
    class Half(Frail):
        """The second of the four samples of a task fails."""

        numbers = iter(range(100))

        def __init__(self):
            self.number = next(self.numbers)

        def get_reward(self):
            if self.number == 1:
                raise RuntimeError("judge is down")
            return float(self.number)

    for on_error, advantages in (("observe", [-5 / 3, 0, 1 / 3, 4 / 3]), ("drop_group", [0, 0, 0, 0])):
        Half.numbers = iter(range(100))
        trainer = make(
            "grpo", tmp_path, actor, tokenizer, Half, on_environment_error=on_error, max_steps=1, scale_rewards="none",
            environment_concurrency=1,
        )  # fmt: skip
        trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(lambda i: (1, i)))
        recorder = record(trainer)
        trainer.train()
        (batch,) = recorder.batches
        torch.testing.assert_close(batch["advantages"], torch.tensor(advantages, dtype=torch.float32))
        counts = (batch["completion_mask"] * batch["tool_mask"]).sum(1)
        kept = [True, False, True, True] if on_error == "observe" else [False] * 4
        assert (counts > 0).tolist() == kept
        assert int(batch["num_items_in_batch"]) == int(counts.sum())


class Judge:
    """An asynchronous reward function in its other form."""

    __name__ = "judge"

    def __init__(self, asked):
        self.asked = asked

    async def __call__(self, trajectories, secret, number, environments, log_extra, **kwargs):
        self.asked.append((list(number), [e.secret for e in environments] == secret))
        log_extra("number", list(number))
        await asyncio.sleep(0)
        return [10.0 * one + len(t.turns) for one, t in zip(number, trajectories, strict=True)]


@pytest.mark.parametrize("form", ["function", "object", "partial of a function", "partial of an object"])
def test_asynchronous_rewards_stay_with_their_rows_where_episodes_have_failed(tmp_path, tokenizer, actor, form):
    """Rows 1 and 2 of six fail: the function sees the four others, and each has its own number back."""
    asked = []
    judge = Judge(asked)

    async def function(**kwargs):
        return await judge(**kwargs)

    reward = {
        "function": function, "object": judge, "partial of a function": functools.partial(function),
        "partial of an object": functools.partial(judge),
    }[form]  # fmt: skip
    fails = ["", "reset", "reward", "", "", ""]
    dataset = lookup_dataset(6).add_column("fails", fails).add_column("number", list(range(6)))
    trainer = make(
        "ppo", tmp_path, actor, tokenizer, Frail, dataset, reward_funcs=[reward, lambda number, **kwargs: [0.5 * n for n in number]],
        per_device_train_batch_size=6, max_steps=1, shuffle_dataset=False,
    )  # fmt: skip
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(lambda i: (1 + i % 3, 9)))
    logged = {}
    trainer._log_completion_extra = lambda column, values: logged.update({column: values})
    seen = []
    rewarded = trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    trainer.train()
    assert asked == [([0, 3, 4, 5], True)]
    assert logged["number"] == [0, None, None, 3, 4, 5]
    expected = [None if fails[i] else 10.5 * i + len(t.turns) for i, t in enumerate(seen)]
    assert [t.reward for t in seen] == expected
    # A failed episode has no length
    lengths = [t.num_generated_tokens for t, failure in zip(seen, fails) if not failure]
    logs = trainer.state.log_history[0]
    means = {"mean": sum(lengths) / 4, "min": min(lengths), "max": max(lengths)}
    assert {name: logs[f"completions/{name}_length"] for name in means} == pytest.approx(means)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_step_of_nothing_but_failures_changes_nothing(kind, tmp_path, tokenizer, actor, caplog):
    class Outage(Frail):
        """Down during the second batch."""

        batch = 0

        def get_reward(self):
            if Outage.batch == 2:
                raise RuntimeError("judge is down")
            return float(id(self) % 3)

    Outage.batch = 0
    trainer = make(
        kind, tmp_path, actor, tokenizer, Outage, max_steps=3, weight_decay=0.1, lr_scheduler_type="constant"
    )
    recorder = record(trainer)
    run, states = trainer.run_episodes, []

    def counting(rows):
        Outage.batch += 1
        states.append([copy_parameters(module) for module in trainer.trained_modules])
        return run(rows)

    trainer.run_episodes = counting
    trainer.train()
    states.append([copy_parameters(module) for module in trainer.trained_modules])
    # Without momentum of the first step and without weight decay, in policy and critic
    for before, after in zip(states[1], states[2]):
        assert all(torch.equal(before[name], after[name]) for name in before)
    for first, second in ((0, 1), (2, 3)):
        assert not all(torch.equal(states[first][0][name], states[second][0][name]) for name in states[0][0])
    assert "Every episode of a step was left out of the update" in caplog.text
    assert recorder.logs[1]["loss"] == 0.0 and recorder.logs[1]["reward"] is None


# Where a run ends after all


def test_an_environment_that_never_starts_ends_the_run_at_once(tmp_path, tokenizer, actor):
    dataset = lookup_dataset(4).add_column("fails", ["reset"] * 4)
    words = "started none of the 4 episodes of the first batch: correct it.*RuntimeError: no such task"
    with pytest.raises(RuntimeError, match=words):
        make("grpo", tmp_path, actor, tokenizer, Frail, dataset).train()


def test_an_outage_of_three_batches_ends_the_run(tmp_path, tokenizer, actor):
    order = ["", "reset", "nan", "", "reset", "nan", "reset"]
    dataset = lookup_dataset(7).add_column("fails", order)
    trainer = make("grpo", tmp_path, actor, tokenizer, Frail, dataset, max_steps=9, shuffle_dataset=False)
    recorder = record(trainer)
    with pytest.raises(RuntimeError, match=r"in every episode of 3 batches in a row.*resume from the last checkpoint"):
        trainer.train()
    # Two in a row were bridged before
    assert len([logs for logs in recorder.logs if "loss" in logs]) == 6


def test_evaluation_goes_on_where_reset_fails(tmp_path, tokenizer, actor):
    rows = lookup_dataset(6).add_column("fails", ["reset", "", "nan", "search", "", "reward"])
    rows = rows.add_column("answers", [[[secret]] for secret in rows["secret"]])
    trainer = make(
        "grpo", tmp_path, actor, tokenizer, Frail, eval_dataset=rows, save_eval_trajectories=True,
        per_device_eval_batch_size=6, num_generations_eval=1,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics[f"eval_episode/stop_reason/{StopReason.ERROR}"] == pytest.approx(1 / 6)
    assert metrics["eval_environment/error_rate"] > 0
    (path,) = (tmp_path / "evaluation").glob("*.jsonl")
    saved = Evaluation.load(path.parent, path.stem)
    # Half of the episodes failed and count 0 in the log, too
    assert metrics["eval_reward"] == pytest.approx(saved.statistics["reward"].mean)
    assert metrics["eval_rewards/Frail/mean"] == metrics["eval_reward"]
    errors = [json.loads(line)["error"] for line in path.read_text().splitlines()]
    assert sorted(re.sub(r".*: ", "", error) for error in errors if error is not None) == [
        "get_reward gave nan", "judge is down", "no such task",
    ]  # fmt: skip
    assert len(errors) == 6
    everything = make("grpo", tmp_path, actor, tokenizer, Frail, eval_dataset=rows.select([0]), num_generations_eval=1,
                      per_device_eval_batch_size=1)  # fmt: skip
    assert everything.evaluate()["eval_environment/error_rate"] == 1.0


def test_a_reset_that_says_too_much_fails_alone(tmp_path, tokenizer, actor):
    class Talkative(LookupEnvironment):
        def reset(self, prompt=None, secret="7", **row):
            super().reset(prompt, secret)
            return "x" * {"0": 0, "1": 3000, "2": 10_000_000}[secret]

    trainer = make(
        "ppo", tmp_path, actor, tokenizer, Talkative, max_steps=1, max_context_length=1000, per_device_train_batch_size=3,
        shuffle_dataset=False,
    )  # fmt: skip
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(lambda i: (1, 0)))
    recorder = record(trainer)
    trainer.train()
    (batch,) = recorder.batches
    assert ((batch["completion_mask"] * batch["tool_mask"]).sum(1) > 0).tolist() == [True, False, False]
    assert batch["prompt_ids"].shape[1] < 100


def test_environments_are_closed_at_the_end(tmp_path, tokenizer, actor):
    class Closing(LookupEnvironment):
        made, closed = [], []

        def __init__(self):
            Closing.made.append(self)

        def close(self):
            Closing.closed.append(self)

    trainer = make("grpo", tmp_path, actor, tokenizer, Closing, max_steps=1, eval_dataset=lookup_dataset(4))
    trainer.train()
    assert len(Closing.made) == 4 and set(map(id, Closing.closed)) == set(map(id, Closing.made))
    trainer.evaluate()
    assert len(Closing.made) > 4 and set(map(id, Closing.closed)) == set(map(id, Closing.made))
