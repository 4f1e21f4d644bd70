"""
Train a MEM1 agent with PPO on real facts, on a laptop, without a network.

    python examples/quickstart.py                       # the tiny model in examples/assets, about 8 minutes on 2 cores
    python examples/quickstart.py --model PATH_OR_ID    # any causal language model, for instance Qwen/Qwen2.5-0.5B-Instruct

The agent answers questions about countries and chemical elements with a search engine. It is trained on two questions at a
time and tested on one, two, four and eight about entities it was never asked about. Written to --output_dir: the model
(`model/`, which `Mem1Agent.from_pretrained` loads), `quickstart.png` and `results.json`.
"""

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)  # about names that transformers and TRL use themselves
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from datasets import concatenate_datasets, disable_progress_bars
from example_options import count, rate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from mem1_trl import Mem1Agent, Mem1PPOConfig, Mem1PPOTrainer, Mem1Protocol, compose_objectives
from mem1_trl.display import print_trajectory
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.facts import KEYWORDS, load_facts

TINY_MODEL = Path(__file__).parent / "assets" / "tiny-mem1"
OBJECTIVES = (1, 2, 4, 8)
console = Console(width=None if sys.stdout.isatty() else 110)


def progress(**kwargs):
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console, **kwargs)


class ShowProgress(TrainerCallback):
    """Shows a progress bar with reward, turns and KL."""

    def __init__(self):
        self.bar = progress()

    def on_train_begin(self, args, state, control, **kwargs):
        self.task = self.bar.add_task("PPO", total=state.max_steps, note="")
        self.bar.start()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs:
            note = f"reward {logs['reward']:.2f}  turns {logs['episode/turns']:.1f}  kl {logs.get('kl') or 0:.3f}"
            self.bar.update(self.task, completed=state.global_step, note=note)
            if not console.is_terminal and state.global_step % 10 == 0:  # a bar shows nothing in a file
                console.print(f"PPO {state.global_step}/{state.max_steps}: {note}")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.task, completed=state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.stop()


def evaluate(agent, tests, factory, label):
    """Greedy evaluation on every number of objectives."""
    results = {}
    with progress(transient=True) as bar:
        for n, rows in tests.items():
            task = bar.add_task(f"{label}: {n} objective{'s'[: n > 1]}", total=len(rows), note="")
            agent.settings = replace(agent.settings, max_turns=n + 4)
            results[n] = evaluate_agent(agent, rows, factory, on_batch=lambda k, task=task: bar.advance(task, k))
    return results


def lookups(facts, split):
    """Questions that can be put in search words, such as `capital of France`."""
    return facts.questions(split).filter(lambda row: row["relation"] in KEYWORDS)


def held_out_tasks(facts, n, count):
    """`count` tasks of `n` questions; the questions are shuffled again for each further round."""
    rounds = []
    while sum(map(len, rounds)) < count:
        rounds.append(compose_objectives(lookups(facts, "test"), n=n, question="keywords", seed=1000 + len(rounds)))
    return concatenate_datasets(rounds).select(range(count))


def show_table(before, after, tasks):
    title = f"Held-out entities, {tasks} tasks each, greedy decoding: before RL → after RL"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0))  # 79 columns
    for heading in (
        "objectives",
        "EM per\nobjective",
        "F1 per\nobjective",
        "valid\nactions",
        "peak tokens",
        "dependency",
    ):
        table.add_column(heading, justify="right")
    for n in before:
        b, a = before[n].metrics, after[n].metrics
        cells = [
            f"{b[key]:{form}} → {a[key]:{form}}"
            for key, form in (
                ("exact_match_per_objective", ".2f"),
                ("f1_per_objective", ".2f"),
                ("valid_action_rate", ".2f"),
                ("peak_tokens", ".0f"),
                ("dependency_length", ",.0f"),
            )
        ]
        table.add_row(str(n), *cells)
    console.print(table)


def nothing_dropped(trajectory):
    """Peak tokens of the same episode if every turn had stayed in the context."""
    produced = sum(len(turn.completion_ids) + turn.observation_tokens for turn in trajectory.turns)
    return len(trajectory.prompt_ids) + produced


