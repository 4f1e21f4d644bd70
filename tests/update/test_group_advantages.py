"""Turns compared within groups, against sums written out from the definition."""

from __future__ import annotations

import random

import pytest
import torch

from mem1_trl.update.group_advantages import digest, grouped_turn_advantages, turn_returns


def episodes():
    """Two groups of four episodes of one to five turns; one is left out, and each turn says which of two contexts it read."""
    generator = random.Random(1)
    rewards, contexts = [], []
    for index in range(8):
        turns = 1 + (3 * index) % 5
        rewards.append(None if index == 5 else [generator.gauss(0, 1) for _ in range(turns)])
        contexts.append([generator.choice("ab") for _ in range(turns)])
    return rewards, contexts


REWARDS, CONTEXTS = episodes()


def by_hand(key_of, gamma, lam, scale):
    """For each turn the double sum of arXiv 1506.02438, equation 16, with means of groups for values."""
    kept = [i for i, numbers in enumerate(REWARDS) if numbers is not None]
    returns = {
        (i, k): sum(gamma ** (u - k) * REWARDS[i][u] for u in range(k, len(REWARDS[i])))
        for i in kept
        for k in range(len(REWARDS[i]))
    }

    def alike(i, k):
        return torch.tensor([g for (j, m), g in returns.items() if key_of(j, m) == key_of(i, k)], dtype=torch.float64)

    advantages = {}
    for i in kept:
        size = len(REWARDS[i])
        values = [float(alike(i, k).mean()) for k in range(size)] + [0.0]
        deltas = [REWARDS[i][k] + gamma * values[k + 1] - values[k] for k in range(size)]
        for k in range(size):
            advantages[i, k] = sum((gamma * lam) ** (u - k) * deltas[u] for u in range(k, size))

    def divisor(i, k):
        if scale == "none":
            return 1.0
        if scale == "batch":
            return float(torch.tensor(list(returns.values()), dtype=torch.float64).std()) + 1e-4
        if lam == 1.0:
            return float(alike(i, k).std()) + 1e-4
        others = [a for (j, m), a in advantages.items() if key_of(j, m) == key_of(i, k)]
        return (sum(a * a for a in others) / (len(others) - 1)) ** 0.5 + 1e-4

    expected = [[] for _ in REWARDS]
    for (i, k), advantage in advantages.items():
        expected[i].append(advantage / divisor(i, k) if len(alike(i, k)) > 1 else 0.0)
    return expected


KEYS = {"turn": lambda i, k: (i // 4, k), "state": lambda i, k: (i // 4, k, CONTEXTS[i][k])}


@pytest.mark.parametrize("level", KEYS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 1.0), (0.9, 0.7), (0.5, 0.0)])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_against_the_definition(level, gamma, lam, scale):
    groups = [[KEYS[level](i, k) for k in range(len(row))] for i, row in enumerate(CONTEXTS)]
    found = grouped_turn_advantages(REWARDS, groups, gamma, lam, scale)
    expected = by_hand(KEYS[level], gamma, lam, scale)
    assert [len(row) for row in found] == [0 if row is None else len(row) for row in REWARDS]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    assert any(abs(number) > 0.1 for row in found for number in row)


def test_turns_of_equal_returns_are_not_divided_by_next_to_nothing():
    """The first turns return 1 both, and go on to turns of which one returns more: their deltas are half of one against the other."""
    rewards, groups = [[0.0, 1.0], [1.0, 0.0]], [["a", "b"], ["a", "b"]]
    assert grouped_turn_advantages(rewards, groups, 1.0, 1.0)[0][0] == 0.0
    (first, last), (other, _) = grouped_turn_advantages(rewards, groups, 1.0, 0.9)
    # b = 1 | .5, so A of the first is .5 - 1 + .9 * .5 = -.05, and +.05: their root mean square, by one, is .05 * 2 ** .5
    assert first == pytest.approx(-0.05 / (0.05 * 2**0.5 + 1e-4)) == pytest.approx(-other)
    assert last == pytest.approx(0.5 / (0.5 * 2**0.5 + 1e-4))


def test_advantages_are_bounded_whatever_lam_is():
    """At most the root of how many are compared, less one."""
    generator = random.Random(3)
    for lam in (0.0, 0.5, 0.9, 0.99, 1.0):
        for _ in range(50):
            sizes = [generator.randint(1, 4) for _ in range(8)]
            rewards = [[0.0] * (size - 1) + [float(generator.random() < 0.5)] for size in sizes]
            groups = [[(k, generator.choice("ab")) for k in range(size)] for size in sizes]
            found = grouped_turn_advantages(rewards, groups, 1.0, lam)
            assert max(abs(number) for row in found for number in row) <= 7**0.5


def test_by_hand():
    # The example of the docstring, then gamma = lam = 1/2: returns 1, 0 | 3, baselines 2, 0 | 2
    assert grouped_turn_advantages([[1.0, 0.0], [3.0]], [["a", "b"], ["a"]], 1.0, 1.0, "none") == [[-1.0, 0.0], [1.0]]
    found = grouped_turn_advantages([[1.0, 4.0], [3.0, 0.0]], [["a", "b"], ["a", "b"]], 0.5, 0.5, "none")
    # returns 3, 4 | 3, 0; baselines 3, 2; deltas 1 + 1 - 3, 4 - 2 | 3 + 1 - 3, 0 - 2; A = -1 + 2/4, 2 | 1 - 2/4, -2
    assert found == [[-0.5, 2.0], [0.5, -2.0]]
    assert turn_returns([1.0, 2.0, 4.0], 0.5) == [3.0, 4.0, 4.0]


def test_the_baseline_is_unbiased():
    """Exactly, over all plays of a game of two turns: the gradient with it is (n - 1) / n of the one without, as in GRPO."""
    from itertools import product

    p = {0: 0.3, 1: 0.6}  # probability of the action 1 in each turn

    def play(actions):
        return [float(actions[0]), 2.0 * actions[0] * actions[1] + 0.5 * actions[1]]

    def score(actions, turn):
        return (1 / p[turn]) if actions[turn] else -1 / (1 - p[turn])

    plain, grouped = [0.0, 0.0], [0.0, 0.0]
    games = list(product((0, 1), repeat=2))
    for both in product(games, repeat=2):
        chance = 1.0
        for actions in both:
            for turn in (0, 1):
                chance *= p[turn] if actions[turn] else 1 - p[turn]
        rewards = [play(actions) for actions in both]
        found = grouped_turn_advantages(rewards, [[0, 1], [0, 1]], 0.9, 1.0, "none")
        for turn in (0, 1):
            for actions, advantages, own in zip(both, found, rewards, strict=True):
                grouped[turn] += chance * score(actions, turn) * advantages[turn] / 2
                plain[turn] += chance * score(actions, turn) * turn_returns(own, 0.9)[turn] / 2
    assert grouped == pytest.approx([number / 2 for number in plain]) and min(map(abs, plain)) > 0.1


def test_digests_tell_contexts_apart():
    assert digest([1, 2, 3]) == digest((1, 2, 3)) and len({digest([1, 2]), digest([2, 1]), digest([1, 2, 0])}) == 3
