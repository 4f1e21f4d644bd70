"""The update scores every token in the context that produced it: log-probs, reach of every token, gradients, fallbacks."""

import dataclasses
import functools
import logging
import random
import re
import string
from contextlib import nullcontext

import pytest
import torch
from support.contexts import next_context
from support.helpers import (
    ARCHITECTURES,
    IMPLEMENTATIONS,
    MASKED,
    VOCAB,
    build_trajectory,
    is_checkpointed,
    oracle_logprobs,
    random_trajectory,
    tiny_model,
    tiny_tokenizer,
)
from trl.trainer.utils import add_fused_lm_head

from mem1_trl import Trajectory, Turn, score_trajectories
from mem1_trl.model_traits import attention_implementation, enable_activation_checkpointing, module_dtype
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.update.attention import interface
from mem1_trl.update.attention.masks import model_mask
from mem1_trl.update.layout_model import LayoutModel
from mem1_trl.update.layouts import resolve_layout
from mem1_trl.update.row_batch import RowBatch, paper_context_mask, tree_context_mask
from mem1_trl.update.rows import Row, build_row, pack_trajectory, stitch_trajectory
from mem1_trl.update.scoring import forward_rows, forwarded_tokens, token_logprobs

EXACT = ("packed", "per_turn")
MODELS = [
    (architecture, implementation)
    for architecture in ARCHITECTURES
    for implementation in IMPLEMENTATIONS.get(architecture, ("sdpa", "eager"))
]
MASKED_MODELS = [model for model in MODELS if model[0] in MASKED]
TOLERANCE = 1e-4  # nats, float32

shared_model = functools.cache(tiny_model)
"""Models that no test changes."""


def ids(count, seed):
    generator = random.Random(seed)
    return tuple(generator.randrange(2, VOCAB) for _ in range(count))


def episodes(*shapes, context="mem1", **options):
    """Random trajectories of `(number of turns, length of the prompt)`."""
    generator = random.Random(0)
    return [
        random_trajectory(generator, turns, prompt_length=length, context=context, **options)
        for turns, length in shapes
    ]


def episode_of_states(lengths):
    """One trajectory whose turns sample `lengths` tokens, with observations of four."""
    return build_trajectory(ids(10, 0), [(ids(n, n), ids(4, 100 + n)) for n in lengths])


def forking_episode():
    """What no rule of context builds: contexts within the prompt, equal to each other, unrelated, inside a completion."""
    prompt, completion = ids(8, 1), ids(6, 2)
    turns = [
        Turn(prompt, completion),
        Turn(prompt[:5], ids(4, 3)),
        Turn(prompt[:5], ids(3, 4)),
        Turn(ids(7, 5), ids(5, 6)),
        Turn(prompt + completion[:3], ids(2, 7)),
        Turn(prompt[:1], ids(3, 8)),
        Turn(prompt + ids(4, 9), ids(3, 10)),
        Turn(prompt + ids(4, 9)[:2] + ids(3, 11), ids(3, 12)),
    ]
    return Trajectory(turns)


CASES = {
    "one_turn": episodes((1, 12)),
    "two_turns": episodes((2, 12)),
    "twenty_turns": episodes((20, 12)),
    "empty_observations": episodes((5, 12), observation_length=(0, 0)),
    "growing_state": [episode_of_states([1, 2, 4, 8, 16])],
    "shrinking_state": [episode_of_states([16, 8, 4, 2, 1])],
    "one_prompt_token": episodes((4, 1)),
    "equal_prompts": [
        build_trajectory(ids(12, 0), [(ids(5, seed + turn), ids(3, seed + 50 + turn)) for turn in range(3)])
        for seed in (100, 200)
    ],
    "left_padding": episodes((3, 2), (3, 60), (3, 17)),
    "right_padding": episodes((1, 12), (12, 12), (4, 12)),
    "full_history": episodes((6, 12), context="full"),
    "truncated_history": episodes((8, 12), context="truncate", max_history_length=25),
    "forking": [forking_episode()],
}

MIXED = [
    *CASES["one_turn"],
    *CASES["left_padding"],
    *CASES["empty_observations"],
    *CASES["forking"],
    *episodes((20, 9)),
]
"""Everything at once: 1 to 20 turns, prompts of 2 to 60 tokens."""


