"""Whether there is a model of a name, asked once before libraries ask again and again."""

from __future__ import annotations

from pathlib import Path

from .options import CommandError

CONFIGURATIONS = ("config.json", "adapter_config.json")
"""Files of which the folder of a model, or of an adapter, has one."""

_OF_AN_AGENT = (*CONFIGURATIONS, "tokenizer_config.json")
"""Files of which the folder of an agent has one: where a server runs the model, its tokenizer is enough."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def holds_model(folder: str) -> bool:
    """Whether a folder holds a model, or a part of one."""
    place = Path(folder)
    return any((place / name).is_file() for name in CONFIGURATIONS) or any(
        True for pattern in _WEIGHTS for _ in place.glob(pattern)
    )


def check_model(path_or_id: str, option: str | None = None) -> None:
    """
    Refuse a model that is neither in a folder here nor, as far as that can be found out, on the Hub.

    Args:
        path_or_id (`str`):
            A folder, or the id of a model.
        option (`str`, *optional*):
            Where it was given, if it is not the model that is run.

    Raises:
        `CommandError`: If the folder holds no model, or there is no such folder, and the Hub has no such model or does not answer.
    """
    of = "" if option is None else f"{option}: "
    if Path(path_or_id).is_dir():
        if not any((Path(path_or_id) / name).is_file() for name in _OF_AN_AGENT):
            raise CommandError(
                f"{of}the folder {path_or_id!r} holds no model (it has no {' or '.join(CONFIGURATIONS)}): check the path of the model"
            )
        return
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1:  # no id of the Hub
        raise CommandError(f"{of}there is no folder {path_or_id!r} here: check the path of the model")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        if any(isinstance(try_to_load_from_cache(path_or_id, name), str) for name in CONFIGURATIONS):
            return
        get_hf_file_metadata(hf_hub_url(path_or_id, CONFIGURATIONS[0]))
    except (EntryNotFoundError, GatedRepoError):  # the model is there; loading it says what it lacks
        return
    except (RepositoryNotFoundError, HFValidationError):
        raise CommandError(
            f"{of}there is no folder {path_or_id!r} here, and no model of that name on the Hub that this account may read: check the path, or the id"
        ) from None
    except Exception as error:  # each version of the Hub's client has its own for a server that does not answer
        raise CommandError(
            f"{of}there is no folder {path_or_id!r} here, and the Hub cannot be asked for a model of that name "
            f"({type(error).__name__}: {error}): check the path, or the connection"
        ) from None
