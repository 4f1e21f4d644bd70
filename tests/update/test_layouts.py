"""Folding turns into rows and back: hand-computed cases, and the property over random trajectories."""

import random

import pytest
import torch
from support.helpers import VOCAB, build_trajectory, random_trajectory

from mem1_trl import Trajectory, Turn
from mem1_trl.update.layouts import LAYOUTS
from mem1_trl.update.row_batch import RowBatch, paper_context_mask, tree_context_mask, tree_positions
from mem1_trl.update.rows import build_row, pack_trajectory, stitch_trajectory
from mem1_trl.update.unfolding import unfold_turns


def trajectory_of(*turns):
    """A trajectory from pairs of context and completion."""
    return Trajectory([Turn(tuple(context), tuple(completion)) for context, completion in turns])


def parents_of(row):
    """Predecessor of every token of a row by its index, -1 at a root; the prompt is a chain."""
    start = len(row.prompt_ids)
    return [*range(-1, start - 1), *(start + i - offset for i, offset in enumerate(row.parent_offsets))]


def random_tree(generator):
    """
    Turns whose contexts branch off anywhere in anything seen so far.

    Three token ids only, so that contexts also agree by chance, with completions and with each other.
    """

    def ids(most, least=0):
        return tuple(generator.randrange(2, 5) for _ in range(generator.randint(least, most)))

    turns = [(ids(6, least=1), ids(4, least=1))]
    for _ in range(generator.randint(0, 7)):
        seen = sum(generator.choice(turns), ())
        context = seen[: generator.randint(0, len(seen))] + ids(3)
        turns.append((context or ids(3, least=1), ids(4, least=1)))
    return trajectory_of(*turns)


# Each case: turns (context, completion); the expected row; its predecessors; which tokens are sampled; the turn of each
PACKED_CASES = {
    "one_turn": (
        [([10, 11], [20, 21])],
        [10, 11, 20, 21],
        [-1, 0, 1, 2],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ),
    "kept_context": (  # the first example of the docstring
        [([10, 11], [20]), ([10, 11, 30], [21])],
        [10, 11, 20, 30, 21],
        [-1, 0, 1, 1, 3],
        [0, 0, 1, 0, 1],
        [0, 0, 0, 1, 1],
    ),
    "mem1": (  # P, then P c1 o1, then P c2 o2: the copy of c2 is not shared with c2 itself, which stood behind c1 o1
        [([10], [20]), ([10, 20, 30], [21]), ([10, 21, 31], [22])],
        [10, 20, 30, 21, 21, 31, 22],
        [-1, 0, 1, 2, 0, 4, 5],
        [0, 1, 0, 1, 0, 0, 1],
        [0, 0, 1, 1, 2, 2, 2],
    ),
    "equal_contexts": (  # the second example of the docstring, with a third turn
        [([10, 11], [20]), ([10, 11], [21]), ([10, 11], [22])],
        [10, 11, 20, 11, 21, 11, 22],
        [-1, 0, 1, 0, 3, 0, 5],
        [0, 0, 1, 0, 1, 0, 1],
        [0, 0, 0, 1, 1, 2, 2],
    ),
    "equal_contexts_of_one_token": (  # nothing is left to branch from: the copy is a second root
        [([10], [20]), ([10], [21])],
        [10, 20, 10, 21],
        [-1, 0, -1, 2],
        [0, 1, 0, 1],
        [0, 0, 1, 1],
    ),
    "full_history_is_a_chain": (
        [([10, 11], [20]), ([10, 11, 20, 30], [21, 22]), ([10, 11, 20, 30, 21, 22], [23])],
        [10, 11, 20, 30, 21, 22, 23],
        [-1, 0, 1, 2, 3, 4, 5],
        [0, 0, 1, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 2],
    ),
    "empty_observation": (  # the context of turn 2 ends with the row, so nothing is repeated
        [([10, 11], [20, 21]), ([10, 11, 20, 21], [22])],
        [10, 11, 20, 21, 22],
        [-1, 0, 1, 2, 3],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1],
    ),
    "context_is_a_prefix_of_the_prompt": (
        [([10, 11, 12], [20]), ([10, 11], [21])],
        [10, 11, 12, 20, 11, 21],
        [-1, 0, 1, 2, 0, 4],
        [0, 0, 0, 1, 0, 1],
        [0, 0, 0, 0, 1, 1],
    ),
    "nothing_shared": (
        [([10, 11], [20]), ([12, 13], [21])],
        [10, 11, 20, 12, 13, 21],
        [-1, 0, 1, -1, 3, 4],
        [0, 0, 1, 0, 0, 1],
        [0, 0, 0, 1, 1, 1],
    ),
    "branches_of_branches": (
        [([10, 11], [20]), ([10, 11, 30, 31], [21]), ([10, 11, 30, 32], [22]), ([10, 12], [23])],
        [10, 11, 20, 30, 31, 21, 32, 22, 12, 23],
        [-1, 0, 1, 1, 3, 4, 3, 6, 0, 8],
        [0, 0, 1, 0, 0, 1, 0, 1, 0, 1],
        [0, 0, 0, 1, 1, 1, 2, 2, 3, 3],
    ),
    "history_goes_on_at_the_latest_of_equals": (
        [([10], [20]), ([10, 30], [21]), ([10, 30], [21]), ([10, 30, 21], [22])],
        [10, 20, 30, 21, 30, 21, 22],
        [-1, 0, 0, 2, 0, 4, 5],
        [0, 1, 0, 1, 0, 1, 1],
        [0, 0, 1, 1, 2, 2, 3],
    ),
    "equal_completions_are_not_shared": (
        [([10, 11], [20]), ([10, 11], [20])],
        [10, 11, 20, 11, 20],
        [-1, 0, 1, 0, 3],
        [0, 0, 1, 0, 1],
        [0, 0, 0, 1, 1],
    ),
}


