"""A curriculum that is driven by success: its next stage begins when a metric of the last batches reaches a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset

from ..curriculum import MAX_TURNS, STAGE, turn_limit
from ..json_text import read_json_object, write_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..configs import Mem1GRPOConfig
    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer

FILE = "mem1_curriculum.json"
"""What a checkpoint holds of it."""

_ROUNDING = 1e-6
"""Means of the same numbers in another order differ by less."""

_ADVICE = "resume from a checkpoint of a run with `curriculum_threshold`, or leave it out."


class StagesBySuccess:
    """
    Chooses the tasks of each batch from the present stage of a data set, in the order of its rows and then again from its first.

    With `curriculum_steps=2` and a threshold of 0.5, batches of successes 0.2, 0.6, 0.4, 0.6 end the stage with the fourth: the mean of the last
    two is 0.5 for the first time. The fifth batch is the first of the next stage, and is not compared with those before it. The last stage has no end.

    Tasks are chosen when a batch is played, and not when the data set is read, which happens a batch ahead. The sampler only says how many there are.

    Args:
        trainer ([`Mem1Trainer`]):
            Its metrics and data set are read; its `args` have the threshold.
    """

    def __init__(self, trainer: Mem1Trainer):
        self.trainer = trainer
        self.dataset = cast("Dataset", trainer.train_dataset)
        stages = list(map(int, self.dataset[STAGE]))  # a tensor is equal to itself alone
        self.begins = [stages.index(stage) for stage in dict.fromkeys(stages)] + [len(stages)]
        self._logged = 0
        self.begin()

    def begin(self) -> None:
        """Begin with the first stage."""
        self.stage = 0
        self.taken = 0
        """Tasks of the present stage that have been played."""
        self.last: list[float] = []
        """The metric of batches of the present stage, the last `curriculum_steps` of them."""

    def tasks(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Rows to play in place of those that the sampler chose; all processes do it together.

        Args:
            rows (`list[dict]`):
                Those of this process. Each task stands there as often as its group has episodes, and groups may go on in the next process.
        """
        trainer = self.trainer
        size = trainer.num_generations or 1
        first = trainer.accelerator.process_index * len(rows)
        begin, end = self.begins[self.stage], self.begins[self.stage + 1]
        places = [self.taken + (first + index) // size for index in range(len(rows))]
        self.taken += trainer.accelerator.num_processes * len(rows) // size
        self._logged = len(trainer.logged(trainer.args.curriculum_metric))
        return [self.dataset[begin + place % (end - begin)] for place in places]

    def note(self, trajectories: Sequence[Trajectory]) -> None:
        """
        Read the metric of the batch that was just played, and go on to the next stage if it is time; all processes do it together.

        Args:
            trajectories (`Sequence[Trajectory]`):
                The episodes of this process. A batch of which the environment failed everywhere is passed over.

        Raises:
            `ValueError`: If the batch has no such metric.
        """
        metric, args = self.trainer.args.curriculum_metric, self.trainer.args
        new = self.trainer.logged(metric)[self._logged :]
        if not new and all(self.trainer.gather_records([one.error is not None for one in trajectories])):
            new = [float("nan")]
        if not new:
            known = self.trainer.logged_names
            raise ValueError(
                f"curriculum_metric must be a metric of each batch, one of {', '.join(map(repr, known))}, got {metric!r} ('episode/success' "
                "needs a column `answers`)."
            )
        self.trainer.log_metric("curriculum/stage", self.stage)
        if new[-1] != new[-1]:  # no episode was sound
            return
        self.last = [*self.last, new[-1]][-args.curriculum_steps :]
        full = len(self.last) == args.curriculum_steps
        threshold = cast("float", args.curriculum_threshold)  # else there were no stages
        reached = full and sum(self.last) / len(self.last) >= threshold - _ROUNDING
        if reached and self.stage + 2 < len(self.begins):
            self.stage, self.taken, self.last = self.stage + 1, 0, []

    def save(self, directory: str) -> None:
        """Write the progress into a checkpoint."""
        metric = self.trainer.args.curriculum_metric
        record = {"stage": self.stage, "taken": self.taken, "metric": metric, "last": self.last}
        write_whole(Path(directory) / FILE, write_json(record) + "\n")

    def load(self, directory: str) -> None:
        """
        Go on where a checkpoint was.

        Raises:
            `ValueError`: If it is not one of such a run, or of one with fewer stages.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ValueError(f"{directory} has no {FILE}, so its run knew no curriculum_threshold: {_ADVICE}")
        record = read_json_object(path, _ADVICE)
        if not record["stage"] + 1 < len(self.begins):
            raise ValueError(
                f"{path} is of stage {record['stage']}, counted from 0, and the training data set has only {len(self.begins) - 1}: {_ADVICE}"
            )
        metric = self.trainer.args.curriculum_metric
        same = record.get("metric", metric) == metric  # numbers of another one are not those of this
        self.stage, self.taken, self.last = record["stage"], record["taken"], record["last"] if same else []


def check_stages(dataset: Any, args: Mem1GRPOConfig) -> None:
    """
    Refuse a curriculum that would not be played as it is written.

    Raises:
        `ValueError`: If the training data set says of which stage its rows are and would be shuffled; if there is a threshold and no stages, or a
            stream of them, or they are mixed; if success is to be reached and nothing says what is right; if a task may take more turns than an episode has.
    """
    columns = getattr(dataset, "column_names", None) or ()
    given = f"curriculum_threshold={args.curriculum_threshold}"
    if STAGE in columns and args.shuffle_dataset:
        raise ValueError(
            f"The training data set has a column {STAGE!r} of a curriculum, whose order a shuffle would undo: set "
            "shuffle_dataset=False, or remove the column."
        )
    if args.curriculum_threshold is not None:
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"{given} chooses tasks of a stage, so the training data set must not be a stream: load it."
            )
        if STAGE not in columns:
            raise ValueError(
                f"{given} needs a training data set with a column {STAGE!r}, as compose_curriculum makes it, got "
                f"{', '.join(map(repr, columns))}."
            )
        stages = list(map(int, dataset[STAGE]))
        if stages != sorted(stages):
            raise ValueError(f"The stages of the training data set must follow each other: sort it by {STAGE!r}.")
        success = type(args).__dataclass_fields__["curriculum_metric"].default
        if args.curriculum_metric == success and "answers" not in columns:
            raise ValueError(
                f"{given} goes by curriculum_metric={success!r}, which compares answers with the column 'answers', got {', '.join(map(repr, columns))}: "
                "add it, or name another metric, such as 'reward'."
            )
    if isinstance(dataset, Dataset) and MAX_TURNS in columns:
        most = max((turns for limit in dataset[MAX_TURNS] if (turns := turn_limit(limit)) is not None), default=0)
        if most > args.max_turns:
            raise ValueError(
                f"The column {MAX_TURNS!r} allows up to {most} turns, and max_turns={args.max_turns} is the most of any episode: raise it."
            )
