"""GRPO over trajectories with rewritten contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs import Mem1GRPOConfig, Mem1PPOConfig, from_grpo_config
from .group_credit import credit_turns
from .mem1 import Mem1Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import GRPOConfig

    from ..environment_runtime.pool import EnvironmentFactory
    from ..protocol.protocol import Mem1Protocol
    from ..trajectory import Trajectory


class Mem1GRPOTrainer(Mem1Trainer):
    """
    Group relative policy optimization (arXiv 2402.03300) for agents that rewrite their context (MEM1, arXiv 2506.15841).

    It is [`~trl.GRPOTrainer`] with another rollout: an episode of several turns, each under a context of its own. A group is
    `num_generations` trajectories of one task, however many turns they took, and every token that the agent sampled has the
    advantage of its trajectory, or of its turn (`args.advantage_level`). With one turn it does what `GRPOTrainer` does.

    Example:

    ```python
    from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, compose_objectives
    from mem1_trl.environments import RetrievalQAEnvironment
    from mem1_trl.facts import load_facts

    facts = load_facts()
    trainer = Mem1GRPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        args=Mem1GRPOConfig(output_dir="out", max_turns=6),
        train_dataset=compose_objectives(facts.questions("train"), n=2, seed=0),
        environment_factory=RetrievalQAEnvironment.factory(facts.corpus),
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy: an id, a path or a causal language model.
        reward_funcs (`RewardFunc | list[RewardFunc]`, *optional*):
            TRL's reward functions. They see a completion as all turns with the observations between them (one text, or
            messages if the prompt is conversational), `completion_ids` as the sampled tokens only, and further
            `trajectories` (a list of [`Trajectory`]) and `environments`. For an episode they may return a list, one number for each
            turn. Optional if the environment has `get_reward` or `get_turn_reward`.
        args ([`Mem1GRPOConfig`] or [`~trl.GRPOConfig`], *optional*):
            Configuration. `None` uses the defaults; a `GRPOConfig` is converted by
            [`mem1_trl.configs.from_grpo_config`], with a warning that says how.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Rows with a column `prompt` (a text or messages) and whatever `reset` wants. May be omitted if the environment
            returns its task from `reset`; then `max_steps` must be set.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a dictionary of them, *optional*):
            The same for evaluation, which decodes greedily unless `args.eval_temperature` says otherwise.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. `None` loads that of the model.
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes an environment: a class or function without arguments, as in `GRPOTrainer`. `reset(**row)` starts an
            episode; every other public method with a docstring is an action; `get_reward()`, if there, scores the episode, and
            `get_turn_reward()` each turn; `done`, if there, ends it. With a dictionary, the column `environment` of a row chooses. `None` is one turn
            without environment.
        protocol ([`Mem1Protocol`] or `str`, *optional*):
            Tags, instructions and hints, or the name of a preset, such as `"paper"`, as in [`Mem1Agent`]. `None` uses the
            one saved with the model, or `<think>` for the state, one tag per action, and `<answer>`.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            With `args.distillation_weight`, the teacher: an id, a path or a model that shares the tokenizer. `None` takes
            `args.teacher_model_name_or_path`, and without that the policy itself, with the whole history in view.
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config (*optional*):
            As in `GRPOTrainer`.

    Raises:
        `ValueError`: For `tools`, `rollout_func` and images, which have no meaning here, and for a dataset or budgets that
            cannot work.
    """

    _tag_names = ["trl", "mem1", "grpo"]  # noqa: RUF012
    _name = "MEM1 GRPO"
    algorithm = "grpo"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: Mem1GRPOConfig | GRPOConfig | None = None,
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
        teacher_model: str | PreTrainedModel | None = None,
    ):
        if args is None:
            args = Mem1GRPOConfig(f"{model_name(model)}-MEM1-GRPO")
        elif isinstance(args, Mem1PPOConfig):
            raise TypeError(
                "`args` must be a Mem1GRPOConfig, got a Mem1PPOConfig, whose critic this trainer does not have: use "
                "Mem1PPOTrainer."
            )
        elif not isinstance(args, Mem1GRPOConfig):
            args = from_grpo_config(args)
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

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory], rewards: torch.Tensor) -> None:
        super().extend_batch(batch, trajectories, rewards)
        if self.args.advantage_level != "episode":
            credit_turns(self, batch, trajectories, rewards)


def model_name(model: Any) -> str:
    """Last part of a model's id or path, for the default output directory."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    return name.rstrip("/").split("/")[-1] or "model"
