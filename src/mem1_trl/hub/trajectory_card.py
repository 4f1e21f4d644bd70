"""The card of a data set of trajectories: its splits with their sizes, and the types of its columns."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo, Features, List, Value
from datasets.info import DatasetInfosDict

from ..version import __version__

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

_TABLE = re.compile(r"^Split `(\w+)`:\n\n((?:\|.*\n)+)", re.MULTILINE)
"""Name and table of each split in a card."""
_EPISODES = re.compile(r"^\| episodes \| ([\d,]+) \|$", re.MULTILINE)


def trajectory_card(
    repo_id: str,
    records: Sequence[Mapping[str, Any]],
    split: str,
    others: Sequence[str],
    model: str | None,
    before: str | None = None,
) -> str:
    """
    The README.md of a data set of trajectories.

    Args:
        repo_id (`str`):
            Its id.
        records (`Sequence[Mapping]`):
            The episodes of a split, as they are written.
        split (`str`):
            Name of the split.
        others (`Sequence[str]`):
            Names of the other splits.
        model (`str` or `None`):
            Model that played.
        before (`str`, *optional*):
            The README.md that knew the other splits.
    """
    from huggingface_hub import DatasetCardData

    tables = {name: table for name, table in _TABLE.findall(before or "") if name in others}
    tables[split] = _table(records)
    splits = sorted({*others, split})
    counts = [_episodes(tables.get(name, "")) for name in splits]
    total = None if None in counts else sum(count for count in counts if count is not None)
    size = None if total is None else [next((name for bound, name in _SIZES if total < bound), "n>1M")]
    data = DatasetCardData(
        pretty_name=f"{repo_id.split('/')[-1]}: MEM1 trajectories",
        tags=["trl", "mem1", "trajectories", "agent"],
        task_categories=["text-generation"],
        size_categories=size,
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{FOLDER}/{name}.jsonl"} for name in splits],
            }
        ],
    )
    features = _features(records, before, bool(others))
    if features is not None:
        DatasetInfosDict({"default": DatasetInfo(features=features)}).to_dataset_card_data(data)
    table = "\n\n".join(f"Split `{name}`:\n\n{tables[name].strip()}" for name in splits if name in tables)
    columns = "\n".join(f"- `{name}`: {what}" for name, what in _COLUMNS.items())
    which = "" if split == "train" else f', split="{split}"'
    played = "" if model is None else f"Played by {_linked(model)}, whose tokenizer the token ids belong to.\n\n"
    body = textwrap.dedent("""\
        # {title}

        Episodes of an agent, turn by turn, written by mem1-trl {version}. Each turn has the exact token ids that were read and sampled, so that they can be scored, trained on or
        shown without encoding anything again.

        {played}{table}

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
        title=repo_id.split("/")[-1], version=__version__, played=played, table=table, repo_id=repo_id,
        which=which, columns=columns,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _linked(model: str) -> str:
    """A model as its page; a folder of the machine is of no use to others, and its name alone is told."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
        is_id = "/" in model and not Path(model).exists()
    except HFValidationError:
        is_id = False
    if is_id:
        return f"[{model}](https://huggingface.co/{model})"
    return f"`{Path(model).name}`"


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """Size, reward and ends of the episodes of a split."""
    turns = sum(len(record["turns"]) for record in records)
    generated = sum(len(turn["completion_ids"]) for record in records for turn in record["turns"])
    rewards = [record["reward"] for record in records if record["reward"] is not None]
    stops = Counter(record["stop_reason"] or "not ended" for record in records)
    facts = {
        "episodes": f"{len(records):,}",
        "turns": f"{turns:,}",
        "generated tokens": f"{generated:,}",
        "mean reward": f"{sum(rewards) / len(rewards):.3f}" if rewards else "not scored",
        "ended by": ", ".join(f"{name} {count}" for name, count in stops.most_common()),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _episodes(table: str) -> int | None:
    """How many episodes a table tells of."""
    found = _EPISODES.search(table)
    return None if found is None else int(found[1].replace(",", ""))


def _features(records: Sequence[Mapping[str, Any]], before: str | None, has_others: bool) -> Features | None:
    """
    The types of the columns, without which `datasets` takes those of the first lines it reads, and fails at a line with more. `None` if they are not of
    one type, or not known of the other splits.
    """
    from huggingface_hub import DatasetCard

    try:
        own = Dataset.from_list([dict(record) for record in records]).features
    except (ValueError, TypeError):  # as prompts of which some are texts and some are messages
        return None
    if not has_others:
        return own
    told = DatasetInfosDict.from_dataset_card_data(DatasetCard(before or "").data).get("default")
    if told is None or told.features is None:
        return None
    try:
        return Features(_merged(dict(told.features), dict(own)))
    except ValueError:
        return None


def _merged(one: Any, other: Any) -> Any:
    """Types that hold what two others do."""
    if one == other or other == Value("null"):
        return one
    if one == Value("null"):
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            name: _merged(one.get(name, other.get(name)), other.get(name, one.get(name))) for name in {**one, **other}
        }
    if isinstance(one, List) and isinstance(other, List):
        return List(_merged(one.feature, other.feature))
    raise ValueError(f"{one} and {other} have no type in common.")
