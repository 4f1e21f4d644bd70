"""The self-check of a model that is scored without a trainer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ..model_traits import attention_implementation, longest_pass, module_dtype
from .row_batch import RowBatch
from .rows import build_row
from .self_check import LONGEST_TOY, LONGEST_TOY_ON_CPU, Gap, plain_values, tolerance_of, toy_trajectories

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SHORTEST_TOY = 64
"""Tokens below which a toy trajectory says little."""

_found: WeakKeyDictionary[Any, dict[Any, Gap]] = WeakKeyDictionary()


def exact_layout_of(
    model: PreTrainedModel, layout: str, longest: int, score: Callable[[RowBatch], torch.Tensor | None], function: Any
) -> str:
    """
    The layout that a model computes exactly: `"packed"` is held against the plain model on a toy trajectory, once per model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        layout (`str`):
            The wanted layout; other ones than `"packed"` are not checked.
        longest (`int`):
            Most tokens of a context and its completion.
        score (`Callable[[RowBatch], torch.Tensor | None]`):
            Log-probs of rows in the `"packed"` layout, of shape `(B, T - 1)`.
        function (`TokenFunction`):
            The same of the plain model.

    Returns:
        `str`: `layout`, or `"per_turn"` with one line in the log.
    """
    if layout != "packed":
        return layout
    most = LONGEST_TOY_ON_CPU if model.device.type == "cpu" else LONGEST_TOY
    # A few lengths for all, so that not every call has one of its own
    size = next(length for length in (SHORTEST_TOY, 256, most) if length >= min(longest, most))
    size = min(size, longest_pass(model) or size)
    known = _found.setdefault(model, {})
    key = attention_implementation(model), module_dtype(model), model.device.type, size
    if key not in known:
        known[key] = _gap(model, size, score, function)
    if known[key].within(tolerance_of(model)):
        return layout
    logger.warning(f"layout='per_turn' instead of 'packed', which {known[key]} with {type(model).__name__} here.")
    return "per_turn"


def _gap(model: PreTrainedModel, size: int, score: Callable[[RowBatch], torch.Tensor | None], function: Any) -> Gap:
    toys = toy_trajectories(model, size)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = plain_values(function, [turn for toy in toys for turn in toy.turns], model.device)

            def values() -> torch.Tensor:
                rows = RowBatch.from_rows([build_row(toy, "packed") for toy in toys], device=model.device)
                found = score(rows)
                assert found is not None
                return found[rows.tool_mask[:, 1:]].float()

            return Gap.of(values, expected)
    finally:
        model.train(training)
