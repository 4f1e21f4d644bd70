"""
Train an agent of smolagents (Hugging Face): its loop, its memory and its tools, unchanged, through OpenAI's API.

    pip install "mem1-trl[serve]" openai smolagents
    python examples/gateway/smolagents_levers.py

A lamp has one of four colours, and one lever opens the door for each. A random model of 0.1 M parameters is first shown how a call is written, with levers drawn
by chance; GRPO then teaches it which lever to pull. What smolagents does to its context (it writes calls and results in words of its
own, so that each step is a new branch) is what is trained.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from smolagents import ChatMessage, LogLevel, Model, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction, get_clean_message_list
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.gateway import GatewayEnvironment

LEVERS = dict(zip(("red", "green", "blue", "white"), "ABCD"))
TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "tiny-mem1"
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
        return "open" if lever == LEVERS[colour] else "shut"

    agent = ToolCallingAgent([pull], model, prompt_templates=PROMPTS, max_steps=2, verbosity_level=LogLevel.OFF)
    agent.run(f"The lamp is {colour}.")
    return float(pulled[:1] == [LEVERS[colour]])


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
            name, arguments = "final_answer", {"answer": "done"}
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
    loss = torch.zeros(())
    for _ in range(steps):
        rows = [[tokenizer(text)["input_ids"] for text in example] for example in random.sample(teacher.examples, 8)]
        longest = max(len(read) + len(said) for read, said in rows)
        ids = torch.tensor([read + said + [0] * (longest - len(read) - len(said)) for read, said in rows])
        labels = torch.tensor(
            [[-100] * len(read) + said + [-100] * (longest - len(read) - len(said)) for read, said in rows]
        )
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm_up_steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output_dir", default="runs/gateway-smolagents")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(json.dumps({"warm_up_loss": show_how_calls_are_written(model, tokenizer, options.warm_up_steps)}))
    args = Mem1GRPOConfig(
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=32,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
    )
    trainer = Mem1GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": list(LEVERS) * 8}),
        environment_factory=GatewayEnvironment.factory(program, timeout=600.0),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    few = max(len(rewards) // 5, 1)
    print(json.dumps({"first": sum(rewards[:few]) / few, "last": sum(rewards[-few:]) / few}))


if __name__ == "__main__":
    main()
