"""Train one step, push to the Hub that HF_ENDPOINT names: `push_to_hub.py MODEL KIND REPOSITORY OUTPUT ["as it goes"]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("CI", "1")

from datasets import Dataset
from peft import LoraConfig
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer


def main() -> None:
    model, kind, repository, output = sys.argv[1:5]
    settings = {
        "max_turns": 3, "max_observation_length": 40, "max_steps": 2, "push_to_hub": True, "hub_model_id": repository,
        "hub_token": "hf_test", "per_device_eval_batch_size": 4, "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    dataset = lookup_dataset()
    tokenizer = chat_tokenizer()
    if kind == "ppo":
        trainer_class, args = Mem1PPOTrainer, Mem1PPOConfig(**trainer_arguments(output, **settings))
    else:
        # A conversation whose template takes an argument of the run's own
        tokenizer.chat_template = "{{ style }}" + tokenizer.chat_template
        rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in dataset]
        dataset = Dataset.from_list(rows)
        settings.update(num_generations=2, chat_template_kwargs={"style": "terse!"})
        trainer_class, args = Mem1GRPOTrainer, Mem1GRPOConfig(**trainer_arguments(output, **settings))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if kind == "adapter" else None,
    )
    trainer.train()
    if sys.argv[5:] == ["as it goes"]:
        trainer.push_in_progress.wait_until_done()
        return
    trainer.evaluate()
    trainer.push_to_hub(dataset_name="me/lookups")


if __name__ == "__main__":
    main()
