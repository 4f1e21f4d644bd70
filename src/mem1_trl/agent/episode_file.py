"""An episode in progress as a JSON file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..curriculum import MAX_TURNS, turn_limit
from ..environment_runtime.actions import ActionResult
from ..json_text import as_json, is_json, read_json_object, write_json, write_whole
from ..protocol.parsed_turn import ActionRequest
from ..rollout.episode import Episode
from ..rollout.external_memory import ExternalMemory, Note
from ..rollout.interventions import forgettable_turns
from ..rollout.settings import AgentSettings
from ..rollout.turn_loop import trajectory_of
from ..trajectory import Trajectory

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from ..rollout.turn_loop import Rollout

_ADVICE = "it is not a file that `episode.save` wrote."
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class SavedEpisode:
    """
    What a file holds.

    Attributes:
        episode ([`Episode`]):
            The episode, without environment and actions.
        record (`Mapping`):
            For the record of the syntax.
        row (`dict`):
            What the environment was reset with.
        reward (`float` or `None`):
            Its reward, if it has ended.
        seconds (`float`):
            Wall time of its turns.
        environment_state (`Any`):
            What `mem1_state` of the environment was; `None` if it had none.
        schemas (`list[dict]` or `None`):
            Its tools, if they run elsewhere.
        calls (`list[ActionRequest]`):
            Calls whose results are still to be given.
        turns_left (`int`):
            Turns after those calls.
        results (`list[ActionResult | None]`):
            For each of those calls, the result that it has already, such as that of an action of the context rule.
        actions (`list[str]` or `None`):
            What each of its actions was described by; `None` if it had none, or an earlier version wrote it.
    """

    episode: Episode
    record: Mapping[str, Any]
    row: dict[str, Any]
    reward: float | None
    seconds: float
    environment_state: Any
    schemas: list[dict[str, Any]] | None = None
    calls: list[ActionRequest] = dataclasses.field(default_factory=list)
    turns_left: int = 0
    results: list[ActionResult | None] = dataclasses.field(default_factory=list)
    actions: list[str] | None = None


class OtherAgentError(ValueError):
    """Raised for an episode of an agent that was run in another way, so that this one cannot go on with it."""


def write_episode(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write the record of an episode to a file, whole or not at all."""
    write_whole(path, write_json(record) + "\n")


def episode_record(
    rollout: Rollout,
    episode: Episode,
    row: Mapping[str, Any],
    reward: float | None,
    seconds: float,
    state: Any = None,
    past: bool = True,
) -> dict[str, Any]:
    """
    An episode and the state of its environment, ready for JSON; without `past`, without the turns that no later context can hold.

    Raises:
        `ValueError`: If the row or the state of the environment is not made of JSON values.
    """
    for name, value in {**row, "mem1_state": state}.items():
        if not is_json(value):
            raise ValueError(f"{name!r} must be made of JSON values for the episode to be saved, got {value!r:.80}.")
    dropped = 0 if past else forgettable_turns(rollout, episode)
    trajectory = trajectory_of(episode)
    trajectory.turns = trajectory.turns[dropped:]
    return {
        "mem1_episode": _VERSION,
        "settings": rollout.settings.to_dict(),
        "protocol": rollout.protocol.to_dict(),
        "row": dict(row),
        "prompt": episode.prompt,
        "prompt_ids": episode.prompt_ids,
        "began": episode.began,
        "trajectory": {**trajectory.to_dict(), "reward": reward, "metrics": {}},
        "history": episode.history[dropped:],
        "tails": episode.tails[dropped:],
        "rounds": [one - dropped for one in episode.rounds if one > dropped],
        "forgotten_turns": episode.turns_taken(dropped),
        "max_turns": rollout.settings.max_turns,
        "budgets": [[turns - dropped, most] for turns, most in episode.budgets if turns > dropped],
        "seed": None if episode.seed is None else (episode.seed + dropped) % 2**62,
        "actions": None if episode.actions is None else episode.actions.describe(),
        "failed_actions": episode.failed_actions,
        "recalled": episode.recalled,
        "notes": [dataclasses.asdict(note) for note in episode.memory.notes],
        "record": episode.record.to_dict(dropped),
        "seconds": seconds,
        "environment_state": state,
    }


def read_episode(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    The record of an episode that a file holds.

    Raises:
        `FileNotFoundError`: If there is no file.
        `ValueError`: If it is not one of JSON.
    """
    return read_json_object(path, _ADVICE)


def saved_episode(
    record: Mapping[str, Any], path: Any, settings: AgentSettings, protocol: Mapping[str, Any], max_turns: int
) -> SavedEpisode:
    """
    Read an episode from its record. From here on it may have another number of turns.

    Args:
        record (`Mapping`):
            What [`episode_record`] returned.
        path (`Any`):
            What the record is called in errors.
        settings ([`AgentSettings`]):
            Those of the agent that will play on.
        protocol (`Mapping`):
            Its protocol, as `to_dict` writes it.
        max_turns (`int`):
            Turns that an answer may take from here on.

    Raises:
        `ValueError`: If it holds no episode.
        [`OtherAgentError`]: If it is that of an agent with other settings or another protocol.
    """
    if record.get("mem1_episode") != _VERSION:
        raise ValueError(f"{path} must have the field 'mem1_episode' with the value {_VERSION}: {_ADVICE}")
    ours = {"settings": as_json(settings.to_dict()), "protocol": as_json(protocol)}
    for kind, mine in ours.items():
        theirs = record.get(kind) or {}
        for name in mine:
            if name != "max_turns" and mine[name] != theirs.get(name):
                raise OtherAgentError(
                    f"The agent must run as when {path} was saved, but {name} of its {kind} was {theirs.get(name)!r:.80} and is "
                    f"{mine[name]!r:.80}: give it what it had, or begin another."
                )
    try:
        played = Trajectory.from_dict(record["trajectory"])
        episode = Episode(
            prompt_ids=list(record["prompt_ids"]),
            prompt=record["prompt"],
            began=record.get("began"),
            memory=ExternalMemory([Note(note["query"], note["text"], tuple(note["ids"])) for note in record["notes"]]),
            recalled=list(record["recalled"]),
            turns=played.turns,
            history=[list(ids) for ids in record["history"]],
            stop_reason=played.stop_reason,
            answer=played.answer,
            failed_actions=int(record["failed_actions"]),
            error=played.error,
            rounds=list(record["rounds"]),
            forgotten_turns=int(record.get("forgotten_turns", 0)),
            tails=list(record["tails"]),
            seed=record["seed"],
            max_turns=turn_limit(record["row"].get(MAX_TURNS)),
        )
        most = int(record.get("max_turns", record["settings"]["max_turns"]))
        episode.budgets = [(int(turns), int(before)) for turns, before in record.get("budgets", ())]
        more = episode.most_turns(max_turns) - episode.most_turns(most)
        if most != max_turns and episode.turns:
            episode.budgets.append((len(episode.turns), most))
        return SavedEpisode(
            episode,
            record["record"],
            dict(record["row"]),
            played.reward,
            float(record["seconds"]),
            record["environment_state"],
            record.get("schemas"),
            [ActionRequest(**call) for call in record.get("calls", ())],
            max(int(record.get("turns_left", 0)) + more, 0),
            [None if result is None else ActionResult(**result) for result in record.get("results", ())],
            record.get("actions"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): {_ADVICE}") from None
