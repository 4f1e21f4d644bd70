"""What both trainers share: environments, protocol, the rollout, and what is logged about it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel

from ..environment_runtime.pool import EnvironmentFactory, EnvironmentPool
from ..hub.agent_settings import save_agent_settings
from ..hub.card_evaluation import card_evaluations
from ..hub.model_card import complete_model_card
from ..model_traits import refuse_prompt_learning
from ..rewards import are_answers, score_answer
from ..rollout.decoding import warn_of_ignored_decoding
from ..rollout.play import EpisodePlayer
from ..rollout.settings import AgentSettings, resolve_conversational
from ..rollout.turn_loop import Rollout
from ..saved_files import check_path
from .checks import (
    check_answers,
    check_best_metric,
    check_budgets,
    check_columns,
    check_model,
    check_optimizer,
    check_reference,
    check_rows,
    check_size,
    check_trainable,
    check_vocabulary,
    dataset_or_placeholder,
    first_prompt,
    name_revision,
    named_datasets,
    refuse_unsupported,
)
from .distillation import Distillation, refuse_distillation
from .episode_log import EpisodeLog
from .evaluating import EvaluationRecorder, check_groups
from .first_row import check_reset, play_first_row
from .refusals import refuse_memory_value, refuse_missing_packages, refuse_unsaved_adapter, refuse_without_environment
from .reward_functions import check_signatures, collect_reward_functions, distinct
from .saving import (
    MEM1_CITATION,
    card_facts,
    refuse_other_adapter,
    refuse_other_settings,
    saved_settings,
    starting_protocol,
    starting_tokenizer,
    warn_of_what_cannot_be_loaded,
)
from .self_check import check_trainer
from .stages import StagesBySuccess, check_stages
from .streams import check_stream
from .trl_seam.batch import TrajectoryTrainer
from .trl_seam.helpers import instance_attribute
from .truncated_sampling import warn_of_truncated_sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers.trainer_utils import PredictionOutput

    from ..protocol.protocol import Mem1Protocol
    from ..rollout.episode import Episode
    from ..trajectory import Trajectory

logger = get_logger(__name__)


class Mem1Trainer(TrajectoryTrainer):
    """
    Common ground of [`Mem1GRPOTrainer`] and [`Mem1PPOTrainer`]; use one of these.

    An episode is played turn by turn in an environment, each turn under a context that holds the task prompt and what the
    rule `args.context` keeps. The whole trajectory is one row of TRL's batch.
    """

    _paper = {  # noqa: RUF012
        "title": "MEM1: Learning to Synergize Memory and Reasoning for Efficient Long-Horizon Agents",
        "id": "2506.15841",
        "citation": MEM1_CITATION,
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None = None,
        protocol: Mem1Protocol | str | None = None,
        tools: Any = None,
        rollout_func: Any = None,
        teacher_model: Any = None,
        **kwargs: Any,
    ):
        self.episodes: list[Episode] = []
        self.distillation: Distillation | None = None
        self.stages: StagesBySuccess | None = None
        refuse_unsupported(tools, rollout_func, processing_class, train_dataset, eval_dataset)
        refuse_missing_packages(args)
        check_model(model)
        processing_class = starting_tokenizer(processing_class, model, args)
        self.protocol = starting_protocol(protocol, model, args)
        self.pool = (
            None
            if environment_factory is None
            else EnvironmentPool(environment_factory, self.protocol, args.fault_settings())
        )
        if self.pool is None:
            refuse_without_environment(args, None if protocol is None else self.protocol)
        if args.memory_value_weight:
            refuse_memory_value(args, self.pool is not None)
        teacher = args.teacher_model_name_or_path if teacher_model is None else teacher_model
        check_path("teacher", teacher)
        refuse_distillation(args, teacher, self.pool is not None, not self.rewards_by_turns)
        refuse_prompt_learning(kwargs.get("peft_config"))
        for config in getattr(model, "peft_config", {}).values():
            refuse_prompt_learning(config)
        check_reference(model, args, kwargs.get("peft_config"))
        rows = train_dataset  # none if the environment owns its tasks: it may hand out each of them once
        train_dataset = dataset_or_placeholder(train_dataset, args, self.pool)
        check_stages(train_dataset, args)
        check_best_metric(args, eval_dataset)
        for name, dataset in named_datasets(train_dataset, eval_dataset):
            check_columns(name, dataset, args, self.pool)
            check_rows(name, dataset, self.pool, processing_class)
            check_answers(name, dataset, bool(args.memory_value_weight))

        rewards = collect_reward_functions(self, args, reward_funcs)
        if self.pool is not None:
            play_first_row(self.pool, rows)
        for name, dataset in named_datasets(train_dataset, eval_dataset):
            if self.pool is not None and dataset is not train_dataset:
                check_reset(self.pool, name, dataset)
            columns = getattr(dataset, "column_names", None) or ()
            check_signatures(reward_funcs, columns, self.pool is not None, name)
        if (classes := kwargs.get("reward_processing_classes")) is not None:
            kwargs["reward_processing_classes"] = rewards.tokenizers(classes)
        weights, args.reward_weights = args.reward_weights, rewards.weights
        try:
            super().__init__(
                model=model,
                reward_funcs=rewards.all,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        finally:
            args.reward_weights = weights
        self.reward_func_names = distinct(self.reward_func_names)
        check_model(self.model)  # of an id on the Hub, only now
        check_vocabulary(self.model, self.tokenizer)
        if isinstance(model, str):
            name_revision(self.model, (args.model_init_kwargs or {}).get("revision"))
        check_trainable(self.model)
        refuse_unsaved_adapter(self.model, self.accelerator)
        check_optimizer(self.model, self.optimizer)
        warn_of_what_cannot_be_loaded(self.model)
        self._agent_settings = self._decide_settings(
            saved_settings(model, args), first_prompt(train_dataset, reads_streams=self.pool is None)
        )
        engine = args.vllm_max_model_length if args.use_vllm else None
        self.settings = self._agent_settings.with_context_limit(
            self.model, engine, after=int(getattr(args, "bootstrap_truncated", False))
        )
        warn_of_ignored_decoding(self.model, self.settings.decoding_options())
        warn_of_truncated_sampling(args.agent_settings(temperature=args.temperature))
        if args.distillation_weight:
            self.distillation = Distillation(self, teacher)
        if args.curriculum_threshold is not None:
            self.stages = StagesBySuccess(self)
        self._card_evaluation: dict[str, float] | None = None
        self._evaluations = EvaluationRecorder(self)
        self._metric_prefix = "eval"  # of the evaluation that runs
        self._episode_log = EpisodeLog(self, self._evaluations)
        self.rollout = Rollout(
            tokenizer=self.tokenizer,
            protocol=self.protocol,
            settings=self.settings,
            generate=self.generate_turn,
            running_anywhere=self.any_process,
            # Refused here, where the tokenizer is known, if the model cannot call tools
            syntax=self.protocol.syntax(self.tokenizer, self.settings.chat_template_kwargs),
            caller=None if self.pool is None else self.pool.caller,
            # A single turn has nothing to wait for, and samples as TRL does
            mode=self.args.rollout_mode if self.settings.max_turns > 1 and self.generates_alone else "lockstep",
            batch_wait=self.args.rollout_batch_wait,
            seeds=self.episode_seeds,
        )
        self.player = EpisodePlayer(self.rollout)
        check_budgets(self.player, self.pool, self.train_dataset, self.eval_dataset)
        check_size(self.train_dataset, self.args)
        self.self_check = check_trainer(self)

    def _decide_settings(self, saved: AgentSettings | None, prompt: Any) -> AgentSettings:
        """How the model is run: as the configuration says, and where it leaves something open, as was saved with the model."""
        known: dict[str, Any] = {"max_completion_length": self.max_completion_length}
        if self.pool is None:
            known["max_turns"] = 1
        else:
            known["environment"] = self.pool.made_with()
        if saved is not None and self.args.conversational is None:
            known["conversational"] = saved.conversational
        if saved is not None and not self.args.chat_template_kwargs:
            known["chat_template_kwargs"] = saved.chat_template_kwargs
        settings = self.args.agent_settings(**known)
        return resolve_conversational(settings, self.tokenizer, prompt, has_environment=self.pool is not None)

    # The episode

    def choose_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows if self.stages is None or self.mode == "eval" else self.stages.tasks(rows)

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.episodes = self.player.start(rows, self.pool, tolerate="environment")
        return [{**row, "prompt": episode.prompt} for row, episode in zip(rows, self.episodes, strict=True)]

    def encode_prompts(self, prompts: list[Any]) -> list[list[int]]:
        return [episode.prompt_ids for episode in self.episodes]

    def run_episodes(self, rows: list[dict[str, Any]]) -> list[Trajectory]:
        self.park_prefixes(len(self.episodes))
        trajectories = self.player.play(self.episodes)
        if self.pool is not None:
            self.player.score(self.episodes, trajectories, self.pool, tolerate="environment")
        for row, trajectory in zip(rows, trajectories, strict=True):
            # An evaluation counts an episode that failed as not solved; a curriculum is not to take an outage for failure
            if self.scores_answer(row) and (self.mode == "eval" or trajectory.error is None):
                answer = None if trajectory.error is not None else trajectory.answer
                trajectory.metrics.update(score_answer(answer, row["answers"]))
        self._episode_log.add(trajectories)
        if self.mode == "eval" and self.args.save_eval_trajectories:
            self._evaluations.add(rows, trajectories)
        return trajectories

    def scores_answer(self, row: dict[str, Any]) -> bool:
        """Whether the answer of an episode of a row is compared with those of the row."""
        return are_answers(row.get("answers")) and (self.pool is None or self.pool.gives_answers(row))

    @property
    def rewards_by_turns(self) -> bool:
        """Whether rewards are credited to whole turns at the finest, since there is no critic."""
        return True

    @property
    def played(self) -> list[Trajectory]:
        """The trajectories of the batch that is being built."""
        return self._current().trajectories

    @property
    def scoring(self) -> dict[str, Any]:
        """
        How tokens are scored beside the update: at its temperature, and each under its own context.

        So `"paper"` is scored as `"packed"`. Distillation refuses it, since its gaps would be between numbers of both.
        """
        layout = "packed" if self.layout == "paper" else self.layout
        size = max(1, self.args.per_device_train_batch_size)
        return {"layout": layout, "temperature": self.args.temperature, "batch_size": size}

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory], rewards: torch.Tensor) -> None:
        if self.distillation is not None:
            self.distillation.extend_batch(batch, trajectories)

    def extra_loss(self, batch: dict[str, Any]) -> torch.Tensor | None:
        if self.distillation is None or not self.distillation.in_loss:
            return None
        assert self.loss_logps is not None
        return self.distillation.loss(batch, self.loss_logps)

    @property
    def episode_environments(self) -> list[Any] | None:
        return None if self.pool is None else [episode.environment for episode in self.episodes]

    def completions_for_rewards(self, trajectories: list[Trajectory], conversational: bool) -> list[Any]:
        """
        A completion as TRL's reward functions know it: all turns, with what the environment said between them.

        Conversational prompts get messages, an assistant's and a tool's in turn; others get one text. An episode that never
        began has an empty one. With native tool calls the messages are those of TRL, with `tool_calls` and the results as the
        tools gave them.
        """
        return [
            episode.record.completion(trajectory.turns, conversational)
            for episode, trajectory in zip(self.episodes, trajectories, strict=True)
        ]

    def rewarded(self, trajectories: list[Trajectory]) -> None:
        if self.stages is not None and self.mode == "train":
            self.stages.note(trajectories)
        self._episode_log.watch_rewards(trajectories)
        self._episode_log.watch_groups(trajectories)
        self._episode_log.keep(trajectories)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Log numbers as TRL does and, with `args.log_completions`, the episodes since the last entry.

        They are printed turn by turn instead of in TRL's table of completions (which still goes to the trackers and to
        `<output_dir>/completions/`), and given to the trackers of `args.report_to` that can hold them.
        """
        if self.mode == "eval" and self._metric_prefix != "eval":  # TRL logs those of all evaluations alike
            logs.update(self._evaluated(self._metric_prefix))
        self.drop_metrics(self.meaningless_metrics)
        with instance_attribute(self, "num_completions_to_print", 0):
            super().log(logs, start_time)
        self._episode_log.show()

    # Evaluation

    def counted_rows(self, rows: int) -> int:
        counted = self._evaluations.counted
        return rows if counted is None else counted

    @contextmanager
    def _evaluating(self, prefix: str) -> Iterator[None]:
        """An evaluation: what an earlier one has left is forgotten, and its environments are closed unless training goes on with them."""
        check_groups(self)
        self._evaluations.begin()
        self._episode_log.forget_evaluation()
        try:
            with instance_attribute(self, "_metric_prefix", prefix):
                yield
        finally:
            if not self.is_in_train:
                self.close_environments()

    def _evaluated(self, prefix: str) -> dict[str, Any]:
        """What was measured since the last entry of the log, by the names of an evaluation."""
        self.drop_metrics(self.meaningless_metrics)
        return {f"{prefix}_{name}": value for name, value in self.take_metrics("eval").items()}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Play the evaluation data set and log its metrics, as [`~transformers.Trainer.evaluate`] does.

        Rows with `answers` are scored by exact match, F1 and success (`eval_episode/exact_match` and so on), whatever the
        reward is. With `args.save_eval_trajectories` the episodes are written to `<output_dir>/evaluation/`. The metrics of one
        of several data sets carry its name (`eval_<name>_reward`), and those of another `metric_key_prefix` begin with that alone.

        Raises:
            `ValueError`: If a batch of evaluations cannot hold whole groups of samples.
        """
        with self._evaluating(metric_key_prefix):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.args.save_eval_trajectories:
            self._evaluations.save(f"{metric_key_prefix}-{self.state.global_step}")
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Play a data set and return its metrics (`test_reward`, `test_episode/success` and so on) without logging or showing anything, as
        [`~transformers.Trainer.predict`] does.

        Raises:
            `ValueError`: If a batch of evaluations cannot hold whole groups of samples.
        """
        with self._evaluating(metric_key_prefix), self.completions_not_kept():
            output = super().predict(test_dataset, ignore_keys, metric_key_prefix)
        found = self._evaluated(metric_key_prefix)
        if self.args.save_eval_trajectories:
            self._evaluations.save(f"{metric_key_prefix}-{self.state.global_step}")
        return output._replace(metrics={**(output.metrics or {}), **found})

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in [`~transformers.Trainer.evaluation_loop`], knowing how many episodes the data set asks for."""
        self._evaluations.expect(getattr(dataloader, "dataset", None), self.num_generations_eval or 1)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train as [`~transformers.Trainer.train`] does; environments are closed whether it ends well or not.

        Raises:
            `ValueError`: If the checkpoint to resume from does not exist, was not written to its end, or belongs to a run with
                another protocol, other agent settings or another adapter; if a stream has too few rows for a generation batch, after the run
                that has made no step.
        """
        if self.stages is not None:
            self.stages.begin()  # a checkpoint, if there is one, says later where it goes on
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.close_environments()
        if self.began_at == self.state.global_step < self.state.max_steps:
            check_stream(self.train_dataset, self.args)
        return result

    def refuse_checkpoint(self, checkpoint: str) -> None:
        refuse_other_settings(checkpoint, self.protocol, self.agent_settings())
        refuse_other_adapter(checkpoint, self.model)

    def close_environments(self) -> None:
        """
        Close all environments: their method `close()`, if they have one, is called.

        Done at the end of training, and of an evaluation outside of it. Whatever is played next makes new ones.
        """
        if self.pool is not None:
            self.pool.close()

    # Saving

    def save_extra(self, directory: str) -> None:
        if self.stages is not None and self.args.should_save:
            self.stages.save(directory)

    def load_extra(self, directory: str) -> None:
        if self.stages is not None:
            self.stages.load(directory)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.saving_one_adapter(output_dir):
            super().save_model(output_dir, _internal_call)
        directory = output_dir or str(self.args.output_dir)
        if self.args.should_save:
            self.save_description(directory)
        if isinstance(self.model, PeftModel) and not _internal_call:
            # There PEFT has written a card with nothing in it, or changed the one that was there
            with instance_attribute(self.args, "output_dir", directory):
                self.create_model_card()

    def save_description(self, directory: str) -> None:
        """Write what [`Mem1Agent.from_pretrained`] needs beside the weights: the protocol, and how the agent is run."""
        self.protocol.save_pretrained(directory)
        save_agent_settings(directory, self.agent_settings())

    def create_model_card(  # type: ignore[override]  # TRL's own signature, and one argument more
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        evaluation: Any = None,
    ) -> None:
        """
        Write the model card and its training curves into `args.output_dir`.

        Args:
            model_name, dataset_name, tags (*optional*):
                As in [`~transformers.Trainer.create_model_card`].
            evaluation (`dict[str, float]` or [`mem1_trl.evaluation.Evaluation`], *optional*):
                Results for the card and its `model-index`, which later cards of this trainer keep. `None` takes the last
                evaluation of the run.

        Raises:
            `ValueError`: If `evaluation` has no metric that a card shows.
        """
        if evaluation is not None:
            given = dict(getattr(evaluation, "metrics", evaluation))
            card_evaluations(given, ())  # refused before anything is written
            self._card_evaluation = given
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            facts = card_facts(self, self._card_evaluation)
            complete_model_card(Path(self.args.output_dir or ".") / "README.md", facts)

    def agent_settings(self) -> AgentSettings:
        """How [`Mem1Agent`] runs the model as it is trained; saved next to it."""
        return self._agent_settings
