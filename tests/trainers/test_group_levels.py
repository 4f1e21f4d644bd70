"""`advantage_level` of GRPO: what each turn of a batch is compared with, from plain sums to the loss and all gradients."""

from __future__ import annotations

import pytest
import torch
from support.objectives import Watch, entropies_of, gradients_of, group_advantages, logprobs_of, policy_loss
from support.stepwise import Stepwise
from support.trainer_helpers import (
    SHORT,
    ScriptedGenerator,
    assert_same_tensors,
    cut_first_turns,
    lookup_dataset,
    record,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


class Flaky(Stepwise):
    """Rewards turns; the first instance that is asked for the second task cannot begin it."""

    refused = 0

    def reset(self, prompt=None, secret="7", **row):
        if prompt.endswith("q1?") and Flaky.refused == 0:
            Flaky.refused = 1
            raise KeyError("row")
        return super().reset(prompt, secret)


def make(tmp_path, path, tokenizer, level, environment=Flaky, **settings):
    Flaky.refused = 0
    settings = {
        "advantage_level": level, "gamma": 0.9, "lam": 0.8, "scale_rewards": "none", "num_generations": 4, "max_turns": 4,
        "max_observation_length": 40, "per_device_train_batch_size": 8, "max_steps": 1, "max_grad_norm": 0.0,
        "environment_retries": 0, "shuffle_dataset": False, "environment_concurrency": 1, **settings,
    }  # fmt: skip
    return Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(2),
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
    )


def compared(level, trajectories, size):
    """For each sound episode and turn, the keys of the turns it is compared with, read off the trajectories."""
    keys = {}
    for index, trajectory in enumerate(trajectories):
        if trajectory.error is None:
            for number, turn in enumerate(trajectory.turns):
                key = (index // size, number)
                keys[index, number] = key if level == "turn" else (*key, turn.prompt_ids)
    return keys


def by_hand(level, trajectories, gamma, lam, size=4):
    """Advantages of turns by episode, from the rewards that trajectories say they had."""
    keys = compared(level, trajectories, size)
    rewards = {}
    for index, trajectory in enumerate(trajectories):
        if trajectory.error is None:
            rewards[index] = [turn.reward or 0.0 for turn in trajectory.turns]
            rewards[index][-1] += trajectory.reward - sum(rewards[index])
    returns = {
        (i, k): sum(gamma ** (u - k) * numbers[u] for u in range(k, len(numbers)))
        for i, numbers in rewards.items()
        for k in range(len(numbers))
    }
    alike = {place: [returns[other] for other in keys if keys[other] == keys[place]] for place in keys}
    found = {}
    for i, numbers in rewards.items():
        values = [sum(alike[i, k]) / len(alike[i, k]) for k in range(len(numbers))] + [0.0]
        deltas = [r + gamma * after - before for r, after, before in zip(numbers, values[1:], values)]
        found[i] = [
            sum((gamma * lam) ** (u - k) * deltas[u] for u in range(k, len(numbers))) if len(alike[i, k]) > 1 else 0.0
            for k in range(len(numbers))
        ]
    return found, [len(alike[place]) for place in alike]


def on_tokens(trajectory, numbers):
    sizes = [len(turn.completion_ids) for turn in trajectory.turns]
    return torch.tensor([number for number, size in zip(numbers, sizes, strict=True) for _ in range(size)])


@pytest.mark.parametrize("level", ["turn", "state"])
@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_advantages_loss_and_gradients(tmp_path, tokenizer, actor_path, level, layout):
    """Turns of unequal length, two cut episodes, one left out, two passes over the batch."""
    extra = {"state_group_weight": 0.5} if level == "state" else {}
    trainer = make(
        tmp_path,
        actor_path,
        tokenizer,
        level,
        layout=layout,
        num_iterations=2,
        max_steps=2,
        learning_rate=1e-2,
        **extra,
    )
    cut_first_turns(trainer, {1: 3, 6: 3})
    watch = Watch(trainer, actor_path)
    recorder = record(trainer)
    trainer.train()
    (trajectories, batch) = watch.trajectories[0], watch.batches[0]
    assert sum(t.error is not None for t in trajectories) == 1
    assert [str(t.stop_reason) for t in trajectories].count("truncated") >= 2
    assert len({len(t.turns) for t in trajectories}) > 2
    of_turns, sizes = by_hand(level, trajectories, 0.9, 0.8)
    rewards = [float("nan") if t.error else t.reward for t in trajectories]
    of_episodes = []
    for start in (0, 4):
        group = torch.tensor(rewards[start : start + 4])
        of_episodes += (group - group.nanmean()).tolist()
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    expected = []
    for row, trajectory in enumerate(trajectories):
        if trajectory.error is not None:
            assert not batch["advantages"][row].any()
            continue
        numbers = of_turns[row]
        if level == "state":
            numbers = [of_episodes[row] + 0.5 * number for number in numbers]
        expected.append(on_tokens(trajectory, numbers))
        torch.testing.assert_close(batch["advantages"][row][mask[row]], expected[-1], atol=1e-5, rtol=1e-4)
        assert not batch["advantages"][row][~mask[row]].any()
    sound = [t for t in trajectories if t.error is None]
    with torch.no_grad():
        old = logprobs_of(watch.steps[0].policy, sound)
    for step in watch.steps:
        loss = policy_loss(
            trainer.args, logprobs_of(step.policy, sound), old, expected, entropies_of(step.policy, sound)
        )
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-5)
        assert_same_tensors(gradients_of(loss, step), step.gradients, 2e-3)
    logs = recorder.logs[0]
    assert logs["turn_groups/alone"] == pytest.approx(sizes.count(1) / len(sizes))


