"""Evaluate a number of rows that does not divide: `evaluate_rows.py MODEL DIRECTORY`, for any number of processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("CI", "1")

import torch
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

torch.set_num_threads(1)


def main() -> None:
    model, directory = sys.argv[1:]
    settings = {
        "max_turns": 3, "max_observation_length": 40, "num_generations": 2, "per_device_eval_batch_size": 2,
        "num_generations_eval": 1, "save_eval_trajectories": True,
    }  # fmt: skip
    rows = lookup_dataset(7)
    trainer = Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(directory, **settings)),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=chat_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        record = {"processes": trainer.accelerator.num_processes, "metrics": metrics}
        (Path(directory) / "metrics.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
