"""
What one policy update costs: forward and backward over MEM1-shaped trajectories, one layout beside the other.

    python benchmarks/update_step.py                       # all cases
    python benchmarks/update_step.py --only layouts        # layouts of one trajectory
    python benchmarks/update_step.py --only turns          # the same, from 4 to 64 turns
    python benchmarks/update_step.py --only groups         # eight samples of one task in a micro-batch
    python benchmarks/update_step.py --only ragged         # 2 and 20 turns in one micro-batch
    python benchmarks/update_step.py --only rate --hidden_size 512 --clock cpu --output benchmarks/results/update_rate.json
    python benchmarks/update_step.py --only memory --hidden_size 64 --repeats 1 --output benchmarks/results/update_memory.json

Layouts: `packed` (the default: a prefix tree, attention along its paths), `per_turn` (one row per turn), `paper` (MEM1's stitched row under its mask; not exact), `full history` (what an
agent that appends everything would train on: the same turns in one causal sequence).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from memory_and_flops import count_flops, peak_memory
from options import parse_arguments
from report import Report
from timing import compare
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mem1_trl import Trajectory, Turn
from mem1_trl.model_traits import enable_activation_checkpointing
from mem1_trl.update.row_batch import RowBatch
from mem1_trl.update.rows import build_row
from mem1_trl.update.scoring import forward_rows, forwarded_tokens, token_logprobs

VOCAB = 4096
PRODUCT = "a large matrix product"
STATE, ACTION, OBSERVATION = 150, 20, 500


def trajectory(generator: random.Random, prompt: list[int], turns: int, context: str = "mem1") -> Trajectory:
    """Random ids: turns of state, action and observation, under MEM1's contexts or the full history."""

    def ids(count: int) -> list[int]:
        return [generator.randrange(VOCAB) for _ in range(count)]

    kept: list[int] = []
    episode = []
    for _ in range(turns):
        completion = ids(STATE + ACTION)
        episode.append(Turn(prompt_ids=(*prompt, *kept), completion_ids=tuple(completion)))
        kept = [*(kept if context == "full" else []), *completion, *ids(OBSERVATION)]
    return Trajectory(turns=episode)


class Update:
    """Forward and backward of a summed log-prob, as an update does it, for one layout of some trajectories."""

    def __init__(
        self, model: PreTrainedModel, episodes: list[Trajectory], layout: str, micro_batch: int | None = None
    ):
        self.model, self.layout = model, layout
        size = micro_batch or len(episodes)
        self.rows = [
            RowBatch.from_rows([build_row(e, self.layout) for e in episodes[i : i + size]], device=model.device)
            for i in range(0, len(episodes), size)
        ]

    def __call__(self) -> float:
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for rows in self.rows:
            function = token_logprobs(self.model)
            (logps,) = forward_rows(rows, self.layout, self.model, function)
            assert logps is not None  # no row is empty
            loss = logps.sum()
            loss.backward()
            total += loss.item()
        return total

    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return sum(forwarded_tokens(rows, self.layout, self.model) for rows in self.rows)


