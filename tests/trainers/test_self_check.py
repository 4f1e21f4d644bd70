"""Tests of the check when a trainer is built: the layout it settles on, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import dataclasses
import logging
import runpy
from pathlib import Path

import pytest
import torch
from support.helpers import tiny_model
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments

from mem1_trl import (
    Mem1GRPOConfig,
    Mem1GRPOTrainer,
    Mem1PPOConfig,
    Mem1PPOTrainer,
    StopReason,
    Trajectory,
    Turn,
    score_trajectories,
)
from mem1_trl.rollout.prefix_cache import PrefixCache
from mem1_trl.rollout.sampler_check import SamplerTraits, sampler_traits
from mem1_trl.trainers.trl_seam import loss

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_exactness.py"

exactness = runpy.run_path(str(SCRIPT))


def make(tmp_path, model, tokenizer, ppo=False, **settings):
    config, trainer = (Mem1PPOConfig, Mem1PPOTrainer) if ppo else (Mem1GRPOConfig, Mem1GRPOTrainer)
    known = {"max_turns": 3, "max_observation_length": 40, "max_context_length": 200, "beta": 0.0}
    if not ppo:
        known["num_generations"] = 4
    return trainer(
        model,
        args=config(**trainer_arguments(tmp_path, **{**known, **settings})),
        train_dataset=lookup_dataset(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        processing_class=tokenizer,
    )


def lines(caplog):
    return [
        record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records if record.levelno >= logging.WARNING
    ]


def written_rows():
    """The cells of the first table of docs/exactness.md."""
    page = (SCRIPT.parents[1] / "docs" / "exactness.md").read_text(encoding="utf-8")
    table = page.split("## Beside the stitched")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][
        1:
    ]


# What is settled on

EXPECTED = {
    "Llama": ("packed", "cached"),
    "Phi-3 128k (longrope)": ("packed", "cached"),
    "Mistral, window 256": ("packed", "padded"),
    "Mistral, window 16": ("packed", "padded"),
    "Qwen3.5": ("packed", "padded"),
    "DeepSeek-V3": ("packed", "cached"),
    "MiniCPM3": ("packed", "cached"),
    "Qwen2.5-VL, text": ("packed", "padded"),
    "MiniMax": ("per_turn", "one length at a time"),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_exact_in_the_layout_and_the_batches_of_the_page(family):
    row = exactness["measure"](family)
    assert (row.layout, row.batches) == EXPECTED[family]
    assert row.logprobs < 1e-4 and row.gradient < 1e-5 and row.sampler < 1e-4
    (cells,) = [cells for cells in written_rows() if cells[0] == family]
    assert (cells[1].strip("`"), cells[-1]) == EXPECTED[family]


def test_the_page_has_a_row_for_every_family():
    assert [cells[0] for cells in written_rows()] == list(exactness["FAMILIES"])


def test_a_layout_that_is_off_is_replaced_with_one_line(tmp_path, tokenizer, caplog, monkeypatch):
    """A model that takes positions from places in the row, and does not say so."""
    model = tiny_model("llama")
    original = type(model.model).forward

    def by_place(self, input_ids=None, position_ids=None, **kwargs):
        return original(self, input_ids=input_ids, position_ids=None, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", by_place)
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, model, tokenizer)
    assert trainer.layout == "per_turn"
    found = trainer.self_check.layouts
    assert found["packed"].largest > 0.1 and found["per_turn"].largest < 1e-4
    assert [line for line in lines(caplog) if "layout" in line] == [
        f"layout='per_turn' instead of 'packed', which {found['packed']} with LlamaForCausalLM here."
    ]


def test_a_layout_that_crashes_is_replaced_too(tmp_path, tokenizer, caplog, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("head sizes differ\nand more")

    monkeypatch.setattr("mem1_trl.update.attention.cpu_kernels.tree_attention", broken)
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, tiny_model("llama"), tokenizer)
    assert trainer.layout == "per_turn"
    assert (
        "instead of 'packed', which failed (RuntimeError: head sizes differ) with LlamaForCausalLM here."
        in caplog.text
    )


@pytest.fixture
def scored_by_batch(monkeypatch):
    """A Llama whose logits depend on the number of columns of its batch beyond `limit`, as with positions scaled by length."""

    def break_it(model, limit):
        original = type(model.model).forward

        def by_length(self, input_ids=None, **kwargs):
            output = original(self, input_ids=input_ids, **kwargs)
            if input_ids is not None and len(input_ids) > 1 and input_ids.shape[1] > limit:
                output.last_hidden_state = output.last_hidden_state.flip(-1)
            return output

        monkeypatch.setattr(type(model.model), "forward", by_length)
        return model

    return break_it


def test_a_model_for_which_no_layout_is_right_is_refused(tmp_path, tokenizer, scored_by_batch):
    model = scored_by_batch(tiny_model("llama"), 20)
    message = (
        r"A layout must score the tokens of LlamaForCausalLM as the model does on each context alone, but on a toy trajectory "
        r"'per_turn' is off by \d.*positions that depend on the length of the batch.*`check='off'` trains anyway"
    )
    with pytest.raises(ValueError, match=message):
        make(tmp_path, model, tokenizer, layout="per_turn")
    assert make(tmp_path, model, tokenizer, layout="per_turn", check="off").self_check is None


@pytest.mark.parametrize("ppo", [False, True])
def test_the_check_leaves_no_trace(tmp_path, tokenizer, actor, ppo):
    """Random numbers, logs and weights of a run are those of a run without it."""
    import copy

    histories, weights = [], []
    for check in ("on", "off"):
        trainer = make(tmp_path / check, copy.deepcopy(actor), tokenizer, ppo=ppo, check=check)
        trainer.train()
        timed = ("runtime", "per_second", "step_time", "train_loss")
        histories.append([
            {key: value for key, value in entry.items() if not any(word in key for word in timed)}
            for entry in trainer.state.log_history
        ])  # fmt: skip
        weights.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    assert histories[0] == histories[1] and len(histories[0]) >= 2
    assert torch.equal(*weights)


def test_a_wrong_word_is_refused():
    with pytest.raises(ValueError, match="check must be 'on' or 'off', got 'later'"):
        Mem1GRPOConfig("out", check="later", bf16=False)


def test_half_precision_is_rounding_and_no_fault(tmp_path, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("llama", "gpt2", "qwen3"):
            trainer = make(tmp_path, tiny_model(name).to(torch.bfloat16), tokenizer)
            assert trainer.layout == "packed" and trainer.self_check.layouts["packed"].largest > 1e-3
    assert not lines(caplog)


def test_a_critic_is_checked_as_the_policy_is(tmp_path, tokenizer, caplog, monkeypatch):
    """The hidden states of a critic of another family, which takes positions from places in the row."""
    from transformers.models.qwen2 import modeling_qwen2

    original = modeling_qwen2.Qwen2Model.forward

    def by_place(self, input_ids=None, position_ids=None, **kwargs):
        return original(self, input_ids=input_ids, position_ids=None, **kwargs)

    monkeypatch.setattr(modeling_qwen2.Qwen2Model, "forward", by_place)
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, tiny_model("llama"), tokenizer, ppo=True)
        assert (trainer.layout, trainer.value_layout) == ("packed", "packed") and not lines(caplog)
    model, critic = tiny_model("llama"), tiny_model("qwen2")
    args = Mem1PPOConfig(**trainer_arguments(tmp_path, max_context_length=120, max_observation_length=24, beta=0.0))
    trainer = Mem1PPOTrainer(
        model, args=args, train_dataset=lookup_dataset(), environment_factory=LookupEnvironment, protocol=SHORT,
        processing_class=tokenizer, value_model=critic,
    )  # fmt: skip
    assert (trainer.layout, trainer.value_layout) == ("packed", "per_turn")


# Positions that depend on the length of the batch


def test_contexts_stay_below_the_length_at_which_positions_change(tmp_path, tokenizer):
    model = exactness["build_model"]("Phi-3 128k (longrope)")
    trainer = make(tmp_path, model, tokenizer, max_context_length=None)
    assert trainer.settings.max_context_length == 256 - 12
    message = (
        r"max_context_length and max_completion_length must add up to at most 256 for this model, got 257: .*longrope"
    )
    with pytest.raises(ValueError, match=message):
        make(tmp_path, model, tokenizer, max_context_length=245)
    make(tmp_path, model, tokenizer, max_context_length=244)


@pytest.mark.parametrize("family", ["Phi-3 128k (longrope)", "Llama, dynamic NTK"])
def test_trajectories_beyond_that_length_are_refused(family):
    """Up to the switch both layouts are exact; beyond it they would be off by nats, one token alone included."""
    model = exactness["build_model"](family)
    prompt = tuple(5 + 3 * i % 280 for i in range(250))

    def episode(length):
        return Trajectory([Turn(prompt, prompt[:6]), Turn(prompt[:20], prompt[: length - 20])], StopReason.ANSWER)

    with torch.no_grad():
        expected = torch.cat(exactness["truth"](model, [episode(256)]))
        for layout in ("packed", "per_turn"):
            found = torch.cat(score_trajectories(model, [episode(256)], layout)[0])
            assert (found - expected).abs().max() < 1e-4
    with pytest.raises(ValueError, match="must have at most 256 tokens for this model, got 257"):
        score_trajectories(model, [episode(257)])


# The sampler


def test_what_keeps_its_state_elsewhere_is_sampled_without_kept_keys(caplog):
    model = exactness["build_model"]("Qwen2.5-VL, text")
    from mem1_trl.rollout.generation import TransformersGenerator
    from mem1_trl.rollout.settings import AgentSettings

    with caplog.at_level(logging.WARNING):
        generate = TransformersGenerator(model, exactness["tokenizer"](), AgentSettings(max_completion_length=6))
    (line,) = lines(caplog)
    assert line.startswith("Keys and values of earlier calls are not kept, since the sampler of Qwen2_5_VLFor")
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12]]
    for _ in range(2):
        completions = generate(prompts, [[], []])
        prompts = [[*prompt, *done.ids, 17] for prompt, done in zip(prompts, completions)]
    turns = [Turn(tuple(prompt[: -len(done.ids) - 1]), done.ids) for prompt, done in zip(prompts, completions)]
    with torch.no_grad():
        expected = exactness["truth"](model, [Trajectory([turn], StopReason.ANSWER) for turn in turns])
    for done, wanted in zip(completions, expected):
        assert torch.tensor(done.logprobs) == pytest.approx(wanted, abs=1e-5)


def test_what_reads_its_padding_is_sampled_one_length_at_a_time(caplog):
    from mem1_trl.rollout.generation import TransformersGenerator
    from mem1_trl.rollout.settings import AgentSettings

    model = exactness["build_model"]("MiniMax")
    settings = AgentSettings(max_completion_length=5)
    generate = TransformersGenerator(model, exactness["tokenizer"](), settings)
    assert "are sampled one length at a time, since MiniMaxForCausalLM is off by" in caplog.text
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19, 20], [21, 22, 23]]
    completions = generate(prompts, [[]] * 4)
    turns = [Turn(tuple(prompt), done.ids) for prompt, done in zip(prompts, completions)]
    with torch.no_grad():
        expected = exactness["truth"](model, [Trajectory([turn], StopReason.ANSWER) for turn in turns])
        generate.traits = SamplerTraits(pads=True, caches=False)
        padded = generate(prompts, [[]] * 4)
        off = exactness["truth"](
            model, [Trajectory([Turn(tuple(p), d.ids)], StopReason.ANSWER) for p, d in zip(prompts, padded)]
        )
    for done, wanted in zip(completions, expected):
        assert torch.tensor(done.logprobs) == pytest.approx(wanted, abs=1e-5)
    gaps = [(torch.tensor(done.logprobs) - wanted).abs().max() for done, wanted in zip(padded, off)]
    assert max(gaps) > 1e-2, "this family no longer reads its padding: choose another"


def test_a_model_is_asked_once():
    model, calls = tiny_model("llama"), []

    def sample(traits, batches):
        calls.append(traits)
        raise RuntimeError("no")

    for _ in range(2):
        assert sampler_traits(model, sample) == sampler_traits(model, sample)
    assert [(traits.pads, traits.caches) for traits in calls] == [(True, True), (True, False), (False, False)]
    assert sampler_traits(model, sample).pads and not sampler_traits(model, sample).caches
    assert PrefixCache.fits(model, {})


# The first batch


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_a_first_batch_that_is_off_ends_the_run_in_every_layout(tmp_path, tokenizer, actor, layout):
    """What the toy could not show: the sampler draws from other logits than the update computes."""
    trainer = make(tmp_path, actor, tokenizer, layout=layout)
    _sample_from_other_logits(actor)
    message = (
        rf"away from what the update computes in layout='{layout}'.*a penalty or another.*check='off' trains anyway"
    )
    with pytest.raises(RuntimeError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_with_the_check_off_it_warns_and_goes_on(tmp_path, tokenizer, actor, caplog):
    trainer = make(tmp_path, actor, tokenizer, layout="per_turn", check="off")
    _sample_from_other_logits(actor)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "nats away from what the update computes in layout='per_turn'" in caplog.text


@pytest.mark.parametrize("rounds", [True, False])
def test_a_token_that_tf32_rounds_off_ends_nothing(tmp_path, tokenizer, actor, monkeypatch, rounds):
    """An H200 ended a run for .11 nats in one of 30,000 tokens."""
    monkeypatch.setattr(loss, "uses_tf32", lambda: rounds)
    trainer = make(tmp_path, actor, tokenizer, layout="per_turn")
    generate = trainer.rollout.generate

    def off(*arguments, **options):
        return [
            dataclasses.replace(one, logprobs=(one.logprobs[0] + 0.2, *one.logprobs[1:]))
            for one in generate(*arguments, **options)
        ]

    trainer.rollout.generate = off
    if rounds:
        trainer.train()
        assert trainer.state.log_history[0]["sampling/max_logp_difference"] == pytest.approx(0.2, abs=1e-3)
        return
    with pytest.raises(RuntimeError, match=r"sampled with a log-prob 0\.20 nats away"):
        trainer.train()


def test_a_penalty_that_was_asked_for_is_named_and_ends_nothing(tmp_path, tokenizer, actor, caplog):
    trainer = make(tmp_path, actor, tokenizer, repetition_penalty=3.0)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "The reason is a setting of sampling beside the temperature (a penalty" in caplog.text


def test_dropout_is_named_and_ends_nothing(tmp_path, tokenizer, actor, caplog):
    for layer in actor.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = make(tmp_path, actor, tokenizer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "The reason is dropout (attention_dropout=0.5), which draws anew" in caplog.text


def _sample_from_other_logits(model):
    """TRL's scoring reads the head's weights past its forward method, which `generate` calls."""
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 0.5)
