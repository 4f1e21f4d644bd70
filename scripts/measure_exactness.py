"""
Hold families of models against scoring every turn on its own in plain transformers, and write docs/exactness.md.

    python scripts/measure_exactness.py

Each family is tiny, with random weights in float32, and goes through a trainer's self-check, a sampler and, on random
trajectories of three turns, log-probs and gradients. How large the error of `paper` is depends on the weights; that the other two
layouts differ by rounding only does not.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, StopReason, Trajectory, Turn, score_trajectories
from mem1_trl.rollout.prefix_cache import PrefixCache
from mem1_trl.rollout.sampler_check import sampler_traits

PAGE = Path(__file__).parent.parent / "docs" / "exactness.md"
VOCABULARY = 320
LONGEST = 256
"""Tokens of a context and its completion; windows and chunks of the families are as long, or 16."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
LONG_ROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
    "original_max_position_embeddings": LONGEST,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}

GEMMA_4 = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "global_head_dim": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
}


def _without(*names: str, **changes: Any) -> dict[str, Any]:
    return {**{name: value for name, value in SIZES.items() if name not in names}, **changes}


def _windows(size: int, **changes: Any) -> dict[str, Any]:
    return {**SIZES, "sliding_window": size, **changes}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", SIZES),
    "Qwen2": ("qwen2", SIZES),
    "Qwen3": ("qwen3", SIZES),
    "Gemma": ("gemma", SIZES),
    "GPT-2": ("gpt2", GPT2),
    "GPT-J": ("gptj", {**GPT2, "rotary_dim": 8}),
    "GPT-NeoX": ("gpt_neox", SIZES),
    "OPT": ("opt", SIZES),
    "Phi": ("phi", SIZES),
    "Phi-3": ("phi3", SIZES),
    "Phi-3 128k (longrope)": ("phi3", {**SIZES, **LONG_ROPE}),
    "Llama, dynamic NTK": ("llama", {**SIZES, "max_position_embeddings": LONGEST, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    "Llama, YaRN": ("llama", {**SIZES, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}}),
    "StableLM": ("stablelm", SIZES),
    "StarCoder2": ("starcoder2", SIZES),
    "OLMo 2": ("olmo2", SIZES),
    "Cohere": ("cohere", SIZES),
    "Granite": ("granite", SIZES),
    "SmolLM3": ("smollm3", SIZES),
    "GLM-4": ("glm4", SIZES),
    "Seed-OSS": ("seed_oss", SIZES),
    "Ernie 4.5": ("ernie4_5", SIZES),
    "HunYuan": ("hunyuan_v1_dense", SIZES),
    "Nemotron": ("nemotron", SIZES),
    "DiffLlama": ("diffllama", SIZES),
    "Bloom (ALiBi)": ("bloom", SIZES),
    "MPT (ALiBi)": ("mpt", SIZES),
    "Mistral, window 256": ("mistral", _windows(LONGEST)),
    "Mistral, window 16": ("mistral", _windows(16)),
    "Qwen3, window 16 in two of three": ("qwen3", _windows(16, use_sliding_window=True, max_window_layers=1)),
    "Gemma 2, window 256": ("gemma2", _windows(LONGEST, query_pre_attn_scalar=16)),
    "Gemma 3, window 256": ("gemma3_text", _windows(LONGEST, query_pre_attn_scalar=16)),
    "Gemma 3, window 16": ("gemma3_text", _windows(16, query_pre_attn_scalar=16)),
    "OLMo 3, window 256": ("olmo3", _windows(LONGEST)),
    "Gemma 4, window 16": ("gemma4_text", _windows(16, **GEMMA_4)),
    "OLMo 3, window 16": ("olmo3", _windows(16)),
    "Cohere 2, window 256": ("cohere2", _windows(LONGEST)),
    "EXAONE 4, window 256": ("exaone4", _windows(LONGEST)),
    "gpt-oss, window 256": ("gpt_oss", _windows(LONGEST, **EXPERTS)),
    "gpt-oss, window 16": ("gpt_oss", _windows(16, **EXPERTS)),
    "Llama 4, chunks of 256": ("llama4_text", {**SIZES, **EXPERTS, "attention_chunk_size": LONGEST, "intermediate_size_mlp": 96}),
    "Qwen3-MoE": ("qwen3_moe", {**SIZES, **EXPERTS}),
    "Mixtral": ("mixtral", {**SIZES, **EXPERTS}),
    "OLMoE": ("olmoe", {**SIZES, **EXPERTS}),
    "GLM-4-MoE": ("glm4_moe", {**SIZES, **EXPERTS}),
    "DeepSeek-V2": ("deepseek_v2", _without("head_dim", **EXPERTS, **LATENT)),
    "DeepSeek-V3": ("deepseek_v3", _without("head_dim", **EXPERTS, **LATENT)),
    "MiniCPM3": ("minicpm3", {**SIZES, **LATENT, "head_dim": 24}),
    "Mamba": ("mamba", {**SIZES, "state_size": 8}),
    "Mamba-2": ("mamba2", {**SIZES, "num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}),
    "Bamba": ("bamba", {**SIZES, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}),
    "LFM2": ("lfm2", {**SIZES, "layer_types": ["conv", "full_attention", "conv"]}),
    "Qwen3-Next": ("qwen3_next", {**SIZES, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}),
    "Qwen3.5": ("qwen3_5_text", {**SIZES, **LINEAR, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "rope_parameters": MROPE}),
    "Falcon-H1": ("falcon_h1", {**SIZES, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}),
    "OLMo Hybrid": ("olmo_hybrid", {**SIZES, **LINEAR, "linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}),
    "MiniMax": ("minimax", {**SIZES, **EXPERTS, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}),
    "RecurrentGemma": ("recurrent_gemma", SIZES),
    "RWKV": ("rwkv", SIZES),
    "Qwen2.5-VL, text": ("qwen2_5_vl", {"text_config": _without("head_dim", "pad_token_id", rope_parameters=MROPE), "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}, "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}),
    "Qwen3-VL, text": ("qwen3_vl", {"text_config": _without("pad_token_id", rope_parameters=MROPE), "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}, "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}),
}  # fmt: skip

INTRODUCTION = """# Exactness, by family of models

Held against the plain model: every turn scored on its own in plain transformers, with no padding, no mask and no cache. Tiny models
with random weights in float32; contexts of at most {longest} tokens. Written by

```bash
python scripts/measure_exactness.py    # {minutes}
```

with transformers {transformers} and torch {torch}, on a CPU.

- *layout*: what a trainer uses after its self-check, `layout="packed"` being asked for.
- *log-probs*: of a toy trajectory by TRL's code in that layout (the self-check), largest difference in nats.
- *gradient*: of the summed log-probs of two random trajectories of three turns, relative error.
- *sampler*: log-probs recorded in generation, largest difference in nats.
- *batches*: how contexts go to the sampler: *cached* (padded, keys and values of earlier turns kept), *padded* (nothing kept) or
  *one length at a time*, where padding or kept keys change what the model computes.

"""

BETWEEN = """
## Beside the stitched sequence

MEM1's own mask over one sequence (`layout="paper"`) and the two exact layouts, on those random trajectories. How large its error is
depends on the weights.

| family | layout | log-prob, mean abs. difference | largest | gradient, relative error |
|---|---|---|---|---|
"""

CLOSING = """
## The self-check

A trainer does the first of these when it is built (`check="on"`): a toy trajectory, one of whose contexts is as long as the run's
may be (2,048 tokens at most, 512 on a CPU), is sampled and scored in the run's layout and held against the plain model, in the data type of the
weights. A layout that is off is replaced by `per_turn` with one line in the log, and refused if that is off too; what it finds about
padding and kept keys is used by [`Mem1Agent`] as well. `score_trajectories`, which has no trainer, does the part about `packed` once for each model. During training `sampling/max_logp_difference` is the same comparison on real
trajectories, and in float32 a first batch that is off by more than 0.1 nats ends the run.

Positions that depend on the length of the whole batch (`longrope`, dynamic NTK scaling) are exact below the length at which they
change, so that contexts are limited to it.
"""

Scores = list[torch.Tensor]


@dataclass
class Row:
    """What was measured for a family; `refused` is why no trainer can be built."""

    layout: str = ""
    logprobs: float = 0.0
    gradient: float = 0.0
    sampler: float | None = None
    batches: str = ""
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused} | | | |"
        sampler = "" if self.sampler is None else f"{self.sampler:.0e}"
        return f"`{self.layout}` | {self.logprobs:.0e} | {self.gradient:.0e} | {sampler} | {self.batches} |"


def build_model(name: str) -> Any:
    """A tiny random model of a family, whose weights are large enough for the context to matter."""
    kind, sizes = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes)
    auto = AutoModelForImageTextToText if "vision_config" in sizes else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not any(part in key for part in ("A_log", "embed", "wte", "wpe", "lm_head")):
                parameter.mul_(3.0)
    return model.eval()


def random_trajectory(generator: random.Random, turns: int = 3) -> Trajectory:
    """Token ids in the shape of an agent's episode."""

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, 290) for _ in range(generator.randint(low, high)))

    past: tuple[int, ...] = ()
    prompt, done = ids(20, 40), []
    for _ in range(turns):
        completion = ids(5, 20)
        done.append(Turn(prompt_ids=prompt + past, completion_ids=completion))
        past = completion + ids(5, 40)
    return Trajectory(turns=done, stop_reason=StopReason.ANSWER)


