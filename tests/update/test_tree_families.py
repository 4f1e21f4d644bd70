"""Current families of models in a tree: log-probs and gradients against the plain model and against one row per turn."""

import copy
import random
from collections import Counter

import pytest
import torch
from support.helpers import VOCAB, oracle_logprobs, random_trajectory
from transformers import AutoConfig, AutoModelForCausalLM

from mem1_trl import score_trajectories
from mem1_trl.model_traits import enable_activation_checkpointing, head_sizes
from mem1_trl.update.attention import interface
from mem1_trl.update.attention.reach import Reach
from mem1_trl.update.layouts import resolve_layout
from mem1_trl.update.row_batch import RowBatch
from mem1_trl.update.rows import build_row
from mem1_trl.update.scoring import forward_rows, token_logprobs

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
}
MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "head_dim": None,
}
WINDOW = Reach(window=16)

FAMILIES = {
    # name: (model type, sizes beyond SIZES, layers of each limited reach, recurrent layers)
    "mistral": ("mistral", {"sliding_window": 16}, {WINDOW: 3}, 0),
    "qwen3": ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, {WINDOW: 2}, 0),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, **MIXED, "use_sliding_window": True, "max_window_layers": 1}, {WINDOW: 2}, 0),
    "gemma3": ("gemma3_text", {**MIXED, "query_pre_attn_scalar": 8}, {WINDOW: 2}, 0),
    "gemma4": ("gemma4_text", {**MIXED, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 16, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}, {WINDOW: 1}, 0),
    "olmo3": ("olmo3", MIXED, {WINDOW: 2}, 0),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **MIXED, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, {WINDOW: 2}, 0),
    "llama4": ("llama4_text", {**EXPERTS, "attention_chunk_size": 16, "intermediate_size_mlp": 48, "no_rope_layers": [1, 1, 0]}, {Reach(chunk=16): 2}, 0),
    "deepseek_v3": ("deepseek_v3", {**EXPERTS, **LATENT}, {}, 0),
    "stablelm": ("stablelm", {}, {}, 0),
    "qwen3_next": ("qwen3_next", {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 16}, {}, 2),
    "qwen3_5": ("qwen3_5_text", {**DELTA, **MROPE}, {}, 2),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}, {}, 3),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [1]}, {}, 2),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, {}, 2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(interface, "_WITHOUT_PLANS", set())
    monkeypatch.setattr(interface, "_PLANS_AT_HAND", set())


def family(name, **changes):
    kind, sizes, *_ = FAMILIES[name]
    sizes = copy.deepcopy(sizes)  # some configurations change the list of their layers
    sizes = {key: value for key, value in {**SIZES, **sizes, **changes}.items() if value is not None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not any(part in key for part in ("A_log", "embed", "lm_head")):
                parameter.mul_(3.0)
            elif "sinks" in key:
                parameter.normal_()
    return model.eval()


def episodes():
    generator = random.Random(1)
    return [random_trajectory(generator, turns, 23, (1, 25), (0, 30)) for turns in (3, 1, 5)]


def gradient_of(model, scores):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum((turn * torch.linspace(-1, 1, len(turn))).sum() for trajectory in scores for turn in trajectory)
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def spied_plans(model, monkeypatch):
    """The plans that a model's passes carried."""
    plans = []
    original = interface.plan_at_hand
    monkeypatch.setattr(interface, "plan_at_hand", lambda plan, model: plans.append(plan) or original(plan, model))
    return plans


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("mem1_trl")]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tree_is_exact(name, monkeypatch, caplog):
    model, trajectories = family(name), episodes()
    _, _, windows, states = FAMILIES[name]
    plans = spied_plans(model, monkeypatch)
    packed = score_trajectories(model, trajectories)
    assert plans[-1].reaches == Counter(windows)
    assert plans[-1].states == states
    assert not interface.follows_no_plans(model) and said(caplog) == []
    assert resolve_layout(model, "packed") == "packed"
    per_turn = score_trajectories(model, trajectories, "per_turn")
    for trajectory, scores, other in zip(trajectories, packed, per_turn, strict=True):
        for found, turn, expected in zip(scores, other, oracle_logprobs(model, trajectory), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
            torch.testing.assert_close(turn, expected, atol=2e-5, rtol=0)
    expected = gradient_of(model, per_turn)
    assert (gradient_of(model, packed) - expected).norm() < 3e-5 * expected.norm()


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "qwen3_next"])
def test_checkpointing_of_activations_changes_nothing(name):
    model, trajectories = family(name), episodes()
    expected = gradient_of(model, score_trajectories(model, trajectories))
    enable_activation_checkpointing(model)
    model.train()
    assert resolve_layout(model, "packed") == "packed"
    found = gradient_of(model, score_trajectories(model, trajectories))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_layers_without_their_keyword_arguments_run_again_one_row_per_turn(caplog):
    """Mamba-2 does not hand them down. The plan is at hand in a forward pass, but not when layers run again in the backward pass."""
    model, trajectories = family("mamba2"), episodes()
    expected = gradient_of(model, score_trajectories(model, trajectories))
    enable_activation_checkpointing(model)
    model.train()
    rows = RowBatch.from_rows([build_row(trajectory, "packed") for trajectory in trajectories])
    scores = score_trajectories(model, trajectories)
    assert said(caplog) == [], "known from the first passes, so nothing is tried in vain"
    found = gradient_of(model, scores)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    calls = []
    forward_rows(rows, "packed", model, lambda i, labels: calls.append(i) or token_logprobs(model)(i, labels))
    assert all(interface.PLAN_ARGUMENT not in call for call in calls)


def test_layers_that_hide_their_window_are_not_followed(monkeypatch, caplog):
    """A model whose attention is not what its configuration says is forwarded one row per turn, whatever the toy shows."""
    model = family("mistral")
    original = interface.reach_of
    monkeypatch.setattr(interface, "reach_of", lambda module, kwargs: original(module, {"sliding_window": None}))
    trajectory = episodes()[2]
    with torch.no_grad():
        (scores,) = score_trajectories(model, [trajectory])
        for found, expected in zip(scores, oracle_logprobs(model, trajectory), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert "its windowed layers do not say how far they see" in caplog.text
    assert resolve_layout(model, "packed") == "per_turn"


def test_llama4_scales_by_place_and_runs_turns_beyond_a_step(monkeypatch):
    """Its queries are scaled by the place in the row, a step each `floor_scale` tokens, which a tree may pass and a turn not."""
    model = family("llama4", attn_temperature_tuning=True, floor_scale=96, attn_scale=5.0)
    plans = spied_plans(model, monkeypatch)
    trajectories = [random_trajectory(random.Random(2), 4, 20, (10, 12), (10, 12))]
    rows = RowBatch.from_rows([build_row(trajectory, "packed") for trajectory in trajectories])
    assert rows.input_ids.numel() > 96
    with torch.no_grad():
        (found,) = forward_rows(rows, "packed", model, token_logprobs(model))
        expected = torch.cat(oracle_logprobs(model, trajectories[0]))
    assert plans == []
    torch.testing.assert_close(found[rows.tool_mask[:, 1:]], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("gemma4", {(8, 8), (16, 16)}), ("deepseek_v3", {(24, 12)}), ("stablelm", {(8, 8)})],
)
def test_heads_have_a_size_in_every_layer(name, sizes):
    kind, more, *_ = FAMILIES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more}))
    assert head_sizes(model) == sizes
