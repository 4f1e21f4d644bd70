"""Numbers that are not finite: none from a reward function is taken, none reaches the weights or a complete checkpoint."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    ScriptedGenerator,
    assert_same_tensors,
    copy_parameters,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.environment_runtime.faults import as_reward
from mem1_trl.trainers.checkpoints import last_complete_checkpoint
from mem1_trl.trainers.non_finite import non_finite_rows
from mem1_trl.trainers.run_stopped import RunStopped

KINDS = {"grpo": (Mem1GRPOTrainer, Mem1GRPOConfig), "ppo": (Mem1PPOTrainer, Mem1PPOConfig)}
INF, NAN = float("inf"), float("nan")


def make(kind, tmp_path, model, tokenizer, reward_funcs=None, environment=LookupEnvironment, **settings):
    """A trainer on four scripted episodes of one to three turns, of which GRPO takes all for one group."""
    trainer_class, config_class = KINDS[kind]
    defaults = {"max_turns": 4, "max_observation_length": 60, "environment_retries": 0, "shuffle_dataset": False}
    defaults |= {"num_generations": 4} if kind == "grpo" else {"beta": 0.0}
    trainer = trainer_class(
        model=model,
        args=config_class(**trainer_arguments(tmp_path, **{**defaults, **settings})),
        train_dataset=lookup_dataset(8),
        eval_dataset=lookup_dataset(4),
        processing_class=tokenizer,
        environment_factory=environment,
        reward_funcs=reward_funcs,
        protocol=SHORT,
    )
    script = planned(lambda i: (1 + i % 3, i % 2))
    start = trainer.prepare_rows

    def prepare_rows(rows):
        trainer.rollout.generate = ScriptedGenerator(tokenizer, script)
        return start(rows)

    trainer.prepare_rows = prepare_rows
    return trainer


def rewards_of(numbers):
    """A reward function that gives these numbers in every batch."""

    def judge(completions, **kwargs):
        return numbers

    return judge


# The gate of reward functions


@pytest.mark.parametrize("given", [INF, -INF, NAN, 1e39, 10**400, torch.tensor(INF)])
def test_the_gate_takes_numbers_that_float32_holds(given):
    with pytest.raises(ValueError, match=r"judge gave (-?inf|nan|1e\+39)$"):
        as_reward(given, "judge")
    assert as_reward(3.4e38) == 3.4e38 and as_reward(None) is None and as_reward(True) == 1.0


class JudgeFails(LookupEnvironment):
    """The oracle: the same rewards from `get_reward`, which fails for the second episode of every four."""

    made = 0

    def __init__(self):
        self.number = JudgeFails.made % 4
        JudgeFails.made += 1

    def get_reward(self):
        if self.number == 1:
            return NAN
        return (0.0, 1.0, 2.0, 4.0)[self.number]


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.parametrize("on_error", ["observe", "drop_group"])
@pytest.mark.parametrize("given", [INF, NAN])
def test_an_episode_without_finite_reward_is_left_out(kind, on_error, given, tmp_path, tokenizer, actor, caplog):
    """As if `get_reward` had failed: same advantages, same gradient of policy and critic, one line with function and row."""
    runs = []
    for name in ("function", "environment"):
        JudgeFails.made = 0
        of_function = name == "function"
        trainer = make(
            kind, tmp_path / name, copy.deepcopy(actor), tokenizer, on_environment_error=on_error, max_steps=1,
            reward_funcs=[rewards_of([0.0, given, 2.0, 4.0])] if of_function else None, max_grad_norm=0.0,
            environment=NoReward if of_function else JudgeFails, environment_concurrency=1,
        )  # fmt: skip
        recorder = record(trainer)
        critic = {}
        if kind == "ppo":
            torch.nn.init.normal_(trainer.value_model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
            for key, parameter in trainer.value_model.named_parameters():
                parameter.register_post_accumulate_grad_hook(
                    lambda p, key=key, critic=critic: critic.update({key: p.grad.clone()})
                )
        played = []
        rewarded = trainer.rewarded
        trainer.rewarded = lambda ts, played=played, rewarded=rewarded: (played.extend(ts), rewarded(ts))
        trainer.train()
        runs.append((recorder, critic, played))
    (function, critic, played), (environment, expected, _) = runs
    assert [t.error for t in played] == [None, f"The reward function 'judge' gave {given}", None, None]
    assert [t.reward is None for t in played] == (
        [False, True, False, False] if on_error == "observe" or kind == "ppo" else [True] * 4
    )
    (one,), (other,) = function.batches, environment.batches
    counts = [(b["completion_mask"] * b["tool_mask"]).sum(1).tolist() for b in (one, other)]
    assert counts[0] == counts[1] and counts[0][1] == 0
    assert int(one["num_items_in_batch"]) == int(other["num_items_in_batch"]) == sum(counts[0])
    if sum(counts[0]):
        assert_same_tensors(function.gradients[0], environment.gradients[0], 1e-5)
    if kind == "ppo":
        assert_same_tensors(critic, expected, 1e-5)
    for key in ("reward", "loss", "environment/dropped_groups"):
        assert function.logs[0].get(key) == pytest.approx(environment.logs[0].get(key), abs=1e-6), key
    task = "q0?" if kind == "grpo" else "abq1?"
    assert "1 of 4 episodes have no finite reward" in caplog.text
    assert f"The reward function 'judge' gave {given} for row 1 of the batch (task '{task}')" in caplog.text


class Judge(torch.nn.Module):
    """A reward model that gives the length of a text, and no number for the longest."""

    def forward(self, input_ids, attention_mask, **kwargs):
        lengths = attention_mask.sum(1, keepdim=True).float()
        return SimpleNamespace(logits=torch.where(lengths == lengths.max(), torch.tensor(NAN), lengths))


def test_reward_models_and_asynchronous_functions_go_through_the_gate(tmp_path, tokenizer, actor, caplog):
    async def slow(completions, **kwargs):
        return [1.0, INF, 2.0, 3.0]

    judge = Judge()
    judge.config = SimpleNamespace(_name_or_path="judges/length", pad_token_id=0)
    trainer = make("grpo", tmp_path, actor, tokenizer, [slow, judge], NoReward, max_steps=1)
    trainer.reward_processing_classes[1] = tokenizer
    recorder = record(trainer)
    trainer.train()
    counts = (recorder.batches[0]["completion_mask"] * recorder.batches[0]["tool_mask"]).sum(1)
    assert (counts > 0).tolist() == [True, False, False, True]
    assert "2 of 4 episodes have no finite reward" in caplog.text
    assert all(tensor.isfinite().all() for tensor in copy_parameters(trainer.model).values())


def test_an_evaluation_counts_what_has_no_finite_reward_as_failed(tmp_path, tokenizer, actor):
    trainer = make(
        "grpo", tmp_path, actor, tokenizer, [rewards_of([1.0, NAN, 1.0, 1.0])], NoReward, save_eval_trajectories=True,
        per_device_eval_batch_size=4, num_generations_eval=1,
    )  # fmt: skip
    assert trainer.evaluate()["eval_reward"] == 0.75
    (path,) = (tmp_path / "evaluation").glob("*.jsonl")
    errors = [json.loads(line)["error"] for line in path.read_text().splitlines()]
    assert errors == [None, "The reward function 'judge' gave nan", None, None]


def test_what_is_no_number_is_an_error_with_function_and_row(tmp_path, tokenizer, actor):
    trainer = make("grpo", tmp_path, actor, tokenizer, [rewards_of([0.0, 1.0, "two", 3.0])], NoReward)
    with pytest.raises(
        TypeError, match=r"The reward function 'judge' gave a str: return a float.*\(row 2 of the batch\)"
    ):
        trainer.train()
    trainer = make("grpo", tmp_path, actor, tokenizer, [rewards_of([0.0, 1.0])], NoReward)
    with pytest.raises(ValueError, match=r"function 'judge' returned 2 rewards, but 4 were expected"):
        trainer.train()


def test_reward_functions_that_leave_nothing_of_three_batches_end_the_run(tmp_path, tokenizer, actor):
    given = iter([[1.0] * 4, [NAN] * 4, [INF] * 4, [NAN] * 4])

    def judge(completions, **kwargs):
        return next(given)

    trainer = make("grpo", tmp_path, actor, tokenizer, [judge], NoReward, max_steps=9)
    before = copy_parameters(trainer.model)
    with pytest.raises(RuntimeError, match=r"left no episode of 3 batches in a row.*'judge' gave nan for row 0"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert_same_tensors(before, copy_parameters(trainer.model), 0.0)


@pytest.mark.parametrize("rewards", [[NAN] * 4, [None, INF, None, None], [[NAN]] * 4])
def test_a_first_batch_without_a_finite_reward_ends_the_run(tmp_path, tokenizer, actor, rewards):
    def judge(completions, trajectories, **kwargs):
        return [len(t.turns) * one if isinstance(one, list) else one for t, one in zip(trajectories, rewards)]

    trainer = make("grpo", tmp_path, actor, tokenizer, [judge], NoReward, max_steps=9)
    words = r"^Reward functions must give finite numbers, .* none for any episode of the first batch\. The first: .*'judge'.* gave (nan|inf) for row [01]"
    with pytest.raises(RunStopped, match=words) as caught:
        trainer.train()
    assert trainer.state.global_step == 0 and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [INF, NAN, "model", None])
def test_a_number_that_is_not_finite_is_not_called_none(tmp_path, tokenizer, actor, caplog, given):
    rewards = rewards_of([1.0, given, 0.0, 2.0])
    if given == "model":
        rewards = Judge()
        rewards.config = SimpleNamespace(_name_or_path="judges/length", pad_token_id=0)
    trainer = make("grpo", tmp_path, actor, tokenizer, [rewards], NoReward)
    if given == "model":
        trainer.reward_processing_classes[0] = tokenizer
    trainer.train()
    assert ("1 of 4 episodes have no finite reward" in caplog.text) is (given is not None)
    assert ("All reward functions returned None" in caplog.text) is (given is None)


@pytest.mark.parametrize("settings", [{"reward_weights": [NAN]}, {"reward_weights": [INF]}])
def test_weights_of_rewards_are_finite(settings, tmp_path, tokenizer, actor):
    with pytest.raises(ValueError, match="reward_weights must be finite numbers"):
        make("grpo", tmp_path, actor, tokenizer, [rewards_of([0.0] * 4)], NoReward, **settings)
    with pytest.raises(ValueError, match=r"^beta must be a number, got nan\.$"):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, beta=NAN))


# Steps


HUGE = [3e38, -3e38, 3e38, -3e38]


def huge_in(batches, huge=HUGE):
    """A reward function whose numbers are finite and overflow in the loss, in some batches."""
    calls = []

    def judge(completions, **kwargs):
        calls.append(1)
        return huge if len(calls) in batches else [0.0, 1.0, 2.0, 4.0]

    return judge


def watch_weights(trainer):
    """The weights of policy and critic before every batch and, when it is called, now."""
    states = []
    start = trainer.prepare_rows

    def look():
        states.append([copy_parameters(module) for module in trainer.trained_modules])
        return states

    trainer.prepare_rows = lambda rows: (look(), start(rows))[1]
    return look


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_gradient_that_is_not_finite_takes_no_step(kind, tmp_path, tokenizer, actor, caplog):
    """Policy and critic stay, without decay and momentum of the step before; the log shows it, and the next step is sound."""
    own = {"whiten_advantages": False} if kind == "ppo" else {"scale_rewards": "none"}
    trainer = make(
        kind, tmp_path, actor, tokenizer, [huge_in({2})], NoReward, max_steps=4, weight_decay=0.1,
        lr_scheduler_type="constant", **own,
    )  # fmt: skip
    look = watch_weights(trainer)
    recorder = record(trainer)
    trainer.train()
    states = look()
    for before, after in zip(states[1], states[2]):
        assert_same_tensors(before, after, 0.0)
    for first, second in ((0, 1), (2, 3), (3, 4)):
        for before, after in zip(states[first], states[second]):
            assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for state in states for part in state for tensor in part.values())
    steps = [logs for logs in recorder.logs if "loss" in logs]
    for key in ("loss", "grad_norm"):
        assert [math.isfinite(logs[key]) for logs in steps] == [True, False, True, True], key
    (message,) = [r.getMessage() for r in caplog.records if "The step is not taken" in r.getMessage()]
    assert "The gradient of step 2 is not finite" in message
    named = "advantages" if kind == "grpo" else "squared error of the values"
    task = "abq1?" if kind == "grpo" else "abq4?"
    assert f"episode 0 (task '{task}')" in message and named in message, message


def test_one_episode_of_many_is_named(tmp_path, tokenizer, actor, caplog):
    trainer = make(
        "ppo", tmp_path, actor, tokenizer, [huge_in({1}, [0.0, 1.0, 3e38, 1.0])], NoReward, max_steps=1,
        whiten_advantages=False, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    (message,) = [r.getMessage() for r in caplog.records if "The step is not taken" in r.getMessage()]
    assert "episode 2 (" in message and not any(f"episode {other} (" in message for other in (0, 1, 3)), message


def test_three_steps_in_a_row_end_the_run(tmp_path, tokenizer, actor):
    trainer = make(
        "grpo", tmp_path, actor, tokenizer, [huge_in({1, 2, 4, 5, 6})], NoReward, max_steps=9, scale_rewards="none",
    )  # fmt: skip
    look = watch_weights(trainer)
    with pytest.raises(RuntimeError, match=r"step 6 is not finite.*3 steps in a row were not taken and the run ends"):
        trainer.train()
    states = look()
    assert_same_tensors(states[3][0], states[-1][0], 0.0)
    assert trainer.state.global_step == 5


def with_scaler(trainer, scale):
    """The scaler of the loss that float16 has, on a CPU that does not need one."""
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.optimizer.optimizer)


def test_the_scaler_of_float16_skips_steps_by_design(tmp_path, tokenizer, actor):
    """Its scale is too large in the beginning: more than three steps in a row overflow, and the run goes on."""
    rewards = [0.0, 1e3, 2e3, 4e3]
    trainer = make(
        "grpo", tmp_path, actor, tokenizer, [rewards_of(rewards)], NoReward, max_steps=20, scale_rewards="none",
    )  # fmt: skip
    with_scaler(trainer, 2.0**127)
    look = watch_weights(trainer)
    recorder = record(trainer)
    trainer.train()
    norms = [math.isfinite(logs["grad_norm"]) for logs in recorder.logs if "loss" in logs]
    assert not any(norms[:4]) and norms[-1]
    states = look()
    assert_same_tensors(states[0][0], states[4][0], 0.0)
    assert any(not torch.equal(states[0][0][name], states[-1][0][name]) for name in states[0][0])


def test_overflow_without_a_scale_ends_a_run_in_float16_too(tmp_path, tokenizer, actor):
    always = huge_in(set(range(1, 20)))
    trainer = make("grpo", tmp_path, actor, tokenizer, [always], NoReward, max_steps=12, scale_rewards="none")
    with_scaler(trainer, 4.0)
    before = copy_parameters(trainer.model)
    with pytest.raises(RuntimeError, match="3 steps in a row were not taken"):
        trainer.train()
    assert trainer.state.global_step == 4  # scales of 4 and 2, then three steps at 1 and below
    assert_same_tensors(before, copy_parameters(trainer.model), 0.0)


def test_the_rows_and_their_numbers_are_found():
    ones, mask = torch.ones(5, 3), torch.tensor([[1, 1, 0]] * 5)
    logps, old, values, returns = -ones, -ones, ones.clone(), ones.clone()
    logps[0, 0], logps[1, 2] = NAN, NAN  # the second is not trained
    old[2, 1] = -200.0
    returns[3, 0] = 3e38
    batch = {"advantages": torch.tensor([0.0, 0.0, 0.0, 0.0, INF]), "old_per_token_logps": old, "returns": returns}
    assert non_finite_rows(batch, mask, logps, values) == {
        0: ["log-probs", "ratio to the old policy"],
        2: ["ratio to the old policy"],
        3: ["squared error of the values"],
        4: ["advantages"],
    }
    assert non_finite_rows({"advantages": ones}, mask, None, None) == {}


# Checkpoints


@pytest.mark.parametrize(
    ("kind", "place"), [("grpo", "policy"), ("ppo", "policy"), ("ppo", "critic"), ("grpo", "optimizer")]
)
def test_no_checkpoint_holds_a_number_that_is_not_finite(kind, place, tmp_path, tokenizer, actor):
    trainer = make(
        kind, tmp_path, actor, tokenizer, [rewards_of([0.0, 1.0, 2.0, 4.0])], NoReward, max_steps=3, save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    save = trainer._save_checkpoint

    def spoil(model, trial):
        if trainer.state.global_step == 2:
            module = trainer.value_model if place == "critic" else trainer.model
            parameter = list(module.parameters())[-1]
            target = trainer.optimizer.state[parameter]["exp_avg"] if place == "optimizer" else parameter
            with torch.no_grad():
                target.view(-1)[0] = INF
        save(model, trial)

    trainer._save_checkpoint = spoil
    named = {"policy": "norm.weight|lm_head.weight", "critic": "head.bias", "optimizer": "exp_avg of the optimizer"}[
        place
    ]
    with pytest.raises(RuntimeError, match=rf"must be finite, but those of .*({named}) are not at step 2"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


# Processes


@pytest.mark.slow
def test_processes_skip_a_step_together(tmp_path, fork_server):
    script = Path(__file__).parents[1] / "scripts" / "overflowing_rank.py"
    done = fork_server.run(script, tmp_path / "record", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads((tmp_path / f"record.{rank}.json").read_text()) for rank in (0, 1)]
    for key in ("weights", "critic"):
        assert records[0][key] == records[1][key]
        # The first step is sound, the second is not taken, the third is sound again
        start, first, second, third = records[0][key]
        assert start != first == second != third
    assert [math.isfinite(loss) for loss in records[0]["losses"]] == [True, False, True]
    (message,) = records[0]["messages"]
    assert "episode 3 (" in message and "episode 0 (" not in message
    assert records[1]["messages"] == []
