"""The episodes of a trainer's own evaluations: counted once each, and written to files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import TrainerCallback

from ..evaluation.episode_scores import evaluate_episode
from ..evaluation.result import Evaluation, without_slashes
from ..hub.logged_evaluations import LOADED_STEP, loaded_step
from .checkpoints import CHECKPOINT

if TYPE_CHECKING:
    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer


class _LogLoadedStep(TrainerCallback):
    """Logs whose weights the model has after training, if they are not those of the last step: what is evaluated later is of them."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = CHECKPOINT.fullmatch(Path(state.best_model_checkpoint or "").name)
        if args.load_best_model_at_end and best:
            state.log_history.append({"epoch": state.epoch, "step": state.global_step, LOADED_STEP: int(best[1])})


def check_groups(trainer: Mem1Trainer) -> None:
    """
    Refuse batches of an evaluation that would part the samples of a row. TRL does it if `eval_strategy` is set, and an evaluation may be asked for without.

    Raises:
        `ValueError`: In the words of TRL.
    """
    rows, processes = trainer.args.per_device_eval_batch_size, trainer.args.world_size
    samples = trainer.num_generations_eval or 1
    if rows * processes % samples:
        raise ValueError(
            f"The global eval batch size ({rows} * {processes}) must be divisible by the number of generations used for evaluation ({samples})."
        )


class EvaluationRecorder:
    """
    Keeps the episodes of the evaluation that runs.

    Args:
        trainer ([`Mem1Trainer`]):
            Whose evaluations are recorded.
    """

    def __init__(self, trainer: Mem1Trainer):
        self.trainer = trainer
        trainer.add_callback(_LogLoadedStep())
        self._batches: list[list[tuple[dict[str, Any], Trajectory]]] = []
        self._rows: int | None = None  # episodes that the evaluated data set asks for, if it has a length
        self._left: int | None = None
        self.counted: int | None = None
        """Of the last batch of all processes, how many episodes are counted."""

    def begin(self) -> None:
        """Forget the last evaluation, and what one that did not end has logged."""
        self._batches, self.counted = [], None
        self.trainer.take_metrics("eval")

    def expect(self, dataset: Any, samples: int) -> None:
        """Know how many episodes the data set asks for."""
        self._rows = len(dataset) * samples if isinstance(dataset, Dataset) else None
        self._left = self._rows

    def add(self, rows: list[dict[str, Any]], trajectories: list[Trajectory]) -> None:
        """Keep the episodes of a batch of this process."""
        self._batches.append(list(zip(rows, trajectories, strict=True)))

    def without_repeats(self, records: list[Any]) -> list[Any]:
        """
        The episodes of an evaluation batch of all processes, without those that were played to fill the last batch.

        Accelerate gives every process equally many rows and begins the data set again for that.
        """
        kept = records if self._left is None else records[: self._left]
        if self._left is not None:
            self._left -= len(kept)
        self.counted = len(kept)
        return kept

    def save(self, name: str) -> None:
        """Write the episodes of all processes as [`Evaluation.save`] does."""
        trainer = self.trainer
        local = [
            [
                evaluate_episode(
                    trajectory,
                    row,
                    trainer.tokenizer,
                    trainer.protocol,
                    trainer.settings.rule.memory,
                    answered=trainer.scores_answer(row),
                )
                for row, trajectory in batch
            ]
            for batch in self._batches
        ]
        self._batches = []
        # Batches go round the processes, so the order of the data set is batch by batch, process by process
        numbered = [(number, task) for number, batch in enumerate(local) for task in batch]
        gathered = sorted(trainer.gather_records(numbered), key=lambda item: item[0])
        tasks = [task for _, task in gathered][: self._rows]
        if not tasks or not trainer.is_world_process_zero():  # of several data sets, each was saved on its own
            return
        name = without_slashes(name)
        step, label = trainer.state.global_step, f"step {trainer.state.global_step}"
        loaded = loaded_step(trainer.state.log_history)
        if loaded is not None:  # the evaluation of the last step stays, since it is of other weights
            name = f"{name.removesuffix(f'-{step}')}-best-{loaded}"
            step, label = loaded, f"best checkpoint, step {loaded}"
        settings = {
            "model": trainer.model.config._name_or_path,
            "step": step,
            **trainer.settings.to_dict(),
            "protocol": trainer.protocol.to_dict(),
            "memory": trainer.settings.rule.memory,
            "seed": trainer.args.seed,
        }
        tasks = [dataclasses.replace(task, index=index) for index, task in enumerate(tasks)]
        evaluation = Evaluation.from_tasks(tasks, label, settings, seed=trainer.args.seed)
        evaluation.save(f"{trainer.args.output_dir}/evaluation", name)
