"""An agent in use: a model or an endpoint, a tokenizer and a protocol, playing episodes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .actions import ActionSet, run_coroutine
from .endpoint import ChatEndpoint, ChatRollout
from .generation import TransformersGenerator
from .metrics import trajectory_metrics
from .protocol import Mem1Protocol
from .rollout import Episode, Rollout, RolloutSettings
from .trajectory import Trajectory

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
        memory_top_k (`int`, *optional*, defaults to `3`):
            Most past observations that `context="external"` puts back.
        client (`openai.OpenAI`, [`~huggingface_hub.InferenceClient`] or `str`, *optional*):
            Plays through an endpoint: a client, or the address of a server that needs no key. The endpoint reads the task
            and the turns that are kept as chat messages. A server that strips `<think>` from its answers needs another
            `state_tag`, as in `Mem1Protocol.paper()`.
        request_kwargs (`dict`, *optional*):
            Further arguments of each request, see [`mem1_trl.endpoint.ChatEndpoint`].
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request that got no answer is tried again, with growing pauses.
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
        memory_top_k: int = 3,
        client: Any = None,
        request_kwargs: Mapping[str, Any] | None = None,
        max_retries: int = 5,
    ):
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
        self.settings = RolloutSettings(
            max_turns=max_turns,
            max_observation_length=max_observation_length,
            context=context,
            max_context_length=max_context_length,
            memory_top_k=memory_top_k,
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        protocol: Mem1Protocol | None = None,
        model_init_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Mem1Agent:
        """
        Load a model that a mem1-trl trainer saved, with the protocol it was trained on.

        Args:
            path_or_id (`str`):
                A directory, or the id of a model on the Hub.
            protocol ([`Mem1Protocol`], *optional*):
                Overrides the saved one; needed for a model that carries none.
            model_init_kwargs (`dict`, *optional*):
                Passed to [`~transformers.AutoModelForCausalLM.from_pretrained`].
            kwargs (*optional*):
                Arguments of [`Mem1Agent`].
        """
        if protocol is None:
            protocol = Mem1Protocol.from_pretrained(path_or_id)
        model = AutoModelForCausalLM.from_pretrained(path_or_id, **{"dtype": "auto", **(model_init_kwargs or {})})
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
        return cls(model.eval(), tokenizer, protocol, **kwargs)

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

    def run_batch(self, rows: Sequence[Mapping[str, Any]], environments: Sequence[Any]) -> list[Trajectory]:
        """
        Play several episodes at once, each in an environment of its own.

        Args:
            rows (`Sequence[Mapping]`):
                Dataset rows with a `prompt`; passed to `reset`.
            environments (`Sequence`):
                One for each row.

        Returns:
            `list[Trajectory]`: In the order of the rows, with `metrics`, and with `reward` if the environment gives one.
        """
        if len(rows) != len(environments):
            raise ValueError(
                f"There are {len(rows)} rows and {len(environments)} environments: give each row its own."
            )
        episodes = []
        for row, environment in zip(rows, environments):
            actions = ActionSet(environment, self.protocol)
            observation = environment.reset(**row) or ""
            episodes.append(self._episode(row["prompt"], observation, environment, actions))
        trajectories = self._play(episodes)
        for trajectory, environment in zip(trajectories, environments):
            trajectory.metrics.update(trajectory_metrics(trajectory))
            trajectory.reward = _reward(environment)
        return trajectories

    def _play(self, episodes: list[Episode]) -> list[Trajectory]:
        parts: dict[str, Any] = dict(tokenizer=self.tokenizer, protocol=self.protocol, settings=self.settings)
        if self.model is None:
            assert self.endpoint is not None
            return ChatRollout(self.endpoint, **parts).run(episodes)
        rollout = Rollout(generate=self.generate, **parts)
        trajectories: list[Trajectory] = []
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(episodes), self.generate.batch_size):
                    trajectories += rollout.run(episodes[start : start + self.generate.batch_size])
                    self.generate.release()
        finally:
            self.generate.release()
            self.model.train(was_training)
        return trajectories

    def _episode(self, task: Any, observation: str, environment: Any, actions: ActionSet) -> Episode:
        if isinstance(task, str):
            text = self.protocol.render_task(task + observation, actions.describe())
            messages = [{"role": "user", "content": text}]
            return Episode(list(self.tokenizer(text)["input_ids"]), environment, actions, messages)
        *before, last = task
        text = self.protocol.render_task(last["content"] + observation, actions.describe())
        messages = [*before, {**last, "content": text}]
        encoded: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return Episode(list(encoded["input_ids"]), environment, actions, messages)


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


def _reward(environment: Any) -> float | None:
    """What `get_reward` gives, synchronous or not; `None` if there is no such method or it scored nothing."""
    if not hasattr(environment, "get_reward"):
        return None
    reward = environment.get_reward()
    if inspect.isawaitable(reward):

        async def wait(pending: Any = reward) -> Any:
            return await pending

        reward = run_coroutine(wait())
    return None if reward is None else float(reward)
