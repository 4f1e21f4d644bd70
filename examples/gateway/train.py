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
from pathlib import Path
from typing import Any

from datasets import Dataset
from openai import OpenAI
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.gateway import GatewayEnvironment

TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "tiny-mem1"
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
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output_dir", default="runs/gateway")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    args = Mem1GRPOConfig(
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=8,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
    )
    trainer = Mem1GRPOTrainer(
        model=LlamaForCausalLM(config),
        processing_class=tokenizer,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["Say something"] * 8}),
        environment_factory=GatewayEnvironment.factory(
            {"loop": loop, "compact": compact}[options.program], timeout=120.0
        ),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    few = max(len(rewards) // 5, 1)
    found = {"program": options.program, "first": sum(rewards[:few]) / few, "last": sum(rewards[-few:]) / few}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
