"""`max_tokens_per_micro_batch` bounds the tokens that a pass forwards: after prompts are shared, and with all that padding adds."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.ppo_helpers import four_plans, make
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
        assert max(tokens) <= budget or counts[budget] == 4
        assert recorder.logs[0]["micro_batch/parts"] == counts[budget]
        assert_same_tensors(reference.gradients[0], recorder.gradients[0], 1e-4)
    assert counts[whole[0]] == 1, "as few passes as the budget allows"
    assert counts[whole[0] - 1] == 2
    assert counts[1] == 4


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_episodes_of_one_turn_have_a_budget_too(tmp_path, tokenizer, actor_path, layout):
    whole, reference = run(tmp_path, tokenizer, actor_path, layout, None, plan=lambda i: (1, i % 3))
    tokens, recorder = run(tmp_path, tokenizer, actor_path, layout, whole[0] - 1, plan=lambda i: (1, i % 3))
    assert len(whole) == 2 and len(tokens) == 4 and max(tokens) < whole[0]
    assert_same_tensors(reference.gradients[0], recorder.gradients[0], 1e-4)