def assert_close(scores, expected, tolerance=TOLERANCE):
    """Every turn of every trajectory has its log-probs, to `tolerance` in the worst token."""
    assert [[len(turn) for turn in trajectory] for trajectory in scores] == [
        [len(turn) for turn in trajectory] for trajectory in expected
    ]
    for trajectory, reference in zip(scores, expected):
        for number, (turn, wanted) in enumerate(zip(trajectory, reference)):
            wanted = torch.as_tensor(wanted)
            assert turn.dtype == torch.float32
            worst = (turn - wanted).abs().max()
            assert worst < tolerance, f"turn {number} is off by {worst:.2e} nat"


@functools.cache
def oracle_of_mixed(architecture, implementation):
    with torch.no_grad():
        return [oracle_logprobs(shared_model(architecture, implementation), t) for t in MIXED]


# --- Invariant 1: rollout log-probs = update log-probs


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize(("architecture", "implementation"), MODELS)
def test_rollout_logprobs_equal_update_logprobs(architecture, implementation, layout):
    model = shared_model(architecture, implementation)
    with torch.no_grad():
        scores = score_trajectories(model, MIXED, layout)
    assert_close(scores, oracle_of_mixed(architecture, implementation))


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_rollout_logprobs_equal_update_logprobs_in_case(case, implementation, layout):
    model = shared_model("llama", implementation)
    with torch.no_grad():
        scores = score_trajectories(model, CASES[case], layout)
        expected = [oracle_logprobs(model, trajectory) for trajectory in CASES[case]]
    assert_close(scores, expected)


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_rollout_logprobs_equal_update_logprobs_at_temperature(architecture, temperature, layout):
    model = shared_model(architecture, "sdpa")
    trajectories = CASES["left_padding"]
    with torch.no_grad():
        scores = score_trajectories(model, trajectories, layout, temperature=temperature)
        expected = [oracle_logprobs(model, trajectory, temperature) for trajectory in trajectories]
        plain = [oracle_logprobs(model, trajectory) for trajectory in trajectories]
    assert_close(scores, expected)
    assert (scores[0][0] - plain[0][0]).abs().max() > 0.1  # the temperature does something


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_context_matters_to_the_tiny_models(architecture):
    """What makes the tests above able to fail: a context that is wrong in its first tokens moves log-probs visibly."""
    model = shared_model(architecture, IMPLEMENTATIONS.get(architecture, ("sdpa",))[0])
    turn = CASES["growing_state"][0].turns[1]
    wrong = Turn(ids(5, 99) + turn.prompt_ids[5:], turn.completion_ids)
    with torch.no_grad():
        (right,), (moved,) = oracle_logprobs(model, Trajectory([turn])), oracle_logprobs(model, Trajectory([wrong]))
    assert (right - moved).abs().max() > 100 * TOLERANCE


def play(model, context, temperature, num_turns=4):
    """Trajectories as a rollout makes them: batched, left-padded, sampled by `generate`, log-probs recorded on the way."""
    generator = TransformersGenerator(
        model, tiny_tokenizer(), AgentSettings(max_completion_length=8, temperature=temperature)
    )
    prompts = [ids(5, 1), ids(21, 2), ids(12, 3)]
    stops = [list(string.ascii_letters), [], ["</search>", "</answer>", *string.digits]]
    history = [[] for _ in prompts]
    turns = [[] for _ in prompts]
    torch.manual_seed(0)
    for number in range(num_turns):
        contexts = [next_context(context, prompt, past) for prompt, past in zip(prompts, history)]
        for row, completion in enumerate(generator(contexts, stops)):
            turns[row].append(Turn(tuple(contexts[row]), completion.ids, completion.logprobs))
            history[row].append([*completion.ids, *ids(number, 10 * row + number)])  # the first observation is empty
    return [Trajectory(of_row) for of_row in turns]


@pytest.mark.parametrize(("architecture", "implementation"), MODELS)
def test_rollout_logprobs_equal_update_logprobs_of_generate(architecture, implementation):
    model = shared_model(architecture, implementation)
    trajectories = play(model, "mem1", temperature=1.0)
    assert len({len(turn.completion_ids) for trajectory in trajectories for turn in trajectory.turns}) > 1
    recorded = [[turn.logprobs for turn in trajectory.turns] for trajectory in trajectories]
    for layout in EXACT:
        with torch.no_grad():
            assert_close(score_trajectories(model, trajectories, layout), recorded)


