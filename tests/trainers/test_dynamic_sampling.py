"""Groups of equal rewards are played again: what is trained, what is logged, and what that does to the expected gradient."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch
from support.objectives import group_advantages
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    play_scripted,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.trl_seam.dynamic_sampling import equal_groups


def make(tmp_path, path, tokenizer, rounds=2, dataset=None, environment=LookupEnvironment, **settings):
    settings = {
        "num_generations": 2, "max_turns": 3, "max_observation_length": 40, "per_device_train_batch_size": 8, "max_steps": 1,
        "shuffle_dataset": False, "beta": 0.0, "environment_retries": 0, "dynamic_sampling_max_rounds": rounds, **settings,
    }  # fmt: skip
    further = {"reward_funcs": settings.pop("reward_funcs")} if "reward_funcs" in settings else {}
    return Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(4) if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
        **further,
    )


def watched(trainer):
    """The trajectories of each batch that is trained, and how often each task is begun."""
    trained, begun = [], Counter()
    rewarded, prepare = trainer.rewarded, trainer.prepare_rows
    trainer.rewarded = lambda trajectories: (trained.append(list(trajectories)), rewarded(trajectories))

    def count(rows):
        begun.update(row["prompt"] for row in rows)
        return prepare(rows)

    trainer.prepare_rows = count
    return trained, begun


def as_sampled(trajectory):
    return [(turn.prompt_ids, turn.completion_ids) for turn in trajectory.turns]


@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_equal_groups_are_replaced_and_others_stay(tmp_path, tokenizer, actor_path, mode):
    runs = {}
    for rounds in (0, 3):
        trainer = make(tmp_path / str(rounds), actor_path, tokenizer, rounds, rollout_mode=mode)
        trained, begun = watched(trainer)
        recorder = record(trainer)
        trainer.train()
        runs[rounds] = trained[0], begun, recorder.logs[0], recorder.batches[0]
    (plain, once, plain_log, _), (again, often, log, batch) = runs[0], runs[3]
    rewards = [[one.reward for one in plain[start : start + 2]] for start in range(0, 8, 2)]
    equal = [one == other for one, other in rewards]
    assert 0 < sum(equal) < 4 and set(once.values()) == {2}
    for group, (was_equal, prompt) in enumerate(zip(equal, lookup_dataset(4)["prompt"], strict=True)):
        pair, before = again[2 * group : 2 * group + 2], plain[2 * group : 2 * group + 2]
        same = [as_sampled(one) == as_sampled(other) for one, other in zip(pair, before, strict=True)]
        if not was_equal:
            assert all(same) and often[prompt] == 2
            continue
        assert not all(same) and often[prompt] > 2
        assert (
            pair[0].reward != pair[1].reward or often[prompt] == 2 * 4
        )  # mixed at last, or played as often as allowed
        assert all(one.prompt_ids == other.prompt_ids for one, other in zip(pair, before, strict=True))
    now = [one.reward for one in again]
    assert now != [one.reward for one in plain]
    advantages = dict(zip(batch["episode_ids"].tolist(), batch["advantages"].tolist()))
    expected = torch.stack(group_advantages(now, 2, "group")).tolist()
    assert [advantages[i] for i in range(8)] == pytest.approx(expected, abs=1e-4)
    # What is logged is what the policy gets, which a choice of groups would bias
    for name in plain_log:
        if name.startswith(("reward", "episode/", "frac_reward", "completions/")):
            assert log[name] == pytest.approx(plain_log[name]), name
    assert log["dynamic_sampling/groups_played_again"] == sum(equal) / 4
    left = sum(one == other for one, other in zip(now[::2], now[1::2]))
    assert log["dynamic_sampling/groups_left_equal"] == left / 4
    assert log["dynamic_sampling/rounds"] == max(often.values()) / 2 - 1


def test_a_run_resumes_bit_for_bit(tmp_path, tokenizer, actor_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "num_iterations": 2}
    whole = make(tmp_path / "whole", actor_path, tokenizer, **settings)
    whole.train()
    make(tmp_path / "cut", actor_path, tokenizer, **settings).train()
    for step in (1, 2):
        resumed = make(tmp_path / "cut", actor_path, tokenizer, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
        ends = [dict(one.model.named_parameters()) for one in (whole, resumed)]
        assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_failed_groups_are_not_played_again_and_rewards_are_asked_once_a_play(tmp_path, tokenizer, actor_path):
    """With rewards of turns, something to log and a task that cannot begin."""

    class Flaky(LookupEnvironment):
        def reset(self, prompt="", secret="7", **row):
            if prompt.endswith("q3?"):
                raise KeyError("row")
            return super().reset(prompt, secret)

    asked, drawn = [], random.Random(1)

    def by_turn(trajectories, log_extra, **kwargs):
        numbers = [[float(drawn.randrange(2))] * len(one.turns) for one in trajectories]
        asked.extend(numbers)
        log_extra("drawn", [one[0] for one in numbers])
        return numbers

    trainer = make(
        tmp_path, actor_path, tokenizer, 4, environment=Flaky, reward_funcs=by_turn, advantage_level="turn", lam=0.5
    )
    trained, begun = watched(trainer)
    trainer.train()
    (trajectories,) = trained
    assert [one.error is not None for one in trajectories] == [False] * 6 + [True] * 2
    played = sum(count for prompt, count in begun.items() if not prompt.endswith("q3?"))
    assert len(asked) == played > 6
    assert [count for prompt, count in begun.items() if prompt.endswith("q3?")] == [2]
    logged = list(trainer._logs["extra"]["drawn"])
    for trajectory, number in zip(trajectories[:6], logged, strict=False):
        turns = [turn.reward for turn in trajectory.turns]
        assert turns == [number] * len(turns)
    assert logged[6:] == [None, None]


def test_the_expected_gradient_of_a_task_keeps_its_direction():
    """
    All plays of a group of two in which an episode succeeds with probability p, with up to two more rounds.

    With q, the probability of equal rewards, the expected sum of advantages times scores is that of plain GRPO times
    (1 - q^3) / (1 - q) = 1 + q + q^2: the expected number of plays. Nothing else about it changes.
    """
    p = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def chance(play):
        return torch.stack([p if one else 1 - p for one in play]).prod()

    def signal(play):
        advantages = group_advantages([float(one) for one in play], 2, "group")
        scores = [torch.autograd.grad((p if one else 1 - p).log(), p)[0] for one in play]
        return sum(float(a) * s for a, s in zip(advantages, scores, strict=True))

    plays = list(itertools.product([0, 1], repeat=2))
    plain = sum(chance(play).detach() * signal(play) for play in plays)
    sampled = torch.tensor(0.0, dtype=torch.float64)
    for rounds in itertools.product(plays, repeat=3):
        last = next((play for play in rounds if not equal_groups(play, 2)), rounds[-1])
        sampled += torch.stack([chance(play) for play in rounds]).prod().detach() * signal(last)
    q = 0.8**2 + 0.2**2
    assert float(sampled / plain) == pytest.approx(1 + q + q**2)


def test_frequencies_are_those_of_independent_plays(tmp_path, tokenizer, actor_path):
    """Rewards drawn with probability 0.8, groups of two: three plays at most, and either episode of a mixed group is the better one."""
    drawn = random.Random(0)

    def coin(completions, **kwargs):
        return [float(drawn.random() < 0.8) for _ in completions]

    class NoReward(LookupEnvironment):
        get_reward = None

    trainer = make(
        tmp_path, actor_path, tokenizer, 2, environment=NoReward, reward_funcs=coin, dataset=lookup_dataset(300), max_turns=1,
        per_device_train_batch_size=600, max_completion_length=6,
    )  # fmt: skip
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(lambda i: (1, 0)), 6)
    trained, _ = watched(trainer)
    recorder = record(trainer)
    trainer.train()
    pairs = [tuple(one.reward for one in trained[0][start : start + 2]) for start in range(0, 600, 2)]
    q = 0.68
    log = recorder.logs[0]
    assert log["reward"] == pytest.approx(0.8, abs=0.05)
    assert log["dynamic_sampling/groups_played_again"] == pytest.approx(q, abs=0.08)
    assert log["dynamic_sampling/groups_left_equal"] == pytest.approx(q**3, abs=0.08)
    counts = Counter(pairs)
    assert counts[1.0, 0.0] / (counts[1.0, 0.0] + counts[0.0, 1.0]) == pytest.approx(0.5, abs=0.1)
    assert counts[1.0, 1.0] / (counts[1.0, 1.0] + counts[0.0, 0.0]) == pytest.approx(0.64 / q, abs=0.08)


def test_groups_by_hand():
    assert equal_groups([1.0, 1.0, 0.0, 1.0, None, None, 0.0, 0.0], 2) == [0, 3]
    assert equal_groups([(1.0, [2]), (1.0, [2]), (1.0, [2]), (1.0, [3])], 2) == [0]


def test_what_has_no_groups_is_refused(tmp_path, tokenizer, actor_path):
    with pytest.raises(ValueError, match="dynamic_sampling_max_rounds must be at least 0, got -1"):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, dynamic_sampling_max_rounds=-1))
    with pytest.raises(ValueError, match="dynamic_sampling_max_rounds=2 works on whole sequences or groups"):
        make_ppo(tmp_path, actor_path, tokenizer, dynamic_sampling_max_rounds=2)


def nothing_each_turn(trajectories, **kwargs):
    """A reward function: 0 for every turn."""
    return [[0.0] * len(trajectory.turns) for trajectory in trajectories]


def right_at_the_end(trajectories, **kwargs):
    """1 for the episode, whatever it did."""
    return [1.0] * len(trajectories)


@pytest.mark.parametrize(
    ("level", "rewards", "more", "share"),
    [
        ("episode", nothing_each_turn, {}, 1.0),
        ("turn", nothing_each_turn, {}, 1.0),
        ("state", nothing_each_turn, {}, 1.0),
        ("turn", right_at_the_end, {}, 1.0),
        # Of episodes of one and two turns, the first turn is worth 1 and 0.5: that is a difference to learn from
        ("turn", right_at_the_end, {"gamma": 0.5}, 0.0),
        ("state", right_at_the_end, {"gamma": 0.5}, 0.0),
    ],
)
def test_groups_are_played_again_that_teach_nothing_at_their_level(
    tmp_path, tokenizer, actor_path, level, rewards, more, share
):
    """Episodes of one and of two turns, in every group."""
    trainer = make(
        tmp_path, actor_path, tokenizer, 1, environment=NoReward, reward_funcs=rewards, advantage_level=level, **more
    )
    play_scripted(trainer, tokenizer, lambda index: (1 + index % 2, 0))
    recorder = record(trainer)
    trainer.train()
    assert recorder.logs[0]["dynamic_sampling/groups_played_again"] == share
    assert bool(recorder.batches[0]["advantages"].any()) == (share == 0.0)


@pytest.mark.parametrize("chosen", [{"dynamic_sampling_max_rounds": 2}, {"skip_zero_advantages": True}])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memory_value_weight": 0.1}, "memory_value_weight=0.1 gives no two episodes the same reward"),
        (
            {"distillation_weight": 0.1, "distillation_in_reward": True},
            "in_reward=True gives no two episodes|needs the trajectories",
        ),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation='normalize_then_sum'"),
    ],
)
def test_what_leaves_no_group_equal_is_refused(tmp_path, chosen, settings, words):
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, beta=0.0, **chosen, **settings))
