"""Turns from vLLM in this process: `vllm.LLM`, without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .decoding_modes import NEUTRAL_SAMPLING, changing
from .stopping import Completion, StopStringFinder, finish_completion, text_before_stops

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from .settings import AgentSettings
    from .turn_listener import TurnListener


def is_vllm(model: Any) -> bool:
    """Whether a model is a `vllm.LLM`, of whatever version."""
    return hasattr(model, "llm_engine") and callable(getattr(model, "generate", None))


class VllmGenerator:
    """
    Generates turns with an engine of vLLM in this process, all that wait in one call.

    Log-probs are recorded where the engine computes those of the policy: at temperature 1, and at any other temperature if it was made with
    `logprobs_mode="processed_logprobs"`, as TRL does.

    Args:
        engine (`vllm.LLM`):
            The engine.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of its model.
        settings ([`AgentSettings`]):
            Maximum length of a turn, and decoding options. They may be replaced between two calls.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of episodes that are played at once; the engine makes its own batches of their turns.

    Raises:
        `ValueError`: If the settings decode in a way that vLLM is not asked for here.
    """

    def __init__(self, engine: Any, tokenizer: PreTrainedTokenizerBase, settings: AgentSettings, batch_size: int = 32):
        if settings.generation_kwargs:
            raise ValueError(
                f"generation_kwargs are arguments of transformers' `generate` and not of vLLM: leave them out, got "
                f"{', '.join(settings.generation_kwargs)}."
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.batch_size = batch_size
        self.stop_texts = StopStringFinder(tokenizer)

    def __call__(
        self,
        prompts: list[list[int]],
        stops: list[list[str]],
        draws: Sequence[np.ndarray] | None = None,
        listeners: Sequence[TurnListener | None] | None = None,
    ) -> list[Completion]:
        """
        One completion for each context.

        Args:
            prompts (`list[list[int]]`):
                Token ids of the contexts.
            stops (`list[list[str]]`):
                Stop strings of each.
            draws (`Sequence[numpy.ndarray]`, *optional*):
                Numbers in `[0, 1)` of each; the first one is made the seed of its turn.
            listeners (`Sequence[TurnListener | None]`, *optional*):
                Are told the text when the turn has ended, by the rollout: this engine does not stream.
        """
        if not prompts:
            return []
        parameters = [
            self._parameters(row, None if draws is None else int(draws[place][0] * 2**53))
            for place, row in enumerate(stops)
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self.engine.generate(asked, sampling_params=parameters, use_tqdm=False)
        return [self._completion(answer.outputs[0], row) for answer, row in zip(answers, stops, strict=True)]

    @property
    def name(self) -> str:
        """Name or path of the model."""
        return str(getattr(getattr(self.engine.llm_engine, "model_config", None), "model", "vLLM"))

    def release(self) -> None:
        """Nothing is kept here: the prefixes that the engine has read are its own."""

    def _parameters(self, stops: Sequence[str], seed: int | None) -> Any:
        from vllm import SamplingParams

        more = changing(self.settings.decoding_options(), NEUTRAL_SAMPLING)
        # An action inside a thought that the prompt has opened ends nothing: there, text is cut afterwards
        if stops and not text_before_stops(stops):
            more |= {"stop": list(stops), "include_stop_str_in_output": True}
        if seed is not None:
            more["seed"] = seed
        return SamplingParams(
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_completion_length,
            logprobs=0,  # of the sampled token alone
            **more,
        )

    def _completion(self, output: Any, stops: Sequence[str]) -> Completion:
        ids = list(output.token_ids)
        logprobs = None
        if self._knows_logprobs and output.logprobs is not None:
            logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        truncated = not self.settings.samples_from_policy
        found = finish_completion(ids, logprobs, stops, self.stop_texts, eos, truncated)
        # Models may have further end tokens, which the engine knows
        ended = found.ended or (output.finish_reason == "stop" and len(found.ids) == len(ids))
        return dataclasses.replace(found, ended=ended)

    @property
    def _knows_logprobs(self) -> bool:
        """Whether the engine's log-probs are those of the policy at the temperature in force."""
        mode = getattr(getattr(self.engine.llm_engine, "model_config", None), "logprobs_mode", "raw_logprobs")
        if mode == "processed_logprobs":
            return self.settings.samples_from_policy
        return mode == "raw_logprobs" and self.settings.temperature in (0.0, 1.0)


def within_engine(settings: AgentSettings, engine: Any) -> AgentSettings:
    """
    The same settings with `max_context_length` from the engine's longest sequence, if none is set.

    Raises:
        `ValueError`: If a context and a turn may be longer than that.
    """
    longest = getattr(getattr(engine.llm_engine, "model_config", None), "max_model_len", None)
    return settings if longest is None else settings.within(longest, "the max_model_len of this vLLM")
