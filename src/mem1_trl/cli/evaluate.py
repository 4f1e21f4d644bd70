"""`mem1 eval --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rollout.settings import AgentSettings, setting
from .options import CommandError, ConfigParser, naming_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.result import Evaluation
    from ..protocol.protocol import Mem1Protocol

FACTS = "the bundled facts"
PROTOCOLS = ("default", "paper", "reference", "reference_inference", "tool_calls")


def _saved(name: str) -> Any:
    """A field of [`AgentSettings`] that is not set, which takes the value saved with the model."""
    own = next(one for one in fields(AgentSettings) if one.name == name)
    return setting(name, default=None, help=f"{own.metadata['help']} Default: as saved with the model.")


@dataclass
class EvalArguments:
    """
    Arguments of `mem1 eval`.

    Parameters:
        > Parameters that control the agent

        model_name_or_path (`str`):
            Path or id of a causal language model.
        label (`str`, *optional*):
            Name of the agent in tables, plots and files. `None` takes the name of the model.
        protocol (`str`, *optional*):
            `"default"`, `"paper"`, `"reference"`, `"reference_inference"`, `"tool_calls"`, or a directory with
            `mem1_protocol.json`. `None` takes the one that was saved with the model.
        max_turns (`int`, *optional*):
            Maximum number of turns of an episode. `None` allows the paper's: 6 for up to four objectives, 20 beyond.
        context, max_completion_length, max_observation_length, max_context_length, memory_top_k, temperature, top_p, min_p,
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

        > Parameters that control the tasks

        objectives (`list[int]`, *optional*, defaults to `[1, 2, 3, 4, 6, 8, 16]`):
            Numbers of objectives.
        tasks (`int`, *optional*, defaults to `200`):
            Tasks for each number.
        questions (`str`, *optional*):
            File or id of a data set of questions and answers, see [`mem1_trl.tasks.load_qa_dataset`]. `None` asks about the
            bundled facts.
        split (`str`, *optional*, defaults to `"test"`):
            Split of the questions.
        question_column, answer_column (`str`, *optional*):
            Columns of the questions and answers, if they are not those that are known.
        keywords (`bool`, *optional*, defaults to `False`):
            Whether to ask the bundled questions in search words, such as "capital of France".
        corpus (`str`, *optional*):
            File or id of a data set of passages, a folder of text files, a directory that `mem1 index` wrote, or the address of
            a retriever (`http://...`). `None` searches the bundled facts.
        corpus_split (`str`, *optional*, defaults to `"train"`):
            Split of the passages.
        corpus_title, corpus_text (`str`, *optional*, defaults to `"title"` and `"text"`):
            Columns of the passages.
        top_k (`int`, *optional*):
            Passages per search. `None` takes what the model was trained with, or else 3.

        > Parameters that control the run

        output_dir (`str`, *optional*, defaults to `"runs/eval"`):
            Where `evaluation/<label>-<n>.json` and `.jsonl` are written. What is there already is not played again.
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once.
        seed (`int`, *optional*, defaults to `0`):
            Of the choice of tasks, of sampling and of the intervals.
    """

    model_name_or_path: str = field(metadata={"help": "Path or id of a causal language model."})
    label: str | None = field(
        default=None,
        metadata={"help": "Name of the agent in tables, plots and files. `None` takes the name of the model."},
    )
    protocol: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(PROTOCOLS)}, or a directory with mem1_protocol.json. `None` takes the one that was "
            "saved with the model."
        },
    )
    context: str | None = _saved("context")
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
    questions: str | None = field(
        default=None,
        metadata={
            "help": "File (.jsonl, .json, .csv, .parquet) or id of a data set with questions and answers. `None` asks about "
            "the bundled facts."
        },
    )
    split: str = field(default="test", metadata={"help": "Split of the questions."})
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the questions, if it is not one that is known."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the answers, if it is not one that is known."}
    )
    keywords: bool = field(
        default=False,
        metadata={"help": "Whether to ask the bundled questions in search words, such as `capital of France`."},
    )
    corpus: str | None = field(
        default=None,
        metadata={
            "help": "File (.jsonl, .json, .csv, .parquet) or id of a data set of passages, a folder of text files, a directory of "
            "`mem1 index`, or the address of a retriever (http://...). `None` searches the bundled facts."
        },
    )
    corpus_split: str = field(default="train", metadata={"help": "Split of the passages."})
    corpus_title: str = field(default="title", metadata={"help": "Column of the passages with the title."})
    corpus_text: str = field(default="text", metadata={"help": "Column of the passages with the text."})
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
    seed: int = field(default=0, metadata={"help": "Of the choice of tasks, of sampling and of the intervals."})

    def __post_init__(self) -> None:
        if isinstance(self.objectives, int):
            self.objectives = [self.objectives]
        if isinstance(self.objectives, list) and any(isinstance(n, int) and n < 1 for n in self.objectives):
            raise ValueError(f"objectives={self.objectives} must be 1 or more each")
        for name in ("tasks", "top_k", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.keywords and self.questions is not None:
            raise ValueError("keywords belong to the bundled facts: leave it out, or leave out questions")
        if self.endpoint is None and (self.backend or self.endpoint_model):
            name = "backend" if self.backend else "endpoint_model"
            raise ValueError(f"{name} is about a server: give its address with --endpoint, or leave {name} out")

    def given(self) -> dict[str, Any]:
        """Fields of [`AgentSettings`] that were set; sampling's `top_k` is none of them, since it means passages here."""
        names = [one.name for one in fields(AgentSettings) if one.name != "top_k" and hasattr(self, one.name)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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
    protocol = _protocol(options.protocol, options.model_name_or_path)
    saved = load_agent_settings(options.model_name_or_path)
    try:
        dataclasses.replace(saved or AgentSettings(), **options.given())
    except ValueError as error:
        raise CommandError(str(error)) from None
    questions = _questions(options)
    factory = _environments(options, options.top_k or (saved or AgentSettings()).environment.get("top_k", 3))
    agent = _agent(options, protocol)

    from ..evaluation.evaluate import evaluate_objectives

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
    _print_table(evaluations)
    print(f"written to {output}; `mem1 report {options.output_dir}` makes a page of it")


def _protocol(name: str | None, model: str) -> Mem1Protocol:
    from ..protocol.protocol import Mem1Protocol

    if name is None:
        try:
            return Mem1Protocol.from_pretrained(model)
        except FileNotFoundError:
            raise CommandError(
                f"there is no mem1_protocol.json at {model!r}: check the path, or say how the model is spoken to with "
                f"--protocol ({', '.join(PROTOCOLS)}, or a directory)"
            ) from None
    if name in PROTOCOLS:
        presets = {
            "default": Mem1Protocol,
            "paper": Mem1Protocol.paper,
            "reference": Mem1Protocol.reference,
            "reference_inference": lambda: Mem1Protocol.reference(inference=True),
            "tool_calls": Mem1Protocol.tool_calls,
        }
        return presets[name]()
    if not Path(name).is_dir():
        raise CommandError(f"protocol is {name!r}, but must be one of {', '.join(PROTOCOLS)}, or a directory")
    return Mem1Protocol.from_pretrained(name)


def _questions(options: EvalArguments) -> Dataset:
    """Columns `question` and `answer`."""
    if options.questions is not None:
        from ..tasks import load_qa_dataset

        columns = (options.question_column, options.answer_column)
        with naming_columns("--question_column", "--answer_column", ("question=", "answer=")):
            return load_qa_dataset(options.questions, options.split, *columns)
    from ..facts import KEYWORDS, load_facts

    questions = load_facts().questions(options.split)
    if options.keywords:  # only what can be put in search words
        asked = questions.select([i for i, relation in enumerate(questions["relation"]) if relation in KEYWORDS])
        questions = asked.remove_columns("question").rename_column("keywords", "question")
    return questions


def _environments(options: EvalArguments, top_k: int) -> Any:
    from ..environments import RetrievalQAEnvironment

    if options.corpus is None:
        from ..facts import load_facts

        return RetrievalQAEnvironment.factory(load_facts().corpus, top_k=top_k)

    from ..local_rows import has_rows

    corpus: Any = options.corpus
    if not corpus.startswith(("http://", "https://")) and not Path(corpus).exists():
        if has_rows(corpus):
            raise CommandError(f"there is no file {corpus!r} for the corpus")
        from datasets import load_dataset

        corpus = load_dataset(corpus, split=options.corpus_split)
    with naming_columns("--corpus_title", "--corpus_text"):
        return RetrievalQAEnvironment.factory(corpus, top_k, options.corpus_title, options.corpus_text)


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
