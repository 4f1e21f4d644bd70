"""Tests of generation: where a turn ends, and that ids and log-probs are those of the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import tiny_model
from support.trainer_helpers import SHORT, LookupEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, StoppingCriteriaList

from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.rollout.action_generate import ActionGenerate
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.prefix_cache import PrefixCache
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.stopping import ActionStoppingCriteria, StopStringFinder, finish_completion
from mem1_trl.rollout.turn_loop import Rollout

STOPS = ["</search>", "</answer>"]


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """
    A byte-level tokenizer without tags, so that `</search>` spans several tokens, and with merges like those of a real one:
    `</`, `><` (one token for the end of a tag and the start of the next) and `>` with a line break.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["</", "><", ">Ċ", "se", "search", "h>", "answer"]
    parts = ["ar", "ch", "arch", "an", "sw", "answ", "er"]
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet, *merged, *parts])}
    merges = [("<", "/"), (">", "<"), (">", "Ċ"), ("s", "e"), ("a", "r"), ("c", "h"), ("ar", "ch"), ("se", "arch")]
    merges += [("a", "n"), ("s", "w"), ("an", "sw"), ("e", "r"), ("answ", "er"), ("h", ">")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Where a turn ends


def test_a_closing_tag_of_several_tokens_ends_at_its_last_one(byte_tokenizer):
    ids = encode(byte_tokenizer, "<search>a</search>")
    closing = encode(byte_tokenizer, "</search>")
    assert len(closing) == 3
    rest = encode(byte_tokenizer, "more</search>")
    stop_texts = StopStringFinder(byte_tokenizer)
    assert stop_texts.end(ids + rest, STOPS) == len(ids)
    # Not one token before, and only at the token that completes it
    assert not stop_texts.completes(ids[:-1], STOPS)
    assert stop_texts.completes(ids, STOPS)
    assert not stop_texts.completes(ids + rest[:1], STOPS)


def test_a_token_that_closes_a_tag_and_goes_on_is_kept_whole(byte_tokenizer):
    """The sampled token is trained, although only part of its text belongs to the action."""
    stop_texts = StopStringFinder(byte_tokenizer)
    for tail in ("<information>", "\n\nnext"):
        ids = encode(byte_tokenizer, "<think>t</think><search>a</search>" + tail)
        end = stop_texts.end(ids, STOPS)
        assert end is not None and end < len(ids)
        text = byte_tokenizer.decode(ids[:end])
        assert text == "<think>t</think><search>a</search>" + tail[0]
        completion = finish_completion(ids, [0.5] * len(ids), STOPS, stop_texts, [1])
        assert completion.ids == tuple(ids[:end]) and completion.ended
        assert completion.logprobs == (0.5,) * end


@pytest.mark.parametrize("text", ["</searches>", "< /search>", "</ search>", "</answer", "search>", "<search>"])
def test_what_only_looks_like_a_closing_tag(byte_tokenizer, text):
    assert StopStringFinder(byte_tokenizer).end(encode(byte_tokenizer, text + " x > y"), STOPS) is None


def test_bytes_of_other_scripts_do_not_shift_the_end(byte_tokenizer):
    ids = encode(byte_tokenizer, "漢字🙂é</search>")
    assert StopStringFinder(byte_tokenizer).end([*ids, *ids], STOPS) == len(ids)


@pytest.mark.parametrize("stop", ["。", "🛑", "é", "x漢"])
def test_a_stop_string_that_ends_with_a_character_of_several_tokens_is_found(byte_tokenizer, stop):
    before, after = encode(byte_tokenizer, f"abx {stop}"), encode(byte_tokenizer, f" more {stop}")
    finder = StopStringFinder(byte_tokenizer)
    assert finder.end(before + after, [stop]) == len(before)
    assert finder.end(before[:-1], [stop]) is None


def test_every_place_of_a_long_text_is_found(byte_tokenizer):
    stop_texts = StopStringFinder(byte_tokenizer)
    for length in range(12):
        ids = encode(byte_tokenizer, "x" * length + "</answer>")
        assert stop_texts.end(ids + encode(byte_tokenizer, "yy"), STOPS) == len(ids)


def test_end_of_sequence_before_and_behind_a_tag(tokenizer):
    stop_texts = StopStringFinder(tokenizer)
    tag, eos = encode(tokenizer, "a</search>"), tokenizer.eos_token_id
    before = finish_completion([eos, *tag], None, STOPS, stop_texts, [eos])
    assert before.ids == (eos,) and before.ended and before.logprobs is None
    behind = finish_completion([*tag, eos, eos], [0.0] * (len(tag) + 2), STOPS, stop_texts, [eos])
    assert behind.ids == tuple(tag) and behind.ended and len(behind.logprobs) == len(tag)
    without = finish_completion(encode(tokenizer, "abc"), None, STOPS, stop_texts, [eos])
    assert len(without.ids) == 3 and not without.ended
    other = finish_completion([5, 9, 7], None, [], stop_texts, [eos, 9])
    assert other.ids == (5, 9)


def test_a_stop_that_is_not_in_force_does_not_end_a_turn(tokenizer):
    ids = encode(tokenizer, "<search>a</search><answer>b</answer>")
    completion = finish_completion(ids, None, ["</answer>"], StopStringFinder(tokenizer), [1])
    assert completion.ids == tuple(ids)


# In real generation


def force(model, texts: list[list[int]], prompt_length: int):
    """Make `generate` sample the given ids: all its logits but one per step are minus infinity."""

    class Forced:
        def __call__(self, input_ids, scores):
            step = input_ids.shape[1] - prompt_length
            forced = torch.full_like(scores, float("-inf"))
            for row, ids in enumerate(texts):
                forced[row, ids[min(step, len(ids) - 1)]] = 0.0
            return forced

    return Forced()


@pytest.mark.parametrize("eos_token_id", [1, None])
def test_each_row_of_generate_stops_at_its_own_tag(tokenizer, eos_token_id):
    """`generate` pads finished rows until the last has stopped; without an end token it goes on writing into them."""
    model = tiny_model("llama")
    texts = ["ab</search>cdefghij", "</answer>aaaaaaaaaaaa", "</search>bb</answer>cc", "abcdefghijkl"]
    stops = [STOPS, STOPS, ["</answer>"], []]
    ids = [encode(tokenizer, text)[:10] for text in texts]
    prompt = torch.full((4, 3), 7)
    criteria = ActionStoppingCriteria(StopStringFinder(tokenizer), stops, 3)
    sequences = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=eos_token_id,
        stopping_criteria=StoppingCriteriaList([criteria]),
        logits_processor=[force(model, ids, 3)],
    )[:, 3:].tolist()
    lengths = [3, 1, 4, 8]
    assert criteria.done == [True, True, True, False]
    if eos_token_id is not None:
        assert sequences == [[*row[:n], *[0] * (8 - n)] for row, n in zip(ids, lengths)]
    cut = [finish_completion(row, None, s, StopStringFinder(tokenizer), [1]) for row, s in zip(sequences, stops)]
    assert [list(c.ids) for c in cut] == [row[:n] for row, n in zip(ids, lengths)]
    assert [c.ended for c in cut] == [True, True, True, False]