@pytest.mark.parametrize("case", PACKED_CASES)
def test_pack_trajectory(case):
    turns, tokens, parents, sampled, turn_ids = PACKED_CASES[case]
    row = pack_trajectory(trajectory_of(*turns))
    start = len(turns[0][0])
    assert row.prompt_ids == tokens[:start]
    assert row.completion_ids == tokens[start:]
    assert parents_of(row) == parents
    assert row.tool_mask == sampled[start:]
    assert row.turn_ids == turn_ids[start:]
    assert row.logprobs is None


def test_pack_trajectory_places_the_logprobs_on_the_sampled_tokens():
    first, second = Turn((10, 11), (20, 21), logprobs=(-0.5, -1.5)), Turn((10, 11, 30), (22,), logprobs=(-2.5,))
    assert pack_trajectory(Trajectory([first, second])).logprobs == [-0.5, -1.5, 0.0, -2.5]
    # Of a trajectory that is recorded in part there is nothing to compare with
    assert pack_trajectory(Trajectory([first, Turn((10, 11, 30), (22,))])).logprobs is None


STITCHED_CASES = {
    "one_turn": ([([10, 11], [20])], [20], [1], [0]),
    "mem1": (
        [([10], [20, 21]), ([10, 20, 21, 30], [22]), ([10, 22, 31, 32], [23])],
        [20, 21, 30, 22, 31, 32, 23],
        [1, 1, 0, 1, 0, 0, 1],
        [0, 0, 0, 1, 1, 1, 2],
    ),
    "empty_observation": ([([10], [20]), ([10, 20], [21])], [20, 21], [1, 1], [0, 1]),
    "only_the_end_of_a_completion_is_kept": (
        [([10], [20, 21, 22]), ([10, 22, 30], [23])],
        [20, 21, 22, 30, 23],
        [1, 1, 1, 0, 1],
        [0, 0, 0, 0, 1],
    ),
    "only_the_start_of_a_completion_is_kept": (
        [([10], [20, 21]), ([10, 20, 30], [22])],
        [20, 21, 20, 30, 22],
        [1, 1, 0, 0, 1],
        [0, 0, 0, 0, 1],
    ),
}


@pytest.mark.parametrize("case", STITCHED_CASES)
def test_stitch_trajectory(case):
    turns, completion_ids, sampled, turn_ids = STITCHED_CASES[case]
    row = stitch_trajectory(trajectory_of(*turns))
    assert row.prompt_ids == turns[0][0]
    assert row.completion_ids == completion_ids
    assert row.tool_mask == sampled
    assert row.turn_ids == turn_ids
    assert row.parent_offsets == [1] * len(completion_ids)


