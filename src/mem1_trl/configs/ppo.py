"""The configuration of [`Mem1PPOTrainer`]: that of GRPO, and what a critic adds to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..update.turn_advantages import ADVANTAGE_LEVELS
from .checks import check_types, refuse_any
from .grpo import Mem1GRPOConfig

_PAPER: dict[str, Any] = {
    "advantage_level": "token",
    "gamma": 1.0,
    "lam": 1.0,
    "whiten_advantages": True,
    "beta": 0.001,
    "kl_in_reward": True,
    "entropy_coef": 0.001,
    "epsilon": 0.2,
    "cliprange_value": 0.5,
    "max_grad_norm": 1.0,
    "learning_rate": 1e-6,
    "value_learning_rate": 1e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 25,
    "num_generations": 1,
    "num_iterations": 1,
    "temperature": 1.0,
    "max_turns": 6,
    "max_completion_length": 1000,
    "max_observation_length": 1000,
}
"""Settings of [`Mem1PPOConfig.paper`]."""

_TURN_LEVEL: dict[str, Any] = {"advantage_level": "turn", "gamma": 0.99, "lam": 0.9}
"""Settings of [`Mem1PPOConfig.turn_level`]."""


@dataclass
class Mem1PPOConfig(Mem1GRPOConfig):
    r"""
    Configuration class for the [`Mem1PPOTrainer`].

    It has all parameters of [`Mem1GRPOConfig`]. The defaults are those of the reference run of MEM1 where it states them;
    below are only the parameters that it adds, and the defaults that it changes.

    Parameters:
        > Parameters that control credit

        advantage_level (`str`, *optional*, defaults to `"token"`):
            What a step of generalised advantage estimation is: a generated token of the whole trajectory (`"token"`), a turn, with the
            value at its begin and one advantage for all its tokens (`"turn"`), or turns first and then the tokens inside each
            turn (`"two_level"`), see [`mem1_trl.update.turn_advantages`].
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per generated token; per turn, unless `advantage_level="token"`.
        lam (`float`, *optional*, defaults to `1.0`):
            Trace decay of generalised advantage estimation, per generated token; per turn, unless `advantage_level="token"`.
        token_gamma (`float`, *optional*, defaults to `1.0`):
            Discount per generated token inside a turn, with `advantage_level="two_level"` only.
        token_lam (`float`, *optional*, defaults to `1.0`):
            Trace decay per generated token inside a turn, with `advantage_level="two_level"` only.
        bootstrap_truncated (`bool`, *optional*, defaults to `False`):
            Whether the return of an episode whose last turn was cut at `max_completion_length` goes on with the critic's value
            of the state in which it was cut, instead of ending there. An episode that used all its turns has ended either way:
            the agent is told how many it has, so they are part of the task.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether advantages are shifted and scaled to mean 0 and standard deviation 1 over the generated tokens of the
            generation batch.
        kl_in_reward (`bool`, *optional*, defaults to `True`):
            Whether the KL penalty of weight `beta` is taken off the reward of each token (k1), as in the reference run, or
            added to the loss (k3), as in TRL.

        > Parameters that control the critic

        vf_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the value loss. With `value_model="shared"` it weighs the value loss against the policy's in the
            weights they share; a critic with weights of its own has its own clipping, and Adam scales its gradients anyway.
        cliprange_value (`float` or `None`, *optional*, defaults to `0.5`):
            How far a value may move from its old estimate before the loss is clipped. `None` does not clip.
        value_learning_rate (`float`, *optional*, defaults to `1e-5`):
            Initial learning rate of the critic (of its head, if it is shared); it follows the same schedule as the policy's.
            There is no weight decay of what is the critic's own.
        critic_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps in which only the critic learns. Until then the policy does not move at all; it plays, and its
            loss is logged. The learning-rate schedule runs on meanwhile, for both.

        > Changed defaults

        num_generations (`int`, *optional*, defaults to `1`):
            Trajectories per task; a critic needs no group.
        beta (`float`, *optional*, defaults to `0.001`):
            Weight of the KL penalty. `0.0` saves the reference model.
        scale_rewards (`str`, *optional*, defaults to `"none"`):
            Group statistics have no place next to a critic.
    """

    num_generations: int | None = field(
        default=1, metadata={"help": "Trajectories per task; a critic needs no group, so 1 is allowed."}
    )
    beta: float = field(default=0.001, metadata={"help": "Weight of the KL penalty. `0.0` saves the reference model."})
    scale_rewards: str = field(
        default="none", metadata={"help": "Group statistics have no place next to a critic: only `none`."}
    )
    advantage_level: str = field(
        default="token",
        metadata={
            "help": "What a step of generalised advantage estimation is: a generated token (`token`), a turn, with one advantage "
            "for all its tokens (`turn`), or turns first and then the tokens inside each turn (`two_level`).",
            "choices": list(ADVANTAGE_LEVELS),
        },
    )
    gamma: float = field(
        default=1.0,
        metadata={"help": "Discount per generated token; per turn, unless `advantage_level` is `token`."},
    )
    lam: float = field(
        default=1.0,
        metadata={
            "help": "Trace decay of generalised advantage estimation, per generated token; per turn, unless "
            "`advantage_level` is `token`."
        },
    )
    token_gamma: float = field(
        default=1.0,
        metadata={"help": "Discount per generated token inside a turn, with `advantage_level` `two_level` only."},
    )
    token_lam: float = field(
        default=1.0,
        metadata={"help": "Trace decay per generated token inside a turn, with `advantage_level` `two_level` only."},
    )
    bootstrap_truncated: bool = field(
        default=False,
        metadata={
            "help": "Whether the return of an episode whose last turn was cut at `max_completion_length` goes on with the "
            "critic's value of the state in which it was cut, instead of ending there."
        },
    )
    whiten_advantages: bool = field(
        default=True,
        metadata={
            "help": "Whether advantages are shifted and scaled to mean 0 and standard deviation 1 over the generated "
            "tokens of the generation batch."
        },
    )
    kl_in_reward: bool = field(
        default=True,
        metadata={
            "help": "Whether the KL penalty of weight `beta` is taken off the reward of each token (k1), as in the "
            "reference run, or added to the loss (k3), as in TRL."
        },
    )
    vf_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the value loss. With `value_model='shared'` it weighs the value loss against the policy's "
            "in the weights they share; a critic with weights of its own has its own clipping, and Adam scales its "
            "gradients anyway."
        },
    )
    cliprange_value: float | None = field(
        default=0.5,
        metadata={
            "help": "How far a value may move from its old estimate before the loss is clipped. `None` does not clip."
        },
    )
    value_learning_rate: float = field(
        default=1e-5,
        metadata={
            "help": "Initial learning rate of the critic (of its head, if it is shared); it follows the same schedule as "
            "the policy's. There is no weight decay of what is the critic's own."
        },
    )
    critic_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps in which only the critic learns. Until then the policy does not move at all; it "
            "plays, and its loss is logged. The learning-rate schedule runs on meanwhile, for both."
        },
    )

    def __post_init__(self) -> None:
        self._check_types()
        if self.num_generations is None or self.num_generations < 1:
            raise ValueError(f"num_generations must be at least 1, got {self.num_generations}.")
        if self.num_generations == 1:
            self._post_init_of_one_generation()
        else:
            super().__post_init__()
        if self.vf_coef < 0:
            raise ValueError(f"vf_coef={self.vf_coef} would make the critic worse: use 0 or more.")
        if self.critic_warmup_steps < 0:
            raise ValueError(f"critic_warmup_steps={self.critic_warmup_steps} is negative: use 0 for no warm-up.")
        if self.max_steps > 0:
            check_warmup(self.critic_warmup_steps, self.max_steps)
        if self.critic_warmup_steps and self.vf_coef == 0:
            raise ValueError("critic_warmup_steps without a value loss would train nothing: set vf_coef above 0.")
        if self.value_learning_rate <= 0:
            raise ValueError(f"value_learning_rate={self.value_learning_rate} must be positive.")
        if self.cliprange_value is not None and self.cliprange_value <= 0:
            raise ValueError(f"cliprange_value={self.cliprange_value} must be positive; None turns the clip off.")

    def _check_types(self) -> None:
        super()._check_types()
        check_types(self, Mem1PPOConfig)

    def _check_credit(self) -> None:
        self._check_level(ADVANTAGE_LEVELS)
        for name in ("token_gamma", "token_lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
            if getattr(self, name) != 1.0 and self.advantage_level != "two_level":
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with advantage_level={self.advantage_level!r}: use 'two_level', "
                    f"or leave it 1.0."
                )
        reason = "the critic gives every token an advantage of its own"
        of_groups = (
            ("scale_rewards", "none", "leave it 'none' and use whiten_advantages"),
            ("state_group_weight", 1.0, "leave it 1.0"),
            ("dynamic_sampling_max_rounds", 0, "leave it 0"),
            ("skip_zero_advantages", False, "leave it False"),
        )
        refuse_any(
            self,
            [(name, getattr(self, name) != default, instead) for name, default, instead in of_groups],
            f"works on whole sequences or groups, but here {reason}",
        )
        self._refuse_whole_sequences(reason)
        refuse_any(
            self,
            (
                (
                    "bootstrap_truncated",
                    self.bootstrap_truncated and self.mask_truncated_completions,
                    "leave one of them out",
                ),
            ),
            "has no effect on episodes that mask_truncated_completions leaves out of the update",
        )

    @property
    def critic_learns_at_once(self) -> bool:
        """
        Whether a critic with a backbone of its own learns from the very pass that gives the values of a batch: its weights are the same in
        both if the batch is that of one optimizer step.
        """
        return self.num_iterations == 1 and self.steps_per_generation == self.gradient_accumulation_steps

    @property
    def trains_batch_in_one_pass(self) -> bool:
        """
        Whether one process trains on a whole generation batch in one forward pass, so that a shared critic can have its values from that
        very pass.
        """
        return (
            self.critic_learns_at_once
            and self.gradient_accumulation_steps == 1
            and self.max_tokens_per_micro_batch is None
        )

    @classmethod
    def paper(cls, output_dir: str | None = None, **changes: Any) -> Mem1PPOConfig:
        """
        The settings of the reference run of MEM1 on question answering (arXiv 2506.15841 and its released code).

        Credit over tokens with `gamma` and `lam` 1, advantages whitened, a KL penalty of 0.001 in the reward, an entropy bonus of
        0.001, clipping at 0.2 (policy), 0.5 (values) and 1.0 (gradients), learning rates of 1e-6 and 1e-5 that stay constant
        after 25 steps, 6 turns, 1,000 tokens for each completion and observation. Each generation batch of one sample a task is
        trained on once, in two optimizer steps. The run had 64 tasks in a step: set `per_device_train_batch_size` and
        `gradient_accumulation_steps` so that they, times the number of processes, give 64.

        One setting differs: its critic warmed up over 7 steps, which here is done over 25 along the policy's schedule.

        Args:
            output_dir (`str`, *optional*):
                As in [`~transformers.TrainingArguments`].
            changes (*optional*):
                Fields with other values.

        Returns:
            [`Mem1PPOConfig`]
        """
        accumulation = changes.get("gradient_accumulation_steps", 1)
        in_two_steps = {} if "generation_batch_size" in changes else {"steps_per_generation": 2 * accumulation}
        return cls(output_dir, **{**_PAPER, **in_two_steps, **changes})

    @classmethod
    def turn_level(cls, output_dir: str | None = None, **changes: Any) -> Mem1PPOConfig:
        """
        Credit between turns: one value at the begin of each turn, `gamma=0.99` and `lam=0.9` from turn to turn.

        The two numbers are those that summaries of Turn-PPO (arXiv 2512.17008) report as best in its ablation on WebShop and
        Sokoban; the paper itself was not at hand. It also clips the ratio of whole turns, which is not done here: the ratio is that of
        each token. All other settings are the defaults.

        Args:
            output_dir (`str`, *optional*):
                As in [`~transformers.TrainingArguments`].
            changes (*optional*):
                Fields with other values.

        Returns:
            [`Mem1PPOConfig`]
        """
        return cls(output_dir, **{**_TURN_LEVEL, **changes})

    def _post_init_of_one_generation(self) -> None:
        """
        Let `GRPOConfig` check two generations per prompt, and derive for one what it derives from their number.

        It refuses one, because its baseline is the mean of a group; a critic needs no group. The two are checked on a
        generation batch of two steps, which holds whole groups of two whatever the batch size is.
        """
        batch_size, steps = self.generation_batch_size, self.steps_per_generation
        generations_eval = self.num_generations_eval
        one_is_derived = batch_size is None or steps is None
        if one_is_derived:  # else it is an error, which `GRPOConfig` raises
            self.generation_batch_size, self.steps_per_generation = None, 2
        self.num_generations, self.num_generations_eval = 2, generations_eval or 1
        super().__post_init__()
        self.num_generations, self.num_generations_eval = 1, generations_eval
        global_batch_size = self.per_device_train_batch_size * self.world_size
        if steps is None and batch_size is None:
            steps = self.gradient_accumulation_steps
        elif steps is None:
            assert batch_size is not None
            if batch_size % global_batch_size != 0:
                raise ValueError(
                    f"generation_batch_size ({batch_size}) must be divisible by the global batch size ({global_batch_size})."
                )
            steps = batch_size // global_batch_size
        self.generation_batch_size, self.steps_per_generation = steps * global_batch_size, steps


def check_warmup(warmup: int, steps: int) -> None:
    """
    Refuse a run in which the policy would never move.

    Raises:
        `ValueError`: If the critic's warm-up takes all of its optimizer steps.
    """
    if 0 < steps <= warmup:
        raise ValueError(
            f"critic_warmup_steps={warmup} leaves nothing of the {steps} steps of the run (max_steps, or those of its epochs) to train the "
            "policy in: lower it."
        )
