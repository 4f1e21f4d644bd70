"""FlexAttention over a prefix tree: the block mask everywhere, output on the CPU, gradients where there is a GPU."""

from __future__ import annotations

import math
import random

import pytest
import torch
from support.helpers import random_trajectory, tiny_model
from torch.nn.attention.flex_attention import create_mask

from mem1_trl import score_trajectories
from mem1_trl.update import scoring
from mem1_trl.update.attention import cpu_kernels, flex_kernels, interface
from mem1_trl.update.attention.plan import AttentionPlan, plan_attention
from mem1_trl.update.attention.reach import Reach
from mem1_trl.update.folding import fold_rows
from mem1_trl.update.row_batch import RowBatch, tree_context_mask
from mem1_trl.update.rows import build_row


def tree_of(seed: int, *turns: int, context: str = "mem1", size: int = 60) -> RowBatch:
    generator = random.Random(seed)
    trajectories = [
        random_trajectory(generator, n, generator.randint(1, 3 * size), (3, size), (0, size), context) for n in turns
    ]
    return fold_rows(RowBatch.from_rows([build_row(t, "packed") for t in trajectories])).tree


def planned_tree(tree: RowBatch) -> AttentionPlan:
    """The plan of a row as it is on a GPU."""
    plan = plan_attention(tree)
    plan.tree = tree
    return plan


TREES = {
    "several": tree_of(0, 3, 1, 4),
    "long": tree_of(1, 5, size=200),
    "full": tree_of(2, 4, 4, context="full"),
    "shorter than a block": tree_of(3, 2, size=6),
    "small": flex_kernels._small_tree(torch.device("cpu")),
}


@pytest.mark.parametrize("name", TREES)
def test_block_mask_is_the_dense_mask(name):
    tree = TREES[name]
    size = tree.input_ids.shape[1]
    dense = tree_context_mask(tree)[0]
    mask = flex_kernels.block_mask(tree, plan_attention(tree))
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, size, size, device="cpu")[0, 0], dense)
    blocks = -(-size // flex_kernels.BLOCK)
    padded = torch.zeros(blocks * flex_kernels.BLOCK, blocks * flex_kernels.BLOCK, dtype=torch.bool)
    padded[:size, :size] = dense
    by_block = padded.view(blocks, flex_kernels.BLOCK, blocks, flex_kernels.BLOCK).transpose(1, 2).flatten(2)
    # Blocks without a visible pair are skipped, those that are visible throughout are computed without the mask
    for row in range(blocks):
        partial = set(mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist())
        whole = set(mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist())
        assert whole == set(by_block[row].all(-1).nonzero().flatten().tolist())
        assert partial | whole == set(by_block[row].any(-1).nonzero().flatten().tolist())
        assert not partial & whole


def test_trees_have_whole_and_skipped_blocks():
    """What makes the test above say something about blocks."""
    mask = flex_kernels.block_mask(TREES["long"], plan_attention(TREES["long"]))
    assert int(mask.full_kv_num_blocks.sum()) > 0
    blocks = mask.kv_num_blocks.shape[-1]
    assert int((mask.kv_num_blocks + mask.full_kv_num_blocks).sum()) < blocks * (blocks + 1) // 2


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("name", ["several", "full", "small"])
def test_output_is_that_of_dense_attention(name, scale):
    tree = TREES[name]
    size = tree.input_ids.shape[1]
    torch.manual_seed(0)
    states = [torch.randn(1, heads, size, 16) for heads in (4, 2, 2)]
    with torch.no_grad():
        planned = flex_kernels.attend(*states, planned_tree(tree), scale)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *states, attn_mask=tree_context_mask(tree)[:, None], scale=scale, enable_gqa=True
    )
    torch.testing.assert_close(planned, dense, atol=1e-5, rtol=1e-5)