def test_stitch_trajectory_places_the_logprobs_on_the_sampled_tokens():
    turns = [Turn((10,), (20, 21), logprobs=(-0.5, -1.5)), Turn((10, 20, 21, 30), (22,), logprobs=(-2.5,))]
    assert stitch_trajectory(Trajectory(turns)).logprobs == [-0.5, -1.5, 0.0, -2.5]


def test_build_row_chooses_the_layout():
    trajectory = trajectory_of(([10], [20]), ([10, 20, 30], [21]), ([10, 21, 31], [22]))
    tree, stitched = pack_trajectory(trajectory), stitch_trajectory(trajectory)
    assert tree != stitched
    assert [build_row(trajectory, layout) for layout in LAYOUTS] == [tree, tree, stitched]
    with pytest.raises(ValueError, match="use one of 'packed', 'per_turn', 'paper'"):
        build_row(trajectory, "stitched")


@pytest.fixture
def two_rows():
    """A tree of eight tokens, and a short chain that must be padded on both sides."""
    tree = trajectory_of(([10, 11, 12], [20]), ([10, 11, 12, 30], [21]), ([10, 11, 31], [22]))
    chain = trajectory_of(([13], [23, 24]))
    return RowBatch.from_rows([pack_trajectory(tree), pack_trajectory(chain)], pad_token_id=7)


def test_row_batch_pads_prompts_left_and_the_rest_right(two_rows):
    assert two_rows.input_ids.tolist() == [[10, 11, 12, 20, 30, 21, 31, 22], [7, 7, 13, 23, 24, 7, 7, 7]]
    assert two_rows.attention_mask.tolist() == [[1] * 8, [0, 0, 1, 1, 1, 0, 0, 0]]
    assert two_rows.tool_mask.int().tolist() == [[0, 0, 0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    assert two_rows.turn_ids.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2], [0] * 8]
    assert two_rows.parent_offsets.tolist() == [[1, 1, 1, 1, 2, 1, 5, 1], [1] * 8]
    assert len(two_rows) == 2


def test_row_batch_pads_to_given_lengths(two_rows):
    tree = trajectory_of(([10, 11, 12], [20]), ([10, 11, 12, 30], [21]), ([10, 11, 31], [22]))
    rows = [pack_trajectory(tree), pack_trajectory(trajectory_of(([13], [23, 24])))]
    wide = RowBatch.from_rows(rows, pad_token_id=7, prompt_length=4, completion_length=6)
    assert wide.input_ids.tolist() == [[7, 10, 11, 12, 20, 30, 21, 31, 22, 7], [7, 7, 7, 13, 23, 24, 7, 7, 7, 7]]
    assert wide.parent_offsets.tolist() == [[1, 1, 1, 1, 1, 2, 1, 5, 1, 1], [1] * 10]
    for name in wide.__dataclass_fields__:
        assert torch.equal(getattr(wide, name)[:, 1:9], getattr(two_rows, name)), name


def test_row_batch_of_the_tensors_of_trl(two_rows):
    """What TRL keeps apart, prompts and completions, is joined; a completion that it masks out is not sampled."""
    prompt, completion = (slice(None), slice(0, 3)), (slice(None), slice(3, 8))
    tensors = {
        "prompt_ids": two_rows.input_ids[prompt],
        "prompt_mask": two_rows.attention_mask[prompt],
        "completion_ids": two_rows.input_ids[completion],
        "completion_mask": two_rows.attention_mask[completion],
        "tool_mask": two_rows.tool_mask[completion].long().masked_fill(two_rows.attention_mask[completion] == 0, 1),
        "turn_ids": two_rows.turn_ids[completion],
        "parent_offsets": two_rows.parent_offsets[completion],
    }
    joined = RowBatch.from_trl(tensors)
    for name in joined.__dataclass_fields__:
        assert torch.equal(getattr(joined, name), getattr(two_rows, name)), name
    tensors["completion_mask"] = tensors["completion_mask"] * torch.tensor([[1], [0]])
    cut = RowBatch.from_trl(tensors)
    assert cut.tool_mask[1].sum() == 0 and torch.equal(cut.tool_mask[0], two_rows.tool_mask[0])
    assert cut.attention_mask[1].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]


