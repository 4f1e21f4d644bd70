"""Which sampled tokens hold a part of their text."""

from __future__ import annotations

import pytest
from support.helpers import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mem1_trl import Mem1Protocol
from mem1_trl.protocol.encoding import decode, first_tokens, tokens_of_span, without_end_token


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a token for `><`, as large vocabularies have one, and no token for a tag."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": 0, **{token: index + 1 for index, token in enumerate(alphabet)}, "><": len(alphabet) + 1}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(">", "<")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("text", "part", "before", "size"),
    [
        ("<think>ab</think><search>x</search>", "<think>ab</think>", 0, 4),  # tags are tokens
        ("ü<think>ü</think>.", "<think>ü</think>", 2, 4),  # two bytes a letter, a token a byte
        ("🙂🙂<think>é🙂</think>🙂", "<think>é🙂</think>", 8, 8),
        ("ab", "ab", 0, 2),
    ],
)
def test_tokens_are_those_of_the_characters(text, part, before, size):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    begin = text.index(part)
    assert tokens_of_span(tokenizer, ids, (begin, begin + len(part))) == (before, before + size)
    assert decode(tokenizer, ids[before : before + size]) == part


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a鉄é🙂", {0: "", 1: "a", 2: "a", 3: "a", 4: "a鉄", 5: "a鉄", 6: "a鉄é", 7: "a鉄é", 9: "a鉄é", 10: "a鉄é🙂", 99: "a鉄é🙂"}),
        ("\ufffd\ufffdb", {3: "\ufffd", 6: "\ufffd\ufffd", 7: "\ufffd\ufffdb"}),  # the mark is one of the text
    ],
)  # fmt: skip
def test_the_first_tokens_end_with_a_whole_character(text, whole):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert {most: decode(tokenizer, first_tokens(tokenizer, ids, most)) for most in whole} == whole


def test_the_first_tokens_of_a_tokenizer_that_falls_back_to_bytes():
    """As SentencePiece does, whose decoder writes a mark for each byte of a character that is broken."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "a": 257}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    ids = tokenizer("a鉄a🙂")["input_ids"]
    found = [decode(tokenizer, first_tokens(tokenizer, ids, most)) for most in range(len(ids) + 1)]
    assert found == ["", "a", "a", "a", "a鉄", "a鉄a", "a鉄a", "a鉄a", "a鉄a", "a鉄a🙂"]


def test_a_token_across_the_border_belongs_to_the_part():
    tokenizer = merging_tokenizer()
    text = "a<t>b</t><s>c</s>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) - 1
    begin, end = tokens_of_span(tokenizer, ids, (1, 9))
    assert (begin, end) == (1, 9) and decode(tokenizer, ids[begin:end]) == "<t>b</t><"
    begin, end = tokens_of_span(tokenizer, ids, (9, len(text)))
    assert decode(tokenizer, ids[begin:end]) == "><s>c</s>"


def test_sampled_tokens_count_as_they_were_sampled():
    """A model may write a tag letter by letter, which no encoding of the text would give back."""
    tokenizer = merging_tokenizer()
    ids = [i for letter in "<t>b</t><s>" for i in tokenizer(letter)["input_ids"]]
    assert len(ids) == 11 > len(tokenizer("<t>b</t><s>")["input_ids"])
    assert tokens_of_span(tokenizer, ids, (0, 8)) == (0, 8)
    assert tokens_of_span(tokenizer, ids, (8, 11)) == (8, 11)


def test_a_text_that_is_cut_inside_a_letter():
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer("<think>a</think>")["input_ids"], *tokenizer("🙂")["input_ids"][:2]]
    assert tokens_of_span(tokenizer, ids, (0, len("<think>a</think>"))) == (0, 3)


def test_a_turn_may_end_in_another_special_token_than_the_tokenizers():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end_of_turn>", "</think>"]})
    for end in (tokenizer.eos_token, "<end_of_turn>"):
        assert without_end_token(tokenizer, f"a summary{end}") == "a summary"
        assert without_end_token(tokenizer, f"{end}a summary") == f"{end}a summary"
    assert without_end_token(tokenizer, "<think>a</think>") == "<think>a</think>"
    syntax = Mem1Protocol().syntax(tokenizer)
    assert syntax.parse_summary([], "a summary<end_of_turn>", True).state == "a summary"
