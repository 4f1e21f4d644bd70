"""The two training configurations: TRL's `GRPOConfig` and what rewritten contexts add to it."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from .context_rules.named import describe_rule, import_rule
from .context_rules.rule import ContextRule
from .environment_runtime.faults import ON_ENVIRONMENT_ERROR, FaultSettings
from .rollout.settings import BATCH_WAIT, ROLLOUT_MODES, AgentSettings, check_rollout_mode, setting
from .update.layouts import LAYOUTS
from .update.turn_advantages import ADVANTAGE_LEVELS

_WORD = re.compile(r"\w+")

_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


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
class Mem1GRPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`Mem1GRPOTrainer`].

    It has all parameters of [`~trl.GRPOConfig`]; `max_completion_length` is the budget of one turn. Below are only those
    that it adds.

    Parameters:
        > Parameters that control the episode

        max_turns (`int`, *optional*, defaults to `6`):
            Maximum number of turns of an episode. The paper uses 6 for up to four objectives and 20 beyond.
        max_observation_length (`int`, *optional*, defaults to `1000`):
            Maximum number of tokens of one observation, its tags and hint included. A longer one is cut, and says so.
        context (`str`, *optional*, defaults to `"mem1"`):
            What the next turn reads after the task prompt: the last turn and its observation (`"mem1"`), all turns
            (`"full"`), as many whole turns as fit into `max_context_length` (`"truncate"`), the last turn and the
            best matches from a BM25 store of past observations (`"external"`), all turns until a budget is reached and a summary of
            them then (`"compact"`), or what the agent decides by actions (`"on_demand"`, `"fold"`). Or a [`ContextRule`] of yours, or
            its import path, `"module:Class"`, see docs/context_rules.md.
        context_kwargs (`dict`, *optional*):
            Parameters of the context rule, such as `{"every": 4}` for `"compact"`.
        max_context_length (`int` or `None`, *optional*):
            Maximum number of tokens of a context, its completion not counted. `None` uses the model's maximum position minus
            `max_completion_length`. The task prompt is never cut: a longer one is an error.
        memory_top_k (`int`, *optional*, defaults to `3`):
            Maximum number of past observations that `context="external"` puts back into a context.
        conversational (`bool` or `None`, *optional*):
            Whether a task that is a text is given to the model as a user's message through its chat template. Tasks that are
            messages always are. `None` takes what was saved with the model, or else decides by the data set and the tokenizer:
            messages are chat, and texts are chat if the tokenizer has a chat template and there is an environment. The choice
            is saved with the model.
        eval_temperature (`float` or `None`, *optional*, defaults to `0.0`):
            Sampling temperature of evaluation; `0.0` decodes greedily, `None` samples as in training. An evaluation that
            decodes greedily plays every row once, unless `num_generations_eval` is given.
        prefix_cache (`bool`, *optional*, defaults to `True`):
            Whether generation with transformers keeps the keys and values of what is read again: the task prompt across turns
            and across the samples of a group, an appended history. `False` saves their memory between turns.
        rollout_mode (`str`, *optional*, defaults to `"async"`):
            How the episodes of a batch are played together: each goes on as soon as its own actions have returned, and generation takes
            those that are ready (`"async"`); or in every turn all wait for the slowest (`"lockstep"`). Where processes generate
            together (sharded weights, vLLM with several processes) it is lockstep in any case.
        rollout_batch_wait (`float`, *optional*, defaults to `0.02`):
            With `rollout_mode="async"`, seconds for which an episode that is ready waits for others, to be generated with them.
        save_eval_trajectories (`bool`, *optional*, defaults to `False`):
            Whether every evaluation writes its episodes, and means with intervals, to
            `<output_dir>/evaluation/eval-<step>.jsonl` and `.json`, see [`mem1_trl.evaluation.result`].

        > Parameters that control failures of environments

        environment_timeout (`float` or `None`, *optional*, defaults to `300.0`):
            Seconds that a call of an environment (`reset`, an action, `get_reward`) may take. An instance that hangs longer is
            given up and replaced. `None` waits forever. In a run of several processes keep it well below the time-out of
            their communication.
        environment_retries (`int`, *optional*, defaults to `2`):
            How often a call that failed is repeated, after 0.5, 1, 2, ... seconds: `reset` (in a new instance), `get_reward` and
            actions marked with [`mem1_trl.faults.idempotent`] after any failure that may pass, other actions only after a
            `ConnectionError` or `TimeoutError` of the environment.
        environment_concurrency (`int`, *optional*, defaults to `64`):
            Most calls of environments at once, in each process. `1` calls them in order.
        on_environment_error (`str`, *optional*, defaults to `"observe"`):
            What an action that fails in the end does: the agent reads the error and goes on (`"observe"`), or the episode ends
            and all episodes of its group are left out of the update (`"drop_group"`). Either way an episode whose `reset` or
            `get_reward` fails, or whose environment dies, is left out itself.

        > Parameters that control the update

        layout (`str`, *optional*, defaults to `"packed"`):
            How a trajectory is forwarded: as one prefix tree (`"packed"`), as one row per turn (`"per_turn"`), or as the
            paper's stitched sequence (`"paper"`), which is inexact and kept for comparison.
        max_tokens_per_micro_batch (`int` or `None`, *optional*):
            Most tokens of one forward and backward pass, counted as they are forwarded: a beginning that rows share once, the
            contexts and the padding of `layout="per_turn"` in full. A micro-batch that holds more is trained in several passes
            with the same gradient, so that memory follows this number however long trajectories become; a single trajectory
            is never cut. (The load-balancing loss of experts keeps its scale, and balances within each pass.) `None` trains each
            micro-batch in one pass.
        state_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the tokens of the state (`<think>` to `</think>`) in the policy's loss, against 1 for all other sampled
            tokens. It multiplies their terms of the clipped objective, and nothing else: not what the loss is divided by, not KL
            or entropy, not the critic.
        check (`str`, *optional*, defaults to `"on"`):
            Whether the model is checked when the trainer is built (`"on"`): a toy trajectory is sampled and scored as in the
            run and held against the plain model, which takes a fraction of a second for a small model. A layout that is off is
            replaced, or refused; and a first batch in float32 whose sampled and computed log-probs differ by more than 0.1 nats
            ends the run. `"off"` trains anyway.

        > Changed defaults

        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            Whether a loss that is not finite is logged as the mean of those before it, as `Trainer` does. `False` logs it as
            it is.
    """

    max_turns: int = setting("max_turns")
    max_observation_length: int = setting("max_observation_length")
    context: str = setting("context")
    context_kwargs: dict | str | None = setting("context_kwargs")  # noqa: RUF009  # the type that TRL's own have
    max_context_length: int | None = setting("max_context_length")
    memory_top_k: int = setting("memory_top_k")
    conversational: bool | None = setting("conversational")
    eval_temperature: float | None = field(
        default=0.0,
        metadata={
            "help": "Sampling temperature of evaluation; `0.0` decodes greedily, and plays every row once unless "
            "`num_generations_eval` is given; `None` samples as in training."
        },
    )
    prefix_cache: bool = field(
        default=True,
        metadata={
            "help": "Whether generation with transformers keeps the keys and values of what is read again: the task prompt "
            "across turns and across the samples of a group, an appended history. `False` saves their memory between turns."
        },
    )
    rollout_mode: str = field(
        default="async",
        metadata={
            "help": "How the episodes of a batch are played together: each goes on as soon as its own actions have returned "
            "(`async`), or in every turn all wait for the slowest (`lockstep`). Where processes generate together it is lockstep in "
            "any case.",
            "choices": list(ROLLOUT_MODES),
        },
    )
    rollout_batch_wait: float = field(
        default=BATCH_WAIT,
        metadata={
            "help": "With `rollout_mode='async'`, seconds for which an episode that is ready waits for others, to be generated with "
            "them."
        },
    )
    save_eval_trajectories: bool = field(
        default=False,
        metadata={
            "help": "Whether every evaluation writes its episodes, and means with intervals, to "
            "`<output_dir>/evaluation/eval-<step>.jsonl` and `.json`."
        },
    )
    environment_timeout: float | None = field(
        default=300.0,
        metadata={
            "help": "Seconds that a call of an environment (`reset`, an action, `get_reward`) may take. An instance that hangs "
            "longer is given up and replaced. `None` waits forever."
        },
    )
    environment_retries: int = field(
        default=2,
        metadata={
            "help": "How often a call of an environment that failed is repeated, after 0.5, 1, 2, ... seconds: `reset`, "
            "`get_reward` and idempotent actions after any failure that may pass, other actions only after a "
            "`ConnectionError` or `TimeoutError` of the environment."
        },
    )
    environment_concurrency: int = field(
        default=64,
        metadata={"help": "Most calls of environments at once, in each process. `1` calls them in order."},
    )
    on_environment_error: str = field(
        default="observe",
        metadata={
            "help": "What an action that fails in the end does: the agent reads the error and goes on (`observe`), or the "
            "episode ends and all episodes of its group are left out of the update (`drop_group`).",
            "choices": list(ON_ENVIRONMENT_ERROR),
        },
    )
    layout: str = field(
        default="packed",
        metadata={
            "help": "How a trajectory is forwarded: as one prefix tree (`packed`), as one row per turn (`per_turn`), or "
            "as the paper's stitched sequence (`paper`), which is inexact and kept for comparison.",
            "choices": list(LAYOUTS),
        },
    )

    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of one forward and backward pass, counted as they are forwarded: with padding, and a shared "
            "beginning once. A micro-batch that holds more is trained in several passes with the same gradient; a single "
            "trajectory is never cut. `None` trains each micro-batch in one pass."
        },
    )

    state_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the tokens of the state (`<think>` to `</think>`) in the policy's loss, against 1 for all other "
            "sampled tokens. What the loss is divided by, KL, entropy and the critic stay as they are."
        },
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Whether a loss that is not finite is logged as the mean of those before it, as `Trainer` does. `False` "
            "logs it as it is."
        },
    )
    check: str = field(
        default="on",
        metadata={
            "help": "Whether the model is checked when the trainer is built (`on`): a toy trajectory is sampled and scored as in "
            "the run and held against the plain model. A layout that is off is replaced, or refused. `off` trains anyway.",
            "choices": ["on", "off"],
        },
    )

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "context_kwargs"]  # noqa: RUF012  # as TRL declares it

    def __post_init__(self) -> None:
        if isinstance(self.context, ContextRule):
            self.context, self.context_kwargs = describe_rule(self.context)
        import_rule(self.context)
        self._refuse_texts()
        self._play_once_if_greedy()
        self._use_new_names()
        super().__post_init__()
        self._check_episode()

    def _play_once_if_greedy(self) -> None:
        """Let an evaluation that decodes greedily play each row once: all samples of a row would be the same."""
        temperature = self.temperature if self.eval_temperature is None else self.eval_temperature
        kwargs = self.generation_kwargs if isinstance(self.generation_kwargs, dict) else {}
        greedy = temperature == 0.0 or kwargs.get("do_sample", True) is False
        if greedy and self.num_generations_eval is None:
            self.num_generations_eval = 1

    def _refuse_texts(self) -> None:
        """Refuse a number that is a text, as YAML reads 1e-6, before it meets arithmetic far from here."""
        for one in fields(self):
            kinds, value = set(_WORD.findall(str(one.type))), getattr(self, one.name, None)
            if isinstance(value, str) and kinds & {"int", "float"} and "str" not in kinds:
                raise ValueError(
                    f"{one.name} must be a number, got the text {value!r} (YAML reads a number such as 1e-6 as text: write 1.0e-6)."
                )

    def _use_new_names(self) -> None:
        """TRL's default goes by a name that transformers is about to remove, and would warn in every run."""
        for old, new in _RENAMED.items():
            if hasattr(self, new) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))

    def _check_episode(self) -> None:
        """Refuse what cannot work here, whatever TRL thinks of it."""
        for one in fields(self):
            value = getattr(self, one.name, None)
            if isinstance(value, float) and value != value:
                raise ValueError(f"{one.name} must be a number, got {value}.")
        self._check_token_budget()
        self._check_state_loss_weight()
        self.fault_settings()
        check_rollout_mode(self.rollout_mode, self.rollout_batch_wait)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {self.layout!r}.")
        if self.check not in ("on", "off"):
            raise ValueError(f"check must be 'on' or 'off', got {self.check!r}.")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be above 0, since log-probs are computed at it, got {self.temperature}: sample in training; an "
                "evaluation decodes greedily with eval_temperature=0.0."
            )
        if self.eval_temperature is not None and self.eval_temperature < 0:
            raise ValueError(
                f"eval_temperature must be at least 0 (greedy decoding) or None, got {self.eval_temperature}."
            )
        self.agent_settings()
        if self.layout == "paper" and self.context != "mem1":
            raise ValueError(
                f"layout='paper' is the mask of MEM1's own context; with context={self.context!r} use layout='packed'."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel` is not supported: TRL is about to drop it, and its kernels have not been shown to keep the "
                "positions of a prefix tree. Leave it False; the packed layout has its own kernels on a GPU."
            )
        if self.torch_compile:
            raise ValueError(
                "`torch_compile` is not supported: rows change in length and in their tree at every step, and a compiled "
                "model has not been shown to give the same values. Leave it False."
            )
        if self.max_tool_calling_iterations is not None:
            raise ValueError("`max_tool_calling_iterations` has no effect here: set `max_turns` instead.")

    def agent_settings(self, **known: Any) -> AgentSettings:
        """
        How a model is run that is trained with this configuration, at the temperature of its evaluation.

        Args:
            known (*optional*):
                Fields that win over those of this configuration.

        Raises:
            `ValueError`: If a field is out of its range.
        """
        temperature = self.temperature if self.eval_temperature is None else self.eval_temperature
        return AgentSettings.from_config(self, **{"temperature": temperature, **known})

    def fault_settings(self) -> FaultSettings:
        """The part that says how environments are called."""
        return FaultSettings(
            timeout=self.environment_timeout,
            retries=self.environment_retries,
            concurrency=self.environment_concurrency,
            on_error=self.on_environment_error,
        )

    def _check_state_loss_weight(self) -> None:
        weight = self.state_loss_weight
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"state_loss_weight must be a finite number of at least 0, got {weight}.")
        if weight == 1.0:
            return
        for name, bad in (
            ("loss_type", self.loss_type == "vespo"),
            ("off_policy_mask_threshold", self.off_policy_mask_threshold is not None),
        ):
            if bad:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} takes one advantage for a trajectory, so tokens cannot have "
                    f"state_loss_weight={weight}: leave one of them out."
                )

    def _check_token_budget(self) -> None:
        """Refuse a token budget next to what needs all tokens of a micro-batch at once: its parts would not add up."""
        if self.max_tokens_per_micro_batch is None:
            return
        if self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"max_tokens_per_micro_batch={self.max_tokens_per_micro_batch} holds no token: use 1 or more."
            )
        for name, bad in (
            ("use_adaptive_entropy", self.use_adaptive_entropy),
            ("top_entropy_quantile", self.top_entropy_quantile < 1.0),
            ("deepspeed", bool(self.deepspeed)),
        ):
            if bad:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with max_tokens_per_micro_batch, since a micro-batch could "
                    "not be trained in parts: leave one of them out, or lower per_device_train_batch_size."
                )


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
            "the policy's."
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
        self._refuse_texts()
        if self.num_generations is None or self.num_generations < 1:
            raise ValueError(f"num_generations must be at least 1, got {self.num_generations}.")
        if self.num_generations == 1:
            self._post_init_of_one_generation()
        else:
            super().__post_init__()
        if self.advantage_level not in ADVANTAGE_LEVELS:
            raise ValueError(
                f"advantage_level must be one of {', '.join(map(repr, ADVANTAGE_LEVELS))}, got {self.advantage_level!r}."
            )
        for name in ("gamma", "lam", "token_gamma", "token_lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
        for name in ("token_gamma", "token_lam"):
            if getattr(self, name) != 1.0 and self.advantage_level != "two_level":
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with advantage_level={self.advantage_level!r}: use 'two_level', "
                    f"or leave it 1.0."
                )
        if self.vf_coef < 0:
            raise ValueError(f"vf_coef={self.vf_coef} would make the critic worse: use 0 or more.")
        if self.critic_warmup_steps < 0:
            raise ValueError(f"critic_warmup_steps={self.critic_warmup_steps} is negative: use 0 for no warm-up.")
        if 0 < self.max_steps <= self.critic_warmup_steps:
            raise ValueError(
                f"critic_warmup_steps={self.critic_warmup_steps} leaves nothing of max_steps={self.max_steps} to train the "
                "policy in: lower it."
            )
        if self.critic_warmup_steps and self.vf_coef == 0:
            raise ValueError("critic_warmup_steps without a value loss would train nothing: set vf_coef above 0.")
        if self.value_learning_rate <= 0:
            raise ValueError(f"value_learning_rate={self.value_learning_rate} must be positive.")
        if self.cliprange_value is not None and self.cliprange_value <= 0:
            raise ValueError(f"cliprange_value={self.cliprange_value} must be positive; None turns the clip off.")
        advantage_per_token = "the critic gives every token an advantage of its own"
        for name, bad, instead in (
            ("scale_rewards", self.scale_rewards != "none", "leave it 'none' and use whiten_advantages"),
            ("importance_sampling_level", self.importance_sampling_level != "token", "use 'token'"),
            ("loss_type", self.loss_type in ("luspo", "vespo"), "use 'dapo'"),
            ("off_policy_mask_threshold", self.off_policy_mask_threshold is not None, "leave it None"),
            (
                "multi_objective_aggregation",
                self.multi_objective_aggregation != "sum_then_normalize",
                "use reward_weights",
            ),
        ):
            if bad:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} works on whole sequences or groups, but here "
                    f"{advantage_per_token}: {instead}."
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


def from_grpo_config(args: Any) -> Mem1GRPOConfig:
    """
    The configuration of a script that was written for [`~trl.GRPOTrainer`], for [`Mem1GRPOTrainer`].

    What it does not know has its default, except that `max_tool_calling_iterations=n` becomes `max_turns=n + 1`: n calls and the
    turn after the last. A warning says what the settings that mean something else here have become.

    Args:
        args ([`~trl.GRPOConfig`]):
            It is left as it is.

    Raises:
        `TypeError`: If it is no `GRPOConfig`.
        `ValueError`: If it holds a setting that is refused here.
    """
    if not isinstance(args, GRPOConfig):
        raise TypeError(f"`args` is a {type(args).__name__}: pass a Mem1GRPOConfig or a trl.GRPOConfig.")
    # Copied and not built anew: what `GRPOConfig` has derived from its arguments it would refuse as arguments
    config: Mem1GRPOConfig = object.__new__(Mem1GRPOConfig)
    vars(config).update(vars(args))
    inherited = {one.name for one in fields(GRPOConfig)}
    for one in fields(Mem1GRPOConfig):
        if one.name not in inherited:
            setattr(config, one.name, one.default)
    config._play_once_if_greedy()
    config.logging_nan_inf_filter = False  # whoever wrote a `GRPOConfig` did not ask for the default of `Trainer`
    iterations, config.max_tool_calling_iterations = args.max_tool_calling_iterations, None
    if iterations is not None:
        config.max_turns = iterations + 1
    config._check_episode()
    warnings.warn(
        f"A GRPOConfig is run as a Mem1GRPOConfig: max_turns={config.max_turns}"
        + (" (one more than max_tool_calling_iterations)" if iterations is not None else "")
        + f", max_completion_length={config.max_completion_length} tokens for each turn (TRL: for the whole episode), "
        f"max_observation_length={config.max_observation_length}. Pass a Mem1GRPOConfig to set them.",
        stacklevel=3,
    )
    return config
