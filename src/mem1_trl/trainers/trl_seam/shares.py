"""How much of each term of TRL's loss a micro-batch, or a part of one, is to add."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_MEANS_OF_ROWS = ("grpo", "sapo")
"""Loss types of TRL that are a mean over the rows of a micro-batch, of each row's mean over its tokens."""

ROW_MEANS = (*TOKEN_MEANS_OF_ROWS, "dr_grpo", "luspo")
"""Loss types of TRL that are a mean over the rows of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Shares:
    """
    Shares of a part in its micro-batch; over all parts, each sums to 1 (`rows * of_row` where a row is cut).

    Attributes:
        rows (`float`):
            Of its rows.
        sampled (`float`):
            Of the tokens that are trained.
        forwarded (`float`):
            Of the tokens that a model with experts forwards for the loss: each turn with its context.
        of_row (`float`):
            If the part is a piece of one row, of that row's sampled tokens, and `rows` is the share of the whole row; otherwise 1.
    """

    rows: float = 1.0
    sampled: float = 1.0
    forwarded: float = 1.0
    of_row: float = 1.0

    @classmethod
    def of_parts(
        cls, rows: Sequence[int], sampled: Sequence[int], forwarded: Sequence[int], owners: Sequence[int] | None = None
    ) -> list[Shares]:
        """
        The shares of parts.

        Args:
            rows, sampled, forwarded (`Sequence[int]`):
                Their numbers of rows and tokens.
            owners (`Sequence[int]`, *optional*):
                For each part a number, the same for the pieces of one row. `None` if no row is cut.
        """
        owners = range(len(rows)) if owners is None else owners
        pieces = Counter(owners)
        tokens: Counter[int] = Counter()
        for owner, count in zip(owners, sampled, strict=True):
            tokens[owner] += count
        all_rows = sum(count / pieces[owner] for count, owner in zip(rows, owners, strict=True))
        return [
            cls(
                rows=rows[part] / max(all_rows, 1),
                sampled=sampled[part] / max(sum(sampled), 1),
                forwarded=forwarded[part] / max(sum(forwarded), 1),
                of_row=sampled[part] / max(tokens[owner], 1) if pieces[owner] > 1 else 1.0,
            )
            for part, owner in enumerate(owners)
        ]


@dataclass(frozen=True, slots=True)
class TermWeights:
    """
    Factors for the three kinds of terms in TRL's loss of a micro-batch, which TRL computes as if it were whole.

    | terms | TRL takes | of a part | where micro-batches are left out as empty |
    |---|---|---|---|
    | policy and KL, `dapo`, `cispo`, `vespo` | sums over tokens | 1 | 1 |
    | policy and KL, `grpo`, `sapo` | means over rows of means over tokens | `shares.rows * shares.of_row` | `row_scale` |
    | policy and KL, `dr_grpo`, `luspo` | means over rows of sums over tokens | `shares.rows` | `row_scale` |
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
        # Without a sampled token, or a row, these terms are 0, whatever they are multiplied by. They must not be multiplied by 0: where TRL's `beta` is 0
        # it does not call the other processes for the metric of the KL, and they wait for ever
        token_means = (shares.sampled * kept or 1.0) if has_token_means else 1.0
        policy = 1.0
        if loss_type in ROW_MEANS:
            of_row = shares.of_row if loss_type in TOKEN_MEANS_OF_ROWS else 1.0
            policy = shares.rows * of_row * float(batch.get("row_scale", 1.0)) or 1.0
        elif loss_type == "bnpo":
            policy = token_means
        return cls(policy, token_means, shares.forwarded * kept)