@pytest.mark.parametrize(("context", "temperature"), [("full", 1.0), ("mem1", 0.6), ("mem1", 1.5)])
def test_rollout_logprobs_equal_update_logprobs_of_generate_otherwise(context, temperature):
    model = shared_model("qwen3", "sdpa")
    trajectories = play(model, context, temperature)
    recorded = [[turn.logprobs for turn in trajectory.turns] for trajectory in trajectories]
    for layout in EXACT:
        with torch.no_grad():
            assert_close(score_trajectories(model, trajectories, layout, temperature), recorded)


def test_the_paper_layout_is_not_the_policy_that_acted():
    trajectories = CASES["twenty_turns"]
    for architecture, implementation in MASKED_MODELS:
        model = shared_model(architecture, implementation)
        with torch.no_grad():
            (scores,) = score_trajectories(model, trajectories, "paper")
            expected = oracle_logprobs(model, trajectories[0])
        # The first turn stands in its own context in every layout
        assert_close([scores[:1]], [expected[:1]])
        assert (torch.cat(scores[1:]) - torch.cat(expected[1:])).abs().mean() > 100 * TOLERANCE


# --- Invariant 2: a token reaches what had it in context, and nothing else


def distinct_episode(context="mem1", max_history_length=None):
    """Four turns in which no two tokens are equal, one observation empty, so that ids identify tokens."""
    fresh = iter(range(2, VOCAB))

    def take(count):
        return [next(fresh) for _ in range(count)]

    prompt = take(5)
    return build_trajectory(
        prompt, [(take(4), take(3)), (take(3), []), (take(5), take(2)), (take(3), [])], context, max_history_length
    )


def distinct_forks():
    """A tree: contexts that share some of the prompt, some of each other, and one that is shared whole."""
    turns = [
        Turn((2, 3, 4), (10, 11)),
        Turn((2, 3, 4, 20, 21), (12, 13)),
        Turn((2, 3, 4, 20, 22), (14, 15)),
        Turn((2, 3), (16, 17)),
        Turn((30, 31), (18, 19)),
    ]
    return Trajectory(turns)


REACHED_FROM = {
    "mem1": distinct_episode("mem1"),
    "full": distinct_episode("full"),
    "truncate": distinct_episode("truncate", max_history_length=10),
    "forks": distinct_forks(),
}


