"""
Rollout: environment steps per second of `Mem1GRPOTrainer` against the tool loop of TRL's own `GRPOTrainer`.

    python benchmarks/rollout.py --threads 1                        # a minute or two for each case on one CPU core
    python benchmarks/rollout.py --turns 16 --variants mem1 full    # two variants, one case

Both trainers get the same environment class, the same model sizes and the same number of turns; the model is scripted
(`scripted.py`), so that each turn is one valid action of exactly `--completion` tokens, and prompts and observations,
templates included, have the same number of tokens in both. What is timed is `_generate_and_score_completions`: resets,
generation, environment steps, parsing and rewards, but no update.

Variants: `trl` (tool loop, everything stays in context), `mem1` (this package), `full` (this package with
`context="full"`, which reads what `trl` reads), and the last two with `prefix_cache=False`.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from memory_and_flops import count_flops
from options import parse_arguments
from report import Report
from scripted import CALL_CLOSE, CALL_OPEN, make_model, make_tokenizer, word, words
from timing import Timing, compare, console
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1Protocol

SIZES: dict[str, Any] = dict(
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=16384,
)
# Settings of this package's trainer
MINE: dict[str, dict[str, Any]] = {
    "mem1": {},
    "full": {"context": "full"},
    "mem1-no-cache": {"prefix_cache": False},
    "full-no-cache": {"context": "full", "prefix_cache": False},
}
_WORD_AT = 700  # the query; the filler of a completion comes before it


class Lookup:
    """Answers every search with a text of `length` words and counts its steps."""

    length = 0
    steps = 0

    def reset(self, prompt: Any = None, **row: Any) -> None:
        """Start an episode."""
        self.searches = 0

    def search(self, query: str) -> str:
        """
        Search the corpus.

        Args:
            query: A few keywords.

        Returns:
            The best passage.
        """
        self.searches += 1
        type(self).steps += 1
        return words(self.length, start=37 * self.searches)

    def get_reward(self) -> float:
        return float(self.searches)


class TrlLookup(Lookup):
    """The environment as TRL's loop plays it."""


class Mem1Lookup(Lookup):
    """The environment as this package plays it."""


# Without hints, whose number of tokens depends on the turn
PROTOCOL = Mem1Protocol(
    instructions="{prompt}\n{actions}", hint_template="", last_hint_template="", over_hint_template=""
)


def script(kind: str, length: int) -> str:
    """A turn of `length` tokens that calls `search`: Qwen3's tool call, or the tags of the protocol."""
    if kind == "trl":
        return f"<think>{words(length - 8)}</think><tool_call>{CALL_OPEN}{word(_WORD_AT)}{CALL_CLOSE}</tool_call><|im_end|>"
    return f"<think>{words(length - 5)}</think><search>{word(_WORD_AT)}</search>"


