"""
The supervised stage: collect trajectories of any agent, keep the good ones, and make them rows for TRL's `SFTTrainer`.

```python
played = collect_trajectories(agent, tasks, make_env, "runs/teacher.jsonl", samples=4)
dataset = demonstration_dataset(select_trajectories(played, min_reward=2.0))
SFTTrainer(model, SFTConfig(max_length=None), train_dataset=dataset).train()
```
"""

from __future__ import annotations

import inspect
import logging
import math
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from .agent.description import differing_settings
from .environment_runtime.faults import as_reward
from .environment_runtime.pool import EnvironmentFactory, EnvironmentPool
from .environment_runtime.rows import own_copy
from .evaluation.evaluate import seeded, tasks_checksum
from .evaluation.finished import played_with, what_nothing_says
from .json_lines import drop_unfinished_line, read_json_lines
from .json_text import as_json, read_json_object, write_json, write_whole
from .rollout.draws import episode_seeds, seed_of_episode
from .trajectory import StopReason, Trajectory
from .typed_fields import check_seed, check_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .agent import Mem1Agent

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files that [`collect_trajectories`] writes."""

_Key = tuple[int, int]
"""The number of a row, and that of a sample of it."""

_LATER = ("tokenizer", "request_kwargs", "environments", "contents", "reward", "seed")
"""Settings that files of earlier versions do not have: they may be any."""

_PARTS = {"environments": "environment", "contents": "environment", "reward": "reward", "seed": "seed"}
"""What a setting is one of, unless it is one of the agent."""


def collect_trajectories(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
    path: str | os.PathLike[str],
    samples: int = 1,
    batch_size: int = 32,
    reward: Callable[[Trajectory, Mapping[str, Any]], float] | None = None,
    disable_tqdm: bool = False,
    seed: int | None = None,
) -> list[Trajectory]:
    """
    Play every row `samples` times and keep each episode as a line of JSON as soon as its batch has been played.

    Called again with the same arguments it goes on where it was stopped, and returns at once if nothing is left to do. An
    episode whose environment fails has `error` and no reward, is not written to the file, and is played again by the next call.
    Beside `path` stands a `.json` with the settings of the agent and of its environments; a file of another agent, another environment,
    another reward or other rows is refused.

    What a model in this process samples follows from the seed, the number of the row and that of the sample, whatever was played before: it does not
    matter how often a collection was stopped, and no sample that is added later is the copy of an earlier one.

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
            environment's `get_reward`. It is told from another by its name, and by what `functools.partial` gives it.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.
        seed (`int`, *optional*):
            Of sampling. `None` takes that of the file; for a new one it is drawn from PyTorch's generator, which `set_seed` sets.

    Returns:
        `list[Trajectory]`: `samples` for each row, in the order of the rows.

    Raises:
        `ValueError`: if there is no row, the file at `path` holds episodes of another agent, another environment, another reward, another seed or
            other rows, or the one beside it something else.
        `RuntimeError`: if another collection, of this program or of another one, is writing into the file.
    """
    tasks = [dict(row) for row in rows]
    if not tasks:
        raise ValueError("There is nothing to collect: the data set has no rows.")
    batch_size, samples = check_whole("batch_size", batch_size, least=1), check_whole("samples", samples, least=1)
    if inspect.iscoroutinefunction(reward):
        raise TypeError("reward must be an ordinary function, got an asynchronous one.")
    if seed is not None:
        check_seed(seed)
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"Trajectories are written as JSON lines: name the file {path.name}.jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Drawn for a file that has a seed, too, so that what the caller draws next is the same when its program is run again
    drawn = episode_seeds(1)[0] if seed is None else seed
    checksums = [tasks_checksum(as_json(task)) for task in tasks]
    pool = EnvironmentPool(environment_factory, agent.protocol, agent.faults)
    with ExitStack() as stack:
        stack.enter_context(closing(pool))
        settings = _claim(path, _settings(agent, pool, reward), seed, drawn)
        file = stack.enter_context(_only_writer(path))
        played = _recover(path, tasks, checksums, samples)
        wanted = [(row, sample) for row in range(len(tasks)) for sample in range(samples)]
        left = [key for key in wanted if key not in played]
        failures: list[str] = []
        progress = tqdm(
            total=len(wanted), initial=len(wanted) - len(left), desc="episodes", unit="episode", disable=disable_tqdm
        )
        with progress:
            for batch in _batches(agent, tasks, pool, left, batch_size, settings["seed"]):
                for key, trajectory in batch.items():
                    played[key], trajectory.task = trajectory, checksums[key[0]]
                    if trajectory.error is not None:  # not written: played again by the next call
                        failures.append(trajectory.error)
                        continue
                    if reward is not None:
                        played[key].reward = _own_reward(reward(played[key], own_copy(tasks[key[0]])))
                    file.write(_line(key, tasks[key[0]]["prompt"], played[key]))
                file.flush()
                progress.update(len(batch))
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
    stop_reasons: StopReason | str | Sequence[StopReason | str] | None = None,
) -> list[Trajectory]:
    """
    Keep the episodes that are worth imitating. Episodes whose environment failed never stay, and those without a reward only where none is needed.

    Args:
        trajectories (`Sequence[Trajectory]`):
            What was played.
        min_reward (`float`, *optional*):
            Keep episodes with at least this reward.
        best_per_task (`int`, *optional*):
            Of the episodes of the same task keep at most this many, the best rewarded and among equals the first, so that easy tasks do not
            crowd out hard ones. A task is a row of [`collect_trajectories`]; where that is not known, a task prompt.
        stop_reasons (`StopReason` or `Sequence[StopReason]`, *optional*):
            Keep episodes that ended so, for instance `["answer"]`.

    Returns:
        `list[Trajectory]`: In the order they came.

    Raises:
        `ValueError`: if a reward is needed and none is there, an argument is not of its range, or nothing is left.
    """
    if min_reward is not None and math.isnan(min_reward):
        raise ValueError(f"min_reward must be a number, got {min_reward}.")
    if best_per_task is not None and best_per_task < 1:
        raise ValueError(f"best_per_task must be at least 1, got {best_per_task}.")
    kept = [(place, t) for place, t in enumerate(trajectories) if t.error is None]
    if stop_reasons is not None:
        reasons = {StopReason(one) for one in ([stop_reasons] if isinstance(stop_reasons, str) else stop_reasons)}
        kept = [item for item in kept if item[1].stop_reason in reasons]
    if min_reward is not None or best_per_task is not None:
        scored = [item for item in kept if item[1].reward is not None and not math.isnan(item[1].reward)]
        if kept and not scored:
            raise ValueError(
                "No trajectory has a reward to select by: give the environment a `get_reward`, or pass `reward=` to "
                "`collect_trajectories`."
            )
        if len(scored) < len(kept):
            logger.warning(
                "Left out %d of %d trajectories, which have no reward to select by.",
                len(kept) - len(scored),
                len(kept),
            )
        kept = scored
    if min_reward is not None:
        kept = [item for item in kept if _reward(item[1]) >= min_reward]
    if best_per_task is not None:
        counts: dict[Any, int] = {}
        best = []
        for item in sorted(kept, key=lambda item: -_reward(item[1])):
            task = item[1].task or item[1].prompt_ids
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
    One row per turn, for TRL's [`~trl.SFTTrainer`]: the context as it was read, with loss on what was generated only. Episodes whose environment
    failed are left out, with a warning.

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
    too_long = failed = 0
    for episode, trajectory in enumerate(trajectories):
        if trajectory.error is not None:
            failed += 1
            continue
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
    if failed:
        logger.warning("Left out %d episodes whose environment failed.", failed)
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


def _settings(agent: Mem1Agent, pool: EnvironmentPool, reward: Callable[..., Any] | None) -> dict[str, Any]:
    """What decides the episodes beside their rows and their seed, ready for JSON."""
    played = played_with(pool, reward)
    return {
        **agent.describe(),
        "endpoint": agent.endpoint is not None,
        "vocabulary": len(agent.tokenizer),
        "environments": played["environments"],
        "contents": played["contents"],
        "reward": played["success"],  # both are functions that score, told apart by their names
    }


@contextmanager
def _only_writer(path: Path) -> Iterator[TextIO]:
    """
    The file, opened for more lines and held, so that no second collection plays the same episodes into it. The system lets go of it when the
    program ends.
    """
    with path.open("a", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{path} must be written by one collection at a time, but another one is still running: wait for it, or collect into a new file."
            ) from None
        except (ImportError, OSError):  # on Windows, and on a file system without locks
            pass
        yield file


def _claim(path: Path, settings: dict[str, Any], seed: int | None, drawn: int) -> dict[str, Any]:
    """
    Write the settings beside a new file, or compare them with those it was begun with.

    Returns:
        `dict[str, Any]`: The settings with their `seed`: that of the file, and `drawn` if it has none.
    """
    beside = path.with_suffix(".json")
    settings = as_json(settings)
    if path.exists() and beside.exists():
        found = read_json_object(beside, "use a new file, or write the settings again.")
        old = found.get("settings", {})
        _check_claim(path, found, settings if seed is None else {**settings, "seed": seed})
        if old.get("seed") is not None:
            return old
        settings = old
    elif path.exists() and path.stat().st_size:
        raise ValueError(f"{path} exists, but not {beside.name} with the settings it was made with: use a new file.")
    elif beside.exists() and not _is_claim(beside):
        raise ValueError(
            f"The settings of {path} are written to {beside}, which holds something else: name the file of trajectories otherwise."
        )
    settings = {**settings, "seed": drawn}
    write_whole(beside, write_json({"format": FORMAT, "settings": settings}, indent=2) + "\n")
    return settings


def _check_claim(path: Path, found: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse a file that was begun with other settings."""
    old = found.get("settings", {})
    unknown = {key for key in _LATER if key not in old} | {"seed"} - new.keys()
    differing = sorted(differing_settings(old, new, {*old, *new} - unknown))
    if found.get("format") != FORMAT or differing:
        parts = sorted({_PARTS.get(key, "agent") for key in differing or ["format"]})
        raise ValueError(
            f"{path} was begun with another {' and '.join(parts)} (other {', '.join(differing) or 'format'}): "
            "collect into a new file, or restore the settings."
        )
    unsaid = what_nothing_says(old, new)
    if unsaid is not None:
        logger.warning("%s goes on, though %s: collect into a new file if it may be something else.", path, unsaid)


