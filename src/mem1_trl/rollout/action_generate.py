"""`model.generate` for one turn: it stops at closed actions, records log-probs, keeps what was read, and can be left early."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from ..model_traits import cache_argument, embedding_rows, ordinary_ids
from .decoding import changes_samples, own_decoding_only, owners_of_decoding
from .prefix_cache import PrefixCache, looks_for_sequences
from .sampled_logprobs import SampledLogprobs
from .sampler_check import TOY_TOKENS, SamplerTraits, sampler_traits
from .seeded_sampling import SeededSampling, seeded_options
from .stopping import ActionStoppingCriteria, Completion, StopStringFinder, finish_completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import PreTrainedModel

    from .turn_listener import TurnListener

# Below this number of sequences, another call costs more than it saves
_FEWEST_TO_LEAVE = 4

_OF_A_CALL = (
    "min_new_tokens", "min_length", "forced_eos_token_id", "forced_bos_token_id", "exponential_decay_length_penalty", "begin_suppress_tokens",
    "encoder_repetition_penalty", "guidance_scale", "max_time",
)  # fmt: skip
"""Options that concern the start or the length of one call: with them, a turn must not be generated in two calls."""


class ActionGenerate:
    """
    Replaces `model.generate` while one turn is generated: stops at closed actions and records log-probs.

    With a cache, prefixes that were read before are not read again, and sequences that have ended are removed from the batch: as
    soon as half of them have ended, `generate` is called again for the others, at half the cost.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        stop_texts ([`StopStringFinder`] or `None`):
            Finds the closing tags. `None` if there are no stop strings.
        stops (`list[list[str]]`):
            Stop strings of each sequence.
        temperature (`float`):
            Sampling temperature.
        eos_token_ids (`Sequence[int]`):
            Ids that end a sequence.
        cache ([`PrefixCache`], *optional*):
            Keys and values of earlier calls. It is not used if those of the model cannot be kept, nor by a `generate` that is
            not that of transformers, which may not read the gaps that it leaves between columns.
        traits ([`SamplerTraits`], *optional*):
            How contexts may be passed to the model. `None` finds out, once for each model.
        draws (`Sequence[numpy.ndarray]`, *optional*):
            Numbers that choose the tokens of each sequence if it is sampled, see [`SeededSampling`]. `None` uses PyTorch's generator,
            which all sequences share; so do options of sampling that [`seeded_options`] does not know.
        listeners (`Sequence[TurnListener | None]`, *optional*):
            Are told the tokens of each sequence as they are sampled.
        begun (`Sequence[Completion | None]`, *optional*):
            What earlier calls have sampled of each sequence. The contexts that are passed end with it.
        leave (`int`, *optional*):
            Return as soon as so many sequences have ended, if the others can go on later at no cost: with a cache. `None` returns when all have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_texts: StopStringFinder | None,
        stops: list[list[str]],
        temperature: float,
        eos_token_ids: Sequence[int],
        cache: PrefixCache | None = None,
        traits: SamplerTraits | None = None,
        draws: Sequence[np.ndarray] | None = None,
        listeners: Sequence[TurnListener | None] | None = None,
        begun: Sequence[Completion | None] | None = None,
        leave: int | None = None,
    ):
        self.model = model
        self.generate: Any = model.generate
        self.traits = sampler_traits(model, partial(sample_toys, model)) if traits is None else traits
        self.stop_texts = stop_texts
        self.stops = stops
        self.temperature = temperature
        self.eos_token_ids = eos_token_ids
        plain = _generates_as_transformers(model)
        self.cache = cache if plain else None
        self.draws = draws if plain else None
        self.listeners = listeners
        self.begun = list(begun or [None] * len(stops))
        self.written = [list(one.ids) if one is not None else [] for one in self.begun]
        self.leave = leave
        self.logprobs: list[list[float]] | None = None
        self.going_on: set[int] = set()  # sequences that were left before they had ended
        self._sampled: list[int] | None = None  # how many tokens of each, if some may have fewer

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Prompts and completions, shape `(B, prompt + completion)`, as from `generate`; padded after the end."""
        with own_decoding_only(self.model):  # whatever reads an option reads what `generate` will read
            return self._sequences(input_ids, attention_mask, options)

    def _sequences(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        if self.cache is None or not self.traits.caches or not self.cache.fits(self.model, options):
            if not self.traits.pads and not attention_mask.all():
                return self._generate_by_length(input_ids, attention_mask, options)
            shown = input_ids
            if not looks_for_sequences(partial(_option, self.model, options)):
                shown = _without_padding(input_ids, attention_mask)
            sequences, self.logprobs, _ = self._call(
                range(len(input_ids)), self.written, 0, input_ids=shown, attention_mask=attention_mask, **options
            )
            return torch.cat([input_ids, sequences[:, input_ids.shape[1] :]], dim=1)
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids.cpu(), attention_mask.cpu())]
        completions = self._generate_cached(self.cache, prompts, options)
        return _append(input_ids, completions, self.cache.pad_token_id)

    def completions(
        self,
        sampled: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]] | None,
        truncated_sampling: bool,
    ) -> list[Completion]:
        """
        The turns as far as they have come, from their beginning.

        Args:
            sampled (`Sequence[Sequence[int]]`):
                Tokens that this call has sampled of each, padded after the end.
            logprobs (`Sequence[Sequence[float]]` or `None`):
                Their log-probs, if known.
            truncated_sampling (`bool`):
                As in [`Completion`].
        """
        found = []
        for row, ids in enumerate(sampled):
            before = self.begun[row]
            ids = ids if self._sampled is None else ids[: self._sampled[row]]  # without padding
            own = None if logprobs is None else list(logprobs[row])
            if before is not None:
                ids = [*before.ids, *ids]
                own = None if own is None or before.logprobs is None else [*before.logprobs, *own]
            if row in self.going_on:
                own_logprobs = None if own is None else tuple(own[: len(ids)])
                found.append(Completion(tuple(ids), own_logprobs, False, truncated_sampling, unfinished=True))
                continue
            assert self.stop_texts is not None
            found.append(
                finish_completion(ids, own, self.stops[row], self.stop_texts, self.eos_token_ids, truncated_sampling)
            )
        return found

    def _generate_by_length(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """As [`~ActionGenerate.__call__`], in one call for each length of a context, so that none is padded."""
        lengths, recorded = attention_mask.sum(dim=1), True
        completions: list[list[int]] = [[] for _ in input_ids]
        logprobs: list[list[float]] = [[] for _ in input_ids]
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten().tolist()
            own: dict[str, Any] = {
                "input_ids": input_ids[rows, -length:],
                "attention_mask": attention_mask[rows, -length:],
            }
            sequences, of_rows, _ = self._call(rows, [self.written[row] for row in rows], 0, **own, **options)
            recorded &= of_rows is not None
            for row, ids, values in zip(rows, sequences[:, length:].tolist(), of_rows or [[]] * len(rows)):
                completions[row], logprobs[row] = ids, values
        self.logprobs = logprobs if recorded else None
        return _append(input_ids, completions, int(input_ids[attention_mask == 0][0]))

    def _generate_cached(
        self, cache: PrefixCache, prompts: list[list[int]], options: dict[str, Any]
    ) -> list[list[int]]:
        option = partial(_option, self.model, dict(options))
        budget = option("max_new_tokens")
        options.pop("max_new_tokens", None)
        in_one_call = any(changes_samples(name, option(name)) for name in _OF_A_CALL)
        may_leave = budget is not None and not in_one_call and any(self.stops)
        running = list(range(len(prompts)))
        completions: list[list[int]] = [[] for _ in prompts]
        all_logprobs: list[list[float]] = [[] for _ in prompts]
        recorded = True
        early = self.leave if may_leave else None
        fresh = [row for row in running if not self.written[row]]
        # Those that have read everything but one token do not wait in a wide pass while others read
        alone = early is not None and 0 < len(fresh) < len(running)
        while running:
            rows = fresh if alone else running
            written = [[*self.written[row], *completions[row]] for row in rows]
            contexts = [[*prompts[row], *completions[row]] for row in rows]
            inputs = cache.prepare(self.model, contexts)
            columns, most = inputs["input_ids"].shape[1], None
            if budget is not None:
                most = 1 if alone else budget - min(map(len, written))
            limits = {} if most is None else {"max_new_tokens": most}
            if early is not None:
                leave_at = 0 if alone else max(len(rows) - early, 0)
            else:
                leave_at = len(running) // 2 if may_leave and len(running) >= _FEWEST_TO_LEAVE else 0
            with cache.graphs.attached(self.model) if cache.graphs is not None and not alone else nullcontext():
                sequences, logprobs, done = self._call(rows, written, leave_at, budget, **inputs, **limits, **options)
            sampled = sequences[:, columns:]
            if logprobs is None:  # steps of a kind that is not known, which leave keys of other tokens
                cache.clear()
                recorded = False
            else:
                cache.keep(contexts, sampled, inputs[cache_argument(self.model)])
            for row, ids, row_logprobs, before in zip(rows, sampled.tolist(), logprobs or [[]] * len(rows), written):
                left = None if budget is None else budget - len(before)
                completions[row] += ids[:left]
                all_logprobs[row] += row_logprobs[:left]
            going_on = {row for row, ended in zip(rows, done) if not ended}
            if alone:
                alone, running = False, [row for row in running if row in going_on or row not in rows]
            elif early is not None:
                self.going_on, running = going_on, []
            else:
                spent = budget is None or leave_at == 0 or sampled.shape[1] >= (most or 0)
                running = [] if spent else [row for row in rows if row in going_on]
        self.logprobs = all_logprobs if recorded else None
        self._sampled = list(map(len, completions))
        return completions

    def _call(
        self,
        rows: Sequence[int],
        written: Sequence[Sequence[int]],
        leave_at: int,
        budget: int | None = None,
        **inputs: Any,
    ) -> tuple[torch.Tensor, list[list[float]] | None, list[bool]]:
        """
        Sequences of some rows, their log-probs, and which have ended, from one call of `generate`.

        `written` are the tokens of their completions that earlier calls have sampled, with which `inputs` end. A completion has ended at
        `budget` tokens.
        """
        stops = [self.stops[row] for row in rows]
        listeners = None if self.listeners is None else [self.listeners[row] for row in rows]
        contexts = inputs["input_ids"]
        columns = contexts.shape[1]
        criteria = ActionStoppingCriteria(
            self.stop_texts, stops, columns, self.eos_token_ids, leave_at, listeners, written, budget
        )
        greedy = not inputs.get("do_sample", getattr(inputs.get("generation_config"), "do_sample", None))
        recorder = SampledLogprobs(self.temperature, columns, criteria if greedy else None)
        processors: list[LogitsProcessor] = [recorder]
        warpers = None if self.draws is None else seeded_options(partial(_option, self.model, inputs))
        if self.draws is not None and warpers is not None:
            left = [self.draws[row][len(ids) :] for row, ids in zip(rows, written)]
            processors.append(SeededSampling(left, columns, warpers))
            inputs = {**inputs, "do_sample": False}
        sequences = self.generate(
            stopping_criteria=StoppingCriteriaList([criteria]),
            logits_processor=LogitsProcessorList(processors),
            **_in_one_form(inputs),
        )
        _check_rows(sequences, contexts)
        return sequences, recorder.finish(sequences), criteria.done


def _in_one_form(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a call of `generate`, all of them in its generation config if it is given one: it takes one form or the other."""
    if options.get("generation_config") is None:
        return options
    config = copy.deepcopy(options["generation_config"])
    others = {name: value for name, value in options.items() if name != "generation_config"}
    return {"generation_config": config, **config.update(**others)}


