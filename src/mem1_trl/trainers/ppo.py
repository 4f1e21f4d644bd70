"""PPO over trajectories with rewritten contexts: a critic, and credit for every generated token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from ..configs import Mem1PPOConfig
from ..configs.ppo import check_warmup
from ..model_traits import enable_activation_checkpointing
from ..saved_files import check_path
from ..update.critic.critic import SharedValueHead, ValueModel, build_value_model, token_values
from ..update.critic.optimizer import FollowingOptimizer
from ..update.layouts import resolve_layout
from ..update.scoring import forward_rows, forwarded_tokens
from ..update.sharded_tensors import is_split, own_part, whole, whole_size
from .bitsandbytes_cpu import keep_gradients_through_4bit
from .credit import CreditingTrainer
from .dropout import silence_dropout
from .grpo import model_name
from .refusals import refuse_sharded_weights
from .saving import refuse_other_critic
from .self_check import check_critic
from .sharded_critic import loaded_whole, shard_critic
from .trl_seam.helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..environment_runtime.pool import EnvironmentFactory
    from ..protocol.protocol import Mem1Protocol
    from ..update.row_batch import RowBatch

CRITIC_DIRECTORY = "critic"


class _CriticSteps(TrainerCallback):
    """
    `Trainer` clears the gradients of its own model only; this does the same for the critic.

    While the critic warms up, the policy's optimizer finds no gradients: neither weight decay nor momentum moves it.
    """

    def __init__(self, trainer: Mem1PPOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_warmup(self.trainer.args.critic_warmup_steps, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What a run that was interrupted within a step has left in this process
        self.trainer.critic.zero_grad(set_to_none=True)
        if isinstance(self.trainer.value_model, SharedValueHead):
            # The policy may not be in training mode yet
            self.trainer.value_model.detached = state.global_step < self.trainer.args.critic_warmup_steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.policy_frozen:
            self.trainer.model.zero_grad(set_to_none=True)
        if self.trainer.critic_optimizer is not None:
            self.trainer.critic_optimizer.step(self.trainer.optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.critic.zero_grad(set_to_none=True)


class Mem1PPOTrainer(CreditingTrainer):
    """
    Proximal policy optimization (arXiv 1707.06347) for agents that rewrite their context (MEM1, arXiv 2506.15841).

    The policy update is [`~trl.GRPOTrainer`]'s clipped objective, with one advantage per generated token: generalised
    advantage estimation (arXiv 1506.02438) over the generated tokens of the whole trajectory, whatever stands between its
    turns, or over its turns (`args.advantage_level`). The critic reads the same rows in the same layout, so that a value too is computed under the context that the agent
    had. Tokens of the environment are in neither loss.

    Example:

    ```python
    from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer, compose_objectives
    from mem1_trl.environments import RetrievalQAEnvironment
    from mem1_trl.facts import load_facts

    facts = load_facts()
    trainer = Mem1PPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        args=Mem1PPOConfig(output_dir="out", max_turns=6),
        train_dataset=compose_objectives(facts.questions("train"), n=2, seed=0),
        environment_factory=RetrievalQAEnvironment.factory(facts.corpus),
    )
    trainer.train()
    ```

    Args:
        value_model (`str` or [`~transformers.PreTrainedModel`] or [`ValueModel`], *optional*):
            The critic. `None` starts from a copy of the policy's backbone, as the reference run does; if the policy has an
            adapter (by `peft_config`, or because it came with one), that is a second adapter on the same frozen weights.
            `"shared"` is a head on the policy's own hidden states: one forward and one set of weights for both, which
            `vf_coef` weighs against each other. Otherwise an id or path, a model whose backbone is taken, or a finished
            critic; with `peft_config` it gets an adapter of the same configuration on weights of its own, unless it has one.
            A model that comes frozen is trained all the same; one that is frozen in part is trained where it is not.
        optimizers (`tuple`, *optional*):
            As in `GRPOTrainer`, for the policy. What the optimizer does not hold of the critic is trained by `args.optim` at
            `args.value_learning_rate`, along the same schedule.
        model, reward_funcs, args, train_dataset, eval_dataset, processing_class, environment_factory, protocol, teacher_model, ...:
            As in [`Mem1GRPOTrainer`]; `args` is a [`Mem1PPOConfig`].
    """

    args: Mem1PPOConfig

    _tag_names = ["trl", "mem1", "ppo"]  # noqa: RUF012
    _name = "MEM1 PPO"
    algorithm = "ppo"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: Mem1PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None = None,
        protocol: Mem1Protocol | str | None = None,
        value_model: str | PreTrainedModel | ValueModel | None = None,
        teacher_model: str | PreTrainedModel | None = None,
    ):
        args = Mem1PPOConfig(f"{model_name(model)}-MEM1-PPO") if args is None else args
        if not isinstance(args, Mem1PPOConfig):
            raise TypeError(
                f"`args` is a {type(args).__name__}: pass a Mem1PPOConfig, since a critic needs settings that it does not have."
            )
        refuse_sharded_weights(args)
        check_path("value model", value_model)
        self._critic: torch.nn.Module | None = None
        if optimizers[0] is not None and args.mixed_precision == "fp16":
            raise ValueError(
                "`optimizers` cannot be passed to Mem1PPOTrainer with fp16, whose loss scaling knows one optimizer only: set `optim` "
                "and `learning_rate`, or use bf16."
            )
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
            protocol=protocol,
            teacher_model=teacher_model,
        )
        self.value_model = self._build_critic(value_model, quantization_config, peft_config)
        self._log_cost()
        self._critic = self._wrap(self.value_model)
        if any(map(is_split, self._own_critic_parameters())):
            here = sum(own_part(p).nbytes for p in self.value_model.parameters())
            self.accelerator.print(
                f"In shards, each of {self.accelerator.num_processes} processes holds {here / 1e6:,.2f} MB of it."
            )
        self.critic_optimizer = self._make_critic_optimizer(optimizers[0])
        self.value_layout = self.layout
        if not isinstance(self.value_model, SharedValueHead):
            backbone = self.value_model.backbone
            wanted = resolve_layout(backbone, self.layout, self.settings.longest_context(self.model))
            self.value_layout = check_critic(self, backbone, wanted)
        self.add_callback(_CriticSteps(self))

    def _build_critic(
        self, source: Any, quantization_config: Any, peft_config: PeftConfig | None
    ) -> ValueModel | SharedValueHead:
        kwargs: dict[str, Any] = dict(self.args.model_init_kwargs or {})  # type: ignore[arg-type]
        kwargs.setdefault("trust_remote_code", self.args.trust_remote_code)
        if isinstance(source, str) and source != getattr(self.model.config, "_name_or_path", None):
            for name in ("revision", "subfolder", "variant", "gguf_file"):  # of the policy's repository
                kwargs.pop(name, None)
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        of_its_own = not isinstance(self.model, PeftModel)
        in_shards = self.is_fsdp_enabled or (self.weights_are_split and of_its_own)
        with loaded_whole(self.accelerator):
            critic = build_value_model(source, self.model, kwargs, peft_config, in_shards)
        if isinstance(critic, SharedValueHead):
            return critic
        keep_gradients_through_4bit(critic)
        if self.args.disable_dropout:
            silence_dropout(critic)
        if self.args.gradient_checkpointing:
            enable_activation_checkpointing(critic.backbone, self.args.gradient_checkpointing_kwargs)  # type: ignore[arg-type]
            if critic.adapters is not None:
                critic.backbone.enable_input_require_grads()
        return critic

    def _critic_is_in_shards(self) -> bool:
        """
        Whether the critic is split over processes: under FSDP2 in any case, beside ZeRO-3 if its weights are its own.

        A second adapter on the policy's frozen weights reads what DeepSpeed's engine has split, and is small itself, as a shared head is.
        """
        policy = {id(p) for p in self.model.parameters()}
        shares = any(id(p) in policy for p in self.value_model.backbone.parameters())
        return self.is_fsdp_enabled or (self.weights_are_split and not shares)

    def _wrap(self, critic: torch.nn.Module) -> torch.nn.Module:
        """The critic for data parallelism or in shards; beside a DeepSpeed engine, which `prepare_model` leaves to the caller, by hand."""
        if self._critic_is_in_shards():
            shard_critic(self.accelerator, self.value_model)
            return critic
        if not self.is_deepspeed_enabled:
            return self.accelerator.prepare_model(critic)
        device = self.accelerator.device
        critic.to(device)
        if self.args.mixed_precision == "bf16":
            critic.forward = torch.autocast(device.type, dtype=torch.bfloat16)(critic.forward)
        if self.accelerator.num_processes == 1:
            return critic
        return torch.nn.parallel.DistributedDataParallel(critic, device_ids=None if device.type == "cpu" else [device])

    def _own_critic_parameters(self) -> list[torch.nn.Parameter]:
        """Weights of the critic that are not the policy's."""
        policy = {id(p) for p in self.model.parameters()}
        return [p for p in self.value_model.parameters() if id(p) not in policy]

    def critic_bytes(self) -> int:
        """Bytes of weights that the critic adds to those of the policy."""
        return sum(whole_size(p) * p.element_size() for p in self._own_critic_parameters())

    def _log_cost(self) -> None:
        own = self._own_critic_parameters()
        extra, weights = self.critic_bytes(), sum(whole_size(p) * p.element_size() for p in self.model.parameters())
        trained = sum(whole_size(p) for p in own if p.requires_grad)
        self.accelerator.print(
            f"The critic has {sum(map(whole_size, own)):,} parameters of its own ({trained:,} trained), which take "
            f"{extra / 1e6:,.2f} MB: {extra / weights:.2%} of the policy's weights."
        )

    @property
    def critic(self) -> torch.nn.Module:
        """The critic as it is called, wrapped for data parallelism if there is any."""
        assert self._critic is not None
        return self._critic

    @property
    def rewards_by_turns(self) -> bool:
        return False  # a critic credits tokens

    @property
    def kl_in_loss(self) -> bool:
        return not self.args.kl_in_reward

    @property
    def policy_frozen(self) -> bool:
        return self.model.training and self.state.global_step < self.args.critic_warmup_steps

    @property
    def meaningless_metrics(self) -> set[str]:
        # Groups have no part in it
        return super().meaningless_metrics | {"frac_reward_zero_std"}

    @property
    def trained_modules(self) -> list[torch.nn.Module]:
        return [self.model, self.critic]

    @property
    def hidden_readout(self) -> Any:
        if not isinstance(self.value_model, SharedValueHead) or self.policy_frozen:
            return None
        return self.critic

    def _make_critic_optimizer(self, given: Any) -> FollowingOptimizer | None:
        """
        An optimizer of the critic alone, where the policy's cannot take it as a group.

        DeepSpeed's and FSDP's know the policy only, and one that was passed has a schedule for its own groups: beside these the critic has
        an optimizer of its own, made by `args.optim` and `args.value_learning_rate`, which follows the schedule. It is made with
        the trainer, so that a checkpoint that is resumed from finds it.
        """
        parameters = self._critic_parameters(given)
        if not parameters or (given is None and not self.is_deepspeed_enabled and not self.is_fsdp_enabled):
            return None
        for group in () if given is None else given.param_groups:
            group.setdefault("initial_lr", group["lr"])  # which not every scheduler notes down
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        settings = {**settings, "lr": self.args.value_learning_rate, "weight_decay": 0.0}
        return FollowingOptimizer(kind(parameters, **settings))

    def _critic_parameters(self, optimizer: Any) -> list[torch.nn.Parameter]:
        """What is trained of the critic and not in an optimizer yet."""
        known = {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
        return [p for p in self.critic.parameters() if p.requires_grad and id(p) not in known]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The policy's optimizer with a group for the critic, at its own learning rate, if that has no optimizer of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        parameters = [] if self.critic_optimizer is not None else self._critic_parameters(optimizer)
        if parameters:
            optimizer.add_param_group({"params": parameters, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        As in [`~transformers.Trainer.training_step`], which keeps the policy's gradient in each process until the last micro-batch of
        a step: so does this the critic's.
        """
        with nullcontext() if self.accelerator.sync_gradients else self._critic_stays_here():
            return super().training_step(*args, **kwargs)

    @contextmanager
    def gradients_stay_here(self, model: Any) -> Iterator[None]:
        with super().gradients_stay_here(model), self._critic_stays_here():
            yield

    @property
    def learns_from_first_pass(self) -> bool:
        return (
            self.args.critic_learns_at_once
            and self.model.training
            and self.is_in_train
            and not isinstance(self.value_model, SharedValueHead)  # which is read off in passes of the policy
            and not self.policy_frozen  # the step would have no other backward pass, and the engines need one
            and self.accelerator.scaler is None  # the gradient would not be scaled
            and self.current_gradient_accumulation_steps == self.args.gradient_accumulation_steps
        )

    @property
    def loss_goes_on_from_kept(self) -> bool:
        return (
            self.hidden_readout
            is not None  # activations of another critic would have to be held beside those of the policy
            and self.args.trains_batch_in_one_pass
            and self.accelerator.num_processes == 1  # others exchange rows
            and self.model.training
            and self.is_in_train
            and self.current_gradient_accumulation_steps == 1
            and not self.aux_loss_enabled  # which weighs experts over the batch while it is forwarded
        )

    @contextmanager
    def pass_of_critic(self, last: bool) -> Iterator[None]:
        if not isinstance(self.critic, torch.nn.parallel.DistributedDataParallel):
            yield
        elif last:  # also where the policy's gradient is to stay for now
            with instance_attribute(self.critic, "require_backward_grad_sync", True):
                yield
        else:
            with self.critic.no_sync():
                yield

    def _critic_stays_here(self) -> AbstractContextManager[None]:
        """While gradients of the critic are averaged over processes later, where that is a matter of data parallelism."""
        return getattr(self.critic, "no_sync", nullcontext)()

    def clip_extra_gradients(self) -> dict[str, float]:
        parameters = [p for p in self.critic.parameters() if p.grad is not None]
        limit = self.args.max_grad_norm if self.args.max_grad_norm and self.args.max_grad_norm > 0 else float("inf")
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, limit)).item()
        self.log_metric("value/grad_norm", norm)
        return {"critic": norm}

    # Credit

    def values(self, batch: dict[str, Any]) -> torch.Tensor:
        """Values before each generated token, shape `(B, C)`, float32; zero elsewhere."""
        self.critic.train(self.model.training)
        rows = self.row_batch(batch)
        (values,) = forward_rows(rows, self.value_layout, self.value_model.backbone, token_values(self.critic))
        assert values is not None
        return values[:, -batch["completion_ids"].shape[1] :]

    def forwarded_tokens(self, rows: RowBatch) -> int:
        of_critic = forwarded_tokens(rows, self.value_layout, self.value_model.backbone)
        return max(super().forwarded_tokens(rows), of_critic)

    # Checkpoints

    def refuse_checkpoint(self, checkpoint: str) -> None:
        super().refuse_checkpoint(checkpoint)
        critic = None if isinstance(self.value_model, SharedValueHead) else self.value_model.backbone
        refuse_other_critic(Path(checkpoint) / CRITIC_DIRECTORY, critic, self.critic_optimizer is not None)

    def save_extra(self, directory: str) -> None:
        super().save_extra(directory)
        self.value_model.save(Path(directory) / CRITIC_DIRECTORY, self.args.should_save)
        if self.critic_optimizer is not None:
            self.critic_optimizer.save(Path(directory) / CRITIC_DIRECTORY, self.args.should_save)

    def load_extra(self, directory: str) -> None:
        super().load_extra(directory)
        self.load_best(directory)
        if self.critic_optimizer is not None:
            self.critic_optimizer.load(Path(directory) / CRITIC_DIRECTORY)

    def load_best(self, directory: str) -> None:
        with loaded_whole(self.accelerator):
            self.value_model.load(Path(directory) / CRITIC_DIRECTORY)
