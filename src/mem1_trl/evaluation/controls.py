"""
What a few constants do to a model: the control for every claim that training taught it something.

If one constant on a logit, or another temperature, makes the untrained model as good as the trained one, then training has moved one decision and
taught no skill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environment_runtime.pool import EnvironmentFactory
from ..json_text import read_json_object, write_json, write_whole
from ..protocol.encoding import decode, tokens_of_span
from ..rollout.settings import AgentSettings
from ..typed_fields import check_fields
from .evaluate import evaluate_agent
from .result import Evaluation

if TYPE_CHECKING:
    from ..agent import Mem1Agent
    from ..trajectory import Trajectory

Token = str | int


@dataclass(frozen=True, slots=True)
class ScalarControl:
    """
    The best of the settings that were tried.

    Attributes:
        settings ([`AgentSettings`]):
            Those of the agent with the temperature and the constants that scored best: assign them to `agent.settings`.
        temperature (`float`):
            The best temperature.
        constants (`dict[str, float]`):
            What is added to the logit of each token, in nats. Empty if no constant made it better.
        score (`float`):
            Mean score with them on the tasks of the search, so too high by chance: measure them on other tasks.
        tried (`list[dict]`):
            `{"temperature", "constants", "score"}` of every setting, in order.
    """

    settings: AgentSettings
    temperature: float
    constants: dict[str, float]
    score: float
    tried: list[dict[str, Any]] = field(default_factory=list)

    def apply(self, settings: AgentSettings) -> AgentSettings:
        """Other settings, such as those of a longer task, with this temperature and these constants; all else stays as it is there."""
        found = _biases(self.settings)  # those of the agent of the search, too
        return _with_biases(settings, self.temperature, {**_biases(settings), **found} if found else {})

    def save(self, path: str | Path) -> None:
        """Write the control to a JSON file, as a whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write_json(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ScalarControl:
        """
        Read what [`~ScalarControl.save`] has written.

        Raises:
            `ValueError`: If the file holds something else.
        """
        record = read_json_object(path, "search it again.")
        if isinstance(record.get("settings"), dict):
            record["settings"] = AgentSettings.from_dict(record["settings"])
        check_fields(record, cls, f"The control in {path}", "search it again.")
        return cls(**record)


def search_scalar_control(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
    tokens: Sequence[Token],
    *,
    values: Sequence[float] = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0),
    temperatures: Sequence[float] = (0.0, 0.5, 1.0),
    most: int = 2,
    score: Callable[[Evaluation], float] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    on_setting: Callable[[dict[str, Any]], None] | None = None,
    tried: Iterable[Mapping[str, Any]] = (),
) -> ScalarControl:
    """
    Find the constants on logits and the temperature with which a model scores best, without training it.

    One constant after the other, each the best beside those found before and at whichever temperature is best with it, as long as the score
    rises: what a constant does depends on the temperature. It takes `len(temperatures) * (1 + len(tokens) * len(values))`
    evaluations for the first.

    Args:
        agent ([`Mem1Agent`]):
            The untrained agent, with a model in this process. Its settings are put back.
        rows (`Iterable[Mapping]`):
            Tasks of a validation split, as for [`evaluate_agent`].
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes an environment.
        tokens (`Sequence[str or int]`):
            Tokens whose logits may be moved, as texts or ids: those that end an episode, open an action, or stand for what is picked. A text of
            several tokens moves the last one wherever the others come before it.
        values (`Sequence[float]`, *optional*):
            Constants to try, in nats.
        temperatures (`Sequence[float]`, *optional*, defaults to `(0.0, 0.5, 1.0)`):
            Temperatures to try; 0 is greedy.
        most (`int`, *optional*, defaults to `2`):
            Maximum number of tokens that are moved at once.
        score (`Callable[[Evaluation], float]`, *optional*):
            What to raise. `None` takes the mean reward.
        batch_size, seed (*optional*):
            As in [`evaluate_agent`].
        on_setting (`Callable[[dict], None]`, *optional*):
            Called with each entry of `tried` as it is made.
        tried (`Iterable[Mapping]`, *optional*):
            What `on_setting` was given in a search with the same arguments that was interrupted: these settings are not tried again.

    Returns:
        [`ScalarControl`]

    Raises:
        `ValueError`: If nothing is to be tried, a text is no token, the model writes a text of several tokens in others than those it is
            encoded to, so that its constant would move nothing, or the model is behind a server.
    """
    if not temperatures:
        raise ValueError("temperatures must hold at least one, such as 0.0.")
    if getattr(agent.model, "generate", None) is None:
        raise ValueError(
            "Constants are added to the logits of a model in this process, but this agent calls a server."
        )
    rows = [dict(row) for row in rows]
    measured = score or _mean_reward
    before, ids = agent.settings, {_name(agent, token): _ids(agent, token) for token in tokens}
    known = {_setting(one["temperature"], one["constants"]): one["score"] for one in tried}
    found_so_far: list[dict[str, Any]] = []

    def settings_with(temperature: float, constants: Mapping[str, float]) -> AgentSettings:
        # Beside those that the agent has already, such as of an earlier control
        biases = _biases(before) if constants else {}
        for name, value in constants.items():
            biases[tuple(ids[name])] = biases.get(tuple(ids[name]), 0.0) + float(value)
        return _with_biases(before, temperature, biases)

    def attempt(temperature: float, constants: dict[str, float]) -> float:
        setting = _setting(temperature, constants)
        is_new = setting not in known
        if is_new:
            agent.settings = settings_with(temperature, constants)
            evaluation = evaluate_agent(agent, rows, environment_factory, batch_size, seed=seed, resamples=1)
            if not known:
                _check_spelling(agent, ids, evaluation.trajectories)
            known[setting] = measured(evaluation)
        found_so_far.append({"temperature": temperature, "constants": constants, "score": known[setting]})
        if is_new and on_setting is not None:
            on_setting(found_so_far[-1])
        return known[setting]

    try:
        constants: dict[str, float] = {}
        best, temperature = max(((attempt(one, {}), one) for one in temperatures), key=lambda pair: pair[0])
        for _ in range(most):
            options = [{**constants, name: value} for name in ids if name not in constants for value in values]
            found = [(attempt(one, option), one, option) for option in options for one in temperatures]
            if not found or max(score for score, *_ in found) <= best:
                break
            best, temperature, constants = max(found, key=lambda triple: triple[0])
    finally:
        agent.settings = before
    return ScalarControl(settings_with(temperature, constants), temperature, constants, best, found_so_far)


