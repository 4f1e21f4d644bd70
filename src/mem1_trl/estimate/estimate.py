"""Memory, tokens, operations and time of a run, put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..configs import Mem1PPOConfig
from ..typed_fields import check_whole
from .memory import BASES, SIZES, Setup, activation_bytes, cache_bytes, fixed_bytes
from .shapes import EpisodeShape, ModelShape

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from ..configs import Mem1GRPOConfig


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    What a run takes.

    Attributes:
        memory (`dict[str, float]`):
            Bytes on one GPU, by what they are for.
        episodes (`int`):
            Episodes of one optimizer step, of all processes.
        generated (`float`):
            Tokens that one step samples: with `num_iterations` of 2, half of those of its episodes, which serve two steps.
        trained (`float`):
            Tokens that one pass of its update forwards.
        update_flops, rollout_flops (`float`):
            Floating-point operations of one step (a multiplication and an addition are two).
        processes (`int`):
            GPUs that work on it.
    """

    memory: dict[str, float]
    episodes: int
    generated: float
    trained: float
    update_flops: float
    rollout_flops: float
    processes: int = 1

    @property
    def total_memory(self) -> float:
        """Bytes on one GPU at the worst moment: either keys and values, or gradients and activations, are there."""
        held = {name: value for name, value in self.memory.items() if name not in ("keys and values", "activations")}
        return sum(held.values()) + max(self.memory["keys and values"], self.memory["activations"])

    def seconds(self, peak_flops: float, update: float = 0.35, rollout: float = 0.02) -> float:
        """
        Time of one step, if the GPUs reach these shares of their peak.

        Args:
            peak_flops (`float`):
                Operations a second that one GPU is said to do in the data type of the run.
            update, rollout (`float`, *optional*, default to 0.35 and 0.02):
                Shares of it that are reached. They are assumptions: take them from a step that was timed, see
                [`Estimate.utilization`]. Generation reads all weights for each token, and so reaches little.

        Raises:
            `ValueError`: if a number is not above 0.
        """
        for name, value in (("peak_flops", peak_flops), ("update", update), ("rollout", rollout)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        return (self.update_flops / update + self.rollout_flops / rollout) / (peak_flops * self.processes)

    def utilization(self, seconds: float, peak_flops: float) -> float:
        """Share of the peak that a step reached that took `seconds` as a whole: calibrates [`Estimate.seconds`]."""
        return (self.update_flops + self.rollout_flops) / (seconds * peak_flops * self.processes)

    def lines(self) -> list[str]:
        """The estimate as text, without the time."""
        least = self.total_memory / 1000
        parts = ", ".join(f"{name} {value / 1e9:,.3g}" for name, value in self.memory.items() if value >= least)
        return [
            f"memory of one GPU: {self.total_memory / 1e9:,.1f} GB ({parts}; keys and values of the rollout and activations "
            "of the update are not there at once)",
            f"one step: {self.episodes} episodes, {self.generated:,.0f} tokens sampled, {self.trained:,.0f} forwarded by each pass of "
            f"the update",
            f"one step: {self.update_flops / 1e12:,.3f} TFLOP in the update, {self.rollout_flops / 1e12:,.3f} in the rollout",
        ]


def estimate_run(
    model: PretrainedConfig,
    args: Mem1GRPOConfig,
    episode: EpisodeShape,
    *,
    dtype: str = "float32",
    peft_config: PeftConfig | None = None,
    bits: int = 16,
    nested: bool = False,
    value_model: str | None = None,
    processes: int = 1,
    shards: int = 1,
) -> Estimate:
    """
    What a run takes, from shapes alone.

    Counted are tensors: weights, gradients, states of the optimizer, activations, keys and values. What a driver, an allocator
    and libraries take besides is not: leave a tenth of a GPU, and 1 or 2 GB, to them. With vLLM, its own share comes on top.
    A teacher (`distillation_weight`) and the passes of `memory_value_weight` are not counted either, nor are the groups that
    `dynamic_sampling_max_rounds` plays again, since how many have equal rewards is not known before: each of its rounds samples at most
    as much as the first.

    Args:
        model ([`~transformers.PretrainedConfig`]):
            Configuration of the policy; nothing is loaded.
        args ([`Mem1GRPOConfig`] or [`Mem1PPOConfig`]):
            The run, with a context that holds the last turn alone (`context="mem1"`). Batch sizes are those of one process.
        episode ([`EpisodeShape`]):
            An average episode, or the [largest][EpisodeShape.largest].
        dtype (`str`, *optional*, defaults to `"float32"`):
            Data type of the weights.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter that is trained; PPO's critic is then a second one.
        bits (`int`, *optional*, defaults to 16):
            4 or 8 if the weights below the adapter are quantized, which needs `peft_config`.
        nested (`bool`, *optional*, defaults to `False`):
            Whether the scales of 4-bit weights are quantized, too.
        value_model (`str`, *optional*):
            `"shared"` for a critic of PPO that is a head on the policy. `None` counts one of the policy's size, or with `peft_config` an
            adapter; one of another size is not known.
        processes (`int`, *optional*, defaults to 1):
            Processes of data parallelism, one for each GPU.
        shards (`int`, *optional*, defaults to 1):
            GPUs over which DeepSpeed's ZeRO-2 splits the policy's gradients and states, `processes` of them at most.

    Returns:
        [`Estimate`]

    Raises:
        `ValueError`: if a data type, a number of bits or a critic is unknown, an argument is out of its range or goes with another that is not
            there, or contexts hold more than the last turn.

    Example:

    ```python
    >>> from transformers import AutoConfig
    >>> from mem1_trl import Mem1PPOConfig
    >>> from mem1_trl.estimate import EpisodeShape, estimate_run

    >>> config = AutoConfig.from_pretrained("examples/assets/tiny-mem1")
    >>> args = Mem1PPOConfig("out", per_device_train_batch_size=4, bf16=False)
    >>> found = estimate_run(config, args, EpisodeShape(prompt=40, turns=3, completion=20, observation=60))
    >>> found.episodes, found.generated
    (4, 240)
    ```
    """
    if dtype not in SIZES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, SIZES))}, got {dtype!r}.")
    if bits not in BASES:
        raise ValueError(f"bits must be one of {', '.join(map(str, BASES))}, got {bits}.")
    _refuse_unknown(args, peft_config, bits, nested, value_model, processes, shards)
    shape = ModelShape.of(model, peft_config)
    critic = None
    if isinstance(args, Mem1PPOConfig):
        critic = "shared" if value_model == "shared" else "copy" if peft_config is None else "adapter"
    setup = Setup(dtype, bits, nested, critic, bool(args.beta) and peft_config is None, shards)

    micro = args.per_device_train_batch_size * episode.trained(args.layout)
    if args.max_tokens_per_micro_batch is not None:  # a turn is never cut
        is_cut = args.layout != "paper"
        micro = min(
            micro, max(args.max_tokens_per_micro_batch, episode.peak if is_cut else episode.trained(args.layout))
        )
    at_once = args.per_device_train_batch_size * _steps_per_generation(args)
    memory = fixed_bytes(shape, setup, str(getattr(args.optim, "value", args.optim)))
    # Without Triton, TRL projects every token onto the vocabulary
    scored = micro * episode.generated / episode.trained(args.layout)
    budget = args.max_tokens_per_micro_batch
    cut = budget is not None and budget < episode.trained(args.layout)
    learns_first = (
        isinstance(args, Mem1PPOConfig) and args.critic_learns_at_once and not (cut or args.mixed_precision == "fp16")
    )
    memory["activations"] = activation_bytes(shape, setup, args, micro, scored, learns_first)
    copies = 2 if args.prefix_cache and args.cuda_graphs else 1  # what graphs read, and what is kept for the next call
    if args.merge_adapter:
        memory["weights that are merged"] = 4.0 * shape.adapted
    memory["keys and values"] = 0.0 if args.use_vllm else copies * cache_bytes(shape, setup, episode, at_once)

    episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    update, rollout = _operations(shape, setup, args, episode, learns_first, processes)
    return Estimate(
        memory=memory,
        episodes=episodes,
        generated=episodes * episode.generated / args.num_iterations,
        trained=episodes * episode.trained(args.layout),
        update_flops=episodes * update,
        rollout_flops=episodes * rollout / args.num_iterations,
        processes=processes,
    )


