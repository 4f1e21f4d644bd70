"""Sequences put together with others of about their length, so that little padding is forwarded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PADDING = 0.15
"""Share of the tokens of a call that may be padding before it is worth another call."""


def like_lengths(lengths: Sequence[int], padding: float = PADDING) -> list[list[int]]:
    """
    Calls of sequences of like length: from the longest on, as many as keep padding below a share of the call.

    The lengths 100, 10, 95, 11 become `[[0, 2], [3, 1]]`.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each sequence.
        padding (`float`, *optional*, defaults to `0.15`):
            Largest share of padding in a call.

    Returns:
        `list[list[int]]`: Indices of the sequences of each call, the longest first.
    """
    calls: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if calls:
            wide = lengths[calls[-1][0]] * (len(calls[-1]) + 1)
            if wide - tokens - lengths[index] <= padding * wide:
                calls[-1].append(index)
                tokens += lengths[index]
                continue
        calls.append([index])
        tokens = lengths[index]
    return calls
