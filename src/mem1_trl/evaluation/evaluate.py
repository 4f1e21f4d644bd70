"""Plays an agent over a data set, and measures what it answered and what it cost."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..environment_runtime.faults import fault_metrics
from ..environment_runtime.pool import EnvironmentFactory, EnvironmentPool
from ..json_text import plain
from ..rewards import ANSWER_SEPARATOR, are_answers, form_of_answers
from ..rollout.draws import episode_seeds
from ..rollout.play import check_task
from ..typed_fields import check_seed, check_whole
from .episode_scores import Success, evaluate_episode
from .finished import finished_evaluation, played_with
from .result import EvaluatedTask, Evaluation

if TYPE_CHECKING:
    import os

    from ..agent import Mem1Agent

logger = logging.getLogger(__name__)


def evaluate_agent(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
    *,
    label: str | None = None,
    success: Success | None = None,
    seed: int = 0,
    resamples: int = 2000,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """
    Play one episode per row, and score it.

    Every row is in the result. If an environment fails in `reset` or `get_reward` (it raises, hangs longer than the agent's
    `environment_timeout`, or returns what is no text or number), if it dies, or if a prompt is too long for the model, the
    episode is kept as far as it came, with `error`, and counts 0 in every score of success; its costs are those of the turns
    that were played. An action that raises is not such a failure: the agent reads the error and goes on, as in training, and
    `failed_actions` counts it. How often calls failed is in [`Evaluation`]`.environment`.

    Scores of a task:

    | score | meaning |
    |---|---|
    | `exact_match` | objectives answered exactly, 0 to N (as in the paper); 0 unless there are N answers |
    | `f1` | the same with F1 over sets of words |
    | `exact_match_per_objective`, `f1_per_objective` | divided by N |
    | `success` | 1 if all objectives are answered exactly, or what `success` says |
    | `reward` | what `get_reward` gave, and `get_turn_reward` for all turns |
    | `turns`, `generated_tokens`, `peak_tokens`, `peak_tokens_without_prompt`, `dependency_length`, `state_tokens`, `valid_action_rate`, `repeated_actions` | see [`mem1_trl.metrics`] |
    | `summaries`, `summary_tokens`, `summary_saved_tokens`, `summary_words_kept` and others | under context rules with summaries, see [`mem1_trl.metrics`] |
    | `summary_lost_answers` | gold answers that were in a context that a summary replaced, and not in the next; episodes with a summary only |
    | `failed_actions` | actions that raised, or whose arguments were wrong |
    | `seconds` | wall time, that of each turn split evenly among the episodes that played it at once |

    The first five need references (`answers`); without them, and without `success`, they are left out.

    Args:
        agent ([`Mem1Agent`]):
            The agent; it decodes greedily unless its `temperature` says otherwise.
        rows (`Iterable[Mapping]`):
            Dataset rows with `prompt` and whatever `reset` wants; with `answers` (a list of accepted answers for each
            objective) the answers are scored.
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes an environment; with a dictionary, each row names its environment in the column `environment`.
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once.
        on_batch (`Callable[[int], None]`, *optional*):
            Called with the number of episodes after each batch, for a progress bar.
        label (`str`, *optional*):
            Name of the agent in tables, such as `"MEM1 PPO"`. `None` takes the name of its model.
        success (`Callable[[Mapping, Trajectory], bool]`, *optional*):
            Whether a task was done, given its row and its episode, for instance
            `lambda row, trajectory: trajectory.reward == 1.0`.
        seed (`int`, *optional*, defaults to `0`):
            Of the bootstrap, and of sampling if the agent samples. Two runs with one seed give the same result but for
            `seconds`, and with `rollout_mode="async"` the rounding of log-probs; the random state of the caller is left as it was.
        resamples (`int`, *optional*, defaults to `2000`):
            Of the bootstrap.
        settings (`Mapping`, *optional*):
            Kept beside those of the agent.

    Returns:
        [`Evaluation`]

    Raises:
        `ValueError`: if there are no rows, one has no `prompt` or no usable `answers`, or `success` gives something else than true, false or a
            finite number.
    """
    rows = _checked(rows)
    pool = EnvironmentPool(environment_factory, agent.protocol, agent.faults)
    return _evaluate_tasks(agent, rows, pool, batch_size, on_batch, label, success, seed, resamples, settings)


def _evaluate_tasks(
    agent: Mem1Agent,
    rows: list[dict[str, Any]],
    pool: EnvironmentPool,
    batch_size: int,
    on_batch: Callable[[int], object] | None,
    label: str | None,
    success: Success | None,
    seed: int,
    resamples: int,
    settings: Mapping[str, Any] | None,
) -> Evaluation:
    """As [`evaluate_agent`], in environments that are there; they are closed."""
    check_whole("batch_size", batch_size, 1)
    check_whole("resamples", resamples, 1)
    check_seed(seed)
    played = played_with(pool, success)
    tasks: list[EvaluatedTask] = []
    try:
        with seeded(agent, seed):
            seeds = episode_seeds(len(rows))  # drawn at once, so that nothing depends on the size of a batch
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                trajectories = agent.run_batch(
                    chunk, pool, keep_failures=True, seeds=seeds[start : start + batch_size]
                )
                for index, (row, trajectory) in enumerate(zip(chunk, trajectories), start):
                    task = evaluate_episode(
                        trajectory,
                        row,
                        agent.tokenizer,
                        agent.protocol,
                        agent.settings.rule.memory,
                        index=index,
                        success=success,
                        rewarded=pool.gives_reward(row),
                        answered=pool.gives_answers(row),
                    )
                    tasks.append(task)
                if on_batch is not None:
                    on_batch(len(chunk))
    finally:
        pool.close()
    described = _described(agent, played)
    failed = [task for task in tasks if task.error is not None]
    if failed:
        logger.warning(
            "%d of %d episodes failed and count 0, the first of them (row %d) with: %s",
            len(failed), len(tasks), failed[0].index, failed[0].error,
        )  # fmt: skip
    later = pool.caller.failures.later()
    if later:
        logger.warning("Calls that failed after the first failure that was logged: %s.", later)
    return Evaluation.from_tasks(
        tasks,
        agent=label or model_name(described),
        settings={
            **described,
            "memory": agent.settings.rule.memory,
            "seed": seed,
            **(settings or {}),
        },
        seed=seed,
        resamples=resamples,
        environment=fault_metrics([pool.caller.counts.reset()]),
    )


def evaluate_or_load(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
    output_dir: str | os.PathLike[str] | None,
    name: str,
    label: str,
    batch_size: int = 32,
    *,
    title: str | None = None,
    progress: bool = True,
    success: Success | None = None,
    seed: int = 0,
    resamples: int = 2000,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """
    As [`evaluate_agent`], but an evaluation that is finished already is not played again, and this one is saved.

    Args:
        output_dir (`str` or `os.PathLike` or `None`):
            Where `<name>.json` and `<name>.jsonl` are looked for and written. `None` does neither.
        name (`str`):
            Name of the files.
        label (`str`):
            Name of the agent in tables.
        title (`str`, *optional*):
            What the progress bar is called. `None` takes `label`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        agent, rows, environment_factory, batch_size, success, seed, resamples, settings (*optional*):
            As in [`evaluate_agent`].

    Raises:
        `ValueError`: If what is there was run with another agent, tasks, environments, `success` or `seed`.
    """
    rows = _checked(rows)
    check_whole("resamples", resamples, 1)
    tasks = tasks_checksum(rows)
    settings = {"tasks": tasks, **(settings or {})}
    if output_dir is not None:  # now, and not when everything has been played
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    pool = EnvironmentPool(environment_factory, agent.protocol, agent.faults)
    try:
        if output_dir is not None:
            wanted = {**_described(agent, played_with(pool, success)), "seed": seed, "tasks": tasks}
            finished = finished_evaluation(output_dir, name, label, wanted)
            if finished is not None:  # its intervals are those of this seed, by as many draws as are asked for now
                return Evaluation.from_tasks(
                    finished.tasks, finished.agent, finished.settings, seed, resamples, finished.environment
                )
        with tqdm(total=len(rows), desc=title or label, unit="task", disable=not progress) as bar:
            evaluation = _evaluate_tasks(
                agent, rows, pool, batch_size, bar.update, label, success, seed, resamples, settings
            )
    finally:
        pool.close()
    if output_dir is not None:
        evaluation.save(output_dir, name)
    return evaluation


def model_name(described: Mapping[str, Any]) -> str:
    """Name of the model in what [`Mem1Agent.describe`] returns: the last part of its path or id."""
    return Path(str(described["model"])).name


def tasks_checksum(rows: Any) -> str:
    """Tells tasks apart: a hash of all columns of a row, or of several."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=plain).encode()).hexdigest()[:16]


