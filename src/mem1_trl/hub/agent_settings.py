"""How a model was run when it was trained, saved next to it, so that it is run the same way."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

AGENT_FILE = "mem1_agent.json"


def save_agent_settings(directory: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """
    Write `mem1_agent.json` into a directory.

    Args:
        directory (`str`):
            Where the model is saved.
        settings (`Mapping[str, Any]`):
            Arguments of [`Mem1Agent`], ready for JSON.
    """
    text = json.dumps(dict(settings), indent=2, ensure_ascii=False)
    (Path(directory) / AGENT_FILE).write_text(text + "\n", encoding="utf-8")


def load_agent_settings(path_or_id: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `mem1_agent.json` from a directory, or from the repository of a model on the Hub; `{}` if there is none."""
    path = Path(path_or_id) / AGENT_FILE
    if not Path(path_or_id).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError

        with contextlib.suppress(EntryNotFoundError, HFValidationError):
            path = Path(hf_hub_download(str(path_or_id), AGENT_FILE))
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
