"""An environment that is made for one episode, and closed with it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .environment_thread import EnvironmentThread
from .errors import describe_error
from .pool import EnvironmentFactory, GivenEnvironments, StartedEpisode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..protocol.protocol import Mem1Protocol
    from .calls import EnvironmentCaller


class MadeEnvironment(GivenEnvironments):
    """
    One environment, made in the thread in which it is reset, called and closed. A reset that fails is repeated with another instance.

    Args:
        factory (`EnvironmentFactory`):
            Makes it.
        protocol ([`Mem1Protocol`]):
            Protocol that defines the tags of actions.
        caller ([`EnvironmentCaller`]):
            Runs the calls.

    Raises:
        `RuntimeError`: If it cannot be made, reset, or brought to a state.
    """

    def __init__(self, factory: EnvironmentFactory, protocol: Mem1Protocol, caller: EnvironmentCaller):
        thread = EnvironmentThread(factory=factory)
        (error,) = caller.make([thread])
        if error is not None:
            raise _failure("made", error)
        try:
            super().__init__([thread.environment], protocol, caller, [thread])
        except BaseException:
            caller.close_environments([thread])
            raise

    def start(self, rows: Sequence[Mapping[str, Any]]) -> list[StartedEpisode]:
        """Reset it for an episode, as in [`EnvironmentPool.start`]."""
        return [
            one if one.error is None else dataclasses.replace(one, error=_failure("reset", one.error))
            for one in super().start(rows)
        ]

    def set_state(self, environment: Any, state: Any) -> None:
        """Set its property `mem1_state`, as in [`GivenEnvironments.set_state`]."""
        try:
            super().set_state(environment, state)
        except Exception as error:
            raise _failure("brought to its state", error) from error

    def release(self) -> None:
        """Close it; its thread ends."""
        self.caller.close_environments(self._threads)


def _failure(what: str, error: Exception) -> RuntimeError:
    """An error of the environment, which whoever asked for the episode is not at fault for."""
    return RuntimeError(f"The environment could not be {what}: {describe_error(error)}")
