"""Files that are saved next to a model, in its directory or in its repository on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

logger = logging.getLogger(__name__)

CONFIGURATIONS = ("config.json", "adapter_config.json")
"""Files of which the folder of a model, or of an adapter, has one."""

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
        if any(isinstance(kept(config), str) for config in CONFIGURATIONS):
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


def check_path(name: str, model: Any) -> None:
    """
    Refuse a path with nothing there.

    Args:
        name (`str`):
            What the model is, such as `"value model"`.
        model (`Any`):
            An id, a path, or something else, which passes.

    Raises:
        `FileNotFoundError`: If it is a path, and nothing is there.
    """
    if not isinstance(model, str):
        return
    is_path = model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1
    if is_path and not Path(model).exists():
        raise FileNotFoundError(f"There is no {name} at {model!r}: check the path (an id on the Hub is 'owner/name').")


def check_folder(path_or_id: str | os.PathLike[str], needed: Sequence[str] = CONFIGURATIONS) -> None:
    """
    Refuse a path at which there is no model; what may be the id of one on the Hub passes.

    Args:
        path_or_id (`str` or `os.PathLike`):
            A directory, or the id of a model.
        needed (`Sequence[str]`, *optional*):
            Files of which the directory must have one.

    Raises:
        `FileNotFoundError`: If nothing is there, or a file, or a directory that has none of the files.
    """
    place = Path(path_or_id)
    check_path("model", str(path_or_id))
    if place.is_file():
        raise FileNotFoundError(f"A model must be a folder, got the file {str(place)!r}: check the path of the model.")
    has_adapter = CONFIGURATIONS[1] in needed and any(_adapters_in(place))
    if place.is_dir() and not has_adapter and not any((place / name).is_file() for name in needed):
        raise FileNotFoundError(
            f"The folder {str(path_or_id)!r} holds no model (it has no {' or '.join(CONFIGURATIONS)}): check the path of the model."
        )


def check_on_hub(path_or_id: str | os.PathLike[str], **where: Any) -> None:
    """
    Refuse a model that is neither in a directory here nor, as far as that can be found out, on the Hub.

    Args:
        path_or_id (`str` or `os.PathLike`):
            A directory, or the id of a model.
        where (*optional*):
            What [`place_of`] returns.

    Raises:
        `FileNotFoundError`: If the Hub has no such model.
        `ConnectionError`: If the Hub cannot be asked, and nothing of the model is here.
    """
    if Path(path_or_id).is_dir():
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = str(path_or_id), where.get("revision")
    try:
        kept = [try_to_load_from_cache(name, file, where.get("cache_dir"), revision) for file in CONFIGURATIONS]
        if not any(isinstance(one, str) for one in kept):
            get_hf_file_metadata(hf_hub_url(name, CONFIGURATIONS[0], revision=revision), token=where.get("token"))
    except (EntryNotFoundError, GatedRepoError, RevisionNotFoundError):  # loading the model says what it lacks
        return
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(
            f"There is no folder {name!r} here, and no model of that name on the Hub that this account may read: check the path, or the id."
        ) from None
    except Exception as error:  # each version of the Hub's client has its own for a server that does not answer
        raise ConnectionError(
            f"There is no folder {name!r} here, and the Hub cannot be asked for a model of that name "
            f"({type(error).__name__}: {error}): check the path, or the connection."
        ) from None


@contextmanager
def naming_missing_model(path_or_id: str | os.PathLike[str], **where: Any) -> Iterator[None]:
    """
    Errors of loading a model that is nowhere say that, and not which of its files was missed first.

    Args:
        path_or_id (`str` or `os.PathLike`):
            A directory, or the id of a model.
        where (*optional*):
            What [`place_of`] returns.

    Raises:
        `FileNotFoundError`, `ConnectionError`: As [`check_folder`] and [`check_on_hub`], which is asked only after an error.
    """
    check_folder(path_or_id)
    try:
        yield
    except (OSError, ValueError):
        check_on_hub(path_or_id, **where)
        raise


def adapter_folder(directory: str | os.PathLike[str], name: str) -> Path:
    """Folder of an adapter that PEFT has saved into a directory: one of its own name, unless the adapter is named "default"."""
    return Path(directory) if name == "default" else Path(directory) / name


def find_adapter(directory: str | os.PathLike[str]) -> Path | None:
    """
    Folder of the one adapter that PEFT has saved into a directory, under whatever name; `None` if there is none.

    Raises:
        `ValueError`: If there are several, and none of them is named "default".
    """
    model, adapter = CONFIGURATIONS
    if (Path(directory) / adapter).is_file():
        return Path(directory)
    if (Path(directory) / model).is_file():
        return None
    named = _adapters_in(directory)
    if len(named) > 1:
        raise ValueError(
            f"{directory} must hold one adapter, but it holds {', '.join(repr(path.name) for path in named)}: pass the folder of one of them."
        )
    return named[0] if named else None


def _adapters_in(directory: str | os.PathLike[str]) -> list[Path]:
    """Folders of adapters with a name of their own: no checkpoints, and not "ref", which TRL keeps frozen beside another."""
    found = (path.parent for path in Path(directory).glob(f"*/{CONFIGURATIONS[1]}"))
    return sorted(folder for folder in found if folder.name != "ref" and not folder.name.startswith("checkpoint-"))
