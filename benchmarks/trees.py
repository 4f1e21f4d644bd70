"""
Tokens and time of an update in a tree beside one row per turn, for tiny models with windows, sinks and recurrent layers.

    python benchmarks/trees.py --threads 1 --clock cpu

Forward and backward of a summed log-prob of eight MEM1 trajectories. The baseline is one row for each turn, all padded to the longest in
one call; `per_turn` as the package does it forwards turns of like length together.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from typing import Any

import torch
from options import parse_arguments
from report import Report
from timing import compare
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


def measure(report: Report, args: Any, name: str) -> None:
    """Time and tokens of the variants for one family; all must agree on the summed log-prob."""
    kind, sizes = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **sizes}), dtype=torch.float32)
    rows = RowBatch.from_rows([build_row(t, "packed") for t in trajectories(args.turns, args.prompt)])
    turns = unfold_turns(rows)
    assert turns is not None

    def update(layout: str, in_one_call: bool) -> float:
        model.zero_grad(set_to_none=True)
        (values,) = forward_rows(rows, layout, model, token_logprobs(model), in_one_call)
        assert values is not None
        values.sum().backward()
        return float(values.detach().sum())

    variants = {
        "per_turn, one call": partial(update, "per_turn", True),
        "per_turn": partial(update, "per_turn", False),
        "packed": partial(update, "packed", False),
    }
    timings = compare(variants, args.repeats, "per_turn, one call", warmup=1, label=name)
    tokens = {variant: forwarded_tokens(rows, variant, model) for variant in ("per_turn", "packed")}
    tokens["per_turn, one call"] = turns.input_ids.numel()
    values = {
        variant: {"tokens": tokens[variant], "summed_logprob": timing.result} for variant, timing in timings.items()
    }
    sums = [timing.result for timing in timings.values()]
    assert max(sums) - min(sums) <= 1e-4 * abs(sums[0]), f"{name}: the variants disagree: {sums}"
    report.add(name, timings, "per_turn, one call", values=values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--turns", type=int, default=6)
        parser.add_argument("--prompt", type=int, default=400)

    args = parse_arguments(__doc__, add)
    if args.smoke:
        args.turns, args.prompt = 2, 20
    settings = {"turns": args.turns, "prompt": args.prompt, "trajectories": 8}
    report = Report(
        "trees",
        args,
        {**settings, **{name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}},
    )
    for name in FAMILIES:
        measure(report, args, name)
    report.finish()


if __name__ == "__main__":
    main()