def _refuse_unknown(
    args: Mem1GRPOConfig,
    peft_config: PeftConfig | None,
    bits: int,
    nested: bool,
    value_model: str | None,
    processes: int,
    shards: int,
) -> None:
    """Refuse what the formulas do not know, or would pass over."""
    if args.agent_settings().rule.memory != "state":
        raise ValueError(
            f"An estimate is of contexts that hold the last turn alone, as with context='mem1', got context={args.context!r}: its contexts grow."
        )
    if value_model not in (None, "shared"):
        raise ValueError(
            f"value_model must be 'shared' or None in an estimate, got {value_model!r}: add what another model takes to that of GRPO."
        )
    ppo = isinstance(args, Mem1PPOConfig)
    for name, value, bad, needed in (
        ("value_model", value_model, value_model is not None and not ppo, "a Mem1PPOConfig"),
        ("bits", bits, bits != 16 and peft_config is None, "peft_config, since quantized weights are not trained"),
        ("nested", nested, nested and bits != 4, "bits=4"),
    ):
        if bad:
            raise ValueError(f"{name}={value!r} needs {needed}.")
    check_whole("processes", processes, 1)
    check_whole("shards", shards, 1, processes)


def _steps_per_generation(args: Mem1GRPOConfig) -> int:
    """Micro-batches of one process that are played at once; a configuration that is complete has their number."""
    assert args.steps_per_generation is not None
    return args.steps_per_generation


