"""How much of each term of TRL's loss a micro-batch, or a part of one, is to add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")
"""Loss types of TRL that are a mean over the rows of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Shares:
    """
    Shares of a part in its micro-batch; over all parts, each sums to 1.

    Attributes:
        rows (`float`):
            Of its rows.
        sampled (`float`):
            Of the tokens that are trained.
        forwarded (`float`):
            Of the tokens that a model with experts forwards for the loss: each turn with its context.
    """

    rows: float = 1.0
    sampled: float = 1.0
    forwarded: float = 1.0

    @classmethod
    def of_parts(cls, rows: Sequence[int], sampled: Sequence[int], forwarded: Sequence[int]) -> list[Shares]:
        """The shares of parts from their numbers of rows and tokens."""
        columns = [[count / max(sum(counts), 1) for count in counts] for counts in (rows, sampled, forwarded)]
        return [cls(*row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True)
class TermWeights:
    """
    Factors for the three kinds of terms in TRL's loss of a micro-batch, which TRL computes as if it were whole.

    | terms | TRL takes | of a part | where micro-batches are left out as empty |
    |---|---|---|---|
    | policy and KL, `dapo`, `cispo`, `vespo` | sums over tokens | 1 | 1 |
    | policy and KL, `grpo`, `sapo`, `dr_grpo`, `luspo` | means over rows | `shares.rows` | `row_scale` |
    | policy and KL, `bnpo`; the entropy bonus | means over sampled tokens | `shares.sampled` | `micro_batch_scale` |
    | load balancing of experts | the product of two means over forwarded tokens | `shares.forwarded` | `micro_batch_scale` |

    All but the last are linear, so that the parts add up to the whole. In the last the parts' means replace those of the whole: its
    scale is right, but experts are balanced within a part.

    Attributes:
        policy, token_means, experts (`float`):
            The factors.
    """

    policy: float = 1.0
    token_means: float = 1.0
    experts: float = 1.0

    @classmethod
    def of(cls, batch: dict[str, Any], loss_type: str, has_token_means: bool) -> TermWeights:
        """
        The factors for a micro-batch.

        Args:
            batch (`dict`):
                The micro-batch; its keys `shares`, `row_scale` and `micro_batch_scale` are read.
            loss_type (`str`):
                TRL's.
            has_token_means (`bool`):
                Whether the loss has terms that are means over the sampled tokens.
        """
        shares = batch.get("shares", Shares())
        kept = float(batch.get("micro_batch_scale", 1.0))
        # Without a sampled token these terms are 0, whatever they are multiplied by
        token_means = (shares.sampled * kept or 1.0) if has_token_means else 1.0
        policy = 1.0
        if loss_type in ROW_MEANS:
            policy = shares.rows * float(batch.get("row_scale", 1.0))
        elif loss_type == "bnpo":
            policy = token_means
        return cls(policy, token_means, shares.forwarded * kept)
