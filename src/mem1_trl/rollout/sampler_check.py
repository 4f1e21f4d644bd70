"""Whether a model samples a batch of contexts as it samples each of them alone: under padding, and from kept keys and values."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ..model_traits import ordinary_ids
from ..trajectory import Turn
from ..update.scoring import token_logprobs
from ..update.self_check import Gap, plain_values, tolerance_of

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

TOY_TOKENS = 4
"""Tokens sampled for each context."""

_KNOWN: WeakKeyDictionary[Any, SamplerTraits] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class SamplerTraits:
    """
    How the contexts of a batch may be passed to a model's `generate`.

    Attributes:
        pads (`bool`): Whether contexts of different lengths may be padded on the left.
        caches (`bool`): Whether keys and values of earlier calls may be kept.
        gaps (`dict[str, Gap]`): What was measured, by `"cached"`, `"padded"` and `"unpadded"`.
    """

    pads: bool = True
    caches: bool = True
    gaps: dict[str, Gap] = field(default_factory=dict)


def sampler_traits(model: Any, sample: Callable[[SamplerTraits, list[list[list[int]]]], list[Any]]) -> SamplerTraits:
    """
    How a model may be sampled from, found out once for each model by sampling a few tokens greedily.

    Padding and the cache are given up where they change the log-probs by more than rounding, with one line in the log. Models
    that keep the state of positions outside of their cache fail with it; some recurrent ones read their padding.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        sample (`Callable`):
            Takes traits and batches of contexts, samples one batch after the other with the same cache, and returns all
            completions, each with `ids` and `logprobs`, in order.

    Returns:
        [`SamplerTraits`]
    """
    if model not in _KNOWN:
        _KNOWN[model] = _find_out(model, sample)
    return _KNOWN[model]


def _find_out(model: Any, sample: Callable[[SamplerTraits, list[list[list[int]]]], list[Any]]) -> SamplerTraits:
    batches = _batches(ordinary_ids(model))
    contexts = [context for batch in batches for context in batch]
    tolerance = tolerance_of(model)
    training = model.training
    model.eval()

    def measure(traits: SamplerTraits) -> Gap:
        try:
            completions = sample(traits, batches)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # models fail in many ways with a cache that they were not written for
            return Gap(torch.inf, torch.inf, f"{type(problem).__name__}: {problem}".splitlines()[0][:200])
        turns = [Turn(tuple(c), tuple(done.ids)) for c, done in zip(contexts, completions, strict=True)]
        recorded = torch.tensor([value for done in completions for value in done.logprobs], device=model.device)
        return Gap.of(lambda: recorded, plain_values(token_logprobs(model), turns, model.device))

    gaps: dict[str, Gap] = {}
    try:
        with torch.no_grad():
            for name, traits in (
                ("cached", SamplerTraits()),
                ("padded", SamplerTraits(caches=False)),
                ("unpadded", SamplerTraits(pads=False, caches=False)),
            ):
                gaps[name] = measure(traits)
                if gaps[name].within(tolerance):
                    _say(model, gaps)
                    return SamplerTraits(traits.pads, traits.caches, gaps)
    finally:
        model.train(training)
    return SamplerTraits(caches=False, gaps=gaps)  # nothing was right, so that nothing is gained by going slowly


def _say(model: Any, gaps: dict[str, Gap]) -> None:
    name = type(model).__name__
    if "padded" in gaps:
        logger.warning(
            f"Keys and values of earlier calls are not kept, since the sampler of {name} {gaps['cached']} with them."
        )
    if "unpadded" in gaps:
        logger.warning(
            f"Contexts of different lengths are sampled one length at a time, since {name} {gaps['padded']} under padding."
        )


def _batches(ids: list[int]) -> list[list[list[int]]]:
    """Two calls: contexts of different lengths, and contexts that continue them or share their beginning."""

    def some(start: int, count: int) -> list[int]:
        return [ids[(start + 7 * place * place) % len(ids)] for place in range(count)]

    long, short = some(1, 13), some(5, 4)
    return [[long, short], [[*long[:9], *some(3, 3)], [*short, *some(8, 9)], some(2, 2)]]
