"""
Learning speed: seconds of training to a given exact match in the task of the quickstart, PPO and GRPO.

    python benchmarks/learning_speed.py --threads 2                    # up to --max_seconds for each algorithm
    python benchmarks/learning_speed.py --algorithms ppo --target 0.6

The tiny model, tasks and budgets of `examples/quickstart.py`: two questions at a time, held-out entities, greedy decoding.
Every `--eval_every` steps the exact match per question is measured with the clock stopped; a run ends at the target, or
when its time is up. One seed says little: give several with `--seeds`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import torch
from options import parse_arguments
from report import HERE, Report
from timing import Timing, console, processor_time
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed

sys.path.insert(0, str(HERE.parent / "examples"))
from quickstart import TINY_MODEL, held_out_tasks, lookups

from mem1_trl import (
    Mem1Agent,
    Mem1GRPOConfig,
    Mem1GRPOTrainer,
    Mem1PPOConfig,
    Mem1PPOTrainer,
    Mem1Protocol,
    compose_objectives,
)
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation.evaluate import evaluate_agent
from mem1_trl.facts import load_facts

METRIC = "exact_match_per_objective"
# What the two are trained with. PPO: the quickstart's; GRPO: groups instead of a critic, the same number of trajectories
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ppo": (Mem1PPOTrainer, Mem1PPOConfig, dict(value_learning_rate=1e-3, beta=0.001)),
    "grpo": (Mem1GRPOTrainer, Mem1GRPOConfig, dict(num_generations=8, beta=0.0)),
}


class Clock(TrainerCallback):
    """Counts the seconds of training, stands still during evaluation, and ends the run."""

    def __init__(self, evaluate: Any, every: int, target: float, max_seconds: float, label: str):
        self.evaluate = evaluate
        self.every = every
        self.target = target
        self.max_seconds = max_seconds
        self.label = label
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.curve: list[dict[str, float]] = []

    @property
    def reached(self) -> bool:
        """Whether the last evaluation met the target."""
        return bool(self.curve) and self.curve[-1]["em"] >= self.target

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(0)
        self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu_seconds += processor_time() - self._cpu_began
        over = (self.cpu_seconds if Timing.clock == "cpu" else self.seconds) >= self.max_seconds
        if over or state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step)
            if over or self.reached:  # never set to false: at the last step it is true already
                control.should_training_stop = True
        self._start()

    def _start(self) -> None:
        self._cpu_began, self._began = processor_time(), time.perf_counter()

    def _measure(self, step: int) -> None:
        spent = self.cpu_seconds if Timing.clock == "cpu" else self.seconds
        self.curve.append({"step": step, "seconds": spent, "em": self.evaluate()})
        console.print(f"{self.label}: step {step}, {spent:.0f} s, exact match {self.curve[-1]['em']:.3f}")


def run(algorithm: str, seed: int, args: argparse.Namespace) -> Clock:
    """Train until the target is met or the time is up."""
    set_seed(seed)
    trainer_class, config_class, own = ALGORITHMS[algorithm]
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    protocol = Mem1Protocol.from_pretrained(TINY_MODEL)
    facts = load_facts()
    factory = RetrievalQAEnvironment.factory(facts.corpus, top_k=1)
    tests = held_out_tasks(facts, 2, args.eval_tasks)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        config = config_class(
            output_dir=directory,
            max_steps=args.max_steps,
            max_turns=6,
            max_completion_length=64,
            max_observation_length=200,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=1.5e-4,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            use_cpu=args.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **own,
        )
        trainer = trainer_class(
            model=str(TINY_MODEL),
            args=config,
            train_dataset=compose_objectives(lookups(facts, "train"), n=2, question="keywords", seed=seed),
            processing_class=tokenizer,
            environment_factory=factory,
            protocol=protocol,
        )
        trainer.remove_callback(PrinterCallback)
        # A copy of the weights: evaluation must not touch the modes, caches and random numbers of training
        agent = Mem1Agent(
            model.to(trainer.accelerator.device),
            tokenizer,
            protocol,
            max_turns=6,
            max_completion_length=128,
            max_observation_length=200,
        )

        def evaluate() -> float:
            state = torch.get_rng_state()
            model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
            metrics = evaluate_agent(agent, tests, factory).metrics
            torch.set_rng_state(state)
            return metrics[METRIC]

        clock = Clock(evaluate, args.eval_every, args.target, args.max_seconds, f"{algorithm}, seed {seed}")
        trainer.add_callback(clock)
        trainer.train()
    return clock


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--algorithms", nargs="+", choices=tuple(ALGORITHMS), default=["ppo", "grpo"])
        parser.add_argument("--target", type=float, default=0.6, help="exact match per question that ends a run")
        parser.add_argument("--max_seconds", type=float, default=360.0, help="of training, for each run")
        parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps of each run at most")
        parser.add_argument("--eval_every", type=int, default=5, help="optimizer steps between evaluations")
        parser.add_argument("--eval_tasks", type=int, default=100, help="held-out tasks of two questions")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0])

    args = parse_arguments(__doc__, add)
    if args.smoke:
        args.max_steps, args.eval_every, args.eval_tasks, args.target = 1, 1, 4, 2.0
    names = ("target", "max_seconds", "eval_every", "eval_tasks", "seeds")
    report = Report("learning_speed", args, {name: getattr(args, name) for name in names})
    for seed in args.seeds:
        clocks = {algorithm: run(algorithm, seed, args) for algorithm in args.algorithms}
        timings = {name: Timing([clock.seconds], [clock.cpu_seconds]) for name, clock in clocks.items()}
        values = {
            name: {
                "reached": clock.reached,
                "steps": int(clock.curve[-1]["step"]),
                "em_before": clock.curve[0]["em"],
                "em_after": clock.curve[-1]["em"],
                "seconds_per_step": timings[name].median / max(clock.curve[-1]["step"], 1),
            }
            for name, clock in clocks.items()
        }
        curves = {"seed": seed, "curves": {name: clock.curve for name, clock in clocks.items()}}
        report.add(f"exact match of {args.target:g}, seed {seed}", timings, args.algorithms[0], curves, values)
    report.finish()


if __name__ == "__main__":
    main()
