"""Attention by plan against softmax attention under the dense mask of the same tree: values and gradients."""

from __future__ import annotations

import random

import pytest
import torch
from support.helpers import oracle_logprobs, random_trajectory, tiny_model

from mem1_trl import score_trajectories
from mem1_trl.update.attention import cpu_kernels, interface
from mem1_trl.update.attention.plan import plan_attention
from mem1_trl.update.row_batch import RowBatch, tree_context_mask
from mem1_trl.update.rows import build_row


def batch_of(seed: int, *turns: int, context: str = "mem1") -> RowBatch:
    generator = random.Random(seed)
    trajectories = [
        random_trajectory(generator, n, prompt_length=generator.randint(1, 20), context=context) for n in turns
    ]
    return RowBatch.from_rows([build_row(trajectory, "packed") for trajectory in trajectories])


@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("turns", [(1,), (2, 5), (20, 1, 7)])
def test_plan_holds_every_visible_pair_once(turns, context):
    batch = batch_of(0, *turns, context=context)
    plan = plan_attention(batch)
    covered = torch.zeros(len(batch), *[batch.input_ids.shape[1]] * 2, dtype=torch.long)
    for row, blocks in enumerate(plan.rows):
        for b in blocks:
            part = torch.ones(b.q_end - b.q_begin, b.k_end - b.k_begin, dtype=torch.long)
            covered[row, b.q_begin : b.q_end, b.k_begin : b.k_end] += part.tril() if b.causal else part
    real = batch.attention_mask.bool()
    visible = tree_context_mask(batch) & real[:, :, None]  # the mask lets padding see itself, the plan skips it
    assert torch.equal(covered, visible.long())
    assert plan.pairs == int(visible.sum())


def test_turns_of_a_trajectory_share_one_block_for_the_task_prompt():
    plan = plan_attention(batch_of(1, 12))
    assert sum(not block.causal for block in plan.rows[0]) == 1


@pytest.mark.parametrize("sizes", [(24, 12), (12, 24)])
def test_values_may_have_another_size_than_keys(sizes):
    """As in multi-head latent attention; three query heads share a key head."""
    batch = batch_of(4, 5, 2)
    mask, real = tree_context_mask(batch)[:, None], batch.attention_mask.bool()[:, None, :, None]
    torch.manual_seed(0)
    shape = (len(batch), 6, batch.input_ids.shape[1])
    query = torch.randn(*shape, sizes[0], requires_grad=True)
    key, value = (torch.randn(len(batch), 2, shape[2], size, requires_grad=True) for size in sizes)
    weights = torch.randn(*shape, sizes[1]) * real
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    planned = cpu_kernels.tree_attention(query, key, value, plan_attention(batch))
    assert planned.shape == dense.shape
    torch.testing.assert_close(planned * real, dense * real, atol=1e-5, rtol=1e-5)
    expected, found = (
        torch.autograd.grad((output * weights).sum(), (query, key, value)) for output in (dense, planned)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("turns", [(1,), (6, 2), (20,)])
def test_output_and_gradients_equal_dense_attention(turns, scale):
    batch = batch_of(2, *turns)
    plan = plan_attention(batch)
    mask = tree_context_mask(batch)[:, None]
    real = batch.attention_mask.bool()[:, None, :, None]
    torch.manual_seed(0)
    size = (len(batch), 3, batch.input_ids.shape[1], 16)
    inputs = [torch.randn(size, requires_grad=True) for _ in range(3)]
    weights = torch.randn(size) * real

    def gradients(output: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((output * weights).sum(), inputs))

    planned = cpu_kernels.tree_attention(*inputs, plan, scale)
    dense = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=scale)
    torch.testing.assert_close(planned * real, dense * real, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(planned), gradients(dense), strict=True):
        torch.testing.assert_close(ours * real, theirs * real, atol=1e-5, rtol=1e-4)


def test_calls_without_a_plan_go_to_transformers():
    model = tiny_model("llama")
    ids = torch.randint(2, 300, (2, 9))
    eager = tiny_model("llama", "eager")
    torch.testing.assert_close(model(ids).logits, eager(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_model_that_drops_keyword_arguments_finds_the_plan_at_hand(monkeypatch):
    monkeypatch.setattr(interface, "_WITHOUT_PLANS", set())
    monkeypatch.setattr(interface, "_PLANS_AT_HAND", set())
    model = tiny_model("llama")
    inner = model.model.forward

    def without_extras(*args, **kwargs):
        kwargs.pop(interface.PLAN_ARGUMENT, None)
        return inner(*args, **kwargs)

    model.model.forward = without_extras
    trajectory = random_trajectory(random.Random(3), 5)
    scores = score_trajectories(model, [trajectory])[0]
    for ours, oracle in zip(scores, oracle_logprobs(model, trajectory), strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=0)
    assert type(model).__name__ in interface._PLANS_AT_HAND and not interface._WITHOUT_PLANS


def test_dropout_on_attention_is_left_to_the_mask():
    model = tiny_model("llama")
    batch = batch_of(4, 3)
    assert interface.can_plan(model, batch.input_ids.device)
    model.config.attention_dropout = 0.1
    assert interface.can_plan(model, batch.input_ids.device), "dropout is off in eval mode"
    model.train()
    assert not interface.can_plan(model, batch.input_ids.device)


def test_half_precision_is_close():
    batch = batch_of(5, 6)
    plan = plan_attention(batch)
    torch.manual_seed(0)
    full = [torch.randn(1, 2, batch.input_ids.shape[1], 16) for _ in range(3)]
    half = cpu_kernels.tree_attention(*(x.bfloat16() for x in full), plan)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), cpu_kernels.tree_attention(*full, plan), atol=3e-2, rtol=3e-2)


def test_autocast_is_followed():
    """Rotary embeddings leave queries and keys in float32 beside half-precision values, which the inner operator refuses."""
    model = tiny_model("llama")
    generator = random.Random(4)
    trajectories = [random_trajectory(generator, turns) for turns in (2, 4, 3)]
    with torch.no_grad():
        full = torch.cat([turn for t in score_trajectories(model, trajectories, "packed") for turn in t])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = {
                layout: torch.cat([turn for t in score_trajectories(model, trajectories, layout) for turn in t])
                for layout in ("packed", "per_turn")
            }
    noise = (scores["per_turn"] - full).abs().mean()
    assert 0 < noise < 0.5
    assert (scores["packed"] - full).abs().mean() < 2 * noise
