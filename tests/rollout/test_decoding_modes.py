"""Tests of decoding that is not one sampled token at a time: refused, or recorded as unknown."""

from __future__ import annotations

import pytest
import torch
from support.helpers import oracle_logprobs, tiny_model, tiny_tokenizer
from transformers import GenerationConfig
from transformers.generation.logits_process import SequenceBiasLogitsProcessor

from mem1_trl import AgentSettings, Mem1Agent, Mem1GRPOConfig, Mem1PPOConfig, StopReason, Trajectory, Turn
from mem1_trl.hub.agent_settings import load_agent_settings, save_agent_settings
from mem1_trl.rollout.decoding import ignored_decoding
from mem1_trl.rollout.draws import uniform_draws
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.sampled_logprobs import SampledLogprobs
from mem1_trl.rollout.seeded_sampling import draw_tokens

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]

REFUSED = [
    {"num_beams": 2},
    {"num_beams": 2, "num_return_sequences": 2},
    {"num_return_sequences": 3},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_model": "another/model"},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"custom_generate": "someone/code"},
    {"dola_layers": "high"},
    {"force_words_ids": [[5]]},
    {"prompt_lookup_num_tokens": 0},
    {"token_healing": True},
    {"n": 2},
    {"best_of": 2},
    {"use_beam_search": True},
]


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("owner", ["agent", "grpo", "ppo"])
def test_other_modes_are_refused_before_any_model_is_loaded(options, owner):
    make = {
        "agent": lambda: Mem1Agent(tiny_model(), tiny_tokenizer(), generation_kwargs=options),
        "grpo": lambda: Mem1GRPOConfig("out", bf16=False, generation_kwargs=options),
        "ppo": lambda: Mem1PPOConfig("out", bf16=False, generation_kwargs=options),
    }
    name, value = next(iter(options.items()))
    with pytest.raises(
        ValueError, match=f"one sampled token at a time, .*got {name}={value!r}: leave it out".replace("[", r"\[")
    ):
        make[owner]()


def test_arguments_of_the_package_are_refused():
    with pytest.raises(
        ValueError, match="generation_kwargs must not set logits_processor, which mem1-trl sets itself"
    ):
        AgentSettings(generation_kwargs={"logits_processor": []})


def test_other_end_tokens_are_refused(tmp_path):
    """`generate` would pad after them, and the padding count as sampled."""
    words = r"generation_kwargs must not set eos_token_id=\[76\], .*set `model.generation_config.eos_token_id`"
    with pytest.raises(ValueError, match=words):
        AgentSettings(generation_kwargs={"eos_token_id": [76]})
    with pytest.raises(ValueError, match=words):
        Mem1PPOConfig(str(tmp_path), bf16=False, generation_kwargs={"eos_token_id": [76]})
    with pytest.raises(ValueError, match="must not set pad_token_id, which mem1-trl sets itself"):
        AgentSettings(generation_kwargs={"pad_token_id": 0})


def test_a_second_temperature_is_refused(tmp_path):
    """Tokens would be sampled at it, and their log-probs recorded and trained at the other, without a difference to see."""
    words = "generation_kwargs must not set temperature=0.5"
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(str(tmp_path), bf16=False, generation_kwargs={"temperature": 0.5})
    with pytest.raises(ValueError, match=words):
        AgentSettings(temperature=1.0, generation_kwargs={"temperature": 0.5})


def test_a_second_budget_is_refused(tmp_path):
    """Contexts, and the numbers that choose tokens, are planned for the other."""
    words = "generation_kwargs must not set max_new_tokens=20, .*: set `max_completion_length`"
    with pytest.raises(ValueError, match=words):
        AgentSettings(max_completion_length=8, generation_kwargs={"max_new_tokens": 20})
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(str(tmp_path), bf16=False, generation_kwargs={"max_new_tokens": 20})


def test_modes_that_were_saved_with_a_model_are_refused_when_it_is_loaded(tmp_path):
    (tmp_path / "mem1_agent.json").write_text('{"generation_kwargs": {"num_beams": 4}}')
    with pytest.raises(ValueError, match="got num_beams=4"):
        load_agent_settings(tmp_path)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}])
def test_the_modes_of_a_models_own_configuration_are_named_and_not_used(options):
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, **options)
    assert ignored_decoding(model) == options
    check(model, PROMPTS, generator(model)(PROMPTS, [[], []]))


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"typical_p": 0.9}, {"epsilon_cutoff": 3e-4}, {"eta_cutoff": 3e-4}], ids=str
)
def test_seeds_of_episodes_hold_whatever_the_models_own_configuration_says(options):
    """The tokens are those of the numbers, and those that they choose where the configuration says nothing."""
    draws = [uniform_draws(5, 0, 5), uniform_draws(6, 0, 5)]
    wanted = generator(tiny_model())(PROMPTS, [[], []], draws=draws)
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, **options)
    for seed in range(2):
        torch.manual_seed(seed)
        found = generator(model)(PROMPTS, [[], []], draws=draws)
        assert [one.ids for one in found] == [one.ids for one in wanted]


def test_values_that_change_nothing_are_taken():
    plain = {"num_beams": 1, "num_return_sequences": 1, "prompt_lookup_num_tokens": None, "penalty_alpha": None}
    assert AgentSettings(generation_kwargs=plain).generation_kwargs == plain


def generator(model):
    return TransformersGenerator(model, tiny_tokenizer(), AgentSettings(max_completion_length=5, temperature=1.0))


