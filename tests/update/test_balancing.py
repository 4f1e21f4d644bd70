"""Which rows go into which micro-batch."""

from __future__ import annotations

import random

import pytest

from mem1_trl.update.micro_batches import balanced_bins, bins_within


def loads(lengths, bins):
    return [sum(lengths[row] for row in rows) for rows in bins]


def test_long_and_short_rows_are_paired():
    lengths = [20, 2, 20, 2, 20, 2, 20, 2]
    bins = balanced_bins(lengths, 4)
    assert loads(lengths, bins) == [22] * 4
    assert sorted(row for rows in bins for row in rows) == list(range(8))
    assert all(len(rows) == 2 for rows in bins)


def test_a_known_case_by_hand():
    # 9 | 8 | 7 -> 6 to the 7, 5 to the 8, 4 to the 9
    assert balanced_bins([4, 9, 5, 8, 6, 7], 3) == [[0, 1], [2, 3], [4, 5]]


def test_a_bin_that_is_full_takes_no_more_however_light_it_is():
    """9 | 1, then the second bin has the fewest tokens but only room for one more."""
    assert balanced_bins([9, 1, 1, 1], 2) == [[0, 3], [1, 2]]
    # 50 | 1, 1, 1, and the two that are left go to the 50
    assert balanced_bins([1, 1, 1, 50, 1, 1], 2) == [[3, 4, 5], [0, 1, 2]]


def test_turns_from_2_to_20_are_within_ten_percent():
    generator = random.Random(0)
    for _ in range(20):
        lengths = [400 + 670 * generator.randint(2, 20) for _ in range(32)]
        totals = loads(lengths, balanced_bins(lengths, 4))
        assert max(totals) <= 1.1 * sum(totals) / 4


def test_rows_must_fill_the_bins():
    with pytest.raises(ValueError, match="7 rows do not fill 2 bins"):
        balanced_bins([1] * 7, 2)


def total_of(lengths):
    return lambda part: sum(lengths[row] for row in part)


def test_without_a_budget_there_is_one_part():
    lengths = [5, 1, 5, 1]
    assert bins_within(lengths, 2, None, total_of(lengths)) == [[[0, 1]], [[2, 3]]]


def test_the_budget_is_for_what_is_forwarded():
    """Four rows of which each begins with the same 8 of its 10 tokens, or is padded to 16."""
    lengths = [10] * 4
    shared, padded = (lambda part: 8 + 2 * len(part)), (lambda part: 16 * len(part))
    assert [len(bins_within(lengths, 1, budget, shared)[0]) for budget in (16, 15, 12, 11)] == [1, 2, 2, 4]
    assert [len(bins_within(lengths, 1, budget, padded)[0]) for budget in (64, 63, 32, 31)] == [1, 2, 2, 4]


@pytest.mark.parametrize(("budget", "parts"), [(48, 1), (24, 2), (23, 4), (12, 4), (11, 4), (1, 4)])
def test_parts_are_as_few_as_the_budget_allows(budget, parts):
    """Four rows a bin, of 20, 4, 20 and 4 tokens: 48 together, 24 in pairs, and a row of 20 is never cut."""
    lengths = [20, 4] * 4
    bins = bins_within(lengths, 2, budget, total_of(lengths))
    assert [len(rows) for rows in bins] == [parts] * 2
    assert sorted(row for rows in bins for part in rows for row in part) == list(range(8))
    assert {len(part) for rows in bins for part in rows} == {4 // parts}
    most = max(sum(lengths[row] for row in part) for rows in bins for part in rows)
    assert most <= max(budget, 20)
    assert len({sum(lengths[row] for part in rows for row in part) for rows in bins}) == 1


def beginning_with(prompt, lengths, prompts):
    """Rows of which each begins with the `prompt` tokens of its number in `prompts`, which a pass reads once."""
    return lambda part: sum(lengths[row] - prompt for row in part) + prompt * len({prompts[row] for row in part})


def test_rows_of_one_prompt_stay_together():
    """Two prompts of 6 tokens with four rows of 10 each, in two bins: 2 * (6 + 4 * 4) tokens in place of 2 * (2 * 6 + 4 * 4)."""
    lengths, prompts = [10] * 8, [0] * 4 + [1] * 4
    forwarded = beginning_with(6, lengths, prompts)
    apart, together = (bins_within(lengths, 2, None, forwarded, given) for given in (None, prompts))
    assert [[forwarded(part) for part in parts] for parts in apart] == [[28], [28]]
    assert together == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]


def test_balance_comes_before_the_prompt():
    """Rows of 30 with one prompt and of 10 with another: all of 30 in one bin would be 4 * 24 + 6 tokens; a pair of each is 80 - 2 * 6."""
    lengths, prompts = [30, 30, 30, 30, 10, 10, 10, 10], [0] * 4 + [1] * 4
    forwarded = beginning_with(6, lengths, prompts)
    bins = bins_within(lengths, 2, None, forwarded, prompts)
    assert [[forwarded(part) for part in parts] for parts in bins] == [[68], [68]]


def test_more_rows_of_one_prompt_fit_into_a_pass():
    """Four rows of 10 are 22 tokens if they share 6 of them, and 28 if they are of two prompts."""
    lengths, prompts = [10] * 8, [0] * 4 + [1] * 4
    forwarded = beginning_with(6, lengths, prompts)
    parts = [len(bins_within(lengths, 1, 22, forwarded, given)[0]) for given in (None, prompts)]
    assert parts == [4, 2]


def test_with_several_processes_the_largest_pass_of_each_moment_counts():
    """
    Long rows 0 and 2 of one prompt, short ones 1 and 3 of another, two processes. Apart, each process forwards 10 + 4. Together, one process would
    forward 18, and the other wait for it.
    """
    lengths, prompts = [10, 4, 10, 4], [0, 1, 0, 1]
    forwarded = beginning_with(2, lengths, prompts)
    assert bins_within(lengths, 2, None, forwarded, prompts, processes=2) == [[[0, 1]], [[2, 3]]]


def test_what_is_left_of_a_prompt_is_put_with_others():
    bins = balanced_bins([5, 5, 5, 5, 5, 5], 3, [0, 0, 0, 1, 1, 1], together=2)
    assert sorted(bins) == [[0, 1], [2, 5], [3, 4]]
