"""
Shown when a trainer is built: tokens are scored as they were sampled, by this model, on this machine, with these settings.

A toy trajectory goes through the trainer's own paths (its sampler, TRL's log-probs in the layout of the run) and is held against
the plain model, which reads each context alone.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger

from ..trajectory import Turn
from ..update.layouts import resolve_layout
from ..update.row_batch import RowBatch
from ..update.rows import build_row
from ..update.scoring import forward_rows, hidden_numbers, token_logprobs
from ..update.self_check import (
    HALF_PRECISION,
    Gap,
    Tolerance,
    exact_layout,
    plain_values,
    tolerance_of,
    toy_trajectories,
)
from .trl_seam.helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from .mem1 import Mem1Trainer

logger = get_logger(__name__)

SAMPLED = 4
"""Tokens that are sampled for each context of the check."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """
    What was measured, against the plain model.

    Attributes:
        layouts (`dict[str, Gap]`): Log-probs by TRL's code, of each layout that was tried.
        sampler (`Gap` or `None`): Log-probs that the sampler recorded; `None` if they were not compared.
        seconds (`float`): What the check took.
    """

    layouts: dict[str, Gap]
    sampler: Gap | None
    seconds: float


def check_trainer(trainer: Mem1Trainer) -> SelfCheck | None:
    """
    Hold a trainer against the plain model, and replace its layout if that is off.

    Nothing is changed besides: not the random state, not the weights, not the metrics. Skipped under DeepSpeed and FSDP, where
    a model is not whole before training, with a warning.

    Returns:
        [`SelfCheck`] or `None`: `None` if it was skipped.

    Raises:
        `ValueError`: If neither layout, or not the sampler, computes what the plain model does.
    """
    if trainer.args.check == "off":
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        logger.warning(
            "The self-check is left out under DeepSpeed and FSDP, where a model is not whole before training: build a trainer with this model in "
            "one process once, or set check='off'."
        )
        return None
    began = time.perf_counter()
    model = trainer.model
    training = model.training
    with ExitStack() as stack:
        devices = [model.device] if model.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(trainer.metrics_not_kept())
        model.eval()
        try:
            layouts = _check_layout(trainer)
            sampler = _check_sampler(trainer)
        finally:
            model.train(training)
    return SelfCheck(layouts, sampler, time.perf_counter() - began)


def check_critic(trainer: Mem1Trainer, backbone: Any, layout: str) -> str:
    """
    The layout in which a critic's backbone computes the hidden states that it computes of each context alone.

    Args:
        trainer ([`Mem1Trainer`]):
            The trainer, already checked.
        backbone ([`~transformers.PreTrainedModel`]):
            The critic's, if it is not the policy's.
        layout (`str`):
            The wanted layout.

    Raises:
        `ValueError`: If no layout is exact.
    """
    if trainer.self_check is None or layout == "paper":
        return layout
    toys = toy_trajectories(backbone, trainer.settings.longest_context(backbone))
    turns = [turn for toy in toys for turn in toy.turns]
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            function = hidden_numbers(backbone)
            expected = plain_values(function, turns, backbone.device)

            def score(layout: str) -> torch.Tensor:
                rows = RowBatch.from_rows([build_row(toy, layout) for toy in toys], device=backbone.device)
                (values,) = forward_rows(rows, layout, backbone, function)
                assert values is not None
                return values[rows.tool_mask[:, 1:]]

            return _decide(trainer, backbone, layout, score, expected)[0]
    finally:
        backbone.train(training)


def _tolerance(trainer: Mem1Trainer, model: Any) -> Tolerance:
    """By the data type of the weights, or of the run if it computes in another."""
    return tolerance_of(model) if trainer.single_precision else HALF_PRECISION


def _decide(
    trainer: Mem1Trainer, model: Any, wanted: str, score: Callable[[str], torch.Tensor], expected: torch.Tensor
) -> tuple[str, dict[str, Gap]]:
    """The layout to use, by what all processes have measured, and one line in the log if it is not the wanted one."""

    def worst(layout: str) -> Gap:
        gap = Gap.of(lambda: score(layout), expected)
        found = torch.tensor([[gap.largest, gap.mean]], device=trainer.accelerator.device)
        largest, mean = trainer.accelerator.gather(found).amax(dim=0).tolist()
        return Gap(largest, mean, gap.failure)

    name = type(model).__name__
    layout, gaps = exact_layout(name, wanted, _tolerance(trainer, model), worst)
    if layout != wanted:
        logger.warning(f"layout={layout!r} instead of {wanted!r}, which {gaps[wanted]} with {name} here.")
    if layout != "paper":  # what the toy has shown about the model counts too
        layout = resolve_layout(model, layout)
    return layout, gaps


def _check_layout(trainer: Mem1Trainer) -> dict[str, Gap]:
    if trainer.layout == "paper":  # inexact by design
        return {}
    model = trainer.model
    toys = toy_trajectories(model, trainer.settings.longest_context(model))
    turns = [turn for toy in toys for turn in toy.turns]
    expected = plain_values(token_logprobs(model, trainer.temperature), turns, model.device)

    def score(layout: str) -> torch.Tensor:
        rows = RowBatch.from_rows([build_row(toy, layout) for toy in toys], device=model.device)
        completion = rows.input_ids.shape[1] - max(len(build_row(toy, layout).prompt_ids) for toy in toys)
        with instance_attribute(trainer, "layout", layout):
            logps = trainer.score_rows(rows, completion)
        return logps[rows.tool_mask[:, -completion:]]

    trainer.layout, gaps = _decide(trainer, model, trainer.layout, score, expected)
    return gaps


def _check_sampler(trainer: Mem1Trainer) -> Gap | None:
    """Tokens are sampled as in training, whatever evaluation does; where settings make that another distribution, not at all."""
    if trainer.use_vllm or trainer.args.use_transformers_paged:
        return None
    with instance_attribute(trainer.args, "eval_temperature", None):
        return _sampler_gap(trainer) if trainer.decoding.samples_from_policy else None


def _sampler_gap(trainer: Mem1Trainer) -> Gap | None:
    model = trainer.model
    short, long = (toy.turns[0].prompt_ids[:size] for toy, size in zip(toy_trajectories(model, 64), (3, 9)))
    contexts = [list(short), list(long)]
    kwargs = {**trainer.generation_kwargs, "max_new_tokens": SAMPLED}
    with (
        instance_attribute(trainer, "generation_kwargs", kwargs),
        instance_attribute(trainer.generation_config, "max_new_tokens", SAMPLED),
    ):
        completions = trainer.generate_turn(contexts, [[], []])
    trainer.clear_prefix_cache()
    recorded = [completion.logprobs for completion in completions]
    if any(row is None for row in recorded):
        return None
    turns = [Turn(tuple(context), completion.ids) for context, completion in zip(contexts, completions, strict=True)]
    expected = plain_values(token_logprobs(model, trainer.temperature), turns, model.device)
    gap = Gap.between(torch.tensor([value for row in recorded for value in row or ()], device=model.device), expected)
    if not gap.within(_tolerance(trainer, model)):
        raise ValueError(
            f"The sampler must draw tokens of {type(model).__name__} with the log-probs of the model, but on a toy context it "
            f"{gap}. What can be the cause: padding that the model does not mask, a change of the logits in `generate`. "
            "`check='off'` trains anyway."
        )
    return gap