def _option(model: Any, options: dict[str, Any], name: str) -> Any:
    """An option of a call of `generate`: its own, or that of the configuration."""
    config = options.get("generation_config") or model.generation_config
    return options.get(name, getattr(config, name, None))


def _without_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Contexts that hold their own first token where they are padded.

    The model does not see it, but what lowers the logits of tokens in the context does: padding is often the end token.
    """
    first = attention_mask.argmax(dim=1, keepdim=True)
    return torch.where(attention_mask.bool(), input_ids, input_ids.gather(1, first))


def _generates_as_transformers(model: Any) -> bool:
    """Whether `generate` of a model, and of the one below its adapter, is that of transformers."""
    return all(
        "generate" not in vars(owner)
        and (hasattr(owner, "get_base_model") or type(owner).generate is GenerationMixin.generate)
        for owner in owners_of_decoding(model)
    )


def _check_rows(sequences: Any, contexts: torch.Tensor) -> None:
    """Raise `ValueError` unless `generate` returned a row for each context, which begins with it."""
    columns = contexts.shape[1]
    shape = tuple(getattr(sequences, "shape", ()))
    if len(shape) != 2 or shape[0] != len(contexts) or not torch.equal(sequences[:, :columns], contexts):
        raise ValueError(
            f"`model.generate` must return one row of token ids for each of the {len(contexts)} contexts, which begins with it, "
            f"got {f'shape {shape}' if shape else type(sequences).__name__}: restore the `generate` of transformers."
        )


def _append(input_ids: torch.Tensor, completions: list[list[int]], padding: int) -> torch.Tensor:
    """Prompts of one length and their completions, padded on the right."""
    longest = max(map(len, completions))
    padded = [[*ids, *([padding] * (longest - len(ids)))] for ids in completions]
    return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], dim=1)


def with_beginnings(
    prompts: Sequence[Sequence[int]], begun: Sequence[Completion | None] | None
) -> list[Sequence[int]]:
    """Contexts, followed by what was already sampled of their completions."""
    return [
        prompt if one is None else [*prompt, *one.ids] for prompt, one in zip(prompts, begun or [None] * len(prompts))
    ]


def pad_left(prompts: Sequence[Sequence[int]], padding: int, device: Any) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of contexts, shape `(B, longest)`, as `generate` takes them."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[*[padding] * (longest - len(p)), *p] for p in prompts], device=device),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device),
    }


def sample_toys(model: PreTrainedModel, traits: SamplerTraits, batches: list[list[list[int]]]) -> list[Completion]:
    """A few greedy tokens for each context, see [`sampler_traits`]."""
    padding = ordinary_ids(model)[0]
    cache = PrefixCache(padding) if traits.caches else None
    completions = []
    for contexts in batches:
        hook = ActionGenerate(model, None, [[] for _ in contexts], 1.0, (), cache, traits)
        inputs = pad_left(contexts, padding, model.device)
        nothing = embedding_rows(model)  # no token ends a sequence
        sequences = hook(
            **inputs, max_new_tokens=TOY_TOKENS, do_sample=False, pad_token_id=padding, eos_token_id=nothing
        )
        if hook.logprobs is None:
            raise ValueError("its steps are not those of its sequences")
        for ids, logprobs in zip(sequences[:, inputs["input_ids"].shape[1] :].tolist(), hook.logprobs):
            completions.append(Completion(tuple(ids), tuple(logprobs), True))
    return completions
