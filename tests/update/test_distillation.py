"""A teacher that reads other contexts: its log-probs against the plain model, and where they are put."""

from __future__ import annotations

import math

import pytest
import torch
from support.helpers import oracle_logprobs, tiny_model

from mem1_trl import Trajectory, Turn
from mem1_trl.update.distillation import distillation_loss, on_sampled_tokens, teacher_gaps, teacher_logprobs

TRAJECTORIES = [
    Trajectory([Turn((2, 3), (4, 5)), Turn((2, 3, 5, 6), (7, 8, 9)), Turn((2, 3, 9, 6), (10,))]),
    Trajectory([Turn((2, 11), (12, 13, 14))]),
]
CONTEXTS = [[(2, 3), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7, 8, 9, 6)], [(2, 11)]]


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_tokens_after_other_contexts(layout, family):
    model = tiny_model(family).train()
    found = teacher_logprobs(model, TRAJECTORIES, CONTEXTS, layout, temperature=0.7)
    assert model.training and not any(one.requires_grad for row in found for one in row)
    model.eval()
    for trajectory, contexts, row in zip(TRAJECTORIES, CONTEXTS, found, strict=True):
        other = Trajectory([Turn(c, turn.completion_ids) for c, turn in zip(contexts, trajectory.turns, strict=True)])
        for one, expected in zip(row, oracle_logprobs(model, other, 0.7), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)


def test_a_turn_that_is_too_long_for_the_teacher_has_no_numbers():
    model = tiny_model("llama")
    model.config.max_position_embeddings = 8
    (first, second) = teacher_logprobs(model, TRAJECTORIES, CONTEXTS)
    assert [one is None for one in first] == [False, False, True] and second[0] is not None
    assert teacher_logprobs(model, TRAJECTORIES[1:], [[(2,) * 6]]) == [[None]]


def test_places_and_gaps_by_hand():
    sampled = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0] * 8])
    scored = [
        [torch.tensor([-1.0, -2.0]), None, torch.tensor([-4.0])],
        [torch.tensor([-5.0, -6.0, -7.0])],
        [],  # a row that is left out
    ]
    placed = on_sampled_tokens(scored, [*TRAJECTORIES, TRAJECTORIES[0]], sampled)
    nan = math.nan
    expected = [[-1, -2, 0, nan, nan, nan, 0, -4], [-5, -6, -7, 0, 0, 0, 0, 0], [0.0] * 8]
    torch.testing.assert_close(placed, torch.tensor(expected), equal_nan=True)
    trained = sampled.clone()
    trained[1, 2] = 0
    gaps, known = teacher_gaps(torch.full((3, 8), -1.0), placed, trained)
    assert gaps.tolist() == [[0, 1, 0, 0, 0, 0, 0, 3], [4, 5, 0, 0, 0, 0, 0, 0], [0] * 8]
    assert known.tolist() == [[1, 1, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0], [0] * 8]


def test_the_gradient_is_that_of_the_divergence_on_average():
    """Over all tokens of a small vocabulary, weighted by how often they are sampled."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    logps = torch.log_softmax(logits, 0)
    divergence = (logps.exp() * (logps - teacher)).sum()
    (expected,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    (found,) = torch.autograd.grad((logps.detach().exp() * distillation_loss(logps - teacher)).sum(), logits)
    torch.testing.assert_close(found, expected)
