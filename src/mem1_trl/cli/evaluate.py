"""`mem1 eval --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..context_rules.named import import_rule
from ..json_text import read_json
from ..protocol.presets import PRESETS
from ..rollout.settings import AgentSettings, setting
from .options import CommandError, ConfigParser
from .task_options import TaskArguments, listed_objectives

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation
    from ..protocol.protocol import Mem1Protocol


def _saved(name: str) -> Any:
    """A field of [`AgentSettings`] that is not set, which takes the value saved with the model."""
    own = next(one for one in fields(AgentSettings) if one.name == name)
    return setting(name, default=None, help=f"{own.metadata['help']} Default: as saved with the model.")


@dataclass
class EvalArguments(TaskArguments):
    """
    Arguments of `mem1 eval`.

    Parameters:
        > Parameters that control the agent

        model_name_or_path (`str`):
            Path or id of a causal language model.
        label (`str`, *optional*):
            Name of the agent in tables, plots and files. `None` takes the name of the model.
        max_turns (`int`, *optional*):
            Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond.
        context, context_kwargs, max_completion_length, max_observation_length, max_context_length, memory_top_k, temperature, top_p, min_p,
        repetition_penalty, conversational (*optional*):
            As in [`AgentSettings`]. `None` takes what was saved with the model (`mem1_agent.json`), else the default there.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        device (`str`, *optional*):
            Where the model runs. `None` takes a GPU if there is one.
        endpoint (`str`, *optional*):
            Address of a server that runs the model, such as `http://localhost:8000/v1`; then `model_name_or_path` gives the
            tokenizer, the protocol and the saved settings only.
        endpoint_model (`str`, *optional*):
            Name of the model at the server. `None` takes `model_name_or_path`.
        backend (`str`, *optional*):
            How the server is spoken to: `"completions"` or `"chat"`, see [`Mem1Agent`]. `None` takes completions if it offers them.

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
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once.
        memory_value (`str` or `None`, *optional*):
            Measure what each state is worth, in nats, with nothing in its place (`"blank"`) or the state of another episode (`"swap"`).
        seed (`int`, *optional*, defaults to `0`):
            Of the choice of tasks, of sampling and of the intervals.
    """

    model_name_or_path: str = field(kw_only=True, metadata={"help": "Path or id of a causal language model."})
    label: str | None = field(
        default=None,
        metadata={"help": "Name of the agent in tables, plots and files. `None` takes the name of the model."},
    )
    context: str | None = _saved("context")
    context_kwargs: dict | str | None = _saved("context_kwargs")  # noqa: RUF009  # the type that TRL's own have
    max_turns: int | None = setting(
        "max_turns",
        default=None,
        help="Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond.",
    )
    max_completion_length: int | None = _saved("max_completion_length")
    max_observation_length: int | None = _saved("max_observation_length")
    max_context_length: int | None = _saved("max_context_length")
    memory_top_k: int | None = _saved("memory_top_k")
    temperature: float | None = _saved("temperature")
    top_p: float | None = _saved("top_p")
    min_p: float | None = _saved("min_p")
    repetition_penalty: float | None = _saved("repetition_penalty")
    conversational: bool | None = _saved("conversational")
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(
        default=None, metadata={"help": "Where the model runs. `None` takes a GPU if there is one."}
    )
    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Address of a server that runs the model, such as http://localhost:8000/v1; then model_name_or_path gives "
            "the tokenizer, the protocol and the saved settings only."
        },
    )
    endpoint_model: str | None = field(
        default=None,
        metadata={"help": "Name of the model at the server. `None` takes model_name_or_path."},
    )
    backend: str | None = field(
        default=None,
        metadata={
            "help": "How the server is spoken to: raw contexts as in training, or chat messages. `None` takes completions if it "
            "offers them.",
            "choices": ["completions", "chat"],
        },
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
    batch_size: int = field(default=32, metadata={"help": "Episodes played at once."})
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
        if self.memory_value is not None and self.endpoint is not None:
            raise ValueError("memory_value needs a model that is loaded here: leave out endpoint, or memory_value")
        if self.endpoint is None and (self.backend or self.endpoint_model):
            name = "backend" if self.backend else "endpoint_model"
            raise ValueError(f"{name} is about a server: give its address with --endpoint, or leave {name} out")

    def given(self) -> dict[str, Any]:
        """Fields of [`AgentSettings`] that were set; sampling's `top_k` is none of them, since it means passages here."""
        names = [one.name for one in fields(AgentSettings) if one.name != "top_k" and hasattr(self, one.name)]
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        try:
            if isinstance(self.context_kwargs, str):
                found["context_kwargs"] = read_json(self.context_kwargs)
            if self.context is not None:
                import_rule(self.context)
                found.setdefault("context_kwargs", {})  # those that were saved are of another rule
        except ValueError as error:
            raise CommandError(str(error)) from None
        if not isinstance(found.get("context_kwargs", {}), dict):
            raise CommandError(f"context_kwargs must be a JSON object, got {self.context_kwargs!r}")
        return found


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
    protocol = _protocol(options)
    saved = load_agent_settings(options.model_name_or_path)
    try:
        dataclasses.replace(saved or AgentSettings(), **options.given())
    except ValueError as error:
        raise CommandError(str(error)) from None
    questions = options.load_questions()
    factory = options.environment_factory(options.top_k or (saved or AgentSettings()).environment.get("top_k", 3))
    agent = _agent(options, protocol)

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


def _protocol(options: EvalArguments) -> Mem1Protocol:
    from ..hub.agent_settings import saved_protocol

    try:
        return options.chosen_protocol() or saved_protocol(options.model_name_or_path)
    except FileNotFoundError:
        raise CommandError(
            f"there is no mem1_protocol.json at {options.protocol or options.model_name_or_path!r}: check the path, or say how "
            f"the model is spoken to with --protocol ({', '.join(PRESETS)}, or a directory)"
        ) from None


def _agent(options: EvalArguments, protocol: Mem1Protocol) -> Any:
    import torch
    from transformers.utils import logging

    from ..agent import Mem1Agent
    from ..hub.agent_settings import load_agent_settings

    logging.disable_progress_bar()
    budgets = {name: value for name, value in options.given().items() if name != "max_turns"}
    if options.endpoint is not None:
        from transformers import AutoTokenizer

        try:
            return Mem1Agent(
                options.endpoint_model or options.model_name_or_path,
                AutoTokenizer.from_pretrained(options.model_name_or_path),
                protocol,
                load_agent_settings(options.model_name_or_path),
                options.batch_size,
                client=options.endpoint,
                backend=options.backend,
                **budgets,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each unknown kind has its own
        reason = str(error).splitlines()[0]
        raise CommandError(
            f"device must be one that this machine has, such as cpu, got {device!r}: {reason}"
        ) from None
    return Mem1Agent.from_pretrained(
        options.model_name_or_path,
        protocol,
        model_init_kwargs={"dtype": options.dtype, "device_map": device},
        batch_size=options.batch_size,
        **budgets,
    )


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
