"""`max_tokens_per_micro_batch` bounds the tokens that a pass forwards: after prompts are shared, and with all that padding adds."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.ppo_helpers import four_plans, make, wake
from support.trainer_helpers import assert_same_tensors, record


def passes_of(trainer) -> list[int]:
    """Train, and return the number of tokens of each pass that a backward pass follows, of policy and critic."""
    seen = []

    def hook(module, args, kwargs):
        if torch.is_grad_enabled():
            seen.append(int(kwargs["input_ids"].numel()))

    for module in (trainer.model.model, trainer.value_model.backbone):
        module.register_forward_pre_hook(hook, with_kwargs=True)
    trainer.train()
    return seen


def run(tmp_path, tokenizer, actor_path, layout, budget, plan=four_plans):
    """One step on four episodes of one task with a prompt of 60 tokens, one to four turns long."""
    trainer = make(
        tmp_path / f"{layout}-{budget}", actor_path, tokenizer, layout, plan=plan, beta=0.0, max_steps=1,
        train_dataset=Dataset.from_dict({"prompt": ["q1" * 30] * 4, "secret": ["1"] * 4}), max_grad_norm=0.0,
        max_tokens_per_micro_batch=budget,
    )  # fmt: skip
    recorder = record(trainer)
    tokens = passes_of(trainer)
    return tokens, recorder


# Turns of the four episodes are 1, 2, 3 and 4. In one tree the prompt is forwarded once, and its last token again for each row;
# as rows of their own, ten turns are as wide as the longest.
@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_a_pass_forwards_at_most_the_budget(tmp_path, tokenizer, actor_path, layout):
    whole, reference = run(tmp_path, tokenizer, actor_path, layout, None)
    assert len(whole) == 2 and whole[0] == whole[1]
    rows = reference.batches[0]
    nominal = int(rows["prompt_mask"].sum() + rows["completion_mask"].sum())
    assert whole[0] < nominal if layout == "packed" else whole[0] > nominal
    counts = {}
    for budget in (whole[0], whole[0] - 1, whole[0] // 2, 1):
        tokens, recorder = run(tmp_path, tokenizer, actor_path, layout, budget)
        counts[budget] = len(tokens) // 2
        assert max(tokens) <= budget or budget == 1
        assert recorder.logs[0]["micro_batch/parts"] == counts[budget]
        assert_same_tensors(reference.gradients[0], recorder.gradients[0], 1e-4)
    assert counts[whole[0]] == 1, "as few passes as the budget allows"
    assert counts[whole[0] - 1] == 2
    assert counts[1] == 10, "each turn by itself"


def longest_turn(trajectories) -> int:
    return max(len(turn.prompt_ids) + len(turn.completion_ids) for one in trajectories for turn in one.turns)


@pytest.mark.parametrize("value_model", [None, "shared"])
@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_a_trajectory_above_the_budget_is_cut_at_its_branches(
    tmp_path, tokenizer, actor_path, layout, context, value_model, caplog
):
    """The number is kept however long a trajectory is, as long as each of its turns fits."""

    def step(budget):
        trainer = make(
            tmp_path / f"{budget}", actor_path, tokenizer, layout, plan=lambda i: (5, i % 3), beta=0.1, max_steps=1,
            max_turns=6, train_dataset=Dataset.from_dict({"prompt": ["q1" * 10] * 2, "secret": ["1"] * 2}), context=context,
            per_device_train_batch_size=2, max_grad_norm=0.0, max_tokens_per_micro_batch=budget, value_model=value_model,
        )  # fmt: skip
        wake(trainer)
        recorder = record(trainer)
        played: list = []
        rewarded = trainer.rewarded
        trainer.rewarded = lambda trajectories: (played.extend(trajectories), rewarded(trajectories))
        if value_model is None:
            tokens = passes_of(trainer)
        else:
            tokens = []
            trainer.model.model.register_forward_pre_hook(
                lambda module, args, kwargs: (
                    tokens.append(kwargs["input_ids"].numel()) if torch.is_grad_enabled() else None
                ),
                with_kwargs=True,
            )
            trainer.train()
        critic = {name: p.detach().clone() for name, p in trainer.value_model.named_parameters()}
        return tokens, recorder, played, critic

    whole, reference, played, critic = step(None)
    least = longest_turn(played)
    assert least < max(whole)
    tokens, recorder, _, moved = step(least)
    assert max(tokens) <= least
    # A whole history in one row is no longer than its last turn
    chain = (layout, context) == ("packed", "full")
    parts = recorder.logs[0]["micro_batch/parts"]
    assert parts == 2 if chain else parts > 2
    assert_same_tensors(reference.gradients[0], recorder.gradients[0], 1e-4)
    assert_same_tensors(critic, moved, 1e-4)
    assert float(recorder.losses[0]) == pytest.approx(float(reference.losses[0]), rel=1e-4, abs=1e-6)
    assert "A pass must forward" not in caplog.text
    step(least - 1)
    (said,) = [record.getMessage() for record in caplog.records if "A pass must forward" in record.getMessage()]
    assert f"max_tokens_per_micro_batch={least - 1} tokens, but a single turn takes {least}:" in said


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_episodes_of_one_turn_have_a_budget_too(tmp_path, tokenizer, actor_path, layout):
    whole, reference = run(tmp_path, tokenizer, actor_path, layout, None, plan=lambda i: (1, i % 3))
    tokens, recorder = run(tmp_path, tokenizer, actor_path, layout, whole[0] - 1, plan=lambda i: (1, i % 3))
    assert len(whole) == 2 and len(tokens) == 4 and max(tokens) < whole[0]
    assert_same_tensors(reference.gradients[0], recorder.gradients[0], 1e-4)
