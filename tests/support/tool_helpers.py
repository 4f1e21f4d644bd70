"""Small tokenizers with the chat templates that TRL ships, and a tiny model that calls tools."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
import trl
from support.helpers import oracle_logprobs, tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import get_json_schema

from mem1_trl import Mem1Protocol, Trajectory, Turn
from mem1_trl.rollout.stopping import Completion, StopStringFinder, finish_completion

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

CONTROL: dict[str, tuple[str, list[str], list[str]]] = {
    # The end token, the special tokens of the templates, and tokens that are added but not special, as in the real tokenizers
    "qwen3": ("<|im_end|>", ["<|im_start|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"]),
    "qwen2_5": ("<|im_end|>", ["<|im_start|>"], ["<tool_call>", "</tool_call>"]),
    "qwen3_5_think": ("<|im_end|>", ["<|im_start|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"]),
    "llama3_1": ("<|eot_id|>", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"], []),
    "glm4moe": (
        "<|endoftext|>",
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"],
        ["<tool_call>"],
    ),
    "gptoss": ("<|return|>", ["<|start|>", "<|end|>", "<|call|>", "<|message|>", "<|channel|>"], []),
}


def template_text(name: str) -> str:
    """A chat template as TRL ships it."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def template_tokenizer(name: str = "qwen3", size: int = 1200) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about `size` tokens with the chat template and the control tokens of a family of models."""
    end, special, added = CONTROL[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    # The template's own sentences and the schemas are what most of a context consists of
    schemas = [json.dumps(get_json_schema(tool)) for tool in (Library.search, Library.note, Library.answer)]
    texts = [template_text(name).replace("\\n", "\n"), Mem1Protocol.tool_calls().instructions, *schemas] * 3
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", padding_side="left", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"eos_token": end, "extra_special_tokens": special})
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    tokenizer.chat_template = template_text(name)
    return tokenizer


class Library:
    """Tells a secret to whoever searches for it, by tools with every kind of argument."""

    def reset(self, secret: str = "7", **row: Any) -> str | None:
        self.secret = secret
        self.log: list[tuple[str, Any]] = []
        self.done = False
        return None

    def search(self, query: str, top_k: int = 1) -> str:
        """
        Look the secret up.

        Args:
            query: What to look for.
            top_k: How many results.
        """
        self.log.append(("search", (query, top_k)))
        return self.secret

    async def note(self, lines: list[str]) -> str:
        """
        Write something down.

        Args:
            lines: What to write.
        """
        self.log.append(("note", lines))
        return f"{len(lines)} lines"

    def answer(self, text: str) -> str:
        """
        Close the library.

        Args:
            text: What was found.
        """
        self.log.append(("answer", text))
        self.done = True
        return "closed"


def call(name: str, arguments: str) -> str:
    """A tool call as Qwen writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


SEARCH_CALL = call("search", '{"query": "key"}')


def said(state: str, rest: str) -> str:
    """A turn as Qwen writes it."""
    return f"<think>\n{state}\n</think>\n\n{rest}<|im_end|>"


class Scripted:
    """
    A backend that says what it is told; `script` maps `(turn, episode)` to a text.

    With a `model`, each token has the log-prob that this model gives it in the context at hand, one sequence at a time and
    without padding: what a sampler would have recorded.
    """

    def __init__(self, tokenizer: Any, script: Any, max_length: int | None = None, model: Any = None):
        self.tokenizer, self.script, self.max_length, self.model = tokenizer, script, max_length, model
        self.prompts: list[list[list[int]]] = []
        self.stops: list[list[list[str]]] = []

    def __call__(self, prompts: list[list[int]], stops: list[list[str]], draws: Any = None) -> list[Completion]:
        self.prompts.append([list(prompt) for prompt in prompts])
        self.stops.append(stops)
        completions = []
        for index in range(len(prompts)):
            ids = self.tokenizer(self.script(len(self.prompts), index), add_special_tokens=False)["input_ids"]
            ended = ids[-1] == self.tokenizer.eos_token_id and (self.max_length is None or len(ids) <= self.max_length)
            ids = tuple(ids[: self.max_length])
            logprobs = None
            if self.model is not None:
                with torch.no_grad():
                    turn = Turn(prompt_ids=tuple(prompts[index]), completion_ids=ids)
                    logprobs = tuple(oracle_logprobs(self.model, Trajectory([turn]))[0].tolist())
            completions.append(Completion(ids, logprobs, ended))
        return completions


class Says:
    """
    Stands in the place of the model that programs share: says its texts, with the log-probs that a real one gives them, as far as a
    backend samples them.
    """

    def __init__(self, tokenizer, texts, model):
        self.backend = Scripted(tokenizer, lambda turn, index: texts[turn - 1], model=model)
        self.finder = StopStringFinder(tokenizer)

    def __call__(self, prompts, stops, settings, **more):
        self.backend.max_length = settings.max_completion_length
        eos = [self.backend.tokenizer.eos_token_id]
        said = self.backend(prompts, stops)
        return [finish_completion(one.ids, one.logprobs, stop, self.finder, eos) for one, stop in zip(said, stops)]

    def playing(self):
        return contextlib.nullcontext()


def tool_policy(tokenizer: Any, architecture: str = "qwen3") -> PreTrainedModel:
    """A random model over the vocabulary of a tokenizer."""
    return tiny_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_hidden_layers=2,
    )
