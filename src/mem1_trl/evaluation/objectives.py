"""Plays an agent on tasks of more and more objectives."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..environment_runtime.pool import EnvironmentFactory
from ..tasks import compose_objectives, sample_objectives
from .episode_scores import Success
from .evaluate import evaluate_or_load, model_name
from .result import Evaluation, slug

if TYPE_CHECKING:
    import os

    from datasets import Dataset

    from ..agent import Mem1Agent

logger = logging.getLogger(__name__)

PAPER_OBJECTIVES = (1, 2, 3, 4, 6, 8, 16)
"""Numbers of objectives that the paper tests on (arXiv 2506.15841, table of multi-objective QA)."""


def paper_max_turns(objectives: int) -> int:
    """Turns that the paper allows: 6 for up to four objectives, 20 beyond."""
    return 6 if objectives <= 4 else 20


def evaluate_objectives(
    agent: Mem1Agent | Callable[[int], Mem1Agent],
    questions: Dataset,
    environment_factory: EnvironmentFactory,
    objectives: Sequence[int] | None = None,
    tasks: int = 200,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    label: str | None = None,
    question: str = "question",
    answer: str = "answer",
    max_turns: Callable[[int], int] | None = None,
    batch_size: int = 32,
    success: Success | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: bool = True,
) -> dict[int, Evaluation]:
    """
    Evaluate an agent on tasks of more and more objectives: the paper's main experiment, its figure 4.

    Args:
        agent ([`Mem1Agent`] or `Callable[[int], Mem1Agent]`):
            The agent, or a function that gives one for a number of objectives.
        questions (`datasets.Dataset`):
            One question per row; tasks are composed of them by [`mem1_trl.tasks.sample_objectives`].
        environment_factory (`Callable`):
            Makes an environment.
        objectives (`Sequence[int]`, *optional*):
            Numbers of objectives. `None` takes the paper's, 1, 2, 3, 4, 6, 8 and 16, as far as there are so many different questions.
        tasks (`int`, *optional*, defaults to `200`):
            Tasks for each number.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where `<label>-<n>.json` and `<label>-<n>.jsonl` are written, one pair as soon as it is finished. What is there
            already is not played again, if it was run with the same settings: agent and weights, tasks, environments with what they
            search, and `success` by its name and what `functools.partial` gives it. Weights behind a server or in vLLM are not told from others, nor is a corpus behind an
            address, which a warning says.
        label (`str`, *optional*):
            Name of the agent in tables and files. `None` takes the name of its model.
        question, answer (`str`, *optional*):
            Columns of `questions`, as in [`compose_objectives`].
        max_turns (`Callable[[int], int]`, *optional*):
            Turns allowed for a number of objectives. `None` allows the paper's, [`paper_max_turns`].
        batch_size, success, seed, resamples (*optional*):
            As in [`evaluate_agent`]; `seed` also composes the tasks.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[int, Evaluation]`: by number of objectives.

    Raises:
        `ValueError`: before anything is played: if there are not enough questions for one of `objectives`, or a finished evaluation in
            `output_dir` was run with other settings.
    """
    return evaluate_composed(
        agent,
        compose_tasks(questions, objectives, tasks, question, answer, seed),
        environment_factory,
        output_dir=output_dir,
        label=label,
        max_turns=max_turns,
        batch_size=batch_size,
        success=success,
        seed=seed,
        resamples=resamples,
        progress=progress,
    )


def compose_tasks(
    questions: Dataset,
    objectives: Sequence[int] | None = None,
    tasks: int = 200,
    question: str = "question",
    answer: str = "answer",
    seed: int = 0,
) -> dict[int, Dataset]:
    """
    The tasks that [`evaluate_objectives`] plays, by number of objectives; its arguments have the same meaning.

    Raises:
        `ValueError`: if one of `objectives` is below 1, or there are not enough questions for one task of it.
    """
    if objectives is None:
        numbers = _possible(questions, question, answer)
    else:
        numbers = list(dict.fromkeys(objectives))
        if not numbers or min(numbers) < 1:
            raise ValueError(f"objectives={objectives!r} must hold numbers of objectives, 1 or more.")
    return {n: sample_objectives(questions, n, tasks, question, answer, seed) for n in numbers}


def _possible(questions: Dataset, question: str, answer: str) -> list[int]:
    """The paper's numbers of objectives, without those that are more than there are different questions, which a warning says."""
    different = len(set(compose_objectives(questions, 1, question, answer)["prompt"]))
    left_out = [n for n in PAPER_OBJECTIVES if n > different]
    if left_out:
        logger.warning(
            "A task needs as many different questions as it has objectives, and there are %d: %s objectives are left out.",
            different, ", ".join(map(str, left_out)),
        )  # fmt: skip
    return [n for n in PAPER_OBJECTIVES if n <= different]


def evaluate_composed(
    agent: Mem1Agent | Callable[[int], Mem1Agent],
    tasks: Mapping[int, Dataset],
    environment_factory: EnvironmentFactory,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    label: str | None = None,
    max_turns: Callable[[int], int] | None = None,
    batch_size: int = 32,
    success: Success | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: bool = True,
) -> dict[int, Evaluation]:
    """
    As [`evaluate_objectives`], on tasks that are there already.

    Args:
        tasks (`Mapping[int, datasets.Dataset]`):
            What [`compose_tasks`] returned.
        agent, environment_factory, output_dir, label, max_turns, batch_size, success, seed, resamples, progress (*optional*):
            As in [`evaluate_objectives`].
    """

    label = label or (None if callable(agent) else model_name(agent.describe()))

    def finished(n: int) -> bool:
        if output_dir is None:
            return False
        name = label or model_name(agent(n).describe())  # type: ignore[operator]  # one for all numbers has a label
        return (Path(output_dir) / f"{_file(name, n)}.json").is_file()

    results: dict[int, Evaluation] = {}
    # Finished ones first, since one of other settings is refused, and nothing should have been played for that
    for n in sorted(tasks, key=lambda n: not finished(n)):
        player = agent(n) if callable(agent) else agent
        allowed = (max_turns or paper_max_turns)(n)
        before = player.settings
        player.settings = dataclasses.replace(before, max_turns=allowed)
        try:
            name = label or model_name(player.describe())
            results[n] = evaluate_or_load(
                player,
                tasks[n],
                environment_factory,
                output_dir,
                _file(name, n),
                name,
                batch_size,
                title=f"{name}, {n} objective{'s'[: n > 1]}",
                progress=progress,
                success=success,
                seed=seed,
                resamples=resamples,
            )
        finally:
            player.settings = before
    return {n: results[n] for n in tasks}


def _file(name: str, n: int) -> str:
    """Name of the files of an agent on tasks of `n` objectives."""
    return f"{slug(name)}-{n}"
