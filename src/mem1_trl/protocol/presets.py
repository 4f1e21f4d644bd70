"""Protocols by name: the table of presets, and those of checkpoints that carry no protocol of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .protocol import Mem1Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

PRESETS: dict[str, Callable[[], Mem1Protocol]] = {
    "default": Mem1Protocol,
    "paper": Mem1Protocol.paper,
    "reference": Mem1Protocol.reference,
    "reference_inference": lambda: Mem1Protocol.reference(inference=True),
    "tool_calls": Mem1Protocol.tool_calls,
    "webshop": Mem1Protocol.webshop,
}
"""Name -> function that makes the protocol."""

RELEASED = {"Mem-Lab/Qwen2.5-7B-RL-RAG-Q2-EM-Release": "reference"}
"""Id of a checkpoint that was released without `mem1_protocol.json` -> name of the preset that it was trained with."""


def named_protocol(name: str) -> Mem1Protocol:
    """
    The protocol of a name.

    Args:
        name (`str`):
            One of `PRESETS`, or a directory with `mem1_protocol.json`.

    Raises:
        `ValueError`: If it is neither a preset nor a directory.
        `FileNotFoundError`: If there is no protocol in the directory.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).is_dir():
        raise ValueError(f"protocol is {name!r}, but must be one of {', '.join(PRESETS)}, or a directory.")
    return Mem1Protocol.from_pretrained(name)


def released_protocol(path_or_id: str) -> Mem1Protocol | None:
    """The protocol of a checkpoint of `RELEASED`; `None` for any other."""
    name = RELEASED.get(path_or_id)
    return None if name is None else PRESETS[name]()
