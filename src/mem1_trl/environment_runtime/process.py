"""Environments in their own processes, so that the run can kill an environment that hangs and survive one that crashes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, NoReturn

from .environment_thread import closing_hook
from .errors import EnvironmentDied, RemoteError, error_names, is_of_written_code, message_of
from .shown_text import shown_text

_CLOSING = 5.0  # seconds that a process has to end on its own before it is killed

_LONGEST_TRACE = 10_000  # characters of a traceback that are sent

_starting = threading.Lock()


class ProcessEnvironment:
    """
    Runs an environment in its own process; made by [`~ProcessEnvironment.factory`].

    It has the same actions with the same docstrings and signatures, `reset`, `get_reward` if the environment has it, and `done`.
    Other attributes can be read and set; their values are copies. Asynchronous methods become synchronous, since each environment has
    its own thread anyway.

    The process is killed when a call exceeds `environment_timeout`, and a new process replaces it in the next episode. If the
    process dies (a segmentation fault, `os._exit`, out of memory), the call raises [`mem1_trl.faults.EnvironmentDied`], and the
    next `reset` starts a new process. On systems with process groups, whatever it has started ends with it, however it ends.
    """

    _kind: Callable[..., Any]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Any = None
        self._done = False
        self._leftovers: Callable[[], Any] = lambda: None
        self._start()

    @classmethod
    def factory(cls, environment: Callable[..., Any], *args: Any, **kwargs: Any) -> type[ProcessEnvironment]:
        """
        A factory for `environment_factory`.

        Example:

        ```python
        trainer = Mem1GRPOTrainer(..., environment_factory=ProcessEnvironment.factory(TextWorld, "game.z8"))
        ```

        Processes are started by "spawn", so the class and its arguments must be picklable: define the class in a module, not in a
        notebook, and load large data in its `__init__`. If the class is defined in the script that is run, the script needs
        `if __name__ == "__main__":`.

        Args:
            environment (`type` or `functools.partial` of one):
                Class of the environment.
            args, kwargs (*optional*):
                Arguments for making the environment.

        Returns:
            `type`: A class without arguments that has the name of the environment's class.

        Raises:
            `TypeError`: If `environment` is neither, since its actions would then be unknown until one is made, or if it cannot be
                pickled.
        """
        made = functools.partial(environment, *args, **kwargs)
        kind = made.func
        if not inspect.isclass(kind):
            raise TypeError(
                f"environment must be a class, got {environment!r}: pass the class, followed by the arguments for making it."
            )
        try:
            ForkingPickler.dumps(made)
        except Exception as error:
            raise TypeError(
                f"{kind.__name__} and its arguments cannot be sent to another process ({error}): define the class at the top level "
                "of a module, and load large data in its `__init__`."
            ) from error
        members: dict[str, Any] = {
            name: _forward(name, function, isinstance(inspect.getattr_static(kind, name), staticmethod))
            for name, function in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and not (name == "close" and len(inspect.signature(function).parameters) <= 1)
        }
        if not callable(getattr(kind, "done", None)):
            members["done"] = property(
                lambda self: self._done, doc="Whether the episode is over, as of the last call."
            )
        members["_kind"] = staticmethod(made)
        members["__doc__"] = kind.__doc__
        return type(kind.__name__, (cls,), members)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._ask(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self._ask("__setattr__", (name, value), {})

    # The process

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._kind), daemon=True, name="mem1-environment")
        with _starting, _without_main(getattr(self._kind, "func", self._kind)):
            self._process.start()
        # Also when the program ends without having closed the environment
        self._leftovers = weakref.finalize(self, _kill_group, self._process.pid, os.getpid())
        theirs.close()
        self._done = False
        self._receive(
            "could not be started: is its class in a module that can be imported, and the script guarded by "
            "`if __name__ == '__main__':`"
        )

    def _ask(self, name: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call a method in the process, or read an attribute if `kwargs` is `None`."""
        with self._lock:
            if name == "reset" and (self._process is None or not self._process.is_alive()):
                self._leftovers()  # what a process that has died has started
                self._start()
            if self._process is None:
                raise EnvironmentDied("the process of the environment is gone")
            try:
                self._connection.send((name, args, kwargs))
            except OSError:
                raise EnvironmentDied(self._exit_message("is gone")) from None
            return self._receive("ended")

    def _receive(self, what: str) -> Any:
        try:
            status, value, self._done = self._connection.recv()
        except (EOFError, OSError):
            raise EnvironmentDied(self._exit_message(what)) from None
        if status == "error":
            names, message, of_written_code, trace = value
            error: Exception = RemoteError(names, message, of_written_code)
            if names[0] == "AttributeError":  # `hasattr` relies on this type
                error = AttributeError(message)
            error.add_note(f"In the process of the environment:\n{trace}")
            raise error
        return value

    def _exit_message(self, what: str) -> str:
        self._process.join(_CLOSING)
        code = self._process.exitcode
        with contextlib.suppress(ValueError, TypeError):
            code = signal.Signals(-code).name
        return f"the process of the environment {what} (exit code {code})"

    def _terminate(self) -> None:
        """Kill the process and its child processes. It may be called from any thread, also while a call waits."""
        process = self._process
        if process is None:
            return
        self._leftovers()
        if process.is_alive():
            process.kill()

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            with contextlib.suppress(OSError):
                self._connection.send(None)
                self._connection.close()
            process.join(_CLOSING)
        self._leftovers()
        if process.is_alive():
            process.kill()

    @property
    def close(self) -> Callable[[], None]:
        """Close the environment and end its process. A property, since TRL's rule counts every function as an action."""
        return self._end


