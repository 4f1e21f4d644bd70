"""How a model was run when it was trained, saved next to it, so that it is run the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_text import read_json_object, write_json
from ..protocol.presets import released_protocol
from ..protocol.protocol import PROTOCOL_FILE, Mem1Protocol
from ..rollout.settings import AgentSettings
from ..saved_files import find_saved

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

AGENT_FILE = "mem1_agent.json"


def save_agent_settings(directory: str | os.PathLike[str], settings: AgentSettings) -> None:
    """Write `mem1_agent.json` into a directory."""
    text = write_json(settings.to_dict(), indent=2)
    (Path(directory) / AGENT_FILE).write_text(text + "\n", encoding="utf-8")


def load_agent_settings(path_or_id: str | os.PathLike[str], **where: Any) -> AgentSettings | None:
    """
    The settings saved in a directory, or in the repository of a model on the Hub; `None` if there are none. `where` is what
    [`~mem1_trl.saved_files.place_of`] returns.

    Raises:
        `ConnectionError`: If the Hub gives no answer about a model that is not here.
        `ValueError`: If the file is not one that this version can read.
    """
    path = _find(path_or_id, AGENT_FILE, where)
    if path is None:
        return None
    record = read_json_object(path, "save the model again.")
    try:
        return AgentSettings.from_dict(record)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read. {error}") from None


def find_protocol(path_or_id: str | os.PathLike[str], **where: Any) -> Mem1Protocol | None:
    """The protocol saved next to a model, in a directory or on the Hub, or known of a released one; `None` if there is none."""
    released = released_protocol(str(path_or_id))
    if released is not None:
        return released
    path = _find(path_or_id, PROTOCOL_FILE, where)
    return None if path is None else Mem1Protocol.from_pretrained(path.parent)


def saved_protocol(path_or_id: str | os.PathLike[str], **where: Any) -> Mem1Protocol:
    """
    The protocol of a model that is used, as [`find_protocol`] finds it.

    Raises:
        `FileNotFoundError`: If there is none.
        `ConnectionError`: If the Hub gives no answer about a model that is not here.
    """
    return released_protocol(str(path_or_id)) or Mem1Protocol.from_pretrained(path_or_id, **where)


def _find(path_or_id: str | os.PathLike[str], name: str, where: Mapping[str, Any]) -> Path | None:
    """A file next to a model; none for a model that is not there, of which loading the model itself says so."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return find_saved(path_or_id, name, **where)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
