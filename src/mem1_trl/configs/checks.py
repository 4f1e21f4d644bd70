"""Refusals of settings that do not go with others."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from ..json_text import read_json
from ..rollout.settings import unread
from ..typed_fields import described, fits, is_wrong_collection, is_wrong_number, members, type_hints

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from .grpo import Mem1GRPOConfig


TRL_CHOICES = {
    "loss_type": ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "importance_sampling_level": ["token", "sequence"],
    "multi_objective_aggregation": ["sum_then_normalize", "normalize_then_sum"],
    "scale_rewards": ["group", "batch", "none"],
}
"""Values of options of TRL that it does not check before the first update."""


_INHERITED = frozenset(one.name for one in fields(GRPOConfig)) - {"output_dir"}
"""Settings of TRL and transformers, which may have a wider meaning than their annotation says, but for the path of the run."""

_OLD_LISTS = frozenset({"fsdp"})
"""Settings that transformers still takes as a list, which their annotation no longer says."""

LARGEST_OF_NUMPY = 2**32 - 1
"""That of NumPy, which every run seeds when the trainer is built."""


@dataclass(frozen=True, slots=True)
class _Range:
    """
    Numbers that a setting may have.

    Attributes:
        least, above (`float`, *optional*):
            Lower limit, which is one of them (`least`) or is not (`above`).
        most, below (`float`, *optional*):
            Upper limit, likewise.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {limit}" for words, limit in limits.items() if limit is not None)


_AT_LEAST_0, _AT_LEAST_1, _ABOVE_0 = _Range(least=0), _Range(least=1), _Range(above=0)
_SHARE, _SHARE_ABOVE_0, _PORT = _Range(least=0, most=1), _Range(above=0, most=1), _Range(least=1, most=65535)

_RANGES = {
    "adam_beta1": _Range(least=0, below=1),
    "adam_beta2": _Range(least=0, below=1),
    "adam_epsilon": _AT_LEAST_0,
    "beta": _AT_LEAST_0,
    "dataloader_num_workers": _AT_LEAST_0,
    "dataloader_prefetch_factor": _AT_LEAST_1,
    "ddp_bucket_cap_mb": _AT_LEAST_1,
    "ddp_timeout": _ABOVE_0,
    "delta": _ABOVE_0,
    "entropy_coef_delta": _AT_LEAST_0,
    "epsilon": _ABOVE_0,
    "epsilon_high": _ABOVE_0,
    "eval_accumulation_steps": _AT_LEAST_1,
    "generation_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "learning_rate": _AT_LEAST_0,
    "min_p": _SHARE,
    "num_completions_to_print": _AT_LEAST_0,
    "num_generations_eval": _AT_LEAST_1,
    "num_iterations": _AT_LEAST_1,
    "off_policy_mask_threshold": _ABOVE_0,
    "pad_to_multiple_of": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "per_device_train_batch_size": _AT_LEAST_1,
    "ref_model_mixup_alpha": _SHARE,
    "ref_model_sync_steps": _AT_LEAST_1,
    "repetition_penalty": _ABOVE_0,
    "router_aux_loss_coef": _AT_LEAST_0,
    "sapo_temperature_neg": _ABOVE_0,
    "sapo_temperature_pos": _ABOVE_0,
    "steps_per_generation": _AT_LEAST_1,
    "top_entropy_quantile": _SHARE,
    "top_k": _AT_LEAST_0,
    "top_p": _SHARE_ABOVE_0,
    "vespo_k_neg": _AT_LEAST_0,
    "vespo_k_pos": _AT_LEAST_0,
    "vespo_lambda_neg": _AT_LEAST_0,
    "vespo_lambda_pos": _AT_LEAST_0,
    "vllm_gpu_memory_utilization": _SHARE_ABOVE_0,
    "vllm_group_port": _PORT,
    "vllm_importance_sampling_cap": _ABOVE_0,
    "vllm_importance_sampling_clip_max": _ABOVE_0,
    "vllm_importance_sampling_clip_min": _AT_LEAST_0,
    "vllm_max_model_length": _AT_LEAST_1,
    "vllm_server_port": _PORT,
    "vllm_server_timeout": _ABOVE_0,
    "vllm_tensor_parallel_size": _AT_LEAST_1,
    "warmup_steps": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
}
"""
Numbers that settings of TRL and transformers may have, which neither checks before it trains with them. `None` has a meaning of its own, and so has
what is missing here: `max_grad_norm` and `save_steps` of 0 or less turn clipping and saving off.
"""


_LIMITS = frozenset({
    "max_grad_norm", "epsilon", "epsilon_high", "delta", "cliprange_value", "off_policy_mask_threshold", "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max", "environment_timeout", "vllm_server_timeout", "num_train_epochs",
})  # fmt: skip
"""Numbers that may be infinite: limits, of which that one is never reached."""


