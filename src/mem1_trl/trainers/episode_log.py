"""What a trainer logs about its episodes: metrics, failures of environments, and the episodes themselves."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from transformers.integrations import TensorBoardCallback

from ..environment_runtime.faults import fault_metrics
from ..trajectory import StopReason
from .run_stopped import RunStopped
from .tracking import evenly_spaced, log_trajectories, print_trajectories

if TYPE_CHECKING:
    from ..trajectory import Trajectory
    from .evaluating import EvaluationRecorder
    from .mem1 import Mem1Trainer

logger = get_logger(__name__)

_UNREWARDED_BATCHES = 3
"""Batches in a row without a reward above 0 after which a line says how the episodes ended."""

_SHOWN = 200  # characters of a turn in a line of the log

_LOST_BATCHES = 3
"""Batches in a row without a single sound episode after which a run ends: it learns nothing and only spends its steps."""


class EpisodeLog:
    """
    Logs the episodes of a trainer.

    Args:
        trainer ([`Mem1Trainer`]):
            Whose metrics they go to.
        evaluations ([`EvaluationRecorder`]):
            Knows which episodes of an evaluation are counted.
    """

    def __init__(self, trainer: Mem1Trainer, evaluations: EvaluationRecorder):
        self.trainer = trainer
        self.evaluations = evaluations
        self._ever_started = False
        self._lost_batches = 0
        self._unrewarded: list[str] = []
        self._unrewarded_batches = 0
        self._mixed_groups = False  # said
        self._to_show: dict[str, deque[Trajectory]] = {
            mode: deque(maxlen=trainer.args.generation_batch_size) for mode in ("train", "eval")
        }

    def add(self, trajectories: list[Trajectory]) -> None:
        """
        Log the metrics of a batch of this process, which all processes do together.

        Raises:
            [`RunStopped`]: If the environment has never started an episode, or no episode of three batches in a row was sound.
        """
        trainer = self.trainer
        records = trainer.gather_records(
            [(t.metrics, str(t.stop_reason), t.error, bool(t.turns)) for t in trajectories]
        )
        if trainer.mode == "eval":
            # One by one, so that the mean is that of all episodes however the last batch comes out
            records = self.evaluations.without_repeats(records)
            groups = [[record] for record in records]
        else:
            groups = [records]
        for group in groups:
            for key in dict.fromkeys(key for metrics, *_ in group for key in metrics):
                values = [metrics[key] for metrics, *_ in group if key in metrics]
                trainer.log_metric(f"episode/{key}", sum(values) / len(values))
            for reason in StopReason:
                share = sum(stop == reason for _, stop, *_ in group) / len(group)
                trainer.log_metric(f"episode/stop_reason/{reason}", share)
        if trainer.pool is not None:
            counts = trainer.gather_records([trainer.pool.caller.counts.reset()])
            for name, value in fault_metrics(counts).items():
                trainer.log_metric(f"environment/{name}", value)
            later = trainer.pool.caller.failures.later()
            if later:
                logger.warning(
                    f"Calls that failed after the first failure that was logged: {later}.", main_process_only=False
                )
            self._check_faults([(error, played) for *_, error, played in records])

    def _check_faults(self, records: list[tuple[str | None, bool]]) -> None:
        """Say what failed, and end a training run that has nothing to learn from. All processes see the same records."""
        errors = [error for error, _ in records if error is not None]
        self._ever_started = self._ever_started or any(played for _, played in records)
        if errors:
            counted = (
                "count as reward 0 in this evaluation"
                if self.trainer.mode == "eval"
                else "count as unscored and are left out of the update"
            )
            logger.warning(
                f"The environment failed in {len(errors)} of {len(records)} episodes, which {counted}. The first: {errors[0]}"
            )
        if self.trainer.mode == "eval":
            return
        self._lost_batches = self._lost_batches + 1 if len(errors) == len(records) else 0
        if not self._ever_started:
            raise RunStopped(
                f"The environment started none of the {len(records)} episodes of the first batch: correct it, or what it "
                f"connects to. The first error: {errors[0]}"
            )
        if self._lost_batches >= _LOST_BATCHES:
            raise RunStopped(
                f"The environment failed in every episode of {_LOST_BATCHES} batches in a row, so nothing is learned: see to "
                f"it, then resume from the last checkpoint. `environment_retries` bridges short outages. The first error: "
                f"{errors[0]}"
            )

    def watch_rewards(self, trajectories: list[Trajectory]) -> None:
        """Say once, after three training batches in a row in which no episode of any process was rewarded, how they ended."""
        if self.trainer.mode == "eval" or not self.trainer.args.task_reward_weight:
            return
        ends = self.trainer.gather_records([(t.reward, str(t.stop_reason)) for t in trajectories])
        if any(reward is not None and reward > 0 for reward, _ in ends):
            self._unrewarded, self._unrewarded_batches = [], 0
            return
        self._unrewarded += [reason for _, reason in ends]
        self._unrewarded_batches += 1
        if self._unrewarded_batches == _UNREWARDED_BATCHES:
            counts = ", ".join(f"{reason} {count}" for reason, count in Counter(self._unrewarded).most_common())
            last = next((t.turns[-1].text[:_SHOWN] for t in trajectories if t.turns), "")
            logger.warning(
                f"No episode of the last {_UNREWARDED_BATCHES} batches got a reward above 0. They ended with: {counts}. The last "
                f"turn of one of them: {last!r}"
            )
        if self._unrewarded_batches >= _UNREWARDED_BATCHES:
            self._unrewarded = []  # said, and not needed again

    def watch_groups(self, trajectories: list[Trajectory]) -> None:
        """
        Say once that the episodes of a group do not begin with the same context, if they are compared: then they have different tasks.

        Such are those of an environment that draws its task in `reset`, since no row says which.
        """
        trainer, size = self.trainer, self.trainer.num_generations or 1
        if trainer.mode == "eval" or not trainer.rewards_by_turns or size == 1 or self._mixed_groups:
            return
        begun = trainer.gather_records([hash(tuple(t.turns[0].prompt_ids)) if t.turns else None for t in trajectories])
        groups = [set(begun[start : start + size]) - {None} for start in range(0, len(begun), size)]
        mixed = sum(len(group) > 1 for group in groups)
        if mixed:
            self._mixed_groups = True
            logger.warning(
                f"The episodes of {mixed} of {len(groups)} groups begin with different contexts, though GRPO compares their rewards as those of "
                "one task: the best of them is then that with the easiest task. Give each row of the data set what `reset` chooses the task by, such as a "
                "seed, or train with Mem1PPOTrainer, whose critic knows the task."
            )

    def keep(self, trajectories: list[Trajectory]) -> None:
        """Keep rewarded episodes to be shown, if `log_completions` asks for it."""
        if not self.trainer.log_completions:
            return
        everywhere = self.trainer.gather_records(trajectories)
        if self.trainer.accelerator.is_main_process:
            self._to_show[self.trainer.mode].extend(everywhere)

    def forget_evaluation(self) -> None:
        """Do not show the episodes of an evaluation that did not come to its end."""
        self._to_show["eval"].clear()

    def show(self) -> None:
        """Print the episodes kept since the last call turn by turn, and hand them to the trackers that can hold them."""
        trainer: Any = self.trainer
        kept = self._to_show[trainer.mode]
        if not kept:
            return
        prefix = "" if trainer.mode == "train" else "eval_"
        trajectories = list(kept)
        kept.clear()
        sample, step = evenly_spaced(trajectories, trainer.num_completions_to_print), trainer.state.global_step
        print_trajectories(sample, f"{prefix.replace('_', ' ')}step {step}", trainer.tokenizer)
        boards = [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
        log_trajectories(
            trajectories,
            step,
            list(trainer.args.report_to or []),
            trainer.tokenizer,
            name=f"{prefix}trajectories",
            sample=sample,
            writer=boards[0].tb_writer if boards else None,
        )
