"""Whether one agent does better than another: the paired difference of a score, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..typed_fields import check_seed, check_whole
from .dependence import by_task, reuse_factor
from .intervals import bootstrap_interval, bootstrap_means, widened
from .result import Evaluation, plain_row, questions_of, rows_of

FEWEST = 6
"""Pairs that differ without which nothing is clear: of five that all go one way even a sign test has p = 2 * 0.5**5 = .06."""

_NO_COMMON_METRIC = "Both agents need a score in common"


class NoCommonScore(ValueError):
    """Raised if two agents have no score in common that they could be compared by."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    By how much one agent scores higher than another on the same tasks.

    Attributes:
        metric (`str`):
            The score.
        a, b (`float`):
            Mean score of each, every seed weighing the same.
        difference (`float`):
            `a - b`.
        low, high (`float`):
            Bounds of the bootstrap interval of the difference.
        by_seed (`tuple[float, ...]`):
            The difference of each pair of evaluations.
        better, worse (`int`):
            Pairs in which `a` scored higher, and lower.
        count (`int`):
            Number of pairs, one for each task of a seed.
        differing (`int`):
            Number of tasks on which the two differ. One that all seeds have played is one task.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    better: int
    worse: int
    count: int
    differing: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0, and on at least six tasks the two differ: the bootstrap of fewer is narrower than it should be."""
        return (self.low > 0.0 or self.high < 0.0) and self.differing >= FEWEST

    def __str__(self) -> str:
        seeds = f" in {len(self.by_seed)} seeds" if len(self.by_seed) > 1 else ""
        return (
            f"{self.metric}: {self.a:.3f} - {self.b:.3f} = {self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], "
            f"{self.better} better and {self.worse} worse of {self.count} pairs{seeds}"
        )


def compare(
    a: Evaluation | Sequence[Evaluation],
    b: Evaluation | Sequence[Evaluation],
    metric: str | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Comparison:
    """
    Compare two agents on the tasks that both have played.

    Tasks are compared pairwise, which takes out how hard they are. The interval is a percentile bootstrap (Efron and Tibshirani, 1993,
    chapter 13) of the mean difference. With several seeds, seeds are resampled, then the tasks of each (or, if all seeds were
    evaluated on the same tasks, the tasks once for all), so that the interval speaks of further seeds, too. With
    two or three seeds it is narrower than it should be: look at `by_seed` as well. A task that was played several times is one pair, and the
    interval is widened where tasks have questions in common, see [`mem1_trl.evaluation.intervals.summarize`].

    Args:
        a, b ([`Evaluation`] or `Sequence[Evaluation]`):
            An evaluation, or one for each seed, in the same order.
        metric (`str`, *optional*):
            Score to compare. `None` takes the first that both have of `exact_match_per_objective`, `success` and `reward`.
        seed (`int`, *optional*, defaults to `0`):
            Of the bootstrap.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap means.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the means that lie inside the interval.

    Returns:
        [`Comparison`]

    Raises:
        `ValueError`: If the two were not evaluated on the same tasks, or have no such score.

    Example:

    ```python
    >>> print(compare(trained, before))  # doctest: +SKIP
    exact_match_per_objective: 0.688 - 0.583 = +0.104 [-0.021, +0.229], 6 better and 1 worse of 24 pairs
    ```
    """
    check_whole("resamples", resamples, 1)
    check_seed(seed)
    first, second = _listed(a), _listed(b)
    if len(first) != len(second) or not first:
        raise ValueError(
            f"Two agents are compared seed by seed, so both need as many evaluations, got {len(first)} and {len(second)}."
        )
    metric = metric or _common_metric([*first, *second])
    pairs = [_paired(one, other, metric) for one, other in zip(first, second)]
    differences = [one.differences for one in pairs]
    # By their rows: of an episode that could not start the prompt is not known
    same_tasks = len({one.rows for one in pairs}) == 1
    if not same_tasks or len(pairs) == 1:
        pairs = [one.scored for one in pairs]
    means = _bootstrap_means(pairs, same_tasks, seed, resamples)
    by_seed = tuple(one.difference for one in pairs)
    low, high = widened(
        float(np.mean(by_seed)),
        *bootstrap_interval(means, confidence),
        _reuse_factor(pairs, same_tasks),
        np.concatenate(differences),
    )
    return Comparison(
        metric=metric,
        a=float(np.mean([one.a for one in pairs])),
        b=float(np.mean([one.b for one in pairs])),
        difference=float(np.mean(by_seed)),
        low=low,
        high=high,
        by_seed=by_seed,
        better=sum(int((one > 0).sum()) for one in differences),
        worse=sum(int((one < 0).sum()) for one in differences),
        count=sum(one.size for one in differences),
        differing=int(
            np.count_nonzero(
                np.any([one.sums != 0 for one in pairs], axis=0) if same_tasks else np.concatenate(differences)
            )
        ),
    )


def _listed(evaluations: Evaluation | Sequence[Evaluation]) -> list[Evaluation]:
    listed = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    other = next((one for one in listed if not isinstance(one, Evaluation)), None)
    if other is not None:
        known = f", such as `results[{other!r}]`" if isinstance(evaluations, Mapping) else ""
        raise TypeError(
            f"Agents are compared by an Evaluation, or one for each seed, got {other!r:.60}: pass one{known}."
        )
    return listed


def _common_metric(evaluations: Sequence[Evaluation]) -> str:
    candidates = ("exact_match_per_objective", "success", "reward")
    for name in candidates:
        if all(name in evaluation.statistics for evaluation in evaluations):
            return name
    raise NoCommonScore(
        f"{_NO_COMMON_METRIC}: name it with `metric=`, since none of {', '.join(candidates)} is in all."
    )


@dataclass(frozen=True)
class _Pairs:
    """
    Two agents on the same tasks: the row of each episode, their mean scores over episodes, and of each task the summed difference of its
    episodes and their number, both of shape `(tasks,)` and 0 if no episode has the score, and what it asks.
    """

    rows: tuple[str, ...]
    a: float
    b: float
    sums: np.ndarray
    counts: np.ndarray
    questions: list[list[str]]

    @property
    def difference(self) -> float:
        """`a - b`: each episode weighs the same, as in the mean scores."""
        return float(self.sums.sum() / self.counts.sum())

    def mean_of(self, tasks: np.ndarray) -> float:
        """The difference over some tasks; that over all if none of them has the score."""
        count = self.counts[tasks].sum()
        return float(self.sums[tasks].sum() / count) if count else self.difference

    @property
    def differences(self) -> np.ndarray:
        """Of each task that has the score."""
        return self.scored.sums / self.scored.counts

    @property
    def scored(self) -> _Pairs:
        """The same without tasks of which no episode has the score."""
        kept = np.flatnonzero(self.counts)
        questions = [self.questions[task] for task in kept]
        return replace(self, sums=self.sums[kept], counts=self.counts[kept], questions=questions)

    @property
    def residuals(self) -> np.ndarray:
        """What each task adds to the deviation from the mean difference."""
        return (self.sums - self.counts * self.difference) / self.counts.mean()


def _paired(one: Evaluation, other: Evaluation, metric: str) -> _Pairs:
    for left, right in zip(one.tasks, other.tasks):
        if left.index != right.index or plain_row(left.task) != plain_row(right.task):
            raise ValueError(
                f"Both agents must have played the same tasks in the same order, but task {left.index} of {one.agent!r} and task "
                f"{right.index} of {other.agent!r} differ."
            )
    if len(one.tasks) != len(other.tasks):
        raise ValueError(
            f"Both agents must have played the same tasks, but {one.agent!r} has {len(one.tasks)} and {other.agent!r} "
            f"{len(other.tasks)}."
        )
    rows = tuple(rows_of(one.tasks))
    has_both = np.array(
        [metric in left.scores and metric in right.scores for left, right in zip(one.tasks, other.tasks)]
    )
    if not has_both.any():
        known = sorted(set(one.statistics) & set(other.statistics))
        raise NoCommonScore(f"{_NO_COMMON_METRIC}: no task of both has {metric!r}; they share {', '.join(known)}.")
    scores = np.array(
        [[task.scores.get(metric, 0.0) for task in tasks] for tasks in (one.tasks, other.tasks)], dtype=np.float64
    )
    sums, _, at = by_task(np.where(has_both, scores[0] - scores[1], 0.0), rows)
    counts, *_ = by_task(has_both, rows)
    a, b = scores[:, has_both].mean(1)
    return _Pairs(rows, float(a), float(b), sums, counts, questions_of(one.tasks[index] for index in at))


def _reuse_factor(pairs: list[_Pairs], same_tasks: bool) -> float:
    """Of the differences of all seeds; those of the same task in several seeds are one."""
    if same_tasks:
        return reuse_factor(np.mean([one.residuals for one in pairs], axis=0), pairs[0].questions)
    residuals = np.concatenate([one.residuals for one in pairs])
    return reuse_factor(residuals, [asked for one in pairs for asked in one.questions])


def _bootstrap_means(pairs: list[_Pairs], same_tasks: bool, seed: int, resamples: int) -> np.ndarray:
    """Means of resampled differences, shape `(resamples,)`."""
    if len(pairs) == 1:  # both drawn alike
        sums, counts = (bootstrap_means(values, seed, resamples) for values in (pairs[0].sums, pairs[0].counts))
        return sums / counts
    generator = np.random.default_rng(seed)

    def draw(which: int) -> np.ndarray:
        return generator.integers(0, pairs[which].sums.size, size=pairs[which].sums.size)

    means = np.empty(resamples)
    for at in range(resamples):
        chosen = generator.integers(0, len(pairs), size=len(pairs))
        shared = draw(0) if same_tasks else None
        drawn = [(pairs[which], draw(which) if shared is None else shared) for which in chosen]
        means[at] = np.mean([one.mean_of(tasks) for one, tasks in drawn])
    return means
