"""On-policy distillation in a trainer: the teacher, what it scores, and the loss or the reward that comes of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from trl.trainer.utils import create_model_from_path

from ..model_traits import embedding_rows, refuse_shared_weights
from ..saved_files import check_path
from ..update.distillation import distillation_loss, on_sampled_tokens, teacher_gaps, teacher_logprobs
from ..update.scoring import score_without_training
from .refusals import refuse_whole_policy_needed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..configs import Mem1GRPOConfig
    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer

TEACHER_LOGPS = "teacher_per_token_logps"


class Distillation:
    """
    What a trainer learns from a teacher that scores the sampled tokens.

    Args:
        trainer ([`Mem1Trainer`]):
            Its `args` say what the teacher reads, and what becomes of the gaps.
        teacher (`str`, `os.PathLike` or [`~transformers.PreTrainedModel`], *optional*):
            An id, a path or a model. `None` is the policy itself, as it is when it has played a batch.
    """

    def __init__(self, trainer: Mem1Trainer, teacher: Any = None):
        self.trainer = trainer
        self.args = trainer.args
        self._sums = [0.0, 0.0]
        self._teacher: Any = None
        if isinstance(teacher, (str, os.PathLike)):
            teacher = os.fspath(teacher)
            kwargs: dict[str, Any] = {"device_map": None, "trust_remote_code": self.args.trust_remote_code}
            teacher = create_model_from_path(teacher, **{**kwargs, **(self.args.teacher_model_init_kwargs or {})})  # type: ignore[dict-item]
        if teacher is not None:
            known, needed = embedding_rows(teacher), len(trainer.tokenizer)
            if known < needed:
                raise ValueError(
                    f"The teacher must know the {needed} tokens of the student's tokenizer, since it scores its token ids, got a model "
                    f"with {known}: take one that shares the tokenizer."
                )
            refuse_shared_weights(
                self._policy, teacher, "teacher_model", "leave it None for the policy as its own teacher"
            )
            self._teacher = teacher.to(trainer.accelerator.device).requires_grad_(False).eval()

    @property
    def teacher(self) -> PreTrainedModel:
        """The model that scores."""
        return self._policy if self._teacher is None else self._teacher

    @property
    def in_loss(self) -> bool:
        """Whether the gaps are a loss, and not rewards."""
        return not self.args.distillation_in_reward

    def logprobs(self, trajectories: list[Trajectory]) -> list[list[torch.Tensor | None]]:
        """
        The teacher's log-probs of what this process has sampled last, for each episode and turn.

        Args:
            trajectories (`list[Trajectory]`):
                Those of the batch that is being built; of a failed one nothing is scored, and its list is empty.
        """
        sound = [index for index, one in enumerate(trajectories) if one.error is None and one.turns]
        chosen = [trajectories[index] for index in sound]
        contexts = [self._contexts(index, trajectories[index]) for index in sound]
        scored = teacher_logprobs(self.teacher, chosen, contexts, **self.trainer.scoring)
        found: list[list[torch.Tensor | None]] = [[] for _ in trajectories]
        for index, one in zip(sound, scored, strict=True):
            found[index] = one
        return found

    def reward(self, trajectories: list[Trajectory], **kwargs: Any) -> list[list[float | None]]:
        """A reward function: for each turn, the sum of its gaps, negative. `None` for a turn that the teacher cannot read."""
        places = {id(one): index for index, one in enumerate(self.trainer.played)}
        batch = self.trainer.played
        teacher = self.logprobs(batch)
        student = score_without_training(self._policy, trajectories, **self.trainer.scoring)
        rewards: list[list[float | None]] = []
        for trajectory, own in zip(trajectories, student, strict=True):
            of_turns: list[float | None] = []
            for one, other in zip(own, teacher[places[id(trajectory)]], strict=True):
                of_turns.append(None if other is None else float((other.double() - one.double()).sum()))
                if other is not None:
                    self._sums[0] -= of_turns[-1] or 0.0
                    self._sums[1] += len(other)
            rewards.append(of_turns)
        return rewards

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory]) -> None:
        """Add the teacher's log-probs to a batch, or log the gaps that have been rewarded."""
        if self._by_turns:
            total = torch.tensor(self._sums, device=self.trainer.accelerator.device)
            self._sums = [0.0, 0.0]
            total = self.trainer.accelerator.reduce(total, reduction="sum")
            self.trainer.log_metric("distillation/gap", float(total[0] / total[1].clamp(min=1)))
            return
        trained = self.trainer.sampled_mask(batch)
        kept = (trained.sum(1) > 0).tolist()
        own = [one if row else [] for one, row in zip(self.logprobs(trajectories), kept, strict=True)]
        batch[TEACHER_LOGPS] = on_sampled_tokens(own, trajectories, trained)

    def gaps(self, batch: dict[str, Any], logps: torch.Tensor) -> torch.Tensor:
        """The gaps of a batch, shape `(B, C)`, whose mean is logged."""
        gaps, known = teacher_gaps(logps, batch[TEACHER_LOGPS], self.trainer.sampled_mask(batch))
        self.trainer.log_masked_mean("distillation/gap", gaps.detach(), known)
        return gaps

    def loss(self, batch: dict[str, Any], logps: torch.Tensor) -> torch.Tensor:
        """The weighted loss of a micro-batch, from the log-probs that the policy's loss was computed from."""
        gaps = self.gaps(batch, logps)
        return self.args.distillation_weight * distillation_loss(gaps).sum() / self.trainer.token_normalizer(batch)

    @property
    def _by_turns(self) -> bool:
        return not self.in_loss and self.trainer.rewards_by_turns

    @property
    def _policy(self) -> PreTrainedModel:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def _contexts(self, index: int, trajectory: Trajectory) -> list[Any]:
        if self.args.teacher_context == "same":
            return [turn.prompt_ids for turn in trajectory.turns]
        episode = self.trainer.episodes[index]
        if self.trainer.pool is None:
            return [episode.prompt_ids]
        return [self.trainer.rollout.contexts.appended(episode, count) for count in range(len(trajectory.turns))]


