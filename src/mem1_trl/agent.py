"""An agent in use: a model or an endpoint, a tokenizer and a protocol, playing episodes."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .environment_runtime.actions import ActionSet
from .environment_runtime.calls import EnvironmentCaller
from .environment_runtime.errors import describe_error
from .environment_runtime.faults import FaultSettings
from .environment_runtime.pool import EnvironmentPool, StartedEpisode, ask_rewards, reset_all
from .environment_runtime.seat import Seat
from .hub.agent_settings import load_agent_settings
from .metrics import trajectory_metrics
from .protocol.protocol import Mem1Protocol
from .protocol.untrusted import sanitize_prompt
from .rollout.chat_client import ChatEndpoint
from .rollout.endpoint import ChatRollout
from .rollout.episode import Episode, RolloutSettings
from .rollout.generation import TransformersGenerator
from .rollout.turn_loop import Rollout
from .trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Mem1Agent:
    """
    Runs a model as a MEM1 agent (arXiv 2506.15841, section 3.1): every turn it rewrites its state, acts, and forgets the rest.

    Example:

    ```python
    from mem1_trl import Mem1Agent
    from mem1_trl.environments import RetrievalQAEnvironment

    agent = Mem1Agent.from_pretrained("runs/quickstart/model")
    trajectory = agent.run("What is the capital of France?", RetrievalQAEnvironment())
    print(trajectory.answer)
    ```

    Behind an endpoint (`transformers serve`, vLLM, any OpenAI-compatible API):

    ```python
    agent = Mem1Agent("Qwen/Qwen2.5-7B-Instruct", client="http://localhost:8000/v1", max_completion_length=500)
    ```

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            A causal language model; with `client`, its name at the endpoint.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer. With `client`, the tokenizer in which trajectories are written and counted: that of the student
            who shall learn from them; `None` loads the one that `model` names.
        protocol ([`Mem1Protocol`], *optional*):
            Tags, instructions and hints. `None` uses the default tags.
        max_turns (`int`, *optional*, defaults to `6`):
            Most turns of an episode.
        max_completion_length (`int`, *optional*, defaults to `1000`):
            Most tokens of one turn.
        max_observation_length (`int`, *optional*, defaults to `1000`):
            Most tokens of one observation.
        context (`str`, *optional*, defaults to `"mem1"`):
            Rule of the next context: `"mem1"`, `"full"`, `"truncate"`, or `"external"`, the last turn beside the best
            matches from a BM25 store of past observations.
        max_context_length (`int`, *optional*):
            Most tokens of one context; `None` takes what the model's positions allow.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0.0` decodes greedily.
        batch_size (`int`, *optional*, defaults to `32`):
            Most episodes in one call of the model, or most requests at once.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, which renders tasks that are messages.
        memory_top_k (`int`, *optional*, defaults to `3`):
            Most past observations that `context="external"` puts back.
        client (`openai.OpenAI`, [`~huggingface_hub.InferenceClient`] or `str`, *optional*):
            Plays through an endpoint: a client, or the address of a server that needs no key. The endpoint reads the task
            and the turns that are kept as chat messages. A server that strips `<think>` from its answers needs another
            `state_tag`, as in `Mem1Protocol.paper()`.
        request_kwargs (`dict`, *optional*):
            Further arguments of each request, see [`mem1_trl.rollout.chat_client.ChatEndpoint`].
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request that got no answer is tried again, with growing pauses.
        environment_timeout (`float` or `None`, *optional*, defaults to `300.0`):
            Seconds that a call of an environment may take. `None` waits forever.
        environment_retries (`int`, *optional*, defaults to `2`):
            How often a call of an environment that failed is repeated, see [`mem1_trl.faults.may_repeat`].
        environment_concurrency (`int`, *optional*, defaults to `64`):
            Most calls of environments at once. `1` calls them in order.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        protocol: Mem1Protocol | None = None,
        max_turns: int = 6,
        max_completion_length: int = 1000,
        max_observation_length: int = 1000,
        context: str = "mem1",
        max_context_length: int | None = None,
        temperature: float = 0.0,
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        memory_top_k: int = 3,
        client: Any = None,
        request_kwargs: Mapping[str, Any] | None = None,
        max_retries: int = 5,
        environment_timeout: float | None = 300.0,
        environment_retries: int = 2,
        environment_concurrency: int = 64,
    ):
        self.faults = FaultSettings(environment_timeout, environment_retries, environment_concurrency)
        self.endpoint: ChatEndpoint | None = None
        if client is not None:
            if model is not None and not isinstance(model, str):
                raise TypeError("`model` is loaded here and `client` plays elsewhere: pass one of them.")
            self.endpoint = ChatEndpoint(
                client, model, max_completion_length, temperature, batch_size, max_retries, request_kwargs or {}
            )
            if tokenizer is None:
                tokenizer = _tokenizer_of(model)
            self.model = None
        elif model is None or isinstance(model, str) or tokenizer is None:
            raise TypeError(
                "Pass a loaded model and its tokenizer, or load both with `Mem1Agent.from_pretrained(...)`; an endpoint "
                "goes into `client`."
            )
        else:
            self.model = model
            self.generate = TransformersGenerator(model, tokenizer, max_completion_length, temperature, batch_size)
            positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if max_context_length is None and positions is not None:
                max_context_length = positions - max_completion_length
        self.tokenizer = tokenizer
        self.protocol = protocol or Mem1Protocol()
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.syntax = self.protocol.syntax(self.tokenizer, self.chat_template_kwargs)
        self.settings = RolloutSettings(
            max_turns=max_turns,
            max_observation_length=max_observation_length,
            context=context,
            max_context_length=max_context_length,
            memory_top_k=memory_top_k,
        )
        self._caller = EnvironmentCaller(self.faults)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        protocol: Mem1Protocol | None = None,
        model_init_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Mem1Agent:
        """
        Load a model that a mem1-trl trainer saved, with the protocol, the budgets and the chat template it was trained on.

        Args:
            path_or_id (`str`):
                A directory, or the id of a model on the Hub.
            protocol ([`Mem1Protocol`], *optional*):
                Overrides the saved one; needed for a model that carries none.
            model_init_kwargs (`dict`, *optional*):
                Passed to [`~transformers.AutoModelForCausalLM.from_pretrained`].
            kwargs (*optional*):
                Arguments of [`Mem1Agent`]; they win over those saved with the model.
        """
        if protocol is None:
            protocol = Mem1Protocol.from_pretrained(path_or_id)
        model = AutoModelForCausalLM.from_pretrained(path_or_id, **{"dtype": "auto", **(model_init_kwargs or {})})
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
        return cls(model.eval(), tokenizer, protocol, **{**load_agent_settings(path_or_id), **kwargs})

    def run(self, task: Any, environment: Any, **row: Any) -> Trajectory:
        """
        Play one episode.

        Args:
            task (`str` or `list[dict]`):
                The task: a text, or messages whose last one is the user's.
            environment (`Any`):
                An environment; its `reset` is called with `prompt=task` and `row`.
            row (*optional*):
                What else `reset` wants, for instance `answers`.

        Returns:
            [`Trajectory`]: Rewarded if the environment has `get_reward`.
        """
        return self.run_batch([{"prompt": task, **row}], [environment])[0]

    def run_batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        environments: Sequence[Any] | EnvironmentPool,
        keep_failures: bool = False,
    ) -> list[Trajectory]:
        """
        Play several episodes at once, each in an environment of its own.

        Args:
            rows (`Sequence[Mapping]`):
                Dataset rows with a `prompt`; passed to `reset`.
            environments (`Sequence` or [`EnvironmentPool`]):
                One for each row, or a pool that has them, which replaces those that fail.
            keep_failures (`bool`, *optional*, defaults to `False`):
                What an episode is whose environment fails in `reset` or `get_reward` or dies on the way, or whose prompt is too
                long: an error, or a trajectory with `error`, as far as it came. (An action that raises is an observation, either
                way.)

        Returns:
            `list[Trajectory]`: In the order of the rows, with `metrics`, and with `reward` if the environment gives one. The metric
            `seconds` is the episode's share of the wall time: that of each turn is split evenly among those that played it.
        """
        if isinstance(environments, EnvironmentPool):
            return self._run_started(rows, environments.start(rows), environments.caller, keep_failures)
        if len(rows) != len(environments):
            raise ValueError(
                f"There are {len(rows)} rows and {len(environments)} environments: give each row its own."
            )
        actions = [ActionSet(environment, self.protocol) for environment in environments]
        seats = [Seat(environment) for environment in environments]
        for seat in seats:
            self._caller.adopt(seat)
        try:
            results = reset_all(self._caller, seats, rows)
            started = [
                StartedEpisode(environment, offered, observation, error)
                for environment, offered, (observation, error) in zip(environments, actions, results)
            ]
            return self._run_started(rows, started, self._caller, keep_failures)
        finally:
            for seat in seats:
                self._caller.release(seat)

    def _run_started(
        self,
        rows: Sequence[Mapping[str, Any]],
        started: Sequence[StartedEpisode],
        caller: EnvironmentCaller,
        keep_failures: bool,
    ) -> list[Trajectory]:
        """Play episodes whose environments were reset, and ask for the rewards."""
        episodes: dict[int, Episode] = {}
        trajectories: dict[int, Trajectory] = {}
        for index, (row, start) in enumerate(zip(rows, started)):
            try:
                if start.error is not None:
                    raise start.error
                episodes[index] = self._episode(row["prompt"], start)
            except Exception as error:
                if not keep_failures:
                    raise
                failed = Trajectory([], stop_reason=StopReason.ERROR, error=describe_error(error))
                trajectories[index] = failed
        played, seconds = self._play(list(episodes.values()), caller)
        for index, trajectory, time_taken in zip(episodes, played, seconds, strict=True):
            trajectories[index] = trajectory
            trajectory.metrics.update(trajectory_metrics(trajectory), seconds=time_taken)
        sound = [index for index in episodes if trajectories[index].error is None]
        scores = ask_rewards(caller, [started[index].environment for index in sound])
        for index, (reward, failure) in zip(sound, scores):
            if failure is not None and not keep_failures:
                raise failure
            trajectories[index].reward = reward
            trajectories[index].error = None if failure is None else describe_error(failure)
        for index in episodes:
            if trajectories[index].error is None:
                continue
            if not keep_failures:
                raise RuntimeError(f"The environment of row {index} failed: {trajectories[index].error}")
            caller.seat_of(started[index].environment).failed = True
        return [trajectories[index] for index in range(len(rows))]

    def _play(self, episodes: list[Episode], caller: EnvironmentCaller) -> tuple[list[Trajectory], list[float]]:
        """Episodes to their end, and the seconds that each took."""
        parts: dict[str, Any] = dict(
            tokenizer=self.tokenizer,
            protocol=self.protocol,
            settings=self.settings,
            syntax=self.syntax,
            caller=caller,
        )
        if self.model is None:
            assert self.endpoint is not None
            clock = _TurnClock(episodes)
            played = ChatRollout(self.endpoint, on_turn=clock, **parts).run(episodes)
            return played, [clock.seconds[id(episode)] for episode in episodes]
        rollout = Rollout(generate=self.generate, **parts)
        played, seconds = [], []
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(episodes), self.generate.batch_size):
                    together = episodes[start : start + self.generate.batch_size]
                    rollout.on_turn = clock = _TurnClock(together)
                    played += rollout.run(together)
                    seconds += [clock.seconds[id(episode)] for episode in together]
                    self.generate.release()
        finally:
            self.generate.release()
            self.model.train(was_training)
        return played, seconds

    def describe(self) -> dict[str, Any]:
        """
        How the agent is run, ready for JSON: model and a checksum of its weights, budgets, context, temperature, protocol.

        Two agents with the same description decode the same, if they decode greedily. Of a model behind an endpoint only the
        name is known.
        """
        source: Any = self.endpoint or self.generate
        model: dict[str, Any] = {"model": getattr(self.endpoint, "model", None) or "endpoint", "weights": None}
        if self.model is not None:
            name = getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__
            model = {"model": name, "weights": _checksum(self.model)}
        return {
            **model,
            **dataclasses.asdict(self.settings),
            "max_completion_length": source.max_completion_length,
            "temperature": source.temperature,
            "protocol": self.protocol.to_dict(),
        }

    def _episode(self, task: Any, started: StartedEpisode) -> Episode:
        """An episode with its task prompt, to which the environment may have added."""
        environment, actions = started.environment, started.actions
        observation = started.observation or ""
        self.settings.check_characters(observation)
        observation = sanitize_prompt(self.tokenizer, observation)
        if isinstance(task, str):
            text = self.protocol.render_task(task + observation, actions.describe())
            messages = [{"role": "user", "content": text}]
            ids = self.syntax.encode_task(text, actions.schemas)
        else:
            *before, last = task
            text = self.protocol.render_task(last["content"] + observation, actions.describe())
            messages = [*before, {**last, "content": text}]
            ids = self.syntax.encode_task(messages, actions.schemas)
        self.settings.check_prompt(ids)
        return Episode(ids, environment, actions, messages)


def _tokenizer_of(model: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that runs elsewhere."""
    try:
        if model is None:
            raise ValueError("the model has no name")
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no tokenizer for the model {model!r} of the endpoint: pass `tokenizer=`, that of the model which "
            "shall learn from the trajectories, or any other that may count their tokens."
        ) from error


class _TurnClock:
    """Splits the wall time of every turn evenly among the episodes that played it."""

    def __init__(self, episodes: Sequence[Episode]):
        self.running = list(episodes)
        self.seconds = {id(episode): 0.0 for episode in self.running}
        self.last = time.perf_counter()

    def __call__(self, turn: int, still_running: Sequence[Episode]) -> None:
        now = time.perf_counter()
        for episode in self.running:
            self.seconds[id(episode)] += (now - self.last) / len(self.running)
        self.running, self.last = list(still_running), now


def _checksum(model: PreTrainedModel) -> str:
    """Tells weights apart: a hash of names, shapes and the sum of the bits of every parameter."""
    digest = hashlib.sha256()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(whole[parameter.element_size()]).sum(dtype=torch.int64).item()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {bits}".encode())
    return digest.hexdigest()[:16]
