"""Refusals of settings that do not go with others."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from ..context_rules.named import may_recall
from ..typed_fields import described, fits, is_wrong_number, members, type_hints

if TYPE_CHECKING:
    from collections.abc import Iterable

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

_LARGEST_SEED = 2**32 - 1
"""That of NumPy, which every run seeds."""


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
            these, or `None` where a setting of this package must have a value.
    """
    for name, hint in type_hints(kind).items():
        value = getattr(config, name, None)
        if isinstance(value, str) and not _takes_text(hint):
            raise ValueError(_text_for_number(name, value, hint))
        own = name not in _INHERITED and isinstance(value, (bool, int, float, type(None)))
        if is_wrong_number(value, hint) or (own and not fits(value, hint)):
            raise ValueError(f"{name} must be {described(hint)}, got {value!r}.")


def _takes_text(hint: Any) -> bool:
    """Whether a text may stand for a value: not for numbers, booleans and lists of numbers."""
    plain = {int, float, bool, type(None), list[int], list[float]}
    return not plain.issuperset(members(hint))


def _text_for_number(name: str, value: str, hint: Any) -> str:
    if bool in members(hint):
        return f"{name} must be {described(hint)}, got the text {value!r}."
    return f"{name} must be a number, got the text {value!r} (YAML reads a number such as 1e-6 as text: write 1.0e-6)."


def check_seed(seed: int) -> None:
    """Raise a `ValueError` for a seed that NumPy would refuse when the trainer is built."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed must be from 0 to {_LARGEST_SEED}, got {seed}.")


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


def refuse_without_effect(config: Mem1GRPOConfig) -> None:
    """
    Refuse settings that nothing would read.

    Raises:
        `ValueError`: If one has another value than its default, and another setting turns it off.
    """
    for owner, off, how, names in (
        ("curriculum_threshold", config.curriculum_threshold is None, "set it", ("curriculum_steps", "curriculum_metric")),
        ("context", not may_recall(config.context), "use 'external'", ("memory_top_k",)),
        ("rollout_mode", config.rollout_mode == "lockstep", "use 'async'", ("rollout_batch_wait",)),
    ):  # fmt: skip
        if off:
            defaults = {name: type(config).__dataclass_fields__[name].default for name in names}
            refuse_any(
                config,
                [(name, getattr(config, name) != default, f"{how}, or leave it {default!r}") for name, default in defaults.items()],
                f"has no effect with {owner}={getattr(config, owner)!r}",
            )  # fmt: skip


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