def test_turns_of_equal_number_and_one_reward_are_episodes(tmp_path, tokenizer, actor_path):
    """With one reward at the end, no discount and episodes of two turns each, `"turn"` is TRL's advantage, scaled as TRL scales."""
    found = {}
    for level in ("episode", "turn"):
        trainer = make(
            tmp_path / level, actor_path, tokenizer, level, Final, gamma=1.0, lam=1.0, scale_rewards="group",
            max_completion_length=40,
        )  # fmt: skip
        trainer.rollout.generate = ScriptedGenerator(tokenizer, by_sample)
        trainer.rollout.mode = "lockstep"
        recorder = record(trainer)
        trainer.train()
        batch = recorder.batches[0]
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        advantages = batch["advantages"] if level == "turn" else batch["advantages"][:, None].expand(mask.shape)
        found[level] = advantages.masked_fill(~mask, 0.0)
    torch.testing.assert_close(found["episode"], found["turn"], atol=1e-5, rtol=1e-4)
    expected = group_advantages([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], 4, "group")
    for row, number in enumerate(expected):
        own = found["turn"][row][mask[row]]
        torch.testing.assert_close(own, number.expand_as(own), atol=1e-4, rtol=1e-4)


class Final(Stepwise):
    get_turn_reward = None


def by_sample(call, index, prompt):
    """Two turns; the first states differ in every second sample, the observations never do."""
    if call == 0:
        return f"<think>{'kl'[index % 2]}</think><search>u</search>"
    return f"<think>m</think><answer>{'01110122'[index]}</answer>"


def test_equal_observations_under_other_contexts_are_not_pooled(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path, actor_path, tokenizer, "state", Stepwise, gamma=0.9, lam=1.0, max_completion_length=40)
    trainer.rollout.generate = ScriptedGenerator(tokenizer, by_sample)
    trainer.rollout.mode = "lockstep"
    recorder = record(trainer)
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    trainer.train()
    # Each second turn read what the environment said to all four, and half of it after another state
    assert len({turn.observation for t in seen[:4] for turn in t.turns[:1]}) == 1
    assert len({t.turns[1].prompt_ids for t in seen[:4]}) == 2
    rewards = [t.reward for t in seen]
    batch = recorder.batches[0]
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    for row, trajectory in enumerate(seen):
        group = range(4 * (row // 4), 4 * (row // 4) + 4)
        same = [other for other in group if other % 2 == row % 2]
        final = [rewards[other] - 0.25 for other in range(8)]  # the search got a quarter
        episode = rewards[row] - sum(rewards[o] for o in group) / 4
        first = 0.9 * (final[row] - sum(final[o] for o in group) / 4)
        second = final[row] - sum(final[o] for o in same) / 2
        expected = on_tokens(trajectory, [episode + first, episode + second])
        torch.testing.assert_close(batch["advantages"][row][mask[row]], expected, atol=1e-5, rtol=1e-4)
    logs = recorder.logs[0]
    assert logs["turn_groups/alone"] == 0.0 and logs["turn_groups/other_context"] == pytest.approx(0.5)


def test_an_evaluation_with_groups_of_its_own(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path,
        actor_path,
        tokenizer,
        "turn",
        num_generations_eval=2,
        eval_temperature=None,
        per_device_eval_batch_size=4,
    )
    recorder = record(trainer)
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.append(trajectories), rewarded(trajectories))
    trainer.evaluate(lookup_dataset(4))
    assert len(seen) == 2
    for batch, trajectories in zip(recorder.batches, seen, strict=True):
        expected, _ = by_hand("turn", trajectories, 0.9, 0.8, size=2)
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        for row, numbers in expected.items():
            torch.testing.assert_close(
                batch["advantages"][row][mask[row]], on_tokens(trajectories[row], numbers), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"advantage_level": "token"}, "advantage_level must be one of 'episode', 'turn', 'state', got 'token'"),
        ({"gamma": 0.9}, "gamma=0.9 has no effect with advantage_level='episode'"),
        ({"lam": 0.9}, "lam=0.9 has no effect with advantage_level='episode'"),
        ({"gamma": 1.1, "advantage_level": "turn"}, "gamma=1.1 must lie between 0 and 1"),
        ({"state_group_weight": 2.0, "advantage_level": "turn"}, "state_group_weight=2.0 has no effect with"),
        ({"state_group_weight": 0.0, "advantage_level": "state"}, "must be a finite number above 0, got 0.0"),
        ({"loss_type": "vespo", "advantage_level": "turn"}, "loss_type='vespo' works on whole sequences or groups, but here"),
        ({"importance_sampling_level": "sequence", "advantage_level": "state"}, "importance_sampling_level='sequence' works on"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