def plot(history, after, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    logs = [(log["step"], log["reward"]) for log in history if "reward" in log]
    steps, rewards = zip(*logs)
    window = max(1, len(rewards) // 10)
    smooth = [
        sum(rewards[max(0, i - window + 1) : i + 1]) / len(rewards[max(0, i - window + 1) : i + 1])
        for i in range(len(rewards))
    ]
    left.plot(steps, rewards, alpha=0.3, color="tab:blue", label="each batch")
    left.plot(steps, smooth, color="tab:blue", label=f"mean of {window}")
    left.set(xlabel="optimizer step", ylabel="reward (answers right, of 2)", title="PPO on 2 objectives", ylim=(0, 2))
    left.legend(loc="lower right")
    objectives = list(after)
    means = [after[n].metrics["peak_tokens"] for n in objectives]
    kept = [sum(map(nothing_dropped, after[n].trajectories)) / len(after[n].trajectories) for n in objectives]
    right.plot(objectives, kept, "o--", color="tab:gray", label="same episodes, had nothing been dropped")
    right.plot(objectives, means, "o-", color="tab:blue", label="MEM1 context")
    right.set(xlabel="objectives", ylabel="peak tokens per episode", title="Context after RL", xticks=objectives)
    right.set_ylim(bottom=0)
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY_MODEL), help="path or id of a causal language model")
    parser.add_argument("--output_dir", default="runs/quickstart")
    parser.add_argument("--steps", type=count, default=40, help="optimizer steps of PPO")
    parser.add_argument("--batch_size", type=count, default=32, help="trajectories per optimizer step")
    parser.add_argument("--micro_batch_size", type=count, default=16, help="trajectories in one forward pass")
    parser.add_argument(
        "--learning_rate", type=rate, default=None, help="learning rate of the policy (tiny model: 1.5e-4, else 1e-6)"
    )
    parser.add_argument("--eval_tasks", type=count, default=100, help="held-out tasks for each number of objectives")
    parser.add_argument(
        "--max_completion_length", type=count, default=None, help="tokens of one turn (tiny model: 64, else 256)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.batch_size % args.micro_batch_size:
        parser.error(
            f"--batch_size must be a multiple of --micro_batch_size, got {args.batch_size} and {args.micro_batch_size}"
        )
    try:
        AutoConfig.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        parser.error(
            f"--model must be the path or id of a causal language model, got {args.model!r}: {str(error).splitlines()[0]}"
        )
    return args


def main():
    args = parse_arguments()
    began = time.perf_counter()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    set_seed(args.seed)
    tiny = Path(args.model).resolve() == TINY_MODEL.resolve()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    # The model and its protocol
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    protocol = Mem1Protocol.from_pretrained(TINY_MODEL) if tiny else Mem1Protocol()
    max_completion_length = args.max_completion_length or (64 if tiny else 256)
    max_observation_length = 200 if tiny else 400
    # A state on eight objectives is longer than one on two
    evaluation = {
        "max_completion_length": 2 * max_completion_length,
        "max_observation_length": max_observation_length,
    }
    size = sum(p.numel() for p in model.parameters()) / 1e6
    name, origin = args.model, ""
    if tiny:
        name, origin = "tiny-mem1", ", made by examples/warm_start.py, which taught it the format and a hasty policy"
    console.print(f"[bold]model[/bold] {name}: {model.config.model_type}, {size:.1f} M parameters{origin}")

    # The tasks: real facts; no entity of a test question is asked about in training
    facts = load_facts()
    factory = RetrievalQAEnvironment.factory(facts.corpus, top_k=1)
    train = compose_objectives(lookups(facts, "train"), n=2, question="keywords", seed=args.seed)
    tests = {n: held_out_tasks(facts, n, args.eval_tasks) for n in OBJECTIVES}
    console.print(f"[bold]tasks[/bold] {len(train)} pairs of questions to train on, over {len(facts.corpus)} passages")

    agent = Mem1Agent(model, tokenizer, protocol, **evaluation)
    before = evaluate(agent, tests, factory, "before RL")

    config = Mem1PPOConfig(
        output_dir=str(output / "checkpoints"),
        max_steps=args.steps,
        max_turns=6,
        max_completion_length=max_completion_length,
        max_observation_length=max_observation_length,
        per_device_train_batch_size=args.micro_batch_size,
        gradient_accumulation_steps=args.batch_size // args.micro_batch_size,
        learning_rate=args.learning_rate or (1.5e-4 if tiny else 1e-6),
        value_learning_rate=1e-3 if tiny else 1e-5,
        lr_scheduler_type="constant",
        beta=0.001,
        gradient_checkpointing=not tiny,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    del agent, model  # the trainer loads its own
    shown = ShowProgress()
    trainer = Mem1PPOTrainer(
        model=args.model,
        args=config,
        train_dataset=train,
        processing_class=tokenizer,
        environment_factory=factory,
        protocol=protocol,
        callbacks=[shown],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except KeyboardInterrupt:
        shown.bar.stop()
        trainer.save_model(str(output / "model"))
        console.print(
            f"\ninterrupted after {trainer.state.global_step} steps; the model so far is in {output / 'model'}"
        )
        raise SystemExit(130) from None
    trainer.save_model(str(output / "model"))

    # Evaluate the saved model, not the one in memory
    agent = Mem1Agent.from_pretrained(str(output / "model"), **evaluation)
    after = evaluate(agent, tests, factory, "after RL")

    console.rule("one episode, after RL")
    episode = next((t for t in after[2].trajectories if t.reward == 2.0), after[2].trajectories[0])
    print_trajectory(episode, agent.tokenizer, console)
    show_table(before, after, args.eval_tasks)
    plot(trainer.state.log_history, after, output / "quickstart.png")
    results = {
        "model": Path(args.model).name,
        "steps": trainer.state.global_step,
        "eval_tasks": args.eval_tasks,
        "seconds": round(time.perf_counter() - began, 1),
        "before": {n: result.metrics for n, result in before.items()},
        "after": {n: result.metrics for n, result in after.items()},
        "reward": [log["reward"] for log in trainer.state.log_history if "reward" in log],
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    two = "exact_match_per_objective"
    console.print(
        f"2 objectives, {args.eval_tasks} held-out tasks: EM per objective {before[2].metrics[two]:.2f} before RL, "
        f"{after[2].metrics[two]:.2f} after {results['steps']} steps. {results['seconds'] / 60:.1f} minutes in all."
    )
    for what, path in (("model", "model"), ("plot", "quickstart.png"), ("numbers", "results.json")):
        console.print(f"{what}: {output / path}", soft_wrap=True)


if __name__ == "__main__":
    main()