def logprobs_in_double(model):
    """Log-probs as a token function, in float64, where whatever does not depend on a token does not move with it."""

    def function(inputs, labels):
        logits = model(**inputs).logits[:, :-1]
        targets = labels[:, 1:]
        picked = torch.log_softmax(logits, -1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
        return [picked.masked_fill(targets == -100, 0.0)]

    return function


@functools.cache
def double_model(architecture, implementation, num_layers=3):
    name = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    return tiny_model(architecture, implementation, **{name: num_layers}).double()


def reached(row: Row, score) -> set[tuple[int, int]]:
    """
    Pairs `(i, j)` of places in a row: replacing token `i` moves the log-prob of the sampled token `j`.

    `score` takes a [`RowBatch`] and gives log-probs of shape `(B, T - 1)`. Moves below 1e-6 are rounding: eager attention has its softmax
    in float32, and a row is padded to the longest one that is scored beside it.
    """
    original = RowBatch.from_rows([row])
    size = original.input_ids.shape[1]
    copies = {name: getattr(original, name).repeat(size, 1) for name in original.__dataclass_fields__}
    copies["input_ids"][range(size), range(size)] = VOCAB - 1  # in no trajectory of these tests
    with torch.no_grad():
        moves = (score(RowBatch(**copies)) - score(original)).abs() > 1e-6
    return {(i, j + 1) for i, j in moves.nonzero().tolist()}


def expected_reach(row: Row, trajectory: Trajectory) -> set[tuple[int, int]]:
    """
    The same pairs, from the turns alone: `i` reaches `j` if it stood before `j` in the turn that sampled `j`.

    A replaced token that was sampled moves its own log-prob too, being another token.
    """
    start = len(row.prompt_ids)
    turn_ids = [0] * start + row.turn_ids
    sequences = [turn.prompt_ids + turn.completion_ids for turn in trajectory.turns]
    places: list[list[int]] = []  # of each token of each turn's sequence in the row
    pairs = set()
    for number, (turn, sequence) in enumerate(zip(trajectory.turns, sequences)):
        own = [place for place, turn_id in enumerate(turn_ids) if turn_id == number]
        shared = len(sequence) - len(own)
        before = [p[:shared] for s, p in zip(sequences[:number], places) if s[:shared] == sequence[:shared]]
        places.append([*(before[-1] if shared else []), *own])
        for j in range(len(turn.prompt_ids), len(sequence)):
            pairs |= {(places[number][i], places[number][j]) for i in range(j + 1)}
    return pairs


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("episode", REACHED_FROM)
@pytest.mark.parametrize(("architecture", "implementation"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa")])
def test_a_token_moves_exactly_what_had_it_in_context(architecture, implementation, episode, layout):
    model = double_model(architecture, implementation)
    trajectory = REACHED_FROM[episode]
    row = pack_trajectory(trajectory)
    moved = reached(row, lambda rows: forward_rows(rows, layout, model, logprobs_in_double(model))[0])
    expected = expected_reach(row, trajectory)
    assert moved - expected == set(), "leaks"
    assert expected - moved == set(), "context that is not seen"


def stitched_reach(trajectory):
    """For a stitched row, where each token stands once: `i` reaches `j` if its id stood before `j` in the turn of `j`."""
    row = stitch_trajectory(trajectory)
    tokens = [*row.prompt_ids, *row.completion_ids]
    assert len(set(tokens)) == len(tokens)
    place = {token: index for index, token in enumerate(tokens)}
    pairs = set()
    for turn in trajectory.turns:
        sequence = turn.prompt_ids + turn.completion_ids
        for j in range(len(turn.prompt_ids), len(sequence)):
            pairs |= {(place[i], place[sequence[j]]) for i in sequence[: j + 1]}
    return row, pairs


def score_with_mask(model, attention_mask, positions=None):
    """Scores rows with a mask made by hand, `(T, T)`, in the form the model takes."""

    def score(rows):
        size = rows.input_ids.shape[1]
        inputs = {"input_ids": rows.input_ids, "attention_mask": attention_mask.expand(len(rows), 1, size, size)}
        inputs["position_ids"] = torch.arange(size).expand(len(rows), size) if positions is None else positions
        return logprobs_in_double(model)(inputs, rows.input_ids.masked_fill(~rows.tool_mask, -100))[0]

    return score


@pytest.mark.parametrize("layout", ["packed", "paper"])
def test_a_boolean_mask_added_to_the_scores_leaks_the_future(layout):
    """Pitfall: the reference casts its boolean mask to 0.0 and 1.0, which an eager model adds as a bias (MEM1 code)."""
    model = double_model("llama", "eager")
    trajectory = REACHED_FROM["mem1"]
    if layout == "packed":
        row = pack_trajectory(trajectory)
        expected, mask = expected_reach(row, trajectory), tree_context_mask(RowBatch.from_rows([row]))[0]
    else:
        row, expected = stitched_reach(trajectory)
        mask = paper_context_mask(RowBatch.from_rows([row]))[0]
    moved = reached(row, score_with_mask(model, mask.double()))
    assert {pair for pair in moved - expected if pair[0] > pair[1]}, "the checker must see that the future is visible"
    # The same mask in the form of `model_mask` shows no future
    right = model_mask(mask[None], "eager", torch.float64)[0]
    assert not {pair for pair in reached(row, score_with_mask(model, right)) if pair[0] > pair[1]}


def test_the_paper_layout_carries_what_was_pruned():
    trajectory = REACHED_FROM["mem1"]
    row, expected = stitched_reach(trajectory)

    def moved(num_layers):
        model = double_model("llama", "sdpa", num_layers)
        return reached(row, lambda rows: forward_rows(rows, "paper", model, logprobs_in_double(model))[0])

    leaks = moved(3) - expected
    assert leaks and expected <= moved(3)
    turns = [0] * len(row.prompt_ids) + row.turn_ids
    first_turn = range(len(row.prompt_ids), turns.index(1))
    assert {turns[j] for i, j in leaks if i in first_turn} == {2, 3}  # turn 1 was gone by then
    assert all(i < j for i, j in leaks)
    # Most of it is in the keys and values of the tokens that the mask shows, from the second layer on. In a single layer
    # leaks only what the predecessor of a turn's first token saw, which is the end of the turn before
    first = {turns.index(turn) for turn in range(4)}
    assert moved(1) - expected == {
        (i, j) for j in first for i in range(j) if i >= len(row.prompt_ids) and turns[i] == turns[j] - 2
    }


def test_a_mask_without_the_state_hides_what_the_rollout_saw():
    """Pitfall: the reference's update mask hides the state of the turn before, which the rollout shows (MEM1 code)."""
    model = double_model("llama", "sdpa", 1)
    trajectory = REACHED_FROM["mem1"]
    row, expected = stitched_reach(trajectory)
    mask = paper_context_mask(RowBatch.from_rows([row]))[0]
    turns = torch.tensor([0] * len(row.prompt_ids) + row.turn_ids)
    # The last sampled token of a turn stands for its query, those before for its state
    sampled = torch.tensor([0] * len(row.prompt_ids) + row.tool_mask).bool()
    state = sampled.clone()
    state[:-1] &= sampled[1:] & (turns[1:] == turns[:-1])
    state[-1] = False
    hidden = mask & ~(state[None] & (turns[None] == turns[:, None] - 1))
    missing = expected - reached(row, score_with_mask(model, hidden))
    # The first token of a turn is predicted by the end of the turn before, which sees the state of its own turn
    assert missing == {(i, j) for i, j in expected if state[i] and turns[i] == turns[j - 1] - 1}
    assert {int(turns[j]) for _, j in missing} == {1, 2, 3}
    # And so the update scores another policy: a difference of log-probs that no tolerance hides
    rows = RowBatch.from_rows([row])
    with torch.no_grad():
        shown = score_with_mask(model, mask)(rows)
        differs = (score_with_mask(model, hidden)(rows) - shown)[0, rows.tool_mask[0, 1:]].abs()
    assert differs.max() > 100 * TOLERANCE


# --- Invariant 3 and 5, as far as scoring goes


@pytest.mark.parametrize("layout", EXACT)
def test_no_token_but_the_sampled_ones_has_a_logprob(layout):
    model = shared_model("llama", "sdpa")
    rows = RowBatch.from_rows([build_row(trajectory, layout) for trajectory in MIXED])
    with torch.no_grad():
        (logprobs,) = forward_rows(rows, layout, model, token_logprobs(model))
    assert torch.equal(logprobs != 0, rows.tool_mask[:, 1:])


def gradient(model, loss):
    """Gradient of a scalar with respect to all parameters, as one vector."""
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])


def summed(scores):
    return torch.cat([turn for trajectory in scores for turn in trajectory]).sum()


@functools.cache
def oracle_gradient(architecture, implementation):
    model = shared_model(architecture, implementation)
    return gradient(model, summed([oracle_logprobs(model, trajectory) for trajectory in CASES["left_padding"]]))


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


GRADIENT_MODELS = [(a, i) for a in ("llama", "qwen3", "gpt2") for i in ("sdpa", "eager")]


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize(("architecture", "implementation"), GRADIENT_MODELS)
def test_gradient_equals_that_of_every_turn_on_its_own(architecture, implementation, layout):
    model = shared_model(architecture, implementation)
    actual = gradient(model, summed(score_trajectories(model, CASES["left_padding"], layout)))
    assert relative_error(actual, oracle_gradient(architecture, implementation)) < 1e-5


@pytest.mark.parametrize(("architecture", "implementation"), GRADIENT_MODELS)
def test_gradient_of_the_paper_layout_is_another(architecture, implementation, capsys):
    model = shared_model(architecture, implementation)
    errors = {
        layout: relative_error(
            gradient(model, summed(score_trajectories(model, CASES["left_padding"], layout))),
            oracle_gradient(architecture, implementation),
        )
        for layout in ("packed", "per_turn", "paper")
    }
    with capsys.disabled():
        numbers = ", ".join(f"{layout} {error:.1e}" for layout, error in errors.items())
        print(f"\ngradient error against per-turn scoring, {architecture} {implementation}: {numbers}")
    assert errors["paper"] > 0.05


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize(("architecture", "implementation"), GRADIENT_MODELS)
def test_gradient_with_checkpointing(architecture, implementation, layout):
    model = tiny_model(architecture, implementation).train()
    enable_activation_checkpointing(model, {"use_reentrant": False})
    assert is_checkpointed(model)
    actual = gradient(model, summed(score_trajectories(model, CASES["left_padding"], layout)))
    assert relative_error(actual, oracle_gradient(architecture, implementation)) < 1e-5


@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "mamba", "qwen3_next"])
def test_gradient_of_models_that_run_one_row_per_turn(architecture):
    implementation = IMPLEMENTATIONS.get(architecture, ("sdpa",))[0]
    model = shared_model(architecture, implementation)
    actual = gradient(model, summed(score_trajectories(model, CASES["left_padding"], "packed")))
    # The delta rule and the state-space scan sum in another order when rows are padded
    assert relative_error(actual, oracle_gradient(architecture, implementation)) < 1e-4


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_trls_fused_head_behind_a_layout(architecture, layout):
    """The way TRL scores: chunks of padded rows, its own head, log-probs and entropies by place in the row."""
    model = tiny_model(architecture)
    layout = resolve_layout(model, layout)
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    trajectories = CASES["left_padding"]
    rows = RowBatch.from_rows([build_row(trajectory, layout) for trajectory in trajectories])
    stand_in = LayoutModel(model, model, rows, layout)
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    outputs = [
        stand_in(rows.input_ids[c], rows.attention_mask[c], labels=labels[c], fused_lm_head=True)
        for c in (slice(0, 2), slice(2, 3))
    ]
    logprobs, entropy = torch.cat([o.log_probs for o in outputs]), torch.cat([o.entropy for o in outputs])
    assert logprobs.shape == entropy.shape == (3, rows.input_ids.shape[1] - 1)
    sampled = rows.tool_mask[:, 1:]
    expected = [oracle_logprobs(model, trajectory, temperature=0.8) for trajectory in trajectories]
    assert_close([[logprobs[i][sampled[i]]] for i in range(3)], [[torch.cat(turns)] for turns in expected])
    assert relative_error(gradient(model, logprobs[sampled].sum()), gradient(model, summed(expected))) < 1e-5
    assert torch.equal(entropy != 0, sampled)
    # The entropy of the first and the last token of the second trajectory, in full
    for turn, token, place in ((0, 0, 0), (-1, -1, -1)):
        chosen = trajectories[1].turns[turn]
        sequence = [*chosen.prompt_ids, *chosen.completion_ids]
        at = len(chosen.prompt_ids) - 1 if token == 0 else len(sequence) - 2
        logits = model(input_ids=torch.tensor([sequence])).logits[0, at] / 0.8
        wanted = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy[1][sampled[1]][place], wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layout", [*EXACT, "paper"])
