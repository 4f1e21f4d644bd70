"""
How a generation batch is made: dataset rows are played as episodes, scored, and become rows of TRL's batch.

Wraps `_generate_and_score_completions`, inside which TRL calls the two others: `_generate`, which plays the episodes, and
`_calculate_rewards`, which must not ask reward functions about episodes that failed. Between them they pass on one record, the
[`GenerationBatch`].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl.data_utils import is_conversational

from ...update.rows import Row, build_row
from ..skip_failed_episodes import score_sound_episodes_only
from .contract import check_trl, check_values
from .generation_batch import GenerationBatch
from .helpers import instance_attribute
from .reference import reference_is_a_copy
from .resume import ExactResume

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from ...trajectory import Trajectory


class TrajectoryTrainer(ExactResume):
    """
    `GRPOTrainer` whose rows are trajectories. Subclasses say what an episode is and what is learned from it.

    They implement [`~Hooks.prepare_rows`], [`~Hooks.run_episodes`] and [`~Hooks.completions_for_rewards`], and may extend
    [`~Hooks.extend_batch`], [`~Hooks.extra_loss`], [`~Hooks.save_extra`] and [`~Hooks.load_extra`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        check_trl()
        with reference_is_a_copy(kwargs["model"]):
            super().__init__(*args, **kwargs)
        # Set here and not passed, since TRL warns that the argument is experimental
        self.rollout_func = self._rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.environments = None  # TRL would reset those of the last batch
        current = GenerationBatch(rows=self.prepare_rows([dict(row) for row in inputs]))
        mask_truncated = self.mask_truncated_completions
        with (
            instance_attribute(self, "current_batch", current),
            instance_attribute(self, "mask_truncated_completions", False),
        ):
            batch = super()._generate_and_score_completions(current.rows)
        check_values("_generate_and_score_completions", batch)
        self._add_structure(batch, current)
        device = batch["completion_ids"].device
        if any(current.left_out):
            kept = current.left_out.count(False)
            batch["row_scale"] = torch.tensor(len(current.left_out) / max(kept, 1), device=device)
        if mask_truncated:
            # TRL recognises truncation by a missing end-of-sequence token, so it is done here
            cut = torch.tensor([_is_truncated(t) for t in current.trajectories], device=device)
            batch["completion_mask"] = batch["completion_mask"] * (~cut)[:, None]
            batch["num_items_in_batch"] = self.accelerator.gather(self.sampled_mask(batch).sum()).sum()
        assert current.rewards is not None
        self.extend_batch(batch, current.trajectories, current.rewards)
        self.rewarded(current.trajectories)
        return batch

    def _add_structure(self, batch: dict[str, Any], current: GenerationBatch) -> None:
        """Add the tree of each row to TRL's batch: two tensors of shape `(B, C)`."""
        prompt, completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
        rows = current.row_batch(prompt, completion, self.tokenizer.pad_token_id, self.accelerator.device)
        batch["turn_ids"] = rows.turn_ids[:, prompt:].contiguous()
        batch["parent_offsets"] = rows.parent_offsets[:, prompt:].contiguous()

    # Play

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        current = self._current()
        # TRL would parse each row as one turn, which it is not
        current.response_template = getattr(self.tokenizer, "response_template", None)
        with instance_attribute(self.tokenizer, "response_template", None):
            outputs = check_values("_generate", super()._generate(prompts))
        self._correct_length_metrics(current.trajectories)
        self.environments = self.episode_environments
        completions = self.completions_for_rewards(current.trajectories, is_conversational({"prompt": prompts[0]}))
        return (*outputs[:3], completions, *outputs[4:])

    def _rollout(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`, which `_generate` calls: plays the episodes and returns one row for each."""
        current = self._current()
        try:
            with instance_attribute(self.tokenizer, "response_template", current.response_template):
                prompt_ids = self.encode_prompts(prompts)
                current.trajectories = self.run_episodes(current.rows)
        finally:
            self.clear_prefix_cache()
        current.left_out, logprobs_missing = self._find_left_out(current.trajectories)
        start = self.accelerator.process_index * len(current.trajectories)
        current.tree_rows = [
            self._empty_row(list(ids[:1])) if left_out else build_row(trajectory, self.layout)
            for trajectory, ids, left_out in zip(current.trajectories, prompt_ids, current.left_out[start:])
        ]
        return {
            "prompt_ids": [row.prompt_ids for row in current.tree_rows],
            "completion_ids": [row.completion_ids for row in current.tree_rows],
            "env_mask": [row.tool_mask for row in current.tree_rows],
            "logprobs": None if logprobs_missing else [row.logprobs for row in current.tree_rows],
            "trajectories": current.trajectories,
        }

    def _current(self) -> GenerationBatch:
        assert self.current_batch is not None, "TRL generates outside of `_generate_and_score_completions`"
        return self.current_batch

    def _find_left_out(self, trajectories: list[Trajectory]) -> tuple[list[bool], bool]:
        """
        Which rows of all processes are not part of the update: failed episodes, and with "drop_group" their groups. And whether
        the sampler returned no log-probs in some process, so that all processes build the same batch.
        """
        known = [
            (t.error is not None, any(turn.logprobs is None for turn in t.turns if t.error is None))
            for t in trajectories
        ]
        known = self.gather_records(known)
        failed, missing = [row[0] for row in known], any(row[1] for row in known)
        if self.mode == "eval" or self.args.on_environment_error != "drop_group":
            return failed, missing
        size = self.num_generations or 1
        groups = [any(failed[start : start + size]) for start in range(0, len(failed), size)]
        self.log_metric("environment/dropped_groups", sum(groups))
        return [groups[index // size] for index in range(len(failed))], missing

    def _empty_row(self, prompt_ids: list[int]) -> Row:
        """A row in place of one that is left out, as short as can be: TRL wants a token, which no loss counts."""
        return Row(prompt_ids, [self.eos_token_ids[0]], [0], [0], [1], [0.0])

    def _correct_length_metrics(self, trajectories: list[Trajectory]) -> None:
        """
        Replace TRL's metrics of lengths, which take a completion without end-of-sequence token for truncated.

        Here a closed action ends one too. Episodes that failed have no length.
        """
        device = self.accelerator.device
        lengths = torch.tensor([t.num_generated_tokens for t in trajectories], device=device)
        cut = torch.tensor([_is_truncated(t) for t in trajectories], device=device)
        sound = torch.tensor([t.error is None for t in trajectories], device=device)
        sound = self.accelerator.gather(sound)
        lengths, cut = self.accelerator.gather(lengths).float()[sound], self.accelerator.gather(cut)[sound]
        if not len(lengths):
            lengths, cut = lengths.new_zeros(1), cut.new_zeros(1)
        ended = lengths[~cut] if (~cut).any() else torch.zeros(1, device=device)
        metrics = self._metrics[self.mode]
        for name, value in (
            ("mean_length", lengths.mean()),
            ("min_length", lengths.min()),
            ("max_length", lengths.max()),
            ("clipped_ratio", cut.float().mean()),
            ("mean_terminated_length", ended.mean()),
            ("min_terminated_length", ended.min()),
            ("max_terminated_length", ended.max()),
        ):
            metrics[f"completions/{name}"][-1:] = [value.item()]

    # Score

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        current = self._current()
        sampled = [[i for turn in t.turns for i in turn.completion_ids] for t in current.trajectories]
        failed = [trajectory.error is not None for trajectory in current.trajectories]
        functions = self.reward_funcs
        if any(failed):
            functions = [score_sound_episodes_only(function, failed) for function in functions]
        with instance_attribute(self, "reward_funcs", functions):
            per_function = super()._calculate_rewards(inputs, prompts, completions, sampled)
        check_values("_calculate_rewards", per_function)
        left_out = torch.tensor(current.left_out, device=per_function.device)
        per_function[left_out] = torch.nan
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        rewards[per_function.isnan().all(dim=1)] = torch.nan
        if rewards.isnan().all() and not left_out.any() and self.state.global_step == 0:
            raise ValueError(
                "Nothing scored any trajectory of the first batch, so there is nothing to learn from: check that the data set "
                "has the columns that the rewards read, such as `answers`."
            )
        start = self.accelerator.process_index * len(prompts)
        current.rewards = rewards[start : start + len(prompts)]
        for trajectory, reward in zip(current.trajectories, current.rewards.tolist(), strict=True):
            trajectory.reward = None if reward != reward else reward
        return per_function


def _is_truncated(trajectory: Trajectory) -> bool:
    return trajectory.stop_reason == "truncated"
