"""vLLM's sleep mode with TRL's own `VLLMGeneration`; only the engine, `vllm.LLM`, is a stand-in, which refuses what a real one cannot do."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from trl.generation import vllm_generation

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings


class Engine:
    """Has weights of its own, which sleep of level 2 throws away together with the prefix cache."""

    def __init__(self, model, tokenizer):
        self.model = copy.deepcopy(model)
        self.sampler = TransformersGenerator(
            self.model, tokenizer, AgentSettings(max_completion_length=12, temperature=1.0)
        )
        self.awake: set[str] = {"weights", "kv_cache"}
        self.loaded: set[str] = set()
        self.did: list[str] = []
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=executor, model_config=SimpleNamespace(max_model_len=2048))

    def sleep(self, level):
        assert level == 2
        self.awake.clear()
        self.loaded.clear()
        self.did.append("sleep")

    def wake_up(self, tags):
        self.awake.update(tags)
        self.did.append(f"wake {', '.join(tags)}")

    def load_weights(self, weights):
        assert "weights" in self.awake, "memory of the weights is not mapped"
        parameters = dict(self.model.named_parameters())
        for name, value in weights:
            parameters[name].data.copy_(value)
            if name in self.loaded or not self.loaded:
                self.did.append("push")
                self.loaded.clear()
            self.loaded.add(name)

    def reset_prefix_cache(self):
        self.sampler.release()
        self.did.append("empty")

    def generate(self, prompts, sampling_params, use_tqdm):
        assert self.awake == {"weights", "kv_cache"}
        assert self.loaded == {name for name, _ in self.model.named_parameters()}
        self.did.append("generate")
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        completions = self.sampler(ids, [["</search>", "</answer>"]] * len(ids))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt,
                outputs=[
                    SimpleNamespace(
                        token_ids=list(one.ids),
                        logprobs=[
                            {token: SimpleNamespace(logprob=value, rank=1)}
                            for token, value in zip(one.ids, one.logprobs)
                        ],
                    )
                ],
            )
            for prompt, one in zip(ids, completions)
        ]


@pytest.fixture
def trainer(tmp_path, actor, tokenizer, monkeypatch):
    trainer = Mem1GRPOTrainer(
        model=actor,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, max_turns=4, max_observation_length=40, num_generations=2)),
        train_dataset=lookup_dataset(8),
        eval_dataset=lookup_dataset(4),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", lambda **kwargs: Engine(actor, tokenizer), raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **kwargs: kwargs, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    trainer.vllm_generation = vllm_generation.VLLMGeneration(
        actor, trainer.accelerator, tokenizer, enable_sleep_mode=True, max_completion_length=12
    )
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "colocate", -1
    trainer.vllm_generation.llm.did.clear()
    return trainer


def rollouts_of(did):
    """What the engine did between one sleep and the next."""
    rollouts = " ".join(did).split("sleep")
    assert rollouts.pop().strip() == "", "it sleeps in the end"
    return [one.split() for one in rollouts]


def test_the_engine_wakes_and_sleeps_once_for_a_rollout(trainer):
    trainer.train()
    rollouts = rollouts_of(trainer.vllm_generation.llm.did)
    assert len(rollouts) == 2, "one for each optimizer step"
    for did in rollouts:
        assert did[:6] == ["wake", "weights", "push", "empty", "wake", "kv_cache"]
        assert len(did) >= 8 and set(did[6:]) == {"generate"}, "several turns, and nothing between them"
    assert trainer.vllm_generation._llm_weights_sleeping and trainer.vllm_generation.enable_sleep_mode


def test_weights_that_sleep_has_thrown_away_are_pushed_again_at_the_same_step(trainer):
    for _ in range(2):
        trainer.evaluate()
    engine = trainer.vllm_generation.llm
    assert engine.did.count("push") == engine.did.count("sleep") == len(rollouts_of(engine.did))


def test_the_engine_sleeps_after_an_error_and_wakes_again(trainer):
    engine = trainer.vllm_generation.llm
    generate, calls = engine.generate, []

    def fail_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("too much")
        return generate(*args, **kwargs)

    engine.generate = fail_once
    with pytest.raises(MemoryError):
        trainer.train()
    assert engine.did[-1] == "sleep" and not engine.awake
    trainer.train()
    assert engine.did[-1] == "sleep"


def test_what_is_sampled_is_from_the_weights_of_the_step(trainer):
    engine, seen = trainer.vllm_generation.llm, []
    generate = engine.generate

    def compare(*args, **kwargs):
        same = [torch.equal(own, pushed) for own, pushed in zip(trainer.model.parameters(), engine.model.parameters())]
        seen.append(all(same))
        return generate(*args, **kwargs)

    engine.generate = compare
    trainer.train()
    assert all(seen) and len(seen) >= 4