def _is_claim(path: Path) -> bool:
    """Whether a file holds the settings of trajectories."""
    try:
        return read_json_object(path, "").keys() == {"format", "settings"}
    except ValueError:
        return False


def _batches(
    agent: Mem1Agent, tasks: list[dict[str, Any]], pool: EnvironmentPool, keys: list[_Key], batch_size: int, seed: int
) -> Iterator[dict[_Key, Trajectory]]:
    """Plays episodes, so many at once, each by a seed of its own."""
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        seeds = [seed_of_episode(seed, row, sample) for row, sample in batch]
        with seeded(agent, seeds[0]):  # from where options of sampling that take no seeds of episodes draw
            played = agent.run_batch([tasks[row] for row, _ in batch], pool, keep_failures=True, seeds=seeds)
        yield dict(zip(batch, played, strict=True))


def _own_reward(value: Any) -> float | None:
    """What a reward of the caller's gave: a number, or `None` for no score, also where the number is not finite."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return as_reward(value, source="reward") if is_finite else None


def _line(key: _Key, prompt: Any, trajectory: Trajectory) -> str:
    """An episode as a line of the file."""
    row, sample = key
    played = trajectory.to_dict()
    return (
        write_json({"row": row, "sample": sample, "prompt": prompt, "task": played.pop("task"), "trajectory": played})
        + "\n"
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a line that was being written when a process died is left out."""
    return [record for _, record in read_json_lines(path, _ADVICE, skip_unfinished=True, read=_record)]


