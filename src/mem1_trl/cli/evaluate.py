"""`mem1 eval --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from ..rollout.settings import setting
from ..typed_fields import check_seed
from .agent_options import AgentArguments, chosen_protocol, open_agent
from .options import ConfigParser, check_writable, naming_options
from .own_code import check_environment
from .search_options import SearchArguments
from .task_options import TaskArguments, listed_objectives, naming_objectives

if TYPE_CHECKING:
    from ..agent import Mem1Agent
    from ..evaluation.result import Evaluation

Play: TypeAlias = "Callable[[Mem1Agent], dict[str, Evaluation]]"
"""Evaluates an agent; returns what was found by the names of its files."""


@dataclass
class EvalArguments(AgentArguments, SearchArguments, TaskArguments):
    """
    Arguments of `mem1 eval`.

    Parameters:
        > Parameters that control the agent, besides those of [`AgentArguments`]

        label (`str`, *optional*):
            Name of the agent in tables, plots and files. `None` takes the name of the model: the last part of its path or id.
        max_turns (`int`, *optional*):
            Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond; in an environment,
            those that were saved with the model.

        > Parameters that control the tasks, besides those of [`SearchArguments`] and [`TaskArguments`]

        objectives (`list[int]`, *optional*):
            Numbers of objectives. `None` takes 1, 2, 3, 4, 6, 8 and 16, as far as there are so many different questions.
        tasks (`int`, *optional*, defaults to `200`):
            Tasks for each number; of an environment, at most so many, drawn by `seed`.

        > Parameters that control the run

        output_dir (`str`, *optional*, defaults to `"runs/eval"`):
            Where `evaluation/<label>-<n>.json` and `.jsonl` are written. What is there already is not played again. In an environment it
            is `<label>.json` and `.jsonl`.
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
        help="Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond; in an "
        "environment, those that were saved with the model.",
    )
    objectives: list[int] | None = field(
        default=None,
        metadata={
            "help": "Numbers of objectives. `None` takes 1, 2, 3, 4, 6, 8 and 16, as far as there are so many different questions."
        },
    )
    tasks: int = field(
        default=200,
        metadata={"help": "Tasks for each number of objectives; of an environment, at most so many, drawn by seed."},
    )
    output_dir: str = field(
        default="runs/eval",
        metadata={
            "help": "Where `evaluation/<label>-<n>.json` and `.jsonl` are written. What is there already is not played again. In an "
            "environment it is `<label>.json` and `.jsonl`."
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
        if isinstance(self.seed, int):  # other types are refused later
            check_seed(self.seed)
        super().__post_init__()
        self._check_environment("objectives", "top_k")
        self.check_endpoint()
        if self.memory_value is not None and self.endpoint is not None:
            raise ValueError("memory_value needs a model that is loaded here: leave out endpoint, or memory_value")


def run(args: Sequence[str]) -> None:
    """Evaluate an agent, print the table, and say where the files are."""
    parser = ConfigParser(
        EvalArguments,
        prog="mem1 eval",
        usage="mem1 eval --model_name_or_path PATH_OR_ID [OPTIONS] [--config FILE.yaml]",
        description="Evaluate an agent on tasks of more and more objectives: several questions at once, answered by searching; or on the "
        "tasks of an environment of yours.",
        epilog="""examples:
  mem1 eval --model_name_or_path runs/quickstart/model --objectives 1 2 4 --tasks 50 --keywords true
  mem1 eval --model_name_or_path runs/shop --environment my_shop.ShopEnvironment --dataset_name tasks.jsonl
""",
    )
    options = parser.read(args)

    # Short checks first, the model last
    protocol = chosen_protocol(options)
    options.settings()
    factory = options.environment_factory(options.passages())
    check_environment(protocol, options.protocol_source(options.model_name_or_path), factory)
    output = Path(options.output_dir) / "evaluation"
    label = options.label or _name(options.endpoint_model or options.model_name_or_path)
    play = (
        _questions(options, factory, output, label)
        if options.environment is None
        else _tasks(options, factory, output, label)
    )

    check_writable(options.output_dir, "output_dir")

    from tqdm.contrib.logging import logging_redirect_tqdm

    agent = open_agent(options, protocol)
    with logging_redirect_tqdm():  # else a warning goes on in the line of the progress bar
        evaluations = play(agent)
    if options.memory_value is not None:
        from ..evaluation.memory import measure_memory

        for name, evaluation in evaluations.items():
            evaluations[name] = measure_memory(agent, evaluation, options.memory_value, min(options.batch_size, 8))
            evaluations[name].save(output, name)
    _print_table(list(evaluations.values()), _MEANS if options.environment is None else _MEANS_OF_REWARDS)
    print(f"written to {output}; `mem1 report {options.output_dir}` makes a page of it")


def _name(path_or_id: str) -> str:
    """The last part of a path or an id: an adapter has the name of its own folder, not that of the model below it."""
    return Path(os.path.abspath(path_or_id)).name


_OF_FINISHED = {"`label` or `output_dir`": "--label or --output_dir"}


def _questions(options: EvalArguments, factory: Any, output: Path, label: str) -> Play:
    """Evaluates an agent on questions, several at once; their tasks are composed here, before the model is loaded."""
    from ..evaluation.objectives import compose_tasks, evaluate_composed
    from ..evaluation.result import slug

    most = options.max_turns
    with naming_objectives():
        tasks = compose_tasks(options.load_questions(), options.objectives, options.tasks, seed=options.seed)

    def play(agent: Mem1Agent) -> dict[str, Evaluation]:
        with naming_options(_OF_FINISHED):
            evaluations = evaluate_composed(
                agent,
                tasks,
                factory,
                output_dir=output,
                label=label,
                max_turns=None if most is None else lambda n: most,
                batch_size=options.batch_size,
                seed=options.seed,
            )
        return {f"{slug(label)}-{n}": evaluation for n, evaluation in evaluations.items()}

    return play


def _tasks(options: EvalArguments, factory: Any, output: Path, label: str) -> Play:
    """Evaluates an agent on the tasks of an environment."""
    from ..evaluation.result import slug

    assert options.dataset_name is not None  # `TaskArguments` refuses an environment without tasks
    name = slug(label)
    rows = options.load_tasks(options.dataset_name)
    if len(rows) > options.tasks:
        rows = rows.select(sorted(Random(options.seed).sample(range(len(rows)), options.tasks)))

    def play(agent: Mem1Agent) -> dict[str, Evaluation]:
        from ..evaluation.evaluate import evaluate_or_load

        if options.max_turns is not None:
            agent.settings = dataclasses.replace(agent.settings, max_turns=options.max_turns)
        with naming_options(_OF_FINISHED):
            evaluation = evaluate_or_load(
                agent,
                rows,
                factory,
                output,
                name,
                label,
                options.batch_size,
                seed=options.seed,
                settings={"environment_path": options.environment, "dataset_name": options.dataset_name},
            )
        return {name: evaluation}

    return play


_MEANS = {
    "exact_match": ("EM", ".2f"),
    "exact_match_per_objective": ("EM per objective", ".2f"),
    "peak_tokens": ("peak tokens", ",.0f"),
    "dependency_length": ("dependency", ",.0f"),
    "turns": ("turns", ".1f"),
}
"""Score -> its heading in the table, and how its mean is written."""

_MEANS_OF_REWARDS = {"reward": ("reward", ".2f"), **_MEANS}

_WITH_INTERVAL = ("exact_match_per_objective", "reward")
"""Scores whose interval is shown; all intervals would not fit a terminal."""


def _print_table(evaluations: list[Evaluation], means: dict[str, tuple[str, str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    of_objectives = means is _MEANS
    found = {name for evaluation in evaluations for name in evaluation.statistics}
    shown = {metric: form for metric, form in means.items() if metric in found}
    table = Table(title=Text(f"{evaluations[0].agent}: means over the tasks, and a 95% interval"), box=SIMPLE)
    table.add_column("objectives" if of_objectives else "tasks", justify="right")
    for metric, (heading, _) in shown.items():
        table.add_column(heading, justify="right", no_wrap=metric in _WITH_INTERVAL)
    for evaluation in evaluations:
        cells = []
        for metric, (_, form) in shown.items():
            statistic = evaluation.statistics.get(metric)
            cells.append("" if statistic is None else f"{statistic.mean:{form}}")
            if statistic is not None and metric in _WITH_INTERVAL:
                cells[-1] += f" \\[{statistic.low:{form}}, {statistic.high:{form}}]"
        table.add_row(str(evaluation.objectives if of_objectives else len(evaluation.tasks)), *cells)
    Console().print(table)
    if not of_objectives and "reward" not in found:
        print("the environment gives no reward (`get_reward`), so that the table shows costs only")
    for evaluation in evaluations:
        if evaluation.errors:
            of = f"{evaluation.objectives} objectives: " if of_objectives else ""
            print(
                f"{of}{evaluation.errors:.1%} of the episodes failed and count 0; their errors are in the .jsonl file"
            )
