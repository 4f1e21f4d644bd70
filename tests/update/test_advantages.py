"""Rewards, advantages and the value loss, each against numbers worked out by hand or token by token."""

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mem1_trl.update.advantages import generalized_advantages, masked_whiten, token_rewards
from mem1_trl.update.losses import clipped_value_loss, explained_variance


def reference_gae(rewards, values, gamma, lam, final_value=0.0):
    """
    One episode, token by token, as a plain double sum (arXiv 1506.02438, equation 16): no recursion, no tensors.

    Takes lists over the generated tokens only; gives advantages and returns.
    """
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        for step in range(len(rewards) - t):
            here = t + step
            next_value = values[here + 1] if here + 1 < len(rewards) else final_value
            total += (gamma * lam) ** step * (rewards[here] + gamma * next_value - values[here])
        advantages.append(total)
    return advantages, [advantage + value for advantage, value in zip(advantages, values)]


def spread(numbers, mask, elsewhere=0.0):
    """A row with `numbers` where `mask` is 1."""
    numbers = iter(numbers)
    return [next(numbers) if bit else elsewhere for bit in mask]


def random_masks(generator):
    """Rows as trajectories make them: stretches of generated tokens, gaps between, padding behind; one row without any."""
    masks = [[0] * 24]
    for _ in range(5):
        mask = []
        while len(mask) < 18:
            mask += [1] * generator.randint(1, 5) + [0] * generator.randint(0, 4)
        masks.append((mask + [0] * 24)[:24])
    return masks


COEFFICIENTS = [(1.0, 1.0), (0.95, 0.9), (0.9, 0.95), (0.0, 0.95), (0.95, 0.0), (0.0, 0.0), (1.0, 0.5), (0.5, 1.0)]


@pytest.mark.parametrize(("gamma", "lam"), COEFFICIENTS)
def test_advantages_equal_the_reference(gamma, lam):
    generator = random.Random(0)
    masks = random_masks(generator)
    rewards = [[generator.gauss(0, 1) for _ in range(sum(mask))] for mask in masks]
    values = [[generator.gauss(0, 1) for _ in range(sum(mask))] for mask in masks]
    # What is not generated holds large numbers that must not matter
    advantages, returns = generalized_advantages(
        torch.tensor([spread(row, mask, 1e3) for row, mask in zip(rewards, masks)]),
        torch.tensor([spread(row, mask, -1e3) for row, mask in zip(values, masks)]),
        torch.tensor(masks),
        gamma,
        lam,
    )
    assert advantages.dtype == returns.dtype == torch.float32
    expected = [reference_gae(r, v, gamma, lam) for r, v in zip(rewards, values)]
    for index, (name, actual) in enumerate([("advantages", advantages), ("returns", returns)]):
        wanted = torch.tensor([spread(pair[index], mask) for pair, mask in zip(expected, masks)])
        torch.testing.assert_close(actual, wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("gamma", "lam"), COEFFICIENTS)
def test_a_final_value_follows_the_last_generated_token(gamma, lam):
    generator = random.Random(4)
    masks = random_masks(generator)
    rewards = [[generator.gauss(0, 1) for _ in range(sum(mask))] for mask in masks]
    values = [[generator.gauss(0, 1) for _ in range(sum(mask))] for mask in masks]
    final = [generator.gauss(0, 3) if index % 2 else 0.0 for index in range(len(masks))]
    advantages, returns = generalized_advantages(
        torch.tensor([spread(row, mask, 1e3) for row, mask in zip(rewards, masks)]),
        torch.tensor([spread(row, mask, -1e3) for row, mask in zip(values, masks)]),
        torch.tensor(masks),
        gamma,
        lam,
        torch.tensor(final),
    )
    expected = [reference_gae(r, v, gamma, lam, f) for r, v, f in zip(rewards, values, final)]
    for index, actual in enumerate((advantages, returns)):
        wanted = torch.tensor([spread(pair[index], mask) for pair, mask in zip(expected, masks)])
        torch.testing.assert_close(actual, wanted)


def test_a_final_value_by_hand():
    # V = 1, 2, then 4 where it was cut; no reward, gamma = lam = 1/2. delta = 0, 0, so nothing was better than expected
    advantages, returns = generalized_advantages(
        torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), 0.5, 0.5, torch.tensor([4.0])
    )
    assert advantages.tolist() == [[0.0, 0.0]] and returns.tolist() == [[1.0, 2.0]]
    # Undiscounted, the return is the reward and what was still to come
    _, returns = generalized_advantages(
        torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), 1.0, 1.0, torch.tensor([4.0])
    )
    assert returns.tolist() == [[7.0, 7.0]]


def test_advantages_by_hand():
    # V = 1, 2, 4 and a reward of 8 at the end, gamma = lam = 1/2. delta = 0, 0, 4, so A = 1/4, 1, 4
    advantages, returns = generalized_advantages(
        torch.tensor([[0.0, 0.0, 8.0]]), torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3), gamma=0.5, lam=0.5
    )
    assert advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (0.95, 0.0)])
