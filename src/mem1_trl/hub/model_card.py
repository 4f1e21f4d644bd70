"""The model card: TRL's, extended by the settings of the agent, its training, and a snippet that runs it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..environment_runtime.process import ProcessEnvironment
from ..environments.recipe import Recipe
from ..rollout.settings import AgentSettings
from ..version import __version__
from .environment_stub import environment_stub

CURVES_FILE = "training_curves.png"

# Metrics of an evaluation that the card shows, with their unit; others are only in the logs
_VERSION = re.compile(r"^- (\w+): (\S+)$", re.MULTILINE)
_METRICS = {
    "reward": "reward",
    "exact_match": "exact match, summed over the objectives of a task",
    "exact_match_per_objective": "exact match per objective",
    "f1": "F1, summed over the objectives of a task",
    "f1_per_objective": "F1 per objective",
    "success": "share of tasks solved",
    "turns": "turns per episode",
    "peak_tokens": "peak context in tokens",
    "dependency_length": "dependency length in attention pairs",
    "valid_action_rate": "share of turns with a valid action",
}

# What each turn reads, by the context rule of the run
_CONTEXTS = {
    "mem1": "At every turn it rewrites one compact internal state, acts, and forgets everything older, so that its context stays short "
    "even if the task is long",
    "external": "At every turn it rewrites one compact internal state and acts; of what is older, it reads the earlier observations that "
    "match best",
    "full": "At every turn it reads all turns before, so that its context grows with the task",
    "truncate": "At every turn it reads as many of the last turns as fit into a limit; it forgets those before them",
    "compact": "Its turns are appended up to a budget; then it writes a summary, which takes the place of all of them",
    "on_demand": "Its turns are appended until it decides to rewrite them: then a summary takes the place of all of them",
    "fold": "It may open a branch for a part of the task; of a branch that it has closed, only what it returned stays in its context",
}
_EXACT = "every token is scored in the context it was sampled in"
_STITCHED = "the turns of an episode are scored as one sequence, in which a token is not always in the context it was sampled in"

# Panels of the figure: title, keys of the log (the first one found is used), and whether the axis starts at zero
_PANELS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("reward", ("reward",), False),
    ("peak context (tokens)", ("episode/peak_tokens",), True),
    ("turns", ("episode/turns",), True),
    ("explained variance of the critic", ("value/explained_variance",), False),
    ("entropy (nats)", ("entropy",), False),
)


@dataclass
class CardFacts:
    """
    The content of a card beyond TRL's.

    Attributes:
        trainer_name (`str`):
            Name of the trainer, for instance `"MEM1 PPO"`.
        citation (`str`):
            BibTeX of the method.
        paper (`tuple[str, str]`):
            Title and arXiv id of the method.
        source (`str`):
            Id of the model on the Hub, or its name.
        environment (`Any`):
            An environment of the run, or `None`.
        environment_names (`Sequence[str]`):
            Names of the environments of the run, if it had several; `environment` is the first.
        turn (`Sequence[str]`):
            Descriptions of the actions, as shown to the agent.
        settings ([`AgentSettings`]):
            Settings that the agent is run with.
        training (`Mapping[str, Any]`):
            Settings of the training run, by name.
        log_history (`Sequence[Mapping[str, float]]`):
            `trainer.state.log_history`.
        evaluation (`Mapping[str, float]`, *optional*):
            Metrics of a separate evaluation.
        dataset_name (`str`, *optional*):
            Name of the data set of the evaluation.
        adapter (`bool`):
            Whether the weights are those of an adapter.
        versions (`dict[str, str]`):
            Versions of further libraries of the run, by name.
    """

    trainer_name: str
    citation: str
    paper: tuple[str, str]
    source: str
    environment: Any
    turn: Sequence[str]
    settings: AgentSettings
    training: Mapping[str, Any]
    log_history: Sequence[Mapping[str, float]]
    evaluation: Mapping[str, float] | None = None
    dataset_name: str | None = None
    environment_names: Sequence[str] = ()
    adapter: bool = False
    versions: dict[str, str] = field(default_factory=dict)


def complete_model_card(path: Path, facts: CardFacts) -> None:
    """
    Rewrite the card that TRL wrote as the card of an agent, and draw the training curves in the same directory.

    TRL's metadata (base model, data set, tags, tracking links) and TRL's citation are kept.

    Args:
        path (`Path`):
            The `README.md` that TRL wrote.
        facts ([`CardFacts`]):
            Content of the card.
    """
    card = ModelCard.load(path)
    name = card.data.model_name or path.parent.name
    card.data.pop("licence", None)  # TRL's placeholder
    if facts.adapter:
        card.data.library_name = "peft"
    card.data.pipeline_tag = "text-generation"
    results = evaluation_results(facts)
    if results:
        card.data.eval_results = results
    curves = draw_curves(facts.log_history, path.parent / CURVES_FILE)
    scores = [(str(result.metric_name), _digits(float(result.metric_value))) for result in results]
    sections = [
        f"# {name}",
        _introduction(card, facts),
        "## Use this model",
        f"```python\n{usage_snippet(facts)}\n```",
        _how_it_is_run(facts),
        *(["## Evaluation", _table(("metric", "value"), scores)] if scores else []),
        "## Training",
        _training(card.text, facts, curves),
        "## Framework versions",
        _table(("library", "version"), sorted({"mem1-trl": __version__, **_trl_versions(card.text), **facts.versions}.items())),
        "## Citations",
        f"Cite MEM1 as:\n\n```bibtex\n{facts.citation.strip()}\n```",
        "Cite TRL as:\n\n" + card.text.partition("Cite TRL as:")[2].strip(),
    ]  # fmt: skip
    card.text = "\n\n".join(section for section in sections if section) + "\n"
    card.save(path)


def evaluation_results(facts: CardFacts) -> list[EvalResult]:
    """
    The last evaluation as Hub metadata (`model-index`): the metrics that were passed, or else the last ones that the trainer logged.

    Returns:
        `list[EvalResult]`: One result per metric; empty if there was no evaluation.
    """
    metrics = dict(facts.evaluation or {})
    if not metrics:
        logged: Mapping[str, float] = next(
            (entry for entry in reversed(facts.log_history) if any(k.startswith("eval_") for k in entry)), {}
        )
        metrics = {
            key.removeprefix("eval_").rpartition("/")[2]: value
            for key, value in logged.items()
            if key.startswith("eval_")
        }
    dataset = facts.dataset_name or "evaluation tasks of the run"
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Agent over several turns",
            dataset_type=facts.dataset_name or "custom",
            dataset_name=dataset,
            metric_type=key,
            metric_name=label,
            metric_value=float(metrics[key]),
        )
        for key, label in _METRICS.items()
        if _is_number(metrics.get(key))
    ]


def usage_snippet(facts: CardFacts) -> str:
    """
    Python code that loads the model and runs it on one task in an environment as that of the run.

    It can be executed unchanged, unless the environment was made with something that no code can write down, such as an index in
    memory: then the code says what it was, and where to put it.
    """
    shipped = None if facts.environment is None else shipped_class(facts.environment)
    lines = ["from mem1_trl import Mem1Agent"]
    if shipped is not None:
        recipe = getattr(facts.environment, "_recipe", None) or Recipe(f"{shipped.__name__}()")
        lines += [f"from {_public_module(shipped)} import {shipped.__name__}", ""]
        lines += [
            f"{name} = ...  # to be filled in; in the run it was {what}" for name, what in recipe.missing.items()
        ]
        environment = recipe.code
    elif facts.environment is None:
        environment = "Environment()"
        lines += ["", "", "class Environment:", "    def reset(self, **row):", "        return None", "", ""]
    else:
        environment = "Environment()"
        lines += ["", "", environment_stub(facts.environment), "", ""]
    if len(facts.environment_names) > 1:
        names = ", ".join(map(repr, facts.environment_names))
        lines.append(f"# The run had several environments, {names}: this is the first")
    lines += [
        f'agent = Mem1Agent.from_pretrained("{facts.source}")',
        f'trajectory = agent.run("Your task", {environment})',
        "print(trajectory.answer, trajectory.metrics)",
    ]
    return "\n".join(lines)


def shipped_class(environment: Any) -> type | None:
    """The class of an environment if it comes with this package, `None` for one of the user's, also in a process of its own."""
    kind = type(environment)
    if isinstance(environment, ProcessEnvironment):
        return None
    return kind if kind.__module__.startswith("mem1_trl.") else None


