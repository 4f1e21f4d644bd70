"""What a model's own `generation_config.json` may decide: which tokens end a sequence, and nothing about how it samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from .decoding_modes import PLAIN_MODES

logger = logging.getLogger(__name__)

# Fields of a generation config that change which token is chosen, with the values that change nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    **PLAIN_MODES,
}

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "cache_implementation", "use_cache")


def changes_samples(name: str, value: Any) -> bool:
    """Whether a value of an argument of `generate` that chooses tokens changes something."""
    return value is not None and value not in _NEUTRAL[name]


def ignored_decoding(model: Any) -> dict[str, Any]:
    """Settings of a model's `generation_config.json` that would change its samples, by name; they are not used."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in _NEUTRAL}
    return {name: value for name, value in found.items() if changes_samples(name, value)}


def warn_of_ignored_decoding(model: Any, chosen: dict[str, Any]) -> None:
    """
    Log one line if a model's `generation_config.json` wants another decoding than the one that is used.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        chosen (`dict`):
            Arguments of `generate` in force; a setting that is among them was decided by the user.
    """
    ignored = {
        name: value for name, value in ignored_decoding(model).items() if chosen.get(name, _NEUTRAL[name]) != value
    }
    if ignored:
        wanted = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        logger.warning(
            f"The model's generation_config.json asks for {wanted}, which is not used: trainer and agent decode by their own "
            "settings, so that tokens are drawn from the distribution that the update computes. Set it there (or in "
            "`generation_kwargs`) to use it."
        )


def owners_of_decoding(model: Any) -> list[Any]:
    """A model and, since peft hands its own generation config down to it, the one below its adapter."""
    base = getattr(model, "get_base_model", lambda: model)()
    return [model] if base is model else [model, base]


@contextmanager
def own_decoding_only(model: Any) -> Iterator[None]:
    """
    Keep `generate` from filling what its caller left open with the model's `generation_config.json`.

    `transformers` takes every argument of `generate` that is `None` from there. Within this context the model has a generation
    config with its special tokens and its cache, and nothing else.
    """
    owners = owners_of_decoding(model)
    before = [owner.__dict__.get("generation_config") for owner in owners]
    full = model.generation_config
    bare = GenerationConfig(**{name: value for name in _KEPT if (value := getattr(full, name, None)) is not None})
    for owner in owners:
        owner.generation_config = bare
    try:
        yield
    finally:
        for owner, config in zip(owners, before):
            if config is None:
                owner.__dict__.pop("generation_config", None)
            else:
                owner.generation_config = config