def test_the_fused_head_reads_only_the_states_before_sampled_tokens(layout):
    """So does what is read beside it; and where nothing was sampled, the result is still one of the model."""
    model = tiny_model("llama")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    rows = RowBatch.from_rows([build_row(trajectory, layout) for trajectory in CASES["left_padding"]])
    nothing = dataclasses.replace(rows, tool_mask=torch.zeros_like(rows.tool_mask))
    for given in (rows, nothing):
        read = []
        stand_in = LayoutModel(
            model, model, given, layout, lambda states, read=read: read.append(states) or states.sum(-1)
        )
        outputs = stand_in(given.input_ids, given.attention_mask, fused_lm_head=True)
        assert sum(states.shape[:2].numel() for states in read) == given.tool_mask.sum()
        model.zero_grad()
        sampled = given.tool_mask[:, 1:]
        assert torch.equal(stand_in.read[0] != 0, sampled) and torch.equal(outputs.entropy != 0, sampled)
        outputs.log_probs.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layout", EXACT)
def test_rows_whose_tokens_are_all_masked_out_score_nothing(layout):
    """TRL masks truncated completions; the forward must still happen, for the sake of other processes."""
    model = shared_model("llama", "sdpa")
    rows = RowBatch.from_rows([pack_trajectory(trajectory) for trajectory in CASES["left_padding"]])
    fields = {name: getattr(rows, name) for name in rows.__dataclass_fields__}
    nothing = RowBatch(**{**fields, "tool_mask": torch.zeros_like(rows.tool_mask)})
    (logprobs,) = forward_rows(nothing, layout, model, token_logprobs(model))
    assert torch.equal(logprobs, torch.zeros(3, rows.input_ids.shape[1] - 1))
    assert gradient(model, logprobs.sum()).eq(0).all()


