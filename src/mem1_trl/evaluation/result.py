"""
What an evaluation found, and the two files that hold it.

`<name>.json`, the summary:

| key | value |
|---|---|
| `format` | 1 |
| `name` | name of the files |
| `agent` | label of the agent, such as `"MEM1 PPO"` |
| `objectives` | objectives per task, `null` if tasks differ in it or have none |
| `settings` | how the agent was run |
| `count` | number of tasks |
| `metrics` | for each score `{"mean", "stderr", "low", "high", "count"}`, see [`mem1_trl.evaluation.intervals.Statistic`] |
| `stop_reasons` | share of tasks for each [`StopReason`], 1 in sum |
| `errors` | share of tasks in which the environment failed |
| `environment` | `error_rate`, the share of its calls that failed, and numbers of `timeouts`, `retries` and `restarts` |
| `retention` | `[{"age", "kept", "count"}]`, see [`mem1_trl.evaluation.retention.retention_curve`] |
| `memory_value` | `{"by_turn", "by_age"}`, what states are worth in nats, see [`mem1_trl.evaluation.memory.summarize_memory`]; empty if it was not measured |
| `failures` | number of objectives for each of `never_found`, `forgotten`, `misreported`, `correct` |

`<name>.jsonl`, one line for each task, in order:

| key | value |
|---|---|
| `index` | place of the task in the data set |
| `task` | its row, without columns of more than 10,000 characters |
| `prompt_text` | the task prompt as the agent read it |
| `trajectory` | [`Trajectory.to_dict`] |
| `scores` | the numbers whose means are the `metrics` |
| `objectives_detail` | for each objective `{"gold", "given", "correct", "first_seen_turn", "kept", "outcome"}`, see [`mem1_trl.evaluation.retention.ObjectiveTrace`]; empty without references, or if the environment failed |
| `memory_values` | for each turn what the state that it wrote is worth, see [`mem1_trl.update.state_value.StateValue`], or `null`; empty if it was not measured |
| `error` | what the environment raised, or `null` |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..json_lines import read_json_lines
from ..json_text import read_json, read_json_object, with_nan, write_json, write_whole
from ..rewards.answers import are_answers
from ..trajectory import StopReason, Trajectory
from ..typed_fields import check_fields
from ..update.state_value import StateValue
from .intervals import Statistic, summarize
from .memory import summarize_memory
from .retention import ObjectiveTrace, RetentionPoint, count_outcomes, retention_curve

FORMAT = 1
"""Version of the file format."""

_LONG_COLUMN = 10_000  # characters
_LETTERS = re.compile(r"[^\W_]+")
_NOT_OURS = "it is not a record that this version of mem1-trl wrote."
_SUMMARY = (
    "agent",
    "objectives",
    "settings",
    "statistics",
    "stop_reasons",
    "errors",
    "retention",
    "failures",
    "environment",
    "memory_value",
)

_LATER = ("environment", "memory_value")
"""Keys of the summary that older files do not have."""


@dataclass(frozen=True, slots=True)
class EvaluatedTask:
    """
    One task, how it was played, and what that was worth.

    Attributes:
        index (`int`):
            Place of the task in the data set.
        task (`dict[str, Any]`):
            Its row.
        prompt_text (`str`):
            The task prompt as the agent read it.
        trajectory ([`Trajectory`]):
            The episode.
        scores (`dict[str, float]`):
            Numbers about it, see [`mem1_trl.evaluation.evaluate_agent`].
        objectives_detail (`tuple[ObjectiveTrace, ...]`):
            What became of each objective.
        error (`str` or `None`):
            What the environment raised, if it failed.
        memory_values (`tuple[StateValue | None, ...]`):
            What the state of each turn is worth; empty if it was not measured, see [`mem1_trl.evaluation.measure_memory`].
    """

    index: int
    task: dict[str, Any]
    prompt_text: str
    trajectory: Trajectory
    scores: dict[str, float]
    objectives_detail: tuple[ObjectiveTrace, ...] = ()
    error: str | None = None
    memory_values: tuple[StateValue | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as plain lists, numbers and strings: one line of the `.jsonl` file."""
        return {
            "index": self.index,
            "task": plain_row(self.task),
            "prompt_text": self.prompt_text,
            "trajectory": self.trajectory.to_dict(),
            "scores": dict(self.scores),
            "objectives_detail": [dataclasses.asdict(trace) for trace in self.objectives_detail],
            "error": self.error,
            "memory_values": [None if one is None else dataclasses.asdict(one) for one in self.memory_values],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EvaluatedTask:
        """
        The inverse of [`~EvaluatedTask.to_dict`].

        Raises:
            `ValueError`: If the record is not one of a task; the message names the field.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"A task must be a JSON object, got {record!r:.60}: {_NOT_OURS}")
        trajectory = Trajectory.from_dict(record.get("trajectory", {}))
        values = {**record, "trajectory": trajectory, "objectives_detail": [], "memory_values": []}
        values["scores"] = with_nan(record.get("scores"))
        check_fields(values, cls, "The task", _NOT_OURS)
        traces = record.get("objectives_detail", [])
        worths = record.get("memory_values", [])
        return cls(
            **{
                **values,
                "objectives_detail": tuple(_read_record(ObjectiveTrace, trace) for trace in traces),
                "memory_values": tuple(None if one is None else _read_record(StateValue, one) for one in worths),
            }
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """
    What an evaluation found.

    Attributes:
        tasks (`list[EvaluatedTask]`):
            Every task, in the order of the rows.
        agent (`str`):
            Label of the agent.
        objectives (`int` or `None`):
            Objectives per task, `None` if tasks differ in it or have no references.
        settings (`dict[str, Any]`):
            How the agent was run.
        statistics (`dict[str, Statistic]`):
            Mean, standard error and interval of each score.
        stop_reasons (`dict[str, float]`):
            Share of the tasks that ended by each [`StopReason`].
        errors (`float`):
            Share of the tasks in which the environment failed.
        retention (`list[RetentionPoint]`):
            Share of the gold answers seen that were still in memory, by age.
        failures (`dict[str, int]`):
            Number of objectives with each outcome.
        environment (`dict[str, float]`):
            What went wrong in calls of the environment, see [`mem1_trl.faults.fault_metrics`].
        memory_value (`dict[str, list]`):
            What states are worth by turn and by age, see [`mem1_trl.evaluation.memory.summarize_memory`].

    Example:

    ```python
    >>> evaluation.metrics["exact_match"], evaluation.statistics["exact_match"].low  # doctest: +SKIP
    (1.32, 1.24)
    ```
    """

    tasks: list[EvaluatedTask]
    agent: str = "agent"
    objectives: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Statistic] = field(default_factory=dict)
    stop_reasons: dict[str, float] = field(default_factory=dict)
    errors: float = 0.0
    retention: list[RetentionPoint] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    environment: dict[str, float] = field(default_factory=dict)
    memory_value: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tasks(
        cls,
        tasks: Iterable[EvaluatedTask],
        agent: str = "agent",
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        resamples: int = 2000,
        environment: Mapping[str, float] | None = None,
    ) -> Evaluation:
        """
        Summarize evaluated tasks.

        Args:
            tasks (`Iterable[EvaluatedTask]`):
                At least one.
            agent (`str`, *optional*, defaults to `"agent"`):
                Label of the agent.
            settings (`Mapping`, *optional*):
                How it was run.
            seed, resamples (`int`, *optional*):
                Of the bootstrap, see [`mem1_trl.evaluation.intervals.summarize`].
            environment (`Mapping`, *optional*):
                What went wrong in calls of the environment.
        """
        tasks = list(tasks)
        if not tasks:
            raise ValueError("There is nothing to evaluate: the data set has no rows.")
        names = dict.fromkeys(name for task in tasks for name in task.scores)
        rows, asked = rows_of(tasks), questions_of(tasks)

        def statistic(name: str) -> Statistic:
            having = [number for number, task in enumerate(tasks) if name in task.scores]
            return summarize(
                [tasks[number].scores[name] for number in having],
                seed,
                resamples,
                tasks=[rows[number] for number in having],
                questions=[asked[number] for number in having],
            )

        reasons = [task.trajectory.stop_reason for task in tasks]
        answers: list[Any] = [task.task.get("answers") for task in tasks]
        sizes = {len(of_task) if are_answers(of_task) else None for of_task in answers}
        traces = [trace for task in tasks for trace in task.objectives_detail]
        return cls(
            tasks=tasks,
            agent=agent,
            objectives=sizes.pop() if len(sizes) == 1 else None,
            settings=dict(settings or {}),
            statistics={name: statistic(name) for name in names},
            stop_reasons={str(reason): reasons.count(reason) / len(reasons) for reason in StopReason},
            errors=sum(task.error is not None for task in tasks) / len(tasks),
            retention=retention_curve(traces),
            failures=count_outcomes(traces),
            environment=dict(environment or {}),
            memory_value=summarize_memory(tasks),
        )

    @property
    def trajectories(self) -> list[Trajectory]:
        """Every episode, in the order of the rows."""
        return [task.trajectory for task in self.tasks]

    @property
    def metrics(self) -> dict[str, float]:
        """Means of all scores, and the shares of the stop reasons as `stop_reason/<name>`."""
        means = {name: statistic.mean for name, statistic in self.statistics.items()}
        return means | {f"stop_reason/{name}": share for name, share in self.stop_reasons.items()}

    def to_dict(self, name: str) -> dict[str, Any]:
        """The summary, as the `.json` file holds it."""
        return {
            "format": FORMAT,
            "name": name,
            "agent": self.agent,
            "objectives": self.objectives,
            "settings": self.settings,
            "count": len(self.tasks),
            "metrics": {key: dataclasses.asdict(statistic) for key, statistic in self.statistics.items()},
            "stop_reasons": self.stop_reasons,
            "errors": self.errors,
            "retention": [dataclasses.asdict(point) for point in self.retention],
            "failures": self.failures,
            "environment": self.environment,
            "memory_value": self.memory_value,
        }

    def save(self, directory: str | os.PathLike[str], name: str) -> Path:
        """
        Write `<directory>/<name>.json` and `<directory>/<name>.jsonl`, as the top of this module describes them.

        The summary is put in place last and at once, so that where it stands the evaluation is complete.

        Args:
            directory (`str` or `os.PathLike`):
                Made if it does not exist.
            name (`str`):
                Name of the files, without a suffix.

        Returns:
            `Path`: of the summary.
        """
        summary, lines = _paths(directory, name)
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.unlink(missing_ok=True)  # it describes other lines from now on
        write_whole(lines, (write_json(task.to_dict()) + "\n" for task in self.tasks))
        write_whole(summary, [write_json(self.to_dict(name), indent=2) + "\n"])
        return summary

    @classmethod
    def load(cls, directory: str | os.PathLike[str], name: str) -> Evaluation:
        """
        Read what [`~Evaluation.save`] wrote.

        Args:
            directory (`str` or `os.PathLike`):
                Where the files are.
            name (`str`):
                Their name, without a suffix.

        Raises:
            `FileNotFoundError`: if one of the files is missing.
            `ValueError`: if they are of another format, or do not belong together.
        """
        summary, lines = _paths(directory, name)
        for path in (summary, lines):
            if not path.is_file():
                raise FileNotFoundError(f"There is no {path}: an evaluation is a .json and a .jsonl file of one name.")
        advice = "was the evaluation cut off? Evaluate again."
        record = read_json_object(summary, advice)
        if record.get("format") != FORMAT:
            raise ValueError(
                f"{summary} has format {record.get('format')!r}, but this version of mem1-trl reads {FORMAT}: evaluate again."
            )
        tasks = [task for _, task in read_json_lines(lines, advice, read=EvaluatedTask.from_dict)]
        if len(tasks) != record.get("count"):
            raise ValueError(
                f"{lines} has {len(tasks)} lines, but {summary.name} counts {record.get('count')} tasks: evaluate again."
            )
        values = {"statistics" if key == "metrics" else key: value for key, value in record.items()}
        values = {name: values[name] for name in _SUMMARY if name in values}
        missing = [name for name in _SUMMARY if name not in values and name not in _LATER]
        try:
            if missing:
                raise ValueError(f"The summary has no {missing[0]!r}: {_NOT_OURS}")
            points = values["retention"]
            check_fields({**values, "tasks": [], "retention": [], "statistics": {}}, cls, "The summary", _NOT_OURS)
            values["statistics"] = {key: _read_record(Statistic, one) for key, one in values["statistics"].items()}
            values["retention"] = [_read_record(RetentionPoint, one) for one in points]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{summary} cannot be read. {error}") from None
        return cls(tasks=tasks, **values)


def _read_record(kind: Any, record: Any) -> Any:
    """A record of numbers and texts, whose lists become tuples."""
    if not isinstance(record, Mapping):
        raise ValueError(f"A {kind.__name__} must be a JSON object, got {record!r:.60}: {_NOT_OURS}")
    check_fields(record, kind, f"A {kind.__name__}", _NOT_OURS)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})


def slug(label: str) -> str:
    """A label as part of a file name: its letters, of any script, and digits."""
    return "-".join(_LETTERS.findall(label.lower())) or "agent"


def without_slashes(name: str) -> str:
    """A name that may hold the one of a data set, such as `eval_hotpot/dev-2`, as that of a file."""
    return name.replace("/", "-")


def _paths(directory: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} cannot name a file: use a word such as 'mem1-ppo-2', without slashes.")
    return Path(directory) / f"{name}.json", Path(directory) / f"{name}.jsonl"


def rows_of(tasks: Iterable[EvaluatedTask]) -> list[str]:
    """The row of each task as text, by which one that was played several times is known."""
    return [json.dumps(plain_row(task.task), sort_keys=True) for task in tasks]


def questions_of(tasks: Iterable[EvaluatedTask]) -> list[list[str]]:
    """What each task asks, in the column of [`mem1_trl.tasks.compose_objectives`]; nothing without it."""
    asked = [task.task.get("questions") for task in tasks]
    return [[str(one) for one in texts] if isinstance(texts, (list, tuple)) else [] for texts in asked]


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A row as it is saved: as JSON can hold it. A column too long to be looked at is told by its checksum, so that rows which differ in it
    stay apart.
    """
    plain = {}
    for key, value in row.items():
        text = write_json(value)
        if len(text) <= _LONG_COLUMN or key in ("prompt", "answers", "questions"):
            plain[key] = read_json(text)
        else:
            plain[key] = f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return plain