def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Stands where nothing is rewarded, since TRL needs a reward: 0 for every episode."""
    return [0.0] * len(completions)


def refuse_distillation(args: Mem1GRPOConfig, teacher: Any, has_environment: bool, has_critic: bool) -> None:
    """
    Refuse a teacher that nothing would come of, or that one process cannot ask alone.

    Raises:
        `TypeError`: For a teacher that is neither a text or a path nor a model.
        `ValueError`: For a teacher without `distillation_weight`; for the policy as its own teacher where both read the same; for a critic
            that is left without rewards; with DeepSpeed ZeRO-3 or with FSDP.
    """
    if not args.distillation_weight:
        if teacher is not None:
            raise ValueError(
                "A teacher has no effect with distillation_weight=0.0: raise it, or pass no teacher_model."
            )
        return
    if teacher is not None and not isinstance(teacher, (str, os.PathLike, nn.Module)):
        raise TypeError(f"`teacher_model` must be an id, a path or a model, got a {type(teacher).__name__}.")
    if isinstance(teacher, os.PathLike):
        check_path("teacher", os.fspath(teacher))
    given = f"distillation_weight={args.distillation_weight}"
    if args.teacher_model_init_kwargs and not isinstance(teacher, (str, os.PathLike)):
        raise ValueError(
            "teacher_model_init_kwargs are for a teacher that is loaded: pass its id or path, or leave them out."
        )
    if teacher is None:
        same = "there is no `environment_factory`" if not has_environment else None
        same = "teacher_context='same'" if args.teacher_context == "same" else same
        same = "context='full'" if args.context == "full" else same
        if same is not None:
            raise ValueError(
                f"{given} without a teacher_model makes the policy its own teacher, which must read more than the student does, but "
                f"here both read the same ({same}): pass a teacher_model."
            )
    if has_critic and not args.distillation_in_reward and not args.task_reward_weight:
        raise ValueError(
            "task_reward_weight=0.0 leaves nothing that a critic could learn to expect: use Mem1GRPOTrainer, or distillation_in_reward=True."
        )
    refuse_whole_policy_needed(args, given, "tokens")
