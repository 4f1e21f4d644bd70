"""Rollouts whose turns are written by a model server, which is asked about each turn on its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .open_requests import OpenRequests
from .server_calls import ServerCalls
from .stopping import Completion
from .turn_loop import Rollout

if TYPE_CHECKING:
    from .completions import CompletionsEndpoint, Offer
    from .turn_request import TurnRequest


class Question(NamedTuple):
    """What a server is asked for one turn: `send` asks, in any thread, and `read` makes a completion of the answer."""

    send: Callable[[], Any]
    read: Callable[[Any], Completion]


class ServerRollout(Rollout):
    """
    A rollout with a model server.

    Args:
        calls ([`ServerCalls`]):
            Makes the requests.
        parts (*optional*):
            As in [`Rollout`].
    """

    def __init__(self, calls: ServerCalls[Any], **parts: Any):
        super().__init__(generate=_refuse_contexts, **parts)
        self.calls = calls

    @abstractmethod
    def question(self, request: TurnRequest) -> Question:
        """How the server is asked for a turn. In place of an answer that failed, `read` is given a text that says why."""

    def generate_turns(
        self, requests: Sequence[TurnRequest], begun: Any = None, leave: int | None = None
    ) -> list[Completion]:
        questions = [self.question(request) for request in requests]
        answers = self.calls.all([question.send for question in questions])
        return [question.read(answer) for question, answer in zip(questions, answers, strict=True)]

    def open_turns(
        self,
        answered: Callable[[TurnRequest, Callable[[], Completion]], None],
        failed: Callable[[BaseException], None],
    ) -> OpenTurns:
        return OpenTurns(self, answered, failed)


class OpenTurns:
    """
    Turns that a server was asked for and whose answers are still to come.

    Args:
        rollout ([`ServerRollout`]):
            Says how the server is asked.
        answered (`Callable`):
            Called in other threads with a request and a function that makes a completion of its answer.
        failed (`Callable[[BaseException], None]`):
            Called in other threads with an error that ends the run.
    """

    def __init__(
        self,
        rollout: ServerRollout,
        answered: Callable[[TurnRequest, Callable[[], Completion]], None],
        failed: Callable[[BaseException], None],
    ):
        self._rollout = rollout
        self._answered = answered
        self._requests = OpenRequests(rollout.calls, self._take, failed)

    def send(self, request: TurnRequest) -> None:
        """Ask for a turn."""
        question = self._rollout.question(request)
        self._requests.send((request, question.read), question.send)

    def close(self) -> None:
        """Wait for no answer any more."""
        self._requests.close()

    def _take(self, key: tuple[TurnRequest, Callable[[Any], Completion]], answer: Any) -> None:
        request, read = key
        self._answered(request, lambda: read(answer))


class CompletionsRollout(ServerRollout):
    """
    A rollout with a [`CompletionsEndpoint`].

    Args:
        endpoint ([`CompletionsEndpoint`]):
            Writes the turns.
        offer ([`Offer`]):
            How the server takes contexts.
        parts (*optional*):
            As in [`Rollout`].
    """

    def __init__(self, endpoint: CompletionsEndpoint, offer: Offer, **parts: Any):
        super().__init__(endpoint.calls, **parts)
        self.endpoint = endpoint
        self.offer = offer

    def question(self, request: TurnRequest) -> Question:
        def send() -> Completion:
            listener = request.episode.listener
            return self.endpoint.complete(request.context, request.stops, self.settings, self.offer, listener)

        return Question(send, _or_failure)


def _or_failure(answer: Completion | str) -> Completion:
    return Completion((), None, False, error=answer) if isinstance(answer, str) else answer


def _refuse_contexts(prompts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
    raise TypeError("A server is asked about each turn on its own: use Rollout with a generator.")
