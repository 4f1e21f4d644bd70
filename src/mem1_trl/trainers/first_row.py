"""The first row is played before any model is loaded: a mistake in an environment costs seconds instead of the first batch."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset

from ..environment_runtime.actions import action_methods, owns_loop
from ..environment_runtime.calls import name_of_call
from ..environment_runtime.errors import describe_error, is_hopeless

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..environment_runtime.pool import EnvironmentPool

logger = logging.getLogger(__name__)

_ROWS = 3
"""Rows that must all fail before an environment is refused: one bad row costs its own episode only."""

_SEARCHED = 1000
"""Rows among which those of each environment are looked for."""


def play_first_row(pool: EnvironmentPool, dataset: Any) -> None:
    """
    Start and score one episode of each environment without an action, which leaves no trace in counts and random numbers.

    Raises:
        `ValueError`: If an environment cannot be played: it has no action, does not take the columns of a row, or `reset` or
            `get_reward` fails for three rows with an error that would come again. What may pass, as a server that does not answer
            yet, is a warning.
    """
    for name, actions in pool.actions.items():
        environment = pool.example_of(name)
        kind = type(environment).__name__
        if not owns_loop(environment) and not actions.tags and actions.answer_method is None:
            raise ValueError(
                f"{kind} has no action: give it a public method with a docstring, which the agent may call, or leave out "
                "`environment_factory` if tasks are one completion each."
            )
        if callable(getattr(type(environment), "get_turn_reward", None)):
            _check_takes_nothing(environment)
        for action, method in action_methods(environment).items():
            for argument in inspect.signature(method).parameters.values():
                if argument.annotation is argument.empty and argument.kind not in (
                    argument.VAR_POSITIONAL,
                    argument.VAR_KEYWORD,
                ):
                    logger.warning(
                        "The argument %r of the action %r of %s has no type and is passed as text: write its type, as in `%s: str`.",
                        argument.name, action, kind, argument.name,
                    )  # fmt: skip
    if not isinstance(dataset, Dataset):  # a stream is not read for it
        return
    with _random_numbers_kept():
        for rows in _rows_of_each(pool, dataset):
            _play_one_of(pool, rows)
    pool.caller.counts.reset()


def check_reset(pool: EnvironmentPool, name: str, dataset: Any) -> None:
    """
    Refuse a data set with whose rows `reset` could not be called, without playing one: an evaluation may begin hours from now.

    Args:
        pool ([`EnvironmentPool`]):
            The environments.
        name (`str`):
            What messages call the data set.
        dataset (`Any`):
            A stream is not read for it.

    Raises:
        `ValueError`: If `reset` of an environment does not take the columns of its first row.
    """
    if isinstance(dataset, Dataset):
        for rows in _rows_of_each(pool, dataset):
            for row in rows[:1]:
                _check_signature(pool, row, name, f" of the {name}")


def _rows_of_each(pool: EnvironmentPool, dataset: Dataset) -> list[list[dict[str, Any]]]:
    """The first rows of each environment."""
    if not pool.routed:
        return [list(dataset.select(range(min(_ROWS, len(dataset)))))]
    places: dict[str | None, list[int]] = {}
    for place, row in enumerate(dataset.select_columns(["environment"]).select(range(min(_SEARCHED, len(dataset))))):
        places.setdefault(pool.name_of(row), []).append(place)
    return [list(dataset.select(found[:_ROWS])) for found in places.values()]


def _play_one_of(pool: EnvironmentPool, rows: list[dict[str, Any]]) -> None:
    problem = ""
    for row in rows:
        _check_signature(pool, row)
        (started,) = pool.start([row])
        method, error = "reset", started.error
        if error is None:
            ((_, error),) = pool.score([started.environment])
            method = "get_reward"
        if error is None:
            return
        place = name_of_call(pool.example_of(pool.name_of(row)), method)
        said = f"{place} failed with {describe_error(error)}"
        if not is_hopeless(error):
            logger.warning("The first row could not be played yet: %s", said)
            return
        problem = problem or said
    raise ValueError(f"The first row cannot be played: {problem}")


def _check_takes_nothing(environment: Any) -> None:
    """Raise `ValueError` if `get_turn_reward` needs arguments. It is not called here, since no turn was played."""
    try:
        inspect.signature(environment.get_turn_reward).bind()
    except TypeError as error:
        place = name_of_call(environment, "get_turn_reward")
        raise ValueError(f"{place} must be callable without arguments: {error}.") from error


def _check_signature(
    pool: EnvironmentPool, row: Mapping[str, Any], name: str = "train dataset", place: str = ""
) -> None:
    """Raise `ValueError` if `reset` does not take the columns of a row by name, or needs one that there is not."""
    environment = pool.example_of(pool.name_of(row))
    columns = [name for name in row if not (pool.routed and name == "environment")]
    try:
        signature = inspect.signature(environment.reset)
    except ValueError:  # built in C
        return
    try:
        signature.bind(**{name: row[name] for name in columns})
    except TypeError as error:
        reset = name_of_call(environment, "reset")
        missing = [argument for argument in _needed_names(signature) if argument not in columns]
        if missing:
            spare = [column for column in columns if column not in signature.parameters]
            rename = (
                f"rename the one that holds it, for instance with `dataset.rename_column({spare[0]!r}, {missing[0]!r})`"
                if spare
                else "add it"
            )
            raise ValueError(
                f"The {name} has no column {missing[0]!r}, which {reset} needs (it has {', '.join(columns)}): {rename}, or give the argument a default."
            ) from error
        own = inspect.signature(type(environment).reset)
        raise ValueError(
            f"{reset} must accept the columns of a row{place} ({', '.join(columns)}), got a signature "
            f"{own}: {error}; add `**row` for those that it does not use."
        ) from error


def _needed_names(signature: inspect.Signature) -> list[str]:
    """Arguments that have to be given by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [one.name for one in signature.parameters.values() if one.kind in by_name and one.default is one.empty]


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """What environments draw here changes no number that a run draws later."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
