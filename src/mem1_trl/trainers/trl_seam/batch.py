"""
How a generation batch is made: dataset rows are played as episodes, scored, and become rows of TRL's batch.

Wraps `_generate_and_score_completions`, inside which TRL calls the two others: `_generate`, which plays the episodes, and
`_calculate_rewards`, which must not ask reward functions about episodes that failed, nor take a number that is not finite. Between them they pass on one record, the
[`GenerationBatch`].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from trl.data_utils import is_conversational
from trl.trainer.utils import nanstd

from ...update.rows import Row, build_row
from ...update.state_weights import state_weights
from ..reward_gate import RewardGate, note_turn_rewards
from ..run_stopped import RunStopped
from .contract import check_batch, check_trl, check_values
from .dynamic_sampling import Scores, equal_groups, note_first_plays, play_equal_groups_again
from .generation_batch import GenerationBatch
from .helpers import instance_attribute, records_held_back
from .reference import reference_is_a_copy
from .resume import ExactResume
from .vllm_sleep import awake

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from ...trajectory import Trajectory

logger = get_logger(__name__)

_LOST_BATCHES = 3
"""Batches in a row of which a reward function left no episode after which a run ends: it learns nothing and spends its steps."""


class TrajectoryTrainer(ExactResume):
    """
    `GRPOTrainer` whose rows are trajectories. Subclasses say what an episode is and what is learned from it.

    They implement [`~Hooks.prepare_rows`], [`~Hooks.run_episodes`] and [`~Hooks.completions_for_rewards`], and may extend
    [`~Hooks.extend_batch`], [`~Hooks.extra_loss`], [`~Hooks.save_extra`] and [`~Hooks.load_extra`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        check_trl()
        self._batches_lost_to_rewards = 0
        with reference_is_a_copy(kwargs["model"]):
            super().__init__(*args, **kwargs)
        # Set here and not passed, since TRL warns that the argument is experimental
        self.rollout_func = self._rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.environments = None  # TRL would reset those of the last batch
        rows = [dict(row) for row in self.choose_rows(inputs)]
        current = GenerationBatch(rows=self.prepare_rows(rows), dataset_rows=rows)
        mask_truncated = self.mask_truncated_completions
        self._readouts, self.kept_pass = [], None  # a run that was interrupted may have left one
        with (
            instance_attribute(self, "current_batch", current),
            instance_attribute(self, "mask_truncated_completions", False),
        ):
            batch = super()._generate_and_score_completions(current.rows)
        check_batch(check_values("_generate_and_score_completions", batch))
        if current.first_play is not None:
            note_first_plays(self, current.first_play[0])
        if self.mode == "eval":
            self._note_evaluated(current)
        if self.args.skip_zero_advantages:
            assert current.equal is not None  # they are 0, but for the rounding of the mean
            equal = torch.tensor(current.equal, device=batch["advantages"].device)
            batch["advantages"] = batch["advantages"].masked_fill(equal, 0.0)
        self._add_structure(batch, current)
        device = batch["completion_ids"].device
        if any(current.left_out):
            scale = len(current.left_out) / max(current.left_out.count(False), 1)
            batch["row_scale"] = torch.tensor(scale, device=device)
        # What no reward could be found for is left out when its row is already there; and TRL recognises truncation by a missing
        # end-of-sequence token, so that is done here, too
        untrained = [
            left_out or (mask_truncated and is_truncated(trajectory))
            for trajectory, left_out in zip(current.trajectories, self._own(current.left_out))
        ]
        if mask_truncated or any(current.left_out):
            kept = ~torch.tensor(untrained, device=device)
            batch["completion_mask"] = batch["completion_mask"] * kept[:, None]
            batch["num_items_in_batch"] = self.accelerator.gather(self.sampled_mask(batch).sum()).sum()
        assert current.rewards is not None
        self.extend_batch(batch, current.trajectories, current.rewards)
        self._readouts = None
        self.rewarded(current.trajectories)
        return batch

    def _add_structure(self, batch: dict[str, Any], current: GenerationBatch) -> None:
        """Add to TRL's batch which episode each row is, shape `(B,)`, and its tree: two tensors of shape `(B, C)`."""
        first = self.accelerator.process_index * len(current.trajectories)
        batch["episode_ids"] = torch.arange(first, first + len(current.trajectories), device=self.accelerator.device)
        prompt, completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
        rows = current.row_batch(prompt, completion, self.tokenizer.pad_token_id, self.accelerator.device)
        batch["turn_ids"] = rows.turn_ids[:, prompt:].contiguous()
        batch["parent_offsets"] = rows.parent_offsets[:, prompt:].contiguous()
        if self.args.state_loss_weight != 1.0:
            weights = state_weights(
                current.trajectories, self._own(current.left_out), rows.tool_mask, self.args.state_loss_weight
            )
            batch["loss_weights"] = weights[:, prompt:].contiguous()

    # Play

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        current = self._current()
        # TRL would parse each row as one turn, which it is not
        current.response_template = getattr(self.tokenizer, "response_template", None)
        with instance_attribute(self.tokenizer, "response_template", None):
            outputs = check_values("_generate", super()._generate(prompts))
        self._correct_length_metrics(current.trajectories if current.first_play is None else current.first_play[1])
        self.environments = self.episode_environments
        completions = self.completions_for_rewards(current.trajectories, is_conversational({"prompt": prompts[0]}))
        return (*outputs[:3], completions, *outputs[4:])

    def _rollout(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`, which `_generate` calls: plays the episodes and returns one row for each."""
        current = self._current()
        try:
            with instance_attribute(self.tokenizer, "response_template", current.response_template):
                prompt_ids = self.encode_prompts(prompts)
                with awake(self), self.adapter_merged():
                    current.trajectories = self.run_episodes(current.rows)
                    if self.mode == "train" and self.args.dynamic_sampling_max_rounds:
                        play_equal_groups_again(self, current, prompts)
        finally:
            self.clear_prefix_cache()
        current.left_out, logprobs_missing = self._find_left_out(current.trajectories)
        current.tree_rows = [
            self._empty_row(list(ids[:1])) if left_out else build_row(trajectory, self.layout)
            for trajectory, ids, left_out in zip(current.trajectories, prompt_ids, self._own(current.left_out))
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

    def _own(self, of_all: Any) -> Any:
        """The entries of this process in a list or tensor of the episodes of all processes."""
        size = len(of_all) // self.accelerator.num_processes
        return of_all[self.accelerator.process_index * size :][:size]

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
        return [groups[index // size] for index in range(len(failed))], missing

    def _empty_row(self, prompt_ids: list[int]) -> Row:
        """A row in place of one that is left out, as short as can be: TRL wants a token, which no loss counts."""
        return Row(prompt_ids, [self.eos_token_ids[0]], [0], [0], [1], [0.0])

    def _correct_length_metrics(self, trajectories: list[Trajectory]) -> None:
        """
        Replace TRL's metrics of lengths, which take a completion without end-of-sequence token for truncated.

        Here a closed action ends one too. Episodes that failed have no length. In an evaluation they are of its rows, as other numbers are.
        """
        device = self.accelerator.device
        lengths = torch.tensor([t.num_generated_tokens for t in trajectories], device=device)
        cut = torch.tensor([is_truncated(t) for t in trajectories], device=device)
        sound = torch.tensor([t.error is None for t in trajectories], device=device)
        sound = self.accelerator.gather(sound)
        lengths, cut = self.accelerator.gather(lengths).float(), self.accelerator.gather(cut)
        if self.mode == "eval":
            counted = self.counted_rows(len(lengths))
            lengths, cut, sound = lengths[:counted], cut[:counted], sound[:counted]
        lengths, cut = lengths[sound], cut[sound]
        ended = lengths[~cut]
        by_name: dict[str, tuple[torch.Tensor, Callable[[list[float]], float]]] = {
            "mean_length": (lengths, fmean),
            "min_length": (lengths, min),
            "max_length": (lengths, max),
            "clipped_ratio": (cut.float(), fmean),
            "mean_terminated_length": (ended, fmean),
            "min_terminated_length": (ended, min),
            "max_terminated_length": (ended, max),
        }
        for name, (numbers, summary) in by_name.items():
            logged = self._metrics[self.mode][f"completions/{name}"]
            if self.mode == "train":
                logged[-1:] = [summary(numbers.tolist() or [0.0])]
                continue
            # All rows of an evaluation so far: a mean over its batches would weigh the last, which may be small, too much
            logged[-1:] = numbers.tolist()
            if summary is not fmean and logged:
                logged[:] = [summary(logged)]
            if not logged:  # nothing has ended so far
                del self._metrics[self.mode][f"completions/{name}"]

    # Score

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        current = self._current()
        if current.scores is not None:  # before, to know which groups to play again
            gate, per_function = current.scores.gate, self.accelerator.gather(current.scores.per_function)
        else:
            gate, per_function = self._ask(inputs, prompts, completions, current.trajectories)
        problem = self._leave_unscored_out(current, gate.problems)
        if self.mode == "train" and self.state.global_step == 0:
            self._refuse_unscored_batch(current, per_function, problem)
        left_out = torch.tensor(current.left_out, device=per_function.device)
        per_function[left_out] = torch.nan if self.mode == "train" else 0.0  # as in `evaluate_agent`: not solved
        rewards = self.total_rewards(per_function)
        current.rewards, current.per_function = self._own(rewards), per_function
        if self.args.skip_zero_advantages:
            size = (self.num_generations if self.mode == "train" else self.num_generations_eval) or 1
            equal = equal_groups(rewards.tolist(), size)
            current.equal = self._own([index // size in equal for index in range(len(rewards))])
        for trajectory, reward in zip(current.trajectories, current.rewards.tolist(), strict=True):
            trajectory.reward = None if reward != reward else reward
        note_turn_rewards(current.trajectories, gate, self.reward_weights.tolist())
        return per_function

    def _ask(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], trajectories: list[Trajectory]
    ) -> tuple[RewardGate, torch.Tensor]:
        """What reward functions give for episodes: the gate of this process, and what TRL has gathered of all, shape `(B, F)`."""
        sampled = [[i for turn in t.turns for i in turn.completion_ids] for t in trajectories]
        gate = RewardGate([t.error is not None for t in trajectories], [len(t.turns) for t in trajectories])
        named = zip(self.reward_funcs, self.reward_func_names, strict=True)
        functions = [gate.guard(*pair, column) for column, pair in enumerate(named)]
        with (
            instance_attribute(self, "reward_funcs", functions),
            records_held_back("trl.trainer.grpo_trainer", "All reward functions returned None") as held,
        ):
            per_function = super()._calculate_rewards(inputs, prompts, completions, sampled)
        check_values("_calculate_rewards", per_function)
        gate.check_models(functions, self.reward_func_names, self._own(per_function))
        if not gate.problems:  # else a reward model may have given NaN, which is told apart here and warned of later
            for line in held:
                logging.getLogger(line.name).handle(line)
        return gate, per_function

    def ask_rewards(self, rows: list[dict[str, Any]], prompts: list[Any], trajectories: list[Trajectory]) -> Scores:
        """Scores of episodes before TRL asks for them, as it would; all processes do it together, with equally many episodes."""
        completions = self.completions_for_rewards(trajectories, is_conversational({"prompt": prompts[0]}))
        inputs = [{**row, "trajectories": one} for row, one in zip(rows, trajectories, strict=True)]
        with instance_attribute(self, "environments", self.episode_environments):
            gate, per_function = self._ask(inputs, prompts, completions, trajectories)
        return Scores(self._own(per_function).clone(), gate)

    def total_rewards(self, per_function: torch.Tensor) -> torch.Tensor:
        """Weighted sums of what functions gave, shape `(B, F)`, as TRL takes them, shape `(B,)`; NaN where none gave a number."""
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        return rewards.masked_fill(per_function.isnan().all(dim=1), torch.nan)

    def _note_evaluated(self, current: GenerationBatch) -> None:
        """
        Replace the means of rewards that TRL has logged for a batch of an evaluation by a number for each row, and the standard deviations by
        those of all rows so far.

        Both are then of the rows of the evaluation, though the last batch has fewer of them, or begins the data set again.
        """
        assert current.per_function is not None
        per_function = current.per_function[: self.counted_rows(len(current.per_function))]
        found = {("reward", "reward_std"): self.total_rewards(per_function)}
        for column, name in enumerate(self.reward_func_names):
            found[f"rewards/{name}/mean", f"rewards/{name}/std"] = per_function[:, column]
        metrics = self._metrics["eval"]
        for (mean, deviation), values in found.items():
            metrics[mean][-1:] = values.tolist()
            metrics[deviation] = [nanstd(torch.tensor(metrics[mean], dtype=torch.float64)).item()]

    def _refuse_unscored_batch(
        self, current: GenerationBatch, per_function: torch.Tensor, problem: str | None
    ) -> None:
        """
        End a run whose reward functions gave no finite number for any trajectory of the first batch, of all processes.

        Args:
            current ([`GenerationBatch`]):
                The batch, of which episodes that have no finite reward are marked as failed. That environments failed may pass.
            per_function (`torch.Tensor`):
                Shape `(B, F)`: what functions gave, NaN for `None`.
            problem (`str`, *optional*):
                The first number that was not finite.

        Raises:
            `ValueError`: If all gave `None`.
            `RuntimeError`: If some numbers were not finite.
        """
        failed = self.gather_records([one.error is not None for one in current.trajectories])
        sound = ~torch.tensor(failed, device=per_function.device)
        if per_function[sound].isfinite().any():
            return
        if problem is not None:
            raise RunStopped(
                "Reward functions must give finite numbers, or None for what they do not score, but gave none for any episode of the first batch. "
                f"The first: {problem}."
            )
        if sound.all():
            raise ValueError(
                f"Nothing scored any trajectory of the first batch, so there is nothing to learn from: {' and '.join(self.reward_func_names)} "
                "gave None for each. Let one give a number, or check that the data set has the columns that it reads, such as `answers`."
            )

    def _leave_unscored_out(self, current: GenerationBatch, problems: dict[int, str]) -> str | None:
        """
        Treat the episodes of this process that a reward function gave no finite number for as those whose `get_reward` failed.

        Returns:
            `str` or `None`: What was given for the first such episode of all processes, if there is one.

        Raises:
            `RuntimeError`: If three batches in a row have no other episodes.
        """
        for index, problem in problems.items():
            current.trajectories[index].error = problem
        first = self.accelerator.process_index * len(current.trajectories)
        found = self.gather_records(
            [
                (first + index, problem, self.short_prompt(current.trajectories[index].prompt_ids))
                for index, problem in problems.items()
            ]
        )
        current.left_out, _ = self._find_left_out(current.trajectories)
        if self.mode == "train" and self.args.on_environment_error == "drop_group":
            self.log_metric("environment/dropped_groups", sum(current.left_out) / (self.num_generations or 1))
        lost = bool(found) and all(current.left_out)
        self._batches_lost_to_rewards = self._batches_lost_to_rewards + 1 if lost and self.mode == "train" else 0
        if not found:
            return None
        row, problem, prompt = found[0]
        first_of_them = f"{problem} for row {row} of the batch ({prompt})"
        if self._batches_lost_to_rewards >= _LOST_BATCHES:
            raise RunStopped(
                f"Reward functions must give finite numbers, or None for what they do not score, but left no episode of "
                f"{_LOST_BATCHES} batches in a row. The first of the last: {first_of_them}."
            )
        logger.warning(
            f"{len(found)} of {len(current.left_out)} episodes have no finite reward, so they count as unscored and are left "
            f"out of the update. The first: {first_of_them}."
        )
        return first_of_them


def is_truncated(trajectory: Trajectory) -> bool:
    """Whether the last turn of an episode was cut at `max_completion_length`."""
    return trajectory.stop_reason == "truncated"