def test_gaps_between_generated_tokens_do_not_matter(gamma, lam):
    generator = random.Random(1)
    rewards = [generator.gauss(0, 1) for _ in range(7)]
    values = [generator.gauss(0, 1) for _ in range(7)]
    plain = generalized_advantages(torch.tensor([rewards]), torch.tensor([values]), torch.ones(1, 7), gamma, lam)
    for _ in range(20):
        mask = [1] * 7
        for _ in range(generator.randint(1, 9)):
            mask.insert(generator.randint(0, len(mask)), 0)
        kept = torch.tensor(mask).bool()
        noise = generator.uniform(-50, 50)
        gapped = generalized_advantages(
            torch.tensor([spread(rewards, mask, noise)]),
            torch.tensor([spread(values, mask, -noise)]),
            kept[None],
            gamma,
            lam,
        )
        for actual, expected in zip(gapped, plain):
            torch.testing.assert_close(actual[0, kept], expected[0])
            assert actual[0, ~kept].eq(0).all()


def test_without_discount_the_return_is_the_reward_at_every_token():
    masks = torch.tensor(random_masks(random.Random(2)))
    rewards = torch.tensor([5.0, 1.0, 0.0, -1.0, 2.0, 0.5])
    torch.manual_seed(0)
    values = torch.randn(masks.shape)
    _, returns = generalized_advantages(token_rewards(rewards, masks), values, masks, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, rewards[:, None] * masks)


def test_rows_do_not_reach_each_other():
    masks = torch.tensor(random_masks(random.Random(3)))
    torch.manual_seed(0)
    rewards, values = torch.randn(masks.shape), torch.randn(masks.shape)
    together = generalized_advantages(rewards, values, masks, 0.9, 0.95)
    for index in range(len(masks)):
        row = slice(index, index + 1)
        alone = generalized_advantages(rewards[row], values[row], masks[row], 0.9, 0.95)
        for actual, expected in zip(together, alone):
            torch.testing.assert_close(actual[row], expected)


def test_a_batch_without_generated_tokens_has_no_advantages():
    advantages, returns = generalized_advantages(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), 0.9, 0.9)
    assert advantages.tolist() == returns.tolist() == [[0.0] * 3] * 2


# --- Rewards of tokens


def test_the_reward_is_on_the_last_generated_token():
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0, 3.0, 7.0]), mask)
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[0, 0, 0, 2, 0], [-1, 0, 0, 0, 0], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]


def test_the_kl_penalty_is_on_every_generated_token_and_is_not_clamped():
    """Pitfall: the reference clamps the divergence at zero, which makes its estimate one-sided (MEM1 code)."""
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    # A token less likely than under the reference has a negative term, which is a bonus
    kl = torch.tensor([[0.5, 9.0, -2.0, 1.0, 9.0], [9.0] * 5])
    rewards = token_rewards(torch.tensor([1.0, 1.0]), mask, kl=kl, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.0, 0.2, 1.0 - 0.1, 0.0], [0.0] * 5]))


def test_the_kl_penalty_is_the_divergence_on_average():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 6).log_softmax(-1)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)[None]
    k1 = policy[tokens] - reference[tokens]
    penalties = token_rewards(torch.zeros(1), torch.ones_like(tokens), kl=k1, kl_coef=1.0)
    divergence = (policy.exp() * (policy - reference)).sum()
    assert penalties.mean() == pytest.approx(-divergence.item(), abs=0.02)
    assert (k1.clamp(min=0).mean() - divergence) > 0.1  # what the clamp would have added


def test_rewards_of_another_data_type_are_computed_in_float32():
    rewards = token_rewards(
        torch.tensor([1], dtype=torch.int64), torch.tensor([[1, 1]]), torch.tensor([[1, 1]], dtype=torch.bfloat16), 0.5
    )
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[-0.5, 0.5]]


# --- Whitening


def test_whitening_is_over_generated_tokens_only():
    """Pitfall: the reference whitens over environment tokens too (MEM1 code)."""
    values = torch.tensor([[1.0, 1e4, 2.0], [3.0, -1e4, 1e4]])
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    # Mean 2 and variance (1 + 0 + 1) / 2 of 1, 2, 3
    torch.testing.assert_close(masked_whiten(values, mask), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


def test_whitening_equals_that_of_the_generated_tokens_alone():
    torch.manual_seed(0)
    values, mask = 3 + 5 * torch.randn(4, 30), torch.rand(4, 30) < 0.4
    kept = values[mask].double()
    expected = torch.zeros(4, 30).masked_scatter(mask, ((kept - kept.mean()) / kept.std()).float())
    torch.testing.assert_close(masked_whiten(values, mask), expected)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_whitening_in_two_processes_equals_one(split):
    torch.manual_seed(0)
    values, mask = 3 + 5 * torch.randn(5, 11), torch.rand(5, 11) < 0.5
    mask[4] = False  # with split=4 a process has no token at all, and must take part nevertheless
    shards = [slice(0, split), slice(split, 5)]
    slots, barrier = [torch.empty(0)] * 2, threading.Barrier(2, timeout=10)

    def process(rank):
        """Threads stand in for processes: `gather` waits for the other and gives what both hand in."""

        def gather(local):
            slots[rank] = local
            barrier.wait()
            both = torch.cat(slots)
            barrier.wait()
            return both

        return masked_whiten(values[shards[rank]], mask[shards[rank]], gather)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(process, range(2)))
    torch.testing.assert_close(torch.cat(results), masked_whiten(values, mask))
    # Each on its own is something else
    alone = torch.cat([masked_whiten(values[shard], mask[shard]) for shard in shards])
    assert split == 4 or (alone - torch.cat(results)).abs().max() > 0.05


