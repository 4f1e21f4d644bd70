"""
One run of several processes, launched by torchrun, that may die by SIGKILL: `killed_processes.py MODEL DIRECTORY NAME PLACE RANK`.

PLACE is `-` or one of `killed_run.PLACES`, where the process RANK dies; the launcher then ends the others. A run named "second" goes on
from the last complete checkpoint. Each process keeps a diary, `NAME-RANK.jsonl`.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from killed_run import arm, build, digest, keep_diary

from mem1_trl.trainers.checkpoints import last_complete_checkpoint


def main() -> None:
    model, directory, name, place, who = sys.argv[1:]
    rank = int(os.environ["RANK"])
    directory = Path(directory)
    trainer = build("ppo", model, directory)
    diary = keep_diary(trainer, directory / f"{name}-{rank}.jsonl")
    if place != "-" and rank == int(who):
        arm(trainer, place)
    checkpoint = last_complete_checkpoint(directory) if name == "second" else None
    trainer.train(resume_from_checkpoint=True if checkpoint else None)
    diary.write(
        processes=trainer.accelerator.num_processes,
        weights=digest(trainer),
        resumed_from=checkpoint and Path(checkpoint).name,
        # What the next random numbers would be, of every generator that a checkpoint keeps for each process
        random=[random.random(), float(np.random.rand()), float(torch.rand(1))],
    )


if __name__ == "__main__":
    main()