def _operations(
    model: ModelShape, setup: Setup, args: Mem1GRPOConfig, episode: EpisodeShape, learns_first: bool, processes: int
) -> tuple[float, float]:
    """Operations of the update and of the rollout for one episode."""
    per_token = 2 * (model.active + model.adapters)
    attention = 4 * model.heads_width * model.layers
    below = per_token * episode.trained(args.layout) + attention * episode.pairs  # one forward pass below the head
    head = 2 * model.hidden * model.vocabulary * episode.generated
    # Frozen weights get no gradient, but it passes through them; checkpointing computes a pass again
    backward = (1.0 if model.adapters else 2.0) + (1.0 if args.gradient_checkpointing else 0.0)
    critics = 0 if setup.critic in (None, "shared") else 1

    generate_every = _steps_per_generation(args) * args.num_iterations
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    old = bool(args.gradient_accumulation_steps % generate_every or corrected)
    in_loss = False  # whether a shared critic has its values, and a penalty its log-probs, from the pass of the loss
    if isinstance(args, Mem1PPOConfig):
        shared = setup.critic == "shared"
        in_loss = shared and args.trains_batch_in_one_pass and processes == 1 and not old
        old = old or bool(args.beta and args.kl_in_reward and not in_loss)
    scored = (int(old) + int(bool(args.beta))) * (below + head)
    by_itself = not (old or in_loss) if setup.critic == "shared" else critics and not learns_first
    if by_itself:
        scored += below  # for values
    learned = (1 + critics) * below * (1 + backward) + head * 3
    sampled = per_token * (episode.read(args.prefix_cache) + episode.generated)
    sampled += attention * episode.pairs + 2 * model.hidden * model.vocabulary * episode.generated
    return learned + scored / args.num_iterations, sampled