def test_whitening_of_hardly_any_tokens():
    values = torch.tensor([[4.0, 7.0]])
    assert masked_whiten(values, torch.tensor([[1, 0]])).tolist() == [[0.0, 0.0]]
    assert masked_whiten(values, torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0]]
    # Equal values have no scale, and must not become NaN
    assert masked_whiten(torch.tensor([[4.0, 4.0]]), torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


# --- The value loss


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "active"),
    [
        (1.2, 1.0, 2.0, 0.32, 0.0),  # within the range: 0.5 * 0.8^2
        (2.0, 1.0, 3.0, 1.125, 1.0),  # moved beyond it towards the target: clipped to 1.5, 0.5 * 1.5^2
        (0.0, 1.0, 3.0, 4.5, 0.0),  # moved beyond it away from the target: not clipped, 0.5 * 3^2
        (2.0, 1.0, 1.0, 0.5, 0.0),  # the target is where the old value was: 0.5 * 1^2 is the larger one
        (0.0, 1.0, -1.0, 1.125, 1.0),  # the same downwards: clipped to 0.5
        (3.0, 3.0, 3.0, 0.0, 0.0),
    ],
)
def test_clipped_value_loss(value, old, target, loss, active):
    actual, clipped = clipped_value_loss(*map(torch.tensor, (value, old, target)), cliprange=0.5)
    assert actual.item() == pytest.approx(loss, abs=1e-6)
    assert clipped.item() == active


def test_values_within_the_range_were_not_clipped():
    """In float32 `old + (value - old)` may be another number than `value`."""
    torch.manual_seed(0)
    values, old = ((0.2 * torch.randn(10_000)).clamp(-0.24, 0.24) for _ in range(2))
    _, clipped = clipped_value_loss(values, old, (torch.randn(10_000) > 0).float(), cliprange=0.5)
    assert clipped.sum() == 0


def test_value_loss_without_clipping():
    values = torch.tensor([2.0, 0.0])
    loss, clipped = clipped_value_loss(values, torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), cliprange=None)
    assert loss.tolist() == [0.5, 4.5]
    assert clipped.tolist() == [0.0, 0.0]


def test_gradient_of_the_value_loss_stops_where_it_is_clipped():
    values = torch.tensor([1.2, 2.0, 0.0], requires_grad=True)
    old, target = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 3.0, 3.0])
    clipped_value_loss(values, old, target, cliprange=0.5)[0].sum().backward()
    # V - R where it is free, nothing where the clip is active
    torch.testing.assert_close(values.grad, torch.tensor([-0.8, 0.0, -3.0]))


def test_explained_variance():
    returns = torch.tensor([[0.0, 1.0, 2.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 0]])

    def explained(*values):
        return explained_variance(torch.tensor([[*values, -99.0]]), returns, mask)

    assert explained(0.0, 1.0, 2.0) == pytest.approx(1.0)
    assert explained(5.0, 6.0, 7.0) == pytest.approx(1.0)  # a constant offset is not variance
    assert explained(7.0, 7.0, 7.0) == pytest.approx(0.0)
    assert explained(0.0, 0.5, 1.0) == pytest.approx(0.75)  # half the spread is missed, a quarter of the variance
    assert explained(2.0, 1.0, 0.0) == pytest.approx(-3.0)


def test_explained_variance_of_returns_that_do_not_vary():
    values, mask = torch.randn(1, 4), torch.ones(1, 4)
    assert math.isnan(explained_variance(values, torch.full((1, 4), 3.0), mask))
    rounded = torch.tensor([[3.0, 3.000001, 2.999999, 3.0]])  # advantage + value of returns that are all 3
    assert math.isnan(explained_variance(values, rounded, mask))
    assert math.isnan(explained_variance(values, torch.tensor([[0.0, 1e-6, -2e-6, 0.0]]), mask))  # a penalty alone
    assert (
        explained_variance(torch.tensor([[1.0, 1.01, 1.0, 1.01]]), torch.tensor([[1.0, 1.01, 1.0, 1.01]]), mask) == 1.0
    )
    assert math.isnan(explained_variance(values, torch.arange(4.0)[None], torch.tensor([[1, 0, 0, 0]])))
    assert math.isnan(explained_variance(values, torch.arange(4.0)[None], torch.zeros(1, 4)))