def truth(model: Any, trajectories: list[Trajectory]) -> Scores:
    """Log-probs of every turn by the plain model."""
    scores = []
    for trajectory in trajectories:
        for turn in trajectory.turns:
            ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
            logits = model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
            targets = ids[0, len(turn.prompt_ids) :, None]
            scores.append(torch.log_softmax(logits, -1).gather(1, targets).squeeze(1))
    return scores


def gradient(model: Any, scores: Scores) -> torch.Tensor:
    """Of the summed log-probs, in all weights."""
    model.zero_grad()
    torch.cat(scores).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def errors(model: Any, layout: str) -> tuple[float, float, float]:
    """Mean and largest error of log-probs and relative error of the gradient, on random trajectories."""
    generator = random.Random(0)
    trajectories = [random_trajectory(generator) for _ in range(2)]
    expected = truth(model, trajectories)
    reference = gradient(model, expected)
    scores = [s for row in score_trajectories(model, trajectories, layout=layout) for s in row]
    gap = (torch.cat(scores) - torch.cat(expected)).abs().detach()
    error = (gradient(model, scores) - reference).norm() / reference.norm()
    return float(gap.mean()), float(gap.max()), float(error)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word for each token id."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build_trainer(model: Any, directory: str) -> Mem1GRPOTrainer:
    """A trainer whose contexts may have as many tokens as the limit of this page."""
    completion = 16
    args = Mem1GRPOConfig(
        output_dir=directory,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=completion,
        max_context_length=LONGEST - completion,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    rows = Dataset.from_dict({"prompt": ["w5 w6"] * 4})
    return Mem1GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), args, rows, processing_class=tokenizer()
    )


