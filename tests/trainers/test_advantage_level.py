"""`advantage_level`: from plain forwards of policy and critic to advantages, both losses and all gradients."""

from __future__ import annotations

import pytest
import torch
from support.objectives import Watch, gradients_of, in_float32, logprobs_of, token_objective, values_of
from support.ppo_helpers import Gradients, gae, make, wake
from support.trainer_helpers import LookupEnvironment, assert_same_tensors, cut_first_turns, lookup_dataset, record

from mem1_trl import Mem1PPOConfig


class Stepwise(LookupEnvironment):
    """Rewards turns, and cannot begin one of its tasks."""

    def reset(self, prompt="", secret="7", **row):
        if prompt.endswith("q3?"):
            raise KeyError("row")
        return super().reset(prompt, secret)

    def get_turn_reward(self) -> float:
        return 1.5 if self.given is not None else 0.5 ** len(self.queries)


def build(tmp_path, path, tokenizer, level, **settings):
    settings = {
        "gamma": 0.9, "lam": 0.8, "beta": 0.0, "whiten_advantages": False, "cliprange_value": None, "max_steps": 1,
        "per_device_train_batch_size": 8, "environment_retries": 0, "bootstrap_truncated": True, "shuffle_dataset": False,
        **({"token_gamma": 0.97, "token_lam": 0.7} if level == "two_level" else {}), **settings,
    }  # fmt: skip
    trainer = make(
        tmp_path,
        path,
        tokenizer,
        environment=Stepwise,
        train_dataset=lookup_dataset(8),
        advantage_level=level,
        **settings,
    )
    wake(trainer)
    cut_first_turns(trainer, {0: 3, 4: 3})
    return trainer


def by_hand(level, trajectory, values, penalties, final, total):
    """Advantages of all tokens, and returns of those whose value is used (`None` elsewhere)."""
    sizes = [len(turn.completion_ids) for turn in trajectory.turns]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    rewards = [-p for p in penalties]
    in_turns = 0.0
    for turn, end in zip(trajectory.turns, ends, strict=True):
        rewards[end - 1] += turn.reward or 0.0
        in_turns += turn.reward or 0.0
    rewards[-1] += total - in_turns
    cut = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    before = [values[part][0] for part in cut]
    deltas = [
        sum(rewards[part]) + 0.9 * (before[k + 1] if k + 1 < len(cut) else final) - before[k]
        for k, part in enumerate(cut)
    ]
    of_turns = [sum((0.9 * 0.8) ** (u - k) * deltas[u] for u in range(k, len(cut))) for k in range(len(cut))]
    if level == "turn":
        advantages = [a for a, size in zip(of_turns, sizes, strict=True) for _ in range(size)]
        returns = [r for a, v, n in zip(of_turns, before, sizes, strict=True) for r in [a + v] + [None] * (n - 1)]
        return advantages, returns
    advantages = []
    for part, advantage, value in zip(cut, of_turns, before, strict=True):
        paid = rewards[part]
        paid[-1] = advantage + value - sum(paid[:-1])
        advantages += gae(paid, values[part], 0.97, 0.7)
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("level", ["turn", "two_level"])
@pytest.mark.parametrize(("layout", "beta"), [("packed", 0.0), ("packed", 0.2), ("per_turn", 0.0)])
def test_advantages_and_returns(tmp_path, tokenizer, actor_path, level, layout, beta):
    """Turns of unequal length, two cut episodes, one left out; with a penalty on every token where `beta` is not 0."""
    trainer = build(tmp_path, actor_path, tokenizer, level, layout=layout, beta=beta)
    if beta:
        wake(trainer, policy=0.3)
    policy, critic = in_float32(trainer, actor_path)
    seen, extend = [], trainer.extend_batch

    def only_played(batch, trajectories, rewards):
        extend(batch, trajectories, rewards)
        seen.append((batch, trajectories, rewards))

    trainer.extend_batch = only_played
    trainer.train()
    ((batch, trajectories, totals),) = seen
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert [t.error is not None for t in trajectories] == [i == 3 for i in range(8)]
    assert [str(t.stop_reason) for t in trajectories].count("truncated") >= 2
    assert len({len(t.turns) for t in trajectories}) > 2
    used = 0
    for row, trajectory in enumerate(trajectories):
        if trajectory.error is not None:
            assert not mask[row].any() and not batch["advantages"][row].any()
            continue
        with torch.no_grad():
            (values,) = values_of(critic, [trajectory])
            penalties = torch.zeros(len(values))
            if beta:
                (new,), (ref,) = logprobs_of(policy, [trajectory]), logprobs_of(trainer.ref_model, [trajectory])
                penalties = beta * (new - ref)
            last = trajectory.turns[-1]
            ids = torch.tensor([[*last.prompt_ids, *last.completion_ids]])
            final = float(critic(input_ids=ids)[0, -1]) if trajectory.stop_reason == "truncated" else 0.0
        expected, returns = by_hand(level, trajectory, values.tolist(), penalties.tolist(), final, float(totals[row]))
        torch.testing.assert_close(batch["advantages"][row][mask[row]], torch.tensor(expected), atol=5e-4, rtol=1e-3)
        for place, wanted in zip(mask[row].nonzero().flatten().tolist(), returns, strict=True):
            if wanted is None:
                assert batch["value_weights"][row, place] == 0
            else:
                assert float(batch["returns"][row, place]) == pytest.approx(wanted, abs=5e-4, rel=1e-3)
                used += 1
    assert used == (sum(len(t.turns) for t in trajectories if not t.error) if level == "turn" else int(mask.sum()))


