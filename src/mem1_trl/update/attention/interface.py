"""How a plan reaches a model: through transformers' attention, called as usual with one more keyword."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...model_traits import attention_dropout, attention_implementation, head_sizes, module_dtype, text_config
from . import cpu_kernels, flex_kernels
from .reach import FULL, reach_of

if TYPE_CHECKING:
    from .plan import AttentionPlan

logger = logging.getLogger(__name__)

# Keyword under which a plan travels through a model's forward down to its layers
PLAN_ARGUMENT = "mem1_attention_plan"

_CHANGES_SCORES = ("softcap", "position_bias")
"""Keyword arguments of an attention that is more than a softmax of scaled products."""


_current: ContextVar[AttentionPlan | None] = ContextVar("plan of the forward pass", default=None)


class PlanRefused(Exception):
    """An attention layer computes something else than what plans are made for."""


@contextmanager
def plan_at_hand(plan: AttentionPlan, model: Any) -> Iterator[None]:
    """
    A plan for layers of a model that are not handed their keyword arguments, while a forward pass runs.

    Not with activation checkpointing: layers then run again in the backward pass, when nothing is at hand any more.
    """
    token = _current.set(None if _runs_again(model) else plan)
    try:
        yield
    finally:
        _current.reset(token)
    if plan.from_hand:
        _PLANS_AT_HAND.add(kind_of(model))


def _runs_again(model: Any) -> bool:
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def plan_of_call(kwargs: dict[str, Any]) -> AttentionPlan | None:
    """The plan that a call of a layer carries, taken out of its keyword arguments, or that is at hand."""
    plan: AttentionPlan | None = kwargs.pop(PLAN_ARGUMENT, None)
    if plan is None:
        plan = _current.get()
        if plan is not None:
            plan.from_hand += 1
    return plan


def _attention_with_plans(
    original: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> Any:
    """An attention of transformers, but a call that carries a plan is computed by it."""
    plan = plan_of_call(kwargs)
    if plan is None:
        return original(module, query, key, value, attention_mask, **kwargs)
    for name in _CHANGES_SCORES:
        if kwargs.get(name) is not None:
            raise PlanRefused(f"its attention has a {name}")
    reach, sinks = reach_of(module, kwargs), kwargs.get("s_aux")
    plan.used += 1
    if reach != FULL:
        plan.reaches[reach] += 1
    dtype = _autocast_dtype(query.device)
    if dtype is not None:  # as autocast does for sdpa, whose inner operator is called here
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attend = cpu_kernels.tree_attention if plan.tree is None else flex_kernels.attend
    output = attend(query, key, value, plan, kwargs.get("scaling"), reach, sinks)
    return output.transpose(1, 2).contiguous(), None


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device; `None` where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def register() -> None:
    """
    Put plans into transformers' `sdpa` and `eager` attention, for calls that carry one; all others go to the original.

    Registered under the same names instead of a new one, so that no model has to be switched back and forth: with gradient
    checkpointing the forward pass runs again inside the backward pass, when a switch would have been undone. What `eager` is,
    every model decides by itself, and hands it over as the default of its look-up.
    """
    AttentionInterface.register("sdpa", functools.partial(_attention_with_plans, sdpa_attention_forward))
    look_up = AttentionInterface.get_interface
    if getattr(look_up, "follows_plans", False):
        return

    @functools.wraps(look_up)
    def get_interface(self: AttentionInterface, attn_implementation: str, default: Callable[..., Any]) -> Any:
        found = look_up(self, attn_implementation, default)
        return functools.partial(_attention_with_plans, found) if attn_implementation == "eager" else found

    get_interface.follows_plans = True  # type: ignore[attr-defined]
    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


def can_plan(model: Any, device: torch.device) -> bool:
    """
    Whether a model's attention can follow a plan on a device: transformers' own without dropout on its probabilities, on the CPU
    by our kernels, on a GPU by FlexAttention where that has shown to be right.
    """
    if (
        attention_implementation(model) not in ("sdpa", "eager")
        or (model.training and attention_dropout(model) > 0.0)
        or kind_of(model) in _WITHOUT_PLANS
        or (kind_of(model) in _PLANS_AT_HAND and _runs_again(model))
        or getattr(text_config(model), "attn_logit_softcapping", None)
    ):
        return False
    if device.type == "cpu":
        return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
    dtype = _autocast_dtype(device) or module_dtype(model)
    return all(flex_kernels.flex_attention_is_exact(device, dtype, *sizes) for sizes in head_sizes(model))


_WITHOUT_PLANS: set[str] = set()
_PLANS_AT_HAND: set[str] = set()


def never_plan_again(model: Any, reason: str) -> None:
    """Remember that a class of models does not follow plans, with one line in the log that says why."""
    _WITHOUT_PLANS.add(kind_of(model))
    logger.warning(f"{kind_of(model)} forwards one row per turn instead of a tree: {reason}.")


def follows_no_plans(model: Any) -> bool:
    """Whether that has been found of the class of a model."""
    return kind_of(model) in _WITHOUT_PLANS


def kind_of(model: Any) -> str:
    """Name of the class of a model, below any adapter."""
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
