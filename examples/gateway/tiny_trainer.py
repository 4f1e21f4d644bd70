"""What the programs of this folder are trained with: GRPO, and a random Llama that a CPU trains in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, StepLines
from mem1_trl.gateway import GatewayEnvironment

TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "tiny-mem1"


def tiny_tokenizer(chat_template: str) -> Any:
    """The tokenizer of the bundled tiny model, with another chat template."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(tokenizer: Any, hidden_size: int, num_key_value_heads: int) -> LlamaForCausalLM:
    """A Llama of two layers and four heads, with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def tiny_trainer(
    model: Any, tokenizer: Any, program: Any, prompts: list[str], timeout: float, **settings: Any
) -> Mem1GRPOTrainer:
    """A trainer of a program on prompts; an episode may take `timeout` seconds, `settings` are those of [`Mem1GRPOConfig`]."""
    args = Mem1GRPOConfig(
        num_generations=8,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    trainer = Mem1GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        environment_factory=GatewayEnvironment.factory(program, timeout=timeout),
        callbacks=[StepLines()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def first_and_last(trainer: Mem1GRPOTrainer) -> dict[str, float]:
    """Mean rewards of the first and of the last fifth of the steps."""
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    few = max(len(rewards) // 5, 1)
    return {"first": sum(rewards[:few]) / few, "last": sum(rewards[-few:]) / few}
