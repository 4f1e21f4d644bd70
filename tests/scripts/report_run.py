"""Train two steps that are reported: `report_run.py MODEL TRACKER,... DIRECTORY`; the episodes go to DIRECTORY/played.jsonl, too."""

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
    model, trackers, directory = sys.argv[1:]
    settings = {
        "max_turns": 3, "max_observation_length": 40, "max_steps": 2, "num_generations": 2, "report_to": trackers.split(","),
        "log_completions": True, "num_completions_to_print": 2, "run_name": "lookups", "project": "mem1",
    }  # fmt: skip
    trainer = Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(Path(directory) / "run", **settings)),
        train_dataset=lookup_dataset(),
        processing_class=chat_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    rewarded = trainer.rewarded

    def keep(trajectories):
        with (Path(directory) / "played.jsonl").open("a") as file:
            for trajectory in trajectories:
                file.write(json.dumps({"step": trainer.state.global_step, **trajectory.to_dict()}) + "\n")
        rewarded(trajectories)

    trainer.rewarded = keep
    trainer.train()


if __name__ == "__main__":
    main()
