"""
Shared code of the five applications: options, a script in place of a language model, and a view of the context turn by turn.

An application is an environment, tasks, and a script that plays them. The script takes the place of a model: it reads the
messages of one turn and writes a state and an action. It remembers only what it wrote into the last state, as for a model
under MEM1 (arXiv 2506.15841, section 3.1), so it could not do its work if the state were lost.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parents[1])]

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from example_options import count
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoTokenizer

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1Protocol
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.report import report

TINY_MODEL = Path(__file__).parents[1] / "assets" / "tiny-mem1"
PAST = re.compile(r"\s*<think>(\{.*?\})</think><(\w+)>(.*?)</\2>", re.DOTALL)  # how a turn of the script begins
ROWS = 24  # of the table

Script = Callable[[str, dict, tuple | None, str], tuple[dict, str, object]]
"""`(task, memory, last action and its input, observation) -> (memory, action, its input)`; the memory is empty at first."""


class ScriptedClient:
    """
    A script behind the interface of an OpenAI client, so that it runs like any model behind an endpoint.

    Args:
        script (`Script`):
            Chooses the next action. Its memory is written into the state as JSON and read from there; nothing else is kept.
    """

    def __init__(self, script: Script):
        self.script = script
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages, **kwargs):
        """Read the task and the last turn, write the next one."""
        task, memory, action, observation = messages[0]["content"], {}, None, ""
        turns = list(PAST.finditer(task))
        if turns:
            state, *action = turns[-1].groups()
            observation, task = task[turns[-1].end() :], task[: turns[0].start()]
            memory, action = json.loads(state), tuple(action)
        memory, name, given = self.script(task, memory, action, observation)
        text = given if isinstance(given, str) else json.dumps(given)
        content = f"<think>{json.dumps(memory, ensure_ascii=False)}</think><{name}>{text}</{name}>"
        return SimpleNamespace(
            choices=[SimpleNamespace(message=SimpleNamespace(content=content), finish_reason="stop")]
        )


def run(description: str, name: str, rows: list[dict], environment: Callable, script: Script, max_turns: int) -> None:
    """
    Play the tasks with a context that is rewritten and one that is appended to, print both, and write a page to browse them.

    Args:
        description (`str`):
            Text for `--help`.
        name (`str`):
            Of the directory of results.
        rows (`list[dict]`):
            Tasks: `prompt`, and the columns that `reset` takes.
        environment (`Callable`):
            Makes an environment.
        script (`Script`):
            Plays if no model is named.
        max_turns (`int`):
            Maximum number of turns of an episode.
    """
    args = parse_arguments(description, name, len(rows))
    rows = rows[: args.tasks]
    if args.train:
        return train(args, rows, environment, max_turns)
    console = Console()
    results = {}
    for context in ("mem1", "full"):
        agent = make_agent(args, script, context, max_turns)
        label = "MEM1" if context == "mem1" else "full history"
        results[label] = evaluate_agent(agent, rows, environment, label=label, success=full_reward)
        results[label].save(Path(args.output_dir) / "evaluation", context)
    console.print(turn_by_turn({label: result.tasks[0].trajectory for label, result in results.items()}))
    console.print(f"\nMeans of {len(rows)} tasks")
    for label, result in results.items():
        m = result.metrics
        console.print(
            f"{label}: reward {m['reward']:.2f}, tasks done {m['success']:.2f}, {m['turns']:.0f} turns, peak "
            f"{m['peak_tokens']:,.0f} tokens, {m['dependency_length']:,.0f} attention pairs",
            soft_wrap=True,
        )
    page = report(args.output_dir)
    console.print(f"every turn of every episode: {page}", soft_wrap=True)


def full_reward(row, trajectory):
    """A task is done if everything about it was right."""
    return trajectory.reward is not None and trajectory.reward >= 1.0


def turn_by_turn(trajectories):
    """Tokens that each turn of the first task reads, as a table with bars."""
    read = {label: [len(turn.prompt_ids) for turn in played.turns] for label, played in trajectories.items()}
    turns, largest = max(map(len, read.values())), max(max(counts, default=1) for counts in read.values())
    table = Table(
        box=None, title="First task: tokens of context in each turn", title_justify="left", title_style="bold"
    )
    table.add_column("turn", justify="right", min_width=4)
    table.add_column("action", width=26, no_wrap=True)
    for label in read:
        table.add_column(label, width=20, no_wrap=True)
    count = min(ROWS, turns)
    acted = next(iter(trajectories.values())).turns
    for turn in sorted({round(i * (turns - 1) / max(count - 1, 1)) for i in range(count)}):
        action = (
            f"{acted[turn].action} {acted[turn].action_input}" if turn < len(acted) and acted[turn].action else "-"
        )
        here = [counts[turn] if turn < len(counts) else None for counts in read.values()]
        bars = [
            "" if tokens is None else f"{tokens:>6,} {'█' * max(1, round(12 * tokens / largest))}" for tokens in here
        ]
        table.add_row(str(turn + 1), escape(" ".join(action.split())), *bars)
    return table


def make_agent(args, script, context, max_turns):
    """The agent of the options: the script, a model behind an endpoint, or a model loaded here."""
    budgets = {"max_turns": max_turns, "context": context, "max_observation_length": args.max_observation_length}
    if args.endpoint:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        return Mem1Agent(args.model, tokenizer, client=args.endpoint, max_completion_length=500, **budgets)
    if args.model:
        protocol = Mem1Protocol()
        return Mem1Agent.from_pretrained(args.model, protocol, max_completion_length=500, **budgets)
    return Mem1Agent("script", AutoTokenizer.from_pretrained(TINY_MODEL), client=ScriptedClient(script), **budgets)


def train(args, rows, environment, max_turns):
    """A few steps of reinforcement on the tasks."""
    tokenizer = AutoTokenizer.from_pretrained(args.model or TINY_MODEL)
    trainer = Mem1GRPOTrainer(
        model=args.model or str(TINY_MODEL),
        args=Mem1GRPOConfig(
            output_dir=str(Path(args.output_dir) / "training"),
            max_steps=args.train,
            max_turns=max_turns,
            max_completion_length=args.max_completion_length,
            max_observation_length=args.max_observation_length,
            per_device_train_batch_size=4,
            num_generations=4,
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=environment,
    )
    trainer.train()
    trainer.save_model()
    print(f"the trained model: {trainer.args.output_dir}")


def parse_arguments(description, name, tasks):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="id or path of a model that plays instead of the script")
    parser.add_argument("--endpoint", help="address of an OpenAI-compatible server that serves --model")
    parser.add_argument(
        "--train", type=count, default=0, metavar="STEPS", help="train --model by GRPO on the tasks instead"
    )
    parser.add_argument("--tasks", type=int, default=tasks, help="how many of the tasks to play")
    parser.add_argument("--max_completion_length", type=count, default=200, help="tokens of one turn in training")
    parser.add_argument("--max_observation_length", type=count, default=600, help="tokens of one observation")
    parser.add_argument("--output_dir", default=f"runs/applications/{name}")
    args = parser.parse_args()
    if args.endpoint and not args.model:
        parser.error("--endpoint needs the name of its model: add --model")
    if not 1 <= args.tasks <= tasks:
        parser.error(f"--tasks must be between 1 and {tasks}")
    return args
