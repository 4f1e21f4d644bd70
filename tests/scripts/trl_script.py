"""A script as a user of TRL writes it: `python trl_script.py MODEL OUTPUT`."""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


class Counter:
    """Count up to a number."""

    def reset(self, target: int, **kwargs) -> str | None:
        self.count = 0
        self.target = target
        return f" The number is {target}."

    def increment(self, step: int = 1) -> str:
        """
        Count on.

        Args:
            step: How far to count.

        Returns:
            The number reached.
        """
        self.count += step
        return str(self.count)


def reached(environments, **kwargs) -> list[float]:
    return [float(environment.count == environment.target) for environment in environments]


dataset = Dataset.from_dict(
    {
        "prompt": [[{"role": "system", "content": "You count."}, {"role": "user", "content": "Count to the number."}]]
        * 4,
        "target": [1, 2, 3, 4],
    }
)
trainer = GRPOTrainer(
    model=sys.argv[1],
    reward_funcs=reached,
    args=GRPOConfig(
        output_dir=sys.argv[2],
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=16,
        max_tool_calling_iterations=3,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
    ),
    train_dataset=dataset,
    environment_factory=Counter,
)
trainer.train()
