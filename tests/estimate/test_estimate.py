"""The estimate is held against a real small run: tensors, tokens and operations, and against arithmetic by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from support.image_models import tiny_image_model
from support.trainer_helpers import trainer_arguments
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig, Mem1PPOTrainer, Trajectory, Turn, compose_objectives
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.estimate import EpisodeShape, ModelShape, estimate_run
from mem1_trl.estimate.memory import state_bytes
from mem1_trl.facts import load_facts
from mem1_trl.update.rows import build_row

ASSET = str(Path(__file__).parents[2] / "examples" / "assets" / "tiny-mem1")
LORA = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
QWEN = AutoConfig.for_model(
    "qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
)  # fmt: skip
"""Qwen2.5-7B."""


class Measured(TrainerCallback):
    """Two steps of a real run: the bytes of the first are counted, and the tokens and operations of the second."""

    def __init__(self, trainer):
        self.trainer, self.rollout_flops, self.steps, self.tokens, self.grads = trainer, 0, [], [], 0
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.counter = FlopCounterMode(display=False)  # which changes what is allocated
        sample, extend = trainer._sample, trainer.extend_batch

        def count_sampling(prompts):
            before = self.counter.get_total_flops()
            completions = sample(prompts)
            self.rollout_flops += self.counter.get_total_flops() - before
            return completions

        def extend_batch(batch, trajectories, rewards):
            if trainer.state.global_step == 0:
                self.profiler.start()
            self.steps.append(trajectories)
            self.tokens.append(trainer.forwarded_tokens(trainer.row_batch(batch)))
            return extend(batch, trajectories, rewards)

        trainer._sample, trainer.extend_batch = count_sampling, extend_batch
        trainer.add_callback(self)
        trainer.train()
        self.update_flops = self.counter.get_total_flops() - self.rollout_flops
        held = peak = 0
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        self.pass_bytes = peak - self.grads

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.counter.__enter__()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.profiler.stop()
        parameters = {id(p): p for module in self.trainer.trained_modules for p in module.parameters()}
        self.grads = sum(p.grad.nbytes for p in parameters.values() if p.grad is not None)

    def on_train_end(self, args, state, control, **kwargs):
        self.counter.__exit__(None, None, None)

    def weights(self):
        reference = [] if self.trainer.ref_model is None else [self.trainer.ref_model]
        modules = [*self.trainer.trained_modules, *reference]
        return sum({p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}.values())

    def states(self):
        states = self.trainer.optimizer.state.values()
        return sum(v.nbytes for state in states for v in state.values() if torch.is_tensor(v) and v.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_real_step_takes_what_was_estimated(tmp_path, peft_config):
    facts = load_facts()
    arguments = trainer_arguments(
        tmp_path, max_steps=2, max_turns=4, max_completion_length=64, max_observation_length=200,
        per_device_train_batch_size=8, gradient_checkpointing=True, check="off", conversational=None,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    args = Mem1PPOConfig(**arguments)
    trainer = Mem1PPOTrainer(
        model=ASSET,
        args=args,
        train_dataset=compose_objectives(facts.questions("train"), n=2, question="keywords"),
        environment_factory=RetrievalQAEnvironment.factory(facts.corpus, top_k=1),
        peft_config=peft_config,
    )
    found = Measured(trainer)
    config = AutoConfig.from_pretrained(ASSET)
    first, second = (
        estimate_run(config, args, EpisodeShape.mean(trajectories), peft_config=peft_config)
        for trajectories in found.steps
    )
    assert all(len(t.turns) >= 1 for t in found.steps[1]) and first.episodes == second.episodes == 8
    memory = dict(first.memory)
    cache, activations = memory.pop("keys and values"), memory.pop("activations")
    gradients, states = memory.pop("gradients"), memory.pop("optimizer")
    assert sum(memory.values()) == pytest.approx(found.weights(), rel=0.01)
    assert gradients == pytest.approx(found.grads, rel=0.01)
    assert states == pytest.approx(found.states(), rel=0.01)
    assert activations == pytest.approx(found.pass_bytes, rel=0.2)
    assert second.generated == pytest.approx(sum(t.num_generated_tokens for t in found.steps[1]))
    assert second.trained == pytest.approx(found.tokens[1], rel=0.2)
    assert second.update_flops == pytest.approx(found.update_flops, rel=0.2)
    assert second.rollout_flops == pytest.approx(found.rollout_flops, rel=0.2)
    assert cache > 0


def episode_of(prompt: int, turns: int, completion: int, observation: int) -> Trajectory:
    """An episode whose every token is another one, so that nothing is shared by chance."""
    number = iter(range(10**6))
    task = [next(number) for _ in range(prompt)]
    played, kept = [], []
    for _ in range(turns):
        written = [next(number) for _ in range(completion)]
        played.append(Turn(prompt_ids=[*task, *kept], completion_ids=written, logprobs=None, text="", observation=""))
        kept = [*written, *(next(number) for _ in range(observation))]
    return Trajectory(turns=played, reward=0.0)


@pytest.mark.parametrize(
    ("prompt", "turns", "completion", "observation"), [(7, 1, 5, 3), (7, 4, 5, 3), (30, 6, 10, 0)]
)
def test_tokens_are_those_of_the_rows(prompt, turns, completion, observation):
    trajectory = episode_of(prompt, turns, completion, observation)
    shape = EpisodeShape.mean([trajectory])
    assert shape == EpisodeShape(prompt, turns, completion, observation if turns > 1 else 0)
    for layout in ("packed", "paper"):
        row = build_row(trajectory, layout)
        assert shape.trained(layout) == len(row.prompt_ids) + len(row.completion_ids)
    lengths = [(len(turn.prompt_ids), len(turn.completion_ids)) for turn in trajectory.turns]
    assert shape.trained("per_turn") == sum(map(sum, lengths))
    assert shape.peak == max(map(sum, lengths))
    assert shape.read(prefix_cache=False) == sum(context for context, _ in lengths)
    assert shape.read(prefix_cache=True) == shape.read(prefix_cache=False) - (turns - 1) * prompt


def test_a_model_of_seven_billion_weights_by_hand():
    """Qwen2.5-7B has 7.62 billion weights, 6.53 of them below head and embeddings, as its card says."""
    shape = ModelShape.of(QWEN)
    assert shape.parameters == 7_615_616_512
    assert shape.parameters - 2 * 152064 * 3584 == pytest.approx(6.53e9, rel=0.002)
    assert (shape.heads_width, shape.keys_width) == (3584, 512)
    lora = ModelShape.of(QWEN, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert lora.adapters == 28 * 16 * ((3584 + 3584) + (3584 + 512))


def arguments(**kwargs):
    return trainer_arguments("out", **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **kwargs})


LARGE = EpisodeShape(prompt=400, turns=4, completion=300, observation=600)


def test_memory_of_published_ppo_by_hand():
    """Policy, reference and critic of their own, all trained by Adam in float32: 16 bytes a weight, 4 for the reference."""
    found = estimate_run(QWEN, Mem1PPOConfig(**arguments()), LARGE).memory
    policy, backbone = 7_615_616_512, 7_615_616_512 - 152064 * 3584
    assert found["policy"] == found["reference"] == 4 * policy and found["critic"] == 4 * backbone
    assert found["gradients"] == 4 * (policy + backbone) and found["optimizer"] == 8 * (policy + backbone)
    # Over eight GPUs by ZeRO-2: the policy's in shards, the critic's not
    split = estimate_run(QWEN, Mem1PPOConfig(**arguments()), LARGE, processes=8, shards=8).memory
    assert split["policy"] == split["reference"] == 2 * policy
    assert split["gradients"] == 2 * policy / 8 + 4 * backbone
    assert split["optimizer"] == 12 * policy / 8 + 8 * backbone
    # 0.5 bytes and a scale of 4 bytes for 64 weights, the rest in bfloat16; adapters in bfloat16, twice
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    small = estimate_run(
        QWEN, Mem1PPOConfig(**arguments()), LARGE, dtype="bfloat16", peft_config=adapter, bits=4
    ).memory
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert small["policy"] == pytest.approx(2 * (policy - linear) + linear * (0.5 + 4 / 64))
    assert small["adapters"] == 2 * 2 * 40_370_176 and "reference" not in small and "critic" not in small
    assert small["optimizer"] == 2 * 2 * 2 * 40_370_176


@pytest.mark.parametrize(
    "name", ["adamw_torch", "sgd", "adagrad", "rmsprop", "lion_32bit", "paged_lion_8bit", "adamw_8bit", "ademamix", "ademamix_8bit",
             "rmsprop_bnb", "rmsprop_bnb_8bit"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_optimizers_take_what_they_take(tmp_path, name, dtype):
    """Lion and Adagrad keep one number for each weight, AdEMAMix three, and those of bitsandbytes float32 for any weight."""
    weight = torch.nn.Parameter(torch.ones(256, 512, dtype=dtype))
    kind, given = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim=name))
    optimizer = kind([weight], **given)
    weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        pytest.skip(f"{name} does not run here: {error!r:.80}")
    kept = (value for value in optimizer.state[weight].values() if torch.is_tensor(value))
    taken = sum(value.nbytes for value in kept if value.numel() > 256)  # without the step and tables of quantization
    assert state_bytes(name, weight.element_size()) == pytest.approx(taken / weight.numel(), rel=0.02, abs=1e-6)


def test_an_adapter_that_is_merged_takes_a_copy_of_the_weights_that_it_changes():
    adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    plain, merged = (
        estimate_run(QWEN, Mem1PPOConfig(**arguments(merge_adapter=on)), LARGE, peft_config=adapter).memory
        for on in (False, True)
    )
    queries, values = 3584 * 3584 + 3584, 3584 * 512 + 512  # with their biases
    assert merged.pop("weights that are merged") == 4 * 28 * (queries + values)
    assert merged == plain


def test_what_is_left_out_is_not_counted():
    shared = estimate_run(QWEN, Mem1PPOConfig(**arguments(beta=0.0)), LARGE, value_model="shared").memory
    assert "critic" not in shared and "reference" not in shared
    grpo = estimate_run(QWEN, Mem1GRPOConfig(**arguments(num_generations=8, beta=0.0)), LARGE)
    assert "critic's head" not in grpo.memory and grpo.episodes == 8

    def within(tokens: int | None, steps: int = 8, processes: int = 1, **more: int) -> float:
        """Activations, with batches of so many micro-batches, of which a step takes four: with eight, a critic reads a batch twice."""
        settings = Mem1PPOConfig(**arguments(max_tokens_per_micro_batch=tokens, steps_per_generation=steps, **more))
        return estimate_run(QWEN, settings, LARGE, processes=processes).memory["activations"]

    one = within(None, per_device_train_batch_size=1)
    turn, trajectory = int(LARGE.peak), int(LARGE.trained("packed"))
    assert within(1) == within(turn) < within(2 * turn) < within(trajectory) == one, "a single turn is never cut"
    assert within(1, processes=2) == within(1), "and a trajectory is, by several processes as by one"
    assert within(turn, steps=4) == within(turn), "one that is cut is read twice by the critic"
    assert within(trajectory + 1, steps=4) < 0.6 * within(trajectory), (
        "and else its activations are gone before the policy's"
    )


def test_operations_of_one_weight():
    """Six for each weight and token trained, eight with checkpointing, twice for a critic, and two for each pass without gradient."""
    tiny = EpisodeShape(prompt=1, turns=1, completion=1, observation=0)
    shape = ModelShape.of(QWEN)
    below, head = 2 * shape.active * 2, 2 * 3584 * 152064
    plain = {"beta": 0.0, "gradient_checkpointing": False, "use_cpu": False}
    grpo = estimate_run(QWEN, Mem1GRPOConfig(**arguments(num_generations=8, **plain)), tiny)
    assert grpo.update_flops == pytest.approx(8 * 3 * (below + head), rel=1e-3)
    assert grpo.rollout_flops == pytest.approx(8 * (below + head), rel=1e-3)
    ppo = Mem1PPOConfig(**arguments(use_cpu=False, gradient_checkpointing=True))
    # learned: two models, forward, again, backward; not learned: policy and reference
    assert estimate_run(QWEN, ppo, tiny).update_flops == pytest.approx(8 * (10 * below + 5 * head), rel=1e-3)
    # and values, if the critic has changed when it learns
    ppo = Mem1PPOConfig(**arguments(use_cpu=False, gradient_checkpointing=True, steps_per_generation=8))
    assert estimate_run(QWEN, ppo, tiny).update_flops == pytest.approx(8 * (11 * below + 5 * head), rel=1e-3)


def test_time_follows_from_operations_and_is_calibrated_by_a_step():
    found = estimate_run(QWEN, Mem1PPOConfig(**arguments()), LARGE, processes=4)
    reached = found.utilization(seconds=100.0, peak_flops=1e15)
    assert found.seconds(1e15, update=reached, rollout=reached) == pytest.approx(100.0)
    half = estimate_run(QWEN, Mem1PPOConfig(**arguments()), LARGE, processes=2)
    assert half.episodes == found.episodes / 2
    assert half.seconds(1e15) == pytest.approx(found.seconds(1e15)), "twice the GPUs play twice the episodes"


def test_episodes_that_serve_several_steps_are_sampled_once():
    once, twice = (estimate_run(QWEN, Mem1PPOConfig(**arguments(num_iterations=n)), LARGE) for n in (1, 2))
    assert twice.generated == once.generated / 2 and twice.rollout_flops == pytest.approx(once.rollout_flops / 2)


def test_wrong_input_is_one_sentence():
    args = Mem1PPOConfig(**arguments())
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"):
        estimate_run(QWEN, args, LARGE, dtype="int8")
    with pytest.raises(ValueError, match="bits must be one of 4, 8, 16, got 3"):
        estimate_run(QWEN, args, LARGE, bits=3)
    adapter = LoraConfig(r=4, target_modules=["q_proj"])
    for settings, options, words in (
        ({"context": "full"}, {}, "the last turn alone, as with context='mem1', got context='full'"),
        ({"context": "external"}, {}, "the last turn alone, as with context='mem1', got context='external'"),
        ({}, {"value_model": "Shared"}, "value_model must be 'shared' or None in an estimate, got 'Shared'"),
        ({}, {"bits": 4}, "bits=4 needs peft_config, since quantized weights are not trained"),
        ({}, {"nested": True, "peft_config": adapter}, "nested=True needs bits=4"),
        ({}, {"processes": 0}, "processes must be a whole number of at least 1, got 0"),
        ({}, {"processes": 2, "shards": 4}, "shards must be a whole number from 1 to 2, got 4"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            estimate_run(QWEN, Mem1PPOConfig(**arguments(**settings)), LARGE, **options)
    with pytest.raises(ValueError, match="value_model='shared' needs a Mem1PPOConfig"):
        estimate_run(QWEN, Mem1GRPOConfig(**arguments(num_generations=8)), LARGE, value_model="shared")
    with pytest.raises(ValueError, match="turns of an episode must be at least 1, got 0"):
        EpisodeShape(prompt=5, turns=0, completion=5, observation=5)
    with pytest.raises(ValueError, match="peak_flops must be above 0, got 0"):
        estimate_run(QWEN, args, LARGE).seconds(0)


# Families

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1}
GLOBAL = {"head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8}
FAMILIES = {
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
    "deepseek_v3": {**SIZES, **LATENT, **ROUTED, "num_key_value_heads": 4, "first_k_dense_replace": 2},
    "gemma4_text": {
        **SIZES,
        **GLOBAL,
        "num_key_value_heads": 2,
        "vocab_size_per_layer_input": 100,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""Model type -> its sizes: linear layers of another class, keys and values of two sizes, heads that differ between layers."""


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_operations_are_those_of_the_model(family):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model, shape = AutoModelForCausalLM.from_config(config).eval(), ModelShape.of(config)
    tokens = 6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(torch.arange(tokens)[None], use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert numbers == tokens * shape.cached
    below = tokens * (2 * shape.active + 4 * tokens * shape.heads_width * shape.layers)
    assert counter.get_total_flops() == pytest.approx(below + tokens * 2 * shape.hidden * shape.vocabulary, rel=0.06)
    assert 0 < shape.linear <= shape.parameters


def test_a_model_without_attention_keeps_no_keys():
    without_heads = {name: size for name, size in SIZES.items() if name != "num_attention_heads"}
    config = AutoConfig.for_model(
        "mamba2", **{**without_heads, "num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}
    )
    found = estimate_run(config, Mem1PPOConfig(**arguments()), LARGE)
    assert found.memory["keys and values"] == 0.0 and found.update_flops > 0


def test_layers_that_share_their_weights_are_there_once_and_count_each_time():
    shape = ModelShape.of(AutoConfig.for_model("zamba2"))
    assert shape.linear < shape.parameters < shape.active


def test_a_model_that_also_reads_images_is_counted_whole_and_reads_text_with_a_part():
    model = tiny_image_model("qwen2_5_vl")
    shape = ModelShape.of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.active < shape.linear < shape.parameters
