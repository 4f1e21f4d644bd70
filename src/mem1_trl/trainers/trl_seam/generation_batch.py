"""The record of a generation batch while TRL builds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...update.row_batch import RowBatch

if TYPE_CHECKING:
    import torch

    from ...trajectory import Trajectory
    from ...update.rows import Row
    from .dynamic_sampling import Scores


@dataclass(slots=True)
class GenerationBatch:
    """
    A generation batch of one process on its way from the data set to the tensors that TRL trains on.

    Entry `i` of each list is the same episode: `rows[i]` was played as `trajectories[i]`, which was folded into
    `tree_rows[i]`, which TRL pads into row `i` of its batch. The fields are filled in this order:

    | step | method of [`TrajectoryTrainer`] | field |
    |---|---|---|
    | start | `_generate_and_score_completions` | `rows` |
    | play | `_generate`, inside it `_rollout` | `response_template`, `trajectories`, `left_out`, `tree_rows` |
    | score | `_calculate_rewards` | `rewards` |
    | log-probs | `_get_per_token_logps_and_entropies` | reads `tree_rows` |
    | train | `_generate_and_score_completions` | reads all of it, adds keys to TRL's batch |

    Attributes:
        rows (`list[dict]`):
            Rows of the data set with the prompts that the agent reads.
        response_template (`Any`):
            The tokenizer's own, which is hidden from TRL while it decodes completions.
        trajectories (`list[Trajectory]`):
            The episodes as they were played.
        left_out (`list[bool]`):
            Which episodes are not part of the update: failed ones, and with `"drop_group"` their groups. Of all processes.
        tree_rows (`list[Row]`):
            The episodes as rows of tokens.
        rewards (`torch.Tensor` or `None`):
            Shape `(B,)`: weighted sum of the rewards of each episode; NaN where nothing scored it.
        per_function (`torch.Tensor` or `None`):
            Shape `(B, F)`, of all processes: what each function gave; NaN where it gave nothing.
        equal (`list[bool]` or `None`):
            With `skip_zero_advantages`, of each episode whether all of its group have the same reward.
        dataset_rows (`list[dict]`):
            Rows as the data set has them, from which an episode is started again.
        scores ([`Scores`] or `None`):
            With dynamic sampling, what reward functions gave before TRL asked.
        first_play (`tuple[torch.Tensor, list[Trajectory]]` or `None`):
            With dynamic sampling, what was played first: rewards of all processes, shape `(B, F)`, and the trajectories of this one.
    """

    rows: list[dict[str, Any]]
    response_template: Any = None
    trajectories: list[Trajectory] = field(default_factory=list)
    left_out: list[bool] = field(default_factory=list)
    tree_rows: list[Row] = field(default_factory=list)
    rewards: torch.Tensor | None = None
    per_function: torch.Tensor | None = None
    equal: list[bool] | None = None
    dataset_rows: list[dict[str, Any]] = field(default_factory=list)
    scores: Scores | None = None
    first_play: tuple[torch.Tensor, list[Trajectory]] | None = None

    def row_batch(
        self, prompt_length: int, completion_length: int, pad_token_id: int, device: torch.device
    ) -> RowBatch:
        """The rows of tokens padded to the lengths that TRL has padded them to."""
        return RowBatch.from_rows(self.tree_rows, pad_token_id, device, prompt_length, completion_length)
