"""Evaluations that are finished: what they were played with, and whether that is what is asked for now."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agent.description import differing_settings
from ..environments.recipe import Recipe, recipe_of_call
from ..json_text import as_json
from .result import Evaluation

if TYPE_CHECKING:
    import os

    from ..environment_runtime.pool import EnvironmentPool

logger = logging.getLogger(__name__)


def played_with(pool: EnvironmentPool, success: Callable[..., Any] | None) -> dict[str, Any]:
    """
    What decides the numbers of an evaluation beside the agent and the tasks, ready for JSON.

    Args:
        pool ([`EnvironmentPool`]):
            The environments. Of each: its class, its `mem1_settings`, how it is made as far as code can say it, and the `checksum` of what
            no code can write, such as an index; `None` for one that has none.
        success (`Callable` or `None`):
            What counts as success, by its name and what `functools.partial` gives it.
    """
    examples = {name: pool.example_of(name) for name in pool.factories}
    recipes = {name: _recipe(factory, examples[name]) for name, factory in pool.factories.items()}
    return {
        "environments": {
            name or "": {
                "class": _name(type(example)),
                "settings": dict(getattr(example, "mem1_settings", None) or {}),
                **(
                    {} if (recipe := recipes[name]) is None else {"made_by": recipe.code, "with": dict(recipe.missing)}
                ),
                **_own_arguments(pool.factories[name], example),
            }
            for name, example in examples.items()
        },
        "contents": {
            f"{name}.{argument}" if name else argument: getattr(content, "checksum", None)
            for name, recipe in recipes.items()
            if recipe is not None
            for argument, content in recipe.contents.items()
        },
        "success": None if success is None else _described(success),
        "faults": dataclasses.asdict(pool.caller.settings),
    }


def finished_evaluation(
    directory: str | os.PathLike[str], name: str, label: str, settings: Mapping[str, Any]
) -> Evaluation | None:
    """
    The evaluation that a directory has under a name; `None` if there is none.

    Args:
        directory (`str` or `os.PathLike`):
            Where evaluations are saved.
        name (`str`):
            Name of its files.
        label (`str`):
            Label of the agent that is to be evaluated.
        settings (`Mapping`):
            Settings with which it is to be evaluated.

    Raises:
        `ValueError`: If it was run with other settings.
    """
    path = Path(directory) / f"{name}.json"
    if not path.is_file():
        return None
    finished = Evaluation.load(directory, name)
    asked = as_json(settings)
    contents, told = asked.pop("contents", {}), finished.settings.get("contents", {})  # older files have none
    different = differing_settings(finished.settings, asked, asked)
    different += [f"contents of {name}" for name, value in contents.items() if told.get(name, value) != value]
    if different or finished.agent != label:
        raise ValueError(
            f"{path} was evaluated with other settings ({', '.join(different) or 'label'}): "
            "delete it to evaluate again, or choose another `label` or `output_dir`."
        )
    unsaid = what_nothing_says(finished.settings, settings)
    if unsaid is not None:
        logger.warning(
            "%s is finished already and is not played again, though %s: delete it to evaluate again.", path, unsaid
        )
    logger.info("%s is finished already and is not played again.", name)
    return finished


def what_nothing_says(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """
    What may have changed since something was played without any setting that tells it, as the part of a sentence; `None` if nothing may.

    Args:
        before, now (`Mapping`):
            Settings: what [`Mem1Agent.describe`] and [`played_with`] return.
    """
    told = before.get("contents", {})
    unknown = [f"{name} holds what it held then" for name in now.get("contents", {}) if told.get(name) is None]
    if now["weights"] is None:
        unknown.insert(0, f"{now['model']} still has the weights that it had then")
    return f"nothing says whether {' and '.join(unknown)}" if unknown else None


def _recipe(factory: Any, environment: Any) -> Recipe | None:
    recipe: Recipe | None = getattr(environment, "_recipe", None)
    if not isinstance(factory, partial) or (recipe is not None and _is_shipped(environment)):
        return recipe
    given = _call(factory)
    return given if recipe is None else Recipe(recipe.code, recipe.missing, {**recipe.contents, **given.contents})


def _own_arguments(factory: Any, environment: Any) -> dict[str, Any]:
    """What a partial gives to a user's class whose recipe is that of the shipped class below it, which knows only its own arguments."""
    if not isinstance(factory, partial) or getattr(environment, "_recipe", None) is None or _is_shipped(environment):
        return {}
    given = _call(factory)
    return {"called": given.code, "called_with": dict(given.missing)}


def _is_shipped(environment: Any) -> bool:
    return type(environment).__module__.partition(".")[0] == __name__.partition(".")[0]


def _call(function: partial[Any]) -> Recipe:
    """The call that a partial stands for."""
    positional = {f"argument{place}": value for place, value in enumerate(function.args)}
    return recipe_of_call(_name(function.func), **{**positional, **function.keywords})


def _described(function: Callable[..., Any]) -> str:
    """The name of a function, with what a partial gives it."""
    return _call(function).code if isinstance(function, partial) else _name(function)


def _name(thing: Any) -> str:
    """Module and name of a function or class; of an object that is called, those of its class."""
    if isinstance(thing, partial):
        return _name(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
