"""
Sampling from a part of the vocabulary (top-p, top-k, min-p), which the update does not know of.

A token is drawn with probability `p / S`, where `S` is the probability of the tokens that are kept, but scored by `p`: TRL's
log-probs are over the whole vocabulary. The ratio by which vLLM's samples are corrected is `S` where it should be 1, and the
ratio of new to old log-probs averages the new policy's `S` over the old one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trl
from accelerate.logging import get_logger

from ..rollout.decoding_modes import NEUTRAL_SAMPLING, changing

if TYPE_CHECKING:
    from ..rollout.settings import AgentSettings

logger = get_logger(__name__)

_TRUNCATIONS = ("top_p", "top_k", "min_p")


def truncations(settings: AgentSettings) -> dict[str, float]:
    """The options that keep a part of the vocabulary only, by name; empty in greedy decoding, which draws nothing."""
    options = settings.decoding_options()
    return changing(options, _TRUNCATIONS) if options["do_sample"] else {}


def warn_of_truncated_sampling(settings: AgentSettings) -> None:
    """
    Log one line if tokens are drawn from another distribution than the one whose ratios the update takes.

    A release of TRL that carries the kept tokens to the update returns more values than the contract knows, and is refused there.

    Args:
        settings ([`AgentSettings`]):
            How tokens are sampled in training.
    """
    found = truncations(settings)
    if not found:
        return
    given = ", ".join(f"{name}={value:g}" for name, value in found.items())
    neutral = ", ".join(f"{name}={NEUTRAL_SAMPLING[name][-1]:g}" for name in found)
    logger.warning(
        f"{given} draws tokens from a part of the vocabulary, but TRL {trl.__version__} takes the ratios of log-probs over all of "
        f"it, so that they do not average 1 (at top_p=0.8 about 0.90) and the gradient is of another distribution: set {neutral} "
        "to train the one that is sampled."
    )
