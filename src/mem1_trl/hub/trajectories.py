"""
Data sets of trajectories on the Hub: JSON lines, one episode each, under a card.

```python
push_trajectories("me/lookups", "runs/teacher.jsonl")
trajectories = load_trajectories("me/lookups")  # or datasets.load_dataset("me/lookups")
```
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_lines import read_json_lines
from ..json_text import write_json
from ..trajectory import Trajectory
from ..version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

FOLDER = "data"
"""Folder of a repository with `<split>.jsonl`."""

_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
_COLUMNS = {
    "prompt": "the row's `prompt`: a text or messages (where it is known)",
    "turns": "one entry for each call of the model: `prompt_ids` and `completion_ids` as they were read and sampled, `logprobs`, "
    "`text`, `state`, `action`, `action_input`, `observation`, how many tokens `state` and `observation` take, what a summary replaced, and the chat "
    "`messages` that were sent in place of `prompt_ids`, if a server rendered them",
    "reward": "of the whole episode",
    "stop_reason": "why it ended",
    "answer": "what the agent answered, if it did",
    "metrics": "numbers about the episode, such as `peak_tokens`",
    "error": "what failed, if the environment or the server of the model did",
}


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
    lines = "".join(_line(record) + "\n" for record in records).encode()
    api = HfApi(token=token)
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    others = {
        Path(name).stem
        for name in api.list_repo_files(address.repo_id, repo_type="dataset")
        if name.startswith(f"{FOLDER}/") and name.endswith(".jsonl")
    }
    card = _card(address.repo_id, records, split, sorted({*others, split}), model)
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
    The episodes of a file as flat records: those of [`Trajectory.to_dict`], and the `prompt` where it is known.

    Raises:
        `ValueError`: if a line holds no trajectory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    for _, record in read_json_lines(path, _ADVICE, read=_flat):
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
    if not split.replace("_", "").isalnum():
        raise ValueError(f"split={split!r} is no name of a split: use letters, digits and underscores.")


def _line(record: dict[str, Any]) -> str:
    """A record as JSON that every reader takes: a metric that is no number is left out."""
    metrics = {name: value for name, value in record["metrics"].items() if value is not None and math.isfinite(value)}
    return write_json({**record, "metrics": metrics})


def _card(repo_id: str, records: list[dict[str, Any]], split: str, splits: list[str], model: str | None) -> str:
    """The data set's README.md."""
    from huggingface_hub import DatasetCardData

    size = next((name for bound, name in _SIZES if len(records) < bound), "n>1M")
    data = DatasetCardData(
        pretty_name=f"{repo_id.split('/')[-1]}: MEM1 trajectories",
        tags=["trl", "mem1", "trajectories", "agent"],
        task_categories=["text-generation"],
        size_categories=[size],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{FOLDER}/{name}.jsonl"} for name in splits],
            }
        ],
    )
    turns = sum(len(record["turns"]) for record in records)
    generated = sum(len(turn["completion_ids"]) for record in records for turn in record["turns"])
    rewards = [record["reward"] for record in records if record["reward"] is not None]
    stops: dict[str, int] = {}
    for record in records:
        stops[record["stop_reason"]] = stops.get(record["stop_reason"], 0) + 1
    facts = {
        "episodes": f"{len(records):,}",
        "turns": f"{turns:,}",
        "generated tokens": f"{generated:,}",
        "mean reward": f"{sum(rewards) / len(rewards):.3f}" if rewards else "not scored",
        "ended by": ", ".join(f"{name} {count}" for name, count in sorted(stops.items(), key=lambda item: -item[1])),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    columns = "\n".join(f"- `{name}`: {what}" for name, what in _COLUMNS.items())
    which = "" if split == "train" else f', split="{split}"'
    played = (
        f"Played by [{model}](https://huggingface.co/{model}), whose tokenizer the token ids belong to.\n\n"
        if model
        else ""
    )
    body = textwrap.dedent("""\
        # {title}

        Episodes of an agent that rewrites its context every turn ([MEM1](https://arxiv.org/abs/2506.15841)), written by
        mem1-trl {version}. Each turn has the exact token ids that were read and sampled, so that they can be scored, trained on or
        shown without encoding anything again.

        {played}Split `{split}`:

        | | |
        |---|---|
        {table}

        ```python
        from mem1_trl import load_trajectories
        from mem1_trl.demonstrations import demonstration_dataset

        trajectories = load_trajectories("{repo_id}"{which})
        dataset = demonstration_dataset(trajectories)  # rows for trl.SFTTrainer, one for each turn
        ```

        ## Columns

        {columns}
        """)
    body = body.format(
        title=repo_id.split("/")[-1], version=__version__, played=played, split=split, table=table, repo_id=repo_id,
        which=which, columns=columns,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
