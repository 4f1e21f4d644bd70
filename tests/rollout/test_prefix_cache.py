"""Keys and values kept between calls of `generate`: nothing changes but what has to be computed."""

from __future__ import annotations

import itertools
import random
import string

import numpy as np
import pytest
import torch
from support.contexts import next_context
from support.helpers import VOCAB, tiny_model, tiny_tokenizer
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from mem1_trl.model_traits import cache_argument
from mem1_trl.rollout.draws import uniform_draws
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.prefix_cache import GrowingLayer, PrefixCache, _longest_beginning
from mem1_trl.rollout.settings import AgentSettings

GENERATOR = random.Random(0)
STOPS = [*"aeiou", *"0123456789"]


def ids(count: int) -> list[int]:
    return [GENERATOR.randrange(2, 250) for _ in range(count)]


class Counting(torch.nn.Module):
    """Counts the tokens that a model is given."""

    def __init__(self, model):
        super().__init__()
        self.tokens = 0
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()


PROMPTS = {
    "different": [ids(14), ids(5), ids(9), ids(21), ids(2)],
    "group": [ids(12)] * 5,
    "two groups": [*[ids(8)] * 3, *[ids(11)] * 3],
    "one token": [[5], [6], [7], [8], [9]],
}
OBSERVATIONS = [[ids(GENERATOR.randint(0, 9)) for _ in range(6)] for _ in range(6)]


def play(model, prompts, context, prefix_cache, temperature=0.0, turns=4, stops=STOPS):
    """Turns of a batch under a rule of context; some rows end early. Contexts, completions and log-probs."""
    generate = TransformersGenerator(
        model,
        tiny_tokenizer(),
        AgentSettings(max_completion_length=10, temperature=temperature),
        prefix_cache=prefix_cache,
    )
    history = [[] for _ in prompts]
    record = []
    torch.manual_seed(0)
    for turn in range(turns):
        rows = [row for row in range(len(prompts)) if row == 1 or (row + turn) % 4]  # rows come and go
        contexts = [next_context(context, prompts[row], history[row]) for row in rows]
        completions = generate(contexts, [stops] * len(rows))
        for row, completion in zip(rows, completions):
            history[row].append([*completion.ids, *OBSERVATIONS[row][turn]])
        record += zip(contexts, completions)
    return record


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_what_is_kept_changes_nothing(architecture, context, prompts):
    model = tiny_model(architecture)
    plain = play(model, PROMPTS[prompts], context, prefix_cache=False)
    kept = play(model, PROMPTS[prompts], context, prefix_cache=True)
    for (context_ids, one), (other_ids, other) in zip(plain, kept, strict=True):
        assert context_ids == other_ids and one.ids == other.ids and one.ended == other.ended
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=2e-5, rtol=1e-5)


def test_keys_of_other_weights_would_change_something():
    """What makes the test above able to fail: without `release` the keys of the old weights are used."""
    model = tiny_model("llama")
    prompt = ids(12)

    def run(release: bool):
        torch.manual_seed(0)
        generate = TransformersGenerator(tiny_model("llama"), tiny_tokenizer(), AgentSettings(max_completion_length=5))
        first = generate([prompt], [[]])[0]
        generate.model.load_state_dict(tiny_model("llama", seed=1).state_dict())
        if release:
            generate.release()
        return generate([[*prompt, *first.ids, 7]], [[]])[0]

    fresh = TransformersGenerator(
        tiny_model("llama", seed=1), tiny_tokenizer(), AgentSettings(max_completion_length=5)
    )
    first = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=5))([prompt], [[]])[0]
    expected = fresh([[*prompt, *first.ids, 7]], [[]])[0]
    torch.testing.assert_close(torch.tensor(run(True).logprobs), torch.tensor(expected.logprobs))
    assert not torch.allclose(torch.tensor(run(False).logprobs), torch.tensor(expected.logprobs), atol=1e-2)


