"""Metrics of a micro-batch from those that TRL logs for its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_OF_RATIOS = ("clip_ratio/", "cispo_clip_ratio", "vespo/")
_SMALLEST, _LARGEST = ("_min",), ("_max", "sampling/max_logp_difference")
_NOT_OF_PARTS = ("policy_loss",)
_OF_WHOLE_ROWS = ("clip_ratio/low_min", "clip_ratio/high_max")
"""Extremes over rows, which pieces of a row do not have."""


class Weights(NamedTuple):
    """
    How much each part trains, in all processes.

    Attributes:
        tokens, rows (`Sequence[float]`):
            Sampled tokens, and the rows that have some.
        values (`Sequence[float]`):
            Values that the critic learns.
        scored (`Sequence[float]`):
            Tokens that a teacher has scored.
    """

    tokens: Sequence[float]
    rows: Sequence[float]
    values: Sequence[float]
    scored: Sequence[float]

    def of(self, name: str, by_row: bool) -> Sequence[float]:
        """Those of a metric; `by_row` is whether ratios are of whole sequences."""
        if by_row and name.startswith(_OF_RATIOS):
            return self.rows
        if name.startswith("value/"):
            return self.values
        return self.scored if name.startswith("distillation/") else self.tokens


def combined(
    logged: Sequence[dict[str, list[float]]], weights: Weights, by_row: bool, cut: bool = False
) -> dict[str, float]:
    """
    What would have been logged for the whole.

    Args:
        logged (`Sequence[dict[str, list[float]]]`):
            What each part has logged, by name.
        weights ([`Weights`]):
            How much each part trains.
        by_row (`bool`):
            Whether a ratio is of a whole sequence, so that TRL takes means of what it says of ratios over rows, not over tokens.
        cut (`bool`, *optional*, defaults to `False`):
            Whether some part is a piece of a row. What is an extreme over rows is then left out.

    Returns:
        `dict[str, float]`: means, each part with its weight; the smallest and the largest where a name says so. NaN where no part has a number.
    """
    whole: dict[str, float] = {}
    for name in dict.fromkeys(name for of_part in logged for name in of_part):
        if name in _NOT_OF_PARTS or (cut and name in _OF_WHOLE_ROWS):
            continue
        known = [
            (value, weight)
            for of_part, weight in zip(logged, weights.of(name, by_row), strict=True)
            for value in of_part.get(name, ())
            if value == value and weight
        ]
        if not known:
            whole[name] = float("nan")
        elif name.endswith(_SMALLEST):
            whole[name] = min(value for value, _ in known)
        elif name.endswith(_LARGEST):
            whole[name] = max(value for value, _ in known)
        else:
            whole[name] = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    return whole
