"""
Trains in several processes while the environments of one of them fail; started by `tests/trainers/test_fault_processes.py`.

    torchrun --nproc_per_node 2 tests/scripts/failing_rank.py OUTPUT
"""

import json
import os
import sys
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator, lookup_dataset, planned

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

torch.set_num_threads(1)
RANK = int(os.environ["RANK"])


class Failing(LookupEnvironment):
    """On rank 1 the first batch cannot be started, and in the second every judge is down; the third is sound."""

    batch = 0

    def reset(self, **row):
        if RANK == 1 and Failing.batch == 1:
            raise RuntimeError("no such task")
        return super().reset(**row)

    def get_reward(self):
        if RANK == 1 and Failing.batch == 2:
            return "ten"
        return super().get_reward()


def main() -> None:
    output = Path(sys.argv[1])
    trainer = Mem1GRPOTrainer(
        model=tiny_model("llama"),
        args=Mem1GRPOConfig(
            output_dir=str(output.parent / "run"),
            num_generations=4,  # a group of two processes
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=3,
            max_turns=4,
            max_completion_length=64,
            max_observation_length=64,
            environment_retries=0,
            on_environment_error="drop_group",
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=lookup_dataset(6),
        processing_class=tiny_tokenizer(),
        environment_factory=Failing,
        protocol=SHORT,
    )
    prepare = trainer.prepare_rows

    def prepare_rows(rows):
        Failing.batch += 1
        trainer.rollout.generate = ScriptedGenerator(trainer.tokenizer, planned(lambda i: (1 + i % 3, (i + RANK) % 3)))
        return prepare(rows)

    trainer.prepare_rows = prepare_rows
    trainer.train()
    weights = float(sum(p.detach().double().abs().sum() for p in trainer.model.parameters()))
    record = {"processes": trainer.accelerator.num_processes, "weights": weights, "log": trainer.state.log_history}
    output.with_suffix(f".{RANK}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
