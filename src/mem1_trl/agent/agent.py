"""An agent in use: a model here or on a server, a tokenizer and a protocol, playing episodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from ..environment_runtime.calls import EnvironmentCaller
from ..environment_runtime.faults import FaultSettings
from ..environment_runtime.pool import EnvironmentPool, GivenEnvironments
from ..hub.agent_settings import load_agent_settings, save_agent_settings, saved_protocol
from ..hub.load_model import load_model
from ..protocol.presets import named_protocol
from ..protocol.protocol import PROTOCOL_FILE, Mem1Protocol
from ..rollout.decoding import warn_of_ignored_decoding
from ..rollout.draws import episode_seeds
from ..rollout.generation import TransformersGenerator
from ..rollout.model_server import ModelServer
from ..rollout.play import EpisodePlayer
from ..rollout.settings import BATCH_WAIT, AgentSettings, check_rollout_mode, resolve_conversational
from ..rollout.shared_generator import SharedGenerator
from ..rollout.turn_loop import Rollout
from ..rollout.vllm_generator import VllmGenerator, is_vllm, within_engine
from ..saved_files import naming_missing_model, place_of
from ..typed_fields import check_seed, check_whole
from .description import describe_agent
from .single_episodes import SingleEpisodes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM

    from ..rollout.episode import Episode
    from ..trajectory import Trajectory


logger = logging.getLogger(__name__)


class Mem1Agent(SingleEpisodes):
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

    With a server (`transformers serve`, vLLM, any OpenAI-compatible API):

    ```python
    agent = Mem1Agent("Qwen/Qwen2.5-7B-Instruct", client="http://localhost:8000/v1", max_completion_length=500)
    ```

    An agent may be used by several threads at once: a local model generates for those that wait together.

    Args:
        model ([`~transformers.PreTrainedModel`], `vllm.LLM` or `str`):
            A causal language model, of transformers or in an engine of vLLM; with `client`, its name at the endpoint.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer; an engine of vLLM has its own. With `client`, the tokenizer in which trajectories are written and counted: that of the model
            that will be trained on them; `None` loads the one that `model` names.
        protocol ([`Mem1Protocol`] or `str`, *optional*):
            Tags, instructions and hints, or the name of a preset, such as `"reference"`. `None` uses the default tags.
        settings ([`AgentSettings`], *optional*):
            Budgets, context rule, decoding and chat format. `None` uses the defaults.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of episodes in one call of the model, or of concurrent requests.
        client (`openai.OpenAI`, [`~huggingface_hub.InferenceClient`] or `str`, *optional*):
            Plays a model that runs elsewhere: a client, or the address of a server that needs no key.
        backend (`str`, *optional*):
            With `client`: `"completions"` sends contexts as they are in training (`/v1/completions`), which needs the tokenizer of the
            served model; `"chat"` sends chat messages, which the server renders. `None` uses completions if the server offers them
            for this tokenizer.
        request_kwargs (`dict`, *optional*):
            Further arguments of each request, see [`mem1_trl.rollout.chat_client.ChatEndpoint`].
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request that got no answer is tried again, with growing pauses.
        environment_timeout (`float` or `None`, *optional*, defaults to `300.0`):
            Seconds that a call of an environment may take. `None` waits forever.
        environment_retries (`int`, *optional*, defaults to `2`):
            How often a call of an environment that failed is repeated, see [`mem1_trl.faults.may_repeat`].
        environment_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of concurrent calls of environments. `1` calls them in order.
        rollout_mode (`str`, *optional*, defaults to `"async"`):
            `"async"`: each episode goes on as soon as its own actions have returned; with a local model, `batch_size` episodes are played
            at once, and the next begins when one has ended. `"lockstep"`: in every turn all episodes wait for the slowest.
        rollout_batch_wait (`float`, *optional*, defaults to `0.02`):
            With `"async"` and a local model, seconds for which an episode that is ready waits for others, to be generated with them.
        cuda_graphs (`bool`, *optional*, defaults to `True`):
            Whether a model of transformers on a GPU generates by CUDA graphs, as in [`Mem1GRPOConfig`].
        overrides (*optional*):
            Fields of [`AgentSettings`] that win over those of `settings`, such as `max_turns=10`.
    """

    def __init__(
        self,
        model: PreTrainedModel | LLM | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        protocol: Mem1Protocol | str | None = None,
        settings: AgentSettings | None = None,
        batch_size: int = 32,
        client: Any = None,
        backend: str | None = None,
        request_kwargs: Mapping[str, Any] | None = None,
        max_retries: int = 5,
        environment_timeout: float | None = 300.0,
        environment_retries: int = 2,
        environment_concurrency: int = 64,
        rollout_mode: str = "async",
        rollout_batch_wait: float = BATCH_WAIT,
        cuda_graphs: bool = True,
        **overrides: Any,
    ):
        if isinstance(tokenizer, str):
            raise TypeError(
                f"`tokenizer` must be a loaded one, got {tokenizer!r}: pass `AutoTokenizer.from_pretrained({tokenizer!r})`."
            )
        for name, value, minimum in (("batch_size", batch_size, 1), ("max_retries", max_retries, 0)):
            check_whole(name, value, minimum)
        settings = (settings or AgentSettings()).changed(overrides)
        _ = settings.rule  # it may be a class that has not been imported
        self.faults = FaultSettings(environment_timeout, environment_retries, environment_concurrency)
        check_rollout_mode(rollout_mode, rollout_batch_wait)
        self.rollout_mode = rollout_mode
        self.rollout_batch_wait = rollout_batch_wait
        self.endpoint: ModelServer | None = None
        self.model: PreTrainedModel | None = None
        if client is not None:
            if model is not None and not isinstance(model, str):
                raise TypeError("`model` is loaded here and `client` plays elsewhere: pass one of them.")
            if tokenizer is None:
                tokenizer = _tokenizer_of(model)
            if protocol is None and model is not None and (Path(model) / PROTOCOL_FILE).is_file():
                logger.warning(
                    "The model in %s was trained with a protocol and settings of its own, which are not read here: use "
                    "`Mem1Agent.from_pretrained(%r, client=...)`, or pass `protocol=`.",
                    model,
                    model,
                )
        elif backend is not None or request_kwargs:
            name = "request_kwargs" if backend is None else "backend"
            raise TypeError(f"`{name}` says how a server is spoken to: pass the server as `client`, or leave it out.")
        elif is_vllm(model):
            engine: Any = model
            tokenizer = engine.get_tokenizer() if tokenizer is None else tokenizer
            settings = within_engine(settings, engine)
            self._play_here(VllmGenerator(engine, tokenizer, settings, batch_size))
        elif model is None or isinstance(model, str) or tokenizer is None:
            raise TypeError(
                "Pass a loaded model and its tokenizer, or load both with `Mem1Agent.from_pretrained(...)`; an endpoint "
                "goes into `client`."
            )
        else:
            self.model = model
            settings = settings.with_context_limit(model)
            parked = batch_size if rollout_mode == "async" else 0
            self._play_here(
                TransformersGenerator(model, tokenizer, settings, batch_size, parked=parked, cuda_graphs=cuda_graphs)
            )
            warn_of_ignored_decoding(model, settings.decoding_options())
        self.tokenizer = tokenizer
        self.protocol = named_protocol(protocol) if isinstance(protocol, str) else protocol or Mem1Protocol()
        self.settings = resolve_conversational(settings, tokenizer)
        self.syntax = self.protocol.syntax(tokenizer, self.settings.chat_template_kwargs)
        if client is not None:
            self.endpoint = ModelServer(
                client,
                model if isinstance(model, str) else None,
                tokenizer,
                self.syntax,
                backend,
                batch_size,
                max_retries,
                request_kwargs,
            )
        self._caller = EnvironmentCaller(self.faults)

    def _play_here(self, generator: TransformersGenerator | VllmGenerator) -> None:
        """Share what generates in this process between threads."""
        self.generate = generator
        self._shared = SharedGenerator(lambda: self.generate)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        protocol: Mem1Protocol | str | None = None,
        model_init_kwargs: Mapping[str, Any] | None = None,
        model: PreTrainedModel | LLM | str | None = None,
        **kwargs: Any,
    ) -> Mem1Agent:
        """
        Load a model that a mem1-trl trainer saved, with the protocol, the budgets and the chat template it was trained on.

        With `client` a server runs it, and with `model` it is there already: then only protocol, settings and tokenizer are loaded.

        ```python
        agent = Mem1Agent.from_pretrained("runs/ppo", client="http://localhost:8000/v1")
        ```

        Args:
            path_or_id (`str`):
                A directory, or the id of a model on the Hub.
            protocol ([`Mem1Protocol`] or `str`, *optional*):
                Overrides the saved one; needed for a model that carries none. The name of a preset will do: `"default"`,
                `"paper"`, `"reference"`, `"reference_inference"`, `"tool_calls"`, `"webshop"`. MEM1's released checkpoint
                carries none and has its preset, `"reference"`, by itself.
            model_init_kwargs (`dict`, *optional*):
                Passed to `from_pretrained` of the class of model that the configuration names. What says from where the model comes,
                such as `revision`, holds for its protocol, settings and tokenizer, too.
            model ([`~transformers.PreTrainedModel`], `vllm.LLM` or `str`, *optional*):
                The same model, loaded by yourself or in vLLM; with `client`, its name at the server, which is `path_or_id` unless it is given.
            kwargs (*optional*):
                Arguments of [`Mem1Agent`]; they win over those saved with the model.

        Raises:
            `FileNotFoundError`: If there is no such model, or no protocol is saved next to it and none is passed.
            `TypeError`: For arguments of a model that is not loaded.
            `ConnectionError`: If the Hub gives no answer about a model that is not in the cache.
        """
        init = dict(model_init_kwargs or {})
        where = place_of(init)
        if isinstance(protocol, str):  # before the weights are loaded
            protocol = named_protocol(protocol)
        if kwargs.get("client") is not None:
            model = path_or_id if model is None else model
        unread = [name for name in init if name not in (*where, "trust_remote_code")]
        if model is not None and unread:
            raise TypeError(
                f"`model_init_kwargs` are about a model that is loaded here, and it is not: leave {unread[0]!r} out."
            )
        with naming_missing_model(path_or_id, **where):
            if protocol is None:
                protocol = saved_protocol(path_or_id, **where)
            if "settings" not in kwargs:
                kwargs["settings"] = load_agent_settings(path_or_id, **where)
            if model is None:
                model = load_model(path_or_id, **{"dtype": "auto", **init}).eval()
            if init.get("trust_remote_code"):
                where["trust_remote_code"] = True
            tokenizer = AutoTokenizer.from_pretrained(path_or_id, **where)
        return cls(model, tokenizer, protocol, **kwargs)

    def run_batch(
        self,
        rows: Sequence[Any],
        environments: Sequence[Any] | EnvironmentPool,
        keep_failures: bool = False,
        seeds: Sequence[int] | None = None,
    ) -> list[Trajectory]:
        """
        Play several episodes at once, each in an environment of its own.

        Args:
            rows (`Sequence`):
                Dataset rows with a `prompt`, which are passed to `reset`. A text, or a list of messages, stands for a row of that prompt.
            environments (`Sequence` or [`EnvironmentPool`]):
                One for each row, or a pool that has them, which replaces those that fail.
            keep_failures (`bool`, *optional*, defaults to `False`):
                What an episode is whose environment fails in `reset` or `get_reward` or dies on the way, or whose prompt is too
                long: an error, or a trajectory with `error`, as far as it came. (An action that raises is an observation, either
                way.)
            seeds (`Sequence[int]`, *optional*):
                One for each row, by which a model in this process samples; a server draws by itself. `None` draws from PyTorch's generator.

        Returns:
            `list[Trajectory]`: In the order of the rows, with `metrics`, and with `reward` if the environment gives one. The metric
            `seconds` is the episode's share of the wall time: at any moment it is split evenly among those that are played.

        Raises:
            `TypeError`: If a row is none of these.
            `ValueError`: If there are not as many seeds as rows, or one is not a whole number from 0 to `2**63 - 1`.
        """
        rows = _as_rows(rows)
        if seeds is not None:
            seeds = [check_seed(seed, "A seed of `seeds`") for seed in seeds]
            if len(seeds) != len(rows):
                raise ValueError(f"There must be one seed for each of {len(rows)} rows, got {len(seeds)}.")
        tolerate = "everything" if keep_failures else "nothing"
        if isinstance(environments, EnvironmentPool):
            return self._run(rows, environments, tolerate, seeds)
        given = GivenEnvironments(environments, self.protocol, self._caller)
        try:
            return self._run(rows, given, tolerate, seeds)
        finally:
            given.release()

    def save_settings(self, directory: str | os.PathLike[str]) -> None:
        """Write protocol and settings next to a model, so that [`~Mem1Agent.from_pretrained`] runs it as this agent is run."""
        self.protocol.save_pretrained(directory)
        save_agent_settings(directory, self.settings)

    def _run(
        self,
        rows: Sequence[Mapping[str, Any]],
        environments: EnvironmentPool | GivenEnvironments,
        tolerate: str,
        seeds: Sequence[int] | None,
    ) -> list[Trajectory]:
        player = EpisodePlayer(self._rollout(environments.caller, seeds=seeds), timed=True)
        episodes = player.start(rows, environments, tolerate)
        trajectories = self._play(player, episodes)
        player.score(episodes, trajectories, environments, tolerate)
        return trajectories

    def _holding(self) -> AbstractContextManager[Any]:
        """Held while an episode is played."""
        return nullcontext() if self.endpoint is not None else self._shared.playing()

    def _rollout(
        self,
        caller: EnvironmentCaller,
        options: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """The backend with the present settings, or with others in place of some; it begins episodes in the order of `seeds`."""
        if "chat_template_kwargs" in (options or {}):
            raise ValueError(
                "chat_template_kwargs are those of the agent: they cannot be among the options of one episode."
            )
        settings = self.settings.changed(options or {})
        if options and self.model is not None:
            settings = settings.with_context_limit(self.model)  # refuses what is too long for it
        parts: dict[str, Any] = dict(
            tokenizer=self.tokenizer,
            protocol=self.protocol,
            settings=settings,
            syntax=self.syntax,
            caller=caller,
            mode=self.rollout_mode,
            batch_wait=self.rollout_batch_wait,
        )
        if self.endpoint is not None:
            rollout: Rollout = self.endpoint.rollout(**parts)
        else:
            rollout = Rollout(
                generate=partial(self._shared, settings=settings),
                at_once=self.generate.batch_size,
                seeds=(self._seeds if seeds is None else _in_turn(seeds)) if settings.temperature > 0 else None,
                **parts,
            )
        rollout.observations.check()  # before a turn is played
        return rollout

    def _seeds(self, count: int) -> list[int] | None:
        """Seeds of episodes that sample at their own pace: what they sample must not depend on which of them is ready first."""
        return episode_seeds(count) if self.rollout_mode == "async" else None

    def _play(self, player: EpisodePlayer, episodes: list[Episode]) -> list[Trajectory]:
        """Episodes to their end; of a local model as many together as `batch_size` allows."""
        if self.endpoint is not None:
            return player.play(episodes)
        trajectories: list[Trajectory] = []
        together = self.generate.batch_size if self.rollout_mode == "lockstep" else max(len(episodes), 1)
        for start in range(0, len(episodes), together):
            with self._shared.playing():
                trajectories += player.play(episodes[start : start + together])
        return trajectories

    def describe(self) -> dict[str, Any]:
        """
        How the agent is run, ready for JSON: model and a checksum of its weights, that of the tokenizer with its chat template, budgets,
        context, temperature, protocol.

        Two agents with the same description decode the same, if they decode greedily. Of a model behind an endpoint only the
        name is known; `request_kwargs` are told without headers, keys and other secrets.
        """
        return describe_agent(self)


def _as_rows(rows: Any) -> list[Mapping[str, Any]]:
    """Tasks as rows of a dataset: `["Who?", {"prompt": "Where?", "answers": ["Rome"]}]` becomes two rows with a `prompt`."""
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise TypeError(
            f"rows must be a list with a row for each episode, got a {type(rows).__name__}: put it into a list."
        )
    return [_as_row(row, number) for number, row in enumerate(rows)]


def _as_row(row: Any, number: int) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    is_messages = isinstance(row, list) and row and all(isinstance(one, Mapping) for one in row)
    if isinstance(row, str) or is_messages:
        return {"prompt": row}
    raise TypeError(
        f"A row must be a mapping with a 'prompt', a text or a list of messages, got a {type(row).__name__} in row {number}."
    )


def _in_turn(seeds: Sequence[int]) -> Callable[[int], list[int]]:
    """Hands out seeds to episodes that begin one part after the other."""
    left = iter(seeds)
    return lambda count: list(islice(left, count))


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
