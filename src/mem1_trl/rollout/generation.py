"""Generation from token ids to token ids that stops at the first complete action, with any backend."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .action_generate import ActionGenerate, pad_left, sample_toys, with_beginnings
from .prefix_cache import PrefixCache
from .sampler_check import sampler_traits
from .step_graphs import StepGraphs
from .stopping import Completion, StopStringFinder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .settings import AgentSettings
    from .turn_listener import TurnListener


class TurnGenerator(Protocol):
    """
    A backend that returns one completion for each context; each context has its own list of stop strings.

    One whose rollout gives seeds to its episodes is also passed `draws`, the numbers that choose the tokens of each context; one whose
    episodes are listened to, `listeners`, see [`TurnListener`].

    One with the attribute `returns_early` may return as soon as `leave` of the turns have ended, with the others `unfinished`, and is passed
    these as `begun` when it is asked again: a [`Completion`] or `None` for each context.
    """

    def __call__(self, prompts: list[list[int]], stops: list[list[str]]) -> list[Completion]: ...


class TransformersGenerator:
    """
    Generates turns with a plain transformers model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        settings ([`AgentSettings`]):
            Maximum length of a turn, and decoding options. They may be replaced between two calls.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of sequences in one call of the model.
        prefix_cache (`bool`, *optional*, defaults to `True`):
            Whether keys and values are kept from one call to the next, until [`~TransformersGenerator.release`]. They are kept
            only if all prompts fit into one call of the model.
        parked (`int`, *optional*, defaults to `0`):
            As in [`PrefixCache`].
        cuda_graphs (`bool`, *optional*, defaults to `True`):
            Whether steps are CUDA graphs on a GPU, where the prefix cache is used and [`StepGraphs`] can capture the model.
    """

    returns_early = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AgentSettings,
        batch_size: int = 32,
        prefix_cache: bool = True,
        parked: int = 0,
        cuda_graphs: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.batch_size = batch_size
        self.stop_texts = StopStringFinder(tokenizer)
        eos = model.generation_config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos:
            eos.append(tokenizer.eos_token_id)
        self.eos_token_ids: list[int] = eos
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise ValueError("The tokenizer has neither a padding nor an end token: set `tokenizer.pad_token`.")
        self.pad_token_id: int = pad
        graphs = StepGraphs() if cuda_graphs else None
        self._cache = PrefixCache(pad, parked, graphs) if prefix_cache else None
        self.traits = sampler_traits(model, partial(sample_toys, model))

    def release(self) -> None:
        """Drop the keys and values of past calls. Call it before the weights of the model change."""
        if self._cache is not None:
            self._cache.clear()

    def __call__(
        self,
        prompts: list[list[int]],
        stops: list[list[str]],
        draws: Sequence[np.ndarray] | None = None,
        listeners: Sequence[TurnListener | None] | None = None,
        begun: Sequence[Completion | None] | None = None,
        leave: int | None = None,
    ) -> list[Completion]:
        completions: list[Completion] = []
        for start in range(0, len(prompts), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            if len(prompts) > self.batch_size:
                self.release()  # drops the keys and values of other prompts
            own: list[Any] = [None if given is None else given[chunk] for given in (draws, listeners, begun)]
            completions.extend(self._generate(prompts[chunk], stops[chunk], leave, *own))
        return completions

    @torch.no_grad()
    def _generate(
        self,
        prompts: list[list[int]],
        stops: list[list[str]],
        leave: int | None,
        draws: Any,
        listeners: Any,
        begun: Any,
    ) -> list[Completion]:
        inputs = pad_left(with_beginnings(prompts, begun), self.pad_token_id, self.model.device)
        temperature = self.settings.temperature or 1.0
        hook = ActionGenerate(
            self.model,
            self.stop_texts,
            stops,
            temperature,
            self.eos_token_ids,
            self._cache,
            self.traits,
            draws,
            listeners,
            begun,
            leave,
        )
        sequences = hook(
            **inputs,
            **{
                "max_new_tokens": self.settings.max_completion_length,
                "pad_token_id": self.pad_token_id,
                "eos_token_id": self.eos_token_ids or None,
                **self.settings.decoding_options(),
            },
        )
        sampled = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        truncated = not self.settings.samples_from_policy
        completions = hook.completions(sampled, hook.logprobs, truncated)
        for place, listener in enumerate(listeners or ()):
            if listener is not None and listener.error is not None:
                completions[place] = Completion((), None, False, error=f"it was stopped ({listener.error!r})")
        return completions
