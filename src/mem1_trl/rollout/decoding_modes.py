"""
Arguments of `generate` with the values that change nothing: those of sampling, and ways of decoding in which a row is not one context that
grows by one sampled token at each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

NEUTRAL_SAMPLING: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
}
"""Settings beside the temperature that every sampler knows, with the values that change nothing."""

# Arguments of `generate`, with the values that keep it plain; `None` always does
PLAIN_MODES: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "constraints": (),
    "force_words_ids": (),
    "assistant_model": (),
    "assistant_tokenizer": (),
    "assistant_early_exit": (),
    "prompt_lookup_num_tokens": (),
    "custom_generate": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "use_mtp": (False,),
    "token_healing": (False,),  # samples from another context than the one that is recorded
    # As vLLM calls them
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
}

# Arguments that this package passes itself, or that change what `generate` returns
_OWN = (
    "input_ids", "inputs", "attention_mask", "past_key_values", "cache", "generation_config", "max_length", "logits_processor", "stopping_criteria",
    "return_dict_in_generate", "stop_strings", "pad_token_id",
)  # fmt: skip


def changing(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of some settings of [`~AgentSettings.decoding_options`] that do change something."""
    return {name: options[name] for name in names if options.get(name) not in NEUTRAL_SAMPLING[name]}


def refuse_for_server(generation_kwargs: Mapping[str, Any], sent: Iterable[str]) -> None:
    """
    Refuse arguments of `generate` that would not reach a server.

    Args:
        generation_kwargs (`Mapping[str, Any]`):
            Arguments of `generate`.
        sent (`Iterable[str]`):
            Names of those that are sent.

    Raises:
        `ValueError`: If there is another that may change something.
    """
    for name, value in generation_kwargs.items():
        neutral = {**NEUTRAL_SAMPLING, **PLAIN_MODES}.get(name, ())
        if name not in sent and value is not None and value not in neutral:
            raise ValueError(
                f"generation_kwargs are arguments of `generate`, which a server does not take, got {name}={value!r}: leave it out, or pass "
                "what the server knows as `request_kwargs`."
            )


def listed_bias(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` in which a `sequence_bias` by tuples of tokens is a list, the form of it that a file can hold."""
    bias = options.get("sequence_bias")
    if not isinstance(bias, Mapping):
        return dict(options)
    return {**options, "sequence_bias": [[list(tokens), value] for tokens, value in bias.items()]}


def refuse_decoding_modes(options: Mapping[str, Any]) -> None:
    """
    Refuse arguments of `generate` under which log-probs of sampled tokens could not be recorded.

    Args:
        options (`Mapping[str, Any]`):
            Arguments of `generate`.

    Raises:
        `ValueError`: For beam search, several sequences for one context, assisted, contrastive and custom decoding, for
            arguments that belong to this package, for other end tokens, and for a second temperature or budget.
    """
    for name, value in options.items():
        if name in PLAIN_MODES and value is not None and value not in PLAIN_MODES[name]:
            raise ValueError(
                "generation_kwargs must leave each context one sequence that grows by one sampled token at a time, since its "
                f"log-probs are those of the policy update, got {name}={value!r}: leave it out."
            )
        if name in _OWN and value is not None and value is not False:
            raise ValueError(f"generation_kwargs must not set {name}, which mem1-trl sets itself: leave it out.")
    if options.get("eos_token_id") is not None:
        raise ValueError(
            f"generation_kwargs must not set eos_token_id={options['eos_token_id']!r}, after which padding would be trained as if it had been "
            "sampled: set `model.generation_config.eos_token_id`, whose tokens end a turn."
        )
    if options.get("temperature") is not None:
        raise ValueError(
            f"generation_kwargs must not set temperature={options['temperature']!r}, at which tokens would be sampled but not scored: "
            "set `temperature` itself."
        )
    if options.get("max_new_tokens") is not None:
        raise ValueError(
            f"generation_kwargs must not set max_new_tokens={options['max_new_tokens']!r}, a second budget beside that of a turn: set "
            "`max_completion_length`."
        )