def test_a_batch_ends_when_its_last_row_does(tokenizer):
    model = tiny_model("llama")
    ids = [encode(tokenizer, "a</search>xxxx"), encode(tokenizer, "abc</answer>xx")]
    prompt = torch.full((2, 2), 7)
    criteria = ActionStoppingCriteria(StopStringFinder(tokenizer), [STOPS, STOPS], 2)
    sequences = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        stopping_criteria=StoppingCriteriaList([criteria]),
        logits_processor=[force(model, ids, 2)],
    )
    assert sequences.shape[1] == 2 + 4


def plain_logprobs(model, prompt: list[int], ids: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logprobs_are_those_of_a_plain_forward(tokenizer, actor, temperature):
    torch.manual_seed(0)
    generate = TransformersGenerator(
        actor, tokenizer, AgentSettings(max_completion_length=12, temperature=temperature)
    )
    prompts = [encode(tokenizer, text) for text in ("q1?", "ababq2?", "a much longer prompt q3?")]
    completions = generate(prompts * 4, [STOPS] * 12)
    assert len({completion.ids for completion in completions}) > 3
    for prompt, completion in zip(prompts * 4, completions):
        expected = plain_logprobs(actor, prompt, list(completion.ids), temperature)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_greedy_decoding_takes_the_likeliest_token(tokenizer, actor):
    generate = TransformersGenerator(actor, tokenizer, AgentSettings(max_completion_length=12))
    prompt = encode(tokenizer, "q1?")
    (completion,) = generate([prompt], [STOPS])
    logits = actor(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
    assert tuple(logits.argmax(-1).tolist()) == completion.ids
    assert completion.ended and tokenizer.decode(completion.ids).endswith(("</search>", "</answer>"))


def test_batches_and_padding_change_nothing(tokenizer, actor):
    prompts = [encode(tokenizer, text) for text in ("q1?", "ababq2?", "q3?", "abq4?", "a much longer prompt q5?")]
    together = TransformersGenerator(actor, tokenizer, AgentSettings(max_completion_length=12))(prompts, [STOPS] * 5)
    in_pairs = TransformersGenerator(actor, tokenizer, AgentSettings(max_completion_length=12), batch_size=2)(
        prompts, [STOPS] * 5
    )
    alone = [
        TransformersGenerator(actor, tokenizer, AgentSettings(max_completion_length=12))([prompt], [STOPS])[0]
        for prompt in prompts
    ]
    assert [c.ids for c in together] == [c.ids for c in in_pairs] == [c.ids for c in alone]
    for one, other in zip(together, alone):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_the_hook_leaves_the_output_of_generate_alone(tokenizer, actor, cached):
    """Recording and stopping change nothing about what is sampled, up to where it stops."""
    prompt = torch.tensor([encode(tokenizer, "q1?")] * 6)
    kwargs = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=True, temperature=1.3)
    kwargs |= dict(top_k=0, pad_token_id=0, eos_token_id=1)
    torch.manual_seed(5)
    plain = actor.generate(input_ids=prompt, **kwargs)
    torch.manual_seed(5)
    cache = PrefixCache(0) if cached else None
    hook = ActionGenerate(actor, StopStringFinder(tokenizer), [[]] * 6, 1.3, [1], cache)
    hooked = hook(input_ids=prompt, **kwargs)
    assert torch.equal(plain, hooked)
    assert torch.tensor(hook.logprobs).shape == (6, plain.shape[1] - prompt.shape[1])


@pytest.mark.parametrize("cached", [False, True])
def test_options_reach_generate_in_one_form(tokenizer, actor, cached):
    """transformers takes a generation config or single options, and warns where both are given; TRL's trainer gives a config."""
    prompt = torch.tensor([encode(tokenizer, "q1?")] * 2)
    config = GenerationConfig(max_new_tokens=6, do_sample=True, pad_token_id=0, eos_token_id=1)
    draws = list(np.random.default_rng(0).random((2, 6)))
    cache = PrefixCache(0) if cached else None
    hook = ActionGenerate(actor, StopStringFinder(tokenizer), [[]] * 2, 1.0, [1], cache, None, draws)
    given, real = [], hook.generate
    hook.generate = lambda **kwargs: given.append(kwargs) or real(**kwargs)
    hook(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert given and not any({"max_new_tokens", "do_sample"} & set(kwargs) for kwargs in given)
    own = given[0]["generation_config"]
    assert own.max_new_tokens == 6 and own.do_sample is False
    assert config.do_sample is True, "what was given is left as it was"


def test_a_budget_that_runs_out_is_not_an_end(tokenizer, actor):
    (completion,) = TransformersGenerator(actor, tokenizer, AgentSettings(max_completion_length=3))(
        [encode(tokenizer, "q1?")], [STOPS]
    )
    assert len(completion.ids) == 3 and not completion.ended


def test_ids_of_a_trajectory_are_the_sampled_ones(tokenizer, actor):
    """
    Pitfall 4 and invariant 8: decode, cut and encode again, and `><` falls apart. Ids that no tokenizer would produce for
    their text survive the rollout, in the completion and in the next context.
    """
    torch.manual_seed(1)
    seen: list = []

    class Recorder(TransformersGenerator):
        def __call__(self, prompts, stops):
            completions = super().__call__(prompts, stops)
            # A tag spelled in single bytes, which the tokenizer itself would never do
            strange = [byte for char in "hm>" for byte in tokenizer.convert_tokens_to_ids([char])]
            completions = [type(c)((*strange, *c.ids), (*[0.0] * 3, *c.logprobs), c.ended) for c in completions]
            seen.append((prompts, completions))
            return completions

    environment = LookupEnvironment()
    environment.reset(secret="2")
    prompt = encode(tokenizer, "q1?")
    episode = Episode(prompt, environment, ActionSet(environment, SHORT))
    settings = AgentSettings(max_turns=4, max_observation_length=40)
    (trajectory,) = Rollout(
        tokenizer,
        SHORT,
        settings,
        Recorder(actor, tokenizer, AgentSettings(max_completion_length=12, temperature=1.0)),
    ).run([episode])
    assert len(trajectory.turns) == len(seen) >= 2
    for turn, (prompts, completions) in zip(trajectory.turns, seen):
        assert turn.prompt_ids == tuple(prompts[0])
        assert turn.completion_ids == completions[0].ids
        assert turn.logprobs == completions[0].logprobs
    first, second = trajectory.turns[:2]
    behind = second.prompt_ids[len(prompt) :]
    assert behind[: len(first.completion_ids)] == first.completion_ids
    assert tokenizer.decode(behind[len(first.completion_ids) :]) == first.observation


def test_a_tokenizer_without_padding_and_end_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        TransformersGenerator(model, bare, AgentSettings(max_completion_length=4))


@pytest.mark.parametrize(("leave_at", "all_end"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_batch_is_left_as_soon_as_few_enough_are_unfinished(tokenizer, leave_at, all_end):
    """Two of four sequences have ended, one by a tag and one by the end token."""
    texts = ["<search>a</search>", "<search>a", "<search>b", "<eos>"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    rows = torch.tensor([[5] * (width - len(row)) + row for row in ids])
    criteria = ActionStoppingCriteria(
        StopStringFinder(tokenizer), [["</search>"]] * 4, 0, [tokenizer.eos_token_id], leave_at
    )
    ended = criteria(rows, None)
    assert ended.tolist() == ([True] * 4 if all_end else [True, False, False, True])
    assert criteria.done == [True, False, False, True]
