"""The actions of an environment: found by TRL's rule for tools, called concurrently, with errors turned into text."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..json_text import read_json
from .arguments import check_types, coerce, positional_only, read_parameters, without_variadic
from .call_records import EnvironmentCall, Outcome
from .calls import EnvironmentCaller, call_then, is_failure, name_of_call
from .environment_thread import EnvironmentThread, closing_hook
from .errors import describe_error, error_text, is_refusal
from .shown_text import shown_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..protocol.protocol import Mem1Protocol

logger = logging.getLogger(__name__)

RESERVED = ("reset", "get_reward", "get_turn_reward")
"""Methods of an environment that are not actions."""


def action_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """
    Public methods of an environment that an agent may call: all but `reset`, `get_reward` and `get_turn_reward`.

    The rule is TRL's (`GRPOTrainer(environment_factory=...)`), so that an environment has the same actions here: plain
    functions of the class, which are listed on the class so that properties are never evaluated. Two exceptions: a method `close`
    without arguments is called when the environment is no longer needed, and `get_turn_reward` after a turn; neither is an action.
    """
    reserved = RESERVED if closing_hook(environment) is None else (*RESERVED, "close")
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return {name: getattr(environment, name) for name, _ in members if name not in reserved and name[0] != "_"}


@dataclass(frozen=True, slots=True)
class ActionResult:
    """
    The result of an action.

    Attributes:
        text (`str`):
            Text that is shown to the agent.
        failed (`bool`):
            Whether the environment raised an error, or the input of the action could not be parsed.
        error (`str` or `None`):
            Description of the error if the environment, and not the input, caused it.
        fatal (`bool`):
            Whether the episode cannot continue.
    """

    text: str
    failed: bool = False
    error: str | None = field(default=None, compare=False)
    fatal: bool = field(default=False, compare=False)


def owns_loop(environment: Any) -> bool:
    """
    Whether an environment plays its turns itself, so that the turn loop does not.

    It is looked for in the class: an environment in another process would be asked for it, and may be gone.
    """
    return getattr(type(environment), "mem1_plays", None) is not None


class ActionSet:
    """
    The actions that one kind of environment offers under one protocol: tag -> method.

    Args:
        environment (`Any`):
            An instance of the environment, which is only inspected.
        protocol ([`Mem1Protocol`]):
            Protocol that defines the tags.
        needs_reset (`bool`, *optional*, defaults to `True`):
            Whether an environment without `reset` is refused. One that is used once may have none.
    """

    def __init__(self, environment: Any, protocol: Mem1Protocol, needs_reset: bool = True):
        methods = action_methods(environment)
        kind = type(environment).__name__
        if needs_reset and not callable(getattr(environment, "reset", None)):
            raise ValueError(
                f"The environment {kind} has no `reset` method: define `reset(self, **row) -> str | None`, which starts "
                "an episode from a row of the dataset."
            )
        undocumented = sorted(name for name, method in methods.items() if not inspect.getdoc(method))
        if undocumented:
            raise ValueError(
                f"The action {undocumented[0]!r} of {kind} has no docstring: say in one line what it does, or start "
                "its name with an underscore if agents should not call it."
            )
        for name, method in methods.items():
            for argument in positional_only(method):
                raise ValueError(
                    f"The action {name!r} of {kind} must take its arguments by name, got the positional-only {argument!r}: "
                    "remove the `/` from its signature."
                )
            own = inspect.unwrap(method)  # an environment in a process has methods that ask for it
            if inspect.isgeneratorfunction(own) or inspect.isasyncgenfunction(own):
                raise ValueError(
                    f"The action {name!r} of {kind} must return its result, but it yields: collect what it yields, and return one text."
                )
        self.syntax = protocol.action_syntax
        self._answer_tag = protocol.answer_tag
        self._reserved_tags = {
            protocol.state_tag,
            protocol.observation_tag,
            protocol.answer_tag,
            *protocol.scratch_tags,
        }
        tags = protocol.action_tags
        if owns_loop(environment):
            tags = {}  # a program calls what it likes, and the model answers in chat
        elif tags is None and self.syntax != "tags":
            tags = {name: name for name in methods}
        elif tags is None:
            tags = {name: name for name in methods if name != protocol.answer_tag}
            taken = {protocol.state_tag, protocol.observation_tag, *protocol.scratch_tags} & set(tags)
            if taken:
                raise ValueError(
                    f"{kind} has an action named {sorted(taken)[0]!r}, which is a tag of the protocol: map it to another "
                    "tag with `Mem1Protocol(action_tags={...})`."
                )
        for tag, name in tags.items():
            if name not in methods:
                raise ValueError(
                    f"The tag {tag!r} calls {name!r}, but {kind} has no such action (it has "
                    f"{', '.join(sorted(methods)) or 'none'}): correct `action_tags`, which may have been saved with the model, or pass "
                    '`protocol="default"`, which calls every action by its own name.'
                )
        if not owns_loop(environment):
            _warn_of_uncalled(type(environment), {*methods} - {*tags.values(), protocol.answer_tag}, tags)
        self.tags: dict[str, str] = dict(tags)
        # In the other syntaxes an action of this name is one like any other
        is_answer = self.syntax == "tags" and protocol.answer_tag in methods
        self.answer_method = protocol.answer_tag if is_answer else None
        self._parameters = {name: read_parameters(method) for name, method in methods.items()}
        # With tool calls, too, an answer that was written without a call is given to an action of this name with one argument
        self.takes_answer = len(self._parameters.get(protocol.answer_tag, ())) == 1
        self._docs = {name: (inspect.getdoc(method) or "").split("\n\n")[0] for name, method in methods.items()}
        self.schemas: list[dict[str, Any]] = []
        if self.syntax == "tool_calls":
            self.schemas = [_schema(methods[name], kind) for name in self.tags.values()]
        for name in [*self.tags.values(), *([protocol.answer_tag] if is_answer else [])]:
            check_types(self._parameters[name], name, kind)

    def extended(self, methods: Mapping[str, Callable[..., Any]]) -> ActionSet:
        """
        These actions and those of a context rule, each under its own name.

        Args:
            methods (`Mapping[str, Callable]`):
                Name -> method. It is not called by the tag of an environment's method, but known by its name.

        Raises:
            `ValueError`: If a name is taken, or a method has no docstring.
        """
        both = copy.copy(self)
        both.tags, both._parameters, both._docs = dict(self.tags), dict(self._parameters), dict(self._docs)
        both.schemas = list(self.schemas)
        for name, method in methods.items():
            if name in self.tags or name in self._parameters or name in self._reserved_tags:
                raise ValueError(
                    f"The context rule has an action {name!r}, which is one of the environment or a tag of the protocol, too: rename that "
                    "one."
                )
            documentation = inspect.getdoc(method)
            if not documentation:
                raise ValueError(
                    f"The action {name!r} of the context rule has no docstring: say in one line what it does."
                )
            both.tags[name] = name
            both._parameters[name] = read_parameters(method)
            both._docs[name] = documentation.split("\n\n")[0]
            check_types(both._parameters[name], name, "the context rule")
            if self.syntax == "tool_calls":
                both.schemas.append(_schema(method, "the context rule"))
        return both

    def describe(self) -> list[str]:
        """
        One line per action for the task prompt, such as `<search>query</search>: Search the corpus.`, or
        `search[query]: ...` in brackets, or `search(query): ...` for a tool call.
        """
        lines = []
        for tag, name in self.tags.items():
            parameters = list(self._parameters[name])
            inner = parameters[0] if len(parameters) == 1 else ""
            if self.syntax == "tool_calls":
                inner = ", ".join(parameters)
            elif len(parameters) > 1:
                inner = "{" + ", ".join(f'"{parameter}": ...' for parameter in parameters) + "}"
            written = {"tags": f"<{tag}>{inner}</{tag}>", "brackets": f"{tag}[{inner}]"}.get(
                self.syntax, f"{tag}({inner})"
            )
            lines.append(f"{written}: {' '.join(self._docs[name].split())}")
        if not lines and self.syntax == "tags":  # the instructions announce a list
            lines.append(f"<{self._answer_tag}>text</{self._answer_tag}>: Answer.")
        return lines

    def arguments(self, method: str, text: str) -> dict[str, Any]:
        """
        Keyword arguments of an action from the text inside its tag or brackets.

        Args:
            method (`str`):
                Name of the environment's method.
            text (`str`):
                The argument itself if there is one, or a JSON object if there are several. Empty text means the default of a
                single argument that has one.

        Returns:
            `dict[str, Any]`: Keyword arguments.

        Raises:
            `ValueError`: If the text does not match the arguments of the method. The message is phrased for the agent.
        """
        parameters = self._parameters[method]
        if not parameters:
            return {}
        if len(parameters) == 1:
            ((name, parameter),) = parameters.items()
            if not text and not parameter.required:
                return {}
            return {name: coerce(text, parameter.kind)}
        try:
            values = read_json(text or "{}")
        except ValueError as error:
            raise ValueError(f"The arguments are not valid JSON: {error}.") from None
        return self.typed_arguments(method, values)

    def typed_arguments(self, method: str, values: Any) -> dict[str, Any]:
        """
        Keyword arguments of an action from the object that an agent wrote, with the types that the method declares.

        A number written as text becomes a number, and so on, if the conversion is lossless; everything else is an error.

        Args:
            method (`str`):
                Name of the environment's method.
            values (`Any`):
                Object that the agent wrote; it should be a mapping.

        Raises:
            `ValueError`: If arguments are missing, unknown or of the wrong type. The message is phrased for the agent.
        """
        parameters = self._parameters[method]
        known = ", ".join(parameters) or "none"
        if not isinstance(values, Mapping):
            raise ValueError(f"Give the arguments as a JSON object with {known}.")
        unknown = sorted(set(values) - set(parameters))
        if unknown:
            raise ValueError(
                f"There is no argument {unknown[0]!r}; there {'is' if len(parameters) < 2 else 'are'} {known}."
            )
        missing = [name for name, parameter in parameters.items() if parameter.required and name not in values]
        if missing:
            raise ValueError(f"The argument {missing[0]!r} is missing.")
        arguments = {}
        for name, value in values.items():
            try:
                arguments[name] = coerce(value, parameters[name].kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return arguments


_warned: set[tuple[Any, ...]] = set()
"""Classes, with the actions that are called in them, of which it was said that others are not."""


def _warn_of_uncalled(kind: type, names: set[str], tags: Mapping[str, str]) -> None:
    """Say once of a class and a protocol that actions are not offered, since `action_tags` does not name them."""
    known = (kind.__module__, kind.__qualname__, *sorted(tags.items()))
    if not names or known in _warned:
        return
    _warned.add(known)
    logger.warning(
        "The protocol does not call %s of %s, since its `action_tags` names %s only: `protocol=\"default\"` calls every action by its own name.",
        ", ".join(map(repr, sorted(names))), kind.__name__, ", ".join(map(repr, sorted({*tags.values()}))) or "none",
    )  # fmt: skip


def _schema(method: Callable[..., Any], kind: str) -> dict[str, Any]:
    """The JSON schema of an action, in the format of TRL's tools."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    try:
        return get_json_schema(without_variadic(method))
    except (ValueError, TypeError, DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"The action {method.__name__!r} of {kind} cannot be described to a chat template: {error} As a tool it needs type "
            "hints and a docstring with a line for each argument under `Args:`."
        ) from error


