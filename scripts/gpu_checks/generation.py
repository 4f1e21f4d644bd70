"""Generation with CUDA graphs against generation without: the same tokens and log-probs, and the time of a token."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import torch
from support.helpers import tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.trainers.merged_adapter import merged_adapter

from .check import Check, Finding, Setting
from .exactness import FLOAT32, MODELS

STOPS = [[*"aeiou", *"0123456789"]]
ROWS, TURNS, TOKENS = 12, 4, 24
SMALL: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
"""The shape of SmolLM2-135M."""


def play(generate: TransformersGenerator, seed: int) -> list[Any]:
    """Turns of a batch whose contexts are a prompt, the last turn and an observation; fewer rows with each turn."""
    generator = random.Random(seed)

    def some(most: int) -> list[int]:
        return [generator.randrange(2, 250) for _ in range(generator.randint(1, most))]

    prompts = [some(60) for _ in range(ROWS)]
    contexts, record = prompts, []
    for turn in range(TURNS):
        completions = generate(contexts, STOPS * len(contexts))
        record += completions
        left = range(max(1, len(contexts) - 2 * turn))
        contexts = [[*prompts[row], *completions[row].ids, *some(90)] for row in left]
    generate.release()
    return record


def check_same(name: str, dtype: torch.dtype, setting: Setting) -> Finding:
    """Greedy turns of a tiny model with graphs and without."""
    finding = Finding()
    model = tiny_model(name, **MODELS[name]).to(setting.device, dtype)
    settings = AgentSettings(max_completion_length=TOKENS)
    with_graphs, without = (
        TransformersGenerator(model, tiny_tokenizer(), settings, cuda_graphs=graphs) for graphs in (True, False)
    )
    one, other = play(with_graphs, 0), play(without, 0)
    graphs: Any = with_graphs._cache and with_graphs._cache.graphs
    alike, gap = 0, 0.0
    for mine, plain in zip(one, other, strict=True):
        same = next(
            (i for i, (a, b) in enumerate(zip(mine.ids, plain.ids)) if a != b), min(len(mine.ids), len(plain.ids))
        )
        alike += mine.ids == plain.ids
        gap = max([gap, *(abs(a - b) for a, b in zip(mine.logprobs[:same], plain.logprobs[:same]))])
    finding.measured |= {"turns": len(one), "alike": alike, "captured": graphs.captured, "replayed": graphs.replayed}
    finding.expect("log-probs of the same tokens: nats", gap, FLOAT32 if dtype == torch.float32 else 0.2)
    if dtype == torch.float32:
        finding.expect_equal("all turns alike", alike, len(one))
    if setting.device == "cuda":
        finding.expect_equal("graphs were used", graphs.replayed > 0, True)
    return finding


def seconds_of(model: Any, rows: int, tokens: int, graphs: bool, greedy: bool = False) -> float:
    """Seconds of a token in a batch, the second of two calls."""
    settings = AgentSettings(max_completion_length=tokens, temperature=0.0 if greedy else 1.0)
    generate = TransformersGenerator(model, tiny_tokenizer(), settings, batch_size=rows, cuda_graphs=graphs)
    generate.eos_token_ids = []
    generator = random.Random(0)
    contexts = [[generator.randrange(2, 250) for _ in range(400)] for _ in range(rows)]
    for _ in range(2):
        began = time.perf_counter()
        done = generate(contexts, [[]] * rows)
        seconds = time.perf_counter() - began
    assert all(len(one.ids) == tokens for one in done)
    generate.release()
    return seconds / tokens


def check_speed(setting: Setting) -> Finding:
    """Time of a token of a model of 135M, with graphs over without, alone and with an adapter."""
    from peft import LoraConfig, get_peft_model

    finding = Finding()
    size = (
        {**SMALL, "num_hidden_layers": 2, "hidden_size": 72, "head_dim": 8, "intermediate_size": 64}
        if setting.short
        else SMALL
    )
    batches, tokens = ((4,), 4) if setting.short else ((1, 16, 128), 64)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**size))
    model = model.to(setting.device).eval()
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    for kind in ("plain", "adapter"):
        model = get_peft_model(model, lora).eval() if kind == "adapter" else model
        for rows in batches:
            graphs, without = (seconds_of(model, rows, tokens, on) for on in (True, False))
            finding.measured[f"{kind}, {rows} rows: ms a token"] = [1e3 * graphs, 1e3 * without]
            most = float("inf") if setting.short or setting.device != "cuda" else 0.8
            finding.expect(f"{kind}, {rows} rows: with graphs over without", graphs / without, most)
            if kind == "adapter":
                with merged_adapter(model):
                    merged = seconds_of(model, rows, tokens, True)
                finding.measured[f"merged adapter, {rows} rows: ms a token"] = 1e3 * merged
                finding.expect(f"{rows} rows: merged adapter over adapter", merged / graphs, most)
    return finding


def checks(short: bool) -> list[Check]:
    """One check for each model and data type, and the time of a token."""
    names = ("llama",) if short else ("llama", "qwen3", "gpt2")
    kinds = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    same = [
        Check(f"generation: {name}, {kind}", partial(check_same, name, dtype))
        for name in names
        for kind, dtype in kinds
    ]
    return [*same, Check("generation: time of a token", check_speed)]