def _kill_group(pid: int, owner: int) -> None:
    """
    Kill a process and all that it has started, which may outlive it, if this is the process `owner` and not a copy of it. The group has
    the number of the process from `_serve` on.
    """
    if hasattr(os, "killpg") and os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def _forward(name: str, function: Callable[..., Any], static: bool) -> Callable[..., Any]:
    """A method that calls the method of the same name in the process."""

    @functools.wraps(function)
    def method(self: ProcessEnvironment, *args: Any, **kwargs: Any) -> Any:
        return self._ask(name, args, kwargs)

    if static:
        signature = inspect.signature(function)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return method


@contextlib.contextmanager
def _without_main(kind: Any) -> Iterator[None]:
    """
    Prevent a new process from importing the script that is run, unless the script defines the class.

    The import would load everything that the script loads (torch, a model), and run its unguarded code.
    """
    if getattr(kind, "__module__", "__main__") == "__main__":
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.modules["__main__"].__spec__ = None
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# In the process


def _serve(connection: Any, make: Callable[[], Any]) -> None:
    """Make the environment and answer requests, until the parent closes the connection."""
    if hasattr(os, "setsid"):
        os.setsid()  # its own group: a keyboard interrupt does not reach it, and killing it kills its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.current_process().daemon = False  # an action may start processes, which are killed with this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loop: Any = None
    environment: Any = None

    def run(value: Any) -> Any:
        nonlocal loop
        if not inspect.isawaitable(value):
            return value
        loop = loop or asyncio.new_event_loop()
        return loop.run_until_complete(_wait(value))

    def done() -> bool:
        value = getattr(environment, "done", False)
        try:
            return not callable(value) and bool(value)
        except Exception:
            if isinstance(getattr(type(environment), "done", None), property):
                raise
            return False  # an array, say, as in a thread

    def described(error: BaseException) -> tuple[list[str], str, bool, str]:
        if not isinstance(error, Exception):  # as in a thread, it ends neither the process nor the run
            error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        trace = "".join(traceback.format_exception(error))[-_LONGEST_TRACE:]
        return error_names(error), message_of(error) or "", is_of_written_code(error), trace

    def reply(status: str, value: Any) -> None:
        try:
            state = done()
        except Exception as error:
            status, value, state = "error", described(error), False
        try:
            message = ForkingPickler.dumps((status, value, state))
        except Exception:  # a value that cannot be pickled is shown as text anyway
            try:
                value = shown_text(value)
            except Exception as error:
                status, value = "error", described(error)
            message = ForkingPickler.dumps((status, value, state))
        try:
            connection.send_bytes(message)
        except OSError:
            _end_at_once()

    def attempt(action: Callable[[], Any]) -> None:
        try:
            value = run(action())
        except BaseException as error:
            reply("error", described(error))
        else:
            reply("value", value)

    def begin() -> None:
        nonlocal environment
        environment = make()

    attempt(begin)
    while environment is not None:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            _end_at_once()
        if request is None:
            break
        attempt(functools.partial(_perform, environment, *request))
    hook = closing_hook(environment)
    if hook is not None:
        with contextlib.suppress(Exception):
            run(hook())


def _perform(environment: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    member = getattr(environment, name)
    return member if kwargs is None else member(*args, **kwargs)


async def _wait(value: Any) -> Any:
    return await value


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _end_at_once()


def _end_at_once() -> NoReturn:
    """
    End this process, whose parent is gone, and all that it has started. Whoever notices it first calls this, since the process could
    have ended by the time another one does.
    """
    _kill_group(os.getpid(), os.getpid())
    os._exit(1)
