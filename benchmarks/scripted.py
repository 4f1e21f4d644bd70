"""
A model that says what it is told to, at the cost of a real one.

Rollouts can be compared only if all of them play the same episodes, but a random model writes no valid action. The model
made here is an ordinary `LlamaForCausalLM` with every matrix in place, whose head is built so that after each token of a
script the next one has nearly all the probability. Nothing hooks into generation: caches, batching and sampling are
whatever the trainer under test does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.chat_template_utils import qwen3_chat_template

WORDS = 768
"""Number of filler words, each a token of its own whatever stands around it."""

CALL_OPEN = '{"name": "search", "arguments": {"query": "'
CALL_CLOSE = '"}}'
_TAGS = ("think", "search", "answer", "information", "tool_call", "tool_response", "tools")
_SCRIPT_GAIN = 60.0  # nats of a scripted token's logit; the other tokens stay below 20


def word(index: int) -> str:
    """A filler word of one token."""
    return f" w{index}"


def words(count: int, start: int = 0) -> str:
    """Text of `count` tokens."""
    return "".join(word((start + index) % WORDS) for index in range(count))


def make_tokenizer(corpus: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """
    A byte-level BPE tokenizer with Qwen3's chat template and markers, learned on the spot from `corpus`.

    TRL recognises the template, so it parses tool calls as it does for the released models.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    backend.train_from_iterator([qwen3_chat_template, *corpus], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    pieces = [f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/")]
    pieces += [CALL_OPEN, CALL_CLOSE, *(word(index) for index in range(WORDS))]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    script: str,
    contexts: Sequence[str],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **sizes: Any,
) -> LlamaForCausalLM:
    """
    A Llama that continues contexts with a script.

    The next token is a function of the last one, so a token may occur only once in the script.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            From [`make_tokenizer`].
        script (`str`):
            What it says.
        contexts (`Sequence[str]`):
            The ways in which contexts end, such as `"<|im_start|>assistant\\n"`. Only the last token of each matters.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where to put it.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Of the weights.
        seed (`int`, *optional*, defaults to `0`):
            Of the random weights.
        **sizes:
            Fields of `LlamaConfig`.

    Raises:
        `ValueError`: If the script has a token twice, or one that also ends a context.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    said = encode(script)
    ends = {encode(context)[-1] for context in contexts}
    if len(set(said)) < len(said) or ends & set(said[:-1]):
        raise ValueError(f"The script {script!r} has a token twice: what follows it would not be determined.")
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 128) * 128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        **{"attn_implementation": "sdpa", **sizes},
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        # Embeddings large against what the layers add: the last hidden state is the last token's embedding, and noise
        embeddings = model.get_input_embeddings().weight
        embeddings.normal_()
        directions = embeddings * (_SCRIPT_GAIN / config.hidden_size)
        head = model.get_output_embeddings().weight
        head[said[0]] = directions[sorted(ends)].sum(dim=0)
        for token, following in pairwise(said):
            head[following] = directions[token]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return model.to(device=device, dtype=dtype).eval()
