"""Tasks in an order: of more and more objectives, and turns, as a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from numpy.random import SeedSequence

from .typed_fields import check_seed

if TYPE_CHECKING:
    from datasets import Dataset

STAGE = "curriculum_stage"
"""Column that says which stage of a curriculum a task is of, from 0; trainers refuse to shuffle a data set that has it."""

MAX_TURNS = "curriculum_max_turns"
"""Column with the most turns that a task may take, where that is fewer than `max_turns`; empty where it is not."""


def turn_limit(value: Any) -> int | None:
    """
    The entry of a row in the column `curriculum_max_turns`; a column that has been through pandas holds 2.0 in place of 2.

    Raises:
        `ValueError`: If it is neither empty nor a whole number of at least 1.
    """
    if value is None or value != value:  # NaN
        return None
    number = float(value) if hasattr(type(value), "__float__") else 0.0
    if number < 1 or not number.is_integer():
        raise ValueError(f"The column {MAX_TURNS!r} must hold whole numbers of at least 1, or nothing, got {value!r}.")
    return int(number)


def compose_curriculum(
    dataset: Dataset,
    stages: Sequence[tuple[int, Mapping[int, float]] | tuple[int, Mapping[int, float], int]],
    question: str = "question",
    answer: str = "answer",
    seed: int = 0,
) -> Dataset:
    """
    Tasks of several stages, one stage after the other: each has so many tasks, of numbers of objectives in given shares.

    With `stages=[(2, {1: 1.0}), (4, {1: 0.25, 2: 0.75})]` there are two tasks of one objective, and then, in any order, one of one
    objective and three of two. `(2, {1: 1.0}, 3)` is a stage whose tasks may take three turns, whatever `max_turns` is.

    Train on it with `shuffle_dataset=False`, so that tasks come in this order, each once in an epoch; or with `curriculum_threshold`, and a stage
    begins when the agent succeeds often enough in the one before. Either way a run that is resumed goes on with the same tasks.

    Args:
        dataset (`datasets.Dataset`):
            One question per row, as for [`compose_objectives`].
        stages (`Sequence[tuple]`):
            For each stage, the number of its tasks and the share of each number of objectives. Shares are rounded to whole
            tasks; those that lose most by it get one more. A third entry is the most turns of an episode, `max_turns` at most.
        question, answer (`str`, *optional*):
            Columns, as in [`compose_objectives`].
        seed (`int`, *optional*, defaults to `0`):
            Of the choice of questions and of the order within a stage.

    Returns:
        `datasets.Dataset`: The columns of [`compose_objectives`] and `curriculum_stage`; if a stage limits turns, `curriculum_max_turns`.

    Raises:
        `ValueError`: If there is no stage, or one is none, has no task or no turn, or its shares are not positive or do not add up to 1.
    """
    from datasets import Value, concatenate_datasets

    from .tasks import sample_objectives

    if not stages:
        raise ValueError("stages must have at least one stage, got none.")
    for stage, given in enumerate(stages):
        _check_stage(stage, given)
    check_seed(seed)
    parts = []
    limits = [stage[2] if len(stage) > 2 else None for stage in stages]
    for stage, (count, shares, *_) in enumerate(stages):
        if count < 1:
            raise ValueError(f"Each stage must have at least one task, got {count} in stage {stage}.")
        if not shares or not all(map(_is_share, shares.values())) or abs(sum(shares.values()) - 1.0) > 1e-6:
            raise ValueError(f"The shares of stage {stage} must be above 0 and add up to 1, got {dict(shares)}.")
        limit = limits[stage]
        if limit is not None and limit < 1:
            raise ValueError(f"A task must be allowed at least one turn, got {limit} in stage {stage}.")
        drawn = [
            sample_objectives(dataset, n, tasks, question, answer, _seed(seed, stage, n))
            for n, tasks in _whole(count, shares).items()
            if tasks
        ]
        tasks = concatenate_datasets(drawn).shuffle(seed=_seed(seed, stage))
        tasks = tasks.add_column(STAGE, [stage] * len(tasks))
        if any(limits):
            tasks = tasks.add_column(MAX_TURNS, [limit] * len(tasks)).cast_column(MAX_TURNS, Value("int64"))
        parts.append(tasks)
    return concatenate_datasets(parts)


def _seed(*numbers: int) -> int:
    """
    A seed of its own for a part of a curriculum: with one that is shared, the questions of the tasks of one objective are those that tasks of two
    begin with, and the second stage of one run is the first of the next.
    """
    return int(SeedSequence(numbers).generate_state(1)[0])


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and 0.0 < float(value) <= 1.0


def _check_stage(stage: int, given: Any) -> None:
    """Refuse what is no `(tasks, shares)` or `(tasks, shares, most turns)`."""
    entries = tuple(given) if isinstance(given, (tuple, list)) and len(given) in (2, 3) else (None, None)
    counts = [
        entries[0],
        *(entries[1] if isinstance(entries[1], Mapping) else [None]),
        *(one for one in entries[2:] if one is not None),
    ]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in counts):
        raise ValueError(
            f"Stage {stage} must be (tasks, {{objectives: share, ...}}) or have the most turns of an episode as its third entry, all but the shares whole "
            f"numbers, got {given!r:.200}."
        )


def _whole(count: int, shares: Mapping[int, float]) -> dict[int, int]:
    """Shares of `count` as whole numbers that add up to it: rounded down, and one more for those with the largest remainders."""
    exact = {n: count * share for n, share in shares.items()}
    whole = {n: int(number + 1e-9) for n, number in exact.items()}
    behind = sorted(exact, key=lambda n: (whole[n] - exact[n], n))
    for n in behind[: count - sum(whole.values())]:
        whole[n] += 1
    return whole