def generated(model, generate, contexts, stops=()):
    """Tokens that the model is given during a call."""
    counting = Counting(model)
    completions = generate(contexts, [list(stops)] * len(contexts))
    return counting.tokens, completions


def test_a_group_reads_its_prompt_once():
    model, prompt = tiny_model("llama"), ids(50)
    tokens, _ = generated(
        model, TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=3)), [prompt] * 8
    )
    # the prompt but its last token once; that token, and two of the three sampled ones, for each of the eight
    assert tokens == 49 + 8 * 3
    tokens, _ = generated(
        model,
        TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=3), prefix_cache=False),
        [prompt] * 8,
    )
    # (the first counter still counts)
    assert tokens == 8 * (50 + 2)


def test_a_second_turn_reads_only_what_is_new():
    model, prompt = tiny_model("llama"), ids(50)
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=4))
    (first,) = generate([prompt], [[]])
    observation = ids(6)
    tokens, _ = generated(model, generate, [[*prompt, *first.ids, *observation]])
    assert tokens == 1 + 6 + 3  # the last sampled token was never read
    other = [token + 1 for token in first.ids]
    tokens, _ = generated(model, generate, [[*prompt, *other, *ids(7)]])
    assert tokens == 4 + 7 + 3  # of MEM1's third turn, only the prompt was read before


def test_ended_sequences_leave_the_batch():
    """With eight sequences of which some end early, fewer rows are computed than steps times sequences."""
    model = tiny_model("llama")
    torch.manual_seed(1)
    prompts = [ids(10) for _ in range(8)]
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=30, temperature=1.0))
    widths = []
    model.register_forward_pre_hook(lambda m, a, k: widths.append(k["input_ids"].shape), with_kwargs=True)
    completions = generate(prompts, [[*string.ascii_letters, *string.punctuation]] * 8)
    lengths = sorted(len(completion.ids) for completion in completions)
    assert lengths[3] < lengths[-1]
    halved = [shape[0] for shape in widths]
    assert halved[0] == 8 and min(halved) <= 4
    assert sorted(halved, reverse=True) == halved
    # no more than half of the rows of any step had ended before it
    running = [sum(length > step for length in lengths) for step in range(lengths[-1])]
    assert all(rows < 4 or 2 * alive > rows for rows, alive in zip(halved, running, strict=True))


def test_other_options_are_left_to_generate():
    model = tiny_model("llama")
    fits = PrefixCache.fits
    assert fits(model, {})
    assert not fits(model, {"use_cache": False})
    assert not fits(model, {"generation_config": GenerationConfig(num_beams=2)})
    assert not fits(model, {"generation_config": GenerationConfig(cache_implementation="static")})
    assert fits(model, {"generation_config": GenerationConfig(do_sample=True, top_k=0)})
    for architecture, implementation in (("mistral", "sdpa"), ("gemma2", "eager"), ("mamba", None)):
        assert not fits(tiny_model(architecture, implementation), {})


SEQUENCES = [
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [6, 7]]},
    {"sequence_bias": [[[5, 6], -10.0]]},
    {"sequence_bias": {(5, 6): -10.0}},
]


@pytest.mark.parametrize("options", SEQUENCES, ids=str)
def test_what_looks_for_tokens_in_a_row_finds_no_gap_between_them(options):
    model = tiny_model("llama")
    assert not PrefixCache.fits(model, options)
    assert PrefixCache.fits(model, {"bad_words_ids": [[5], [6]], "sequence_bias": [[[7], 1.0]]})


def test_repeated_ngrams_are_those_of_the_context_whoever_else_is_in_the_batch():
    model = tiny_model("llama")
    settings = AgentSettings(max_completion_length=40, generation_kwargs={"no_repeat_ngram_size": 2})
    common = ids(6)
    prompts = [[*common, *ids(count)] for count in (1, 3, 8, 14)]

    def play(generate, turns):
        contexts = [list(prompt) for prompt in prompts]
        for _ in range(turns):
            for context, completion in zip(contexts, generate(contexts, [[]] * len(contexts))):
                context += completion.ids
        return contexts

    together = play(TransformersGenerator(model, tiny_tokenizer(), settings), 2)
    assert together == play(TransformersGenerator(model, tiny_tokenizer(), settings, prefix_cache=False), 2)
    for prompt, context in zip(prompts, together):
        pairs = list(itertools.pairwise(context))
        assert all(pairs[place] not in pairs[:place] for place in range(len(prompt) - 1, len(pairs)))


