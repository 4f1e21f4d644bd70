"""Tiny models, tokenizers and trajectories that the tests share. All random, all seeded."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mem1_trl import StopReason, Trajectory, Turn

VOCAB = 320
TAGS = ("think", "search", "information", "answer", "IS", "query", "info", "summary")

_SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    head_dim=8,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)

ARCHITECTURES: dict[str, dict] = {
    "llama": dict(model_type="llama", **_SMALL),
    "qwen2": dict(model_type="qwen2", **_SMALL),
    "qwen3": dict(model_type="qwen3", **_SMALL),
    # A window shorter than any trajectory of the tests
    "mistral": dict(model_type="mistral", sliding_window=16, **_SMALL),
    "gemma3": dict(model_type="gemma3_text", sliding_window=16, **_SMALL),
    "gemma": dict(model_type="gemma", **_SMALL),
    "gpt2": dict(
        model_type="gpt2", vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=4096, pad_token_id=0, eos_token_id=1
    ),
    "mamba": dict(
        model_type="mamba", vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, state_size=8, pad_token_id=0, eos_token_id=1
    ),
}


def tiny_model(architecture: str = "llama", attn_implementation: str | None = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random model in float32. Weights are scaled up so that context matters visibly."""
    spec = dict(ARCHITECTURES[architecture])
    config = AutoConfig.for_model(spec.pop("model_type"), **spec)
    torch.manual_seed(seed)
    kwargs = {} if architecture == "mamba" else {"attn_implementation": attn_implementation}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kwargs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "wpe" not in name and "wte" not in name:
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
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left", clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")])
    assert len(tokenizer) <= VOCAB
    return tokenizer


def random_trajectory(
    generator: random.Random,
    num_turns: int,
    prompt_length: int = 12,
    state_length: tuple[int, int] = (3, 9),
    observation_length: tuple[int, int] = (0, 8),
    context: str = "mem1",
) -> Trajectory:
    """Random token ids in the shape of an agent's episode under a rule of context."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, VOCAB) for _ in range(count))

    prompt = ids(prompt_length)
    past: list[tuple[int, ...]] = []
    turns = []
    for _ in range(num_turns):
        kept = past if context == "full" else past[-1:]
        completion = ids(generator.randint(*state_length))
        turns.append(Turn(prompt_ids=prompt + tuple(i for block in kept for i in block), completion_ids=completion))
        past.append(completion + ids(generator.randint(*observation_length)))
    return Trajectory(turns=turns, stop_reason=StopReason.ANSWER)


def oracle_logprobs(model: PreTrainedModel, trajectory: Trajectory, temperature: float = 1.0) -> list[torch.Tensor]:
    """What the update has to agree with: every turn scored on its own, unpadded, by the plain model."""
    scores = []
    for turn in trajectory.turns:
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
        logits = model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1].float() / temperature
        targets = ids[0, len(turn.prompt_ids) :]
        scores.append(torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1))
    return scores
