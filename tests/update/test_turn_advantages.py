"""Credit between turns against arithmetic written out from its definition: turns of unequal length, cut and left-out episodes."""

from __future__ import annotations

import random

import pytest
import torch

from mem1_trl.update.advantages import generalized_advantages
from mem1_trl.update.turn_advantages import turn_begins, turn_level_advantages, two_level_advantages


def gae(rewards, values, gamma, lam, final=0.0):
    """The double sum of arXiv 1506.02438, equation 16."""
    following = [*values[1:], final]
    deltas = [r + gamma * f - v for r, f, v in zip(rewards, following, values)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


def by_turn(numbers, sizes):
    """A list of tokens cut into turns."""
    numbers = list(numbers)
    return [[numbers.pop(0) for _ in range(size)] for size in sizes]


def of_turns(rewards, values, sizes, gamma, lam, final):
    """Advantage and return of each turn: its rewards summed, its first value."""
    before = [turn[0] for turn in by_turn(values, sizes)]
    advantages = gae([sum(turn) for turn in by_turn(rewards, sizes)], before, gamma, lam, final)
    return advantages, [a + v for a, v in zip(advantages, before)]


def two_levels(rewards, values, sizes, gamma, lam, token_gamma, token_lam, final):
    """Advantages of tokens: each turn pays out what it is worth, and stands alone."""
    _, worth = of_turns(rewards, values, sizes, gamma, lam, final)
    result = []
    for own, before, total in zip(by_turn(rewards, sizes), by_turn(values, sizes), worth):
        paid = [*own[:-1], total - sum(own[:-1])]
        result += gae(paid, before, token_gamma, token_lam)
    return result


def rows():
    """Rows as trees make them: turns of 1 to 6 tokens, context before each, padding after; one without any token."""
    generator = random.Random(0)
    made = [([], [], [], [])]
    for turns in (1, 2, 3, 5):
        sizes = [generator.randint(1, 6) for _ in range(turns)]
        mask, ids = [], []
        for turn, size in enumerate(sizes):
            context = generator.randint(0, 3)
            mask += [0] * context + [1] * size
            ids += [turn] * (context + size)
        made.append((sizes, mask, ids, [generator.gauss(0, 1) for _ in range(2 * sum(sizes))]))
    width = max(len(mask) for _, mask, _, _ in made) + 2
    padded = [(s, m + [0] * (width - len(m)), i + [0] * (width - len(i)), n) for s, m, i, n in made]
    mask, turn_ids = (torch.tensor([row[k] for row in padded]) for k in (1, 2))
    rewards = [row[3][: sum(row[0])] for row in padded]
    values = [row[3][sum(row[0]) :] for row in padded]
    return [row[0] for row in padded], mask, turn_ids, rewards, values


def spread(numbers, mask, elsewhere=0.0):
    return torch.full(mask.shape, elsewhere).masked_scatter(
        mask.bool(), torch.tensor([float(n) for row in numbers for n in row])
    )


SIZES, MASK, TURN_IDS, REWARDS, VALUES = rows()
FINAL = [0.0, 0.7, 0.0, -1.3, 2.0]  # of the episodes that were cut
COEFFICIENTS = [(1.0, 1.0), (0.95, 0.9), (0.9, 0.0), (0.0, 0.9), (0.5, 1.0)]


@pytest.mark.parametrize(("gamma", "lam"), COEFFICIENTS)
@pytest.mark.parametrize("cut", [True, False])
def test_one_advantage_for_each_turn(gamma, lam, cut):
    final = FINAL if cut else [0.0] * 5
    advantages, returns = turn_level_advantages(
        spread(REWARDS, MASK, 1e3), spread(VALUES, MASK, -1e3), MASK, TURN_IDS, gamma, lam,
        torch.tensor(final) if cut else None,
    )  # fmt: skip
    wanted, targets = [], []
    for sizes, rewards, values, last in zip(SIZES, REWARDS, VALUES, final, strict=True):
        of, back = of_turns(rewards, values, sizes, gamma, lam, last)
        wanted.append([a for a, size in zip(of, sizes) for _ in range(size)])
        targets.append([n for g, size in zip(back, sizes) for n in [g] + [0.0] * (size - 1)])
    torch.testing.assert_close(advantages, spread(wanted, MASK))
    torch.testing.assert_close(returns, spread(targets, MASK))
    begins = [[n for size in sizes for n in [1] + [0] * (size - 1)] for sizes in SIZES]
    assert torch.equal(turn_begins(MASK, TURN_IDS).float(), spread(begins, MASK))


@pytest.mark.parametrize(("gamma", "lam"), COEFFICIENTS)
@pytest.mark.parametrize(("token_gamma", "token_lam"), [(1.0, 1.0), (0.97, 0.8), (0.9, 0.0)])
@pytest.mark.parametrize("cut", [True, False])
def test_two_levels(gamma, lam, token_gamma, token_lam, cut):
    final = FINAL if cut else [0.0] * 5
    advantages, returns = two_level_advantages(
        spread(REWARDS, MASK, 1e3), spread(VALUES, MASK, -1e3), MASK, TURN_IDS, gamma, lam, token_gamma, token_lam,
        torch.tensor(final) if cut else None,
    )  # fmt: skip
    expected = [
        two_levels(rewards, values, sizes, gamma, lam, token_gamma, token_lam, last)
        for sizes, rewards, values, last in zip(SIZES, REWARDS, VALUES, final, strict=True)
    ]
    torch.testing.assert_close(advantages, spread(expected, MASK))
    torch.testing.assert_close(returns, spread(expected, MASK) + spread(VALUES, MASK))


def test_by_hand():
    # Turns of 2 and 1 tokens, V = 1, 3 | 2, a reward of 1 for the first turn and of 8 for the second; all coefficients 1/2
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 8.0]]), torch.tensor([[1.0, 3.0, 99.0, 2.0]])
    mask, turn_ids = torch.tensor([[1, 1, 0, 1]]), torch.tensor([[0, 0, 1, 1]])
    # Between turns: delta = 1 + 2/2 - 1, 8 - 2 = 1, 6; A = 1 + 6/4, 6
    advantages, returns = turn_level_advantages(rewards, values, mask, turn_ids, 0.5, 0.5)
    assert advantages.tolist() == [[2.5, 2.5, 0.0, 6.0]]
    assert returns.tolist() == [[3.5, 0.0, 0.0, 8.0]]
    # Inside the first turn, worth 3.5: delta = 3/2 - 1, 3.5 - 3 = 1/2, 1/2; A = 1/2 + 1/8, 1/2
    advantages, returns = two_level_advantages(rewards, values, mask, turn_ids, 0.5, 0.5, 0.5, 0.5)
    assert advantages.tolist() == [[0.625, 0.5, 0.0, 6.0]]
    assert returns.tolist() == [[1.625, 3.5, 0.0, 8.0]]


