"""An environment that is a program of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from ..typed_fields import check_whole
from .playing import play_programs

Program = Callable[[dict[str, Any], str], Any] | Sequence[str]
"""A function of the row and the address of the model, or a command."""


class GatewayEnvironment:
    """
    Lets a program play an episode: it asks the model over OpenAI's API, as often and with whatever contexts it likes.

    Each request is a turn: the token ids that the model read, and those that it sampled, with their log-probs. The program may append,
    compact, branch, or hold several conversations at once.

    Example:

    ```python
    def program(row, base_url):
        client = openai.OpenAI(base_url=base_url, api_key="none")
        answer = client.chat.completions.create(model="policy", messages=[{"role": "user", "content": row["question"]}])
        return float(answer.choices[0].message.content == row["answer"])


    trainer = Mem1GRPOTrainer(model, args=args, train_dataset=dataset, environment_factory=GatewayEnvironment.factory(program))
    ```

    Args:
        program (`Callable` or `Sequence[str]`):
            `program(row, base_url)`, called in a thread, asynchronous or not, whose return value is its result; or a command, which finds
            the address in the environment variable `OPENAI_BASE_URL` and the row as JSON on its standard input, and whose output is its
            result.
        reward (`Callable[[Any, dict], float]`, *optional*):
            `reward(result, row)`, asynchronous or not, which may return `None` for "not scored". Without it the result of the program is
            the reward, a number (of a command, the last line of its output), and is not compared with the `answers` of the row.
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds for one episode.
        max_requests (`int`, *optional*, defaults to `64`):
            Most requests of one episode; further ones are refused.
    """

    def __init__(
        self,
        program: Program,
        reward: Callable[[Any, dict[str, Any]], Any] | None = None,
        timeout: float = 300.0,
        max_requests: int = 64,
    ):
        if callable(program):
            _check_function("program", program, ("row", "base_url"))
        elif not _is_command(program):
            raise TypeError(
                f"`program` must be a function, or a command as a list of at least one text, got {program!r:.80}."
            )
        if reward is not None:
            _check_function("reward", reward, ("result", "row"))
        _check_seconds("timeout", timeout)
        self._program = program
        self._reward = reward
        self._timeout = timeout
        self._max_requests = check_whole("max_requests", max_requests, 1)
        self._row: dict[str, Any] = {}
        self._result: Any = None
        self._played = False

    @classmethod
    def factory(cls, program: Program, **kwargs: Any) -> Callable[[], GatewayEnvironment]:
        """A zero-argument factory, for `environment_factory`. The arguments are those of the class, which refuses wrong ones at once."""
        make = partial(cls, program, **kwargs)
        make()
        return make

    def reset(self, **row: Any) -> None:
        """Begin an episode of a row of the data set."""
        self._row, self._result, self._played = row, None, False

    def get_reward(self) -> Any:
        """The reward of the episode; 0 before its program has run, as trainers try an environment out."""
        if not self._played:
            return 0.0
        if self._reward is not None:
            return self._reward(self._result, self._row)
        result = self._result.strip().rpartition("\n")[2] if isinstance(self._result, str) else self._result
        try:
            return float(result)
        except (TypeError, ValueError):
            raise ValueError(
                f"Without `reward`, the result of the program must be a number, got {self._result!r:.80}."
            ) from None

    @property
    def mem1_gives_answers(self) -> bool:
        """Whether the result of the program is its answer: without `reward` it is the reward."""
        return self._reward is not None

    mem1_plays = property(lambda self: play_programs)
    """Plays the episodes in place of the turn loop."""


def _is_command(program: Any) -> bool:
    """Whether a value is a list of texts, of which the first names what to start."""
    is_list = isinstance(program, Sequence) and not isinstance(program, str)
    return is_list and all(isinstance(one, str) for one in program) and any(program[:1])


def _check_function(name: str, function: Any, given: Sequence[str]) -> None:
    """Refuse what cannot be called with what it will be given, in this order."""
    must = f"`{name}` must be a function of ({', '.join(given)}), got"
    if not callable(function):
        raise TypeError(f"{must} {function!r:.80}.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # built in C
        return
    try:
        signature.bind(*given)
    except TypeError:
        raise TypeError(f"{must} one with {signature}.") from None


def _check_seconds(name: str, value: Any) -> None:
    """Refuse what is no time, also one of NumPy; an endless one may be."""
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
        raise ValueError(f"{name} must be a number above 0, got {value!r}.")
