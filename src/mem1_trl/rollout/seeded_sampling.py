"""Sampling in `generate` by random numbers that belong to the rows, and not by a generator that all rows share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OTHER_WARPERS = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "watermarking_config")
_NEUTRAL = (None, 0, 1, False)


def seeded_options(option: Callable[[str], Any]) -> list[LogitsProcessor] | None:
    """
    What changes the logits before a token is drawn, in the order of `generate`; `None` if the tokens of a call are not drawn by
    plain sampling.

    Args:
        option (`Callable[[str], Any]`):
            Returns the value of an option of `generate`, `None` if it is not set.
    """
    if not option("do_sample") or any(option(name) not in _NEUTRAL for name in _OTHER_WARPERS):
        return None
    if (option("num_beams") or 1) != 1 or (option("num_return_sequences") or 1) != 1:
        return None
    warpers: list[LogitsProcessor] = []
    if option("temperature") not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(float(option("temperature"))))
    if option("top_k"):
        warpers.append(TopKLogitsWarper(option("top_k")))
    if option("top_p") is not None and option("top_p") < 1.0:
        warpers.append(TopPLogitsWarper(option("top_p")))
    if option("min_p"):
        warpers.append(MinPLogitsWarper(option("min_p")))
    return warpers


class SeededSampling(LogitsProcessor):
    """
    Draws token `i` of each row by number `i` of that row: the first token whose cumulative probability exceeds it.

    All other tokens are made impossible, so that greedy decoding takes what was drawn. With the same logits a row gets the same tokens
    in any batch.

    Args:
        draws (`Sequence[numpy.ndarray]`):
            Numbers in `[0, 1)` of each row, at least as many as tokens are sampled of it.
        columns (`int`):
            Number of columns before the completions.
        warpers (`list[LogitsProcessor]`):
            From [`seeded_options`].
    """

    def __init__(self, draws: Sequence[np.ndarray], columns: int, warpers: list[LogitsProcessor]):
        longest = max(map(len, draws))
        self.draws = torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in draws]))
        self.columns = columns
        self.warpers = warpers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        numbers = self.draws[:, input_ids.shape[1] - self.columns]  # a row that has ended may draw by padding
        warped = scores
        for warp in self.warpers:
            warped = warp(input_ids, warped)
        tokens = draw_tokens(torch.softmax(warped.float(), dim=-1), numbers.to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def draw_tokens(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """
    The token whose part of `[0, 1)` a number lies in, for each row.

    Args:
        probabilities (`torch.Tensor`):
            Shape `(B, vocabulary)`.
        numbers (`torch.Tensor`):
            In `[0, 1)`, shape `(B,)`.

    Returns:
        `torch.Tensor`: Token ids, shape `(B,)`, none of them of probability 0. Where the probabilities are not finite, or all 0, it is some
            token of the vocabulary: on a GPU an index outside of it would end the process.
    """
    exact = torch.float32 if probabilities.device.type == "mps" else torch.float64
    upper = probabilities.cumsum(dim=-1, dtype=exact)
    total = upper[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    wanted = torch.minimum(numbers.to(exact)[:, None] * total, below)
    return torch.searchsorted(upper, wanted, right=True).squeeze(1).clamp_(max=probabilities.shape[-1] - 1)