def test_two_levels_without_any_discount_are_one():
    rewards, values = spread(REWARDS, MASK), spread(VALUES, MASK)
    both = two_level_advantages(rewards, values, MASK, TURN_IDS, 1.0, 1.0, 1.0, 1.0, torch.tensor(FINAL))
    one = generalized_advantages(rewards, values, MASK, 1.0, 1.0, torch.tensor(FINAL))
    for actual, expected in zip(both, one):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("final", [None, torch.tensor(FINAL)])
def test_turns_of_one_token_are_tokens(final):
    """Then all three agree, whatever the coefficients between turns are."""
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    turn_ids = torch.tensor([[0, 1, 1, 2, 0], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]])
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    final = None if final is None else final[:3]
    expected = generalized_advantages(rewards, values, mask, 0.9, 0.8, final)
    for actual in (
        turn_level_advantages(rewards, values, mask, turn_ids, 0.9, 0.8, final),
        two_level_advantages(rewards, values, mask, turn_ids, 0.9, 0.8, 0.7, 0.6, final),
    ):
        for one, other in zip(actual, expected):
            torch.testing.assert_close(one, other)


def test_a_batch_without_generated_tokens():
    nothing, ids = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)
    for found in (
        turn_level_advantages(torch.ones(2, 3), torch.ones(2, 3), nothing, ids, 0.9, 0.9),
        two_level_advantages(torch.ones(2, 3), torch.ones(2, 3), nothing, ids, 0.9, 0.9, 0.9, 0.9),
    ):
        assert [tensor.tolist() for tensor in found] == [[[0.0] * 3] * 2] * 2
    assert not turn_begins(nothing, ids).any()
