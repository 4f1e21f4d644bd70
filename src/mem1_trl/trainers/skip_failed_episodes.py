"""Reward functions that are not called for episodes whose environment failed."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch


def score_sound_episodes_only(function: Any, failed: list[bool]) -> Any:
    """
    A reward function that is not called for failed episodes, which get 0.

    Reward functions are written for episodes; one that never began has no turns, perhaps no environment. Reward models get texts
    only, and stay as they are.
    """
    if isinstance(function, torch.nn.Module):
        return function
    kept = [index for index, one in enumerate(failed) if not one]

    def chosen(kwargs: dict[str, Any]) -> dict[str, Any]:
        rows = {key: [v[i] for i in kept] if _is_column(v, len(failed)) else v for key, v in kwargs.items()}
        if "log_extra" in kwargs:
            rows["log_extra"] = lambda column, values: kwargs["log_extra"](column, spread(values, None))
        return rows

    def spread(values: Any, filler: Any) -> list[Any]:
        result = [filler] * len(failed)
        for index, value in zip(kept, values, strict=True):
            result[index] = value
        return result

    if _is_asynchronous(function):

        async def ask(**kwargs: Any) -> list[Any]:
            return spread(await function(**chosen(kwargs)) if kept else [], 0.0)

        return ask

    def call(**kwargs: Any) -> list[Any]:
        return spread(function(**chosen(kwargs)) if kept else [], 0.0)

    return call


def _is_asynchronous(function: Any) -> bool:
    """Whether TRL awaits what a function returns: an `async def`, an object called by one, or a partial of either."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows
