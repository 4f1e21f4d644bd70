"""The sizes that everything else follows from: those of a model, and those of an episode."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from ..model_traits import head_size, layer_configs

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from ..trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class ModelShape:
    """
    Numbers of weights of a causal language model, and what its keys and values take.

    Attributes:
        layers, hidden, intermediate, vocabulary (`int`):
            As in its configuration.
        heads_width (`int`):
            Query heads times their size, the mean over layers; 0 without attention. Where keys and values are not of one size, the mean
            of both.
        keys_width (`int`):
            Heads of keys times the same size.
        cached (`int`):
            Numbers that all layers together keep of a token that was read: keys and values, or what they are made from (DeepSeek).
        parameters (`int`):
            All weights, tied ones once.
        backbone (`int`):
            Those below the language-modelling head, embeddings included.
        linear (`int`):
            Those of linear layers below the head: what 4-bit weights replace.
        active (`int`):
            Weights that one token is multiplied with below the head: with experts, those of the experts that it is sent to.
        adapters (`int`):
            Weights of one adapter; 0 without.
        adapted (`int`):
            Weights of the layers that it changes.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads_width: int
    keys_width: int
    cached: int
    parameters: int
    backbone: int
    linear: int
    active: int
    adapters: int = 0
    adapted: int = 0

    @classmethod
    def of(cls, config: PretrainedConfig, peft_config: PeftConfig | None = None) -> ModelShape:
        """
        Count the weights of a model that is built without memory, on torch's `meta` device.

        Args:
            config ([`~transformers.PretrainedConfig`]):
                Of a causal language model.
            peft_config ([`~peft.PeftConfig`], *optional*):
                Adapter that is trained.
        """
        kind: Any = AutoModelForCausalLM
        if type(config) not in kind._model_mapping and type(config) in AutoModelForImageTextToText._model_mapping:
            kind = AutoModelForImageTextToText  # which is trained on text
        with torch.device("meta"):
            model = kind.from_config(copy.deepcopy(config))
        inner = model.base_model
        reads_text = getattr(inner, "language_model", inner)
        linear = _linear_weights(inner)
        experts = [p for p in reads_text.parameters() if p.ndim == 3]
        text = config.get_text_config()
        used = _first(text, "num_experts_per_tok", "top_k_experts") or 1
        share = used / (_first(text, "num_experts", "num_local_experts") or used)
        configs = layer_configs(text)
        widths = [_attention_widths(one) for one in configs]
        shape = dict(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=_first(text, "intermediate_size") or 4 * text.hidden_size,
            vocabulary=text.vocab_size,
            heads_width=round(fmean(heads for heads, _ in widths)),
            keys_width=round(fmean(keys for _, keys in widths)),
            cached=round(text.num_hidden_layers * fmean(_kept_of_token(one) for one in configs)),
            parameters=sum(p.numel() for p in model.parameters()),
            backbone=sum(p.numel() for p in inner.parameters()),
            linear=sum(w.numel() for w in {id(w): w for w in linear}.values()),  # some layers share theirs
            active=sum(w.numel() for w in _linear_weights(reads_text))
            + round(share * sum(p.numel() for p in experts)),
        )
        if peft_config is None:
            return cls(**shape)
        with_adapter: Any = get_peft_model(model, copy.deepcopy(peft_config))
        changed = [m.get_base_layer() for m in with_adapter.modules() if isinstance(m, BaseTunerLayer)]
        return cls(
            **shape,
            adapters=sum(p.numel() for p in with_adapter.parameters() if p.requires_grad),
            adapted=sum(p.numel() for layer in changed for p in layer.parameters()),
        )


def _linear_weights(module: nn.Module) -> list[torch.Tensor]:
    """The weights of all linear layers, those of GPT-2 included, once for each layer."""
    return [m.weight for m in module.modules() if isinstance(m, (nn.Linear, Conv1D))]


def _attention_widths(config: Any) -> tuple[float, float]:
    """Width of the query heads of a layer and of its heads of keys, see [`ModelShape`]."""
    size = head_size(config)
    if size is None:
        return 0.0, 0.0
    heads = config.num_attention_heads
    return heads * sum(size) / 2, (_first(config, "num_key_value_heads") or heads) * sum(size) / 2