def draw_curves(log_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """
    Draw reward, context and other logged metrics over the optimizer steps.

    Args:
        log_history (`Sequence[Mapping[str, float]]`):
            `trainer.state.log_history`.
        path (`Path`):
            Image file to write.

    Returns:
        `bool`: Whether there was anything to draw; this needs two log entries.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = []
    for title, keys, from_zero in _PANELS:
        train = next((series for key in keys if len((series := _series(log_history, key))) > 1), [])
        if train:
            panels.append((title, train, _series(log_history, f"eval_{keys[0]}"), from_zero))
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    for index, (title, train, evaluated, from_zero) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        many = len(train) > 20
        marker = "" if many else "o"
        axes.plot(*zip(*train), color="#4c78a8", linewidth=1, alpha=0.4 if many else 1.0, marker=marker, markersize=3)
        if many:
            axes.plot(*zip(*_smooth(train)), color="#4c78a8", linewidth=2)
        if evaluated:
            axes.plot(*zip(*evaluated), color="#e45756", marker="o", linewidth=1, markersize=4, label="evaluation")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        if from_zero:
            axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)
    return True


def _series(log_history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    points = {entry["step"]: entry[key] for entry in log_history if _is_number(entry.get(key))}
    return sorted(points.items())


def _is_number(value: Any) -> bool:
    """Whether a logged value can be shown; the log contains `None` instead of NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running mean over a tenth of the run."""
    width = max(2, len(points) // 10)
    means = []
    for index, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, index - width + 1) : index + 1]]
        means.append((step, sum(window) / len(window)))
    return means


def _introduction(card: ModelCard, facts: CardFacts) -> str:
    base = card.data.to_dict().get("base_model")
    of = f"[{base}](https://huggingface.co/{base})" if isinstance(base, str) else "a causal language model"
    rule = facts.settings.context
    reads = _CONTEXTS.get(rule, f"What it reads at each turn is chosen by the context rule `{rule}`")
    title, arxiv = facts.paper
    paper = f" ([{title}](https://huggingface.co/papers/{arxiv}))" if rule == "mem1" else ""
    return f"An agent made from {of} by [TRL](https://github.com/huggingface/trl) and mem1-trl. {reads}{paper}."


def _how_it_is_run(facts: CardFacts) -> str:
    rows = [
        (f"`{name}`", f"`{_plain(value)}`")
        for name, value in facts.settings.to_dict().items()
        if value not in (None, {})
    ]
    parts = [
        "Run it with the settings it was trained with, which are saved with the weights in `mem1_protocol.json` and "
        "`mem1_agent.json`:"
    ]
    parts.append(_table(("setting", "value"), rows))
    if facts.turn:
        parts.append("Its actions, as listed in its task prompt:")
        parts.append("```\n" + "\n".join(facts.turn) + "\n```")
    return "\n\n".join(parts)


def _training(trl_text: str, facts: CardFacts, curves: bool) -> str:
    badges = [line.strip() for line in trl_text.splitlines() if line.strip().startswith("[<img")]
    title, arxiv = facts.paper
    parts = ["\n".join(badges)] if badges else []
    parts.append(
        f"Trained with {facts.trainer_name}, a method of [{title}](https://huggingface.co/papers/{arxiv}), as implemented by "
        f"mem1-trl: {_STITCHED if facts.training.get('layout') == 'paper' else _EXACT}."
    )
    if curves:
        parts.append(f"![training curves]({CURVES_FILE})")
    rows = [(f"`{name}`", f"`{_plain(value)}`") for name, value in facts.training.items()]
    parts.append(_table(("setting", "value"), rows))
    return "\n\n".join(parts)


def _plain(value: Any) -> Any:
    """The value in the form of a configuration file."""
    return value.value if isinstance(value, Enum) else value


def _digits(value: float) -> str:
    """A number as a reader writes it, not as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|---|---|", *(line(row) for row in rows)])


def _trl_versions(trl_text: str) -> dict[str, str]:
    return dict(_VERSION.findall(trl_text))


def _public_module(kind: type) -> str:
    """The package of this project that exports a class."""
    parent = kind.__module__.rpartition(".")[0]
    return parent if parent != "mem1_trl" else kind.__module__