_SPOKEN = ("tokenizer", "request_kwargs")
"""What [`Mem1Agent.describe`] says about how the model is spoken to, which evaluations of earlier versions do not have."""


def _described(agent: Mem1Agent, played: Mapping[str, Any]) -> dict[str, Any]:
    """
    The agent and what it is played with. How the model is spoken to stands among the `contents`, since an evaluation in which some of these
    are missing is one of which they are not known, and not another one.
    """
    described = agent.describe()
    spoken = {f"agent.{name}": described.pop(name) for name in _SPOKEN if name in described}
    return {**described, **played, "contents": {**played["contents"], **spoken}}


def _checked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Refuse rows that can only be a mistake, before anything is played."""
    if isinstance(rows, Mapping):
        raise TypeError(
            f"The tasks must be rows, got a {type(rows).__name__} with {', '.join(map(str, rows))!s:.60}: pass one split of it."
        )
    checked = [dict(row) for row in rows]
    if not checked:
        raise ValueError("There is nothing to evaluate: the data set has no rows.")
    for index, row in enumerate(checked):
        if "prompt" not in row:
            raise ValueError(
                f"Row {index} has no 'prompt' (it has {', '.join(row)}): rename the column that holds the task."
            )
        try:
            check_task(row["prompt"])
        except ValueError as error:
            raise ValueError(f"Row {index} has prompt={row['prompt']!r:.60}. {error}") from None
        if row.get("answers") is not None and not are_answers(row["answers"]):
            raise ValueError(f"Row {index} has {form_of_answers(row['answers'])}.")
    never = [index for index, row in enumerate(checked) if row.get("answers") and _has_no_answer(row["answers"])]
    if never:
        logger.warning(
            "%d of %d tasks, the first of them row %d, have an objective without an accepted answer that has no semicolon, which separates "
            "answers: no answer to it is right.",
            len(never), len(checked), never[0],
        )  # fmt: skip
    return checked


def _has_no_answer(answers: Any) -> bool:
    """Whether an objective can only be answered with a text in which answers would be separated."""
    aliases = ([of_one] if isinstance(of_one, str) else of_one for of_one in answers)
    return any(all(ANSWER_SEPARATOR in alias for alias in of_one) for of_one in aliases)


@contextmanager
def seeded(agent: Mem1Agent, seed: int) -> Iterator[None]:
    """Seed sampling, and put the caller's random state back afterwards."""
    device = getattr(agent.model, "device", torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