def test_the_models_own_options_which_are_not_used_keep_nothing_from_being_kept():
    model = tiny_model("llama")
    model.generation_config.num_beams = 2
    model.generation_config.no_repeat_ngram_size = 2
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=5))
    (first,) = generate([ids(9)], [[]])
    generate([[*ids(9), *first.ids]] * 2, [[]] * 2)
    assert generate._cache._blocks


OF_A_CALL = [
    {"exponential_decay_length_penalty": (5, 1.5)},
    {"begin_suppress_tokens": list(range(2, 200))},
    {"min_new_tokens": 12},
    {"encoder_repetition_penalty": 2.0},
]


def eager_to_end():
    """A tiny model for which the end token, 1, is often likely."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[1] *= 6.0
    return model


def contexts_of(count, longest):
    some = random.Random(5)
    return [[some.randrange(2, 250) for _ in range(some.randint(1, longest))] for _ in range(count)]


def sampled(model, contexts, batches, stops, prefix_cache, **options):
    """Completions of contexts in batches, each by the numbers of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None  # contexts are padded with the end token then
    settings = AgentSettings(max_completion_length=30, temperature=1.0, **options)
    generate = TransformersGenerator(model, tokenizer, settings, prefix_cache=prefix_cache)
    found = {}
    for batch in batches:
        generate.release()
        draws = [uniform_draws(place, 0, 30) for place in batch]
        completions = generate([contexts[place] for place in batch], [stops] * len(batch), draws)
        found.update(zip(batch, [completion.ids for completion in completions]))
    return [found[place] for place in range(len(contexts))]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("options", OF_A_CALL, ids=lambda options: next(iter(options)))
