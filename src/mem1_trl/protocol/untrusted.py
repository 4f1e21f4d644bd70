"""Untrusted text, changed so that it cannot encode to a control token of a model."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from transformers import PreTrainedTokenizerBase

# Markers of messages in chat templates: <|im_end|>, [INST], <<SYS>>, <start_of_turn>
_MARKER_IN_TEMPLATE = re.compile(r"<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{2,30}\]|<</?[A-Z]{2,10}>>|</?[a-z]+_[a-z_]+>")
_LOOKS_LIKE_CONTROL = re.compile(r"^(<.*>|\[.*\]|\{.*\}|<.*|\|.*\|)$", re.DOTALL)

# Markers of common chat formats, whichever tokenizer reads them: the server of an endpoint may have another
_COMMON = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<start_of_turn>", "<end_of_turn>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "<s>", "</s>",
)  # fmt: skip

_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[int, str], tuple[re.Pattern[str], frozenset[int]]]]
_known = WeakKeyDictionary()

_splitting: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Any]] = WeakKeyDictionary()
_lock = threading.Lock()


def _controls(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], frozenset[int]]:
    """The control texts of a tokenizer as one pattern, and the token ids that untrusted text may not become."""
    template = getattr(tokenizer, "chat_template", None)
    template = template if isinstance(template, str) else ""
    key = (len(getattr(tokenizer, "added_tokens_decoder", ())), template)
    found = _known.get(tokenizer)
    if found is not None and found[0] == key:
        return found[1]
    # Ordinary words that were added to the vocabulary are not control, and unknown text becomes the unknown token
    texts = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    for index, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if added.special or _LOOKS_LIKE_CONTROL.match(added.content.strip()):
            texts[added.content] = index
    texts.pop(getattr(tokenizer, "unk_token", None) or "", None)
    padding = getattr(tokenizer, "pad_token", None) or ""
    if _is_a_word(tokenizer, padding):
        texts.pop(padding, None)
    markers = {*texts, *_COMMON, *_MARKER_IN_TEMPLATE.findall(template)}
    unknown = getattr(tokenizer, "unk_token", None)
    words = [m for m in markers if _breaks(m) and m != unknown]
    result = _any_of(words, re.IGNORECASE), frozenset(texts.values())
    _known[tokenizer] = (key, result)
    return result


def _is_a_word(tokenizer: PreTrainedTokenizerBase, padding: str) -> bool:
    """Whether the padding token is a piece of ordinary text and has no other role, as with `pad_token_id = 0`, which is "!" in many vocabularies."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(getattr(tokenizer, "pad_token_id", None))
    others = [getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "sep", "cls", "mask")]
    return (
        not (added is not None and added.special)
        and not _LOOKS_LIKE_CONTROL.match(padding.strip())
        and padding not in others
    )


def _place_of_break(marker: str) -> int:
    """Index at which a space breaks a marker: after its first character that is not a space."""
    return len(marker) - len(marker.lstrip(" ")) + 1


def _breaks(marker: str) -> bool:
    """Whether a space makes another text of a marker, so that it breaks. In a run of spaces it makes a longer run."""
    return bool(marker[_place_of_break(marker) :].strip())


def _any_of(markers: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """An expression that finds each of the markers, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(markers, key=lambda marker: (-len(marker), marker)))), flags)


def _split_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Token ids of text in which special tokens are text like any other.

    `tokenizer(..., split_special_tokens=True)` changes the tokenizer for the time of the call, and another thread would read the text
    of a stranger with special tokens meanwhile. So a fast tokenizer has a copy that always splits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    size = len(tokenizer)
    with _lock:
        found = _splitting.get(tokenizer)
        if found is None or found[0] != size:
            copied = type(backend).from_str(backend.to_str())
            copied.no_truncation()
            copied.no_padding()
            copied.encode_special_tokens = True
            found = _splitting[tokenizer] = (size, copied)
    return list(found[1].encode(text, add_special_tokens=False).ids)


def strip_unencodable(text: str) -> str:
    """The text without characters that no tokenizer or file can hold: a lone surrogate becomes `?`, NUL bytes go."""
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\x00", "")


def break_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """
    The text with a space inside every marker of a message or a tool call.

    `"<|im_end|>"` becomes `"< |im_end|>"`, and stays text however often it is encoded again, here or by an endpoint. The
    markers are the special tokens of the tokenizer, its other tokens that look like control tokens, those that its chat
    template writes, and those of common chat formats.
    """
    pattern, _ = _controls(tokenizer)
    return _break_all(pattern, text)


def _break_all(pattern: re.Pattern[str], text: str) -> str:
    """The text with a space inside every match."""
    previous = None
    while previous != text:  # a break may join the parts of a marker that another marker had cut
        previous = text
        text = pattern.sub(_broken, text)
    return text


def _broken(match: re.Match[str]) -> str:
    place = _place_of_break(match[0])
    return f"{match[0][:place]} {match[0][place:]}"


def sanitize_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Untrusted text for a prompt: without markers, NUL bytes and lone surrogates."""
    return break_control(tokenizer, strip_unencodable(text))


def encode_untrusted(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Token ids of untrusted text: a control token that is spelled out in it stays plain text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes the text.
        text (`str`):
            Any text.

    Returns:
        `list[int]`: None of them is a special token or looks like a control token (`<tool_call>`), except the unknown
        token.
    """
    if not text:
        return []
    text = sanitize_prompt(tokenizer, text)
    _, forbidden = _controls(tokenizer)
    ids = _split_ids(tokenizer, text)
    # A normalizer may still make one of letters that are not a marker as they are
    return [index for index in ids if index not in forbidden]


def clean_values(value: Any, clean: Callable[[str], str] = strip_unencodable) -> Any:
    """JSON of a server in which every text was changed by `clean`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_values(item, clean) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean_values(item, clean) for key, item in value.items()}
    return value


def clean_reply(
    tokenizer: PreTrainedTokenizerBase, message: dict[str, Any], tags: Collection[str] = ()
) -> dict[str, Any]:
    """
    The message of a server without lone surrogates, NUL bytes and special tokens.

    A special token that is spelled out in it would end the turn, or begin a message, in the context of whoever reads it next.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its special tokens are changed as in [`break_control`].
        message (`dict`):
            What the server returned.
        tags (`Collection[str]`, *optional*):
            Tags that the model is to write; they stay, also where they are special tokens.
    """
    specials = {token for token in tokenizer.all_special_tokens if _breaks(token) and token != tokenizer.unk_token}
    specials -= {f"<{slash}{tag}>" for tag in tags for slash in ("", "/")}
    if not specials:
        return clean_values(message)
    pattern = _any_of(specials)
    return clean_values(message, lambda text: _break_all(pattern, strip_unencodable(text)))