def test_row_batch_slices_rows(two_rows):
    second = two_rows[1:]
    assert len(second) == 1
    assert second.input_ids.tolist() == [[7, 7, 13, 23, 24, 7, 7, 7]]
    assert second.is_chain() and not two_rows.is_chain()


def test_runs(two_rows):
    assert two_rows.runs(0) == [(0, 4, -1), (4, 6, 2), (6, 8, 1)]
    assert two_rows.runs(1) == [(2, 5, -1)]


def test_runs_of_a_second_root_behind_left_padding():
    rows = [pack_trajectory(trajectory_of(([10], [20]), ([11, 12], [21])))]
    rows.append(pack_trajectory(trajectory_of(([10, 11, 12, 13], [20]))))
    batch = RowBatch.from_rows(rows)
    assert batch.runs(0) == [(3, 5, -1), (5, 8, -1)]
    assert tree_positions(batch)[0].tolist() == [0, 0, 0, 0, 1, 0, 1, 2]


def test_runs_of_a_row_of_padding(two_rows):
    empty = RowBatch(**{name: torch.zeros_like(getattr(two_rows, name)) for name in two_rows.__dataclass_fields__})
    assert empty.runs(0) == []


def test_tree_positions(two_rows):
    assert tree_positions(two_rows).tolist() == [[0, 1, 2, 3, 3, 4, 2, 3], [0, 0, 0, 1, 2, 0, 0, 0]]


def random_trajectories(seed):
    """Episodes under every rule of context, and arbitrary trees."""
    generator = random.Random(seed)
    prompt_length = generator.randint(1, 9)
    return [
        random_trajectory(generator, generator.randint(1, 6), prompt_length=prompt_length, context="mem1"),
        random_trajectory(generator, generator.randint(1, 6), prompt_length=3, context="full"),
        random_trajectory(generator, 6, prompt_length=2, context="truncate", max_history_length=20),
        *(random_tree(generator) for _ in range(8)),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_tree_context_mask_and_positions_follow_the_predecessors(seed):
    rows = [pack_trajectory(trajectory) for trajectory in random_trajectories(seed)]
    batch = RowBatch.from_rows(rows)
    mask, positions = tree_context_mask(batch), tree_positions(batch)
    size = batch.input_ids.shape[1]
    for index, row in enumerate(rows):
        parents = parents_of(row)
        begin = int(batch.attention_mask[index].argmax())
        expected = torch.eye(size, dtype=torch.bool)
        for token in range(len(parents)):
            node, depth = token, -1
            while node >= 0:
                expected[begin + token, begin + node] = True
                node, depth = parents[node], depth + 1
            assert positions[index, begin + token] == depth
        assert torch.equal(mask[index], expected)


@pytest.mark.parametrize("seed", range(5))
def test_paper_context_mask_shows_the_prompt_this_turn_and_the_one_before(seed):
    generator = random.Random(seed)
    rows = [
        stitch_trajectory(random_trajectory(generator, generator.randint(1, 5), prompt_length=generator.randint(1, 9)))
        for _ in range(3)
    ]
    batch = RowBatch.from_rows(rows)
    left = max(len(row.prompt_ids) for row in rows)
    size = batch.input_ids.shape[1]
    mask = paper_context_mask(batch)
    for index, row in enumerate(rows):
        turns = {left - 1 - i: None for i in range(len(row.prompt_ids))}  # None: the prompt
        turns.update({left + i: turn for i, turn in enumerate(row.turn_ids)})
        for query in range(size):
            for key in range(size):
                sees = query == key
                if query in turns and key in turns and key <= query:
                    sees = sees or turns[key] is None or turns[query] - turns[key] in (0, 1)
                assert mask[index, query, key] == sees


def test_unfold_turns(two_rows):
    turns = unfold_turns(two_rows)
    real = turns.attention_mask.bool()
    rows = [ids[mask].tolist() for ids, mask in zip(turns.input_ids, real)]
    assert rows == [[10, 11, 12, 20], [10, 11, 12, 30, 21], [10, 11, 31, 22], [13, 23, 24]]
    assert turns.tool_mask.int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 1, 1, 0, 0]]
    assert turns.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    sources = [places[mask].tolist() for places, mask in zip(turns.sources, real)]
    assert sources == [[0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 6, 7], [10, 11, 12]]


