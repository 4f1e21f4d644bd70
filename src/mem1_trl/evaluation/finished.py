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
            What counts as success, by its name.
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
            }
            for name, example in examples.items()
        },
        "contents": {
            f"{name}.{argument}" if name else argument: getattr(content, "checksum", None)
            for name, recipe in recipes.items()
            if recipe is not None
            for argument, content in recipe.contents.items()
        },
        "success": None if success is None else _name(success),
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
    unknown = [f"{name} holds what it held then" for name in contents if told.get(name) is None]
    if settings["weights"] is None:
        unknown.insert(0, f"{settings['model']} still has the weights that it had then")
    if unknown:
        logger.warning(
            "%s is finished already and is not played again, though nothing says whether %s: delete it to evaluate again.",
            path, " and ".join(unknown),
        )  # fmt: skip
    logger.info("%s is finished already and is not played again.", name)
    return finished


def _recipe(factory: Any, environment: Any) -> Recipe | None:
    recipe: Recipe | None = getattr(environment, "_recipe", None)
    if recipe is None and isinstance(factory, partial):
        positional = {f"argument{place}": value for place, value in enumerate(factory.args)}
        recipe = recipe_of_call(_name(factory.func), **{**positional, **factory.keywords})
    return recipe


def _name(thing: Any) -> str:
    """Module and name of a function or class; of an object that is called, those of its class."""
    if isinstance(thing, partial):
        return _name(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
