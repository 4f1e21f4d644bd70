"""Log-probs and gradients of the exact layouts against the plain model, which reads each turn alone."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from support.helpers import random_trajectory, tiny_model

from mem1_trl.update.attention import interface
from mem1_trl.update.row_batch import RowBatch
from mem1_trl.update.rows import build_row
from mem1_trl.update.scoring import forward_rows, forwarded_tokens, token_logprobs
from mem1_trl.update.self_check import plain_values

from .check import Check, Finding, Setting

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "head_dim": 32},
    "qwen3": {"hidden_size": 64, "head_dim": 64},
    "gemma3": {"hidden_size": 64, "head_dim": 32},  # layers with and without a window
    "gpt2": {"n_embd": 128},
    "bamba": {"hidden_size": 64, "head_dim": 16, "mamba_d_head": 16},  # a recurrent layer beside attention
}
"""Sizes of tiny models: kernels of a GPU take no head below 16."""
LAYOUTS = ("packed", "per_turn")
FLOAT32 = 2e-3
"""Nats, and relative to the largest gradient: what two ways of computing in float32 may differ by on a GPU."""

NOISE = 3.0
"""In half precision: how many times the noise of the plain model, against itself in float32, a layout may be off on average."""


def model_of(name: str, setting: Setting, dtype: torch.dtype) -> Any:
    """A tiny random model on the device."""
    return tiny_model(name, **MODELS[name]).to(setting.device, dtype)


def trajectories_of(setting: Setting) -> list[Any]:
    """Episodes under MEM1's contexts, of several lengths, so that several shapes are compiled for."""
    generator = random.Random(0)
    turns, size = ((3, 1), 40) if setting.short else ((4, 1, 6), 300)
    return [random_trajectory(generator, n, size // (1 + i), (3, size), (0, size)) for i, n in enumerate(turns)]


def scores_and_gradient(scores: torch.Tensor, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and the gradient of a sum of them in which each has another weight."""
    weights = torch.linspace(-1, 1, len(scores), device=scores.device)
    grads = torch.autograd.grad((scores * weights).sum(), list(model.parameters()), allow_unused=True)
    return scores.detach(), torch.cat([grad.flatten().float() for grad in grads if grad is not None])


def check_model(name: str, dtype: torch.dtype, setting: Setting) -> Finding:
    """Both layouts of one model in one data type."""
    finding = Finding()
    episodes = trajectories_of(setting)
    turns = [turn for episode in episodes for turn in episode.turns]
    model = model_of(name, setting, dtype)
    exact_model = model_of(name, setting, torch.float32)
    exact_model.load_state_dict(model.state_dict())  # of the rounded weights

    def plain(of: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return scores_and_gradient(plain_values(token_logprobs(of), turns, of.device), of)

    exact, exact_gradient = plain(exact_model)
    finding.expect_equal("follows a tree", bool(interface.can_plan(model, model.device)), True)
    rows = RowBatch.from_rows([build_row(episode, "packed") for episode in episodes], device=model.device)
    of_tree, of_rows = (forwarded_tokens(rows, layout, model) for layout in LAYOUTS)
    finding.expect("tokens of the tree over those of rows", of_tree / of_rows, 0.95)
    noise, gradient_noise = FLOAT32, FLOAT32
    if dtype != torch.float32:
        values, gradient = plain(model)
        noise = NOISE * float((values - exact).abs().mean())
        gradient_noise = NOISE * float((gradient - exact_gradient).norm() / exact_gradient.norm())
    for layout in LAYOUTS:
        # Not by `score_trajectories`, which would leave a layout that is off
        of_layout = RowBatch.from_rows([build_row(episode, layout) for episode in episodes], device=model.device)
        (scored,) = forward_rows(of_layout, layout, model, token_logprobs(model))
        assert scored is not None
        values, gradient = scores_and_gradient(scored[of_layout.tool_mask[:, 1:]], model)
        gap = (values - exact).abs()
        finding.expect(f"{layout}: nats", float(gap.max() if dtype == torch.float32 else gap.mean()), noise)
        off = float((gradient - exact_gradient).norm() / exact_gradient.norm())
        finding.expect(f"{layout}: gradient", off, gradient_noise)
    return finding


def checks(short: bool) -> list[Check]:
    """One check for each model and data type."""
    kinds = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    names = ("llama", "gemma3") if short else tuple(MODELS)
    return [
        Check(f"exactness: {name}, {kind}", partial(check_model, name, dtype))
        for name in names
        for kind, dtype in kinds
    ]
