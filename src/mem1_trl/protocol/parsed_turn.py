"""What one completion said, whatever the syntax of its actions."""

from __future__ import annotations

from dataclasses import dataclass
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
        arguments (`Mapping[str, Any]`):
            Its arguments as the model gave them.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """
    What one completion said.

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
        action_span (`tuple[int, int]` or `None`):
            Characters of the completion that hold the action, tags included.
        calls (`tuple[ToolCall, ...]`):
            Native tool calls in the order they were written; empty in the other syntaxes.
        message (`dict` or `None`):
            The turn as a chat message, only with tool calls.
        problem (`str` or `None`):
            Why there is no action although one was begun, fit for the agent to read.
    """

    state: str | None = None
    state_span: tuple[int, int] | None = None
    action: str | None = None
    action_input: str | None = None
    action_span: tuple[int, int] | None = None
    calls: tuple[ToolCall, ...] = ()
    message: dict[str, Any] | None = None
    problem: str | None = None
