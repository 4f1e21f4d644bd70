"""A trained agent in use: a model, its tokenizer and its protocol, playing one episode at a time."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .actions import ActionSet, run_coroutine
from .agent_settings import load_agent_settings
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

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        protocol ([`Mem1Protocol`], *optional*):
            Tags, instructions and hints. `None` uses the default tags.
        max_turns (`int`, *optional*, defaults to `6`):
            Most turns of an episode.
        max_completion_length (`int`, *optional*, defaults to `1000`):
            Most tokens of one turn.
        max_observation_length (`int`, *optional*, defaults to `1000`):
            Most tokens of one observation.
        context (`str`, *optional*, defaults to `"mem1"`):
            Rule of the next context: `"mem1"`, `"full"` or `"truncate"`.
        max_context_length (`int`, *optional*):
            Most tokens of one context; `None` takes what the model's positions allow.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0.0` decodes greedily.
        batch_size (`int`, *optional*, defaults to `32`):
            Most episodes in one call of the model.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, which renders tasks that are messages.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol | None = None,
        max_turns: int = 6,
        max_completion_length: int = 1000,
        max_observation_length: int = 1000,
        context: str = "mem1",
        max_context_length: int | None = None,
        temperature: float = 0.0,
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.protocol = protocol or Mem1Protocol()
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if max_context_length is None and positions is not None:
            max_context_length = positions - max_completion_length
        self.settings = RolloutSettings(
            max_turns=max_turns,
            max_observation_length=max_observation_length,
            context=context,
            max_context_length=max_context_length,
        )
        self.generate = TransformersGenerator(model, tokenizer, max_completion_length, temperature, batch_size)

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
            episodes.append(Episode(self._prompt_ids(row["prompt"], observation, actions), environment, actions))
        rollout = Rollout(self.tokenizer, self.protocol, self.settings, self.generate)
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
        for trajectory, environment in zip(trajectories, environments):
            trajectory.metrics.update(trajectory_metrics(trajectory))
            trajectory.reward = _reward(environment)
        return trajectories

    def _prompt_ids(self, task: Any, observation: str, actions: ActionSet) -> list[int]:
        if isinstance(task, str):
            return list(self.tokenizer(self.protocol.render_task(task + observation, actions.describe()))["input_ids"])
        *before, last = task
        text = self.protocol.render_task(last["content"] + observation, actions.describe())
        messages = [*before, {**last, "content": text}]
        encoded: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **self.chat_template_kwargs
        )
        return list(encoded["input_ids"])


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
