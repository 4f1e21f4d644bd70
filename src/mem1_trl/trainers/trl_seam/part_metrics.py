"""Metrics of a micro-batch from those that TRL logs for its parts."""

from __future__ import annotations

from collections.abc import Sequence

_OF_RATIOS = ("clip_ratio/", "cispo_clip_ratio", "vespo/")
_SMALLEST, _LARGEST = ("_min",), ("_max", "sampling/max_logp_difference")
_NOT_OF_PARTS = ("policy_loss",)


def combined(
    logged: Sequence[dict[str, list[float]]],
    tokens: Sequence[float],
    rows: Sequence[float],
    values: Sequence[float],
    by_row: bool,
) -> dict[str, float]:
    """
    What would have been logged for the whole.

    Args:
        logged (`Sequence[dict[str, list[float]]]`):
            What each part has logged, by name.
        tokens, rows, values (`Sequence[float]`):
            How many each part trains, in all processes; the last of values that the critic learns.
        by_row (`bool`):
            Whether a ratio is of a whole sequence, so that TRL takes means of what it says of ratios over rows, not over tokens.

    Returns:
        `dict[str, float]`: means, each part with its weight; the smallest and the largest where a name says so. NaN where no part has a number.
    """
    whole: dict[str, float] = {}
    for name in dict.fromkeys(name for of_part in logged for name in of_part):
        if name in _NOT_OF_PARTS:
            continue
        weights = rows if by_row and name.startswith(_OF_RATIOS) else values if name.startswith("value/") else tokens
        known = [
            (value, weight)
            for of_part, weight in zip(logged, weights, strict=True)
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
