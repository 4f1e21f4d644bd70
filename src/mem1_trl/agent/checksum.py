"""Checksums of the weights and of the tokenizer of a model."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from ..protocol.encoding import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ENCODED = 500
"""Tokens of the vocabulary, evenly spread over it, whose text is encoded again."""


def weights_checksum(model: PreTrainedModel) -> str:
    """Tells weights apart: a hash of names, shapes and the sum of the bits of every parameter."""
    digest = hashlib.sha256()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(whole[parameter.element_size()]).sum(dtype=torch.int64).item()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {bits}".encode())
    return digest.hexdigest()[:16]


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Tells tokenizers apart: a hash of the vocabulary, of the ids of a text made of its tokens, of the tokens that begin and end, and of the chat template.

    What it does is hashed and not its file: that holds the padding and the truncation of the last call, and other versions of a library write it otherwise.
    The padding token is left out, which code for training sets.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    spread = [number for _, number in vocabulary][:: max(1, len(vocabulary) // _ENCODED)]
    text = decode(tokenizer, spread)
    ids = tokenizer(text, verbose=False)[
        "input_ids"
    ]  # may be more than the model reads, which is no cause for a warning
    ends = [tokenizer.bos_token, tokenizer.eos_token]
    parts = [vocabulary, text, ids, ends, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