def measure(name: str) -> Row:
    """One row of the table."""
    model = build_model(name)
    with tempfile.TemporaryDirectory() as directory:
        try:
            trainer = build_trainer(model, directory)
        except ValueError as problem:
            return Row(refused=_reason(str(problem)))
    check = trainer.self_check
    assert check is not None
    traits = sampler_traits(trainer.model, _unasked)
    keeps = traits.caches and PrefixCache.fits(trainer.model, {})
    batches = "cached" if keeps else "padded" if traits.pads else "one length at a time"
    *_, of_gradient = errors(model, trainer.layout)
    sampler = None if check.sampler is None else check.sampler.largest
    return Row(trainer.layout, check.layouts[trainer.layout].largest, of_gradient, sampler, batches)


def _unasked(*_: Any) -> Any:
    raise AssertionError("the trainer has asked the model already")


def _reason(message: str) -> str:
    begin = message.find("toy trajectory")
    return message[begin + len("toy trajectory ") :].split(". What can be")[0] if begin >= 0 else message


def table() -> Iterator[str]:
    """The page, line by line."""
    yield "| family | layout | log-probs | gradient | sampler | batches |\n|---|---|---|---|---|---|\n"
    for name in FAMILIES:
        yield f"| {name} | {measure(name)}\n"
    yield BETWEEN
    for name in ("Llama", "Qwen2", "Qwen3", "Gemma", "GPT-2"):
        for layout in ("packed", "per_turn", "paper"):
            yield "| {} | `{}` | {:.1e} | {:.1e} | {:.1e} |\n".format(name, layout, *errors(build_model(name), layout))
    yield CLOSING


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    began, lines = time.perf_counter(), []
    for line in table():
        print(line, end="", flush=True)
        lines.append(line)
    minutes = max(1, round((time.perf_counter() - began) / 60))
    spent = f"about {minutes} minute{'s' if minutes > 1 else ''}"
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    PAGE.write_text(INTRODUCTION.format(longest=LONGEST, minutes=spent, **versions) + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