@pytest.mark.parametrize("level", ["turn", "two_level"])
def test_losses_and_gradients(tmp_path, tokenizer, actor_path, level):
    """Two passes; at the level of turns the value loss is the mean over the begins of turns."""
    trainer = build(
        tmp_path, actor_path, tokenizer, level, num_iterations=2, max_steps=2, max_grad_norm=0.0, learning_rate=1e-2,
        value_learning_rate=1e-2, vf_coef=0.7, bootstrap_truncated=False,
    )  # fmt: skip
    watch = Watch(trainer, actor_path)
    trainer.train()
    trajectories = [t for t in watch.trajectories[0] if t.error is None]
    first = watch.steps[0]
    with torch.no_grad():
        old, old_values = logprobs_of(first.policy, trajectories), values_of(first.critic, trajectories)
    credit = [
        by_hand(level, t, v.tolist(), [0.0] * len(v), 0.0, t.reward)
        for t, v in zip(trajectories, old_values, strict=True)
    ]
    advantages = [torch.tensor(a) for a, _ in credit]
    targets = [r for _, returns in credit for r in returns]
    used = torch.tensor([r is not None for r in targets])
    targets = torch.tensor([r or 0.0 for r in targets])
    for step in watch.steps:
        new, values = logprobs_of(step.policy, trajectories), torch.cat(values_of(step.critic, trajectories))
        objective = torch.cat([token_objective(trainer.args, *row) for row in zip(new, old, advantages, strict=True)])
        value_loss = 0.5 * (values - targets)[used].square().mean()
        loss = -objective.mean() + 0.7 * value_loss
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-4)
        assert_same_tensors(gradients_of(loss, step), step.gradients, 2e-3)
    logs = trainer.state.log_history[0]
    with torch.no_grad():
        at_begins = torch.cat(old_values)[used]
    assert logs["value/mean"] == pytest.approx(float(at_begins.mean()), rel=1e-3, abs=1e-4)
    assert logs["value/return_mean"] == pytest.approx(float(targets[used].mean()), rel=1e-3)
    assert logs["value/loss"] == pytest.approx(float(0.5 * (at_begins - targets[used]).square().mean()), rel=1e-3)


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path, tokenizer, actor_path):
    ends = []
    for size, budget in ((8, None), (2, None), (8, 60)):
        trainer = build(
            tmp_path / f"{size}-{budget}", actor_path, tokenizer, "turn", per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size, max_tokens_per_micro_batch=budget, whiten_advantages=True,
        )  # fmt: skip
        recorder = record(trainer)
        critic = Gradients(trainer.value_model)
        trainer.add_callback(critic)
        trainer.train()
        ends.append((recorder.gradients[0], critic.steps[0]))
    for both in ends[1:]:
        for expected, actual in zip(ends[0], both, strict=True):
            assert_same_tensors(expected, actual, 1e-3)


def test_levels_agree_where_they_must(tmp_path, tokenizer, actor_path):
    """`two_level` with all coefficients 1 is `token`, from the batch on."""
    found = []
    for level in ("token", "two_level"):
        trainer = build(tmp_path / level, actor_path, tokenizer, level, gamma=1.0, lam=1.0, **(
            {"token_gamma": 1.0, "token_lam": 1.0}))  # fmt: skip
        recorder = record(trainer)
        trainer.train()
        found.append(recorder.batches[0])
    for key in ("advantages", "returns"):
        torch.testing.assert_close(found[0][key], found[1][key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"advantage_level": "step"}, "advantage_level must be one of 'token', 'turn', 'two_level', got 'step'"),
        ({"token_gamma": 0.9}, "token_gamma=0.9 has no effect with advantage_level='token'"),
        ({"token_lam": 0.9, "advantage_level": "turn"}, "token_lam=0.9 has no effect with advantage_level='turn'"),
        ({"token_lam": 1.5, "advantage_level": "two_level"}, "token_lam=1.5 must lie between 0 and 1"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Mem1PPOConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
