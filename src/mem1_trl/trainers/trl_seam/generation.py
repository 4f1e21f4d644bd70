"""
One turn of each of several episodes, sampled by whatever backend TRL is configured with.

Wraps `_generate_single_turn`, which knows the backends (transformers, continuous batching, vLLM) but has one set of stop
strings for all prompts, no greedy decoding in evaluation, and no log-probs from transformers.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...rollout.action_generate import ActionGenerate, with_beginnings
from ...rollout.draws import episode_seeds
from ...rollout.prefix_cache import PrefixCache
from ...rollout.sampler_check import SamplerTraits
from ...rollout.step_graphs import StepGraphs
from ...rollout.stopping import Completion, StopStringFinder, finish_completion, text_before_stops
from ..bitsandbytes_cpu import keep_gradients_through_4bit
from ..dropout import silence_dropout
from ..merged_adapter import merged_adapter, why_not_merged
from .contract import check_values
from .helpers import instance_attribute
from .hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from ...rollout.settings import AgentSettings
    from ...rollout.turn_loop import Rollout


class TurnGeneration(Hooks):
    """Samples one completion for each context, and knows when all processes must take part in it."""

    rollout: Rollout

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        keep_gradients_through_4bit(self.model)
        if self.args.disable_dropout:  # TRL knows the module `nn.Dropout` only
            for model in filter(None, (self.model, self.ref_model)):
                silence_dropout(model)
        self.stop_texts = StopStringFinder(self.tokenizer)
        graphs = StepGraphs() if self.args.cuda_graphs else None
        padding = self.tokenizer.pad_token_id
        self._prefix_cache = PrefixCache(padding, graphs=graphs) if self.args.prefix_cache else None
        if self.args.merge_adapter:
            self._check_merging()

    def generate_turn(
        self,
        prompts: list[list[int]],
        stops: list[list[str]],
        draws: list[np.ndarray] | None = None,
        begun: list[Completion | None] | None = None,
        leave: int | None = None,
    ) -> list[Completion]:
        """
        One completion for each context, by whatever backend TRL is configured with.

        Args:
            prompts (`list[list[int]]`):
                Token ids of the contexts.
            stops (`list[list[str]]`):
                Stop strings of each.
            draws (`list[numpy.ndarray]`, *optional*):
                Numbers that choose the tokens of each, where [`~TurnGeneration.episode_seeds`] gave seeds.
            begun (`list[Completion | None]`, *optional*):
                What earlier calls have sampled of each turn.
            leave (`int`, *optional*):
                Number of turns after whose end the others may be returned unfinished; backends other than transformers finish all.

        Returns:
            `list[Completion]`: Cut at the first complete action.
        """
        wanted, truncated = len(prompts), not self.decoding.samples_from_policy
        if self._generates_together:
            # Every process takes part in every call, with equally many prompts: those that ran out send dummies
            most = int(self.accelerator.gather(torch.tensor([wanted], device=self.accelerator.device)).max())
            prompts = [*prompts, *([[self.eos_token_ids[0]]] * (most - wanted))]
            stops = [*stops, *([[]] * (most - wanted))]
        if self.use_vllm:
            ids, logprobs = self._sample_with_vllm(prompts, stops, wanted)
        else:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            # Only where no other process has to take part in a call of the model
            cache = None if self._generates_together else self._prefix_cache
            # The model is asked how it may be sampled from, unless that would be a call of its own in each process
            traits = SamplerTraits() if self._generates_together else None
            hook = ActionGenerate(
                model,
                self.stop_texts,
                stops,
                self.temperature,
                self.eos_token_ids,
                cache,
                traits,
                draws,
                begun=begun,
                leave=leave,
            )
            training = model.training
            with self._greedy_in_eval(), instance_attribute(model, "generate", hook):
                ids, logprobs = self._sample(with_beginnings(prompts, begun))
            model.train(training)  # TRL's continuous batching leaves a model that is evaluated in training mode
            if logprobs is None and hook.logprobs is not None:
                logprobs = [row[: len(kept)] for row, kept in zip(hook.logprobs, ids)]
            return hook.completions(ids, logprobs, truncated)[:wanted]
        rows = zip(ids, logprobs or [None] * len(ids), stops)
        completions = [finish_completion(*row, self.stop_texts, self.eos_token_ids, truncated) for row in rows]
        return completions[:wanted]

    generate_turn.returns_early = True  # type: ignore[attr-defined]

    @property
    def decoding(self) -> AgentSettings:
        """How the next token is chosen at the moment: in an evaluation at `eval_temperature`."""
        training = {"temperature": self.args.temperature} if self.mode == "train" else {}
        return self.args.agent_settings(**training)

    def episode_seeds(self, count: int) -> list[int] | None:
        """
        Seeds of episodes that sample at their own pace, so that what they sample does not depend on which of them is ready first.

        `None` in lockstep, where PyTorch's generator does, in greedy decoding, and for backends that draw by themselves.
        """
        own = self.use_vllm or self.use_transformers_continuous_batching
        if self.rollout.mode == "lockstep" or own or not self.decoding.decoding_options()["do_sample"]:
            return None
        return episode_seeds(count)

    @property
    def generates_alone(self) -> bool:
        """Whether this process may generate when it likes, without a thought of the others."""
        return self.accelerator.num_processes == 1 or not (self._generates_together or self.use_vllm)

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is true in some process; asked only if the backend generates for all processes together."""
        if not self._generates_together:
            return flag
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).any())

    def park_prefixes(self, count: int) -> None:
        """Keep keys and values of up to so many episodes while the model generates for others."""
        if self._prefix_cache is not None:
            self._prefix_cache.parked = count if self.rollout.mode == "async" else 0

    def adapter_merged(self) -> AbstractContextManager[None]:
        """Within this context the adapter is part of the weights, if `merge_adapter` asks for it."""
        return (
            merged_adapter(self.accelerator.unwrap_model(self.model_wrapped))
            if self.args.merge_adapter
            else nullcontext()
        )

    def _check_merging(self) -> None:
        if self.use_vllm:
            reason: str | None = "vLLM is given merged weights anyway"
        elif self._generates_together:
            reason = "its weights are split between processes"
        elif self.args.mixed_precision != "no":
            reason = f"it computes in {self.args.mixed_precision}, in which small changes are lost"
        else:
            reason = why_not_merged(self.model)
        if reason is not None:
            raise ValueError(
                f"merge_adapter=True needs a LoRA adapter on whole float32 weights, but {reason}: leave it False."
            )

    def clear_prefix_cache(self) -> None:
        """Drop keys and values that were kept from earlier turns, since the weights are about to change."""
        if self._prefix_cache is not None:
            self._prefix_cache.clear()

    def _sample(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Any], list[Any] | None]:
        """Token ids of completions, and their log-probs if the backend computes them."""
        return check_values("_generate_single_turn", super()._generate_single_turn(prompts, None, {}, 1))

    @property
    def _generates_together(self) -> bool:
        """Whether one call of the generation backend is collective over processes."""
        if self.accelerator.num_processes == 1:
            return False
        if self.use_vllm:
            return self.vllm_mode == "server" or self.vllm_tensor_parallel_size > 1
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _sample_with_vllm(
        self, prompts: list[list[int]], stops: list[list[str]], wanted: int
    ) -> tuple[list[Any], list[Any] | None]:
        """
        Completions of vLLM, which takes one set of stop strings for all prompts of a call. The first `wanted` prompts are not dummies.

        A string that ends the turn of one prompt must not cut that of another. So there is a call for each set; where processes call together,
        one call with the strings that end all turns, and text is cut afterwards where a prompt has more.
        """
        # A thought that a prompt has opened must not end at an action inside it: there, too, text is cut afterwards
        known = [() if text_before_stops(row) else tuple(sorted(row)) for row in stops]
        if not self.generates_alone:
            everywhere = self.gather_records(known[:wanted]) if self._generates_together else known
            common = set(everywhere[0]).intersection(*everywhere) if everywhere else set()
            known = [tuple(sorted(common))] * len(prompts)
        ids: list[Any] = [None] * len(prompts)
        logprobs: list[Any] | None = [None] * len(prompts)
        for chosen in dict.fromkeys(known):
            places = [place for place, one in enumerate(known) if one == chosen]
            with self._vllm_stops(chosen):
                found, numbers = self._sample([prompts[place] for place in places])
            for index, place in enumerate(places):
                ids[place] = found[index]
                if numbers is not None and logprobs is not None:
                    logprobs[place] = numbers[index]
            logprobs = None if numbers is None else logprobs
        return ids, logprobs

    @contextmanager
    def _vllm_stops(self, stops: Sequence[str]) -> Iterator[None]:
        """Pass stop strings to vLLM, and in an evaluation its temperature."""
        backend = self.vllm_generation
        own = dict(backend.generation_kwargs or {})
        extra: dict[str, Any] = {}
        if stops:
            extra = {"stop": [*own.get("stop", []), *stops], "include_stop_str_in_output": True}
        temperature = backend.temperature
        if self.mode == "eval" and self.args.eval_temperature is not None:
            temperature = self.args.eval_temperature
        with (
            instance_attribute(backend, "generation_kwargs", {**own, **extra}),
            instance_attribute(backend, "temperature", temperature),
        ):
            yield

    @contextmanager
    def _greedy_in_eval(self) -> Iterator[None]:
        """Use `eval_temperature` while TRL evaluates."""
        if self.mode == "train" or self.args.eval_temperature is None:
            yield
            return
        changes = self.decoding.decoding_options()
        config = self.generation_config
        before = {name: getattr(config, name) for name in changes}
        kwargs = dict(self.generation_kwargs)
        try:
            config.update(**changes)
            self.generation_kwargs = {**kwargs, **changes}
            yield
        finally:
            config.update(**before)
            self.generation_kwargs = kwargs
