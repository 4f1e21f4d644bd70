"""The model card: TRL's, extended by the settings of the agent, its training, and a snippet that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..environment_runtime.process import ProcessEnvironment
from ..environments.recipe import Recipe
from ..rollout.settings import AgentSettings
from ..version import __version__
from .card_evaluation import card_evaluations, evaluation_results, evaluation_section
from .environment_stub import environment_stub
from .markdown import markdown_table
from .training_curves import CURVES_FILE, draw_curves

_VERSION = re.compile(r"^- (\w+): (\S+)$", re.MULTILINE)

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
    name = card.data.model_name or path.resolve().parent.name
    card.data.pop("licence", None)  # TRL's placeholder
    if facts.adapter:
        card.data.library_name = "peft"
    card.data.pipeline_tag = "text-generation"
    evaluations = card_evaluations(facts.evaluation, facts.log_history)
    if evaluations:
        card.data.model_name = name  # without it the results are not a valid model-index
        card.data.eval_results = evaluation_results(evaluations)
    curves = draw_curves(facts.log_history, path.parent / CURVES_FILE)
    sections = [
        f"# {name}",
        _introduction(card, facts),
        "## Use this model",
        f"```python\n{usage_snippet(facts)}\n```",
        _how_it_is_run(facts),
        evaluation_section(evaluations, facts.log_history),
        "## Training",
        _training(card.text, facts, curves),
        "## Framework versions",
        markdown_table(("library", "version"), sorted({"mem1-trl": __version__, **_trl_versions(card.text), **facts.versions}.items())),
        "## Citations",
        f"Cite MEM1 as:\n\n```bibtex\n{facts.citation.strip()}\n```",
        "Cite TRL as:\n\n" + card.text.partition("Cite TRL as:")[2].strip(),
    ]  # fmt: skip
    card.text = "\n\n".join(section for section in sections if section) + "\n"
    card.save(path)


def usage_snippet(facts: CardFacts) -> str:
    """
    Python code that loads the model and runs it on one task in an environment as that of the run.

    It can be executed unchanged, unless the environment was made with something that no code can write down, such as an index in
    memory: then the code says what it was, and where to put it. A model of a run without environment has read no instructions, and is
    no agent.
    """
    if facts.environment is None:
        return "\n".join(
            [
                "from transformers import pipeline",
                "",
                f'generate = pipeline("text-generation", "{facts.source}")',
                'print(generate("Your task", return_full_text=False)[0]["generated_text"])',
            ]
        )
    shipped = shipped_class(facts.environment)
    lines = ["from mem1_trl import Mem1Agent"]
    if shipped is not None:
        recipe = getattr(facts.environment, "_recipe", None) or Recipe(f"{shipped.__name__}()")
        lines += [f"from {_public_module(shipped)} import {shipped.__name__}", ""]
        lines += [
            f"{name} = ...  # to be filled in; in the run it was {what}" for name, what in recipe.missing.items()
        ]
        environment = recipe.code
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
    parts.append(markdown_table(("setting", "value"), rows))
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
    parts.append(markdown_table(("setting", "value"), rows))
    return "\n\n".join(parts)


def _plain(value: Any) -> Any:
    """The value in the form of a configuration file."""
    return value.value if isinstance(value, Enum) else value


def _trl_versions(trl_text: str) -> dict[str, str]:
    return dict(_VERSION.findall(trl_text))


def _public_module(kind: type) -> str:
    """The package of this project that exports a class."""
    parent = kind.__module__.rpartition(".")[0]
    return parent if parent != "mem1_trl" else kind.__module__
