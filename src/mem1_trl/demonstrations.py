"""
The supervised stage: collect trajectories of any agent, keep the good ones, and make them rows for TRL's `SFTTrainer`.

```python
played = collect_trajectories(agent, tasks, make_env, "runs/teacher.jsonl", samples=4)
dataset = demonstration_dataset(select_trajectories(played, min_reward=2.0))
SFTTrainer(model, SFTConfig(max_length=None), train_dataset=dataset).train()
```
"""

from __future__ import annotations

import logging
import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from .environment_runtime.pool import EnvironmentFactory, EnvironmentPool
from .evaluation.finished import played_with
from .json_lines import drop_unfinished_line, read_json_lines
from .json_text import as_json, read_json_object, write_json, write_whole
from .trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .agent import Mem1Agent

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files that [`collect_trajectories`] writes."""

_OF_ENVIRONMENTS = ("environments", "contents")
"""Settings about environments, which older files do not have."""


def collect_trajectories(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
    path: str | os.PathLike[str],
    samples: int = 1,
    batch_size: int = 32,
    reward: Callable[[Trajectory, Mapping[str, Any]], float] | None = None,
    disable_tqdm: bool = False,
) -> list[Trajectory]:
    """
    Play every row `samples` times and keep each episode as a line of JSON as soon as its batch has been played.

    Called again with the same arguments it goes on where it was stopped, and returns at once if nothing is left to do. An
    episode whose environment fails has `error` and no reward, is not written to the file, and is played again by the next call.
    Beside `path` stands a `.json` with the settings of the agent and of its environments; a file of another agent, another environment or
    other rows is refused.

    Args:
        agent ([`Mem1Agent`]):
            A local model or an endpoint. At temperature 0 all samples of a row are alike.
        rows (`Iterable[Mapping]`):
            Dataset rows with a `prompt` and whatever `reset` wants.
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes an environment; with a dictionary, each row names its environment in the column `environment`.
        path (`str` or `Path`):
            File to write, ending in `.jsonl`.
        samples (`int`, *optional*, defaults to `1`):
            Episodes for each row.
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once, and lost at most if the process dies.
        reward (`Callable`, *optional*):
            Scores an episode, given it and its row; an episode whose score is not finite is not scored. `None` leaves that to the
            environment's `get_reward`.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        `list[Trajectory]`: `samples` for each row, in the order of the rows.

    Raises:
        `ValueError`: if there is no row, the file at `path` holds episodes of another agent, another environment or other rows, or the one beside it something
            else.
    """
    tasks = [dict(row) for row in rows]
    if not tasks:
        raise ValueError("There is nothing to collect: the data set has no rows.")
    if samples < 1:
        raise ValueError(f"samples={samples} plays nothing: use 1 or more.")
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"Trajectories are written as JSON lines: name the file {path.name}.jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {**agent.describe(), "endpoint": agent.endpoint is not None, "vocabulary": len(agent.tokenizer)}
    pool = EnvironmentPool(environment_factory, agent.protocol, agent.faults)
    try:
        played_in = played_with(pool, None)
        _claim(path, {**described, **{name: played_in[name] for name in _OF_ENVIRONMENTS}})
    except BaseException:
        pool.close()
        raise
    records = _recover(path)
    records = {key: record for key, record in records.items() if key[0] < len(tasks) and key[1] < samples}
    for (row, _), record in records.items():
        prompt = record["prompt"]
        if prompt != as_json(tasks[row]["prompt"]):
            raise ValueError(
                f"{path} holds an episode about row {row}, {str(prompt)!r:.80}, which is another row now: collect into a "
                "new file, or pass the rows it was begun with."
            )

    played = {key: record["trajectory"] for key, record in records.items()}
    wanted = [(row, sample) for row in range(len(tasks)) for sample in range(samples)]
    left = [key for key in wanted if key not in played]
    failures: list[str] = []
    progress = tqdm(
        total=len(wanted), initial=len(wanted) - len(left), desc="episodes", unit="episode", disable=disable_tqdm
    )
    with progress, path.open("a", encoding="utf-8") as file, closing(pool):
        for start in range(0, len(left), batch_size):
            keys = left[start : start + batch_size]
            batch = [tasks[row] for row, _ in keys]
            for key, task, trajectory in zip(keys, batch, agent.run_batch(batch, pool, keep_failures=True)):
                played[key] = trajectory
                if trajectory.error is not None:  # not written: played again by the next call
                    failures.append(trajectory.error)
                    continue
                if reward is not None:
                    value = float(reward(trajectory, task))
                    trajectory.reward = value if math.isfinite(value) else None  # not scored
                record = {
                    "row": key[0],
                    "sample": key[1],
                    "prompt": task["prompt"],
                    "trajectory": trajectory.to_dict(),
                }
                file.write(write_json(record) + "\n")
            file.flush()
            progress.update(len(keys))
            scored = [trajectory.reward for trajectory in played.values() if trajectory.reward is not None]
            if scored:
                progress.set_postfix(reward=f"{sum(scored) / len(scored):.2f}")
    if failures:
        logger.warning(
            "%d of %d episodes failed, the first of them with: %s. They are not in %s; call again to play them again.",
            len(failures),
            len(left),
            failures[0],
            path,
        )
    return [played[key] for key in wanted]


def read_trajectories(path: str | os.PathLike[str]) -> list[Trajectory]:
    """The episodes of a file that [`collect_trajectories`] wrote, in the order they were played."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: collect it with `collect_trajectories`.")
    return [record["trajectory"] for record in _read(path)]