@pytest.mark.parametrize("layout", EXACT)
def test_a_masked_out_row_does_not_change_the_others(layout):
    model = shared_model("llama", "sdpa")
    rows = RowBatch.from_rows([pack_trajectory(trajectory) for trajectory in CASES["left_padding"]])
    sampled = rows.tool_mask.clone()
    sampled[1] = False
    fields = {name: getattr(rows, name) for name in rows.__dataclass_fields__}
    with torch.no_grad():
        (whole,) = forward_rows(rows, layout, model, token_logprobs(model))
        (part,) = forward_rows(RowBatch(**{**fields, "tool_mask": sampled}), layout, model, token_logprobs(model))
    assert part[1].eq(0).all() and whole[1].ne(0).any()
    torch.testing.assert_close(part[::2], whole[::2], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layout", EXACT)
def test_batching_changes_neither_logprobs_nor_gradient(layout):
    model = shared_model("llama", "sdpa")
    runs = [score_trajectories(model, MIXED, layout, batch_size=size) for size in (1, 3, len(MIXED))]
    gradients = [gradient(model, summed(scores)) for scores in runs]
    for scores, grad in zip(runs[1:], gradients[1:]):
        assert_close(scores, runs[0])
        assert relative_error(grad, gradients[0]) < 1e-5


# --- Models that cannot run a tree


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "mem1_trl.update.layouts"]


