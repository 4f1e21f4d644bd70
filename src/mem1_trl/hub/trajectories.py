"""
Data sets of trajectories on the Hub: JSON lines, one episode each, under a card.

```python
push_trajectories("me/lookups", "runs/teacher.jsonl")
trajectories = load_trajectories("me/lookups")  # or datasets.load_dataset("me/lookups")
```
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_lines import read_json_lines
from ..json_text import write_json
from ..trajectory import Trajectory
from .trajectory_card import FOLDER, trajectory_card

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence


def push_trajectories(
    repo_id: str,
    trajectories: Sequence[Trajectory] | str | os.PathLike[str],
    split: str = "train",
    model: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """
    Write episodes to a data set on the Hub, with a card. What the split held before is replaced; other splits stay.

    Args:
        repo_id (`str`):
            Repository of the type "dataset", made if it does not exist.
        trajectories (`Sequence[Trajectory]` or `str` or `Path`):
            Episodes, or a file of them: what [`collect_trajectories`] or an evaluation wrote.
        split (`str`, *optional*, defaults to `"train"`):
            Part of the data set.
        model (`str`, *optional*):
            Id of the model that played, for the card. Its tokenizer is the one that `prompt_ids` and `completion_ids` belong to.
        private (`bool`, *optional*):
            Whether a new repository is private. `None` leaves that to the account.
        token (`str`, *optional*):
            Token of the Hub. `None` takes the one that is logged in.

    Returns:
        `str`: Address of the data set.

    Raises:
        `ValueError`: if there is no episode, the file holds something else, or the split is no name.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _check_split(split)
    if isinstance(trajectories, (list, tuple)):
        records = [trajectory.to_dict() for trajectory in trajectories]
    else:
        records = list(read_records(trajectories))  # type: ignore[arg-type]
    if not records:
        raise ValueError("There is no trajectory to push.")
    records = [_plain(record) for record in records]
    lines = "".join(write_json(record) + "\n" for record in records).encode()
    api = HfApi(token=token)
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    files = api.list_repo_files(address.repo_id, repo_type="dataset")
    others = {Path(name).stem for name in files if name.startswith(f"{FOLDER}/") and name.endswith(".jsonl")} - {split}
    before = None
    if others and "README.md" in files:
        before = Path(api.hf_hub_download(address.repo_id, "README.md", repo_type="dataset")).read_text(
            encoding="utf-8"
        )
    card = trajectory_card(address.repo_id, records, split, sorted(others), model, before)
    api.create_commit(
        address.repo_id,
        [
            CommitOperationAdd(f"{FOLDER}/{split}.jsonl", lines),
            CommitOperationAdd("README.md", card.encode()),
        ],
        commit_message=f"Upload {len(records)} trajectories ({split})",
        repo_type="dataset",
    )
    return str(address)


def load_trajectories(
    source: str | os.PathLike[str], split: str = "train", revision: str | None = None, token: str | None = None
) -> list[Trajectory]:
    """
    Episodes of a file, or of a data set on the Hub that [`push_trajectories`] wrote.

    Args:
        source (`str` or `Path`):
            A `.jsonl` file of episodes ([`collect_trajectories`], an evaluation), or the id of a data set.
        split (`str`, *optional*, defaults to `"train"`):
            Part of the data set; a file has none.
        revision (`str`, *optional*):
            Branch, tag or commit of the data set.
        token (`str`, *optional*):
            Token of the Hub. `None` takes the one that is logged in.

    Returns:
        `list[Trajectory]`: In the order they were written, with the very token ids and log-probs.

    Raises:
        `FileNotFoundError`: if there is neither a file nor a data set of that name with that split.
        `ValueError`: if what is there holds no trajectories, or a split of a file is asked for.
    """
    path = trajectory_file(source, split, revision, token)
    return [Trajectory.from_dict(record) for record in read_records(path)]


def trajectory_file(
    source: str | os.PathLike[str], split: str = "train", revision: str | None = None, token: str | None = None
) -> Path:
    """Path of a local file of episodes, downloaded from the Hub if `source` is the id of a data set."""
    path = Path(source)
    if path.is_file():
        if split != "train":
            raise ValueError(
                f"split={split!r} is about a data set on the Hub, and {str(source)!r} is a file, which is read as a whole: leave it out."
            )
        return path
    name = str(source)
    if path.is_dir() or name.endswith(".jsonl") or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no file {name!r}: pass a .jsonl file of episodes, or the id of a data set.")
    _check_split(split)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        file = hf_hub_download(name, f"{FOLDER}/{split}.jsonl", repo_type="dataset", revision=revision, token=token)
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"There is neither a file nor a data set {name!r} on the Hub.") from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"There is no file {name!r}, and the Hub cannot be reached to look for a data set of that name: check the path or "
            "the connection."
        ) from None
    except EntryNotFoundError:
        raise FileNotFoundError(
            f"The data set {name!r} has no split {split!r} of trajectories (no {FOLDER}/{split}.jsonl)."
        ) from None
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no file {name!r}, and it is no id of the Hub: {error}") from None
    return Path(file)


def read_records(path: str | os.PathLike[str]) -> Iterable[dict[str, Any]]:
    """
    The episodes of a file as flat records: those of [`Trajectory.to_dict`], and the `prompt` where it is known. A last line that was being
    written when a process died is left out.

    Raises:
        `ValueError`: if a line holds no trajectory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    for _, record in read_json_lines(path, _ADVICE, skip_unfinished=True, read=_flat):
        yield record


_ADVICE = "pass a .jsonl file of episodes."


def _flat(record: Any) -> dict[str, Any]:
    found = record.get("trajectory") or record if isinstance(record, dict) else {}
    if not isinstance(found, dict) or "turns" not in found:
        raise ValueError(f"It holds no trajectory: {_ADVICE}")
    Trajectory.from_dict(found)  # refuses what is not one
    task = record.get("task")  # of an evaluation the row, of which `prompt_text` is what a template made
    prompt = record.get("prompt", task.get("prompt") if isinstance(task, dict) else None)
    told = {"prompt": prompt, "task": task if isinstance(task, str) else None}
    return {**{name: value for name, value in told.items() if value is not None}, **found}


def _check_split(split: str) -> None:
    if not split.replace("_", "").isalnum() or split == "all":  # by which `datasets` means all of them
        raise ValueError(
            f"split={split!r} is not a name for a split: use letters, digits and underscores, but not the word 'all'."
        )


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as every reader takes it: numbers that may have a fraction always have one, and a metric that is no number is left out."""
    told = record["metrics"].items()
    metrics = {name: float(value) for name, value in told if value is not None and math.isfinite(value)}
    reward = None if record["reward"] is None else float(record["reward"])
    return {**record, "reward": reward, "metrics": metrics}
