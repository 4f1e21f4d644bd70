"""
Tokens and time of an update in a tree beside one row per turn, for tiny models with windows, sinks and recurrent layers.

    python benchmarks/trees.py --repeats 3

Forward and backward of a summed log-prob of eight MEM1 trajectories. `one call` is `per_turn` with all turns padded to the longest, as
it was before turns of like length went together. Variants take turns in one run, so that ratios hold under whatever else runs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mem1_trl.trajectory import Trajectory, Turn
from mem1_trl.update.row_batch import RowBatch
from mem1_trl.update.rows import build_row
from mem1_trl.update.scoring import forward_rows, forwarded_tokens, token_logprobs
from mem1_trl.update.unfolding import unfold_turns

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
MIXED = ["sliding_attention", "full_attention"] * 2
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Gemma 3, window 128": ("gemma3_text", {"sliding_window": 128, "layer_types": MIXED, "query_pre_attn_scalar": 32}),
    "Qwen3.5": (
        "qwen3_5_text",
        {**DELTA, "layer_types": HYBRID, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}},
    ),
}  # fmt: skip


def trajectories(turns: int, prompt: int, seed: int = 0) -> list[Trajectory]:
    """Eight MEM1 trajectories of one task, whose states and observations differ much in length."""
    generator = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, 512) for _ in range(generator.randint(low, high)))

    task, episodes = ids(prompt, prompt), []
    for _ in range(8):
        kept: tuple[int, ...] = ()
        done = []
        for _ in range(turns):
            completion = ids(20, 120)
            done.append(Turn(prompt_ids=task + kept, completion_ids=completion))
            kept = completion + ids(0, 250)
        episodes.append(Trajectory(turns=done))
    return episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=400)
    args = parser.parse_args()
    print("| family | variant | tokens | processor time / one call | summed log-prob |\n|---|---|---|---|---|")
    for name, (kind, sizes) in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **sizes}), dtype=torch.float32)
        rows = RowBatch.from_rows([build_row(t, "packed") for t in trajectories(args.turns, args.prompt)])
        turns = unfold_turns(rows)
        assert turns is not None
        variants = {"one call": ("per_turn", True), "per_turn": ("per_turn", False), "packed": ("packed", False)}
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        sums: dict[str, float] = {}
        for _ in range(args.repeats + 1):
            for variant, (layout, in_one_call) in variants.items():
                model.zero_grad(set_to_none=True)
                began = time.process_time()
                (values,) = forward_rows(rows, layout, model, token_logprobs(model), in_one_call)
                assert values is not None
                values.sum().backward()
                seconds[variant].append(time.process_time() - began)
                sums[variant] = float(values.detach().sum())
        reference = statistics.median(seconds["one call"][1:])  # the first is for warming up
        for variant, (layout, in_one_call) in variants.items():
            tokens = turns.input_ids.numel() if in_one_call else forwarded_tokens(rows, layout, model)
            ratio = statistics.median(seconds[variant][1:]) / reference
            print(f"| {name} | {variant} | {tokens:,} | {ratio:.2f} | {sums[variant]:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
