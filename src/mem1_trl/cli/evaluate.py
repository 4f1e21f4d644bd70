"""`mem1 eval --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..rollout.settings import AgentSettings, setting
from .agent_options import AgentArguments, chosen_protocol, open_agent
from .options import CommandError, ConfigParser
from .task_options import TaskArguments, listed_objectives

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation


@dataclass
class EvalArguments(AgentArguments, TaskArguments):
    """
    Arguments of `mem1 eval`.

    Parameters:
        > Parameters that control the agent, besides those of [`AgentArguments`]

        label (`str`, *optional*):
            Name of the agent in tables, plots and files. `None` takes the name of the model.
        max_turns (`int`, *optional*):
            Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond.

        > Parameters that control the tasks, besides those of [`TaskArguments`]

        objectives (`list[int]`, *optional*, defaults to `[1, 2, 3, 4, 6, 8, 16]`):
            Numbers of objectives.
        tasks (`int`, *optional*, defaults to `200`):
            Tasks for each number.
        top_k (`int`, *optional*):
            Passages per search. `None` takes what the model was trained with, or else 3.

        > Parameters that control the run

        output_dir (`str`, *optional*, defaults to `"runs/eval"`):
            Where `evaluation/<label>-<n>.json` and `.jsonl` are written. What is there already is not played again.
        memory_value (`str` or `None`, *optional*):
            Measure what each state is worth, in nats, with nothing in its place (`"blank"`) or the state of another episode (`"swap"`).
        seed (`int`, *optional*, defaults to `0`):
            Of the choice of tasks, of sampling and of the intervals.
    """

    label: str | None = field(
        default=None,
        metadata={"help": "Name of the agent in tables, plots and files. `None` takes the name of the model."},
    )
    max_turns: int | None = setting(
        "max_turns",
        default=None,
        help="Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond.",
    )
    objectives: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 6, 8, 16], metadata={"help": "Numbers of objectives."}
    )
    tasks: int = field(default=200, metadata={"help": "Tasks for each number of objectives."})
    top_k: int | None = field(
        default=None,
        metadata={"help": "Passages per search. `None` takes what the model was trained with, or else 3."},
    )
    output_dir: str = field(
        default="runs/eval",
        metadata={
            "help": "Where `evaluation/<label>-<n>.json` and `.jsonl` are written. What is there already is not played again."
        },
    )
    memory_value: str | None = field(
        default=None,
        metadata={
            "help": "Measure what each state is worth, in nats, with nothing in its place or the state of another episode. `None` does not.",
            "choices": ["blank", "swap"],
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the choice of tasks, of sampling and of the intervals."})

    def __post_init__(self) -> None:
        self.objectives = listed_objectives(self.objectives)
        self._check_counts("tasks", "top_k", "batch_size")
        super().__post_init__()
        self.check_endpoint()
        if self.memory_value is not None and self.endpoint is not None:
            raise ValueError("memory_value needs a model that is loaded here: leave out endpoint, or memory_value")


def run(args: Sequence[str]) -> None:
    """Evaluate an agent, print the table, and say where the files are."""
    parser = ConfigParser(
        EvalArguments,
        prog="mem1 eval",
        usage="mem1 eval --model_name_or_path PATH_OR_ID [OPTIONS] [--config FILE.yaml]",
        description="Evaluate an agent on tasks of more and more objectives: several questions at once, answered by searching.",
        epilog="Example: mem1 eval --model_name_or_path runs/quickstart/model --objectives 1 2 4 --tasks 50 --keywords true",
    )
    options = parser.read(args)

    from ..hub.agent_settings import load_agent_settings

    # Short checks first, the model last
    protocol = chosen_protocol(options)
    saved = load_agent_settings(options.model_name_or_path)
    try:
        dataclasses.replace(saved or AgentSettings(), **options.given())
    except ValueError as error:
        raise CommandError(str(error)) from None
    questions = options.load_questions()
    factory = options.environment_factory(options.top_k or (saved or AgentSettings()).environment.get("top_k", 3))
    agent = open_agent(options, protocol)

    from ..evaluation.evaluate import evaluate_objectives
    from ..evaluation.result import slug

    output = Path(options.output_dir) / "evaluation"
    evaluations = evaluate_objectives(
        agent,
        questions,
        factory,
        objectives=options.objectives,
        tasks=options.tasks,
        output_dir=output,
        label=options.label,
        max_turns=None if options.max_turns is None else lambda n: options.max_turns,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    if options.memory_value is not None:
        from ..evaluation.memory import measure_memory

        for n, evaluation in evaluations.items():
            evaluations[n] = measure_memory(agent, evaluation, options.memory_value, min(options.batch_size, 8))
            evaluations[n].save(output, f"{slug(evaluation.agent)}-{n}")
    _print_table(evaluations)
    print(f"written to {output}; `mem1 report {options.output_dir}` makes a page of it")


def _print_table(evaluations: dict[int, Evaluation]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    first = next(iter(evaluations.values()))
    table = Table(title=f"{first.agent}: means over the tasks, and a 95% interval", box=SIMPLE)
    table.add_column("objectives", justify="right")
    shown = {
        "exact_match": ("EM", ".2f"),
        "exact_match_per_objective": ("EM per objective", ".2f"),
        "peak_tokens": ("peak tokens", ",.0f"),
        "dependency_length": ("dependency", ",.0f"),
        "turns": ("turns", ".1f"),
    }
    for heading, _ in shown.values():
        table.add_column(heading, justify="right", no_wrap=heading == "EM per objective")
    for n, evaluation in evaluations.items():
        cells = []
        for metric, (_, form) in shown.items():
            found = evaluation.statistics.get(metric)
            cells.append("" if found is None else f"{found.mean:{form}}")
            if found is not None and metric == "exact_match_per_objective":  # all intervals would not fit a terminal
                cells[-1] += f" \\[{found.low:{form}}, {found.high:{form}}]"
        table.add_row(str(n), *cells)
    Console().print(table)
    failed = {n: evaluation.errors for n, evaluation in evaluations.items() if evaluation.errors}
    for n, share in failed.items():
        print(f"{n} objectives: {share:.1%} of the episodes failed and count 0; their errors are in the .jsonl file")