def _kept_of_token(config: Any) -> float:
    """Numbers that a layer keeps of a token, for those after it."""
    latent = getattr(config, "kv_lora_rank", None)
    return latent + config.qk_rope_head_dim if latent else 2 * _attention_widths(config)[1]


def _first(config: Any, *names: str) -> int | None:
    """The first of some attributes that a configuration has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


@dataclass(frozen=True, slots=True)
class EpisodeShape:
    """
    Tokens of an average episode whose context is the task, the last turn and its observation.

    Turn 1 reads `prompt` tokens, every later one `prompt + completion + observation`, and each writes `completion`.

    Attributes:
        prompt (`float`): Tokens of the task prompt, instructions included.
        turns (`float`): Calls of the model.
        completion (`float`): Tokens that one turn writes.
        observation (`float`): Tokens of one observation, its tags and hint included.

    Raises:
        `ValueError`: if an episode would have no prompt, no turn or no token.

    Example:

    ```python
    >>> from mem1_trl.estimate import EpisodeShape

    >>> EpisodeShape(prompt=100, turns=3, completion=50, observation=200).trained("packed")
    700
    ```
    """

    prompt: float
    turns: float
    completion: float
    observation: float

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("turns", 1), ("completion", 1), ("observation", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} of an episode must be at least {least}, got {getattr(self, name)}.")

    @classmethod
    def largest(cls, args: Any, prompt: float) -> EpisodeShape:
        """An episode that uses every budget of a configuration, see [`estimate_run`] for its `context`."""
        return cls(prompt, args.max_turns, args.max_completion_length, args.max_observation_length)

    @classmethod
    def mean(cls, trajectories: Iterable[Trajectory]) -> EpisodeShape:
        """The means over episodes that were played with `context="mem1"`."""
        played = list(trajectories)
        turns = sum(len(t.turns) for t in played)
        written = sum(t.num_generated_tokens for t in played)
        later = [
            len(turn.prompt_ids) - len(t.prompt_ids) - len(before.completion_ids)
            for t in played
            for before, turn in zip(t.turns, t.turns[1:])
        ]
        prompt = sum(len(t.prompt_ids) for t in played) / max(1, len(played))
        return cls(prompt, turns / max(1, len(played)), written / max(1, turns), sum(later) / max(1, len(later)))

    @property
    def generated(self) -> float:
        """Tokens that the model samples."""
        return self.turns * self.completion

    @property
    def kept(self) -> float:
        """Tokens of all contexts after the first, the task prompt left out."""
        return (self.turns - 1) * (self.completion + self.observation)

    @property
    def peak(self) -> float:
        """Largest context and its completion."""
        later = self.completion + self.observation if self.turns > 1 else 0
        return self.prompt + later + self.completion

    @property
    def pairs(self) -> float:
        """Pairs of a token and one that it attends to, over the tree of the episode."""
        c, o, p = self.completion, self.observation, self.prompt
        branch = c + o + c  # context of a later turn and what it writes
        return p * p / 2 + c * (p + c / 2) + (self.turns - 1) * branch * (p + branch / 2)

    def trained(self, layout: str) -> float:
        """
        Tokens that one pass of the update forwards, padding of `layout="per_turn"` left out.

        With `"packed"` the task prompt counts once, and so does the first turn, which the second goes on from; with `"per_turn"`
        every context counts in full, and with `"paper"` every token once.
        """
        if layout == "paper":
            return self.prompt + self.generated + (self.turns - 1) * self.observation
        if layout == "per_turn":
            return self.turns * self.prompt + self.kept + self.generated
        return self.prompt + self.kept + self.generated - min(1, self.turns - 1) * self.completion

    def read(self, prefix_cache: bool) -> float:
        """Tokens that generation reads: the task prompt once if its keys and values are kept, or else in every turn."""
        return (1 if prefix_cache else self.turns) * self.prompt + self.kept
