"""Tiny models, tokenizers and trajectories that the tests share. All random, all seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from support.contexts import next_context
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mem1_trl import StopReason, Trajectory, Turn

VOCAB = 320
TAGS = ("think", "search", "information", "answer", "IS", "query", "info", "summary")

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}

# A window shorter than any trajectory of the tests
_WINDOW = 16

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama", **_SMALL),
    "qwen2": dict(model_type="qwen2", **_SMALL),
    "qwen3": dict(model_type="qwen3", **_SMALL),
    "gemma": dict(model_type="gemma", **_SMALL),
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 4096,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        # No dropout, so that training mode computes what evaluation mode does
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mistral": dict(model_type="mistral", sliding_window=_WINDOW, **_SMALL),
    "gemma2": dict(model_type="gemma2", sliding_window=_WINDOW, query_pre_attn_scalar=8, **_SMALL),
    "gemma3": dict(
        model_type="gemma3_text",
        sliding_window=_WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **_SMALL,
    ),
    "mamba": {
        "model_type": "mamba",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    # Hybrids: a state-space layer, a delta rule or a short convolution beside attention
    "bamba": dict(
        model_type="bamba",
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=16,
        attn_layer_indices=[1],
        **_SMALL,
    ),
    "qwen3_next": dict(
        model_type="qwen3_next",
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        **_SMALL,
    ),
    "lfm2": dict(model_type="lfm2", layer_types=["conv", "full_attention", "conv"], **_SMALL),
}

MASKED = ("llama", "qwen2", "qwen3", "gemma", "gpt2")
"""Architectures that can forward a prefix tree; the others run one row per turn."""

IMPLEMENTATIONS = {"gemma2": ("eager",), "mamba": (None,)}
"""Attention implementations of an architecture, where they are not both `"sdpa"` and `"eager"`."""


def tiny_model(
    architecture: str = "llama", attn_implementation: str | None = "sdpa", seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random model in float32. Weights are scaled up so that context matters visibly."""
    spec = {**ARCHITECTURES[architecture], **overrides}
    config = AutoConfig.for_model(spec.pop("model_type"), **spec)
    torch.manual_seed(seed)
    kwargs = {} if architecture == "mamba" else {"attn_implementation": attn_implementation}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kwargs)
    # An embedding that is the head too must be scaled like any head, or all log-probs are nearly uniform
    kept = ("A_log", "wpe") if config.tie_word_embeddings else ("A_log", "wpe", "wte", "embed")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not any(part in name for part in kept):
                parameter.mul_(4.0)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text survives a round trip, and each tag is one ordinary token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<eos>": 1, **{token: index + 2 for index, token in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")])
    assert len(tokenizer) <= VOCAB
    return tokenizer


def build_trajectory(
    prompt: Sequence[int],
    blocks: Sequence[tuple[Sequence[int], Sequence[int]]],
    context: str = "mem1",
    max_history_length: int | None = None,
) -> Trajectory:
    """The episode in which a turn sampled the first and was answered the second of each of `blocks`, all token ids."""
    turns: list[Turn] = []
    past: list[tuple[int, ...]] = []
    for completion, observation in blocks:
        prompt_ids = tuple(next_context(context, prompt, past, max_history_length))
        turns.append(Turn(prompt_ids=prompt_ids, completion_ids=tuple(completion)))
        past.append((*completion, *observation))
    return Trajectory(turns=turns, stop_reason=StopReason.ANSWER)


def random_trajectory(
    generator: random.Random,
    num_turns: int,
    prompt_length: int = 12,
    state_length: tuple[int, int] = (3, 9),
    observation_length: tuple[int, int] = (0, 8),
    context: str = "mem1",
    max_history_length: int | None = None,
) -> Trajectory:
    """Random token ids in the shape of an agent's episode under a rule of context."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, VOCAB) for _ in range(count))

    prompt = ids(prompt_length)
    blocks = [
        (ids(generator.randint(*state_length)), ids(generator.randint(*observation_length))) for _ in range(num_turns)
    ]
    return build_trajectory(prompt, blocks, context, max_history_length)


def turn_distributions(
    model: PreTrainedModel, trajectory: Trajectory, temperature: float = 1.0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each turn, scored on its own, unpadded, by the plain model: log-probs `(tokens, vocabulary)`, and what was sampled."""
    for turn in trajectory.turns:
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
        logits = model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1].float() / temperature
        yield torch.log_softmax(logits, -1), ids[0, len(turn.prompt_ids) :]


def oracle_logprobs(model: PreTrainedModel, trajectory: Trajectory, temperature: float = 1.0) -> list[torch.Tensor]:
    """What the update has to agree with: the log-probs of each turn's sampled tokens."""
    distributions = turn_distributions(model, trajectory, temperature)
    return [logprobs.gather(1, sampled[:, None]).squeeze(1) for logprobs, sampled in distributions]


def oracle_entropies(model: PreTrainedModel, trajectory: Trajectory, temperature: float = 1.0) -> torch.Tensor:
    """Entropy, in nats, of the distribution that each token of a trajectory was sampled from."""
    distributions = turn_distributions(model, trajectory, temperature)
    return torch.cat([-(logprobs.exp() * logprobs).sum(-1) for logprobs, _ in distributions])


def is_checkpointed(model: PreTrainedModel) -> bool:
    """Whether activations are computed again in the backward pass; the model's own property has another name in each version."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
