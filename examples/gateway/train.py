"""
Train a program that owns its loop: it speaks OpenAI's API and knows nothing of the trainer.

    pip install "mem1-trl[serve]" openai
    python examples/gateway/train.py --program loop      # appends to its chat
    python examples/gateway/train.py --program compact   # keeps a summary in place of its history

A random model of a few thousand parameters learns to write one letter more often, in a minute or two on a CPU: it shows that what the
program asked is what is trained, not what a language model can do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from example_options import count
from openai import OpenAI
from tiny_trainer import first_and_last, tiny_llama, tiny_tokenizer, tiny_trainer
from transformers import set_seed

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def loop(row: dict[str, Any], base_url: str) -> float:
    """A loop that appends: three questions, the whole chat each time."""
    client, messages, said = OpenAI(base_url=base_url, api_key="none"), [], ""
    for number in range(3):
        messages.append({"role": "user", "content": f"{row['prompt']} {number}"})
        answer = client.chat.completions.create(model="policy", messages=messages, max_tokens=8)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        said += answer.choices[0].message.content
    return said.count("e") / max(len(said), 1)


def compact(row: dict[str, Any], base_url: str) -> float:
    """A program that keeps the end of what was said in place of the chat."""
    client, kept, said = OpenAI(base_url=base_url, api_key="none"), "", ""
    for number in range(3):
        messages = [{"role": "user", "content": f"{row['prompt']} {number}, so far: {kept}"}]
        answer = client.chat.completions.create(model="policy", messages=messages, max_tokens=8)
        kept = answer.choices[0].message.content[-12:]
        said += answer.choices[0].message.content
    return said.count("e") / max(len(said), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=["loop", "compact"], default="loop")
    parser.add_argument("--steps", type=count, default=60)
    parser.add_argument("--output_dir", default="runs/gateway")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = tiny_tokenizer(TEMPLATE)
    trainer = tiny_trainer(
        tiny_llama(tokenizer, hidden_size=32, num_key_value_heads=2),
        tokenizer,
        {"loop": loop, "compact": compact}[options.program],
        ["Say something"] * 8,
        timeout=120.0,
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        max_completion_length=8,
        learning_rate=5e-3,
    )
    trainer.train()
    print(json.dumps({"program": options.program, **first_and_last(trainer)}))


if __name__ == "__main__":
    main()