FALLBACKS = {
    "mistral": "mistral has a sliding window of 16 tokens",
    "gemma2": "gemma2 has sliding_attention layers",
    "gemma3": "gemma3_text has sliding_attention layers",
    "mamba": "mamba carries a recurrent state",
    "bamba": "bamba carries a recurrent state",
    "qwen3_next": "qwen3_next carries a recurrent state",
    "lfm2": "lfm2 has conv layers",
}


BEYOND = {
    "mistral": ", and a context with its completion may have {}",
    "gemma2": " of 16 tokens, and a context with its completion may have {}",
    "gemma3": " of 16 tokens, and a context with its completion may have {}",
}


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (
            "gemma2",
            "layout='per_turn' instead of 'packed', since gemma2 caps its attention scores. Both are exact; 'packed' forwards "
            "fewer tokens.",
        ),
        ("mamba", "layout='per_turn' instead of 'packed', which is off by [0-9.]+ nat with MambaForCausalLM here."),
    ],
)
def test_packed_becomes_per_turn_with_one_line_that_says_why(architecture, said, caplog):
    model = tiny_model(architecture, IMPLEMENTATIONS.get(architecture, ("sdpa",))[0])
    with caplog.at_level(logging.WARNING), torch.no_grad():
        scores = score_trajectories(model, CASES["right_padding"], "packed", batch_size=1)
    (found,) = [r.getMessage() for r in caplog.records if r.name.startswith("mem1_trl.update")]
    assert re.fullmatch(said, found)
    assert_close(scores, [oracle_logprobs(model, trajectory) for trajectory in CASES["right_padding"]])
    caplog.clear()
    assert resolve_layout(model, "per_turn") == "per_turn"
    assert warnings_of(caplog) == []  # asked for


@pytest.mark.parametrize("architecture", FALLBACKS)
def test_paper_is_refused_where_no_mask_can_be_given(architecture):
    model = shared_model(architecture, IMPLEMENTATIONS.get(architecture, ("sdpa",))[0])
    reason = FALLBACKS[architecture] + BEYOND.get(architecture, "").format(29)
    with pytest.raises(ValueError, match=f"{reason}: use layout='per_turn'"):
        score_trajectories(model, CASES["two_turns"], "paper")


@pytest.mark.parametrize("architecture", MASKED)
def test_layouts_are_kept_where_a_mask_can_be_given(architecture, caplog):
    for implementation in ("sdpa", "eager"):
        model = shared_model(architecture, implementation)
        assert attention_implementation(model) == implementation
        for layout in ("packed", "per_turn", "paper"):
            assert resolve_layout(model, layout) == layout
    assert warnings_of(caplog) == []


def test_flash_attention_runs_one_row_per_turn(caplog):
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"  # its kernel is for GPUs; its name is enough to decide
    with caplog.at_level(logging.WARNING):
        assert resolve_layout(model, "packed") == "per_turn"
    assert "attn_implementation='flash_attention_2' takes no plan of its pairs" in warnings_of(caplog)[0]
    with pytest.raises(ValueError, match="'flash_attention_2' takes no explicit mask: use layout='per_turn'"):
        resolve_layout(model, "paper")
    with pytest.raises(ValueError, match="load the model with attn_implementation='sdpa'"):
        model_mask(torch.ones(1, 2, 2, dtype=torch.bool), "flash_attention_2", torch.float32)