def _biases(settings: AgentSettings) -> dict[tuple[int, ...], float]:
    """Constants that settings add to logits, by token ids."""
    held = settings.generation_kwargs.get("sequence_bias") or []
    return {tuple(key): float(value) for key, value in (held.items() if isinstance(held, Mapping) else held)}


def _with_biases(
    settings: AgentSettings, temperature: float, biases: Mapping[tuple[int, ...], float]
) -> AgentSettings:
    """Settings with a temperature, and with these constants in place of their own if there are any."""
    kwargs = dict(settings.generation_kwargs)
    if biases:
        kwargs["sequence_bias"] = [[list(key), value] for key, value in biases.items()]
    return dataclasses.replace(settings, temperature=temperature, generation_kwargs=kwargs)


def _setting(temperature: float, constants: Mapping[str, float]) -> tuple[float, frozenset[tuple[str, float]]]:
    return temperature, frozenset(constants.items())


def _mean_reward(evaluation: Evaluation) -> float:
    if "reward" not in evaluation.statistics:
        raise ValueError("The environment gives no reward: say with `score=` what is to be raised.")
    return evaluation.statistics["reward"].mean


def _name(agent: Mem1Agent, token: Token) -> str:
    return token if isinstance(token, str) else str(agent.tokenizer.convert_ids_to_tokens(token))


def _check_spelling(agent: Mem1Agent, ids: Mapping[str, list[int]], trajectories: Iterable[Trajectory]) -> None:
    """Raise if a text of several tokens is written, but never in these: `<` is not `><`, which ends a tag before it."""
    turns = [list(turn.completion_ids) for trajectory in trajectories for turn in trajectory.turns]
    for name, wanted in ids.items():
        if len(wanted) == 1 or any(wanted == turn[at : at + len(wanted)] for turn in turns for at in range(len(turn))):
            continue
        for turn in turns:
            at = decode(agent.tokenizer, turn).find(name)
            if at >= 0:
                first, end = tokens_of_span(agent.tokenizer, turn, (at, at + len(name)))
                raise ValueError(
                    f"A constant on {name!r} would move nothing: it is encoded to {_pieces(agent, wanted)}, but the model writes it in "
                    f"{_pieces(agent, turn[first:end])}. Pass {decode(agent.tokenizer, turn[first:end])!r}."
                )


def _pieces(agent: Mem1Agent, ids: Sequence[int]) -> str:
    return " ".join(repr(decode(agent.tokenizer, [one])) for one in ids)


def _ids(agent: Mem1Agent, token: Token) -> list[int]:
    ids = [token] if isinstance(token, int) else agent.tokenizer(token, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"tokens must hold tokens of the model, but {token!r} is none.")
    return list(ids)