def test_what_means_a_call_means_the_turn(options, prefix_cache):
    """With a second call of `generate` for unfinished sequences, `min_new_tokens`, for example, would start counting from zero."""
    model, contexts = eager_to_end(), contexts_of(16, 30)
    alone, together = [[place] for place in range(16)], [range(16)]
    given = {"generation_kwargs": options}
    found = sampled(model, contexts, together, STOPS, prefix_cache, **given)
    assert len({*map(len, found)}) > 2
    assert found == sampled(model, contexts, alone, STOPS, prefix_cache, **given)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_gap_is_not_penalized_as_a_token_of_the_context(prefix_cache):
    """A gap lies between the keys that are kept and what is new of a context; filled with the end token, it would make that less likely."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCAB)
    with torch.no_grad():  # the end token, 1, is the likeliest, and 7 the next
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.zeros(VOCAB).index_put_((torch.tensor([1, 7]),), torch.tensor([2.0, 1.5])))
    tokenizer.pad_token = None
    settings = AgentSettings(max_completion_length=4, repetition_penalty=1.6)
    generate = TransformersGenerator(model, tokenizer, settings, prefix_cache=prefix_cache)
    generate([[5, 6], [5, 6, 8, 9, 10]], [[]] * 2)
    found = generate([[5, 6, 11], [5, 6, 8, 9, 10, 12, 13, 14], [9, 1, 9]], [[]] * 3)
    assert [one.ids for one in found] == [(1,), (1,), (7, 1)], "the last context alone holds the end token"


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_beginning_is_found(seed):
    some = np.random.default_rng(seed)
    rows, length = some.integers(1, 8), int(some.integers(1, 700))

    def changed(row):
        return np.where(np.arange(length) < some.integers(0, length + 1), row, some.integers(0, 2, length))

    row = some.integers(0, 2, length)
    held = np.stack([changed(row) for _ in range(rows)])
    wanted = changed(row)[: some.integers(1, length + 1)]
    common = (held[:, : len(wanted)] == wanted).cumprod(axis=1).sum(axis=1)
    assert _longest_beginning(held, wanted) == (common.argmax(), common.max())


def test_a_growing_layer_holds_what_a_plain_one_holds():
    torch.manual_seed(0)
    plain, growing = DynamicLayer(), GrowingLayer()
    for length in (3, 1, 1, 90, 1, 200, 1):
        keys, values = torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 4)
        for one, other in zip(plain.update(keys, values), growing.update(keys, values)):
            assert torch.equal(one, other)
        assert plain.get_seq_length() == growing.get_seq_length()
        if length == 90:
            for layer in (plain, growing):
                layer.batch_select_indices(torch.tensor([1, 0]))
                layer.crop(-5)
    assert torch.equal(plain.keys, growing.keys) and torch.equal(plain.values, growing.values)


def test_a_growing_layer_seldom_copies():
    layer, rooms = GrowingLayer(), set()
    for _ in range(300):
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        rooms.add(layer._room[0].data_ptr())
    assert len(rooms) <= 5


def test_clear_frees_what_was_kept():
    model = tiny_model("llama")
    cache = PrefixCache(0)
    contexts = [ids(9), ids(9)]
    inputs = cache.prepare(model, contexts)
    assert (
        isinstance(inputs[cache_argument(model)], DynamicCache) and inputs[cache_argument(model)].get_seq_length() == 0
    )
    with torch.no_grad():
        sequences = model.generate(**inputs, max_new_tokens=4, pad_token_id=0)
    cache.keep(contexts, sequences[:, inputs["input_ids"].shape[1] :], inputs[cache_argument(model)])
    longer = [[*sequences[0].tolist(), 5, 6], contexts[1]]
    assert cache.prepare(model, longer)[cache_argument(model)].get_seq_length() == 12
    assert cache.reused_tokens == 12 + 8
    cache.clear()
    assert cache.prepare(model, longer)[cache_argument(model)].get_seq_length() == 0 and cache.reused_tokens == 0


def test_contexts_that_are_not_in_every_call_are_read_once(monkeypatch):
    """Two halves of the episodes take turns, as episodes do that do not wait for each other; the third call leaves some out."""
    model = tiny_model("llama")
    prompts = PROMPTS["different"]
    records, read = {}, {}
    for parked in (0, 5, None):
        generate = TransformersGenerator(
            model,
            tiny_tokenizer(),
            AgentSettings(max_completion_length=6),
            prefix_cache=parked is not None,
            parked=parked or 0,
        )
        counting = Counting(model)
        history = [list(prompt) for prompt in prompts]
        records[parked] = []
        for rows in ([0, 1], [2, 3, 4], [1, 0], [4, 2], [0, 3], [1, 2, 3, 4]):
            completions = generate([history[row] for row in rows], [[]] * len(rows))
            for row, completion in zip(rows, completions):
                history[row] += [*completion.ids, 7, 9]
            records[parked] += completions
        read[parked] = counting.tokens
    for parked in (0, 5):
        for one, plain in zip(records[parked], records[None], strict=True):
            assert one.ids == plain.ids
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(plain.logprobs), atol=1e-4, rtol=0)
    assert read[5] < read[0] < read[None]


def test_no_more_contexts_are_parked_than_may_be_and_the_oldest_go_first():
    model = tiny_model("llama")
    cache = PrefixCache(0, parked=3)
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=4), parked=3)
    cache = generate._cache
    prompts = [ids(9) for _ in range(6)]
    for prompt in prompts:
        generate([prompt], [[]])
        assert sum(int(block.wanted.sum()) for block in cache._blocks) <= 4  # those parked, and the last call's
    held = [cache._longest_match(np.asarray([*prompt, 1]))[2] for prompt in prompts]
    assert held == [0, 0, 9, 9, 9, 9]
