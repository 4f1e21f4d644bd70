"""
The vLLM backend, against a stand-in for TRL's `VLLMGeneration` that records what it is called with.

vLLM itself needs a GPU. What is tested is our side of TRL's interface: token ids and stop strings go in, token ids and log-probs
come out, cut at the first complete action, and reach the importance-sampling correction.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.helpers import tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, copy_parameters, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.stopping import StopStrings


class RecordedVLLM:
    """
    Samples with the policy itself and, as vLLM may, gives more than was asked for: some tokens behind the stop string.

    `bias` is added to every log-prob, as a sampler that differs from the trainer would.
    """

    def __init__(self, model, tokenizer, bias: float = 0.0):
        self.sampler = TransformersGenerator(
            model, tokenizer, AgentSettings(max_completion_length=64, temperature=1.0)
        )
        self.extra = tokenizer("</think>xx")["input_ids"]
        self.bias = bias
        self.generation_kwargs = {"seed": 1, "stop": ["STOP"]}
        self.temperature = 1.0
        self.calls: list[dict] = []
        self.syncs = 0

    def sync_weights(self):
        self.syncs += 1
        self.sampler.release()  # as a server drops its prefix cache when weights arrive

    def generate(self, prompts, images, num_generations, profiler=None):
        assert images is None
        self.calls.append(
            {
                "prompts": prompts,
                "num_generations": num_generations,
                "kwargs": dict(self.generation_kwargs),
                "temperature": self.temperature,
            }
        )
        completions = self.sampler(prompts, [["</search>", "</answer>"]] * len(prompts))
        ids = [[*c.ids, *self.extra] if c.ended else list(c.ids) for c in completions]
        logprobs = [
            [[lp + self.bias] for lp in c.logprobs] + [[-9.0]] * (len(row) - len(c.ids))
            for c, row in zip(completions, ids)
        ]
        return prompts, ids, logprobs, None


@pytest.fixture
def trainer(tmp_path: Path, actor) -> Mem1GRPOTrainer:
    tokenizer = tiny_tokenizer()
    settings = {"max_turns": 4, "max_observation_length": 40, "num_generations": 2, "max_completion_length": 64}
    trainer = Mem1GRPOTrainer(
        model=actor,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(8),
        eval_dataset=lookup_dataset(4),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    # What TRL sets up when `use_vllm=True`, which refuses without the package
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "colocate", -1
    trainer.vllm_generation = RecordedVLLM(actor, tokenizer)
    return trainer


def test_stop_strings_reach_vllm_and_what_follows_them_is_cut(trainer):
    backend = trainer.vllm_generation
    prompts = [trainer.tokenizer(f"q{i}?")["input_ids"] for i in range(4)]
    completions = trainer.generate_turn(prompts, [["</search>", "</answer>"]] * 4)
    (call,) = backend.calls
    assert call["prompts"] == prompts and call["num_generations"] == 1
    assert call["kwargs"] == {
        "seed": 1,
        "stop": ["STOP", "</answer>", "</search>"],
        "include_stop_str_in_output": True,
    }
    assert backend.generation_kwargs == {"seed": 1, "stop": ["STOP"]}, "what the user set is put back"
    for completion in completions:
        assert completion.ended and len(completion.ids) == len(completion.logprobs)
        text = trainer.tokenizer.decode(list(completion.ids))
        assert text.endswith(("</search>", "</answer>")) and "xx" not in text
        assert -9.0 not in completion.logprobs


def test_stop_strings_of_one_prompt_do_not_cut_another(trainer):
    """vLLM has one set of stop strings for all prompts of a call: none where a prompt has opened a thought, and only an answer in last turns."""
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer(text)["input_ids"] for text in ("q<think>", "q0?", "q1?", "q2?")]
    both, last = ["</search>", "</answer>"], ["</answer>"]
    completions = trainer.generate_turn(prompts, [StopStrings(["</search>"], "</think>"), both, last, both])
    calls = trainer.vllm_generation.calls
    stops = [call["kwargs"]["stop"] for call in calls]
    assert stops == [["STOP"], ["STOP", "</answer>", "</search>"], ["STOP", "</answer>"]]
    assert [call["prompts"] for call in calls] == [[prompts[0]], [prompts[1], prompts[3]], [prompts[2]]]
    alone = [trainer.generate_turn([prompt], [row])[0] for prompt, row in ((prompts[1], both), (prompts[3], both))]
    assert [len(one.ids) > 0 for one in completions] == [True] * 4 and all(one.ended for one in alone)


def test_where_processes_call_together_only_common_strings_end_a_turn(trainer, monkeypatch):
    monkeypatch.setattr(Mem1GRPOTrainer, "generates_alone", False)
    prompts = [trainer.tokenizer(f"q{i}?")["input_ids"] for i in range(2)]
    trainer.generate_turn(prompts, [["</search>", "</answer>"], ["</answer>"]])
    trainer.generate_turn(prompts, [["</search>"], ["</answer>"]])
    first, second = (call["kwargs"] for call in trainer.vllm_generation.calls)
    assert first["stop"] == ["STOP", "</answer>"] and second == {"seed": 1, "stop": ["STOP"]}


def test_evaluation_is_greedy_and_training_is_not(trainer):
    trainer.evaluate()
    assert {call["temperature"] for call in trainer.vllm_generation.calls} == {0.0}
    trainer.vllm_generation.calls.clear()
    trainer.train()
    assert {call["temperature"] for call in trainer.vllm_generation.calls if len(call["prompts"])} == {1.0}


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_importance_sampling_corrects_every_sampled_token_of_several_turns(trainer, bias):
    trainer.vllm_generation.bias = bias
    batches = []
    extend = trainer.extend_batch
    trainer.extend_batch = lambda batch, *args: (batches.append(batch), extend(batch, *args))
    before = copy_parameters(trainer.model)
    trainer.train()
    assert trainer.vllm_generation.syncs == len(batches) >= 2, "weights are sent once for each generation batch"
    assert any((batch["turn_ids"] > 0).any() for batch in batches), "an episode of several turns"
    for batch in batches:
        sampled = trainer.sampled_mask(batch).bool()
        gap = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"])[sampled]
        torch.testing.assert_close(gap, torch.full_like(gap, -bias), atol=1e-4, rtol=0)
        # TRL's default mode corrects whole sequences: the product over the sampled tokens of all turns
        expected = torch.exp(-bias * sampled.sum(dim=1, keepdim=True).float())
        ratio = batch["importance_sampling_ratio"]
        assert ratio.shape == expected.shape
        torch.testing.assert_close(ratio[ratio > 0], expected[ratio > 0], atol=2e-3, rtol=2e-2)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def of_length(tmp_path: Path, actor, monkeypatch, **settings) -> Mem1GRPOTrainer:
    """A trainer whose engine is made by TRL, with a longest sequence."""
    tokenizer = tiny_tokenizer()
    made = []
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.VLLMGeneration",
        lambda model, **kwargs: made.append(kwargs) or RecordedVLLM(model, tokenizer),
    )
    args = Mem1GRPOConfig(
        **trainer_arguments(
            tmp_path,
            max_turns=4,
            max_observation_length=20,
            num_generations=2,
            use_vllm=True,
            **settings,
        )
    )
    trainer = Mem1GRPOTrainer(
        model=actor, args=args, train_dataset=lookup_dataset(8), processing_class=tokenizer,
        environment_factory=LookupEnvironment, protocol=SHORT,
    )  # fmt: skip
    assert [one["max_model_length"] for one in made] == [args.vllm_max_model_length]
    return trainer


def test_contexts_stay_within_the_longest_sequence_of_vllm(tmp_path, actor, monkeypatch):
    """A longer one ended the run: vLLM raises, and with it the step."""
    free = of_length(tmp_path, actor, monkeypatch)
    positions = free.model.config.max_position_embeddings
    assert free.settings.max_context_length == positions - 12  # max_completion_length is 12
    for length in (52, positions + 100):
        held = of_length(tmp_path, actor, monkeypatch, vllm_max_model_length=length)
        assert held.settings.max_context_length == min(length, positions) - 12
        assert held.rollout.settings.max_context_length == held.settings.max_context_length
    with pytest.raises(ValueError, match=r"A context may need .* but only 10 are allowed"):
        of_length(tmp_path, actor, monkeypatch, vllm_max_model_length=22)
    full = of_length(tmp_path, actor, monkeypatch, vllm_max_model_length=22, context="full")
    full.train()
    assert max(len(prompt) for call in full.vllm_generation.calls for prompt in call["prompts"]) <= 10
    assert full.state.log_history[0]["episode/stop_reason/context_overflow"] > 0


def test_a_longest_sequence_that_budgets_exceed_is_refused_with_the_configuration(tmp_path):
    for context, wanted in ((500, 564), (None, 65)):
        with pytest.raises(
            ValueError, match=f"must add up to at most 64, which is vllm_max_model_length, got {wanted}"
        ):
            Mem1GRPOConfig(
                **trainer_arguments(
                    tmp_path, use_vllm=True, vllm_max_model_length=64, max_completion_length=64, max_context_length=context,
                    num_generations=2,
                )
            )  # fmt: skip
    unused = Mem1GRPOConfig(
        **trainer_arguments(tmp_path, vllm_max_model_length=64, max_completion_length=64, num_generations=2)
    )
    assert not unused.use_vllm
