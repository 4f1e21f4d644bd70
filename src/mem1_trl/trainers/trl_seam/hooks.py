"""
What the trainers of this package implement and use, so that they need not know TRL.

Of TRL's private methods it calls `_tokenize_prompts`, which renders prompts as TRL does. It also knows the names of TRL's
tokenizer (`_tokenizer`) and of its dictionary of metrics (`_metrics`).
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from .contract import check_values
from .helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PreTrainedModel

    from ...configs import Mem1GRPOConfig
    from ...trajectory import Trajectory
    from .generation_batch import GenerationBatch

_SHOWN = 80
"""Characters of a task prompt that a message shows."""

EVALUATION_CONSTANTS = {
    *(f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")),
    "cispo_clip_ratio",
    "value/clip_ratio",
    "vespo/phi_seq_mean",
}
"""Metrics of steps that have one value in an evaluation."""

_OF_GROUPS = {"frac_reward_zero_std", "turn_groups/alone", "turn_groups/other_context"}
"""Metrics of how the episodes of a row differ."""


class Hooks(GRPOTrainer):
    """The methods that subclasses of [`TrajectoryTrainer`] implement, and those that they call."""

    args: Mem1GRPOConfig
    model: PreTrainedModel
    environments: list[Any] | None  # type: ignore[assignment]
    max_completion_length: int
    current_batch: GenerationBatch | None = None
    """The generation batch that is being built; `None` at any other time."""
    episodes: list[Any]
    """What [`~Hooks.prepare_rows`] has started, one for each row."""
    algorithm: str | None = None
    """`"ppo"` or `"grpo"`: whose checkpoints a run goes on from; `None` takes either."""
    last_values: torch.Tensor | None = None
    """What [`~Hooks.extra_loss`] has computed for a batch, shape `(B, C)` without gradient, if it has a critic."""

    # What subclasses implement

    def choose_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The dataset rows to play in place of those that the sampler chose for this process."""
        return rows

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Start the episodes of dataset rows and return the rows with the prompts that the agent reads."""
        raise NotImplementedError

    def run_episodes(self, rows: list[dict[str, Any]]) -> list[Trajectory]:
        """Play the episodes that [`~Hooks.prepare_rows`] started."""
        raise NotImplementedError

    def completions_for_rewards(self, trajectories: list[Trajectory], conversational: bool) -> list[Any]:
        """What reward functions and the completion table see of each trajectory: a text or a list of messages."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of the prompts of the rows that [`~Hooks.prepare_rows`] returned, in their order."""
        prompt_ids, *_ = check_values("_tokenize_prompts", self._tokenize_prompts(prompts))
        return [list(ids) for ids in prompt_ids]

    @property
    def episode_environments(self) -> list[Any] | None:
        """The environment of each running episode, for reward functions, or `None`."""
        return None

    @property
    def kl_in_loss(self) -> bool:
        """Whether TRL's loss adds the KL penalty of weight `beta`."""
        return True

    @property
    def policy_frozen(self) -> bool:
        """Whether the policy's loss is only measured at this step; then [`~Hooks.extra_loss`] trains something."""
        return False

    @property
    def trained_modules(self) -> list[torch.nn.Module]:
        """The modules that an optimizer step changes."""
        return [self.model]

    @property
    def meaningless_metrics(self) -> set[str]:
        """Metrics of TRL that are the same whatever happens, and are not logged."""
        if self.mode == "train":
            return set()
        # An evaluation makes no step, so that nothing is clipped; and a group of one does not vary
        return EVALUATION_CONSTANTS | (_OF_GROUPS if self.num_generations_eval == 1 else set())

    @property
    def hidden_readout(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """
        A function of the policy's hidden states `(N, L, H)` that returns `(N, L)`, or `None`.

        Evaluated in the forward pass of the policy's loss, where [`~Hooks.extra_loss`] finds the result in `last_readout`, shape
        `(B, C)`; and in those of old log-probs, where [`~Hooks.extend_batch`] finds it by `read_with`.
        """
        return None

    def counted_rows(self, rows: int) -> int:
        """How many of the rows of a batch of all processes, from the first, metrics are means over; the others only fill up an evaluation."""
        return rows

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory], rewards: torch.Tensor) -> None:
        """
        Add to the batch that TRL has built. `rewards` has shape `(B,)`; NaN where nothing scored a trajectory.

        A key that is added must be in one of the two tables of `batch_rows.py`.
        """

    def rewarded(self, trajectories: list[Trajectory]) -> None:
        """Called when the trajectories of a generation batch have their rewards."""

    def extra_loss(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """
        A loss on top of the policy's, scaled for gradient accumulation, or `None`.

        It finds the log-probs of the policy's loss, with their gradient, in `loss_logps`, shape `(B, C)`.
        """
        return None

    def refuse_checkpoint(self, checkpoint: str) -> None:
        """Raise `ValueError` if this run must not go on from a complete checkpoint."""

    def load_best(self, directory: str) -> None:
        """Load from the best checkpoint what belongs to the policy that `Trainer` has loaded from it."""

    def save_description(self, directory: str) -> None:
        """Write what an agent needs beside the weights into a folder that is uploaded. Called in the main process."""

    def save_extra(self, directory: str) -> None:
        """Write what a checkpoint needs besides TRL's own files. Called in all processes; those of `args.should_save` write."""

    def load_extra(self, directory: str) -> None:
        """Read what [`~Hooks.save_extra`] wrote."""

    def clip_extra_gradients(self) -> dict[str, float]:
        """Clip the gradients that `Trainer` does not know of, and return their norms before that by name."""
        return {}

    # What subclasses use

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    @property
    def mode(self) -> str:
        """`"train"` or `"eval"`, the key of TRL's metric dictionaries."""
        return "train" if self.model.training else "eval"

    @property
    def weights_are_split(self) -> bool:
        """Whether no process has the whole policy, so that each call involves all of them: under FSDP and DeepSpeed ZeRO-3."""
        plugin = self.accelerator.state.deepspeed_plugin
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    def log_metric(self, name: str, value: float) -> None:
        """Add a value to the metrics of the current logging step, where it is averaged over calls."""
        self._metrics[self.mode][name].append(value)

    def logged(self, name: str) -> list[float]:
        """The values of a metric since the last log entry."""
        return list(self._metrics[self.mode].get(name, ()))

    @property
    def logged_names(self) -> list[str]:
        """The metrics that have values since the last log entry, by name."""
        return sorted(name for name, values in self._metrics[self.mode].items() if values)

    def log_masked_mean(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        """
        Log the mean of values over the tokens of all processes that `mask` names; all processes do it together. NaN if there are none, which
        TRL leaves out of its means.
        """
        sums = torch.stack([(values * mask).sum(), mask.sum().to(values.dtype)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.log_metric(name, total / count if count else float("nan"))

    def drop_metrics(self, names: Iterable[str]) -> None:
        """Do not log some metrics of the current logging step."""
        for name in names:
            self._metrics[self.mode].pop(name, None)

    def take_metrics(self, mode: str) -> dict[str, Any]:
        """The means of the metrics that have not been logged yet, as TRL logs them, so `None` without a number; they are then forgotten."""
        found = {name: [value for value in values if value == value] for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return {name: sum(values) / len(values) if values else None for name, values in found.items()}

    @contextmanager
    def completions_not_kept(self) -> Iterator[None]:
        """Episodes that are played meanwhile are not shown: in TRL's table of completions is then what was there before."""
        with (
            instance_attribute(self, "_logs", deepcopy(self._logs)),
            instance_attribute(self, "log_completions", False),
        ):
            yield

    def show_advantages(self, advantages: torch.Tensor) -> None:
        """Let the table of completions show these for the episodes of a batch, shape `(B,)`, instead of TRL's of their groups."""
        shown: Any = self._logs["advantages"]
        everywhere = self.accelerator.gather(advantages).tolist()
        # The table holds a training batch; an evaluation may play more at once
        for back, advantage in zip(range(1, len(shown) + 1), reversed(everywhere)):
            shown[-back] = advantage

    @contextmanager
    def metrics_apart(self) -> Iterator[dict[str, list[float]]]:
        """What is logged meanwhile in the mode of now goes into the dictionary that is given, by name, and not into the next log entry."""
        apart: dict[str, Any] = {mode: defaultdict(list) for mode in ("train", "eval")}
        with instance_attribute(self, "_metrics", apart):
            yield apart[self.mode]

    @contextmanager
    def metrics_not_kept(self) -> Iterator[None]:
        """What is logged meanwhile is dropped; TRL sends what it times to the trackers at once, and trackio is not open before training."""
        with self.metrics_apart(), instance_attribute(self.args, "report_to", []):
            yield

    def token_normalizer(self, batch: dict[str, Any]) -> torch.Tensor:
        """
        Number of generated tokens that one optimizer step of this process averages over, as in TRL's `"dapo"` loss.

        Sums over micro-batches divided by it do not depend on how trajectories are split into micro-batches or processes.
        """
        total = batch["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.mode == "train":
            total = total * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return total

    def sampled_mask(self, batch: dict[str, Any]) -> torch.Tensor:
        """1 on the tokens that are trained, shape `(B, C)`: TRL's two masks together."""
        return batch["completion_mask"] * batch["tool_mask"]

    def short_prompt(self, prompt_ids: Any) -> str:
        """The end of a task prompt on one line, for messages that name an episode."""
        text = " ".join(self.tokenizer.decode(list(prompt_ids), skip_special_tokens=True).split())
        return f"task {text!r}" if len(text) <= _SHOWN else f"task ending in {text[-_SHOWN:]!r}"

    def gather_records(self, records: list[Any]) -> list[Any]:
        """Concatenate a list of plain objects over processes."""
        return gather_object(records)
