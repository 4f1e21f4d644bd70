"""How a model was run when it was trained, saved next to it, so that it is run the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..json_text import read_json_object, write_json
from ..protocol.presets import released_protocol
from ..protocol.protocol import PROTOCOL_FILE, Mem1Protocol
from ..rollout.settings import AgentSettings

if TYPE_CHECKING:
    import os

AGENT_FILE = "mem1_agent.json"


def save_agent_settings(directory: str | os.PathLike[str], settings: AgentSettings) -> None:
    """Write `mem1_agent.json` into a directory."""
    text = write_json(settings.to_dict(), indent=2)
    (Path(directory) / AGENT_FILE).write_text(text + "\n", encoding="utf-8")


def load_agent_settings(path_or_id: str | os.PathLike[str]) -> AgentSettings | None:
    """
    The settings saved in a directory, or in the repository of a model on the Hub; `None` if there are none.

    Raises:
        `ValueError`: If the file is not one that this version can read.
    """
    path = _find(path_or_id, AGENT_FILE)
    if path is None:
        return None
    record = read_json_object(path, "save the model again.")
    try:
        return AgentSettings.from_dict(record)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read. {error}") from None


def find_protocol(path_or_id: str | os.PathLike[str]) -> Mem1Protocol | None:
    """The protocol saved next to a model, in a directory or on the Hub, or known of a released one; `None` if there is none."""
    released = released_protocol(str(path_or_id))
    if released is not None:
        return released
    path = _find(path_or_id, PROTOCOL_FILE)
    return None if path is None else Mem1Protocol.from_pretrained(path.parent)


def saved_protocol(path_or_id: str | os.PathLike[str]) -> Mem1Protocol:
    """
    The protocol of a model that is used, as [`find_protocol`] finds it.

    Raises:
        `FileNotFoundError`: If there is none.
    """
    return released_protocol(str(path_or_id)) or Mem1Protocol.from_pretrained(path_or_id)


def _find(path_or_id: str | os.PathLike[str], name: str) -> Path | None:
    """A file next to a model; of a model on the Hub, what can be reached or was downloaded before."""
    if Path(path_or_id).is_dir():
        path = Path(path_or_id) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(str(path_or_id), name))
    except (EntryNotFoundError, HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return None  # no such file, no such model, or no Hub: loading the model itself says which
