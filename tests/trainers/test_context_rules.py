"""Every context rule in a training step: the update is exact, each sampled token is trained once, summaries included."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.ppo_helpers import gae, wake, watch_credit
from support.stepwise import Stepwise
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    assert_same_tensors,
    lookup_dataset,
    record,
    trainer_arguments,
)

from mem1_trl import (
    ContextRule,
    Mem1Agent,
    Mem1GRPOConfig,
    Mem1GRPOTrainer,
    Mem1PPOConfig,
    Mem1PPOTrainer,
)
from mem1_trl.context_rules import RULES, Compact, NextTurn


@dataclasses.dataclass(frozen=True)
class ShortRequest(Compact):
    """With a short request, since the tiny tokenizer spends one token on a byte."""

    def next(self, past):
        return dataclasses.replace(super().next(past), request="Sum up in <{state}>.")


class FirstAndLast(ContextRule):
    def next(self, past):
        return NextTurn(sorted({0, len(past) - 1}) if len(past) else [])


SEARCH = "<think>k{i}</think><search>x{q}</search>"
SUMMARY = "<think>so {i} {q}</think>"
SCRIPTS = {
    "compact": [SEARCH, SEARCH, SUMMARY, SEARCH],
    "on_demand": [SEARCH, SEARCH, "<think>r</think><rewrite>x{i}</rewrite>", SEARCH],
    "fold": [SEARCH, "<branch>b{i}</branch>", SEARCH, "<think>c</think><close_branch>r{q}</close_branch>", SEARCH],
}
NAMED = {"compact": ShortRequest(every=2), "own": FirstAndLast()}


def script(rule: str):
    texts = [*SCRIPTS.get(rule, [SEARCH] * 3), "<think>d</think><answer>{i}</answer>"]

    def say(call: int, index: int, prompt: str) -> str:
        return texts[call].format(i=index % 3, q="yz" * (index % 2) + "w" * call)

    return say


def make(kind, tmp_path, path, tokenizer, rule, environment=LookupEnvironment, **settings):
    trainer_class, config = {"GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig), "PPO": (Mem1PPOTrainer, Mem1PPOConfig)}[kind]
    settings = {
        "max_turns": 6, "max_observation_length": 90, "max_completion_length": 60, "max_context_length": 700, "max_steps": 1,
        "max_grad_norm": 0.0, "context": NAMED.get(rule, rule), **({"num_generations": 4} if kind == "GRPO" else {}), **settings,
    }  # fmt: skip
    trainer = trainer_class(
        model=path,
        args=config(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
    )
    if kind == "PPO":
        wake(trainer)
    trainer.rollout.generate = ScriptedGenerator(tokenizer, script(rule))
    return trainer


def gradients(kind, tmp_path, path, tokenizer, rule, layout, **settings):
    trainer = make(kind, tmp_path / layout, path, tokenizer, rule, layout=layout, **settings)
    played = []
    rewarded = trainer.rewarded
    trainer.rewarded = lambda trajectories: (played.extend(trajectories), rewarded(trajectories))[1]
    recorder = record(trainer)
    trainer.train()
    return recorder, played


def check_same_step(kind, tmp_path, path, tokenizer, rule, **settings):
    """One step in both exact layouts has the same gradients; returns what the packed one has played and logged."""
    packed, played = gradients(kind, tmp_path, path, tokenizer, rule, "packed", **settings)
    unfolded, _ = gradients(kind, tmp_path, path, tokenizer, rule, "per_turn", **settings)
    assert max(float(tensor.abs().max()) for tensor in packed.gradients[0].values()) > 1e-4
    assert_same_tensors(unfolded.gradients[0], packed.gradients[0], 2e-3)
    (batch,) = packed.batches
    sampled = int((batch["completion_mask"] * batch["tool_mask"]).sum())
    assert sampled == sum(len(turn.completion_ids) for one in played for turn in one.turns)
    return packed, played


@pytest.mark.parametrize("kind", ["GRPO", "PPO"])
@pytest.mark.parametrize("rule", [*RULES, "own"])
def test_the_update_is_exact(tmp_path, tokenizer, actor_path, kind, rule):
    packed, played = check_same_step(kind, tmp_path, actor_path, tokenizer, rule)
    did = {one.context_action for trajectory in played for one in trajectory.turns}
    expected = {"compact": {"summary"}, "on_demand": {"rewrite"}, "fold": {"branch", "close_branch"}}
    assert did - {None} == expected.get(rule, set())
    log = packed.logs[0]
    assert log.get("episode/summaries") == (1.0 if rule in expected else None)
    if rule in expected:
        of_summaries = [t for one in played for t in one.turns if t.replaced_turns is not None]
        assert log["episode/summary_tokens"] == pytest.approx(
            sum(len(t.completion_ids) for t in of_summaries) / len(played)
        )
        assert log["episode/summary_saved_tokens"] == pytest.approx(
            sum(t.saved_tokens for t in of_summaries) / len(played)
        )


@pytest.mark.parametrize("level", ["turn", "two_level"])
def test_between_turns_and_with_a_weight_for_summaries(tmp_path, tokenizer, actor_path, level):
    settings = {"advantage_level": level, "state_loss_weight": 3.0, "gamma": 0.97, "lam": 0.9, "beta": 0.0}
    check_same_step("PPO", tmp_path, actor_path, tokenizer, "compact", **settings)


def test_a_summary_has_the_credit_of_the_trajectory(tmp_path, tokenizer, actor_path):
    """Turn rewards stay with the turns that acted, and GAE by hand goes through the tokens of the summary."""
    trainer = make(
        "PPO", tmp_path, actor_path, tokenizer, "compact", environment=Stepwise, gamma=0.97, lam=0.9, beta=0.0,
        whiten_advantages=False,
    )  # fmt: skip
    seen = watch_credit(trainer)
    trainer.train()
    (credit,) = seen
    for row, trajectory in enumerate(credit["trajectories"]):
        assert [turn.context_action for turn in trajectory.turns] == [None, None, "summary", None, None]
        assert [turn.reward for turn in trajectory.turns] == [0.25, 0.125, 0.0, 0.0625, 0.5]
        rewards = []
        for turn in trajectory.turns:
            rewards += [0.0] * (len(turn.completion_ids) - 1) + [turn.reward or 0.0]
        rewards[-1] += trajectory.reward - sum(trajectory.turn_rewards)
        mask, values = credit["mask"][row], credit["values"][row]
        expected = torch.tensor(gae(rewards, values.tolist(), 0.97, 0.9))
        torch.testing.assert_close(credit["batch"]["advantages"][row][mask], expected, atol=2e-4, rtol=1e-3)


def test_a_rule_is_saved_with_the_model(tmp_path, tokenizer, actor_path):
    trainer = make("GRPO", tmp_path, actor_path, tokenizer, "compact")
    trainer.save_model(str(tmp_path / "model"))
    tokenizer.save_pretrained(tmp_path / "model")
    agent = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert agent.settings.rule == ShortRequest(every=2)
    # Another rule that is passed has its own parameters
    assert Mem1Agent.from_pretrained(str(tmp_path / "model"), context="full").settings.context_kwargs == {}
    settings = (tmp_path / "model" / "mem1_agent.json").read_text()
    (tmp_path / "model" / "mem1_agent.json").write_text(settings.replace(ShortRequest.__module__, "nowhere_imported"))
    with pytest.raises(ValueError, match="'nowhere_imported:ShortRequest' must have been imported"):
        Mem1Agent.from_pretrained(str(tmp_path / "model"))


def test_budgets_that_a_summary_would_overflow_are_refused(tmp_path, tokenizer, actor_path):
    with pytest.raises(ValueError, match="and the turns and the request before a summary"):
        make("GRPO", tmp_path, actor_path, tokenizer, "compact", max_context_length=300)