def check(model, prompts, completions):
    for prompt, done in zip(prompts, completions):
        with torch.no_grad():
            (wanted,) = oracle_logprobs(model, Trajectory([Turn(tuple(prompt), done.ids)], StopReason.ANSWER))
        assert torch.tensor(done.logprobs) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("mode", [{"num_beams": 3, "do_sample": False}, {"prompt_lookup_num_tokens": 2}])
def test_a_replaced_generate_of_another_mode_records_nothing_and_keeps_nothing(mode):
    """Beams reorder rows, and assisted decoding may take several tokens in one step: neither gets the log-probs of others."""
    model = tiny_model()
    generate = generator(model)
    original = model.generate
    prompts = PROMPTS if "num_beams" in mode else [[5, 6, 7] * 5]  # assisted decoding has one row
    model.generate = lambda **options: original(**{**options, **mode})
    found = generate(prompts, [[]] * len(prompts))
    if "num_beams" in mode:
        assert [done.logprobs for done in found] == [None] * len(prompts)
    else:
        check(model, prompts, [done for done in found if done.logprobs is not None])
    assert all(1 <= len(done.ids) <= 5 for done in found)
    del model.generate
    again = generate(prompts, [[]] * len(prompts))  # nothing of the other calls is read
    check(model, prompts, again)


def test_a_replaced_generate_that_ignores_processors_records_nothing():
    model = tiny_model()
    generate = generator(model)

    def constant(input_ids, **options):
        return torch.cat([input_ids, torch.full((len(input_ids), 2), 7)], dim=1)

    model.generate = constant
    assert [(done.ids, done.logprobs) for done in generate(PROMPTS, [[]] * 2)] == [((7, 7), None)] * 2


def test_recorded_steps_must_be_those_of_the_sequences():
    scores = torch.log_softmax(torch.randn(2, 9, generator=torch.Generator().manual_seed(0)), dim=-1)
    first, rows = torch.tensor([[1], [2]]), torch.tensor([[1, 5], [2, 6]])

    def finish(sequences, steps):
        recorder = SampledLogprobs(1.0, columns=1)
        for step in steps:
            recorder(step, scores)
        return recorder.finish(sequences)

    assert finish(rows, [first]) == [[pytest.approx(float(scores[0, 5]))], [pytest.approx(float(scores[1, 6]))]]
    two = torch.tensor([[1, 5, 3], [2, 6, 4]])
    assert len(finish(two, [first, rows])[0]) == 2
    assert finish(two, [first]) is None  # a token without a step
    assert finish(two.flip(0), [first, rows]) is None  # rows that were reordered
    assert finish(two[:1], [first, rows]) is None  # rows that are gone


def test_a_bias_by_sequences_of_tokens_holds_and_is_saved(tmp_path):
    """By tuples of tokens, a form that transformers takes and a file cannot hold."""
    never = {"sequence_bias": {(5,): -100.0, (6, 7): -2.0}}
    settings = AgentSettings(generation_kwargs=never)
    save_agent_settings(tmp_path, settings)
    assert load_agent_settings(tmp_path) == settings
    assert settings.generation_kwargs == {"sequence_bias": [[[5], -100.0], [[6, 7], -2.0]]}
    processor = SequenceBiasLogitsProcessor(settings.generation_kwargs["sequence_bias"])
    expected = SequenceBiasLogitsProcessor(never["sequence_bias"])
    ids, scores = torch.tensor([[1, 6]]), torch.zeros(1, 10)
    assert torch.equal(processor(ids, scores), expected(ids, scores)) and processor(ids, scores)[0, 7] == -2.0


@pytest.mark.parametrize("name", ["generation_kwargs", "chat_template_kwargs"])
def test_what_could_not_be_saved_with_the_model_is_refused_before_a_run(name):
    with pytest.raises(ValueError, match=f"{name} must be made of JSON values.* got thing=<object"):
        AgentSettings(**{name: {"thing": object()}})


@pytest.mark.parametrize("temperature", [1e-42, 1e-6])
@pytest.mark.parametrize("seeded", [True, False])
def test_a_temperature_that_is_almost_0_decodes_greedily(temperature, seeded):
    """Logits divided by it were infinite, and the index of the token outside of the vocabulary."""
    model, tokenizer, found = tiny_model(), tiny_tokenizer(), []
    for each in (0.0, temperature):
        generate = TransformersGenerator(
            model, tokenizer, AgentSettings(max_completion_length=8, temperature=each), batch_size=2
        )
        draws = {"draws": [uniform_draws(seed, 0, 8) for seed in range(2)]} if seeded else {}
        found.append([done.ids for done in generate(PROMPTS, [[], []], **draws)])
    assert found[0] == found[1] and len(found[0][0]) == 8


def test_what_counts_as_a_temperature_of_0():
    assert [AgentSettings(temperature=each).temperature for each in (1e-42, 9e-6, 1e-5, 0.7)] == [0.0, 0.0, 1e-5, 0.7]
    assert AgentSettings(temperature=1e-42).decoding_options()["do_sample"] is False
    assert AgentSettings().changed({"temperature": 1e-42}).temperature == 0.0


def test_a_token_that_is_drawn_is_one_of_the_vocabulary():
    """On a GPU an index outside of it ends the process."""
    rows = [[float("nan")] * 4, [0.0] * 4, [0.25] * 4]
    numbers = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    tokens = draw_tokens(torch.tensor(rows), numbers).tolist()
    assert all(0 <= token < 4 for token in tokens) and tokens[2] == 2
