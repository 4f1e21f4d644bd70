"""What both trainers share: environments, protocol, the rollout, and what is logged about it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import ProcessorMixin
from transformers.integrations import TensorBoardCallback

from ..environment_runtime.errors import describe_error
from ..environment_runtime.faults import fault_metrics
from ..environment_runtime.pool import EnvironmentFactory, EnvironmentPool
from ..evaluation.episode_scores import evaluate_episode, memory_of
from ..evaluation.result import Evaluation
from ..hub.agent_settings import save_agent_settings
from ..hub.model_card import CardFacts, complete_model_card
from ..metrics import trajectory_metrics
from ..protocol.protocol import Mem1Protocol
from ..protocol.tool_calls import ToolCallFormat
from ..protocol.untrusted import harmless
from ..rewards import are_answers, score_answer
from ..rollout.episode import Episode, RolloutSettings
from ..rollout.turn_loop import Rollout
from ..trajectory import StopReason
from .tracking import evenly_spaced, log_trajectories, print_trajectories
from .trl_seam.batch import TrajectoryTrainer
from .trl_seam.helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..environment_runtime.actions import ActionSet
    from ..trajectory import Trajectory

logger = get_logger(__name__)

_LOST_BATCHES = 3
"""Batches in a row without a single sound episode after which a run ends: it learns nothing and only spends its steps."""

_CHECKED_PROMPTS = 1000
_IMAGE_COLUMNS = ("image", "images")

# Settings of a run that its card reports, where they exist
_CARD_SETTINGS = (
    "learning_rate",
    "value_learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "generation_batch_size",
    "num_generations",
    "num_iterations",
    "beta",
    "kl_in_reward",
    "gamma",
    "lam",
    "vf_coef",
    "critic_warmup_steps",
    "temperature",
    "layout",
    "seed",
)

MEM1_CITATION = textwrap.dedent("""\
    @article{zhou2025mem1,
        title        = {{MEM1: Learning to Synergize Memory and Reasoning for Efficient Long-Horizon Agents}},
        author       = {Zijian Zhou and Ao Qu and Zhaoxuan Wu and Sunghwan Kim and Alok Prakash and Daniela Rus and Jinhua Zhao and Bryan Kian Hsiang Low and Paul Pu Liang},
        year         = 2025,
        eprint       = {arXiv:2506.15841},
    }""")


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
        protocol: Mem1Protocol | None = None,
        tools: Any = None,
        rollout_func: Any = None,
        **kwargs: Any,
    ):
        self._refuse(tools, rollout_func, processing_class, train_dataset, eval_dataset)
        self.protocol = protocol or Mem1Protocol()
        if not isinstance(self.protocol, Mem1Protocol):
            raise TypeError(
                f"`protocol` is a {type(protocol).__name__}: pass a Mem1Protocol, or None for the default tags."
            )
        native = self.protocol.action_syntax == "tool_calls"
        self.pool = (
            None
            if environment_factory is None
            else EnvironmentPool(environment_factory, self.protocol, args.fault_settings())
        )
        if self.pool is None and (native or (args.max_turns > 1 and protocol is not None)):
            raise ValueError("A protocol without an environment has nothing to talk to: pass `environment_factory`.")
        self._check_reference(model, args, kwargs.get("peft_config"))
        train_dataset = self._dataset_or_placeholder(train_dataset, args)
        for name, dataset in _named_datasets(train_dataset, eval_dataset):
            self._check_columns(name, dataset)

        reward_funcs = (
            [] if reward_funcs is None else list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
        )
        from_environment = self.pool.reward_functions() if self.pool is not None else []
        if not reward_funcs and not from_environment:
            raise ValueError(
                "There is no reward: pass `reward_funcs`, or an environment with a `get_reward() -> float` method."
            )
        weights = args.reward_weights
        if weights is not None:
            if len(weights) != len(reward_funcs):
                raise ValueError(
                    f"reward_weights has {len(weights)} numbers for {len(reward_funcs)} reward functions: give one for "
                    "each (an environment's own reward has weight 1)."
                )
            args.reward_weights = [*weights, *([1.0] * len(from_environment))]
        try:
            super().__init__(
                model=model,
                reward_funcs=[*reward_funcs, *from_environment],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        finally:
            args.reward_weights = weights
        # Refused here, where the tokenizer is known, if the model cannot call tools
        tool_calls = ToolCallFormat(self.tokenizer, self.protocol, args.chat_template_kwargs) if native else None
        self._episodes: list[Episode] = []
        self._ever_started = False
        self._lost_batches = 0
        self._evaluated: list[list[tuple[dict[str, Any], Trajectory]]] = []  # one list for each batch
        self._eval_rows: int | None = None  # episodes that the evaluated data set asks for, if it has a length
        self._eval_left: int | None = None
        self._card_evaluation: dict[str, float] | None = None
        self._to_show: deque[Trajectory] = deque(maxlen=args.generation_batch_size)
        self.settings = RolloutSettings(
            max_turns=args.max_turns if self.pool is not None else 1,
            max_observation_length=args.max_observation_length,
            context=args.context,
            max_context_length=self._context_limit(),
            memory_top_k=args.memory_top_k,
        )
        self.rollout = Rollout(
            tokenizer=self.tokenizer,
            protocol=self.protocol,
            settings=self.settings,
            generate=self.generate_turn,
            running_anywhere=self.any_process,
            tool_calls=tool_calls,
            caller=None if self.pool is None else self.pool.caller,
        )
        self._check_budgets()
        self._check_size()

    # Checks, before any training starts

    @staticmethod
    def _refuse(tools: Any, rollout_func: Any, processing_class: Any, *datasets: Any) -> None:
        if tools:
            raise ValueError(
                "`tools` are not supported, since a tool here belongs to an episode: make them methods of an environment "
                "and pass `environment_factory`."
            )
        if rollout_func is not None:
            raise ValueError(
                "`rollout_func` is not supported, since the rollout is this trainer's own: use GRPOTrainer."
            )
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError("Processors of multimodal models are not supported: pass a tokenizer.")
        for name, dataset in _named_datasets(*datasets):
            columns = getattr(dataset, "column_names", None) or ()
            found = [column for column in _IMAGE_COLUMNS if column in columns]
            if found:
                raise ValueError(
                    f"The column {found[0]!r} of {name} would be an image, which is not supported: remove the column."
                )

    @staticmethod
    def _check_reference(model: Any, args: Any, peft_config: Any) -> None:
        """TRL loads the reference model anew from where the policy came from, unless an adapter can be turned off."""
        if args.beta == 0.0 or isinstance(model, str) or peft_config is not None or hasattr(model, "peft_config"):
            return
        if not getattr(model.config, "_name_or_path", ""):
            raise ValueError(
                f"beta={args.beta} needs a reference model, which is loaded from where the policy came from, but this model "
                "was made in memory: save it and pass the path, or set beta=0.0."
            )

    def _dataset_or_placeholder(self, dataset: Any, args: Any) -> Any:
        if dataset is not None:
            return dataset
        if self.pool is None or self.pool.routed:
            raise ValueError("`train_dataset` is missing: only a single environment may own its tasks.")
        if args.max_steps <= 0:
            raise ValueError("Without a `train_dataset` the length of training is unknown: set `max_steps`.")
        rows = args.generation_batch_size // args.num_generations
        return Dataset.from_dict({"prompt": [[{"role": "user", "content": ""}]] * rows})

    def _check_columns(self, name: str, dataset: Any) -> None:
        columns = getattr(dataset, "column_names", None)
        if not columns:  # a stream may not know
            return
        # As in TRL, an environment may own the task: then `reset` gives it, or the first batch is an error
        if "prompt" not in columns and self.pool is None:
            raise ValueError(
                f"The {name} has no column 'prompt' (it has {', '.join(columns)}): rename the one that holds the task, for "
                "instance with `dataset.rename_column('question', 'prompt')`."
            )
        if self.pool is not None and self.pool.routed and "environment" not in columns:
            raise ValueError(
                f"The {name} has no column 'environment', which names the environment of each row when "
                "`environment_factory` is a dictionary: add it."
            )

    def _check_size(self) -> None:
        """TRL drops an incomplete generation batch, and a run of no batches ends without a word."""
        if not isinstance(self.train_dataset, Dataset):
            return
        needed = (self.args.generation_batch_size or 1) // (self.args.num_generations or 1)
        if len(self.train_dataset) < needed:
            raise ValueError(
                f"The train dataset has {len(self.train_dataset)} row{'s' if len(self.train_dataset) > 1 else ''}, but one "
                f"generation batch takes {needed} tasks: add rows, or lower per_device_train_batch_size, "
                "gradient_accumulation_steps or steps_per_generation."
            )

    def _context_limit(self) -> int | None:
        if self.args.max_context_length is not None:
            return self.args.max_context_length
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if positions is None else positions - self.max_completion_length

    def _check_budgets(self) -> None:
        """Refuse budgets that cannot work, on the first thousand prompts, instead of in the middle of training."""
        limit = self.settings.max_context_length
        if limit is not None and limit < 1:
            raise ValueError(
                f"max_completion_length={self.max_completion_length} leaves no context within the model's positions: lower it."
            )
        if self.pool is not None:
            actions = next(iter(self.pool.actions.values()))
            self.rollout.encode_observation("", self.settings.max_turns - 1, list(actions.tags))
        if limit is None or not isinstance(self.train_dataset, Dataset):
            return
        rows = self.train_dataset.select(range(min(_CHECKED_PROMPTS, len(self.train_dataset))))
        empty = [{"role": "user", "content": ""}]
        rows = [{"prompt": empty, **row} for row in rows]
        rows = [row if self.pool is None else self._with_instructions(row, None) for row in rows]
        kinds = [None if self.pool is None else self.pool.actions[self.pool.name_of(row)] for row in rows]
        lengths = [len(ids) for ids in self._encode_tasks([row["prompt"] for row in rows], kinds)]
        longest = max(lengths, default=0)
        if longest > limit:
            raise ValueError(
                f"Row {lengths.index(longest)} of the train dataset has a task prompt of {longest} tokens, but a context "
                f"may have {limit} and the task prompt is never truncated: raise max_context_length (or lower "
                "max_completion_length), or drop the row."
            )
        # What MEM1 keeps is bounded, so that it can be promised to fit
        bound = longest + self.max_completion_length + self.settings.max_observation_length
        if self.args.context == "mem1" and self.settings.max_turns > 1 and bound > limit:
            raise ValueError(
                f"A context may need {bound} tokens (prompt {longest}, state and action {self.max_completion_length}, "
                f"observation {self.settings.max_observation_length}) but only {limit} are allowed: lower "
                "max_completion_length or max_observation_length, or raise max_context_length."
            )

    # The episode

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if self.pool is None and "prompt" not in row:
                raise ValueError(
                    f"A row of the data set has no 'prompt' (it has {', '.join(row)}): rename the field with the task."
                )
        given = [dict(row) for row in rows]
        for row in rows:
            row.setdefault("prompt", [{"role": "user", "content": ""}])  # the environment's `reset` gives the task
        if self.pool is None:
            self._episodes = [Episode(prompt_ids=[]) for _ in rows]
            return rows
        self._episodes = []
        prepared = []
        for row, own, started in zip(rows, given, self.pool.start(given), strict=True):
            error, observation = started.error, started.observation
            if "prompt" not in own and not observation and error is None:
                raise ValueError(
                    f"A row has no 'prompt' (it has {', '.join(own)}) and `reset` of {type(started.environment).__name__} "
                    "returned no task: rename the column with the task to 'prompt', or return the task from `reset`."
                )
            try:
                self.settings.check_characters(observation)
            except ValueError as too_long:
                error = too_long
            episode = Episode(
                prompt_ids=[], environment=started.environment, actions=started.actions, extended=bool(observation)
            )
            if error is not None:
                episode.stop_reason, episode.error, observation = StopReason.ERROR, describe_error(error), None
            self._episodes.append(episode)
            prepared.append(self._with_instructions(row, observation))
        return prepared

    def _with_instructions(self, row: dict[str, Any], observation: str | None) -> dict[str, Any]:
        """
        The row with its task, and what `reset` added to it, inside the instructions of the protocol.

        The prompt of the data set is the user's own and stays as it is. What `reset` returned may come from anywhere: it
        cannot end the message or begin another. Tags it may hold, since an environment explains its answer format there.
        """
        assert self.pool is not None
        observation = harmless(self.tokenizer, observation) if observation else None
        lines = self.pool.actions[self.pool.name_of(row)].describe()
        prompt = row["prompt"]
        if isinstance(prompt, str) and self.rollout.tool_calls is not None:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str):
            return {**row, "prompt": self.protocol.render_task(prompt + (observation or ""), lines)}
        *before, last = prompt
        content = last["content"]
        if isinstance(content, list):  # typed blocks, of which only text is left after the checks
            content = "".join(block["text"] for block in content)
        content = self.protocol.render_task(content + (observation or ""), lines)
        return {**row, "prompt": [*before, {**last, "content": content}]}

    def encode_prompts(self, prompts: list[Any]) -> list[list[int]]:
        return self._encode_tasks(prompts, [episode.actions for episode in self._episodes])

    def _encode_tasks(self, prompts: list[Any], actions: list[ActionSet | None]) -> list[list[int]]:
        """Token ids of task prompts, with the tools of their environments if these are called natively."""
        if self.rollout.tool_calls is None:
            return super().encode_prompts(prompts)
        encode = self.rollout.tool_calls.encode_task
        return [
            encode(prompt, kind.schemas) for prompt, kind in zip(prompts, actions, strict=True) if kind is not None
        ]

    def run_episodes(self, rows: list[dict[str, Any]], prompt_ids: list[list[int]]) -> list[Trajectory]:
        for episode, ids in zip(self._episodes, prompt_ids, strict=True):
            episode.prompt_ids = ids
            self._check_length(episode)
        trajectories = self.rollout.run(self._episodes)
        self._score(trajectories)
        for row, trajectory in zip(rows, trajectories, strict=True):
            if trajectory.turns:
                trajectory.metrics.update(trajectory_metrics(trajectory))
            if are_answers(row.get("answers")):
                answer = None if trajectory.error is not None else trajectory.answer
                trajectory.metrics.update(score_answer(answer, row["answers"]))
        self._log_episodes(trajectories)
        if self.mode == "eval" and self.args.save_eval_trajectories:
            self._evaluated.append(list(zip(rows, trajectories)))
        return trajectories

    def _check_length(self, episode: Episode) -> None:
        """A prompt that is too long ends the run if it is the data set's, and the episode if `reset` made it so."""
        if self.pool is None or episode.stop_reason is not None:
            return
        try:
            self.settings.check_prompt(episode.prompt_ids)
        except ValueError as error:
            if not episode.extended:
                raise
            episode.stop_reason, episode.error = StopReason.ERROR, describe_error(error)

    def _score(self, trajectories: list[Trajectory]) -> None:
        """Ask the environments for their rewards, of episodes that could be played to their end."""
        if self.pool is None:
            return
        sound = [i for i, trajectory in enumerate(trajectories) if trajectory.error is None]
        scores = self.pool.score([self._episodes[i].environment for i in sound])
        for index, (_, error) in zip(sound, scores):
            trajectories[index].error = error
        for episode, trajectory in zip(self._episodes, trajectories):
            if trajectory.error is not None:
                self.pool.discard(episode.environment)

    @property
    def episode_environments(self) -> list[Any] | None:
        return None if self.pool is None else [episode.environment for episode in self._episodes]

    def completions_for_rewards(self, trajectories: list[Trajectory], conversational: bool) -> list[Any]:
        """
        A completion as TRL's reward functions know it: all turns, with what the environment said between them.

        Conversational prompts get messages, an assistant's and a tool's in turn; others get one text. An episode that never
        began has an empty one. With native tool calls the messages are those of TRL, with `tool_calls` and the results as the
        tools gave them.
        """
        if self.rollout.tool_calls is not None:
            return [episode.exchange for episode in self._episodes]
        completions: list[Any] = []
        for trajectory in trajectories:
            texts = [self.tokenizer.decode(turn.completion_ids, skip_special_tokens=True) for turn in trajectory.turns]
            if not conversational:
                completions.append("".join(t + (turn.observation or "") for t, turn in zip(texts, trajectory.turns)))
                continue
            messages = [] if trajectory.turns else [{"role": "assistant", "content": ""}]
            for text, turn in zip(texts, trajectory.turns):
                messages.append({"role": "assistant", "content": text})
                if turn.observation is not None:
                    messages.append({"role": "tool", "name": turn.action or "", "content": turn.observation})
            completions.append(messages)
        return completions

    def _log_episodes(self, trajectories: list[Trajectory]) -> None:
        records = self.gather_records([(t.metrics, str(t.stop_reason), t.error, bool(t.turns)) for t in trajectories])
        if self.mode == "eval":
            # One by one, so that the mean is that of all episodes however the last batch comes out
            records = self._without_repeats(records)
            groups = [[record] for record in records]
        else:
            groups = [records]
        for group in groups:
            for key in dict.fromkeys(key for metrics, *_ in group for key in metrics):
                values = [metrics[key] for metrics, *_ in group if key in metrics]
                self.log_metric(f"episode/{key}", sum(values) / len(values))
            for reason in StopReason:
                share = sum(stop == reason for _, stop, *_ in group) / len(group)
                self.log_metric(f"episode/stop_reason/{reason}", share)
        if self.pool is not None:
            counts = self.gather_records([self.pool.caller.counts.take()])
            for name, value in fault_metrics(counts).items():
                self.log_metric(f"environment/{name}", value)
            self._check_faults([(error, played) for *_, error, played in records])

    def _check_faults(self, records: list[tuple[str | None, bool]]) -> None:
        """
        Say what failed, and end a training run that has nothing to learn from. All processes see the same records.

        Raises:
            `RuntimeError`: If the environment has never started an episode, or no episode of three batches in a row was sound.
        """
        errors = [error for error, _ in records if error is not None]
        self._ever_started = self._ever_started or any(played for _, played in records)
        if errors:
            logger.warning(
                f"The environment failed in {len(errors)} of {len(records)} episodes, which count as unscored and are left out "
                f"of the update. The first: {errors[0]}"
            )
        if self.mode == "eval":
            return
        self._lost_batches = self._lost_batches + 1 if len(errors) == len(records) else 0
        if not self._ever_started:
            raise RuntimeError(
                f"The environment started none of the {len(records)} episodes of the first batch: correct it, or what it "
                f"connects to. The first error: {errors[0]}"
            )
        if self._lost_batches >= _LOST_BATCHES:
            raise RuntimeError(
                f"The environment failed in every episode of {_LOST_BATCHES} batches in a row, so nothing is learned: see to "
                f"it, then resume from the last checkpoint. `environment_retries` bridges short outages. The first error: "
                f"{errors[0]}"
            )

    def _without_repeats(self, records: list[Any]) -> list[Any]:
        """
        The episodes of an evaluation batch of all processes, without those that were played to fill the last batch.

        Accelerate gives every process equally many rows and begins the data set anew for that.
        """
        if self._eval_left is None:
            return records
        kept = records[: self._eval_left]
        self._eval_left -= len(kept)
        return kept

    def rewarded(self, trajectories: list[Trajectory]) -> None:
        if not self.log_completions:
            return
        everywhere = self.gather_records(trajectories)
        if self.accelerator.is_main_process:
            self._to_show.extend(everywhere)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Log numbers as TRL does and, with `args.log_completions`, the episodes since the last entry.

        They are printed turn by turn instead of in TRL's table of completions (which still goes to the trackers and to
        `<output_dir>/completions/`), and given to the trackers of `args.report_to` that can hold them.
        """
        prefix = "" if self.mode == "train" else "eval_"
        with instance_attribute(self, "num_completions_to_print", 0):
            super().log(logs, start_time)
        if not self._to_show:
            return
        trajectories = list(self._to_show)
        self._to_show.clear()
        sample, step = evenly_spaced(trajectories, self.num_completions_to_print), self.state.global_step
        print_trajectories(sample, f"{prefix.replace('_', ' ')}step {step}", self.tokenizer)
        boards = [c for c in self.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
        log_trajectories(
            trajectories,
            step,
            list(self.args.report_to or []),
            self.tokenizer,
            name=f"{prefix}trajectories",
            sample=sample,
            writer=boards[0].tb_writer if boards else None,
        )

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Play the evaluation data set and log what came of it, as [`~transformers.Trainer.evaluate`] does.

        Rows with `answers` are scored by exact match, F1 and success (`eval_episode/exact_match` and so on), whatever the
        reward is. With `args.save_eval_trajectories` the episodes are written to `<output_dir>/evaluation/`.
        """
        self._evaluated = []
        try:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            if not self.is_in_train:
                self.close_environments()
        if self.args.save_eval_trajectories:
            self._save_evaluation(f"{metric_key_prefix}-{self.state.global_step}".replace("/", "-"))
        return metrics

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in [`~transformers.Trainer.evaluation_loop`], knowing how many episodes the data set asks for."""
        dataset = getattr(dataloader, "dataset", None)
        samples = self.num_generations_eval or 1
        self._eval_rows = len(dataset) * samples if isinstance(dataset, Dataset) else None
        self._eval_left = self._eval_rows
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _save_evaluation(self, name: str) -> None:
        """Write the episodes of all processes as [`Evaluation.save`] does."""
        local = [
            [
                evaluate_episode(trajectory, row, self.tokenizer, self.protocol, self.args.context)
                for row, trajectory in batch
            ]
            for batch in self._evaluated
        ]
        self._evaluated = []
        # Batches go round the processes, so the order of the data set is batch by batch, process by process
        numbered = [(number, task) for number, batch in enumerate(local) for task in batch]
        gathered = sorted(self.gather_records(numbered), key=lambda item: item[0])
        tasks = [task for _, task in gathered][: self._eval_rows]
        if not tasks or not self.is_world_process_zero():  # of several data sets, each was saved on its own
            return
        settings = {
            "model": self.model.config._name_or_path,
            "step": self.state.global_step,
            **dataclasses.asdict(self.settings),
            "max_completion_length": self.max_completion_length,
            "temperature": self.temperature if self.args.eval_temperature is None else self.args.eval_temperature,
            "protocol": self.protocol.to_dict(),
            "memory": memory_of(self.args.context),
            "seed": self.args.seed,
        }
        tasks = [dataclasses.replace(task, index=index) for index, task in enumerate(tasks)]
        label = f"step {self.state.global_step}"
        evaluation = Evaluation.from_tasks(tasks, label, settings, seed=self.args.seed)
        evaluation.save(f"{self.args.output_dir}/evaluation", name)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as [`~transformers.Trainer.train`] does; environments are closed whether it ends well or not."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.close_environments()

    def close_environments(self) -> None:
        """
        Close all environments: their method `close()`, if they have one, is called.

        Done at the end of training, and of an evaluation outside of it. Whatever is played next makes new ones.
        """
        if self.pool is not None:
            self.pool.close()

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.saving_one_adapter(output_dir):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            directory = output_dir or str(self.args.output_dir)
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
        """
        if evaluation is not None:
            self._card_evaluation = dict(getattr(evaluation, "metrics", evaluation))
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        environment = actions = None
        if self.pool is not None:
            environment, actions = self.pool.example()
        adapter = isinstance(self.model, PeftModel)
        facts = CardFacts(
            trainer_name=self._name,
            citation=self._paper["citation"],
            paper=(self._paper["title"], self._paper["id"]),
            source=self.hub_model_id or str(self.args.output_dir),
            conversational=self._conversational(),
            environment=environment,
            turn=[] if actions is None else actions.describe(),
            settings=self.agent_settings(),
            training={name: getattr(self.args, name) for name in _CARD_SETTINGS if hasattr(self.args, name)},
            log_history=self.state.log_history,
            evaluation=self._card_evaluation,
            dataset_name=dataset_name,
            adapter=adapter,
            versions={"PEFT": version("peft")} if adapter else {},
        )
        complete_model_card(Path(self.args.output_dir or ".") / "README.md", facts)

    def _conversational(self) -> bool:
        """Whether tasks are messages; a stream is not read for it."""
        if not isinstance(self.train_dataset, Dataset):
            return True
        return not isinstance(self.train_dataset[0].get("prompt", []), str)

    def agent_settings(self) -> dict[str, Any]:
        """Arguments of [`Mem1Agent`] that run the model as it is trained, ready for JSON."""
        settings = {
            "max_turns": self.settings.max_turns,
            "max_completion_length": self.max_completion_length,
            "max_observation_length": self.args.max_observation_length,
            "context": self.args.context,
            "max_context_length": self.args.max_context_length,
            "chat_template_kwargs": self.args.chat_template_kwargs,
        }
        return {name: value for name, value in settings.items() if value not in (None, {})}


def _named_datasets(train: Any = None, evaluation: Any = None) -> Iterable[tuple[str, Any]]:
    if train is not None:
        yield "train dataset", train
    if isinstance(evaluation, dict):
        for name, dataset in evaluation.items():
            yield f"eval dataset {name!r}", dataset
    elif evaluation is not None:
        yield "eval dataset", evaluation
