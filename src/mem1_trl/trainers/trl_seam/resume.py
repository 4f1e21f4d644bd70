"""
Runs that resume from a checkpoint as if they had never stopped.

Wraps `_save_checkpoint`, `_push_from_checkpoint`, `_load_from_checkpoint` and `_load_best_model`, to which it adds what TRL and `Trainer` do not save,
`_get_train_sampler`, to know the sampler whose order of the data has to be repeated, `_run_epoch`, since a finished run has none left, and
`_issue_warnings_after_load`, which takes tied weights for missing. When a run resumes it sets attributes of
TRL (`_step`, `_buffered_inputs`, `_metrics`, `_pending_metrics`, `_pending_extra_logs`, `entropy_coef`, `_last_world_entropy`) and of `Trainer` (`_tr_loss`,
`_globalstep_last_logged`).
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from ...saved_files import adapter_folder
from ...update.sharded_tensors import fill, is_source, is_split_by_zero, whole_on_cpu
from ..checkpoints import (
    CHECKPOINT,
    RunState,
    checkpoint_to_resume,
    has_random_states,
    mark_complete,
    mark_incomplete,
    replay_shuffles,
)
from .contract import check_values
from .evaluations import OrderedEvaluations
from .helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = get_logger(__name__)

REFERENCE_FILE = "mem1_reference.pt"
_OF_BATCHES = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations", "num_generations", "beta",
    "advantage_level", "state_loss_weight", "distillation_weight", "distillation_in_reward", "max_tokens_per_micro_batch", "layout", "use_vllm",
    "vllm_importance_sampling_correction",
)  # fmt: skip

_OTHER_PLACE = "Steps have another number of tasks, by which the place in the data set is counted: some tasks of this pass are left out or played twice."


def _tasks_of_step(settings: Mapping[str, Any]) -> float:
    """How many tasks one optimizer step takes off the data set in one process."""
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    return float(rows / ((settings["num_generations"] or 1) * settings["num_iterations"]))


class _Restore(TrainerCallback):
    """Restores the part of a resumed run that `Trainer` does not know of."""

    def __init__(self, trainer: ExactResume):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_run()


class ExactResume(OrderedEvaluations):
    """Saves and restores everything that the next step depends on."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._resumed_from: str | None = None
        self._train_sampler: Any = None
        self.began_at = 0  # optimizer steps that were made before this run, or this part of it
        super().__init__(*args, **kwargs)
        self.add_callback(_Restore(self))

    @contextmanager
    def saving_one_adapter(self, output_dir: str | None) -> Iterator[None]:
        """Leave the frozen adapter that TRL keeps as a reference out of what is saved; only a checkpoint needs it."""
        adapters = getattr(self.model, "peft_config", {})
        if "ref" not in adapters or CHECKPOINT.fullmatch(Path(output_dir or "").name):
            yield
            return
        kept = [name for name in adapters if name != "ref"]
        with instance_attribute(
            self.model, "save_pretrained", partial(self.model.save_pretrained, selected_adapters=kept)
        ):
            yield

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train, from the beginning or from a checkpoint.

        A resumed run goes on as if it had never stopped: with the same optimizer, schedules, random states and order of the
        data in all epochs, and in the middle of a generation batch if that is where it was. One that is finished makes no further step.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint of this run, or `True` for the latest one that was written to its end.
            args, kwargs (*optional*):
                As in [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: If there is no such checkpoint, the run ended while it was written, or it is of a run with another algorithm.
        """
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir, self.algorithm)
        if self._resumed_from is not None:
            self.refuse_checkpoint(self._resumed_from)
            moves = self.args.sync_ref_model and self.ref_model is not None
            if moves and not Path(self._resumed_from, REFERENCE_FILE).is_file():
                raise ValueError(
                    f"{self._resumed_from} has no {REFERENCE_FILE}, so the reference of its run did not follow the policy: resume with "
                    "sync_ref_model=False, or start a new run from its weights (`model=`)."
                )
        elif self._step % self._steps_of_a_batch:
            self._step, self._buffered_inputs = 0, None  # what an interrupted run has left of a batch
        for left in (self._metrics["train"], self._pending_metrics, self._pending_extra_logs):  # and of what is logged
            left.clear()
        return super().train(self._resumed_from, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_weights()
        directory = f"{self._get_output_dir(trial=trial)}/checkpoint-{self.state.global_step}"
        if self.args.should_save:
            mark_incomplete(directory)
        self.accelerator.wait_for_everyone()
        self._run_state().save(directory, self.accelerator.process_index)
        reference = self._whole_reference()
        self.save_extra(directory)
        save_state = self.state.save_to_json

        def finish(path: str) -> None:
            """The trainer's state is written last, before old checkpoints are deleted and this one is pushed."""
            save_state(path)
            if reference is not None:
                torch.save(reference, f"{directory}/{REFERENCE_FILE}")
            self.accelerator.wait_for_everyone()
            mark_complete(directory, self.state.global_step)

        with instance_attribute(self.state, "save_to_json", finish):
            super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            self.accelerator.wait_for_everyone()

    def _moving_reference(self) -> dict[str, torch.Tensor] | None:
        """The weights of a reference that follows the policy, in shards where it is; `None` if there is none."""
        if not self.args.sync_ref_model or self.ref_model is None:
            return None
        return self.accelerator.unwrap_model(self.ref_model).state_dict(keep_vars=True)

    def _whole_reference(self) -> dict[str, torch.Tensor] | None:
        """The same, whole, in a process that saves it. Called in all processes."""
        weights = self._moving_reference()
        return None if weights is None else whole_on_cpu(weights, self.args.should_save) or None

    def _restore_reference(self, directory: str) -> None:
        weights = self._moving_reference()
        if weights is None:
            return
        if any(map(is_split_by_zero, weights.values())):
            logger.warning(
                "With DeepSpeed ZeRO-3 the reference of sync_ref_model begins anew from the model that the run began with: what it had "
                "become is saved, but cannot be cut into its shards."
            )
            return
        file = f"{directory}/{REFERENCE_FILE}"
        fill(weights, torch.load(file, map_location="cpu", weights_only=True) if is_source(weights.values()) else None)

    @property
    def _steps_of_a_batch(self) -> int:
        """Micro-batches that are trained before another generation batch is made."""
        return (self.args.steps_per_generation or 1) * self.num_iterations

    def _run_state(self) -> RunState:
        return RunState(
            micro_step=self._step,
            buffer=self._buffered_inputs if self._step % self._steps_of_a_batch else None,
            metrics={name: list(values) for name, values in self._metrics["train"].items()},
            loss=float(self._tr_loss),
            last_logged=self._globalstep_last_logged,
            entropy=[float(self.entropy_coef), float(self._last_world_entropy)],
            processes=self.accelerator.num_processes,
            batches=self._settings_of_batches(),
        )

    def _settings_of_batches(self) -> dict[str, Any]:
        """Settings that say how many micro-batches a generation batch has, and what each holds."""
        return {name: getattr(self.args, name, None) for name in _OF_BATCHES}

    def restore_run(self) -> None:
        """Go on where the checkpoint was; called when `Trainer` has restored its own part and is about to begin."""
        self.began_at = self.state.global_step
        if self._resumed_from is None:
            return
        if not has_random_states(self._resumed_from):
            logger.warning(
                f"{self._resumed_from} was saved with save_only_model=True, without optimizer, learning-rate schedule and random numbers: these "
                "start from scratch, and only the weights are continued."
            )
        if self.is_deepspeed_enabled:  # which does not load its checkpoint by the method that is wrapped here
            self.load_extra(self._resumed_from)
        replay_shuffles(self._train_sampler, int(self.state.epoch or 0))
        self._restore_reference(self._resumed_from)
        here = self.accelerator
        state = RunState.load(self._resumed_from, here.process_index, here.num_processes, here.device)
        if state is None:
            logger.warning(
                f"The checkpoint is of a run with another number of processes than {here.num_processes}, so this one goes on with "
                "other random numbers, and plays a new batch if one was not trained to its end."
            )
            return
        now = self._settings_of_batches()
        changed = [name for name, value in state.batches.items() if value != now[name]]
        if changed:
            before, after = (
                ", ".join(f"{name}={values[name]!r}" for name in changed) for values in (state.batches, now)
            )
            place = "" if _tasks_of_step(state.batches) == _tasks_of_step(now) else f" {_OTHER_PLACE}"
            logger.warning(
                f"The checkpoint is of a run with {before}, and this one has {after}: it plays a new batch if one was not trained to its end.{place}"
            )
        else:
            self._step = state.micro_step
            self._buffered_inputs = state.buffer  # type: ignore[assignment]
        self._metrics["train"].update(state.metrics)
        self._tr_loss += state.loss
        self._globalstep_last_logged = state.last_logged
        if self.use_adaptive_entropy:
            self.entropy_coef, self._last_world_entropy = state.entropy

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """`Trainer` asks whether it is done after each step; a finished run that is resumed has none left, and would overwrite its model."""
        if self._resumed_from is not None and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._train_sampler = check_values("_get_train_sampler", super()._get_train_sampler(*args, **kwargs))
        return self._train_sampler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_extra(resume_from_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`Trainer` uploads the files that it knows, out of `args.output_dir`."""
        if self.is_world_process_zero():
            self.save_description(str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_best_model(self) -> None:
        best, model = str(self.state.best_model_checkpoint), cast("Any", self.model)
        name = model.active_adapters[0] if hasattr(model, "peft_config") else "default"
        # `Trainer` does not look for an adapter in the folder of its name
        with instance_attribute(self.state, "best_model_checkpoint", str(adapter_folder(best, name))):
            super()._load_best_model()
        self.load_best(best)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """`Trainer` saves weights that are tied under one of their names, and would call the others missing."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        missing = set(load_result.missing_keys)
        loaded = {id(weight) for name, weight in weights.items() if name not in missing}
        kept = [name for name in load_result.missing_keys if id(weights.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=kept))
