"""The configuration of [`Mem1GRPOTrainer`]: TRL's `GRPOConfig` and what rewritten contexts add to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..context_rules.named import given_rule
from ..environment_runtime.faults import ON_ENVIRONMENT_ERROR, FaultSettings
from ..rollout.settings import BATCH_WAIT, LEAST_TEMPERATURE, ROLLOUT_MODES, AgentSettings, check_rollout_mode, setting
from ..typed_fields import check_seed
from ..update.distillation import TEACHER_CONTEXTS
from ..update.group_advantages import GROUP_LEVELS
from ..update.layouts import LAYOUTS
from .checks import (
    LARGEST_OF_NUMPY,
    check_choices,
    check_curriculum,
    check_finite,
    check_json,
    check_ranges,
    check_sampling_of_groups,
    check_types,
    refuse_any,
    refuse_noise,
    refuse_unread,
    refuse_without_effect,
)
from .distillation import check_distillation

_FOLLOW_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow `metric_for_best_model`."""

_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


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
            Maximum number of tokens of a context, its completion not counted. `None` uses the model's maximum position, or
            `vllm_max_model_length` if that is given and less, minus `max_completion_length`. The task prompt is never cut: a longer one is an error.
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
        cuda_graphs (`bool`, *optional*, defaults to `True`):
            Whether generation with transformers on a GPU captures its steps as CUDA graphs, which saves the time that starting the
            kernels takes. It needs `prefix_cache`, and a copy of the keys and values during the rollout; a model that cannot be captured
            is called as ever.
        merge_adapter (`bool`, *optional*, defaults to `False`):
            Whether the LoRA adapter is part of the weights while episodes are played by transformers, as it is for vLLM: a token then costs
            what it costs without an adapter. It takes 4 bytes more for each weight that the adapter changes. Only for LoRA on
            linear layers in float32: in half precision small changes would be lost.
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

        > Parameters that control the order of tasks

        curriculum_threshold (`float` or `None`, *optional*):
            With a training data set of stages ([`mem1_trl.curriculum.compose_curriculum`]) and `shuffle_dataset=False`: the next stage begins when the
            mean of `curriculum_metric` over the last `curriculum_steps` batches is at least this. Until then the tasks of a stage are played again
            and again, so set `max_steps`. `None` plays each task once in an epoch, as they stand.
        curriculum_steps (`int`, *optional*, defaults to `10`):
            Number of batches of episodes that must reach `curriculum_threshold` on average; those of a stage before do not count.
        curriculum_metric (`str`, *optional*, defaults to `"episode/success"`):
            What is compared with `curriculum_threshold`: a metric that is logged for each batch, such as `"reward"`. `"episode/success"` is the share of
            episodes with all answers right, of rows with `answers`.

        > Parameters that control credit

        advantage_level (`str`, *optional*, defaults to `"episode"`):
            What is compared within a group: the rewards of its episodes (`"episode"`), as in TRL; what its episodes still got from
            their turn `k` on, for each `k` (`"turn"`); or episodes, and beside that the turns `k` that read the very same context
            (`"state"`), see [`mem1_trl.update.group_advantages`].
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per turn, with `advantage_level` `"turn"` or `"state"` only.
        lam (`float`, *optional*, defaults to `1.0`):
            Trace decay per turn, with `advantage_level` `"turn"` or `"state"` only. Below 1, what came after the next turn is
            partly replaced by the mean of the turns that the next turn is compared with.
        state_group_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the comparison of turns with the same context beside that of episodes, with `advantage_level="state"` only.
        dynamic_sampling_max_rounds (`int`, *optional*, defaults to `0`):
            How often a group whose rewards are all equal, from which nothing is learned, is played again at most. Metrics of rewards and
            episodes are of what was played first. `0` plays each group once.
        skip_zero_advantages (`bool`, *optional*, defaults to `False`):
            Whether the update passes over trajectories without an advantage, such as those of a group whose rewards are all equal, which add
            nothing to the gradient. Metrics of tokens (entropy, clipping) are then of the others alone, and `top_entropy_quantile` is a share of
            their tokens. Not with what else is learned from them (KL by `beta`, entropy, distillation, the load balancing of experts), nor with rewards
            that are never equal (`memory_value_weight`).
        memory_value_weight (`float`, *optional*, defaults to `0.0`):
            Weight of a reward of turns: how many nats of the right answers (column `answers`; without it, of the next action) the state
            carries that the turn wrote, by the policy itself, see [`mem1_trl.update.memory_value`]. `0.0` does not compute it.

        > Parameters that control on-policy distillation

        distillation_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the gaps between student and teacher: how much likelier, in nats, each sampled token is to the policy, in the
            context that it rewrites, than to the teacher, see [`mem1_trl.update.distillation`]. `0.0` has no teacher.
        distillation_in_reward (`bool`, *optional*, defaults to `False`):
            Whether gaps are taken off the rewards, so that what a turn does to later turns is credited to it, or added to the loss, in which
            each token answers for itself alone. In rewards, PPO has them token by token, GRPO summed up in turns.
        teacher_context (`str`, *optional*, defaults to `"full"`):
            What the teacher reads before a turn: the task prompt and all turns before it, as with `context="full"` (`"full"`), or what
            the student read (`"same"`).
        teacher_model_name_or_path (`str`, *optional*):
            Id or path of the teacher, if none is passed to the trainer. `None` is the policy itself.
        teacher_model_init_kwargs (`dict`, *optional*):
            Keyword arguments for `AutoModelForCausalLM.from_pretrained` of a teacher that is loaded.
        task_reward_weight (`float`, *optional*, defaults to `1.0`):
            With a teacher, what the weights of all other rewards are multiplied by. `0.0` is distillation alone.

        > Parameters that control the update

        layout (`str`, *optional*, defaults to `"packed"`):
            How a trajectory is forwarded: as one prefix tree (`"packed"`), as one row per turn (`"per_turn"`), or as the
            paper's stitched sequence (`"paper"`), which is inexact and kept for comparison.
        max_tokens_per_micro_batch (`int` or `None`, *optional*):
            Most tokens of one forward and backward pass, counted as they are forwarded: a beginning that rows share once, the
            contexts and the padding of `layout="per_turn"` in full. A micro-batch that holds more is trained in several passes
            with the same gradient, so that memory follows this number however long trajectories become; a longer trajectory is
            cut at its branches, a single turn is not. Several processes make equally many passes: who has fewer adds some over three
            tokens that count nothing. (The load-balancing loss of experts keeps its scale, and balances within each pass.) `None`
            trains each micro-batch in one pass.
        state_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the tokens of the state (`<think>` to `</think>`) in the policy's loss, against 1 for all other sampled
            tokens. It multiplies their terms of the clipped objective, and nothing else: not what the loss is divided by, not KL
            or entropy, not the critic.
        check (`str`, *optional*, defaults to `"on"`):
            Whether the model is checked when the trainer is built (`"on"`): a toy trajectory is sampled and scored as in the
            run and held against the plain model, which takes a fraction of a second for a small model. A layout that is off is
            replaced, or refused; and a first batch in float32 whose sampled and computed log-probs differ by more than 0.1 nats
            ends the run. `"off"` trains anyway. `True` and `False` mean the same.

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
    cuda_graphs: bool = field(
        default=True,
        metadata={
            "help": "Whether generation with transformers on a GPU captures its steps as CUDA graphs, which saves the time that "
            "starting the kernels takes. It needs `prefix_cache`, and a copy of the keys and values during the rollout; a model "
            "that cannot be captured is called as ever."
        },
    )
    merge_adapter: bool = field(
        default=False,
        metadata={
            "help": "Whether the LoRA adapter is part of the weights while episodes are played by transformers, so that a token costs "
            "what it costs without an adapter; for LoRA in float32, with 4 bytes more for each weight that the adapter changes."
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
    curriculum_threshold: float | None = field(
        default=None,
        metadata={
            "help": "With a training data set of stages: the next one begins when the mean of `curriculum_metric` over the last "
            "`curriculum_steps` batches is at least this. `None` plays tasks in the order of their rows."
        },
    )
    curriculum_steps: int = field(
        default=10,
        metadata={"help": "Number of batches of episodes that must reach `curriculum_threshold` on average."},
    )
    curriculum_metric: str = field(
        default="episode/success",
        metadata={"help": "The metric of a batch that is compared with `curriculum_threshold`, such as `reward`."},
    )
    advantage_level: str = field(
        default="episode",
        metadata={
            "help": "What is compared within a group: the rewards of episodes (`episode`), what episodes still got from their turn "
            "k on (`turn`), or episodes and, beside that, the turns that read the same context (`state`).",
            "choices": list(GROUP_LEVELS),
        },
    )
    gamma: float = field(
        default=1.0, metadata={"help": "Discount per turn, with `advantage_level` `turn` or `state` only."}
    )
    lam: float = field(
        default=1.0, metadata={"help": "Trace decay per turn, with `advantage_level` `turn` or `state` only."}
    )
    state_group_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the comparison of turns with the same context beside that of episodes, with `advantage_level` "
            "`state` only."
        },
    )
    dynamic_sampling_max_rounds: int = field(
        default=0,
        metadata={
            "help": "How often a group whose rewards are all equal, from which nothing is learned, is played again at most. `0` plays "
            "each group once."
        },
    )
    skip_zero_advantages: bool = field(
        default=False,
        metadata={
            "help": "Whether the update passes over trajectories without an advantage, such as those of a group whose rewards are all "
            "equal, which add nothing to the gradient. Metrics of tokens are then of the others alone, and `top_entropy_quantile` is a share of "
            "their tokens."
        },
    )
    memory_value_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a reward of turns: how many nats of the right answers (column `answers`; without it, of the next "
            "action) the state carries that the turn wrote. `0.0` does not compute it."
        },
    )
    distillation_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the gaps between student and teacher: how much likelier, in nats, each sampled token is to the policy "
            "than to the teacher. `0.0` has no teacher."
        },
    )
    distillation_in_reward: bool = field(
        default=False,
        metadata={
            "help": "Whether gaps are taken off the rewards, so that what a turn does to later turns is credited to it, or added to "
            "the loss, in which each token answers for itself alone."
        },
    )
    teacher_context: str = field(
        default="full",
        metadata={
            "help": "What the teacher reads before a turn: the task prompt and all turns before it (`full`), or what the student "
            "read (`same`).",
            "choices": list(TEACHER_CONTEXTS),
        },
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Id or path of the teacher, if none is passed to the trainer. `None` is the policy itself, with the whole history "
            "in view."
        },
    )
    teacher_model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for `AutoModelForCausalLM.from_pretrained` of a teacher that is loaded."},
    )
    task_reward_weight: float = field(
        default=1.0,
        metadata={
            "help": "With a teacher, what the weights of all other rewards are multiplied by. `0.0` is distillation alone."
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
            "beginning once. A micro-batch that holds more is trained in several passes with the same gradient; a longer "
            "trajectory is cut at its branches. `None` trains each micro-batch in one pass."
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

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "context_kwargs", "teacher_model_init_kwargs"]  # noqa: RUF012  # as TRL declares it

    def __post_init__(self) -> None:
        check_json(self)
        self.context, self.context_kwargs = given_rule(self.context, self.context_kwargs)
        if isinstance(self.teacher_model_name_or_path, os.PathLike):
            self.teacher_model_name_or_path = os.fspath(self.teacher_model_name_or_path)
        self._check_types()
        if self.num_generations is None or self.num_generations < 2:
            raise ValueError(
                f"num_generations must be at least 2, since episodes of a task are compared, got {self.num_generations}."
            )
        self._play_once_if_greedy()
        self._use_new_names()
        if self.use_cpu and self.bf16 is None:
            self.bf16 = False  # mixed precision on a CPU is slow, and samples from other weights than it trains
        if (self.load_best_model_at_end or self._follows_metric()) and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"  # the loss of a policy does not say how well it plays
        super().__post_init__()
        self._turn_schedule()
        self._check_episode()
        check_finite(self)  # last, since most of this package's own are refused by sentences that say more

    def _follows_metric(self) -> bool:
        """Whether the learning rate follows a metric of evaluations."""
        return str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) in _FOLLOW_METRIC

    def _turn_schedule(self) -> str | None:
        """Tell a schedule that follows a metric whether that should rise, which it takes for one that should fall; returns what was not given."""
        schedule: Any = self.lr_scheduler_kwargs or {}  # a dictionary by now
        if not self._follows_metric() or "mode" in schedule:
            return None
        if self.greater_is_better is None:
            self.greater_is_better = not str(self.metric_for_best_model).endswith("loss")
        mode = "max" if self.greater_is_better else "min"
        self.lr_scheduler_kwargs = {**schedule, "mode": mode}
        return mode

    def _play_once_if_greedy(self) -> None:
        """Let an evaluation that decodes greedily play each row once: all samples of a row would be the same."""
        temperature = self.temperature if self.eval_temperature is None else self.eval_temperature
        kwargs = self.generation_kwargs if isinstance(self.generation_kwargs, dict) else {}
        greedy = temperature == 0.0 or kwargs.get("do_sample", True) is False
        if greedy and self.num_generations_eval is None:
            self.num_generations_eval = 1

    def _check_types(self) -> None:
        if isinstance(self.check, bool):  # as YAML reads on and off
            self.check = "on" if self.check else "off"
        check_types(self, Mem1GRPOConfig)
        check_ranges(self)

    def _use_new_names(self) -> None:
        """TRL's default goes by a name that transformers is about to remove, and would warn in every run."""
        for old, new in _RENAMED.items():
            if hasattr(self, new) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))

    def _check_episode(self) -> None:
        """Refuse what cannot work here, whatever TRL thinks of it."""
        check_seed(self.seed, most=LARGEST_OF_NUMPY)
        check_choices(self)
        if self.use_vllm and self.vllm_max_model_length is not None:
            self.agent_settings().within(self.vllm_max_model_length, "which is vllm_max_model_length")
        self._check_token_budget()
        self._check_state_loss_weight()
        self._check_credit()
        check_curriculum(self)
        if self.dynamic_sampling_max_rounds < 0:
            raise ValueError(
                f"dynamic_sampling_max_rounds must be at least 0, got {self.dynamic_sampling_max_rounds}."
            )
        if not 0.0 <= self.memory_value_weight < float("inf"):
            raise ValueError(
                f"memory_value_weight must be a finite number of at least 0, got {self.memory_value_weight}."
            )
        check_distillation(self)
        self._check_skipping()
        check_sampling_of_groups(self)
        self.fault_settings()
        check_rollout_mode(self.rollout_mode, self.rollout_batch_wait)
        refuse_noise(self)
        refuse_unread(self)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {self.layout!r}.")
        if self.check not in ("on", "off"):
            raise ValueError(f"check must be 'on' or 'off', got {self.check!r}.")
        if not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature must be at least {LEAST_TEMPERATURE}, since log-probs are computed at it, got {self.temperature}: sample in training; an "
                "evaluation decodes greedily with eval_temperature=0.0."
            )
        refuse_without_effect(self)
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
        launched = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
        if self.torch_compile or launched.lower() not in ("", "no"):
            instead = (
                "Leave it False."
                if self.torch_compile
                else f"accelerate was given dynamo_backend {launched}: set it to 'no'."
            )
            raise ValueError(
                "`torch_compile` is not supported: rows change in length and in their tree at every step, and a compiled "
                f"model has not been shown to give the same values. {instead}"
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
        refuse_any(
            self,
            (
                ("loss_type", self.loss_type == "vespo", "leave one of them out"),
                ("off_policy_mask_threshold", self.off_policy_mask_threshold is not None, "leave one of them out"),
            ),
            f"takes one advantage for a trajectory, so tokens cannot have state_loss_weight={weight}",
        )

    def _check_credit(self) -> None:
        """Refuse what the levels of credit cannot mean, or do not use."""
        self._check_level(GROUP_LEVELS)
        compared = self.advantage_level != "episode"
        for name in ("gamma", "lam"):
            if getattr(self, name) != 1.0 and not compared:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with advantage_level='episode': use 'turn' or 'state', or leave it 1.0."
                )
        weight = self.state_group_weight
        if not 0.0 < weight < float("inf"):
            raise ValueError(f"state_group_weight must be a finite number above 0, got {weight}.")
        if weight != 1.0 and self.advantage_level != "state":
            raise ValueError(
                f"state_group_weight={weight} has no effect with advantage_level={self.advantage_level!r}: use 'state', or leave it 1.0."
            )
        if compared:
            self._refuse_whole_sequences(
                f"advantage_level={self.advantage_level!r} gives every turn an advantage of its own"
            )

    def _check_level(self, levels: tuple[str, ...]) -> None:
        if self.advantage_level not in levels:
            raise ValueError(
                f"advantage_level must be one of {', '.join(map(repr, levels))}, got {self.advantage_level!r}."
            )
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")

    def _refuse_whole_sequences(self, reason: str) -> None:
        """Refuse what takes one advantage for a trajectory, where tokens or turns have their own."""
        refuse_any(
            self,
            (
                ("importance_sampling_level", self.importance_sampling_level != "token", "use 'token'"),
                ("loss_type", self.loss_type in ("luspo", "vespo"), "use 'dapo'"),
                ("off_policy_mask_threshold", self.off_policy_mask_threshold is not None, "leave it None"),
                ("multi_objective_aggregation", self.multi_objective_aggregation != "sum_then_normalize", "use reward_weights"),
            ),
            f"works on whole sequences or groups, but here {reason}",
        )  # fmt: skip

    def _check_skipping(self) -> None:
        """Refuse to pass over trajectories from which something else is learned, or on which what the others learn depends."""
        if not self.skip_zero_advantages:
            return
        found = (
            ("beta", self.beta != 0.0, "set it to 0.0"),
            ("entropy_coef", bool(self.entropy_coef), "set it to 0.0"),
            ("use_adaptive_entropy", self.use_adaptive_entropy, "leave it False"),
            ("distillation_weight", bool(self.distillation_weight), "set it to 0.0"),
            ("multi_objective_aggregation", self.multi_objective_aggregation != "sum_then_normalize", "use reward_weights"),
        )  # fmt: skip
        refuse_any(
            self,
            [(name, bad, f"{instead}, or leave skip_zero_advantages False") for name, bad, instead in found],
            "needs the trajectories without an advantage that skip_zero_advantages passes over",
        )

    def _check_token_budget(self) -> None:
        """Refuse a token budget next to what needs all tokens of a micro-batch at once: its parts would not add up."""
        if self.max_tokens_per_micro_batch is None:
            return
        if self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"max_tokens_per_micro_batch={self.max_tokens_per_micro_batch} holds no token: use 1 or more."
            )
        instead = "leave one of them out, or lower per_device_train_batch_size"
        refuse_any(
            self,
            (
                ("use_adaptive_entropy", self.use_adaptive_entropy, instead),
                ("top_entropy_quantile", self.top_entropy_quantile < 1.0, instead),
            ),
            "does not go with max_tokens_per_micro_batch, since a micro-batch could not be trained in parts",
        )
