"""Steps of fixed shape against the model as it is; what a graph replays is stood in for, since capturing needs a GPU."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.contexts import next_context
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import DynamicCache

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.step_graphs import StepGraphs, _is_step

STOPS = [*"aeiou", *"0123456789"]


def replays():
    """As graphs of one pool: they compute into the tensors that they were captured with, and the pool is gone with the last of them."""
    pool, used = weakref.WeakSet(), []

    class Graph:
        def __init__(self, function):
            self.function, self.result = function, function().clone()

        def replay(self):
            self.result.copy_(self.function())

    def capture(function):
        gc.collect()  # a function here holds the step that it belongs to
        if used and not pool:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        used.append(1)
        graph = Graph(function)
        pool.add(graph)
        return graph.replay, graph.result

    return capture


def graphs():
    return StepGraphs(replays, "cpu")


def play(model, found, context="mem1", temperature=0.0, turns=4, parked=0, tokens=20):
    """Turns of a batch, of which rows come and go; with the graphs `found`, or none."""
    generator = random.Random(1)
    settings = AgentSettings(max_completion_length=tokens, temperature=temperature)
    generate = TransformersGenerator(model, tiny_tokenizer(), settings, parked=parked, cuda_graphs=False)
    generate._cache.graphs = found

    def some(most):
        return [generator.randrange(2, 250) for _ in range(generator.randint(1, most))]

    prompts = [some(40) for _ in range(7)]
    history = [[] for _ in prompts]
    record = []
    torch.manual_seed(0)
    for turn in range(turns):
        rows = [row for row in range(len(prompts)) if (row + turn) % 3]
        contexts = [next_context(context, prompts[row], history[row]) for row in rows]
        for row, done in zip(rows, generate(contexts, [STOPS] * len(rows))):
            history[row].append([*done.ids, *some(30)])
            record.append(done)
    return record


def agree(one, other):
    for mine, plain in zip(one, other, strict=True):
        assert mine.ids == plain.ids and mine.ended == plain.ended
        torch.testing.assert_close(torch.tensor(mine.logprobs), torch.tensor(plain.logprobs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_steps_of_fixed_shape_change_nothing(architecture, context, attention):
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    found = graphs()
    agree(play(model, found, context), play(model, None, context))
    assert found.captured >= 1 and found.replayed > 20 * found.captured


@pytest.mark.parametrize("parked", [0, 5])
def test_sampled_turns_and_parked_rows(parked):
    model, found = tiny_model("llama"), graphs()
    agree(play(model, found, temperature=1.0, parked=parked), play(model, None, temperature=1.0, parked=parked))
    assert found.replayed


def test_a_long_turn_outgrows_its_columns():
    model, found = tiny_model("llama"), graphs()
    generate = TransformersGenerator(
        model, tiny_tokenizer(), AgentSettings(max_completion_length=700), cuda_graphs=False
    )
    prompts, never = [[5, 6, 7], [8, 9]], [[], []]
    expected = generate(prompts, never)
    generate.release()
    generate._cache.graphs = found
    agree(generate(prompts, never), expected)
    assert found.captured == 2  # for 512 and 1024 columns


def test_a_larger_batch_needs_larger_buffers():
    model, found = tiny_model("llama"), graphs()
    generate = TransformersGenerator(
        model, tiny_tokenizer(), AgentSettings(max_completion_length=20), cuda_graphs=False
    )
    few, many = [[5, 6, 7], [8, 9]], [[2 + row, 3] for row in range(9)]
    expected = [generate(prompts, [[]] * len(prompts)) for prompts in (few, many, few)]
    generate._cache.graphs = found
    for prompts, one in zip((few, many, few), expected):
        agree(generate(prompts, [[]] * len(prompts)), one)
    assert found.captured == 3


def test_a_step_with_another_tensor_is_not_captured():
    """A graph would leave it out."""
    model = tiny_model("llama")
    ids, mask = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 4)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(2, 3, dtype=torch.long), past_key_values=cache, use_cache=True)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": 3 * ids, "use_cache": True, "cache": cache}
        assert _is_step(inputs, cache, "cache")
        assert not _is_step({**inputs, "token_type_ids": torch.zeros(2, 1)}, cache, "cache")


def test_an_adapter():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny_model("llama"), config).eval()
    found = graphs()
    agree(play(model, found), play(model, None))
    assert found.replayed
    assert "forward" not in vars(model.get_base_model())


def test_new_weights_are_seen_after_a_release():
    model, found = tiny_model("llama"), graphs()
    play(model, found)
    found.clear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    agree(play(model, found), play(model, None))


def test_a_model_that_depends_on_the_shape_is_left_alone(caplog):
    model, found = tiny_model("llama"), graphs()
    inner = model.model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        if kwargs["attention_mask"].dim() == 4:
            output.last_hidden_state = output.last_hidden_state + 1
        return output

    model.model.forward = forward
    agree(play(model, found), play(model, None))
    assert not found.replayed
    assert len([line for line in caplog.messages if "without CUDA graphs" in line]) == 1
    assert "differ by up to" in caplog.text


def test_what_cannot_be_captured_is_said_once_and_generated_without(caplog):
    def broken():
        def capture(function):
            raise RuntimeError("operation not permitted when stream is capturing")

        return capture

    model, found = tiny_model("llama"), StepGraphs(broken, "cpu")
    agree(play(model, found), play(model, None))
    assert [line for line in caplog.messages if "CUDA graphs" in line] == [
        "Tokens are generated without CUDA graphs, which takes longer: a step of fixed shape failed: RuntimeError: operation not "
        "permitted when stream is capturing."
    ]


def test_why_a_model_is_not_captured():
    model = tiny_model("llama")
    assert StepGraphs().why_not(model) == "its weights are not on one GPU"
    assert graphs().why_not(model) is None
    with torch.autocast("cpu"):
        assert "autocast" in graphs().why_not(model)
    hook = model.lm_head.register_forward_hook(lambda *args: None)
    assert "a Linear has a hook" in graphs().why_not(model)
    hook.remove()
    model.set_attn_implementation("flex_attention")
    assert graphs().why_not(model) == "its attention is flex_attention"


def test_a_turn_that_fails_leaves_the_model_as_it_was():
    model, found = tiny_model("llama"), graphs()
    with pytest.raises(KeyError), found.attached(model):
        raise KeyError
    assert "forward" not in vars(model)


def test_keys_are_held_once_after_a_call():
    """Not in the buffers of the first pass, too, which were copied to where graphs read."""
    model, found = tiny_model("llama"), graphs()
    generate = TransformersGenerator(
        model, tiny_tokenizer(), AgentSettings(max_completion_length=9), cuda_graphs=False
    )
    generate._cache.graphs = found
    generate([[5, 6, 7], [8, 9]], [[], []])
    (block,) = generate._cache._blocks
    for layer, (store, _) in zip(block.cache.layers, found._stores):
        assert layer._room == [] and layer._views == (None, None)
        assert layer.keys.is_contiguous() and layer.keys.data_ptr() != store.data_ptr()


@pytest.mark.parametrize("on", [True, False])
def test_agents_and_trainers_are_told_whether_to_use_graphs(tmp_path, on):
    agent = Mem1Agent(tiny_model("llama"), tiny_tokenizer(), SHORT, cuda_graphs=on)
    assert (agent.generate._cache.graphs is not None) is on
    arguments = trainer_arguments(tmp_path, num_generations=2, cuda_graphs=on)
    trainer = Mem1GRPOTrainer(
        model=tiny_model("llama"),
        args=Mem1GRPOConfig(**arguments),
        train_dataset=lookup_dataset(4),
        processing_class=tiny_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    assert (trainer._prefix_cache.graphs is not None) is on
