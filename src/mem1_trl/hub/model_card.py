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
_OF_ONE_COMPLETION = (
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "chat_template_kwargs",
    "conversational",
)
"""Settings that a model of a run without environment has: it neither takes turns nor reads observations."""

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

    @property
    def is_agent(self) -> bool:
        """Whether the model acts in an environment. Without one it completes a prompt once."""
        return self.environment is not None

    @property
    def is_of_paper(self) -> bool:
        """Whether the run was one of the method of the paper, which is that of its context rule."""
        return self.is_agent and self.settings.context == "mem1"


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
        task = {} if facts.is_agent else {"task": "One completion of a prompt"}
        card.data.eval_results = evaluation_results(evaluations, **task)
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
        f"Cite MEM1 as:\n\n```bibtex\n{facts.citation.strip()}\n```" if facts.is_of_paper else "",
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
    if not facts.is_agent:
        task = '[{"role": "user", "content": "Your task"}]' if facts.settings.conversational else '"Your task"'
        return "\n".join(
            [
                "from transformers import pipeline",
                "",
                f'generate = pipeline("text-generation", "{facts.source}")',
                f'print(generate({task}, return_full_text=False)[0]["generated_text"])',
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
    made = f"made from {of} by [TRL](https://github.com/huggingface/trl) and mem1-trl"
    if not facts.is_agent:
        return f"A model {made}. It writes one completion of a prompt, and has learned from the reward of that."
    rule = facts.settings.context
    reads = _CONTEXTS.get(rule, f"What it reads at each turn is chosen by the context rule `{rule}`")
    title, arxiv = facts.paper
    paper = f" ([{title}](https://huggingface.co/papers/{arxiv}))" if facts.is_of_paper else ""
    return f"An agent {made}. {reads}{paper}."


def _how_it_is_run(facts: CardFacts) -> str:
    settings = facts.settings.to_dict()
    rows = [
        (f"`{name}`", f"`{_plain(value)}`")
        for name, value in settings.items()
        if value not in (None, {}) and (facts.is_agent or name in _OF_ONE_COMPLETION)
    ]
    files = "`mem1_protocol.json` and `mem1_agent.json`" if facts.is_agent else "`mem1_agent.json`"
    sampled = facts.training.get("temperature", settings["temperature"])
    other = (
        ""
        if sampled == settings["temperature"]
        else f" The temperature is that of evaluation; training sampled at {sampled}."
    )
    parts = [f"Run it with these settings, which are saved with the weights in {files}.{other}"]
    parts.append(markdown_table(("setting", "value"), rows))
    if facts.turn:
        parts.append("Its actions, as listed in its task prompt:")
        parts.append("```\n" + "\n".join(facts.turn) + "\n```")
    return "\n\n".join(parts)


def _training(trl_text: str, facts: CardFacts, curves: bool) -> str:
    badges = [line.strip() for line in trl_text.splitlines() if line.strip().startswith("[<img")]
    title, arxiv = facts.paper
    parts = ["\n".join(badges)] if badges else []
    method = facts.trainer_name.removeprefix("MEM1 ")
    if facts.is_of_paper:
        method = f"{facts.trainer_name}, a method of [{title}](https://huggingface.co/papers/{arxiv})"
    scored = _STITCHED if facts.training.get("layout") == "paper" else _EXACT
    parts.append(f"Trained with {method}, as implemented by mem1-trl: {scored}.")
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
