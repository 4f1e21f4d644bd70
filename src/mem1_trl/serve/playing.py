"""The turns of one answer: to its text, or to the call that a client wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..agent.answer_stream import AnswerStream
from ..trajectory import StopReason
from ..wire.errors import WireError
from ..wire.requests import ChatRequest
from ..wire.stop_texts import UntilStop

if TYPE_CHECKING:
    from ..agent.episode import AgentEpisode
    from ..protocol.protocol import Mem1Protocol


def play_to_answer(
    episode: AgentEpisode,
    request: ChatRequest,
    protocol: Mem1Protocol,
    tell: Callable[[str], object],
    text: UntilStop,
) -> None:
    """
    Play to the next answer or call. Where the request wants no call, the agent is told so in words, and has its next turn.

    Args:
        episode ([`AgentEpisode`]):
            Ready for its next turn.
        request ([`ChatRequest`]):
            Says whether there may be a call.
        protocol ([`Mem1Protocol`]):
            How its agent writes.
        tell (`Callable[[str], object]`):
            Called with an empty text between pieces; raises if the client has left.
        text ([`UntilStop`]):
            Is told the text of the answer. The agent finishes a turn in which a stop text comes, so that its context stays well formed.
    """
    apart = False

    def say(piece: str) -> None:
        nonlocal apart
        text.add(f"\n{piece}" if apart else piece)
        apart = False

    stream = AnswerStream(protocol, say)
    while not episode.done:
        apart = apart or bool(stream.told)  # an answer that was begun in an earlier turn, and is none
        stream = AnswerStream(protocol, say, episode.opened)

        def hear(piece: str, stream: AnswerStream = stream) -> None:
            tell("")
            stream.add(piece)

        episode.step(hear)
        if episode.calls and request.may_call:
            break
        _refuse_calls(episode, "Answer without a tool: none can be called now.")
    if episode.answer is not None:
        stream.finish(episode.answer)
    text.finish()


def play_to_call(episode: AgentEpisode, request: ChatRequest, max_turns: int, tell: Callable[[str], object]) -> None:
    """
    Play to a call of a tool, or of the one that is named. Nothing is forced on what the agent samples: where it answers or calls another
    tool, it is told in words what is wanted, and has its next turn.

    Args:
        episode ([`AgentEpisode`]):
            Ready for its next turn.
        request ([`ChatRequest`]):
            Says what must be called.
        max_turns (`int`):
            Most turns.
        tell (`Callable[[str], object]`):
            Called with an empty text between pieces; raises if the client has left.

    Raises:
        [`WireError`]: If there is no such call within so many turns.
    """
    wanted = request.call_of
    names = [tool["function"]["name"] for tool in request.tools] if wanted is None else [wanted]
    demand = f"Call {' or '.join(names)} now: nothing else is possible before that."
    for turn in range(1, max_turns + 1):
        episode.step(lambda piece: tell(""))
        calls = episode.calls
        if calls and all(call.method in names for call in calls):
            return
        if turn == max_turns:
            break
        if calls:
            _refuse_calls(episode, demand)
        elif episode.trajectory.stop_reason is StopReason.ANSWER:
            _ask(episode, request, demand)
        if episode.done:
            break
    reason = episode.trajectory.stop_reason or StopReason.MAX_TURNS
    raise WireError(
        400,
        f"'tool_choice' asks for a call of {' or '.join(names)}, and the agent made none (turns: {turn}, ended by "
        f"{reason.value!r}): let it choose ('auto'), or ask again.",
        "tool_use_failed",
        "tool_choice",
    )


def _refuse_calls(episode: AgentEpisode, demand: str) -> None:
    """Let the agent read of its calls, if there are any, that they were not made, and what is wanted."""
    if episode.calls:
        episode.give([f"Error: this was not called. {demand}"] * len(episode.calls))


def _ask(episode: AgentEpisode, request: ChatRequest, demand: str) -> None:
    try:
        episode.add_message(demand)
    except ValueError as error:
        raise WireError(400, str(error), "context_length_exceeded", request.messages_name) from None
