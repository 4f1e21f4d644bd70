"""Which trajectories go into which micro-batch, so that each has about as many tokens as the others and a prompt is read in few of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def balanced_bins(
    lengths: Sequence[int], bins: int, prompts: Sequence[int] | None = None, together: int = 1
) -> list[list[int]]:
    """
    Distribute rows over bins of equally many rows, so that the fullest bin holds few tokens.

    The longest row first, each into the bin that holds the fewest tokens and has room (longest processing time first, with
    bins of fixed size). Deterministic.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row; `bins` divides their number.
        bins (`int`):
            Number of bins.
        prompts (`Sequence[int]`, *optional*):
            Which prompt each row begins with.
        together (`int`, *optional*, defaults to `1`):
            How many rows of a prompt are kept in the same bin, if it has so many; it divides the number of rows of a bin.

    Returns:
        `list[list[int]]`: Indices of the rows of each bin, in ascending order.
    """
    if len(lengths) % bins:
        raise ValueError(f"{len(lengths)} rows do not fill {bins} bins evenly.")
    room = len(lengths) // bins
    filled: list[list[int]] = [[] for _ in range(bins)]
    totals = [0] * bins
    bundles = [(sum(lengths[row] for row in rows), rows) for rows in _bundles(lengths, prompts, together)]
    for tokens, rows in sorted(bundles, key=lambda bundle: (-bundle[0], bundle[1])):
        lightest = min((b for b in range(bins) if len(filled[b]) < room), key=lambda b: (totals[b], b))
        filled[lightest] += rows
        totals[lightest] += tokens
    return [sorted(rows) for rows in filled]


def _bundles(lengths: Sequence[int], prompts: Sequence[int] | None, together: int) -> list[list[int]]:
    """Bundles of `together` rows, the longest rows first: those of one prompt as long as it has enough of them, and the rest across prompts."""
    of_prompts: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        of_prompts.setdefault(0 if prompts is None else prompts[row], []).append(row)
    left = [row for rows in of_prompts.values() for row in rows[len(rows) // together * together :]]
    stretches = [*(rows[: len(rows) // together * together] for rows in of_prompts.values()), left]
    return [rows[at : at + together] for rows in stretches for at in range(0, len(rows), together)]


def bins_within(
    lengths: Sequence[int],
    bins: int,
    max_tokens: int | None,
    forwarded: Callable[[list[int]], int],
    prompts: Sequence[int] | None = None,
    processes: int = 1,
) -> list[list[list[int]]]:
    """
    Balanced bins, each cut into as few equal parts as keep every part within `max_tokens`.

    All bins are cut into the same number of parts of the same number of rows, since processes that hold them must call
    equally often. A single row may exceed `max_tokens`.

    Rows of one prompt are put into the same part where fewer tokens are forwarded in all that way, and no pass is larger than the budget
    or, without one, than the largest pass would be otherwise.

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
        prompts (`Sequence[int]`, *optional*):
            Which prompt each row begins with, where that makes a difference to what is forwarded.
        processes (`int`, *optional*, defaults to `1`):
            How many neighbouring bins are trained at the same time, so that the largest of them counts.

    Returns:
        `list[list[list[int]]]`: Bin -> part -> indices of its rows.
    """
    rows = len(lengths) // bins
    alone = prompts is None or len(set(prompts)) == len(lengths)
    for parts in _divisors(rows):
        limit = None if parts == rows else max_tokens
        best: tuple[int, list[list[list[int]]]] | None = None
        choices = [1] if alone or bins * parts == 1 else _divisors(rows // parts)
        for together in choices:
            cut = balanced_bins(lengths, bins * parts, prompts, together)
            # Parts of about the same length are neighbours; dealing them out in turn keeps the bins balanced, too
            heaviest = sorted(cut, key=lambda part: -sum(lengths[row] for row in part))
            arranged = [heaviest[first::bins] for first in range(bins)]
            if len(choices) == 1 and limit is None:
                return arranged
            tokens = [[forwarded(part) for part in of_bin] for of_bin in arranged]
            largest = max(map(max, tokens))
            limit = largest if limit is None else limit
            at_once = (tokens[first : first + processes] for first in range(0, bins, processes))
            in_all = sum(max(passes) for of_bins in at_once for passes in zip(*of_bins))
            if largest <= limit and (best is None or in_all < best[0]):
                best = in_all, arranged
        if best is not None:
            return best[1]
    raise AssertionError("unreachable: one row a part is always tried")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
