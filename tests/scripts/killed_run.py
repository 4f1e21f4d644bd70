"""
Train, die by SIGKILL at a chosen place, resume, and report what happened at every step.

`killed_run.py MODEL KIND OUTPUT` plays all runs of one kind, each in a process of its own that is forked from this one:
first one that is never interrupted, then for each place one that is killed there and one that goes on. OUTPUT (JSON) holds,
for each run, its exit status and one record per step.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("CI", "1")

import torch
from peft import LoraConfig
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer, lookup_dataset, trainer_arguments
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.trainers.checkpoints import last_complete_checkpoint

torch.set_num_threads(1)
STEPS = 5
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")

PLACES = {
    "in_a_rollout": "before the second turn of the rollout of step 3",
    "in_the_first_rollout": "before there is any checkpoint",
    "in_the_optimizer_file": "half of optimizer.pt of checkpoint-2 is on the disk",
    "before_the_mark": "all of checkpoint-3 is on the disk but the mark that it is complete",
    "between_steps": "after step 4 is logged and saved",
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Diary(TrainerCallback):
    """One line per log entry and per generation batch, on the disk before the next begins."""

    def __init__(self, path: Path):
        self.file = path.open("a")

    def write(self, **record):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def on_log(self, args, state, control, logs=None, **kwargs):
        exact = {name: value for name, value in logs.items() if name not in TIMES}
        if exact.keys() - {"epoch", "total_flos"}:
            self.write(step=state.global_step, log={name: repr(value) for name, value in sorted(exact.items())})


def build(kind: str, model: str, directory: Path):
    settings = {
        "max_turns": 3, "max_observation_length": 40, "max_steps": STEPS, "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": 1, "per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2,
    }  # fmt: skip
    extra = {}
    if kind == "grpo":
        trainer_class, config = Mem1GRPOTrainer, Mem1GRPOConfig
        settings.update(
            num_generations=2, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.5
        )
    else:
        trainer_class, config = Mem1PPOTrainer, Mem1PPOConfig
        settings.update(value_learning_rate=1e-2)
    if kind == "ppo":
        # Two passes over each generation batch and a log entry every two steps: checkpoints fall in the middle of both
        settings.update(num_iterations=2, logging_steps=2, critic_warmup_steps=1)
    if kind == "adapter":
        extra["peft_config"] = LoraConfig(
            r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
    if kind == "shared":
        extra["value_model"] = "shared"
    return trainer_class(
        model=model,
        args=config(**trainer_arguments(directory, **settings)),
        # Two generation batches an epoch, so that the runs see the order of later epochs
        train_dataset=lookup_dataset(4 if kind == "grpo" else 8),
        processing_class=chat_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        **extra,
    )


def arm(trainer, place: str) -> None:
    """Make the process die at a place."""
    if place in ("in_a_rollout", "in_the_first_rollout"):
        wanted, generate, calls = (2 if place == "in_a_rollout" else 0), trainer.rollout.generate, []

        def generate_and_die(prompts, stops, **draws):
            calls.append(trainer.state.global_step)
            if trainer.state.global_step >= wanted and calls.count(calls[-1]) == 2:
                die()
            return generate(prompts, stops, **draws)

        trainer.rollout.generate = generate_and_die
    if place == "in_the_optimizer_file":
        save = torch.save

        def half_a_save(obj, file, *args, **kwargs):
            save(obj, file, *args, **kwargs)
            if str(file).endswith("checkpoint-2/optimizer.pt"):
                os.truncate(file, Path(file).stat().st_size // 2)
                die()

        torch.save = half_a_save
    if place == "before_the_mark":
        from mem1_trl.trainers.trl_seam import resume as exact_resume

        mark = exact_resume.mark_complete
        exact_resume.mark_complete = lambda path, step: die() if step == 3 else mark(path, step)
    if place == "between_steps":

        class Die(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    die()

        trainer.add_callback(Die())


def keep_diary(trainer, path: Path) -> Diary:
    """A diary of what the trainer logs and plays."""
    diary = Diary(path)
    trainer.add_callback(diary)
    play = trainer.run_episodes

    def run_episodes(rows):
        trajectories = play(rows)
        tokens = [[turn.completion_ids for turn in t.turns] for t in trajectories]
        diary.write(
            rollout=trainer.state.global_step,
            tokens=tokens,
            prompts=[list(t.turns[0].prompt_ids) if t.turns else [] for t in trajectories],
        )
        return trajectories

    trainer.run_episodes = run_episodes
    return diary


def digest(trainer) -> str:
    """A checksum of the weights of policy and critic."""
    weights = hashlib.sha256()
    for module in (trainer.model, getattr(trainer, "value_model", None)):
        for _, parameter in sorted(module.named_parameters()) if module is not None else []:
            weights.update(parameter.detach().numpy().tobytes())
    return weights.hexdigest()


def run(kind: str, model: str, directory: Path, name: str, place: str | None, resume: bool) -> None:
    trainer = build(kind, model, directory)
    diary = keep_diary(trainer, directory / f"{name}.jsonl")
    if place is not None:
        arm(trainer, place)
    checkpoint = last_complete_checkpoint(directory) if resume else None
    trainer.train(resume_from_checkpoint=True if checkpoint else None)
    left = sorted(path.name for path in directory.glob("checkpoint-*"))
    diary.write(weights=digest(trainer), resumed_from=checkpoint and Path(checkpoint).name, checkpoints=left)


def forked(*arguments) -> int:
    """Exit status of a run in a process of its own; minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    model, kind, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    places = sys.argv[4:] or list(PLACES)
    report = {}
    for place in [None, *places]:
        directory = output.parent / f"{kind}-{place or 'whole'}"
        directory.mkdir()
        statuses = [forked(kind, model, directory, "first", place, False)]
        if place is not None:
            statuses.append(forked(kind, model, directory, "second", None, True))
        names = ["first", "second"][: len(statuses)]
        records = [
            [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()] for name in names
        ]
        report[place or "whole"] = {"statuses": statuses, "records": records}
    output.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
