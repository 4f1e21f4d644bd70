"""
PPO on questions over the bundled facts, with every option of [`Mem1PPOConfig`] and TRL's [`~trl.ModelConfig`] on the command line.

`python examples/multi_node/train.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --output_dir runs/facts`, by `accelerate launch`
or by `launch.sh` beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer, compose_objectives
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.facts import load_facts


@dataclass
class TaskArguments:
    """Arguments of the task."""

    objectives: int = field(default=2, metadata={"help": "Questions of one task."})
    passages: int = field(default=3, metadata={"help": "Passages that a search finds."})


def main() -> None:
    task, training, model = TrlParser((TaskArguments, Mem1PPOConfig, ModelConfig)).parse_args_and_config()
    facts = load_facts()
    trainer = Mem1PPOTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=compose_objectives(facts.questions("train"), n=task.objectives, seed=0),
        environment_factory=RetrievalQAEnvironment.factory(facts.corpus, top_k=task.passages),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
