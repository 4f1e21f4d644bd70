"""Records of one completion: its state, its action, and the calls that it asks for. The same for every syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ToolCall:
    """
    One native tool call of a turn.

    Attributes:
        name (`str`):
            Name of the tool, which is a method of the environment.
        arguments (`Any`):
            Its arguments as the model wrote them: a mapping, if it wrote what it should.
    """

    name: str
    arguments: Any


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """
    The state and the action of one completion.

    Attributes:
        state (`str` or `None`):
            Text inside the state tag, stripped, or `None`.
        state_span (`tuple[int, int]` or `None`):
            Characters of the completion that hold the state, tags included.
        action (`str` or `None`):
            Tag of the first complete action, the answer tag included, or `None`. With brackets the name before the
            bracket; with tool calls the names of the tools, or the answer tag for a turn that called none.
        action_input (`str` or `None`):
            Text inside that tag, stripped. With tool calls their arguments as JSON.
        answer (`str` or `None`):
            The answer, if this turn ends the episode with one.
        calls (`tuple[ToolCall, ...]`):
            Native tool calls in the order they were written; empty in the other syntaxes.
        message (`dict` or `None`):
            The turn as a chat message, only with tool calls.
        problem (`str` or `None`):
            Why there is no action, phrased for the agent; `None` if there is one.
        truncated (`bool`):
            Whether the completion was cut before its action was complete.
    """

    state: str | None = None
    state_span: tuple[int, int] | None = None
    action: str | None = None
    action_input: str | None = None
    answer: str | None = None
    calls: tuple[ToolCall, ...] = ()
    message: dict[str, Any] | None = None
    problem: str | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ActionRequest:
    """
    One call of a method of the environment that a turn asks for.

    Attributes:
        name (`str`):
            Name of the action as the agent wrote it.
        method (`str` or `None`):
            Name of the method to call, or `None` if there is a `problem`.
        arguments (`Mapping[str, Any]`):
            Its keyword arguments, converted to the types of the method.
        problem (`str` or `None`):
            Why nothing can be called, phrased for the agent.
    """

    name: str
    method: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
