"""
One run of several processes, launched by torchrun, that may die by SIGKILL: `killed_processes.py MODEL DIRECTORY NAME PLACE RANK`.

PLACE is `-` or one of `killed_run.PLACES`, where the process RANK dies; the launcher then ends the others. A run named "second" goes on
from the last complete checkpoint. Each process keeps a diary, `NAME-RANK.jsonl`.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from killed_run import Diary, arm, build

from mem1_trl.checkpoints import last_complete_checkpoint


def main() -> None:
    model, directory, name, place, who = sys.argv[1:]
    rank = int(os.environ["RANK"])
    directory = Path(directory)
    trainer = build("ppo", model, directory)
    diary = Diary(directory / f"{name}-{rank}.jsonl")
    trainer.add_callback(diary)
    play = trainer.run_episodes

    def run_episodes(rows, prompt_ids):
        trajectories = play(rows, prompt_ids)
        tokens = [[turn.completion_ids for turn in t.turns] for t in trajectories]
        diary.write(rollout=trainer.state.global_step, tokens=tokens, prompts=[list(ids) for ids in prompt_ids])
        return trajectories

    trainer.run_episodes = run_episodes
    if place != "-" and rank == int(who):
        arm(trainer, place)
    checkpoint = last_complete_checkpoint(directory) if name == "second" else None
    trainer.train(resume_from_checkpoint=True if checkpoint else None)
    weights = hashlib.sha256()
    for module in (trainer.model, trainer.value_model):
        for _, parameter in sorted(module.named_parameters()):
            weights.update(parameter.detach().numpy().tobytes())
    diary.write(
        processes=trainer.accelerator.num_processes,
        weights=weights.hexdigest(),
        resumed_from=checkpoint and Path(checkpoint).name,
        # What the next random numbers would be, of every generator that a checkpoint keeps for each process
        random=[random.random(), float(np.random.rand()), float(torch.rand(1))],
    )


if __name__ == "__main__":
    main()
