"""Plays an agent on tasks of more and more objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..environment_runtime.pool import EnvironmentFactory
from ..tasks import sample_objectives
from .episode_scores import Success
from .evaluate import evaluate_or_load, model_name
from .result import Evaluation, slug

if TYPE_CHECKING:
    import os

    from datasets import Dataset

    from ..agent import Mem1Agent

PAPER_OBJECTIVES = (1, 2, 3, 4, 6, 8, 16)
"""Numbers of objectives that the paper tests on (arXiv 2506.15841, table of multi-objective QA)."""


def paper_max_turns(objectives: int) -> int:
    """Turns that the paper allows: 6 for up to four objectives, 20 beyond."""
    return 6 if objectives <= 4 else 20


def evaluate_objectives(
    agent: Mem1Agent | Callable[[int], Mem1Agent],
    questions: Dataset,
    environment_factory: EnvironmentFactory,
    objectives: Sequence[int] = PAPER_OBJECTIVES,
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
        objectives (`Sequence[int]`, *optional*, defaults to `(1, 2, 3, 4, 6, 8, 16)`):
            Numbers of objectives.
        tasks (`int`, *optional*, defaults to `200`):
            Tasks for each number.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where `<label>-<n>.json` and `<label>-<n>.jsonl` are written, one pair as soon as it is finished. What is there
            already is not played again, if it was run with the same settings: agent and weights, tasks, environments with what they
            search, and `success` by its name. Weights behind a server or in vLLM are not told from others, nor is a corpus behind an
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
        `ValueError`: if a finished evaluation in `output_dir` was run with other settings.
    """
    numbers = list(dict.fromkeys(objectives))
    if not numbers or min(numbers) < 1:
        raise ValueError(f"objectives={objectives!r} must hold numbers of objectives, 1 or more.")
    results: dict[int, Evaluation] = {}
    for n in numbers:
        player = agent(n) if callable(agent) else agent
        allowed = (max_turns or paper_max_turns)(n)
        before = player.settings
        player.settings = dataclasses.replace(before, max_turns=allowed)
        try:
            name = label or model_name(player.describe())
            results[n] = evaluate_or_load(
                player,
                sample_objectives(questions, n, tasks, question, answer, seed),
                environment_factory,
                output_dir,
                f"{slug(name)}-{n}",
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
    return results
