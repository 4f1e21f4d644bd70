"""
The reference model of a policy that was passed as an object: a copy of it, as it is.

TRL loads the reference again from where the policy came from, which is nowhere for a model made in memory, and another model if its
weights have changed since. Wraps `create_model_from_path`, by which TRL's constructor loads it.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from trl.trainer import grpo_trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = get_logger(__name__)


@contextmanager
def reference_is_a_copy(model: Any) -> Iterator[None]:
    """
    While TRL's constructor runs: the reference model is a frozen copy of the policy.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The policy. Nothing changes for a `str`, which is loaded twice, as in TRL.
    """
    if isinstance(model, str):
        yield
        return
    load = grpo_trainer.create_model_from_path

    def copied(path: Any, **kwargs: Any) -> Any:
        reference = copy.deepcopy(model).requires_grad_(False).eval()
        size = sum(parameter.nbytes for parameter in reference.parameters())
        logger.info(f"The reference model is a copy of the policy, which takes {size / 1e6:,.2f} MB.")
        return reference

    grpo_trainer.create_model_from_path = copied  # type: ignore[assignment]
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = load