def select_trajectories(
    trajectories: Sequence[Trajectory],
    min_reward: float | None = None,
    best_per_task: int | None = None,
    stop_reasons: Sequence[StopReason | str] | None = None,
) -> list[Trajectory]:
    """
    Keep the episodes that are worth imitating. Episodes whose environment failed never stay.

    Args:
        trajectories (`Sequence[Trajectory]`):
            What was played.
        min_reward (`float`, *optional*):
            Keep episodes with at least this reward.
        best_per_task (`int`, *optional*):
            Of the episodes with the same task prompt keep at most this many, the best rewarded and among equals the first,
            so that easy tasks do not crowd out hard ones.
        stop_reasons (`Sequence[StopReason]`, *optional*):
            Keep episodes that ended so, for instance `["answer"]`.

    Returns:
        `list[Trajectory]`: In the order they came.

    Raises:
        `ValueError`: if a reward is needed and missing, or nothing is left.
    """
    kept = [(place, t) for place, t in enumerate(trajectories) if t.error is None]
    if (min_reward is not None or best_per_task is not None) and any(t.reward is None for _, t in kept):
        raise ValueError(
            "Some trajectories have no reward to select by: give the environment a `get_reward`, or pass `reward=` to "
            "`collect_trajectories`."
        )
    if stop_reasons is not None:
        reasons = {StopReason(reason) for reason in stop_reasons}
        kept = [item for item in kept if item[1].stop_reason in reasons]
    if min_reward is not None:
        kept = [item for item in kept if _reward(item[1]) >= min_reward]
    if best_per_task is not None:
        counts: dict[tuple[int, ...], int] = {}
        best = []
        for item in sorted(kept, key=lambda item: -_reward(item[1])):
            task = item[1].prompt_ids
            counts[task] = counts.get(task, 0) + 1
            if counts[task] <= best_per_task:
                best.append(item)
        kept = sorted(best, key=lambda item: item[0])
    if not kept:
        rewards = [t.reward for t in trajectories if t.reward is not None]
        reached = f"; the best reward is {max(rewards):g}" if rewards else ""
        raise ValueError(f"None of {len(trajectories)} trajectories is kept{reached}: ask for less, or collect more.")
    logger.info("Kept %d of %d trajectories.", len(kept), len(trajectories))
    return [trajectory for _, trajectory in kept]