def check_json(config: Mem1GRPOConfig) -> None:
    """
    Refuse a text for a mapping, as a command line gives it, that is no JSON object. One that does not begin as one may be the path of a file.

    Raises:
        `ValueError`: Naming the field, which transformers does not.
    """
    for name in config._VALID_DICT_FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, str) and value.startswith("{"):
            try:
                read_json(value, nan_is_null=True)
            except ValueError as error:
                raise ValueError(
                    f"{name} must be a mapping, or a JSON object as text, got {value!r:.80}: {error}."
                ) from None


def check_types(config: Mem1GRPOConfig, kind: type) -> None:
    """
    Refuse a value that is not of the type of its field, before it meets arithmetic far from here.

    Args:
        config ([`Mem1GRPOConfig`]):
            Has the values.
        kind (`type`):
            Its class, or one above it, whose fields are checked.

    Raises:
        `ValueError`: If a number or boolean is of another type than its field, such as a fraction for a whole number, if a text stands for one of
            these, a list or an entry of one for another type, or `None` where a setting of this package must have a value.
    """
    for name, hint in type_hints(kind).items():
        value = getattr(config, name, None)
        if isinstance(value, str) and not _takes_text(hint):
            raise ValueError(_text_for_number(name, value, hint))
        own = name not in _INHERITED and isinstance(value, (bool, int, float, type(None)))
        wrong_list = name not in _OLD_LISTS and is_wrong_collection(value, hint)
        if is_wrong_number(value, hint) or wrong_list or (own and not fits(value, hint)):
            raise ValueError(f"{name} must be {described(hint)}, got {value!r}.")


def _takes_text(hint: Any) -> bool:
    """Whether a text may stand for a value: not for numbers, booleans and lists of numbers."""
    plain = {int, float, bool, type(None), list[int], list[float]}
    return not plain.issuperset(members(hint))


def _text_for_number(name: str, value: str, hint: Any) -> str:
    if bool in members(hint):
        return f"{name} must be {described(hint)}, got the text {value!r}."
    return f"{name} must be a number, got the text {value!r} (YAML reads a number such as 1e-6 as text: write 1.0e-6)."


def check_ranges(config: Mem1GRPOConfig) -> None:
    """
    Refuse numbers of TRL's and transformers' that no training could be made of, before sizes of batches are derived from them.

    Raises:
        `ValueError`: For a number that is none, is out of its range, or leaves no step to train.
    """
    for one in fields(config):
        value = getattr(config, one.name, None)
        if isinstance(value, float) and value != value:
            raise ValueError(f"{one.name} must be a number, got {value}.")
    for name, allowed in _RANGES.items():
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not allowed.holds(value):
            raise ValueError(f"{name} must be {allowed}, got {value}.")
    # Before the settings of an agent are made, which would call that of evaluation `temperature`
    check_finite(config, _INHERITED | {"eval_temperature"})
    if config.max_steps != -1 and config.max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, or -1 to train for num_train_epochs, got {config.max_steps}.")
    epochs = config.num_train_epochs
    if config.max_steps < 1 and not 0 < epochs < math.inf:
        words = "finite" if epochs > 0 else "above 0"
        raise ValueError(f"num_train_epochs must be {words}, or max_steps at least 1, got {epochs}.")
    for what, least in (("logging", _ABOVE_0), ("eval", _AT_LEAST_0)):  # an evaluation takes those of logging for 0
        steps = getattr(config, f"{what}_steps")
        if getattr(config, f"{what}_strategy") == "steps" and steps is not None and not least.holds(steps):
            raise ValueError(f"{what}_steps must be {least} with {what}_strategy='steps', got {steps}.")


def check_finite(config: Mem1GRPOConfig, names: Container[str] | None = None) -> None:
    """
    Refuse an infinite number that is no limit.

    Args:
        config ([`Mem1GRPOConfig`]):
            Has the numbers.
        names (`Container[str]`, *optional*):
            Of what is checked. `None` checks all settings.

    Raises:
        `ValueError`: For the first.
    """
    for one in fields(config):
        value = getattr(config, one.name, None)
        if one.name in _LIMITS or (names is not None and one.name not in names):
            continue
        if isinstance(value, float) and math.isinf(value):
            raise ValueError(f"{one.name} must be a finite number, got {value}.")


def check_choices(config: Mem1GRPOConfig) -> None:
    """Raise a `ValueError` for a word of TRL's that it would refuse in the first update."""
    for name, choices in TRL_CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {getattr(config, name)!r}.")


def refuse_any(config: Mem1GRPOConfig, settings: Iterable[tuple[str, bool, str]], because: str) -> None:
    """
    Refuse the first of some settings that is bad.

    Args:
        config ([`Mem1GRPOConfig`]):
            Has the settings.
        settings (`Iterable[tuple[str, bool, str]]`):
            Of each its name, whether it is bad, and what to do instead.
        because (`str`):
            What is wrong with each of them, as a sentence goes on after its name and value.

    Raises:
        `ValueError`: If one is bad.
    """
    for name, bad, instead in settings:
        if bad:
            raise ValueError(f"{name}={getattr(config, name)!r} {because}: {instead}.")


