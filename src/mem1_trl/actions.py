"""The actions of an environment: found as TRL finds its tools, called concurrently, errors turned into text."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arguments import read_parameters, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from .protocol import Mem1Protocol

_RESERVED = ("reset", "get_reward")


def action_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """
    Public methods of an environment that an agent may call: all but `reset` and `get_reward`.

    The rule is TRL's (`GRPOTrainer(environment_factory=...)`), so that an environment has the same actions here: plain
    functions on the class, listed there so that properties are never evaluated.
    """
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return {name: getattr(environment, name) for name, _ in members if name not in _RESERVED and name[0] != "_"}


@dataclass(frozen=True, slots=True)
class ActionResult:
    """
    What an action gave back.

    Attributes:
        text (`str`):
            What the agent reads.
        failed (`bool`):
            Whether the environment raised, or the input of the action could not be read.
    """

    text: str
    failed: bool = False


class ActionSet:
    """
    The actions one kind of environment offers under one protocol: tag -> method.

    Args:
        environment (`Any`):
            An instance of the environment, only looked at.
        protocol ([`Mem1Protocol`]):
            Gives the tags.
    """

    def __init__(self, environment: Any, protocol: Mem1Protocol):
        methods = action_methods(environment)
        kind = type(environment).__name__
        if not callable(getattr(environment, "reset", None)):
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
        self.syntax = protocol.action_syntax
        tags = protocol.action_tags
        if tags is None and self.syntax != "tags":
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
                    f"{', '.join(sorted(methods)) or 'none'}): correct `action_tags`."
                )
        self.tags: dict[str, str] = dict(tags)
        # In the other syntaxes an action of this name is one like any other
        is_answer = self.syntax == "tags" and protocol.answer_tag in methods
        self.answer_method = protocol.answer_tag if is_answer else None
        self._parameters = {name: read_parameters(method) for name, method in methods.items()}
        self._docs = {name: (inspect.getdoc(method) or "").split("\n\n")[0] for name, method in methods.items()}
        self.schemas: list[dict[str, Any]] = []
        if self.syntax == "tool_calls":
            self.schemas = [_schema(methods[name], kind) for name in self.tags.values()]

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
        return lines

    def arguments(self, method: str, text: str) -> dict[str, Any]:
        """
        Keyword arguments of an action from the text inside its tag or brackets.

        Args:
            method (`str`):
                Name of the environment's method.
            text (`str`):
                The one argument itself, or a JSON object if there are several. Nothing stands for a single argument that has a
                default.

        Returns:
            `dict[str, Any]`: Keyword arguments.

        Raises:
            `ValueError`: If the text is not what the method takes. The message is fit for the agent to read.
        """
        parameters = self._parameters[method]
        if not parameters:
            return {}
        if len(parameters) == 1:
            ((name, parameter),) = parameters.items()
            if not text and not parameter.required:
                return {}
            return {name: typed(text, parameter.kind)}
        try:
            values = json.loads(text or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"The arguments are not valid JSON: {error.msg}.") from None
        return self.typed_arguments(method, values)

    def typed_arguments(self, method: str, values: Any) -> dict[str, Any]:
        """
        Keyword arguments of an action from the object that an agent gave, with the types that the method declares.

        A number that came as text becomes a number, and so on, if nothing is lost; everything else is an error.

        Args:
            method (`str`):
                Name of the environment's method.
            values (`Any`):
                What the agent gave; it should be a mapping.

        Raises:
            `ValueError`: If arguments are missing, unknown or of the wrong type. The message is fit for the agent to read.
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
                arguments[name] = typed(value, parameters[name].kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return arguments


def _schema(method: Callable[..., Any], kind: str) -> dict[str, Any]:
    """The JSON schema of an action, as TRL's tools get it."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    try:
        return get_json_schema(method)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"The action {method.__name__!r} of {kind} cannot be described to a chat template: {error} As a tool it needs type "
            "hints and a docstring with a line for each argument under `Args:`."
        ) from error


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """
    Run a coroutine to its end from synchronous code.

    In a fresh thread, because the caller may itself sit in an event loop (a notebook), where `asyncio.run` is refused.
    """
    with ThreadPoolExecutor(max_workers=1) as runner:
        return runner.submit(asyncio.run, coroutine).result()


def run_calls(calls: Sequence[tuple[Callable[..., Any], dict[str, Any]]], max_workers: int = 32) -> list[ActionResult]:
    """
    Call all methods at once, synchronous ones in threads and asynchronous ones in one event loop.

    An exception does not end the run: the agent reads `Error: ...` instead, as with TRL's tools.

    Args:
        calls (`Sequence[tuple[Callable, dict]]`):
            Bound methods with their keyword arguments.
        max_workers (`int`, *optional*, defaults to `32`):
            Most threads at once.

    Returns:
        `list[ActionResult]`: In the order of `calls`.
    """
    if not calls:
        return []

    asynchronous = [index for index, (method, _) in enumerate(calls) if inspect.iscoroutinefunction(method)]

    async def call(method: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return await method(**arguments)

    async def run_asynchronous() -> list[Any]:
        return await asyncio.gather(*(call(*calls[index]) for index in asynchronous), return_exceptions=True)

    outcomes: list[Any] = [None] * len(calls)
    with ThreadPoolExecutor(max_workers=min(max_workers, len(calls)), thread_name_prefix="mem1-action") as pool:
        # An event loop costs more than most actions: only where there is something to await, in a thread of its own
        loop = pool.submit(asyncio.run, run_asynchronous()) if asynchronous else None
        running = {
            index: pool.submit(method, **arguments)
            for index, (method, arguments) in enumerate(calls)
            if not inspect.iscoroutinefunction(method)
        }
        for index, future in running.items():
            error = future.exception()
            outcomes[index] = future.result() if error is None else error
        if loop is not None:
            for index, outcome in zip(asynchronous, loop.result(), strict=True):
                outcomes[index] = outcome
    results = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            results.append(ActionResult(f"Error: {type(outcome).__name__}: {outcome}", failed=True))
        elif isinstance(outcome, BaseException):  # KeyboardInterrupt and its like are for the user
            raise outcome
        else:
            results.append(ActionResult("" if outcome is None else str(outcome)))
    return results
