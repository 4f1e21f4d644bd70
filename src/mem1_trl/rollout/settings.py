"""How an agent is run: the one list of budgets, context rule, decoding and chat format that training and use share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..context_rules.named import check_kind, describe_rule, given_rule, is_loaded, make_rule, may_recall
from ..context_rules.rule import ContextRule
from ..json_text import is_json
from ..typed_fields import check_fields, described, is_wrong_number, type_hints
from .decoding_modes import NEUTRAL_SAMPLING, listed_bias, refuse_decoding_modes

CHARACTERS_PER_TOKEN = (8, 32, 128)
"""
Characters that are tokenized for each token of room: enough for prose, and more if they were not. The last exceeds what any
tokenizer fits into one token of prose.
"""


def _at_least_one(default: int, help: str) -> Any:
    return field(default=default, metadata={"help": help, "minimum": 1})


ROLLOUT_MODES = ("async", "lockstep")
"""How episodes are played together: each goes on as soon as its own actions have returned, or all wait for the slowest in every turn."""

LEAST_TEMPERATURE = 1e-5
"""A temperature below it is 0, as in vLLM: logits that are divided by it may overflow, and what is drawn is the most likely token anyway."""

BATCH_WAIT = 0.02
"""Seconds for which a context that is ready waits for others, to be generated with them."""


def check_rollout_mode(rollout_mode: str, rollout_batch_wait: float) -> None:
    """Raise a `ValueError` unless these say how episodes are played together."""
    if rollout_mode not in ROLLOUT_MODES:
        raise ValueError(f"rollout_mode must be one of {', '.join(map(repr, ROLLOUT_MODES))}, got {rollout_mode!r}.")
    if not 0 <= rollout_batch_wait < float("inf"):
        raise ValueError(f"rollout_batch_wait must be a number of seconds, at least 0, got {rollout_batch_wait}.")


def unread(settings: Any) -> dict[str, tuple[str, str]]:
    """
    Settings that others turn off.

    Args:
        settings (`Any`):
            An object with a `context` and a `temperature`, such as [`AgentSettings`] or a [`Mem1GRPOConfig`].

    Returns:
        `dict[str, tuple[str, str]]`: of each name, why nothing reads it, and what gives it an effect.
    """
    found = {}
    if not may_recall(settings.context):
        found["memory_top_k"] = (f"has no effect with context={settings.context!r}", "use 'external'")
    if settings.temperature == 0:
        because = "has no effect with temperature=0, which takes the most likely token"
        found |= dict.fromkeys(("top_p", "top_k", "min_p"), (because, "raise that"))
    return found


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """
    Everything that decides how a model is run as an agent, its protocol aside.

    Trainers make it from their configuration and save it next to the model as `mem1_agent.json`; [`Mem1Agent`], `mem1 eval` and
    the model card read it from there, so that a model is run as it was trained.

    Attributes:
        max_turns (`int`, *optional*, defaults to `6`):
            Maximum number of turns of an episode. The paper uses 6 for up to four objectives and 20 beyond.
        max_completion_length (`int`, *optional*, defaults to `1000`):
            Maximum number of tokens of one turn.
        max_observation_length (`int`, *optional*, defaults to `1000`):
            Maximum number of tokens of one observation, its tags and hint included. A longer one is cut, and says so.
        context (`str`, *optional*, defaults to `"mem1"`):
            What the next turn reads after the task prompt: the last turn and its observation (`"mem1"`), all turns
            (`"full"`), as many whole turns as fit into `max_context_length` (`"truncate"`), the last turn and the best
            matches from a BM25 store of past observations (`"external"`), all turns until a budget is reached and a summary of them
            then (`"compact"`), or what the agent decides by actions (`"on_demand"`, `"fold"`). Or the import path of a
            [`ContextRule`] of yours, `"module:Class"`, or a rule itself; see [`mem1_trl.context_rules`].
        context_kwargs (`dict`, *optional*):
            Parameters of the context rule, such as `{"every": 4}` for `"compact"`.
        max_context_length (`int` or `None`, *optional*):
            Maximum number of tokens of one context, its completion not counted. `None` uses the model's maximum position
            minus `max_completion_length`. The task prompt is never cut: a longer one is an error.
        memory_top_k (`int`, *optional*, defaults to `3`):
            Maximum number of past observations that `context="external"` puts back into a context.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0.0` decodes greedily. One below [`LEAST_TEMPERATURE`] is `0.0`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Smallest cumulative probability of the tokens that are sampled from; `1.0` considers all tokens.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens that are sampled from; `0` considers all tokens.
        min_p (`float` or `None`, *optional*):
            Minimum probability of a token that is sampled, relative to that of the most likely one.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Factor that makes tokens already in the context less likely; `1.0` changes nothing.
        generation_kwargs (`dict`, *optional*):
            Further arguments of `generate`, such as `no_repeat_ngram_size`.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template.
        conversational (`bool` or `None`, *optional*):
            Whether a task that is a text is given to the model as a user's message through its chat template. Tasks that are
            messages always are. `None` decides by the data set and the tokenizer, see [`resolve_conversational`].
        environment (`dict`, *optional*):
            What the environment was made with, by name, where it says so in its property `mem1_settings`.

    Raises:
        `ValueError`: If a value is out of its range.
    """

    max_turns: int = _at_least_one(
        6, "Maximum number of turns of an episode. The paper uses 6 for up to four objectives and 20 beyond."
    )
    max_completion_length: int = _at_least_one(1000, "Maximum number of tokens of one turn.")
    max_observation_length: int = _at_least_one(
        1000,
        "Maximum number of tokens of one observation, its tags and hint included. A longer one is cut, and says so.",
    )
    context: str = field(
        default="mem1",
        metadata={
            "help": "What the next turn reads after the task prompt: the last turn and its observation (`mem1`), all turns "
            "(`full`), as many whole turns as fit into `max_context_length` (`truncate`), the last turn and the best "
            "matches from a BM25 store of past observations (`external`), all turns until a budget is reached and a summary of them then "
            "(`compact`), or what the agent decides by actions (`on_demand`, `fold`). Or the import path of a rule of yours, "
            "`module:Class`.",
        },
    )
    context_kwargs: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Parameters of the context rule, such as '{\"every\": 4}' for `compact`."},
    )
    max_context_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of one context, its completion not counted. `None` uses the model's maximum "
            "position minus max_completion_length. The task prompt is never cut: a longer one is an error.",
            "minimum": 1,
        },
    )
    memory_top_k: int = _at_least_one(
        3, "Maximum number of past observations that `context='external'` puts back into a context."
    )
    temperature: float = field(
        default=0.0,
        metadata={
            "help": f"Sampling temperature; 0, or less than {LEAST_TEMPERATURE}, decodes greedily.",
            "minimum": 0,
        },
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "Smallest cumulative probability of the tokens that are sampled from; 1 considers all tokens.",
            "minimum": 0,
            "maximum": 1,
        },
    )
    top_k: int = field(
        default=0,
        metadata={"help": "Number of most likely tokens that are sampled from; 0 considers all tokens.", "minimum": 0},
    )
    min_p: float | None = field(
        default=None,
        metadata={
            "help": "Minimum probability of a token that is sampled, relative to that of the most likely one.",
            "minimum": 0,
            "maximum": 1,
        },
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={
            "help": "Factor that makes tokens already in the context less likely; 1 changes nothing.",
            "minimum": 0,
            "above": 0,
        },
    )
    generation_kwargs: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "Further arguments of `generate`, such as `no_repeat_ngram_size`."}
    )
    chat_template_kwargs: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "Further arguments of the chat template."}
    )
    conversational: bool | None = field(
        default=None,
        metadata={
            "help": "Whether a task that is a text is given to the model as a user's message through its chat template. "
            "`None` decides by the data set and the tokenizer."
        },
    )
    environment: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "What the environment was made with, by name."}
    )

    def __post_init__(self) -> None:
        hints = type_hints(AgentSettings)
        for one in dataclasses.fields(self):
            value, minimum = getattr(self, one.name), one.metadata.get("minimum")
            if is_wrong_number(value, hints[one.name]) or (minimum is not None and isinstance(value, str)):
                raise ValueError(f"{one.name} must be {described(hints[one.name])}, got {value!r}.")
            if minimum is not None and value is None and one.default is not None:
                raise ValueError(f"{one.name} must be at least {minimum}, got None.")
            if minimum is not None and value is not None and not value >= minimum:
                raise ValueError(f"{one.name} must be at least {minimum}, got {value}.")
            if "above" in one.metadata and value is not None and not value > one.metadata["above"]:
                raise ValueError(f"{one.name} must be above {one.metadata['above']}, got {value}.")
            if isinstance(value, float) and math.isinf(value):
                raise ValueError(f"{one.name} must be a finite number, got {value}.")
            if "maximum" in one.metadata and value is not None and not value <= one.metadata["maximum"]:
                raise ValueError(f"{one.name} must be at most {one.metadata['maximum']}, got {value}.")
            if "choices" in one.metadata and value not in one.metadata["choices"]:
                raise ValueError(
                    f"{one.name} must be one of {', '.join(map(repr, one.metadata['choices']))}, got {value!r}."
                )
            if isinstance(one.default_factory, type):  # an empty mapping may come as None from a configuration
                if not isinstance(value or {}, Mapping):
                    raise ValueError(f"{one.name} must be a mapping of names to values, got {value!r:.80}.")
                object.__setattr__(self, one.name, dict(value or {}))
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        object.__setattr__(self, "generation_kwargs", listed_bias(self.generation_kwargs))
        for name in ("generation_kwargs", "chat_template_kwargs"):
            for key, value in getattr(self, name).items():
                if not is_json(value):
                    raise ValueError(
                        f"{name} must be made of JSON values, since they are saved with the model, got {key}={value!r:.80}."
                    )
        if self.top_p == 0:
            raise ValueError("top_p must be above 0, since no token would be left, got 0.")
        refuse_decoding_modes(self.generation_kwargs)
        check_kind(self.context)
        if isinstance(self.context, ContextRule):
            name, parameters = describe_rule(self.context)
            object.__setattr__(self, "context", name)
            object.__setattr__(self, "context_kwargs", parameters)
        if ":" not in self.context or is_loaded(self.context):  # a class of a file may become known later
            rule = self.rule
            rule.check(self.max_context_length)
            object.__setattr__(self, "context_kwargs", rule.parameters)  # the same rule is written in one way

    @property
    def rule(self) -> ContextRule:
        """
        The context rule.

        Raises:
            `ValueError`: If it is a class that has not been imported, see [`mem1_trl.context_rules.named`].
        """
        return make_rule(self.context, self.context_kwargs)

    def changed(self, values: Mapping[str, Any]) -> AgentSettings:
        """
        The same settings but for some fields. Parameters of a context rule stay, unless another rule is named or others are given.

        Args:
            values (`Mapping[str, Any]`):
                The new values by name; `context` may be a rule, too.

        Raises:
            `TypeError`: If a name is not that of a field.
            `ValueError`: If a value is out of its range.
        """
        known = [one.name for one in dataclasses.fields(self)]
        for name in values:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                meant = f": did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}."
                raise TypeError(f"An agent has no setting {name!r}{meant}")
        if "context" in values:
            context = values["context"]
            name, parameters = given_rule(context, values.get("context_kwargs", {}))
            if name != self.context or not isinstance(context, str) or "context_kwargs" in values:
                values = {**values, "context": name, "context_kwargs": parameters}
        return dataclasses.replace(self, **values)

    # Records

    @classmethod
    def from_config(cls, config: Any, **known: Any) -> AgentSettings:
        """
        The settings that a configuration holds, by the names of their fields.

        Args:
            config (`Any`):
                An object with some of the fields as attributes, such as a [`Mem1GRPOConfig`].
            known (*optional*):
                Fields that win over those of `config`.
        """
        names = [one.name for one in dataclasses.fields(cls)]
        found = {name: getattr(config, name) for name in names if hasattr(config, name)}
        for name in ("top_p", "top_k", "repetition_penalty"):  # TRL says None for "all tokens"
            if found.get(name, 0) is None:
                del found[name]
        return cls(**{**found, **known})

    def to_dict(self) -> dict[str, Any]:
        """The settings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AgentSettings:
        """
        The inverse of [`~AgentSettings.to_dict`]; what is missing has its default.

        Raises:
            `ValueError`: If a key is unknown, since it would be ignored silently, or a value of another type.
        """
        check_fields(record, cls, "The record of the agent's settings", "save the model again.")
        return cls(**record)

    def differences(self, other: AgentSettings) -> dict[str, tuple[Any, Any]]:
        """Fields in which two settings differ, each with the value here and the value there."""
        names = [one.name for one in dataclasses.fields(self)]
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in names
            if getattr(self, name) != getattr(other, name)
        }

    # Decoding

    def decoding_options(self) -> dict[str, Any]:
        """Arguments of `generate` that choose the next token; trainers and agents pass all of them, and no others."""
        choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
        if self.temperature > 0:
            choice = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "min_p": self.min_p,
            }
        return {**choice, "repetition_penalty": self.repetition_penalty, **self.generation_kwargs}

    @property
    def samples_from_policy(self) -> bool:
        """
        Whether each token is drawn from `softmax(logits / temperature)` over the whole vocabulary.

        If not (greedy decoding, top-k, top-p, min-p, a penalty, further generation arguments), a recorded log-prob is not the
        probability with which the token was drawn.
        """
        options = self.decoding_options()
        neutral = {"do_sample": (True,), **NEUTRAL_SAMPLING}
        harmless = {"temperature", *neutral, "cache_implementation", "use_cache"}
        return all(options[name] in values for name, values in neutral.items()) and set(options) <= harmless

    # Budgets

    def within(self, longest: int, named: str) -> AgentSettings:
        """
        The same settings with `max_context_length` from the longest sequence of an engine, called `named`, if none is set.

        Raises:
            `ValueError`: If a context and a turn may be longer than that.
        """
        if self.max_context_length is None and longest > self.max_completion_length:
            return dataclasses.replace(self, max_context_length=longest - self.max_completion_length)
        wanted = (self.max_context_length or 1) + self.max_completion_length
        if wanted > longest:
            raise ValueError(
                f"max_context_length and max_completion_length must add up to at most {longest}, {named}, got {wanted}."
            )
        return self

    def with_context_limit(self, model: Any, engine: int | None = None, after: int = 0) -> AgentSettings:
        """
        The same settings with `max_context_length` from the model's positions if none is set, or from the longest sequence of
        an `engine` that samples for it, if that is less.

        Where the positions of a whole batch change with the length of its longest row (`longrope`, dynamic NTK scaling), the
        limit is the length at which they do. `after` tokens are read after a completion.

        Raises:
            `ValueError`: If the positions leave no room for a context, or if contexts may be longer than that length, or than the positions
                that a model has learned.
        """
        from ..model_traits import (  # here, since it imports torch, and settings are read without
            learned_positions,
            longest_pass,
            position_switch,
        )

        positions, switch = longest_pass(model), position_switch(model)
        positions = None if positions is None else positions - after
        positions = min((n for n in (positions, engine) if n is not None), default=None)
        if self.max_context_length is not None:
            longest = self.max_context_length + self.max_completion_length + after
            but_after = f", with {after} more that is read after a completion" if after else ""
            if switch is not None and longest > switch[1]:
                raise ValueError(
                    f"max_context_length and max_completion_length must add up to at most {switch[1]} for this model, got "
                    f"{longest}{but_after}: its positions ({switch[0]}) depend on the longest row of a batch beyond that, so that a token "
                    "would not be scored as it was sampled. MEM1's contexts hardly grow, lower one of the two."
                )
            learned = learned_positions(model)
            if learned is not None and longest > learned:
                raise ValueError(
                    f"max_context_length and max_completion_length must add up to at most {learned}, the positions that this model has "
                    f"embeddings for, got {longest}{but_after}: lower one of the two."
                )
            return self
        if positions is None:
            return self
        if positions <= self.max_completion_length:
            raise ValueError(
                f"max_completion_length must be less than the model's {positions} positions, got {self.max_completion_length}."
            )
        return dataclasses.replace(self, max_context_length=positions - self.max_completion_length)

    def longest_context(self, model: Any) -> int | None:
        """Most tokens of a context and its completion; `None` if neither the settings nor the model limit them."""
        limit = self.with_context_limit(model).max_context_length
        return None if limit is None else limit + self.max_completion_length

    def check_characters(self, observation: str | None) -> None:
        """Raise a `ValueError` if what `reset` returned cannot fit into the context, however it is tokenized."""
        limit = self.max_context_length
        if limit is not None and observation is not None and len(observation) > limit * CHARACTERS_PER_TOKEN[-1]:
            raise ValueError(
                f"`reset` returned {len(observation)} characters, which cannot fit into a context of {limit} tokens."
            )

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise a `ValueError` if a task prompt leaves no room in the context."""
        limit = self.max_context_length
        if limit is not None and len(prompt_ids) > limit:
            raise ValueError(
                f"A task prompt must have at most {limit} tokens (max_context_length), since it is never truncated, got "
                f"{len(prompt_ids)}: write a shorter one, or raise max_context_length."
            )


def setting(name: str, **changes: Any) -> Any:
    """
    A dataclass field with the default and the metadata (help, choices) of a field of [`AgentSettings`].

    Args:
        name (`str`):
            Name of the field.
        changes (*optional*):
            `default`, or `help`, which replaces the text.
    """
    own = next(one for one in dataclasses.fields(AgentSettings) if one.name == name)
    metadata = {key: value for key, value in own.metadata.items() if key not in ("minimum", "above", "maximum")}
    if "help" in changes:
        metadata["help"] = changes["help"]
    if "default" in changes:
        return field(default=changes["default"], metadata=metadata)
    if isinstance(own.default_factory, type):
        return field(default_factory=own.default_factory, metadata=metadata)
    return field(default=own.default, metadata=metadata)


def resolve_conversational(
    settings: AgentSettings, tokenizer: Any, prompt: Any = None, has_environment: bool = True
) -> AgentSettings:
    """
    The settings with `conversational` decided: once, by the data set and the tokenizer.

    Messages in the data set decide for chat. Texts are chat if the tokenizer has a chat template, since a model that has one
    was taught to follow instructions in it; except for a task without environment, which is one completion of a prompt, as in
    [`~trl.GRPOTrainer`].

    Args:
        settings ([`AgentSettings`]):
            Settings; a `conversational` that is set stays.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the model.
        prompt (`str` or `list[dict]`, *optional*):
            A task of the data set. `None` if there is none.
        has_environment (`bool`, *optional*, defaults to `True`):
            Whether tasks are played in an environment.

    Raises:
        `ValueError`: If tasks are to be messages but the tokenizer has no chat template.
    """
    chosen = settings.conversational
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chosen is None:
        is_text = prompt is None or isinstance(prompt, str)
        chosen = (has_template and has_environment) if is_text else True
    if chosen and not has_template:
        raise ValueError(
            "Tasks that are messages need a chat template, and this tokenizer has none: set `tokenizer.chat_template`, or use "
            "texts and conversational=False."
        )
    return dataclasses.replace(settings, conversational=chosen)