_ADVICE = "repair or remove it."


def _record(value: Any) -> dict[str, Any]:
    """A record with its trajectory."""
    numbers = [value.get("row"), value.get("sample")] if isinstance(value, dict) else []
    if not numbers or not all(isinstance(number, int) for number in numbers) or "prompt" not in value:
        raise ValueError(f"It is not an episode with 'row', 'sample' and 'prompt': {_ADVICE}")
    trajectory = value.get("trajectory")
    told = {**trajectory, "task": value.get("task")} if isinstance(trajectory, dict) else {}
    return {**value, "trajectory": Trajectory.from_dict(told)}


def _recover(path: Path, tasks: list[dict[str, Any]], checksums: list[str], samples: int) -> dict[_Key, Trajectory]:
    """
    The episodes of a file by row and sample, as far as they are asked for; a last line that was cut off is removed from it.

    Raises:
        `ValueError`: If a row is another one now. Of a file of an earlier version only its prompt is known.
    """
    if not path.exists():
        return {}
    drop_unfinished_line(path)
    found: dict[_Key, Trajectory] = {}
    for record in _read(path):
        row, sample = record["row"], record["sample"]
        if row >= len(tasks) or sample >= samples:
            continue
        same_prompt = record["prompt"] == as_json(tasks[row]["prompt"])
        if not same_prompt or record.get("task") not in (None, checksums[row]):
            raise ValueError(
                f"{path} holds an episode about row {row}, {str(record['prompt'])!r:.80}, which is another row now"
                f"{' in columns beside its prompt' if same_prompt else ''}: collect into a new file, or pass the rows it was begun with."
            )
        found[row, sample] = record["trajectory"]
        found[row, sample].task = checksums[row]
    return found