@pytest.fixture
def flex_on_a_cpu(monkeypatch):
    """FlexAttention's eager operator runs forward and backward on a CPU; only a check of the device is in the way."""
    checks = torch.nn.attention.flex_attention
    monkeypatch.setattr(checks, "_validate_device", lambda *args: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reach", "sunk"), [(Reach(), False), (Reach(window=40), True), (Reach(chunk=150), False)], ids=str
)
@pytest.mark.parametrize("name", ["several"])
def test_output_and_gradients_are_those_of_the_cpu_kernels(name, reach, sunk, flex_on_a_cpu):
    """Which tests/update/test_windows.py holds against dense attention."""
    tree = TREES[name]
    size = tree.input_ids.shape[1]
    torch.manual_seed(0)
    states = [torch.randn(1, heads, size, 16, requires_grad=True) for heads in (4, 2, 2)]
    sinks = torch.randn(4, requires_grad=True) if sunk else None
    inputs = [*states, *([sinks] if sunk else [])]
    weights = torch.randn(1, 4, size, 16)
    flex = flex_kernels.attend(*states, planned_tree(tree), 0.3, reach, sinks)
    expected = cpu_kernels.tree_attention(*states, plan_attention(tree), 0.3, reach, sinks)
    torch.testing.assert_close(flex, expected, atol=1e-5, rtol=1e-5)
    found, wanted = (torch.autograd.grad((output * weights).sum(), inputs) for output in (flex, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma3", "bamba"])
def test_whole_models_are_exact_with_flex_attention(architecture, flex_on_a_cpu, monkeypatch):
    """The path of a GPU, with the arithmetic of the CPU: log-probs and gradients against one row per turn."""
    model = tiny_model(architecture)
    generator = random.Random(5)
    trajectories = [random_trajectory(generator, turns, 60, (3, 40), (0, 40)) for turns in (4, 2)]
    used = []

    def plan_for_a_gpu(tree):
        plan = planned_tree(tree)
        used.append(plan)
        return plan

    monkeypatch.setattr(scoring, "plan_attention", plan_for_a_gpu)

    def scored(layout):
        scores = torch.cat([turn for one in score_trajectories(model, trajectories, layout) for turn in one])
        weights = torch.linspace(-1, 1, len(scores))
        grads = torch.autograd.grad((scores * weights).sum(), list(model.parameters()))
        return scores, torch.cat([grad.flatten() for grad in grads])

    packed, per_turn = scored("packed"), scored("per_turn")
    assert used and used[-1].used > 0 and all(("block mask", reach) in used[-1].made for reach in used[-1].reaches)
    torch.testing.assert_close(packed[0], per_turn[0], atol=3e-5, rtol=0)
    assert (packed[1] - per_turn[1]).norm() < 1e-4 * per_turn[1].norm()


def test_a_cpu_is_not_asked():
    assert not flex_kernels.flex_attention_is_exact(torch.device("cpu"), torch.float32, 16)


# What decides on a GPU, with a GPU's name and the arithmetic of the CPU

GPU = torch.device("cuda")


def asked_anew(dtype: torch.dtype) -> bool:
    """The answer for a GPU, without the one that is remembered."""
    return flex_kernels.flex_attention_is_exact.__wrapped__(GPU, dtype, 16)


@pytest.mark.parametrize(
    ("dtype", "error", "exact"),
    [
        (torch.float32, 0.9e-3, True),
        (torch.float32, 1.1e-3, False),
        (torch.bfloat16, 1.1e-3, True),
        (torch.bfloat16, 4.9e-2, True),
        (torch.bfloat16, 5.1e-2, False),
        (torch.float16, 5.1e-2, False),
        (torch.float32, float("nan"), False),
        (torch.bfloat16, float("nan"), False),
    ],
)
def test_a_kernel_is_used_if_it_is_off_by_rounding_only(monkeypatch, caplog, dtype, error, exact):
    monkeypatch.setattr(flex_kernels, "_largest_error", lambda *args: error)
    assert asked_anew(dtype) is exact
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        [] if exact else [f"One row per turn instead of FlexAttention over a tree, which is off by {error:.1e} here."]
    )


def test_a_kernel_that_fails_is_not_used(monkeypatch, caplog):
    def fail(*args):
        raise NotImplementedError("no such head")

    monkeypatch.setattr(flex_kernels, "_largest_error", fail)
    assert asked_anew(torch.float32) is False
    assert [record.getMessage() for record in caplog.records] == [
        "One row per turn instead of FlexAttention over a tree, which failed here: NotImplementedError: no such head"
    ]


def attention_of(visible: torch.Tensor, gradient: float = 1.0):
    """Dense attention under a mask in place of the kernel, whose gradient is multiplied."""

    def attend(query, key, value, plan, scale=None):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale, enable_gqa=True
        )
        output.register_hook(lambda grad: grad * gradient)
        return output

    return attend


def test_the_error_of_a_kernel_is_that_of_its_output_and_of_its_gradients(monkeypatch):
    tree = TREES["small"]
    right = tree_context_mask(tree)[:, None]
    causal = torch.ones_like(right).tril()
    missing = right.clone()
    missing[0, 0, -1, 140] = ~missing[0, 0, -1, 140]  # one pair of half a million
    kernels = {
        "right": (attention_of(right), 0.0, 1e-6),
        "causal": (attention_of(causal), 0.3, 10.0),
        "one pair": (attention_of(missing), 2e-3, 10.0),
        "gradient": (attention_of(right, gradient=1.1), 0.09, 0.11),
    }
    for name, (kernel, least, most) in kernels.items():
        monkeypatch.setattr(flex_kernels, "attend", kernel)
        error = flex_kernels._largest_error(torch.device("cpu"), torch.float32, 16, 16)
        assert least <= error <= most, name
    monkeypatch.setattr(flex_kernels, "attend", attention_of(right, gradient=float("nan")))
    assert math.isnan(flex_kernels._largest_error(torch.device("cpu"), torch.float32, 16, 16))


def test_the_answer_is_remembered_by_device_type_and_head(monkeypatch):
    asked = []
    monkeypatch.setattr(flex_kernels, "_largest_error", lambda *args: asked.append(args) or 0.0)
    kinds = [(GPU, torch.float32, 12, 12), (GPU, torch.bfloat16, 12, 12), (GPU, torch.float32, 20, 12)]
    for arguments in (*kinds, *kinds):
        assert flex_kernels.flex_attention_is_exact(*arguments)
    assert asked == kinds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_dense_attention_on_a_gpu(dtype):
    error = flex_kernels._largest_error(torch.device("cuda"), dtype, 64, 64)
    assert error < (1e-3 if dtype == torch.float32 else 5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_scores_as_on_the_cpu():
    model = tiny_model("llama", head_dim=16)  # kernels of a GPU take no smaller head
    generator = random.Random(0)
    trajectories = [random_trajectory(generator, 4, 40, (3, 60), (0, 60)) for _ in range(3)]
    with torch.no_grad():
        expected = score_trajectories(model, trajectories)
    model.to("cuda")
    assert interface.can_plan(model, model.device)
    for row, other in zip(expected, score_trajectories(model, trajectories), strict=True):
        for one, another in zip(row, other, strict=True):
            torch.testing.assert_close(another.cpu(), one, atol=1e-3, rtol=1e-3)
