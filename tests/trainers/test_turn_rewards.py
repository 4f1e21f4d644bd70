"""Rewards of single turns: from environments and from reward functions, where they are placed, and what their failures do."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from support.objectives import group_advantages
from support.ppo_helpers import four_plans, gae, make, wake, watch_credit
from support.stepwise import Stepwise
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1Protocol, Trajectory
from mem1_trl.environment_runtime.actions import ActionSet, action_methods
from mem1_trl.environments import ProcessEnvironment
from mem1_trl.evaluation.evaluate import evaluate_agent
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout
from mem1_trl.update.advantages import turn_end_rewards


class OnlyTurns(Stepwise):
    get_reward = None


TURNS = [[0.5], [0.25, 0.5], [0.25, 0.125, 0.5], [0.25, 0.125, 0.0625, 0.5]]
"""What [`Stepwise`] gives for the turns of the episodes of `four_plans`."""


def test_rewards_are_on_the_last_token_of_their_turns():
    turn_ids = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    placed = turn_end_rewards([[1.0, -2.0, 3.0], [4.0, 0.0, 5.0], None, [6.0, 7.0]], turn_ids, mask)
    expected = [[0, 1, 0, 0, -2, 3], [4, 0, 0, 0, 5, 0], [0] * 6, [0] * 6]
    assert placed.dtype == torch.float32 and placed.tolist() == expected


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize("environment", [Stepwise, OnlyTurns])
def test_ppo_credits_a_turn_at_its_last_token(tmp_path, tokenizer, actor_path, layout, environment):
    """Turns of unequal length, one to four of them, gamma and lam below 1, against GAE by hand."""

    secrets = []

    def per_turn(trajectories, secret, **kwargs):
        secrets.extend(secret)
        return [[float(len(turn.completion_ids)) for turn in t.turns] for t in trajectories]

    async def for_some(trajectories, **kwargs):
        return [None if len(t.turns) == 2 else [None, *[1.0] * (len(t.turns) - 1)] for t in trajectories]

    trainer = make(
        tmp_path, actor_path, tokenizer, layout, environment=environment, reward_funcs=[per_turn, for_some],
        reward_weights=[0.1, -2.0], plan=four_plans, gamma=0.97, lam=0.9, beta=0.0, whiten_advantages=False, max_steps=1,
        max_completion_length=40,
    )  # fmt: skip
    wake(trainer)
    seen = watch_credit(trainer)
    recorder = record(trainer)
    trainer.train()
    (credit,) = seen
    for row, trajectory in enumerate(credit["trajectories"]):
        sizes = [len(turn.completion_ids) for turn in trajectory.turns]
        assert len(sizes) == row + 1
        rewards, total = [], 0.0
        for number, (size, own) in enumerate(zip(sizes, TURNS[row], strict=True)):
            late = -2.0 if number and len(sizes) != 2 else 0.0
            rewards += [0.0] * (size - 1) + [own + 0.1 * size + late]
            assert trajectory.turns[number].reward == pytest.approx(rewards[-1])
            total += rewards[-1]
        if environment is Stepwise:
            right = float(row % 3 == int(secrets[row]))
            rewards[-1] += right
            total += right
        assert trajectory.reward == pytest.approx(total, abs=1e-5)
        mask, values = credit["mask"][row], credit["values"][row]
        expected = torch.tensor(gae(rewards, values.tolist(), 0.97, 0.9))
        torch.testing.assert_close(credit["batch"]["advantages"][row][mask], expected, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(credit["batch"]["returns"][row][mask], expected + values, atol=2e-4, rtol=1e-3)
    logs = recorder.logs[0]
    assert logs[f"rewards/{environment.__name__}.get_turn_reward/mean"] == pytest.approx(sum(map(sum, TURNS)) / 4)
    assert logs["rewards/per_turn/mean"] == pytest.approx(
        sum(t.num_generated_tokens for t in credit["trajectories"]) / 4
    )
    assert (f"rewards/{environment.__name__}/mean" in logs) == (environment is Stepwise)


def test_grpo_adds_them_up(tmp_path, tokenizer, actor_path):
    def plan(i):
        return 1 + i % 4, 0

    trainer = Mem1GRPOTrainer(
        model=actor_path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, max_turns=4, max_steps=1, max_completion_length=40)),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=OnlyTurns,
        protocol=SHORT,
    )  # fmt: skip
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(plan))
    recorder = record(trainer)
    trainer.train()
    expected = torch.stack(group_advantages([sum(row) for row in TURNS], 4, "group"))
    torch.testing.assert_close(recorder.batches[0]["advantages"], expected, atol=1e-5, rtol=1e-4)


def test_a_turn_that_did_not_act_is_not_asked_about(tokenizer):
    """Its action is not there or cannot be called: the environment knows nothing of it."""
    protocol = Mem1Protocol(**{**SHORT.to_dict(), "on_invalid_action": "observe", "scratch_tags": ()})
    script = [["<think>a</think><search>u</search>"], ["<think>b</think>nothing<eos>"], ["<answer>7</answer>"]]
    environment = OnlyTurns()
    environment.reset()
    episode = Episode(tokenizer("q?")["input_ids"], environment, ActionSet(environment, protocol))
    settings = AgentSettings(max_turns=4, max_observation_length=90)
    (trajectory,) = Rollout(tokenizer, protocol, settings, ScriptedGenerator(tokenizer, script)).run([episode])
    assert [turn.reward for turn in trajectory.turns] == [0.25, None, 0.5] and environment.asked == 2
    assert trajectory.turn_rewards == [0.25, 0.0, 0.5]


# Failures


class Frail(Stepwise):
    """Fails to score a turn where its row says, and counts how often it is asked."""

    calls: list[str] = []  # noqa: RUF012

    def reset(self, prompt=None, secret="7", fails="", **row):
        self.fails = fails
        return super().reset(prompt, secret)

    def get_turn_reward(self):
        Frail.calls.append(self.fails)
        if len(self.queries) == 2:
            if self.fails == "raises":
                raise RuntimeError("judge is down")
            if self.fails == "nan":
                return float("nan")
            if self.fails == "text":
                return "good"
            if self.fails == "hangs":
                time.sleep(30)
            if self.fails == "once":
                self.fails = ""
                raise ConnectionError("busy")
        return super().get_turn_reward()


def test_an_episode_whose_turn_cannot_be_scored_is_left_out(tmp_path, tokenizer, actor_path):
    fails = ["", "raises", "nan", "text", "hangs", "once"]
    dataset = lookup_dataset(6).add_column("fails", fails)
    Frail.calls.clear()
    trainer = make(
        tmp_path, actor_path, tokenizer, environment=Frail, train_dataset=dataset, plan=lambda i: (3, i % 3), beta=0.0,
        gamma=0.97, lam=0.9, whiten_advantages=False, max_steps=1, per_device_train_batch_size=6, environment_retries=1,
        environment_timeout=0.5, max_completion_length=40, shuffle_dataset=False,
    )  # fmt: skip
    wake(trainer)
    seen, extend = [], trainer.extend_batch

    def spy(batch, trajectories, rewards):
        extend(batch, trajectories, rewards)
        seen.append((batch, trajectories, rewards))

    trainer.extend_batch = spy
    recorder = record(trainer)
    trainer.train()
    (batch, trajectories, rewards), mask = seen[0], (seen[0][0]["completion_mask"] * seen[0][0]["tool_mask"]).bool()
    messages = [
        "judge is down",
        "get_turn_reward gave nan",
        "get_turn_reward gave a str",
        "no answer within 0.5 seconds",
    ]
    for row, trajectory in enumerate(trajectories):
        if fails[row] in ("", "once"):
            assert trajectory.error is None and mask[row].any()
            assert [turn.reward for turn in trajectory.turns] == [0.25, 0.125, 0.5]
            assert trajectory.reward == float(rewards[row]) == 0.875 + float(row % 3 == int(dataset[row]["secret"]))
        else:
            assert messages[row - 1] in trajectory.error and trajectory.stop_reason == "error"
            assert len(trajectory.turns) == 2 and trajectory.reward is None and rewards[row].isnan()
            assert not mask[row].any() and not batch["advantages"][row].any()
    # What may pass is asked again
    assert [Frail.calls.count(kind) for kind in ("nan", "text", "raises")] == [2, 2, 3]
    logs = recorder.logs[0]
    assert logs["episode/stop_reason/error"] == pytest.approx(4 / 6)
    assert logs["environment/error_rate"] > 0
    assert logs["rewards/Frail.get_turn_reward/mean"] == pytest.approx(0.875)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([1.0], ValueError, r"returned a list of 1 for row 1 of the batch: it must have one number for each of the 2 turns"),
        ([1.0, "good"], TypeError, r"'judge', for turn 2, gave a str.*row 1 of the batch"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit_names_function_and_row(tmp_path, tokenizer, actor_path, values, error, words):
    def judge(trajectories, **kwargs):
        return [values if len(t.turns) == 2 else 0.0 for t in trajectories]

    trainer = make(tmp_path, actor_path, tokenizer, reward_funcs=[judge], plan=four_plans, beta=0.0, max_steps=1)
    with pytest.raises(error, match=words):
        trainer.train()


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_rewards_of_turns_may_be_an_array(tmp_path, tokenizer, actor_path, kind):
    def judge(trajectories, **kwargs):
        return [kind([0.5] * len(t.turns)) for t in trajectories]

    trainer = make(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=[judge], plan=four_plans, beta=0.0, max_steps=1,
        max_completion_length=40,
    )  # fmt: skip
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    trainer.train()
    assert [t.turn_rewards for t in seen] == [[0.5] * count for count in (1, 2, 3, 4)]


def test_a_number_of_a_turn_that_is_not_finite_leaves_the_episode_out(tmp_path, tokenizer, actor_path):
    def judge(trajectories, **kwargs):
        bad = {2: [1.0, float("inf")], 3: [3e38, 3e38, 0.0], 4: [None] * 4}
        return [bad.get(len(t.turns), [2.0]) for t in trajectories]

    trainer = make(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=[judge], plan=four_plans, beta=0.0,
        max_steps=1, max_completion_length=40,
    )  # fmt: skip
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    trainer.train()
    assert "for turn 2, gave inf" in seen[1].error and "summed over turns, gave 6" in seen[2].error
    assert [t.reward for t in seen] == [2.0, None, None, None]
    assert [t.turn_rewards for t in seen] == [[2.0], None, None, None]


def test_a_method_with_arguments_is_refused(tmp_path, tokenizer, actor_path):
    class Wrong(LookupEnvironment):
        def get_turn_reward(self, turn):
            return 0.0

    with pytest.raises(ValueError, match=r"`get_turn_reward` of Wrong must be callable without arguments"):
        make(tmp_path, actor_path, tokenizer, environment=Wrong)


# Elsewhere


@pytest.mark.slow  # the process loads what this file imports
def test_it_is_not_an_action_and_works_in_a_process():
    environment = ProcessEnvironment.factory(Stepwise)()
    try:
        assert set(action_methods(environment)) == {"search", "answer"} == set(action_methods(Stepwise()))
        environment.reset()
        environment.search(query="u")
        assert environment.get_turn_reward() == 0.25
    finally:
        environment.close()


def test_an_agent_records_them(tokenizer, actor):
    settings = {"max_turns": 4, "max_completion_length": 40, "conversational": False}
    agent = Mem1Agent(actor, tokenizer, SHORT, **settings)
    trajectory = agent.run("q0?", OnlyTurns())
    numbers = [turn.reward for turn in trajectory.turns]
    expected = [0.5 if turn.action == "answer" else 0.5 ** (2 + n) for n, turn in enumerate(trajectory.turns)]
    assert numbers == expected and trajectory.reward == sum(expected) and len(numbers) > 1
    again = Trajectory.from_dict(trajectory.to_dict())
    assert again.turns == trajectory.turns and again.turn_rewards == numbers
    found = evaluate_agent(agent, [{"prompt": "q0?"}], OnlyTurns)
    assert found.metrics["reward"] == found.trajectories[0].reward == sum(expected)
