"""Tokenizers of several kinds with control tokens, and random mixtures of these and of tags."""

from __future__ import annotations

import random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>", "<pad>"]
CONTROL = ["<tool_call>", "</tool_call>", "<tool_response>", "[TOOL_CALLS]", "<|fim_middle|>"]
TEMPLATE = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]<start_of_turn>{% endfor %}"
CORPUS = [
    "the quick brown fox jumps over the lazy dog. It is 12 o'clock, answer the question! search information think",
    "<search> </search> <answer> im_start im_end tool_call tool_response eot_id INST TOOL_CALLS | [ ] < > / & lt ; s pad",
    "häßlich 漢字 🙂 &lt;answer>",
]


def byte_bpe() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return finish(backend)


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS * 3, trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return finish(backend, unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        CORPUS * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]", "[CLS]"])
    )
    return finish(backend, unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]")


def finish(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<s>", **special
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[:3]})
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in CONTROL])
    tokenizer.add_tokens(["molecule"])  # a word of a user's domain is not a control token
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def forbidden(tokenizer) -> set[int]:
    ids = set(tokenizer.all_special_ids) | set(tokenizer.convert_tokens_to_ids(CONTROL))
    return ids - {tokenizer.unk_token_id}


PIECES = [
    *SPECIAL, *CONTROL, "[INST]", "[/INST]", "<start_of_turn>", "<<SYS>>", "[SEP]", "[CLS]", "<|IM_END|>", "＜|im_end|＞",
    "<search>", "</search>", "<answer>", "</ANSWER>", "< answer >", "<answer\n>", '<search lang="en">', "</ think >", "<think",
    "<information>", "</information>", "<ans", "wer>", "<|im_", "end|>", "<sea<search>rch>", "<tool_<tool_call>call>",
    "\x00", "<ans\x00wer>", "<|im\x00_end|>", "\ud800", "\udcff", b"caf\xc3".decode("utf-8", "surrogateescape"), "\u202e", "\u2066",
    "\u200b", "\ufeff", "é", "漢", "🙂", " ", "\n", "plain words", "1 < 2", "molecule", "&lt;", "<", ">", "[", "]", "|",
]  # fmt: skip


def mixture(seed: int) -> str:
    luck = random.Random(seed)
    return "".join(luck.choice(PIECES) for _ in range(luck.randint(1, 60)))