def demonstration_dataset(trajectories: Sequence[Trajectory], max_length: int | None = None) -> Dataset:
    """
    One row per turn, for TRL's [`~trl.SFTTrainer`]: the context as it was read, with loss on what was generated only.

    A turn with the context 5 6 7 and the completion 8 9 becomes

    ```python
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, -100, 8, 9], "episode": 0, "turn": 0, "reward": 1.0}
    ```

    `SFTTrainer` takes such rows as they are, so nothing is decoded and encoded again. Train with
    `SFTConfig(max_length=None)`: by default TRL cuts rows at 1,024 tokens, and what it cuts off is the completion.

    Args:
        trajectories (`Sequence[Trajectory]`):
            The demonstrations, in the token ids of the model that learns.
        max_length (`int`, *optional*):
            Leave out episodes with a turn that is longer, with a warning.

    Returns:
        `datasets.Dataset`: columns `input_ids` and `labels` (of equal length), `episode` and `turn` (counted from 0), `reward`
        (`nan` if the episode has none). No row is empty of loss.
    """
    rows = []
    too_long = 0
    for episode, trajectory in enumerate(trajectories):
        lengths = [len(turn.prompt_ids) + len(turn.completion_ids) for turn in trajectory.turns]
        if max_length is not None and max(lengths, default=0) > max_length:
            too_long += 1
            continue
        for place, turn in enumerate(trajectory.turns):
            rows.append(
                {
                    "input_ids": [*turn.prompt_ids, *turn.completion_ids],
                    "labels": [-100] * len(turn.prompt_ids) + list(turn.completion_ids),
                    "episode": episode,
                    "turn": place,
                    "reward": float("nan") if trajectory.reward is None else trajectory.reward,
                }
            )
    if too_long:
        logger.warning("Left out %d episodes with a turn of more than %d tokens.", too_long, max_length)
    if not rows:
        raise ValueError(
            "There is no demonstration to learn from: pass at least one trajectory"
            + (f" whose turns have at most max_length={max_length} tokens." if too_long else ".")
        )
    features = Features(
        {
            "input_ids": List(Value("int32")),
            "labels": List(Value("int32")),
            "episode": Value("int32"),
            "turn": Value("int32"),
            "reward": Value("float32"),
        }
    )
    return Dataset.from_list(rows, features=features)


def _reward(trajectory: Trajectory) -> float:
    assert trajectory.reward is not None
    return trajectory.reward


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings beside a new file, or compare them with those it was begun with."""
    beside = path.with_suffix(".json")
    settings = as_json({"format": FORMAT, "settings": settings})
    if path.exists() and beside.exists():
        found = read_json_object(beside, "use a new file, or write the settings again.")
        old, new = found.get("settings", {}), settings["settings"]
        later = {key for key in _OF_ENVIRONMENTS if key not in old}
        differing = sorted(key for key in {*old, *new} - later if old.get(key) != new.get(key))
        if found.get("format") != FORMAT or differing:
            of_environments = differing and set(differing) <= set(_OF_ENVIRONMENTS)
            raise ValueError(
                f"{path} was begun with another {'environment' if of_environments else 'agent'} (other {', '.join(differing) or 'format'}): "
                "collect into a new file, or restore the settings."
            )
    elif path.exists() and path.stat().st_size:
        raise ValueError(f"{path} exists, but not {beside.name} with the settings it was made with: use a new file.")
    else:
        if beside.exists() and not _is_claim(beside):
            raise ValueError(
                f"The settings of {path} are written to {beside}, which holds something else: name the file of trajectories otherwise."
            )
        write_whole(beside, write_json(settings, indent=2) + "\n")


def _is_claim(path: Path) -> bool:
    """Whether a file holds the settings of trajectories."""
    try:
        return read_json_object(path, "").keys() == {"format", "settings"}
    except ValueError:
        return False


def _read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a line that was being written when a process died is left out."""
    return [record for _, record in read_json_lines(path, _ADVICE, skip_unfinished=True, read=_record)]


_ADVICE = "repair or remove it."


def _record(value: Any) -> dict[str, Any]:
    """A record with its trajectory."""
    numbers = [value.get("row"), value.get("sample")] if isinstance(value, dict) else []
    if not numbers or not all(isinstance(number, int) for number in numbers) or "prompt" not in value:
        raise ValueError(f"It is not an episode with 'row', 'sample' and 'prompt': {_ADVICE}")
    return {**value, "trajectory": Trajectory.from_dict(value.get("trajectory", {}))}


def _recover(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The records of a file by row and sample; a last line that was cut off is removed from it."""
    if not path.exists():
        return {}
    drop_unfinished_line(path)
    return {(record["row"], record["sample"]): record for record in _read(path)}
