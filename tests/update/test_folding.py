"""Rows folded into one tree: nothing is lost, what begins alike is shared, and nothing a model computes changes."""

from __future__ import annotations

import random

import pytest
import torch
from support.helpers import build_trajectory, oracle_logprobs, random_trajectory, tiny_model

from mem1_trl import score_trajectories
from mem1_trl.update.attention import cpu_kernels
from mem1_trl.update.attention.plan import plan_attention
from mem1_trl.update.folding import fold_rows
from mem1_trl.update.row_batch import RowBatch, tree_positions
from mem1_trl.update.rows import build_row

GENERATOR = random.Random(0)


def ids(count: int, low: int = 2, high: int = 60) -> tuple[int, ...]:
    return tuple(GENERATOR.randrange(low, high) for _ in range(count))


def episodes_of(*prompts: tuple[int, ...], turns: int = 3, context: str = "mem1") -> list:
    return [
        build_trajectory(prompt, [(ids(4), ids(5)) for _ in range(turns)], context, max_history_length=12)
        for prompt in prompts
    ]


PROMPT, SYSTEM = ids(20), ids(9)
BATCHES = {
    "group": episodes_of(PROMPT, PROMPT, PROMPT, PROMPT),
    "system prompt": episodes_of(*(SYSTEM + ids(n) for n in (3, 12, 7))),
    "prompt of another": episodes_of(PROMPT, PROMPT[:12], PROMPT[:12]),
    "two groups": episodes_of(SYSTEM + (3,), SYSTEM + (4,), SYSTEM + (3,), SYSTEM + (4,)),
    "nothing in common": episodes_of((2, 3, 4), (5, 6), (7,)),
    "ragged": [*episodes_of(PROMPT, turns=1), *episodes_of(PROMPT, turns=6), *episodes_of(SYSTEM, turns=2)],
    "one turn": episodes_of(PROMPT, PROMPT, turns=1),
    "full": episodes_of(PROMPT, PROMPT, context="full"),
    "truncate": episodes_of(PROMPT, PROMPT, turns=5, context="truncate"),
}


def rows_of(trajectories) -> RowBatch:
    return RowBatch.from_rows([build_row(trajectory, "packed") for trajectory in trajectories])


@pytest.mark.parametrize("name", BATCHES)
def test_every_token_keeps_its_path(name):
    batch = rows_of(BATCHES[name])
    folded = fold_rows(batch)
    tree, positions, depths = folded.tree, tree_positions(batch), tree_positions(folded.tree)
    assert bool(tree.attention_mask.all())
    assert torch.equal(folded.places >= 0, batch.attention_mask.bool())

    def path(rows: RowBatch, row: int, place: int) -> list[int]:
        tokens = []
        for begin, end, stretches in rows.paths(row):
            if begin <= place < end:
                for first, last in [*stretches, (begin, place + 1)]:
                    tokens += rows.input_ids[row, first:last].tolist()
        return tokens

    for row in range(len(batch)):
        for place in batch.attention_mask[row].nonzero().flatten().tolist():
            there = int(folded.places[row, place])
            assert depths[0, there] == positions[row, place]
            assert path(tree, 0, there) == path(batch, row, place)


@pytest.mark.parametrize("name", BATCHES)
def test_every_sampled_token_has_a_place_of_its_own_behind_its_predecessor(name):
    batch = rows_of(BATCHES[name])
    folded = fold_rows(batch)
    places = folded.places[batch.tool_mask]
    assert len(places.unique()) == len(places) == int(folded.tree.tool_mask.sum())
    assert bool(folded.tree.tool_mask[0, places].all())
    assert bool((folded.tree.parent_offsets[0, places] == 1).all())


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # a prompt of 20; turns of 4, 5 + 4 (it goes on where the first ended) and 4 + 5 + 4; three samples repeat a token
        ("group", 20 + 4 * 26 + 3),
        # 9 shared once, each prompt's own part, and the turns
        ("system prompt", 9 + (3 + 12 + 7) + 3 * 26),
        # 12 of 20 shared; the second of the two that are equal repeats the last
        ("prompt of another", 20 + 3 * 26 + 1),
        ("two groups", 9 + 2 + 4 * 26 + 2),
        ("nothing in common", 3 + 2 + 1 + 3 * 26),
    ],
)
def test_what_begins_alike_is_there_once(name, tokens):
    assert fold_rows(rows_of(BATCHES[name])).tree.input_ids.numel() == tokens


def test_values_come_back_to_their_tokens():
    batch = rows_of(BATCHES["ragged"])
    folded = fold_rows(batch)
    values = torch.randn(1, folded.tree.input_ids.shape[1] - 1, requires_grad=True)
    spread = folded.spread(values)
    for row in range(len(batch)):
        for place in range(1, batch.input_ids.shape[1]):
            wanted = values[0, folded.places[row, place] - 1] if batch.tool_mask[row, place] else torch.tensor(0.0)
            assert spread[row, place - 1] == wanted
    spread.sum().backward()
    assert values.grad.sum() == batch.tool_mask.sum()
    assert set(values.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("name", BATCHES)
def test_log_probs_and_gradient_equal_scoring_each_turn_alone(name, architecture):
    model = tiny_model(architecture)
    episodes = BATCHES[name]
    generator = torch.Generator().manual_seed(0)
    weights = [[torch.randn(len(t.completion_ids), generator=generator) for t in e.turns] for e in episodes]

    def run(score) -> tuple[list, dict[str, torch.Tensor]]:
        model.zero_grad()
        scores = score()
        sum((s * w).sum() for row, ws in zip(scores, weights) for s, w in zip(row, ws)).backward()
        return scores, {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    expected, gradient = run(lambda: [oracle_logprobs(model, e) for e in episodes])
    actual, folded_gradient = run(lambda: score_trajectories(model, episodes))
    for wanted, got in zip(expected, actual, strict=True):
        for one, other in zip(wanted, got, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    scale = torch.cat([g.flatten() for g in gradient.values()]).norm()
    error = torch.cat([(folded_gradient[k] - g).flatten() for k, g in gradient.items()]).norm()
    assert error < 5e-6 * scale


def test_query_heads_may_share_key_heads():
    batch = fold_rows(rows_of([random_trajectory(random.Random(1), 4) for _ in range(3)])).tree
    plan = plan_attention(batch)
    torch.manual_seed(0)
    size = batch.input_ids.shape[1]
    query = torch.randn(1, 6, size, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, size, 8, requires_grad=True) for _ in range(2))
    weights = torch.randn(1, 6, size, 8)

    def gradients(k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        output = cpu_kernels.tree_attention(query, k, v, plan)
        return [output, *torch.autograd.grad((output * weights).sum(), (query, key, value))]

    shared = gradients(key, value)
    repeated = gradients(*(x.repeat_interleave(3, dim=1) for x in (key, value)))
    for one, other in zip(shared, repeated):
        torch.testing.assert_close(one, other)