def test_unfold_turns_without_a_sampled_token(two_rows):
    nothing = torch.zeros_like(two_rows.tool_mask)
    fields = {name: getattr(two_rows, name) for name in two_rows.__dataclass_fields__}
    assert unfold_turns(RowBatch(**{**fields, "tool_mask": nothing})) is None


@pytest.mark.parametrize("seed", range(12))
def test_folding_and_unfolding_gives_back_every_turn(seed):
    trajectories = random_trajectories(seed)
    turns = unfold_turns(RowBatch.from_rows([pack_trajectory(trajectory) for trajectory in trajectories]))
    expected = [turn for trajectory in trajectories for turn in trajectory.turns]
    assert len(turns.input_ids) == len(expected)
    for ids, mask, sampled, turn in zip(turns.input_ids, turns.attention_mask.bool(), turns.tool_mask, expected):
        assert tuple(ids[mask].tolist()) == turn.prompt_ids + turn.completion_ids
        assert tuple(ids[sampled].tolist()) == turn.completion_ids
        # The completion is the end of the sequence, not tokens that look like it
        assert sampled[mask].nonzero().flatten().tolist() == list(
            range(len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.completion_ids))
        )


@pytest.mark.parametrize("seed", range(12))
def test_every_sampled_token_is_in_the_row_exactly_once(seed):
    trajectories = random_trajectories(seed)
    rows = [pack_trajectory(trajectory) for trajectory in trajectories]
    for row, trajectory in zip(rows, trajectories):
        for number, turn in enumerate(trajectory.turns):
            trained = [
                token
                for token, mask, turn_id in zip(row.completion_ids, row.tool_mask, row.turn_ids)
                if mask and turn_id == number
            ]
            assert trained == list(turn.completion_ids)
        assert sum(row.tool_mask) == trajectory.num_generated_tokens
    # Unfolded, no two turns read the same place of the row as theirs
    turns = unfold_turns(RowBatch.from_rows(rows))
    places = turns.sources[turns.tool_mask].tolist()
    assert len(places) == len(set(places)) == sum(trajectory.num_generated_tokens for trajectory in trajectories)


def fewest_tokens(trajectory):
    """Distinct prefixes of all contexts, everything sampled, and a repeated token where a completion needs one."""
    seen, count, previous = set(), 0, ()
    for turn in trajectory.turns:
        context, sequence = turn.prompt_ids, turn.prompt_ids + turn.completion_ids
        new = [length for length in range(1, len(context) + 1) if context[:length] not in seen]
        repeated = not new and context != previous
        count += len(new) + repeated + len(turn.completion_ids)
        seen.update(sequence[:length] for length in range(1, len(sequence) + 1))
        previous = sequence
    return count


@pytest.mark.parametrize("seed", range(12))
def test_a_row_has_the_fewest_tokens_an_exact_update_can_have(seed):
    for trajectory in random_trajectories(seed):
        row = pack_trajectory(trajectory)
        assert len(row.prompt_ids) + len(row.completion_ids) == fewest_tokens(trajectory)


def test_each_completion_stands_right_behind_the_token_that_predicts_it():
    for seed in range(12):
        for trajectory in random_trajectories(seed):
            row = pack_trajectory(trajectory)
            assert all(offset == 1 for offset, mask in zip(row.parent_offsets, row.tool_mask) if mask)


def test_a_full_history_needs_one_sequence_and_mem1_shares_its_prompt():
    generator = random.Random(0)
    prompt = tuple(range(2, 52))
    blocks = [([generator.randrange(2, VOCAB) for _ in range(5)], [60, 61, 62]) for _ in range(4)]
    full, mem1 = build_trajectory(prompt, blocks, "full"), build_trajectory(prompt, blocks, "mem1")
    full_row, mem1_row = pack_trajectory(full), pack_trajectory(mem1)
    # The observation behind the last turn is in no context
    assert len(full_row.prompt_ids) + len(full_row.completion_ids) == 50 + 4 * 5 + 3 * 3
    # Turn 2 goes on at the end of turn 1; turns 3 and 4 hold copies of the completion before them
    assert len(mem1_row.prompt_ids) + len(mem1_row.completion_ids) == 50 + 5 + (3 + 5) + 2 * (5 + 3 + 5)
