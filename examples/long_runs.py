"""What long experiments share: a time budget, a line of JSON for each step, supervised training that resumes, marks of what is done."""

import json
import os
import time
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)  # about names that transformers and TRL use themselves
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from mem1_trl.evaluation import ScalarControl, search_scalar_control
from mem1_trl.json_lines import drop_unfinished_line, read_json_lines
from mem1_trl.json_text import write_whole

UNFINISHED = 3
"""Exit status of a script whose time was up: started again, it goes on."""


class Deadline:
    """When to stop; `minutes=None` never stops."""

    def __init__(self, minutes=None):
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def leaves(self, seconds):
        """Whether so many seconds are left."""
        return time.monotonic() + seconds < self.end


def quiet(args):
    """Threads, seed and progress bars of a script."""
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    set_seed(args.seed)


def read_lines(path):
    """The lines of a file that is continued; one that was cut off is removed, and a missing file has none."""
    if not path.is_file():
        return []
    drop_unfinished_line(path)
    return [record for _, record in read_json_lines(path, "repair or remove it.")]


def steps_of(path):
    """The last record of each step of a training log, since a step after the last checkpoint is done again."""
    return {record["step"]: record for record in read_lines(path)}


def is_done(folder, steps=0):
    """Whether a run was finished, with so many steps at least."""
    path = folder / "done.json"
    return path.is_file() and json.loads(path.read_text()).get("steps", 0) >= steps


def write_json(path, record):
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=2) + "\n")


class Record(TrainerCallback):
    """
    Writes every logged step to `training.jsonl`, with the processor seconds it took, and stops the run in time.

    Args:
        folder: Folder of the run.
        deadline: Stops, and saves, before a step that would not fit.
        cpu_seconds: Ends the run once its steps have taken so much, resumed ones included.
        stop_at: Stops, and saves, after this step.
    """

    def __init__(self, folder, deadline, cpu_seconds=None, stop_at=None):
        self.path, self.deadline, self.budget = folder / "training.jsonl", deadline, cpu_seconds
        self.stop_at = stop_at
        self.steps = steps_of(self.path)
        self.longest = 0.0

    @property
    def spent(self):
        return sum(record["cpu_seconds"] for record in self.steps.values())

    @property
    def used_up(self):
        return self.budget is not None and self.spent >= self.budget

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = {step: record for step, record in self.steps.items() if step <= state.global_step}

    def on_step_begin(self, args, state, control, **kwargs):
        self.cpu, self.wall = time.process_time(), time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        seconds = time.monotonic() - self.wall
        self.longest = max(self.longest, seconds)
        self.cpu_seconds = time.process_time() - self.cpu
        self.steps[state.global_step] = {
            "step": state.global_step,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "wall_seconds": round(seconds, 3),
        }
        if self.used_up or state.global_step == self.stop_at or not self.deadline.leaves(1.3 * self.longest):
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and ("loss" in logs or "reward" in logs):
            record = self.steps[state.global_step] | {k: v for k, v in logs.items() if isinstance(v, (int, float))}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            shown = {
                k: record[k]
                for k in ("step", "cpu_seconds", "wall_seconds", "loss", "reward", "entropy")
                if k in record
            }
            print(json.dumps({k: round(v, 3) for k, v in shown.items()}), flush=True)


def finish(trainer, record, folder, settings, saved_as="adapter"):
    """Save the model or adapter and mark the run as done, or leave with `UNFINISHED`."""
    if trainer.state.global_step < trainer.args.max_steps and not record.used_up:
        print(f"{folder}: step {trainer.state.global_step} of {trainer.args.max_steps}, time is up", flush=True)
        raise SystemExit(UNFINISHED)
    trainer.save_model(str(folder / saved_as))
    write_json(folder / "done.json", {**settings, "steps": trainer.state.global_step, "cpu_seconds": record.spent})


def scalar_control(agent, rows, factory, tokens, path, deadline, **options):
    """The best constants and temperature of an agent, kept in a file; beside it a line for each setting, so that the search goes on."""
    if path.is_file():
        return ScalarControl.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.with_suffix(".jsonl")
    last = time.monotonic()

    def keep(tried):
        nonlocal last
        with lines.open("a") as file:
            file.write(json.dumps(tried) + "\n")
        print(json.dumps(tried), flush=True)
        seconds, last = time.monotonic() - last, time.monotonic()
        if not deadline.leaves(1.3 * seconds):
            raise SystemExit(UNFINISHED)

    control = search_scalar_control(agent, rows, factory, tokens, on_setting=keep, tried=read_lines(lines), **options)
    control.save(path)
    return control


def supervised(
    model, tokenizer, dataset, folder, steps, deadline, settings, cpu_seconds=None, schedule="linear", saved_as="adapter",
    save_steps=2, bf16=False,
):  # fmt: skip
    """Train a model or an adapter on demonstrations; continues from the last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder, deadline, cpu_seconds)
    config = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=schedule,
        warmup_steps=min(5, steps),
        max_length=None,
        gradient_checkpointing=False,
        bf16=bf16,
        tf32=torch.cuda.is_available() or None,
        use_cpu=not torch.cuda.is_available(),  # without it, bfloat16 is refused on a CPU
        logging_steps=1,
        save_steps=save_steps,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        seed=settings["seed"],
    )
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[record]
    )
    trainer.remove_callback(PrinterCallback)
    # The state is the last file of a checkpoint, so one without it was cut off
    whole = (folder / "checkpoints").glob("checkpoint-*/trainer_state.json")
    last = max((path.parent for path in whole), key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finish(trainer, record, folder, settings, saved_as)
