"""
A whole training step of `Mem1GRPOTrainer` with one turn against `GRPOTrainer`; start-up; import.

    python benchmarks/training_step.py --threads 1

With one turn and no environment both trainers do the same: same prompts, same samples, same loss, same update, which is
checked step by step. Their `train()` loops run in two threads that hand each other the floor after every optimizer step,
so that one step of each is timed right after the other. A step is everything between two ends of steps: data, generation,
rewards, loss, backward pass, optimizer, logging.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from options import parse_arguments
from report import Report
from scripted import make_tokenizer, words
from timing import Timing, compare, console, processor_time, synchronize
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

SIZES: dict[str, Any] = dict(
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
SHAPES = {"prompt 50, completion 50": (50, 50), "prompt 400, completion 150": (400, 150)}
LAYOUTS = {"mem1": "packed", "mem1 per_turn": "per_turn"}


class Floor:
    """Whose turn it is, among threads that work one at a time."""

    def __init__(self, names: list[str], rounds: int):
        # Forwards and backwards by turns, as `compare` does
        self.order = [name for index in range(rounds) for name in (names if index % 2 == 0 else reversed(names))]
        self.position = 0
        self.error: BaseException | None = None
        self._changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Return when `name` has the floor, or nobody is left to have it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.error is not None or self.position == len(self.order) or self.order[self.position] == name
            )
        if self.error is not None:
            raise RuntimeError("Another trainer failed.") from self.error

    def pass_on(self) -> None:
        """Give the floor to the next."""
        with self._changed:
            self.position += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let everybody stop."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()


class TimedSteps(TrainerCallback):
    """Times each optimizer step between having the floor and passing it on."""

    def __init__(self, name: str, floor: Floor):
        self.name = name
        self.floor = floor
        self.timing = Timing()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize()
        self.timing.seconds.append(time.perf_counter() - self._start)
        self.timing.cpu_seconds.append(processor_time() - self._cpu)
        self.floor.pass_on()
        self._begin(state.global_step)

    def _begin(self, step: int) -> None:
        self.floor.wait(self.name)
        set_seed(step)  # the same samples in every trainer
        gc.collect()
        synchronize()
        self._cpu, self._start = processor_time(), time.perf_counter()


class Stopwatch:
    """Adds up the time inside some methods."""

    def __init__(self, **methods: tuple[Any, str]):
        self.seconds = dict.fromkeys(methods, 0.0)
        for name, (target, method) in methods.items():
            setattr(target, method, partial(self._run, name, getattr(target, method)))

    def _run(self, name: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        clock = processor_time if Timing.clock == "cpu" else time.perf_counter
        synchronize()
        start = clock()
        try:
            return method(*args, **kwargs)
        finally:
            synchronize()
            self.seconds[name] += clock() - start


def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A number that differs between completions."""
    return [float(sum(ids) % 11) for ids in completion_ids]


def settings_of(args: argparse.Namespace, directory: str, steps: int, completion: int) -> dict[str, Any]:
    return dict(
        output_dir=directory,
        max_steps=steps,
        num_generations=args.group,
        per_device_train_batch_size=args.group,
        max_completion_length=completion,
        learning_rate=1e-4,
        bf16=args.device != "cpu",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )


