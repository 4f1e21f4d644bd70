"""
Train an agent of smolagents (Hugging Face): its loop, its memory and its tools, unchanged, through OpenAI's API.

    pip install "mem1-trl[serve]" openai smolagents
    python examples/gateway/smolagents_levers.py

A lamp has one of four colours, and one lever opens the door for each. A random model of 0.1 M parameters is first shown how a call is written, with levers drawn
by chance, and to answer with the colour at the end; GRPO then teaches it which lever to pull. What smolagents does to its context (it writes calls and results in words of its
own, so that each step is a new branch) is what is trained.
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
from lessons import completion_row, step, whole_loss
from smolagents import ChatMessage, LogLevel, Model, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction, get_clean_message_list
from tiny_trainer import first_and_last, tiny_llama, tiny_tokenizer, tiny_trainer
from transformers import set_seed

LEVERS = dict(zip(("red", "green", "blue", "white"), "ABCD"))
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


def play(model: Model, colour: str) -> float:
    """One episode of a smolagents agent: half for pulling the right lever first, half for the colour as its final answer."""
    pulled: list[str] = []

    @tool
    def pull(lever: str) -> str:
        """
        Pull a lever.

        Args:
            lever: Its letter.
        """
        pulled.append(lever)
        return "open" if lever == LEVERS[colour] else "shut"

    agent = ToolCallingAgent([pull], model, prompt_templates=PROMPTS, max_steps=2, verbosity_level=LogLevel.OFF)
    answer = agent.run(f"The lamp is {colour}.")
    return 0.5 * (pulled[:1] == [LEVERS[colour]]) + 0.5 * (answer == colour)


def program(row: dict[str, Any], base_url: str) -> float:
    """What is trained: the agent, with the address of the gateway in place of OpenAI's."""
    return play(OpenAIModel("policy", api_base=base_url, api_key="none"), row["prompt"])


class ByChance(Model):
    """Pulls levers by chance, and keeps what it read with what it wrote."""

    def __init__(self, tokenizer: Any):
        super().__init__(model_id="by-chance")
        self.tokenizer = tokenizer
        self.examples: list[tuple[str, str]] = []

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        roles = {"tool-call": "assistant", "tool-response": "user"}
        chat = get_clean_message_list(messages, roles, flatten_messages_as_text=True)
        name, arguments = "pull", {"lever": random.choice("ABCD")}
        if len(chat) > 2:
            colour = next(colour for colour in LEVERS if f"The lamp is {colour}." in chat[1]["content"])
            name, arguments = "final_answer", {"answer": colour}
        function = ChatMessageToolCallFunction(name=name, arguments=arguments)
        calls = [ChatMessageToolCall(id=f"call_{random.randbytes(8).hex()}", type="function", function=function)]
        read = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        self.examples.append((read, f"<call {name}>{json.dumps(arguments)}</call><eos>"))
        return ChatMessage("assistant", content=None, tool_calls=calls)


def show_how_calls_are_written(model: Any, tokenizer: Any, steps: int) -> float:
    """Supervised steps on episodes that were played by chance; the last loss in nats per token."""
    teacher = ByChance(tokenizer)
    for number in range(64):
        play(teacher, list(LEVERS)[number % 4])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = 0.0
    for _ in range(steps):
        drawn = random.sample(teacher.examples, 8)
        rows = [completion_row(*(tokenizer(text)["input_ids"] for text in example)) for example in drawn]
        loss = step(model, whole_loss(model, rows, tokenizer.pad_token_id), optimizer)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm_up_steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
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
        list(LEVERS) * 8,
        timeout=600.0,
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=16,
        max_completion_length=32,
        learning_rate=1e-3,
    )
    trainer.train()
    print(json.dumps(first_and_last(trainer)))


if __name__ == "__main__":
    main()