def build(kind: str, turns: int, tokenizer: Any, args: argparse.Namespace, directory: str) -> Any:
    """The trainer of a variant, its prompts and observations cut to size."""
    mine = kind != "trl"
    frame = PROTOCOL.observation_frame(1)
    contexts = ["<|im_start|>assistant\n", *([frame[1]] if mine else [])]
    model = make_model(
        tokenizer, script(kind, args.completion), contexts, device=args.device, dtype=args.dtype, **SIZES
    )
    total = turns * args.completion + (turns - 1) * args.observation
    settings: dict[str, Any] = dict(
        output_dir=directory,
        num_generations=args.group,
        per_device_train_batch_size=args.group * args.tasks,
        # TRL's budget is of the whole episode, ours of one turn
        max_completion_length=args.completion if mine else total,
        beta=0.0,
        bf16=args.device != "cpu",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    environment = Mem1Lookup if mine else TrlLookup
    rows = [{"prompt": [{"role": "user", "content": "Task"}]}] * args.tasks
    common = dict(model=model, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer: Any
    if mine:
        config = Mem1GRPOConfig(
            max_turns=turns,
            max_observation_length=args.observation + 64,
            **MINE[kind],
            **settings,
        )
        trainer = Mem1GRPOTrainer(args=config, environment_factory=environment, protocol=PROTOCOL, **common)
    else:
        of_trl = GRPOConfig(max_tool_calling_iterations=turns - 1, **settings)
        trainer = GRPOTrainer(args=of_trl, environment_factory=environment, **common)
    trainer.model.train()
    return trainer


def rollout(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One generation batch, as a training step asks for it."""
    set_seed(0)
    return trainer._generate_and_score_completions([dict(row) for row in rows])


def environment_of(trainer: Any) -> type[Lookup]:
    """The class whose lengths and counters belong to a trainer."""
    return Mem1Lookup if isinstance(trainer, Mem1GRPOTrainer) else TrlLookup


def fit_lengths(trainer: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows whose rendered prompt has `--prompt` tokens, with observations of `--observation` tokens, templates included."""
    tokenizer = trainer.processing_class
    environment = environment_of(trainer)

    def rows(filler: int) -> list[dict[str, Any]]:
        tasks = [
            {"prompt": [{"role": "user", "content": "Task" + words(filler, start=101 * index)}]}
            for index in range(args.tasks)
        ]
        return [task for task in tasks for _ in range(args.group)]

    seen: list[int] = []
    if hasattr(trainer, "player"):
        seen.extend(len(episode.prompt_ids) for episode in trainer.player.start(rows(0), trainer.pool))
    else:
        tokenize = trainer._tokenize_prompts

        class Measured(Exception):
            pass

        def measure(prompts: list[Any]) -> Any:
            seen.extend(len(ids) for ids in tokenize(prompts)[0])
            raise Measured

        trainer._tokenize_prompts = measure
        try:
            trainer._generate_and_score_completions(rows(0))
        except Measured:
            pass
        finally:
            del trainer._tokenize_prompts
    if args.prompt < max(seen):
        raise SystemExit(f"--prompt {args.prompt} is less than the template needs: give {max(seen)} or more")
    if environment is Mem1Lookup:
        frame = sum(len(tokenizer(text)["input_ids"]) for text in PROTOCOL.observation_frame(1))
    else:
        frame = len(trainer._get_tool_suffix_ids([{"role": "tool", "name": "search", "content": word(0)}])) - 1
    if args.observation <= frame:
        raise SystemExit(f"--observation {args.observation} is less than its frame needs: give {frame + 1} or more")
    environment.length = args.observation - frame
    return rows(args.prompt - max(seen))


def count(trainer: Any, rows: list[dict[str, Any]], turns: int, completion: int, flops: bool) -> dict[str, Any]:
    """What one rollout of a variant does, counted in a run of its own, and checked to be the planned one."""
    environment = environment_of(trainer)
    forwarded = 0

    def add(module: Any, inputs: Any) -> None:
        nonlocal forwarded
        forwarded += inputs[0].numel()

    handle = trainer.model.get_input_embeddings().register_forward_pre_hook(add)
    steps_before = environment.steps
    batches: list[dict[str, Any]] = []
    counted = None
    if flops:
        counted = count_flops(lambda: batches.append(rollout(trainer, rows)))
    else:
        batches.append(rollout(trainer, rows))
    handle.remove()
    generated = int((batches[0]["completion_mask"] * batches[0]["tool_mask"]).sum())
    # TRL does not execute the action of the last turn, since nothing would read its result
    calls = environment.steps - steps_before + (len(rows) if environment is TrlLookup else 0)
    if generated != len(rows) * turns * completion or calls != len(rows) * turns:
        raise SystemExit(f"{generated} tokens and {calls} actions are not what was planned: the script went wrong")
    facts: dict[str, Any] = {"turns": calls, "generated_tokens": generated, "forwarded_tokens": forwarded}
    if flops:
        facts["flops"] = counted
    return facts


def profile(run: Callable[[], Any], label: str) -> None:
    """Print where one more rollout spends its time: the trainers, the sampling loop and the model, callees included."""
    profiler = cProfile.Profile(time.process_time if Timing.clock == "cpu" else time.perf_counter)
    profiler.runcall(run)
    console.rule(label)
    shown = r"mem1_trl|grpo_trainer|generation/utils|modeling_\w+\.py.*\(forward\)|chat_template|tokenization"
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(shown)


def run_case(turns: int, tokenizer: Any, args: argparse.Namespace, report: Report) -> None:
    """All variants at one number of turns."""
    baseline = args.variants[0]
    runs, values = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in args.variants:
            trainer = build(kind, turns, tokenizer, args, directory)
            rows = fit_lengths(trainer, args)
            values[kind] = count(trainer, rows, turns, args.completion, args.flops)
            runs[kind] = partial(rollout, trainer, rows)
            if args.profile:
                profile(runs[kind], f"{kind}, {turns} turns")
        # The run that counted has warmed everything up
        timings = compare(runs, args.repeats, baseline, warmup=0, label=f"{turns} turns")
    for kind, timing in timings.items():
        values[kind]["turns_per_second"] = values[kind]["turns"] / timing.median
    report.add(f"{turns} turn{'s' if turns > 1 else ''}", timings, baseline, {"turns": turns}, values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--turns", type=int, nargs="+", default=[1, 4, 16], help="one case for each")
        parser.add_argument(
            "--variants", nargs="+", choices=("trl", *MINE), default=["trl", "mem1"], help="first: baseline"
        )
        parser.add_argument("--group", type=int, default=4, help="samples of a task")
        parser.add_argument("--tasks", type=int, default=1, help="tasks of a generation batch")
        parser.add_argument("--prompt", type=int, default=400, help="tokens of a rendered prompt")
        parser.add_argument("--completion", type=int, default=80, help="tokens of one turn")
        parser.add_argument("--observation", type=int, default=300, help="tokens of an observation, frame included")
        parser.add_argument("--flops", action="store_true", help="also count FLOPs, which takes another slow run")

        parser.add_argument("--profile", action="store_true", help="also profile one rollout of each variant")

    args = parse_arguments(__doc__, add, repeats=3)
    args.dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.smoke:
        args.turns, args.group, args.completion, args.observation = [1, 3], 2, 12, 60
        SIZES.update(hidden_size=128, intermediate_size=128, num_hidden_layers=1)
    names = ("group", "tasks", "prompt", "completion", "observation")
    report = Report("rollout", args, {**{name: getattr(args, name) for name in names}, "model": dict(SIZES)})
    tokenizer = make_tokenizer()
    for turns in args.turns:
        run_case(turns, tokenizer, args, report)
    report.finish()
    console.print(
        "A turn is one step of one episode: its context read, its completion generated, its action answered."
    )


if __name__ == "__main__":
    main()
