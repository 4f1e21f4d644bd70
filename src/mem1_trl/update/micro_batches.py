"""Which trajectories go into which micro-batch, so that each has about as many tokens as the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def balanced_bins(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """
    Distribute rows over bins of equally many rows, so that the fullest bin holds few tokens.

    The longest row first, each into the bin that holds the fewest tokens and has room (longest processing time first, with
    bins of fixed size). Deterministic.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row; `bins` divides their number.
        bins (`int`):
            Number of bins.

    Returns:
        `list[list[int]]`: Indices of the rows of each bin, in ascending order.
    """
    if len(lengths) % bins:
        raise ValueError(f"{len(lengths)} rows do not fill {bins} bins evenly.")
    room = len(lengths) // bins
    filled: list[list[int]] = [[] for _ in range(bins)]
    totals = [0] * bins
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        lightest = min((b for b in range(bins) if len(filled[b]) < room), key=lambda b: (totals[b], b))
        filled[lightest].append(row)
        totals[lightest] += lengths[row]
    return [sorted(rows) for rows in filled]


def bins_within(
    lengths: Sequence[int], bins: int, max_tokens: int | None, forwarded: Callable[[list[int]], int]
) -> list[list[list[int]]]:
    """
    Balanced bins, each cut into as few equal parts as keep every part within `max_tokens`.

    All bins are cut into the same number of parts of the same number of rows, since processes that hold them must call
    equally often. A single row may exceed `max_tokens`.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row.
        bins (`int`):
            Number of bins.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of a part. `None` leaves each bin in one part.
        forwarded (`Callable[[list[int]], int]`):
            Number of tokens that a pass over a part has to forward: less than its rows have where they share a beginning, more
            where padding or the contexts of turns are added.

    Returns:
        `list[list[list[int]]]`: Bin -> part -> indices of its rows.
    """
    rows = len(lengths) // bins
    for parts in range(1, rows + 1):
        if rows % parts:
            continue
        cut = balanced_bins(lengths, bins * parts)
        if max_tokens is None or parts == rows or all(forwarded(part) <= max_tokens for part in cut):
            # Parts of about the same length are neighbours; dealing them out in turn keeps the bins balanced, too
            heaviest = sorted(cut, key=lambda part: -sum(lengths[row] for row in part))
            return [heaviest[first::bins] for first in range(bins)]
    raise AssertionError("unreachable: one row a part is always tried")