def build(name: str, model: str, tokenizer: Any, dataset: Dataset, settings: dict[str, Any]) -> Any:
    """The trainer of a variant."""
    common = dict(model=model, reward_funcs=reward, train_dataset=dataset, processing_class=tokenizer)
    settings = {**settings, "model_init_kwargs": {"dtype": "float32"}}
    if name == "trl":
        trainer = GRPOTrainer(args=GRPOConfig(**settings), **common)
    else:
        trainer = Mem1GRPOTrainer(args=Mem1GRPOConfig(max_turns=1, layout=LAYOUTS[name], **settings), **common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step_case(label: str, args: argparse.Namespace, model: str, tokenizer: Any, report: Report) -> None:
    """Train all variants at once, step by step in turn."""
    prompt, completion = SHAPES[label]
    warmup = 2
    steps = warmup + args.repeats
    dataset = Dataset.from_dict({"prompt": [words(prompt, start=31 * index) for index in range(64)]})
    floor = Floor(args.variants, steps)
    trainers, callbacks, watches = {}, {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for name in args.variants:
            trainer = build(name, model, tokenizer, dataset, settings_of(args, directory, steps, completion))
            callbacks[name] = TimedSteps(name, floor)
            trainer.add_callback(callbacks[name])
            generate = (trainer, "_generate_single_turn") if name == "trl" else (trainer.rollout, "generate")
            watches[name] = Stopwatch(
                generate=generate,
                rollout=(trainer, "_generate_and_score_completions"),
                loss=(trainer, "compute_loss"),
            )
            trainers[name] = trainer

        def train(name: str) -> None:
            try:
                trainers[name].train()
            except BaseException as error:
                floor.fail(error)

        threads = [threading.Thread(target=train, args=(name,)) for name in args.variants]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        console.print(f"{label}: {steps} steps of {len(threads)} trainers in {time.perf_counter() - began:.1f} s")
    if floor.error is not None:
        raise floor.error

    values: dict[str, dict[str, Any]] = {}
    timings = {}
    baseline = args.variants[0]
    expected = [log for log in trainers[baseline].state.log_history if "loss" in log]
    for name, trainer in trainers.items():
        logs = [log for log in trainer.state.log_history if "loss" in log]
        gaps = [abs(one[key] - other[key]) for one, other in zip(logs, expected) for key in ("loss", "reward")]
        # Half precision on a GPU may flip a sample, and then the runs part; the table shows it
        if len(logs) != steps or (args.device == "cpu" and max(gaps) > 1e-3):
            raise SystemExit(f"{name} did not do the same as {baseline}: largest difference {max(gaps)}")
        seconds = watches[name].seconds
        timing = callbacks[name].timing
        timings[name] = Timing(timing.seconds[warmup:], timing.cpu_seconds[warmup:])
        values[name] = {
            "generate_ms": 1e3 * seconds["generate"] / steps,
            "other_rollout_ms": 1e3 * (seconds["rollout"] - seconds["generate"]) / steps,
            "loss_ms": 1e3 * seconds["loss"] / steps,
            "largest_difference": max(gaps),
        }
    report.add(f"training step: {label}", timings, baseline, {"prompt": prompt, "completion": completion}, values)


def startup_case(args: argparse.Namespace, model: str, tokenizer: Any, report: Report) -> None:
    """Time to a trainer that is ready to train."""
    dataset = Dataset.from_dict({"prompt": [words(50, start=index) for index in range(1000)]})
    with tempfile.TemporaryDirectory() as directory:
        settings = settings_of(args, directory, 1, 50)
        runs = {
            name: partial(build, name, model, tokenizer, dataset, settings)
            for name in args.variants
            if name in ("trl", "mem1")
        }
        timings = compare(runs, args.repeats, args.variants[0], label="start-up")
    report.add("start-up: a trainer from a saved model and 1,000 prompts", timings, args.variants[0])


def import_case(args: argparse.Namespace, report: Report) -> None:
    """Imports in fresh processes."""

    def run(statement: str) -> int:
        code = f"{statement}; import sys; print(len(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    cases = {
        "import of the package": ("import trl", "import mem1_trl"),
        "import of a trainer": ("from trl import GRPOTrainer", "from mem1_trl import Mem1GRPOTrainer"),
    }
    if args.smoke:
        del cases["import of a trainer"]  # seconds each
    for title, statements in cases.items():
        timings = compare({s: partial(run, s) for s in statements}, args.repeats, statements[0], label=title)
        values = {name: {"modules": timing.result} for name, timing in timings.items()}
        report.add(f"{title}, in a fresh process", timings, statements[0], values=values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--variants", nargs="+", choices=("trl", *LAYOUTS), default=["trl", "mem1"])
        parser.add_argument(
            "--cases", nargs="+", choices=("step", "startup", "import"), default=["step", "startup", "import"]
        )
        parser.add_argument("--group", type=int, default=8, help="samples of the one task of a step")

    args = parse_arguments(__doc__, add, repeats=20)
    if args.smoke:
        SIZES.update(hidden_size=32, intermediate_size=64, num_hidden_layers=1)
        SHAPES.clear()
        SHAPES["prompt 8, completion 4"] = (8, 4)
    report = Report("training_step", args, {"group": args.group, "model": dict(SIZES)})
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
    )
    with tempfile.TemporaryDirectory() as model:
        LlamaForCausalLM(config).save_pretrained(model)
        if "step" in args.cases:
            for label in SHAPES:
                step_case(label, args, model, tokenizer, report)
        if "startup" in args.cases:
            startup_case(args, model, tokenizer, report)
    if "import" in args.cases:
        import_case(args, report)
    report.finish()


if __name__ == "__main__":
    main()
