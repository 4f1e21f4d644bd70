"""
Train an agent of smolagents (Hugging Face): its loop, its memory and its tools, unchanged, through OpenAI's API.

    pip install "mem1-trl[serve]" openai smolagents
    python examples/gateway/smolagents_levers.py

Four doors have a letter each, and so have four levers; the lever with the door's letter opens it. A random model of 0.1 M parameters is first
shown how a call is written, by demonstrations that pull the right lever in two of five cases only; GRPO then teaches it which one to pull. What smolagents does to
its context (it writes calls and results in words of its own, so that each step is a new branch) is what is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from example_options import count
from lessons import completion_row, step, whole_loss
from smolagents import ChatMessage, LogLevel, Model, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction, get_clean_message_list
from tiny_trainer import first_and_last, tiny_llama, tiny_tokenizer, tiny_trainer
from transformers import set_seed

LETTERS = "ABCD"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{% for call in message.tool_calls or [] %}"
    "<call {{ call.function.name }}>{{ call.function.arguments | tojson }}</call>{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CALL = {
    "open_pattern": r"<call (?P<name>\w+)>",
    "close": "</call>",
    "repeats": True,
    "content": "json",
    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
}
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant: ",
    "fields": {"tool_calls": CALL, "content": {"close": "<eos>", "content": "text"}},
}
PROMPTS = {
    "system_prompt": "Pull a lever, then give the final answer.",
    "planning": {"initial_plan": "", "update_plan_pre_messages": "", "update_plan_post_messages": ""},
    "managed_agent": {"task": "", "report": ""},
    "final_answer": {"pre_messages": "", "post_messages": ""},
}
"""In place of smolagents' own, which are long for so small a model."""


def play(model: Model, letter: str) -> float:
    """One episode of a smolagents agent: 1 if the first lever that it pulled was the right one."""
    pulled: list[str] = []

    @tool
    def pull(lever: str) -> str:
        """
        Pull a lever.

        Args:
            lever: Its letter.
        """
        pulled.append(lever)
        return "open" if lever == letter else "shut"

    agent = ToolCallingAgent([pull], model, prompt_templates=PROMPTS, max_steps=2, verbosity_level=LogLevel.OFF)
    agent.run(f"The door is {letter}.")
    return float(pulled[:1] == [letter])


def program(row: dict[str, Any], base_url: str) -> float:
    """What is trained: the agent, with the address of the gateway in place of OpenAI's."""
    return play(OpenAIModel("policy", api_base=base_url, api_key="none"), row["prompt"])


class Demonstrator(Model):
    """Pulls the right lever now and then, and keeps what it read with what it wrote."""

    def __init__(self, tokenizer: Any):
        super().__init__(model_id="demonstrator")
        self.tokenizer = tokenizer
        self.examples: list[tuple[str, str]] = []

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        roles = {"tool-call": "assistant", "tool-response": "user"}
        chat = get_clean_message_list(messages, roles, flatten_messages_as_text=True)
        (letter,) = (letter for letter in LETTERS if f"The door is {letter}." in chat[1]["content"])
        name, arguments = "pull", {"lever": random.choice(LETTERS + letter)}  # the right one in two of five cases
        if len(chat) > 2:
            name, arguments = "final_answer", {"answer": letter}
        function = ChatMessageToolCallFunction(name=name, arguments=arguments)
        calls = [ChatMessageToolCall(id=f"call_{random.randbytes(8).hex()}", type="function", function=function)]
        read = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        self.examples.append((read, f"<call {name}>{json.dumps(arguments)}</call><eos>"))
        return ChatMessage("assistant", content=None, tool_calls=calls)


def show_how_calls_are_written(model: Any, tokenizer: Any, steps: int) -> float:
    """Supervised steps on demonstrations; the last loss in nats per token."""
    teacher = Demonstrator(tokenizer)
    for number in range(400):  # smolagents writes a random id into each
        play(teacher, LETTERS[number % 4])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # To zero, since calls that are broken teach nothing about levers
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    loss = 0.0
    for _ in range(steps):
        drawn = random.sample(teacher.examples, 8)
        rows = [completion_row(*(tokenizer(text)["input_ids"] for text in example)) for example in drawn]
        loss = step(model, whole_loss(model, rows, tokenizer.pad_token_id), optimizer)
        slower.step()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm_up_steps", type=count, default=500)
    parser.add_argument("--steps", type=count, default=60)
    parser.add_argument("--output_dir", default="runs/gateway-smolagents")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = tiny_tokenizer(TEMPLATE)
    tokenizer.response_template = RESPONSE
    model = tiny_llama(tokenizer, hidden_size=64, num_key_value_heads=4)
    print(json.dumps({"warm_up_loss": show_how_calls_are_written(model, tokenizer, options.warm_up_steps)}))
    trainer = tiny_trainer(
        model,
        tokenizer,
        program,
        list(LETTERS) * 16,
        timeout=600.0,
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=64,
        max_completion_length=32,
        learning_rate=7e-4,
        beta=0.02,  # holds what the reward says little about: how calls are written
    )
    trainer.train()
    print(json.dumps(first_and_last(trainer)))


if __name__ == "__main__":
    main()
