"""
Trains PPO in two processes, of which one has an episode whose numbers overflow; started by `tests/trainers/test_non_finite.py`.

    torchrun --nproc_per_node 2 tests/scripts/overflowing_rank.py OUTPUT
"""

import json
import logging
import os
import sys
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    trainer_arguments,
)

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer

torch.set_num_threads(1)
RANK = int(os.environ["RANK"])


class Overflowing(LookupEnvironment):
    """On rank 1 the judge of the second episode of the second batch is beside itself."""

    batch = 0
    made = 0

    def __init__(self):
        self.number = Overflowing.made
        Overflowing.made += 1

    def get_reward(self):
        return 3e38 if RANK == 1 and Overflowing.batch == 2 and self.number == 1 else super().get_reward()


class Messages(logging.Handler):
    """Keeps what is said about steps that are not taken."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        if "The step is not taken" in record.getMessage():
            self.texts.append(record.getMessage())


def total(module) -> float:
    return float(sum(p.detach().double().abs().sum() for p in module.parameters()))


def main() -> None:
    output = Path(sys.argv[1])
    messages = Messages()
    logging.getLogger("mem1_trl").addHandler(messages)
    settings = {"max_steps": 3, "max_turns": 4, "max_completion_length": 64, "max_observation_length": 64, "beta": 0.0}
    settings |= {"per_device_train_batch_size": 2, "whiten_advantages": False, "environment_concurrency": 1}
    trainer = Mem1PPOTrainer(
        model=tiny_model("llama"),
        args=Mem1PPOConfig(**trainer_arguments(output.parent / "run", lr_scheduler_type="constant", **settings)),
        train_dataset=lookup_dataset(12),
        processing_class=tiny_tokenizer(),
        environment_factory=Overflowing,
        protocol=SHORT,
    )
    weights, critic = [], []
    prepare = trainer.prepare_rows

    def prepare_rows(rows):
        Overflowing.batch += 1
        weights.append(total(trainer.model))
        critic.append(total(trainer.value_model))
        trainer.rollout.generate = ScriptedGenerator(trainer.tokenizer, planned(lambda i: (1 + i, (i + RANK) % 3)))
        return prepare(rows)

    trainer.prepare_rows = prepare_rows
    trainer.train()
    weights.append(total(trainer.model))
    critic.append(total(trainer.value_model))
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    record = {"weights": weights, "critic": critic, "losses": losses, "messages": messages.texts}
    output.with_suffix(f".{RANK}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
