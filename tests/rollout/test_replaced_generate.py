"""Tests of a `generate` that is not that of transformers: what it returns is believed as far as it can be checked."""

from __future__ import annotations

import functools

import pytest
import torch
from datasets import Dataset
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings


def ids(count: int) -> list[int]:
    return torch.randint(2, 320, (count,)).tolist()


def drawn_elsewhere(model, original):
    """A `generate` of somebody else, which samples token by token and asks no processor."""

    def generate(input_ids, attention_mask, max_new_tokens=None, generation_config=None, **options):
        room = max_new_tokens or generation_config.max_new_tokens
        new = torch.randint(2, 250, (len(input_ids), room), generator=torch.Generator().manual_seed(1))
        return torch.cat([input_ids, new], dim=1)

    return generate


def greedy_but_not_most_likely(model, original):
    """One that asks the processors at every step as it must, and takes the second best token."""

    def generate(input_ids, attention_mask, logits_processor, max_new_tokens=None, generation_config=None, **options):
        for _ in range(max_new_tokens or generation_config.max_new_tokens):
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            scores = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits[:, -1]
            scores = logits_processor(input_ids, scores)
            token = scores.topk(2).indices[:, 1:]
            input_ids = torch.cat([input_ids, token], dim=1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(token)], dim=1)
        return input_ids

    return generate


def asked_in_between(model, original):
    """One that asks the processors about a token it does not keep, as speculative decoding does."""

    def generate(input_ids, logits_processor, **options):
        sequences = original(input_ids=input_ids, logits_processor=logits_processor, **options)
        logits_processor(sequences, torch.zeros(len(sequences), 320))
        return sequences

    return generate


def several_rows(model, original):
    return lambda **options: original(**options).repeat(2, 1)


def cut_short(model, original):
    return lambda **options: original(**options)[:, :-1]


def unchanged(model, original):
    return functools.partial(original)


UNKNOWN = {
    "drawn elsewhere": (drawn_elsewhere, 1.0),
    "not the most likely token": (greedy_but_not_most_likely, 0.0),
    "asked in between": (asked_in_between, 1.0),
    "cut short": (cut_short, 1.0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_tokens_without_a_step_of_their_own_have_no_logprobs(name):
    """Such log-probs are of other tokens, and keys and values that came of such a call are of other contexts."""
    replacement, temperature = UNKNOWN[name]
    model = tiny_model()
    model.generate = replacement(model, model.generate)
    generate = TransformersGenerator(
        model, tiny_tokenizer(), AgentSettings(max_completion_length=4, temperature=temperature)
    )
    completions = generate([ids(5), ids(9)], [[], []])
    assert [completion.logprobs for completion in completions] == [None, None]
    assert all(completion.ids for completion in completions)
    generate([ids(5), ids(9)], [[], []])
    assert generate._cache.reused_tokens == 0


def test_a_replacement_that_keeps_to_the_rules_is_believed_but_not_given_a_cache():
    model = tiny_model()
    model.generate = unchanged(model, model.generate)
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=4, temperature=1.0))
    prompt = ids(7)
    (completion,) = generate([prompt], [[]])
    logits = model(torch.tensor([[*prompt, *completion.ids]])).logits[0, 6:-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    generate([[*prompt, *completion.ids]], [[]])
    assert generate._cache.reused_tokens == 0


def test_rows_that_are_not_the_contexts_are_an_error():
    model = tiny_model()
    model.generate = several_rows(model, model.generate)
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=4))
    with pytest.raises(ValueError, match=r"`model.generate` must return one row .* got shape \(4, "):
        generate([ids(5), ids(5)], [[], []])


def test_greedy_decoding_by_transformers_keeps_its_logprobs():
    """Also for rows that end at different steps, whose padding is not the most likely token."""
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(1, 320, 5))
    generate = TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=20))
    torch.manual_seed(0)
    completions = generate([ids(5) for _ in range(6)], [[]] * 6)
    assert len({len(completion.ids) for completion in completions}) > 1
    assert all(len(completion.logprobs) == len(completion.ids) for completion in completions)


def test_a_trainer_goes_on_without_the_logprobs_of_a_replaced_generate(tmp_path, tokenizer):
    """The update then takes its old log-probs from the policy itself, so that the first ratio is one."""
    model = tiny_model()
    model.generate = drawn_elsewhere(model, model.generate)
    trainer = Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_steps=1)),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **kwargs: [float(sum(row) % 7) for row in completion_ids],
    )
    batches = []
    build = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: batches.append(build(rows)) or batches[-1]
    trainer.train()
    assert "sampling_per_token_logps" not in batches[0]
    assert "sampling/max_logp_difference" not in trainer.state.log_history[0]
    expected = torch.randint(2, 250, (4, 12), generator=torch.Generator().manual_seed(1))
    assert torch.equal(batches[0]["completion_ids"], expected)
