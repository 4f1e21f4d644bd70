"""The layouts in which a trajectory can be forwarded, and which of them a model can run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..model_traits import attention_implementation, forward_takes, text_config, why_not_masked
from .attention.interface import follows_no_plans
from .attention.recurrent import recurrent_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LAYOUTS = ("packed", "per_turn", "paper")


def check_layout(layout: str) -> None:
    """Raise `ValueError` if there is no such layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not a layout: use one of {', '.join(map(repr, LAYOUTS))}.")


def resolve_layout(model: PreTrainedModel, layout: str, longest: int | None = None) -> str:
    """
    The layout a model can run: the wanted one, or `"per_turn"` in place of `"packed"` with one line in the log.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        layout (`str`):
            The wanted layout.
        longest (`int`, *optional*):
            Most tokens of a context and its completion: a sliding window that holds them all is none to the mask of `"paper"`.

    Returns:
        `str`: The layout to use.

    Raises:
        `ValueError`: If there is no such layout, or if `"paper"` is wanted, for which there is no substitute.
    """
    check_layout(layout)
    if layout == "per_turn":
        return layout
    reason = why_not_a_tree(model) if layout == "packed" else why_not_masked(model, longest)
    if reason is None:
        return layout
    if layout == "paper":
        raise ValueError(f"layout='paper' needs an attention mask of its own, but {reason}: use layout='per_turn'.")
    logger.warning(
        f"layout='per_turn' instead of 'packed', since {reason}. Both are exact; 'packed' forwards fewer tokens."
    )
    return "per_turn"


def why_not_a_tree(model: PreTrainedModel) -> str | None:
    """
    Why a model cannot forward a prefix tree, by what can be told without running it; `None` if nothing speaks against it.

    Whether it then computes what the plain model does, the self-check shows.
    """
    name = text_config(model).model_type
    implementation = attention_implementation(model)
    recurrent = recurrent_layers(model)
    if follows_no_plans(model):
        return f"{name} does not follow a plan of its pairs"
    if implementation not in ("sdpa", "eager"):
        return f"attn_implementation={implementation!r} takes no plan of its pairs"
    if getattr(model, "_is_stateful", False) and not recurrent:
        return f"{name} carries a recurrent state that is not in a cache of transformers"
    if not recurrent and not forward_takes(model, "position_ids"):
        return f"{name} takes no position_ids"
    softcap = getattr(text_config(model), "attn_logit_softcapping", None)
    if softcap:
        return f"{name} caps its attention scores"
    return None