def refuse_changed(config: Mem1GRPOConfig, names: Iterable[str], because: str, how: str) -> None:
    """
    Refuse settings that have another value than their default.

    Args:
        config ([`Mem1GRPOConfig`]):
            Has the settings.
        names (`Iterable[str]`):
            Theirs.
        because, how (`str`):
            What is wrong with each of them, and what gives it an effect, as the sentence goes on after its name and value.

    Raises:
        `ValueError`: If one has another value than its default.
    """
    defaults = {name: type(config).__dataclass_fields__[name].default for name in names}
    refuse_any(
        config,
        [
            (name, getattr(config, name) != default, f"{how}, or leave it {default!r}")
            for name, default in defaults.items()
        ],
        because,
    )


def refuse_without_effect(config: Mem1GRPOConfig) -> None:
    """
    Refuse settings that nothing would read.

    Raises:
        `ValueError`: If one has another value than its default, and another setting turns it off.
    """
    for owner, off, how, names in (
        ("curriculum_threshold", config.curriculum_threshold is None, "set it", ("curriculum_steps", "curriculum_metric")),
        ("rollout_mode", config.rollout_mode == "lockstep", "use 'async'", ("rollout_batch_wait",)),
    ):  # fmt: skip
        if off:
            refuse_changed(config, names, f"has no effect with {owner}={getattr(config, owner)!r}", how)
    for name, (because, how) in unread(config).items():
        refuse_changed(config, [name], because, how)


def refuse_noise(config: Mem1GRPOConfig) -> None:
    """
    Refuse noise on the embeddings, which each pass draws again and scales by the length of its rows.

    Raises:
        `ValueError`: For `neftune_noise_alpha`.
    """
    refuse_any(
        config,
        (("neftune_noise_alpha", bool(config.neftune_noise_alpha), "leave it None"),),
        "adds other noise to the embeddings in each pass, so that no token would be scored as it was sampled",
    )


def refuse_unread(config: Mem1GRPOConfig) -> None:
    """
    Refuse settings of `Trainer` that GRPO's order of the data and its loss leave unread, and one whose checkpoints would not be exact.

    Raises:
        `ValueError`: If one has another value than its default.
    """
    refuse_any(
        config,
        (
            ("label_smoothing_factor", config.label_smoothing_factor != 0.0, "leave it 0.0"),
            ("data_seed", config.data_seed not in (None, config.seed), "set seed"),
            ("train_sampling_strategy", config.train_sampling_strategy != "random", "set shuffle_dataset=False for the order of the rows"),
        ),
        "has no effect here",
    )  # fmt: skip
    refuse_any(
        config,
        (("enable_jit_checkpoint", config.enable_jit_checkpoint, "set save_steps, from whose checkpoints a killed run goes on exactly"),),
        "saves in the middle of an optimizer step, whose update a run that goes on from there would not make",
    )  # fmt: skip


def check_sampling_of_groups(config: Mem1GRPOConfig) -> None:
    """
    Refuse to play groups of equal rewards again, or to pass over them, where no group ever is one, or equal rewards are not equal advantages.

    Raises:
        `ValueError`: For `dynamic_sampling_max_rounds` or `skip_zero_advantages` beside rewards that differ with every token, and for the first
            beside another aggregation of rewards.
    """
    chosen = [name for name in ("dynamic_sampling_max_rounds", "skip_zero_advantages") if getattr(config, name)]
    if not chosen:
        return
    in_reward = bool(config.distillation_weight) and config.distillation_in_reward
    refuse_any(
        config,
        (
            ("memory_value_weight", bool(config.memory_value_weight), "leave it 0.0"),
            ("distillation_in_reward", in_reward, "leave it False, which puts the teacher into the loss"),
        ),
        f"gives no two episodes the same reward, so that {chosen[0]} has no effect",
    )
    aggregation = config.multi_objective_aggregation != "sum_then_normalize"
    refuse_any(
        config,
        (("multi_objective_aggregation", aggregation, "use reward_weights"),),
        f"gives advantages where weighted sums of rewards are equal, which {chosen[0]} goes by",
    )


def check_curriculum(config: Mem1GRPOConfig) -> None:
    """
    Refuse a curriculum that would never go on.

    Raises:
        `ValueError`: For fewer than one step, and a threshold above 1 for the share of tasks that are solved.
    """
    if config.curriculum_steps < 1:
        raise ValueError(f"curriculum_steps must be at least 1, got {config.curriculum_steps}.")
    default = type(config).__dataclass_fields__["curriculum_metric"].default
    threshold = config.curriculum_threshold
    if threshold is not None and threshold > 1.0 and config.curriculum_metric == default:
        raise ValueError(
            f"curriculum_threshold must be at most 1 for curriculum_metric={default!r}, the share of tasks that are solved, got {threshold}."
        )
