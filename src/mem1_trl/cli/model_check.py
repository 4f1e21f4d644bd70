"""Whether there is a model of a name, asked once before libraries ask again and again."""

from __future__ import annotations

from pathlib import Path

from ..saved_files import CONFIGURATIONS, check_folder, check_on_hub
from .options import CommandError

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
    try:
        check_folder(path_or_id, _OF_AN_AGENT)
        check_on_hub(path_or_id)
    except (FileNotFoundError, ConnectionError) as error:
        said = str(error).removesuffix(".")
        raise CommandError(f"{'' if option is None else f'{option}: '}{said[0].lower()}{said[1:]}") from None
