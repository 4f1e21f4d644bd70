"""One local model for several threads: one call at a time, and what arrives together is generated together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .settings import AgentSettings
    from .stopping import Completion

_GATHER = 0.01
"""Seconds for which a call waits for those of other threads that are playing."""


@dataclass(slots=True, eq=False)
class _Request:
    """Contexts of one thread, and then their completions."""

    settings: AgentSettings
    prompts: list[list[int]]
    stops: list[list[str]]
    draws: list[Any] | None = None
    listeners: list[Any] | None = None
    begun: list[Completion | None] | None = None
    leave: int | None = None
    completions: list[Completion] | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.completions is not None or self.error is not None


def _alike(one: _Request, other: _Request) -> bool:
    """Whether two requests may be one call of the model."""
    return (
        one.settings == other.settings
        and (one.draws is None) == (other.draws is None)
        and (one.leave is None) == (other.leave is None)
    )


class SharedGenerator:
    """
    Generates for all threads that play episodes with one model.

    A thread that finds the model free generates for all that wait by then; the others find their completions when it is their turn.

    Args:
        generator (`Callable[[], TransformersGenerator]`):
            Returns the generator that is shared.
    """

    returns_early = True

    def __init__(self, generator: Callable[[], Any]):
        self._generator = generator
        self._model = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[_Request] = []
        self._playing = 0

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Say that this thread plays episodes. What the model has read is forgotten when the last thread has ended."""
        with self._changed:
            self._playing += 1
        try:
            yield
        finally:
            with self._changed:
                self._playing -= 1
                self._changed.notify_all()
                is_last = not self._playing
            if is_last:  # the others are not waited for
                with self._model:
                    if not self._playing:
                        self._generator().release()

    def __call__(
        self,
        prompts: list[list[int]],
        stops: list[list[str]],
        settings: AgentSettings,
        draws: list[Any] | None = None,
        listeners: list[Any] | None = None,
        begun: list[Completion | None] | None = None,
        leave: int | None = None,
    ) -> list[Completion]:
        """One completion for each context, as from the generator."""
        request = _Request(settings, prompts, stops, draws, listeners, begun, leave)
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
        with self._model:
            if not request.done:
                self._serve(request)
        if request.error is not None:
            raise request.error
        assert request.completions is not None
        return request.completions

    def _serve(self, own: _Request) -> None:
        """Generate for all that wait, the request of this thread among them."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) >= self._playing, _GATHER)
            taken, self._waiting = self._waiting, []
        try:
            left = list(taken)
            while left:
                alike = [request for request in left if _alike(request, left[0])]
                left = [request for request in left if request not in alike]
                self._generate_together(alike)
        except BaseException:  # an interrupt of this thread: the others go on
            with self._changed:
                self._waiting = [one for one in taken if not one.done and one is not own] + self._waiting
            raise

    def _generate_together(self, requests: Sequence[_Request]) -> None:
        try:
            found = self._generate(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].error = error
                return
            for request in requests:  # one of them may be at fault, and the others are not
                self._generate_together([request])
            return
        for request in requests:
            request.completions = [next(found) for _ in request.prompts]

    def _generate(self, requests: Sequence[_Request]) -> Iterator[Completion]:
        generator = self._generator()
        generator.settings = requests[0].settings
        model: Any = getattr(generator, "model", None)
        training = getattr(model, "training", False)
        if training:
            model.eval()
        try:
            prompts = [prompt for request in requests for prompt in request.prompts]
            stops = [stops for request in requests for stops in request.stops]
            more: dict[str, Any] = {}
            if requests[0].draws is not None:
                more["draws"] = [one for request in requests for one in request.draws or ()]
            if any(request.listeners for request in requests):
                own = [request.listeners or [None] * len(request.prompts) for request in requests]
                more["listeners"] = [listener for listeners in own for listener in listeners]
            if requests[0].leave is not None and getattr(generator, "returns_early", False):
                own = [request.begun or [None] * len(request.prompts) for request in requests]
                more["begun"] = [one for begun in own for one in begun]
                more["leave"] = min(request.leave for request in requests if request.leave is not None)
            return iter(generator(prompts, stops, **more))
        finally:
            if training:
                model.train()