@pytest.mark.parametrize("used", [False, True])
def test_a_sliding_window_counts_only_if_it_is_used(used):
    model = tiny_model("qwen2", sliding_window=16, use_sliding_window=used, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding_attention") if used else nullcontext():
        resolve_layout(model, "paper")
    assert resolve_layout(model, "packed") == "packed"
    trajectories = CASES["left_padding"]
    with torch.no_grad():
        expected = [oracle_logprobs(model, trajectory) for trajectory in trajectories]
        assert_close(score_trajectories(model, trajectories), expected)


def test_local_layers_of_gpt_neo_are_not_packed(monkeypatch):
    monkeypatch.setattr(interface, "_WITHOUT_PLANS", set())
    from transformers import AutoModelForCausalLM, GPTNeoConfig

    config = GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=16,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        scores = score_trajectories(model, CASES["left_padding"])
        assert_close(scores, [oracle_logprobs(model, trajectory) for trajectory in CASES["left_padding"]])
    assert resolve_layout(model, "packed") == "per_turn"


def test_model_mask_takes_the_form_of_its_implementation():
    mask = torch.tensor([[[True, False], [True, True]]])
    boolean = model_mask(mask, "sdpa", torch.float32)
    assert boolean.dtype == torch.bool and torch.equal(boolean, mask[:, None])
    for dtype in (torch.float32, torch.bfloat16):
        additive = model_mask(mask, "eager", dtype)
        least = torch.finfo(dtype).min
        assert additive.dtype == dtype and additive.tolist() == [[[[0.0, least], [0.0, 0.0]]]]


def test_module_dtype_is_that_of_the_weights_or_of_autocast():
    model = tiny_model("llama")
    assert module_dtype(model) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert module_dtype(model) == torch.bfloat16
    assert module_dtype(model.to(torch.bfloat16)) == torch.bfloat16


def inputs_of(model, rows):
    """What the model is called with for rows of the packed layout, in order of the calls."""
    calls = []

    def function(inputs, labels):
        calls.append(inputs)
        return token_logprobs(model)(inputs, labels)

    with torch.no_grad():
        forward_rows(rows, "packed", model, function)
    return calls


def test_chains_are_forwarded_without_a_mask_of_their_own():
    """Rows of one turn that share next to nothing are ordinary sequences, for which every kernel will do."""
    model = shared_model("llama", "eager")
    chains = RowBatch.from_rows(
        [
            pack_trajectory(t)
            for t in [Trajectory([Turn(ids(9, 5), ids(4, 6))]), Trajectory([Turn(ids(8, 7), ids(5, 8))])]
        ]
    )
    (inputs,) = inputs_of(model, chains)
    assert torch.equal(inputs["attention_mask"], chains.attention_mask)
    places = chains.attention_mask.cumsum(1) - 1
    assert torch.equal(inputs["position_ids"], places * chains.attention_mask)


def test_without_a_plan_turns_are_forwarded_and_no_dense_mask(monkeypatch):
    """What runs where attention cannot follow a plan: on a GPU whose FlexAttention is off, or with dropout in attention."""
    monkeypatch.setattr(interface, "can_plan", lambda model, rows: False)
    model = shared_model("llama", "sdpa")
    trajectories = CASES["left_padding"]
    rows = RowBatch.from_rows([pack_trajectory(t) for t in trajectories])
    turns = [len(t.prompt_ids) + len(t.completion_ids) for one in trajectories for t in one.turns]
    calls = inputs_of(model, rows)
    assert sum(int(inputs["attention_mask"].sum()) for inputs in calls) == sum(turns)
    assert all(inputs["attention_mask"].shape == inputs["input_ids"].shape for inputs in calls)
    assert forwarded_tokens(rows, "packed", model) == sum(inputs["input_ids"].numel() for inputs in calls)
    scores = score_trajectories(model, trajectories)
    assert_close(scores, [oracle_logprobs(model, trajectory) for trajectory in trajectories])
    assert relative_error(gradient(model, summed(scores)), oracle_gradient("llama", "sdpa")) < 1e-5


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "mistral",
    ],
)
def test_an_unknown_layout_is_refused(architecture):
    with pytest.raises(ValueError, match="is not a layout: use one of"):
        score_trajectories(shared_model(architecture, "sdpa"), CASES["two_turns"], "pakced")
