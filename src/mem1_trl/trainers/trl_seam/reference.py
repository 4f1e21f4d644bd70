"""
The reference model of a policy that was passed as an object: a copy of it, as it is.

TRL loads the reference again from where the policy came from, which is nowhere for a model made in memory, and another model if its
weights have changed since. Wraps `create_model_from_path`, by which TRL's constructor loads it.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from trl.trainer import grpo_trainer

from ...update.sharded_tensors import is_split_by_zero

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_partitioned(model: Any) -> bool:
    """Whether no process holds the whole weights of a model, since it was made under DeepSpeed ZeRO-3."""
    return any(map(is_split_by_zero, model.parameters()))


@contextmanager
def reference_is_a_copy(model: Any) -> Iterator[None]:
    """
    While TRL's constructor runs: the reference model is a frozen copy of the policy.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The policy. Nothing changes for a `str`, which is loaded twice, as in TRL, nor for one whose weights are split over
            processes, of which no process has a whole.
    """
    if isinstance(model, str) or is_partitioned(model):
        yield
        return
    load = grpo_trainer.create_model_from_path

    def copied(path: Any, **kwargs: Any) -> Any:
        reference = copy.deepcopy(model).requires_grad_(False).eval()
        if not hasattr(reference, "_hf_hook"):
            # A trainer that had the model before has given it a forward pass that is bound to it, and so would be the copy's
            vars(reference).pop("forward", None)
        size = sum(parameter.nbytes for parameter in reference.parameters())
        PartialState().print(
            f"The reference model is a frozen copy of the policy, which takes {size / 1e6:,.2f} MB; beta=0.0 saves it."
        )
        return reference

    grpo_trainer.create_model_from_path = copied  # type: ignore[assignment]
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = load
