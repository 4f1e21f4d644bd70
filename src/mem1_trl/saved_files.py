"""Files that are saved next to a model, in its directory or in its repository on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

logger = logging.getLogger(__name__)

_WHERE = ("revision", "token", "cache_dir", "local_files_only")


def place_of(model_init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say from where a model comes, for whatever is loaded beside it."""
    given = model_init_kwargs or {}
    return {name: given[name] for name in _WHERE if given.get(name) is not None}


def find_saved(path_or_id: str | os.PathLike[str], name: str, **where: Any) -> Path | None:
    """
    A file next to a model; `None` if there is none.

    Where a Hub that gives no answer, or an offline mode, leaves open whether there is one, it is taken for missing if the model itself
    can be loaded without the Hub, with a warning.

    Args:
        path_or_id (`str` or `os.PathLike`):
            A directory, or the id of a model on the Hub.
        name (`str`):
            Name of the file.
        where (*optional*):
            What [`place_of`] returns.

    Raises:
        `ConnectionError`: If the Hub gave no answer, and nothing of the model is here.
        `RepositoryNotFoundError`, `RevisionNotFoundError`: If there is no such model on the Hub, or not this revision of it.
    """
    if Path(path_or_id).is_dir():
        path = Path(path_or_id) / name
        return path if path.is_file() else None
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def kept(file: str) -> Any:
        return try_to_load_from_cache(str(path_or_id), file, where.get("cache_dir"), where.get("revision"))

    try:
        return Path(hf_hub_download(str(path_or_id), name, **where))
    except HFValidationError:  # neither a directory nor an id
        return None
    except (EntryNotFoundError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = error.__cause__ or error
        if kept(name) is _CACHED_NO_EXIST:  # the Hub has said so before
            return None
        if any(isinstance(kept(config), str) for config in ("config.json", "adapter_config.json")):
            logger.warning(
                "Whether %s has a %s is not known, since the Hub gave no answer and it was not downloaded before (%s: %s): it is taken for "
                "missing.",
                path_or_id, name, type(reason).__name__, str(reason).partition("\n")[0],
            )  # fmt: skip
            return None
        if isinstance(reason, (RepositoryNotFoundError, RevisionNotFoundError)):
            raise reason from None
        if is_offline_mode() or where.get("local_files_only"):  # the model is not here either, as loading it says
            return None
        raise ConnectionError(
            f"The Hub gave no answer about {name} of {str(path_or_id)!r}, which says how the model is run "
            f"({type(reason).__name__}: {reason}): try again."
        ) from error