def run_calls(
    calls: Sequence[tuple[Callable[..., Any], dict[str, Any]]],
    caller: EnvironmentCaller | None = None,
    environments: Sequence[Any] | None = None,
) -> list[ActionResult]:
    """
    Call all methods concurrently, synchronous ones in threads and asynchronous ones in one event loop.

    Calls of one environment are made one after the other, in their order. An error does not end the run: the agent reads
    `Error: ...` instead, as with TRL's tools. The return value of an action is shown as text, `None` as empty text.

    Args:
        calls (`Sequence[tuple[Callable, dict]]`):
            Bound methods with their keyword arguments.
        caller ([`EnvironmentCaller`], *optional*):
            Runs the calls with its settings. `None` makes one for these calls.
        environments (`Sequence`, *optional*):
            Environments of the methods. `None` uses the objects that the methods are bound to.

    Returns:
        `list[ActionResult]`: In the order of `calls`.
    """
    caller = caller or EnvironmentCaller()
    if environments is None:
        environments = [getattr(method, "__self__", None) for method, _ in calls]
    requests = [
        action_call(method, arguments, caller, environment)
        for (method, arguments), environment in zip(calls, environments, strict=True)
    ]
    outcomes = caller.run(requests)
    return [action_result(call, outcome, caller) for call, outcome in zip(requests, outcomes)]


def action_call(
    method: Callable[..., Any], arguments: dict[str, Any], caller: EnvironmentCaller, environment: Any
) -> EnvironmentCall:
    """The call of an action; without an environment it has a thread of its own."""
    return EnvironmentCall(
        EnvironmentThread() if environment is None else caller.thread_of(environment),
        call_then(method, shown_text, **arguments),
        repeatable=getattr(method, "idempotent", False),
        may_refuse=True,
        name=name_of_call(environment, getattr(method, "__name__", "action")),
        written=" ".join(map(str, arguments.values())),
    )


def action_result(call: EnvironmentCall, outcome: Outcome, caller: EnvironmentCaller) -> ActionResult:
    """What the agent reads of an action that has ended; a failure is counted."""
    caller.counts.action_errors += is_failure(call, outcome)
    error = outcome.error
    if error is None:
        return ActionResult(outcome.value)
    text = f"Error: {error_text(error)}"
    if is_refusal(error):
        return ActionResult(text, failed=True)
    fatal = call.thread.dead or caller.settings.on_error == "drop_group"
    return ActionResult(text, failed=True, error=describe_error(error), fatal=fatal)
