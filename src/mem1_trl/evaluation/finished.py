"""Evaluations that are finished: what they were played with, and whether that is what is asked for now."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environments.recipe import recipe_of_call
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
            The environments. Of each: its class, its `mem1_settings`, and how it is made as far as code can say it; of a corpus in memory
            that is its size.
        success (`Callable` or `None`):
            What counts as success, by its name.
    """
    return {
        "environments": {
            name or "": {
                "class": _name(type(pool.example_of(name))),
                "settings": dict(getattr(pool.example_of(name), "mem1_settings", None) or {}),
                **_made_by(factory, pool.example_of(name)),
            }
            for name, factory in pool.factories.items()
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
    different = [key for key, value in as_json(settings).items() if finished.settings.get(key) != value]
    if different or finished.agent != label:
        raise ValueError(
            f"{path} was evaluated with other settings ({', '.join(different) or 'label'}): "
            "delete it to evaluate again, or choose another `label` or `output_dir`."
        )
    if settings["weights"] is None:
        logger.warning(
            "%s is finished already and is not played again, though nothing says whether %s still has the weights that it had then: "
            "delete it to evaluate again.",
            path, settings["model"],
        )  # fmt: skip
    logger.info("%s is finished already and is not played again.", name)
    return finished


def _made_by(factory: Any, environment: Any) -> Mapping[str, Any]:
    recipe = getattr(environment, "_recipe", None)
    if recipe is None and isinstance(factory, partial):
        positional = {f"argument{place}": value for place, value in enumerate(factory.args)}
        recipe = recipe_of_call(_name(factory.func), **{**positional, **factory.keywords})
    return {} if recipe is None else {"made_by": recipe.code, "with": dict(recipe.missing)}


def _name(thing: Any) -> str:
    """Module and name of a function or class; of an object that is called, those of its class."""
    if isinstance(thing, partial):
        return _name(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
