"""Segments of recurrent layers over a prefix tree, against a recurrence along every path."""

import random

import pytest
import torch
from support.helpers import random_trajectory

from mem1_trl.update.attention.plan import plan_attention
from mem1_trl.update.attention.recurrent import over_segments, segments_of
from mem1_trl.update.folding import fold_rows
from mem1_trl.update.row_batch import RowBatch, tree_positions
from mem1_trl.update.rows import build_row


def tree_of(seed: int, context: str = "mem1") -> RowBatch:
    generator = random.Random(seed)
    rows = [
        build_row(random_trajectory(generator, n, generator.randint(1, 9), (1, 6), (0, 4), context), "packed")
        for n in (3, 1, 6)
    ]
    return fold_rows(RowBatch.from_rows(rows)).tree


class Recurrence:
    """`s_t = s_(t-1) / 2 + x_t` with a convolution of the last three inputs before it; what it reads is counted."""

    def __init__(self):
        self.calls = []

    def __call__(self, states, cache):
        self.calls.append(tuple(states.shape[:2]))
        length = states.shape[1]
        started = cache.get_conv_state(0) is not None
        assert length > 1 or not started, "a single token would be a step of generation"
        assert cache.is_recording_past(0) and cache.has_previous_state(0) is started
        recurrence = cache.get_recurrent_state(0)
        wide = cache.update_conv_state(states.transpose(1, 2), 0, conv_kernel_size=3)
        wide = torch.nn.functional.pad(wide, (2, 0))
        summed = (wide[..., 2:] + wide[..., 1:-1] + wide[..., :-2])[..., -length:]
        outputs = []
        for step in range(length):
            recurrence = summed[..., step] if recurrence is None else recurrence / 2 + summed[..., step]
            outputs.append(recurrence)
        cache.update_recurrent_state(recurrence, 0)
        return torch.stack(outputs, 1)


def along_paths(states: torch.Tensor, tree: RowBatch) -> torch.Tensor:
    """The same for each token, from the root on."""
    offsets = tree.parent_offsets[0].tolist()
    outputs, paths = [], []
    for place, offset in enumerate(offsets):
        parent = place - offset
        paths.append([*paths[parent], place] if parent >= 0 else [place])
        last = states[0, paths[-1][-3:]].sum(0)
        outputs.append(last if parent < 0 else outputs[parent] / 2 + last)
    return torch.stack(outputs)[None]


@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("seed", range(6))
def test_every_token_continues_its_path(seed, context):
    tree = tree_of(seed, context)
    plan = plan_attention(tree)
    segments = segments_of(plan.paths[0], plan.parents[0])
    own = torch.cat([s.places[len(s.places) - s.own :] for s in segments])
    assert sorted(own.tolist()) == list(range(tree.input_ids.shape[1]))
    depths = tree_positions(tree)[0]
    assert all((depths[s.places].diff() == 1).all() for s in segments)
    torch.manual_seed(seed)
    states = torch.randn(1, tree.input_ids.shape[1], 4, dtype=torch.float64, requires_grad=True)
    layer = Recurrence()
    found, expected = over_segments(layer, states, segments), along_paths(states, tree)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (one,), (other,) = (torch.autograd.grad((x * weights).sum(), states) for x in (found, expected))
    torch.testing.assert_close(one, other)


def test_a_shared_prompt_is_read_once():
    """A prompt of 40 tokens before eight branches of ten: 40 tokens, and one call of all branches."""
    offsets = torch.ones(1, 120, dtype=torch.long)
    for branch in range(8):
        offsets[0, 40 + 10 * branch] = 1 + 10 * branch
    ones = torch.ones_like(offsets)
    tree = RowBatch(ones, ones, ones.bool(), ones, offsets)
    plan = plan_attention(tree)
    layer = Recurrence()
    over_segments(layer, torch.randn(1, 120, 4), segments_of(plan.paths[0], plan.parents[0]))
    assert layer.calls == [(1, 40), (8, 10)]