def build_model(args: Any, positions: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=args.hidden_size,
        intermediate_size=2 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    if args.gradient_checkpointing:
        enable_activation_checkpointing(model, {"use_reentrant": False})
    return model.to(args.device).train()


def measure(report: Report, args: Any, case: str, baseline: str, updates: dict[str, Update], exact: set[str]) -> None:
    """Time, tokens, FLOPs and memory of the variants of one case; the exact ones must agree on the summed log-prob."""
    values: dict[str, dict[str, Any]] = {}
    for name, update in updates.items():
        values[name] = {"tokens": update.tokens(), "flops": count_flops(update)}
        # Else the update would let go of gradients that were there before, which counts against its own
        update.model.zero_grad(set_to_none=True)
        values[name]["peak_bytes"] = peak_memory(update, args.device)
        values[name]["kB_per_token"] = values[name]["peak_bytes"] / 1e3 / values[name]["tokens"]
    # Those runs have warmed everything up
    timings = compare(updates, args.repeats, baseline, warmup=0, label=case)
    for name, timing in timings.items():
        values[name]["summed_logprob"] = timing.result
    results = {name: timing.result for name, timing in timings.items() if name in exact}
    spread = max(results.values()) - min(results.values())
    assert spread <= 1e-4 * abs(next(iter(results.values()))), f"{case}: exact layouts disagree by {spread}: {results}"
    report.add(case, timings, baseline, values=values)


def layouts(report: Report, args: Any, case: str, prompt: int, turns: int, names: list[str], baseline: str) -> None:
    generator = random.Random(0)
    task = [generator.randrange(VOCAB) for _ in range(prompt)]
    state = generator.getstate()
    episode = trajectory(generator, task, turns)
    generator.setstate(state)
    history = trajectory(generator, task, turns, "full")
    model = build_model(args, prompt + turns * (STATE + ACTION + OBSERVATION))
    updates = {
        name: Update(model, [history], "packed") if name == "full history" else Update(model, [episode], name)
        for name in names
    }
    measure(report, args, case, baseline, updates, {"packed", "per_turn"} & set(names))


def main() -> None:
    def add(parser: Any) -> None:
        parser.add_argument("--only", choices=("layouts", "turns", "groups", "ragged", "rate", "memory"), default=None)
        parser.add_argument("--hidden_size", type=int, default=256)
        parser.add_argument("--layers", type=int, default=2)
        parser.add_argument("--gradient_checkpointing", action="store_true")
        parser.add_argument("--max_turns", type=int, default=64, help="longest trajectory of the `turns` case")

    global STATE, ACTION, OBSERVATION
    args = parse_arguments(__doc__, add)
    if args.smoke:
        STATE, ACTION, OBSERVATION, args.hidden_size, args.layers = 15, 5, 50, 64, 1
    settings = {name: getattr(args, name) for name in ("hidden_size", "layers", "gradient_checkpointing")}
    settings |= {"state": STATE, "action": ACTION, "observation": OBSERVATION, "vocabulary": VOCAB}
    report = Report("update_step", args, settings)
    cases: dict[str, Callable[[], None]] = {
        "layouts": lambda: compare_layouts(report, args),
        "turns": lambda: compare_turns(report, args),
        "groups": lambda: compare_groups(report, args),
        "ragged": lambda: compare_ragged(report, args),
        "rate": lambda: compare_rate(report, args),
        "memory": lambda: compare_memory(report, args),
    }
    for name, run in cases.items():
        asked = args.smoke or name not in ("rate", "memory")  # one wants another width, the other takes gigabytes
        if args.only == name or (args.only is None and asked):
            run()
    report.finish()


def compare_layouts(report: Report, args: Any) -> None:
    names = ["packed", "per_turn", "paper", "full history"]
    for prompt, turns in [(40, 3)] if args.smoke else [(400, 6), (670, 16), (1500, 16)]:
        layouts(report, args, f"prompt {prompt}, {turns} turns", prompt, turns, names, "per_turn")


def compare_turns(report: Report, args: Any) -> None:
    for turns in (2, 4) if args.smoke else (4, 16, 64):
        if turns <= args.max_turns:
            history = ["full history"] if turns <= 16 else []
            layouts(
                report,
                args,
                f"growth: {turns} turns",
                40 if args.smoke else 400,
                turns,
                ["packed", *history],
                "packed",
            )


def compare_groups(report: Report, args: Any) -> None:
    """Eight samples of one task: one tree, against a tree for each."""
    for prompt in (40,) if args.smoke else (400, 1500):
        for turns in (1, 2) if args.smoke else (1, 4):
            generator = random.Random(0)
            task = [generator.randrange(VOCAB) for _ in range(prompt)]
            episodes = [trajectory(generator, task, turns) for _ in range(8)]
            model = build_model(args, prompt + 2 * (STATE + ACTION + OBSERVATION))
            updates = {
                "one tree": Update(model, episodes, "packed"),
                "a tree each": Update(model, episodes, "packed", micro_batch=1),
                "per_turn": Update(model, episodes, "per_turn"),
            }
            measure(
                report, args, f"group: prompt {prompt}, 8 samples, {turns} turns", "a tree each", updates, set(updates)
            )


def compare_ragged(report: Report, args: Any) -> None:
    """Short and long trajectories side by side: what padding costs."""
    generator = random.Random(0)
    lengths = (1, 3) if args.smoke else (2, 20, 2, 2)
    episodes = []
    for turns in lengths:
        task = [generator.randrange(VOCAB) for _ in range(40 if args.smoke else 400)]
        episodes.append(trajectory(generator, task, turns))
    model = build_model(args, 3000)
    updates = {
        "packed": Update(model, episodes, "packed"),
        "per_turn": Update(model, episodes, "per_turn"),
    }
    measure(report, args, f"ragged: {', '.join(map(str, lengths))} turns", "packed", updates, set(updates))


def compare_rate(report: Report, args: Any) -> None:
    """Operations in a second, beside those of one large matrix product: how much of an update is anything else."""
    prompt, turns = (40, 2) if args.smoke else (400, 6)
    size, times = (64, 1) if args.smoke else (2048, 8)
    generator = random.Random(0)
    task = [generator.randrange(VOCAB) for _ in range(prompt)]
    episode, history = (trajectory(generator, task, turns, context) for context in ("mem1", "full"))
    model = build_model(args, prompt + turns * (STATE + ACTION + OBSERVATION))
    large = torch.randn(size, size, device=args.device)

    def product() -> float:
        for _ in range(times):
            found = large @ large
        return float(found[0, 0])

    updates = {"packed": Update(model, [episode], "packed"), "full history": Update(model, [history], "packed")}
    flops = {PRODUCT: times * 2 * size**3, **{name: count_flops(update) for name, update in updates.items()}}
    case = f"rate: prompt {prompt}, {turns} turns"
    timings = compare({PRODUCT: product, **updates}, args.repeats, PRODUCT, label=case)
    rates = {name: flops[name] / timing.median for name, timing in timings.items()}
    values = {
        name: {"flops": flops[name], "GFLOP per second": rate / 1e9, "of the product": rate / rates[PRODUCT]}
        for name, rate in rates.items()
    }
    report.add(case, timings, PRODUCT, settings={"product": f"{size} x {size}, {times} times"}, values=values)


def compare_memory(report: Report, args: Any) -> None:
    """One pass over more and more trajectories of tasks of their own: memory by tokens."""
    turns, counts = (2, (1, 16)) if args.smoke else (6, (3, 6, 12, 24))
    generator = random.Random(0)
    episodes = []
    for _ in range(counts[-1]):
        task = [generator.randrange(VOCAB) for _ in range(40 if args.smoke else 400)]
        episodes.append(trajectory(generator, task, turns))
    model = build_model(args, 3000)
    updates = {f"{count} rows": Update(model, episodes[:count], "packed") for count in counts}
    first = f"{counts[0]} rows"
    measure(report, args, f"memory: packed rows of {turns} turns", first, updates, {first})


if __name__ == "__main__":
    main()
