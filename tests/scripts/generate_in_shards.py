"""
Samples turns from a model in shards, of which the second process wants more and longer ones than the first.

`generate_in_shards.py MODEL DIRECTORY`, in two processes, writes what each has sampled into DIRECTORY.
"""

import os
import sys
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support.fsdp_on_cpu import shard_on_cpu
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer, lookup_dataset, trainer_arguments

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer

torch.set_num_threads(1)


def main() -> None:
    model, directory = sys.argv[1:]
    shard_on_cpu()
    settings = {"max_turns": 2, "max_observation_length": 40, "max_steps": 1, "per_device_train_batch_size": 2}
    trainer = Mem1PPOTrainer(
        model=model,
        args=Mem1PPOConfig(**trainer_arguments(directory, use_cpu=False, learning_rate=0.0, beta=0.0, **settings)),
        train_dataset=lookup_dataset(4),
        processing_class=chat_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    trainer.train()  # which splits the model
    rank = trainer.accelerator.process_index
    texts, stops = [(["q1?"], [["</think>"]]), (["q2?", "ababq0?"], [["</answer>"], ["</answer>"]])][rank]
    prompts = [trainer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    completions = trainer.generate_turn(prompts, stops)
    found = [(prompt, list(done.ids), list(done.logprobs)) for prompt, done in zip(prompts, completions, strict=True)]
    torch.save(found, Path(directory) / f"{rank}.pt")


if __name__ == "__main__":
    main()
