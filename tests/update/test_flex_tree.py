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
from mem1_trl.update.attention import compiled_flex, cpu_kernels, flex_kernels, interface
from mem1_trl.update.attention.plan import AttentionPlan, plan_attention
from mem1_trl.update.attention.reach import FULL, Reach
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
    length = flex_kernels.padded_size(size)
    assert length % flex_kernels.BLOCK == 0 and max(size, 2 * flex_kernels.BLOCK) <= length
    blocks = length // flex_kernels.BLOCK
    padded = torch.zeros(length, length, dtype=torch.bool)
    padded[:size, :size] = dense
    padded[size:, size:] = torch.ones(length - size, length - size, dtype=torch.bool).tril()  # the padding sees itself
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, length, length, device="cpu")[0, 0], padded)
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


# Compiled graphs, with a backend that a CPU has


@pytest.fixture
def graphs(monkeypatch, flex_on_a_cpu):
    """The graphs that are compiled, and run by the eager operator."""
    found = []

    def backend(module, inputs):
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled_flex.function_of.cache_clear()
    monkeypatch.setattr(compiled_flex, "BACKEND", backend)
    monkeypatch.setattr(flex_kernels, "_compiles", lambda device: True)
    yield found
    torch._dynamo.reset()
    compiled_flex.function_of.cache_clear()


def attended(tree, heads=(4, 2, 2), size=16, reach=FULL, gradient=True, scale=None):
    """Output, and the gradient of its sum in the queries, of compiled attention over a tree; held against the CPU kernels."""
    torch.manual_seed(0)
    states = [torch.randn(1, count, tree.input_ids.shape[1], size, requires_grad=gradient) for count in heads]
    found = []
    with torch.set_grad_enabled(gradient):
        for attend, plan in (
            (flex_kernels.attend, planned_tree(tree)),
            (cpu_kernels.tree_attention, plan_attention(tree)),
        ):
            output = attend(*states, plan, scale, reach, None)
            found.append([output, *(torch.autograd.grad(output.square().sum(), states) if gradient else ())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)


@pytest.mark.slow
def test_lengths_runs_and_reaches_share_one_graph(graphs):
    """A block or several, whole ones or not, one run or many, windows and none: what specialised before."""
    one_run = fold_rows(RowBatch.from_rows([build_row(random_trajectory(random.Random(0), 1, 9), "packed")])).tree
    whole_blocks = next(tree for seed in range(200) if (tree := tree_of(seed, 3, 2)).input_ids.shape[1] % 128 == 0)
    trees = [TREES["several"], TREES["shorter than a block"], one_run, whole_blocks, TREES["long"]]
    for tree in trees:
        attended(tree)
    assert len(graphs) == 1
    for reach in (Reach(window=40), Reach(chunk=100), Reach(window=3)):
        attended(TREES["several"], reach=reach)
    assert len(graphs) == 1
    for tree in trees:
        attended(tree, gradient=False)
    assert len(graphs) == 2, "one with gradients and one without"


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=2)
def test_each_kind_of_layer_has_a_limit_of_its_own(graphs):
    """Five kinds in one process, which would be more than torch compiles of one function."""
    kinds = [((4, 2, 2), 16), ((4, 4, 4), 16), ((8, 2, 2), 16), ((4, 2, 2), 24), ((2, 1, 1), 32)]
    for heads, size in kinds:
        for gradient in (True, False):
            attended(TREES["shorter than a block"], heads, size, gradient=gradient)
    assert len(graphs) == 2 * len(kinds)


@torch._dynamo.config.patch(recompile_limit=1)
def test_an_overrun_is_an_error_and_no_dense_product(graphs):
    attended(TREES["shorter than a block"], gradient=False)
    states = [
        torch.randn(1, heads, TREES["several"].input_ids.shape[1], 16, requires_grad=True) for heads in (4, 2, 2)
    ]
    with pytest.raises(compiled_flex.CompileLimitReached) as error:
        flex_kernels.attend(*states, planned_tree(TREES["several"]))
    assert str(error.value) == (
        "FlexAttention must be compiled at most 1 times for one kind of attention layer, which was exceeded by 4 heads of 16, and "
        "would be a dense product from now on: raise torch._dynamo.config.recompile_limit, or set layout='per_turn'."
    )
    assert len(graphs) == 1


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


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        (torch.no_grad, torch.float32),
        (torch.inference_mode, torch.float32),
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.bfloat16),
    ],
)
def test_the_first_to_ask_may_be_any_pass(monkeypatch, caplog, mode, dtype):
    """A rollout or the pass of old log-probs asks before an update does, and the answer is remembered."""
    real = flex_kernels._largest_error
    errors = []

    def on_the_cpu(device, *sizes):
        assert not torch.is_autocast_enabled(GPU.type)
        errors.append(real(torch.device("cpu"), *sizes))
        return errors[-1]

    monkeypatch.setattr(flex_kernels, "_largest_error", on_the_cpu)
    monkeypatch.setattr(flex_kernels, "attend", attention_of(tree_context_mask(TREES["small"])[:, None]))
    with mode():
        assert asked_anew(dtype)
    assert caplog.records == [] and len(errors) == 1


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
