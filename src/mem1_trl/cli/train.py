"""`mem1 train --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs.checks import TRL_CHOICES
from ..hub.agent_settings import find_protocol, load_agent_settings
from ..json_text import write_json
from ..local_rows import has_rows
from ..rollout.settings import AgentSettings
from .launch import as_one_of, count_processes, has_speaker, launch, launched, own_arguments
from .model_check import check_model, holds_model
from .options import CommandError, ConfigParser, check_writable, peek
from .own_code import check_environment, imported
from .task_options import TaskArguments, listed_objectives, naming_objectives

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from ..configs import Mem1GRPOConfig

ALGORITHMS = ("ppo", "grpo")

SHOWN = [
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "max_completion_length",
    "temperature",
    "beta",
    "save_steps",
    "eval_strategy",
    "eval_steps",
    "logging_steps",
    "report_to",
    "resume_from_checkpoint",
    "push_to_hub",
    "use_vllm",
    "bf16",
    "seed",
    "value_learning_rate",
    "gamma",
    "lam",
    "model_name_or_path",
    "dtype",
    "use_peft",
    "lora_r",
    "load_in_4bit",
]
"""Options that `--help` shows although they are those of TRL or transformers; `--help_all` shows every one."""

EXAMPLES = """examples:
  mem1 train --model_name_or_path examples/assets/tiny-mem1 --objectives 2 --keywords true --max_steps 20
  mem1 train --config run.yaml --algorithm grpo --num_generations 8
  mem1 train --config run.yaml --accelerate_config fsdp2 --num_processes 4
  mem1 train --model_name_or_path ID --environment my_shop.ShopEnvironment --dataset_name tasks.jsonl

--help_all also lists every option of TRL's GRPOConfig and ModelConfig and of transformers' TrainingArguments: all of them work here.
"""


_OF_EVALUATIONS = ("eval_questions", "eval_dataset_name", "eval_split", "eval_tasks")

_WITHOUT_EFFECT = (
    ("use_peft", ("lora_", "use_rslora", "use_dora"), "an adapter", "the whole model is trained"),
    ("load_in_4bit", ("bnb_", "use_bnb_"), "weights in 4 bits", "there are none"),
)
"""Switches of [`~trl.ModelConfig`]: beginnings of options without effect where one is off, what these are about, and what is done then."""


@dataclass
class TrainArguments(TaskArguments):
    """
    Arguments of `mem1 train`, besides those of [`Mem1PPOConfig`] or [`Mem1GRPOConfig`] and of [`~trl.ModelConfig`].

    Parameters:
        algorithm (`str`, *optional*, defaults to `"ppo"`):
            `"ppo"` or `"grpo"`.
        objectives (`list[int]`, *optional*, defaults to `[2]`):
            Questions of one task. Several numbers are mixed in equal parts.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the questions, or of the tasks.
        passages (`int`, *optional*, defaults to `3`):
            Passages of one search.
        reward_funcs (`list[str]`, *optional*):
            Import paths of reward functions, besides the `get_reward` of the environment.
        value_model (`str`, *optional*):
            PPO's critic, as in [`Mem1PPOTrainer`]: `"shared"`, a path or an id. `None` makes one of the model.
        eval_questions (`str`, *optional*):
            File or id of the questions of evaluations. `None` takes `eval_split` of those of training, where these are no file.
        eval_dataset_name (`str`, *optional*):
            File or id of the tasks of evaluations in `environment`. `None` takes `eval_split` of `dataset_name`, where that is no file.
        eval_split (`str`, *optional*, defaults to `"test"`):
            Split of the questions, or of the tasks, of evaluations.
        eval_tasks (`int`, *optional*, defaults to `50`):
            Tasks of an evaluation, for each number of objectives; there is one if `eval_strategy` is set. Those of an environment are all
            played.
        accelerate_config (`str`, *optional*):
            Configuration of accelerate to train with: a file, or a name that TRL knows (`fsdp2`, `zero2`, `multi_gpu`).
        num_processes (`int`, *optional*):
            Processes, in place of the number in that file.
    """

    algorithm: str = field(default="ppo", metadata={"help": "Algorithm of the update.", "choices": list(ALGORITHMS)})
    objectives: list[int] = field(
        default_factory=lambda: [2],
        metadata={"help": "Questions of one task. Several numbers are mixed in equal parts."},
    )
    split: str = field(default="train", metadata={"help": "Split of the questions, or of the tasks."})
    passages: int = field(default=3, metadata={"help": "Passages of one search."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Import paths of reward functions, besides the get_reward of the environment."},
    )
    value_model: str | None = field(
        default=None,
        metadata={"help": "PPO's critic: `shared`, a path or an id. `None` makes one of the model."},
    )
    eval_questions: str | None = field(
        default=None,
        metadata={
            "help": "File or id of the questions of evaluations. `None` takes eval_split of those of training, where these are no file."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "File or id of the tasks of evaluations in the environment. `None` takes eval_split of dataset_name, where that is no "
            "file."
        },
    )
    eval_split: str = field(
        default="test", metadata={"help": "Split of the questions, or of the tasks, of evaluations."}
    )
    eval_tasks: int = field(
        default=50,
        metadata={
            "help": "Tasks of an evaluation, for each number of objectives; there is one if eval_strategy is set. Those of an environment "
            "are all played."
        },
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of accelerate to train with: a file, or a name that TRL knows (fsdp2, zero2, multi_gpu)."
        },
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "Processes, in place of the number in that file."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objectives = listed_objectives(self.objectives)
        self._check_counts("passages", "eval_tasks", "num_processes")
        self._check_environment("objectives", "passages", "eval_questions", "eval_tasks")
        if self.keywords and self.eval_questions is not None:
            raise ValueError("keywords belong to the bundled facts: leave it out, or leave out eval_questions")
        if self.eval_dataset_name is not None and self.environment is None:
            raise ValueError("eval_dataset_name needs environment: an environment, and the tasks that it is tested on")
        self._refuse_split("eval_split", self.eval_dataset_name or self.eval_questions)
        if self.value_model is not None and self.algorithm == "grpo":
            raise ValueError("value_model is PPO's critic, which algorithm='grpo' does not have")

    def tests_on_what_it_trains(self) -> bool:
        """Whether evaluations would take the rows of training, since these are a file, which has no splits."""
        trained = self.dataset_name or self.questions
        tested = self.eval_dataset_name or self.eval_questions
        return tested is None and trained is not None and has_rows(trained)


def run(args: Sequence[str]) -> None:
    """Train a model, save it with all that a report needs, and say where it is."""
    if "--help_all" in args:
        _parser(_algorithm(args)).print_help()
        return
    with as_one_of(_processes(args)):
        options, config, model = read(args)
    if not model.model_name_or_path:
        raise CommandError("the following arguments are required: --model_name_or_path")
    check_writable(str(config.output_dir), "output_dir")
    resume = _resumed(config, options.algorithm)
    if (options.accelerate_config or options.num_processes) and not launched():
        own = own_arguments(args)
        with _saying_how_to_continue(config):
            launch("train", own, options.accelerate_config, options.num_processes, config.use_cpu)
        return
    _quiet()
    trainer = _trainer(options, config, model)
    with nullcontext() if has_speaker() else _saying_how_to_continue(config):
        trainer.train(resume_from_checkpoint=resume)
    from ..trainers.trl_seam.helpers import instance_attribute

    with instance_attribute(trainer.args, "push_to_hub", False):  # all is saved and said before the Hub may fail
        trainer.save_model(config.output_dir)
        trainer.save_state()
    if trainer.is_world_process_zero():
        place = config.output_dir
        print(f"model and log in {place}; `mem1 report {shlex.quote(str(place))}` makes a page of the run,")
        print(how_to_evaluate(options, str(config.output_dir)))
    if config.push_to_hub:
        trainer.push_to_hub()


def _processes(args: Sequence[str]) -> int | None:
    """Number of processes that this one is to start, and `None` if it is to train."""
    config, processes = peek(args, "accelerate_config"), peek(args, "num_processes")
    if launched() or not (config or processes):
        return None
    return count_processes(config, int(processes) if processes and processes.isdecimal() else None)


def read(args: Sequence[str]) -> tuple[TrainArguments, Mem1GRPOConfig, ModelConfig]:
    """
    Parse a command line and the YAML file that it names.

    Raises:
        `CommandError`: If an option is unknown or has no effect, or a value is not of its type or range.
    """
    parser = _parser(_algorithm(args))
    _hide(parser)
    options, config, model = parser.read(args)
    _refuse_without_effect(args, model)
    for name in options.differing(*_OF_EVALUATIONS) if config.eval_strategy == "no" else ():
        raise CommandError(
            f"{name} is about evaluations, of which there are none: give --eval_strategy, or leave {name} out"
        )
    return options, config, model


def _refuse_without_effect(args: Sequence[str], model: ModelConfig) -> None:
    """Refuse options of adapters without one, and of quantization without that, also where they have the value of their default."""
    for switch, beginnings, about, instead in _WITHOUT_EFFECT:
        for one in fields(model) if not getattr(model, switch) else ():
            given = getattr(model, one.name) if one.default is False else peek(args, one.name) is not None
            if one.name.startswith(beginnings) and given:
                raise CommandError(
                    f"{one.name} is about {about}, and without {switch} {instead}: give --{switch} true, or leave {one.name} out"
                )


def _algorithm(args: Sequence[str]) -> str:
    name = peek(args, "algorithm") or ALGORITHMS[0]
    if name not in ALGORITHMS:
        raise CommandError(f"algorithm is {name!r}, but must be one of {', '.join(ALGORITHMS)}")
    return name


def _parser(algorithm: str) -> ConfigParser:
    import torch
    from trl import ModelConfig

    from ..configs import Mem1GRPOConfig, Mem1PPOConfig

    parser = ConfigParser(
        [TrainArguments, {"ppo": Mem1PPOConfig, "grpo": Mem1GRPOConfig}[algorithm], ModelConfig],
        prog="mem1 train",
        usage="mem1 train --model_name_or_path PATH_OR_ID [OPTIONS] [--config FILE.yaml]",
        description="Train an agent by reinforcement: on questions that are answered by searching, or in an environment of yours.",
        epilog=EXAMPLES,
    )
    for action in parser._actions:
        if action.dest == "max_completion_length":  # TRL's text is about whole completions
            action.help = next(one for one in fields(AgentSettings) if one.name == action.dest).metadata["help"]
        action.choices = TRL_CHOICES.get(action.dest, action.choices)
    parser.add_argument("--help_all", action="store_true", help="show every option and end")
    parser.set_defaults(output_dir="runs/train", logging_steps=1, disable_tqdm=True, save_eval_trajectories=True)
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        parser.set_defaults(
            bf16=False
        )  # mixed precision on a CPU is slow, and samples from other weights than it trains
    return parser


def _hide(parser: ConfigParser) -> None:
    """Leave the hundreds of options of TRL and transformers out of `--help`, but for the most used."""
    from argparse import SUPPRESS

    from trl import GRPOConfig, ModelConfig

    inherited = {one.name for kind in (GRPOConfig, ModelConfig) for one in fields(kind)}
    for action in parser._actions:
        negated = any(name.startswith("--no_") for name in action.option_strings)
        if negated or (action.dest in inherited and action.dest not in SHOWN):
            action.help = SUPPRESS


def _quiet() -> None:
    """Say what this command has to say, and not what libraries tell their own developers."""
    import warnings

    from datasets import disable_progress_bars
    from transformers.utils import logging

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|trl\.")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def _resumed(config: Mem1GRPOConfig, algorithm: str) -> str | None:
    """The checkpoint to resume from. A folder that holds a run or a model is neither continued nor overwritten unless that was said."""
    from ..trainers.checkpoints import checkpoint_to_resume

    asked: str | bool | None = config.resume_from_checkpoint
    if isinstance(asked, str) and asked.lower() in ("true", "false"):
        asked = asked.lower() == "true"
    if not asked:
        _refuse_overwriting(str(config.output_dir))
        return None
    try:
        found = checkpoint_to_resume(asked, str(config.output_dir), algorithm)
    except ValueError as error:
        said = str(error).replace("call train() without resume_from_checkpoint", "leave the option out")
        given = "true" if asked is True else repr(asked)
        raise CommandError(f"--resume_from_checkpoint is {given}, but {said[0].lower()}{said[1:]}") from None
    if found is not None and Path(found).resolve().parent != Path(str(config.output_dir)).resolve():
        _refuse_overwriting(str(config.output_dir))  # by what goes on from a checkpoint of another run
    return found


def _refuse_overwriting(folder: str) -> None:
    from ..trainers.checkpoints import last_complete_checkpoint

    last = last_complete_checkpoint(folder)
    if last is not None:
        raise CommandError(
            f"{folder} holds a run up to {Path(last).name}: continue it with --resume_from_checkpoint true, or choose another --output_dir"
        )
    if (Path(folder) / "trainer_state.json").is_file():
        raise CommandError(
            f"{folder} holds a finished run, without checkpoints to continue from: choose another --output_dir, or delete it"
        )
    if holds_model(folder):
        raise CommandError(
            f"{folder} holds a model, which would be overwritten: choose another --output_dir, or delete it"
        )


@contextmanager
def _saying_how_to_continue(config: Mem1GRPOConfig) -> Iterator[None]:
    """Say how a run goes on that is interrupted here."""
    from ..trainers.checkpoints import last_complete_checkpoint

    try:
        yield
    except KeyboardInterrupt:
        last = last_complete_checkpoint(str(config.output_dir))
        if last is not None:
            print(f"\nsaved up to {last}: the same command with --resume_from_checkpoint true goes on from there")
        raise


def _trainer(options: TrainArguments, config: Mem1GRPOConfig, model: ModelConfig) -> Any:
    from transformers import PrinterCallback
    from trl import get_peft_config, get_quantization_config

    from ..trainers.console import StepLines
    from ..update.critic.critic import SHARED, backbone_folder

    # Short checks first, the model last
    protocol = options.chosen_protocol()
    rewards = [imported(path, "reward_funcs") for path in options.reward_funcs or []]
    factory = options.environment_factory(options.passages)
    with naming_objectives():
        train, evaluated = _train_tasks(options, config), _eval_tasks(options, config)
    name: Any = model.model_name_or_path
    check_model(name)
    if config.teacher_model_name_or_path is not None:
        check_model(config.teacher_model_name_or_path, "teacher_model_name_or_path")
    if options.value_model not in (None, SHARED):
        check_model(backbone_folder(options.value_model), "value_model")
    spoken = protocol or find_protocol(name)
    if spoken is not None:
        check_environment(spoken, options.protocol_source(name), factory)

    from ..trainers.grpo import Mem1GRPOTrainer
    from ..trainers.ppo import Mem1PPOTrainer

    loading = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    given: Any = config.model_init_kwargs or {}
    config.model_init_kwargs = {**loading, **given}
    further: dict[str, Any] = {} if options.algorithm == "grpo" else {"value_model": options.value_model}
    trainer_class: Any = Mem1GRPOTrainer if options.algorithm == "grpo" else Mem1PPOTrainer
    trainer = trainer_class(
        model=model.model_name_or_path,
        args=config,
        reward_funcs=rewards or None,
        train_dataset=train,
        eval_dataset=evaluated,
        environment_factory=factory,
        protocol=protocol,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
        callbacks=[StepLines()],
        **further,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train_tasks(options: TrainArguments, config: Mem1GRPOConfig) -> Dataset:
    """Tasks of the environment, or of each number of objectives equally many, in random order."""
    if options.dataset_name is not None:
        return options.load_tasks(options.dataset_name)
    from datasets import concatenate_datasets

    from ..tasks import compose_objectives

    questions = options.load_questions()
    parts = [compose_objectives(questions, n, seed=config.seed + i) for i, n in enumerate(options.objectives)]
    if len(parts) == 1:
        return parts[0]
    fewest = min(map(len, parts))
    return concatenate_datasets([part.select(range(fewest)) for part in parts]).shuffle(seed=config.seed)


def _eval_tasks(options: TrainArguments, config: Mem1GRPOConfig) -> Any:
    """One data set, or one for each number of objectives."""
    if config.eval_strategy == "no":
        return None
    from ..tasks import sample_objectives

    if options.tests_on_what_it_trains():
        strategy: Any = config.eval_strategy
        kind, option = (
            ("questions", "eval_questions") if options.environment is None else ("tasks", "eval_dataset_name")
        )
        raise CommandError(
            f"eval_strategy={strategy.value!r} needs {kind} that are not trained on: give their file with --{option}"
        )
    if options.dataset_name is not None:
        return options.load_tasks(options.eval_dataset_name or options.dataset_name, options.eval_split)
    asked = options if options.eval_questions is None else replace(options, questions=options.eval_questions)
    questions = asked.load_questions(options.eval_split)
    parts = {
        f"{n}-objectives": sample_objectives(questions, n, options.eval_tasks)  # the same in runs with other seeds
        for n in options.objectives
    }
    return parts if len(parts) > 1 else next(iter(parts.values()))


def how_to_evaluate(options: TrainArguments, output_dir: str) -> str:
    """The command that tests the model on the kind of task that it was trained on, as a line to print."""
    names = ("keywords", "question_column", "answer_column", "corpus", "corpus_split", "corpus_title", "corpus_text")
    given: dict[str, Any] = {"model_name_or_path": output_dir}
    given |= options.differing("environment", *names)
    tested = options.eval_dataset_name or options.eval_questions or options.dataset_name or options.questions
    if tested is not None:
        given["dataset_name" if options.environment else "questions"] = tested
    if options.eval_split != "test" and not has_rows(tested or ""):
        given["split"] = options.eval_split
    saved = load_agent_settings(output_dir) if Path(output_dir).is_dir() else None
    if saved is not None and ":" in saved.context:  # code of the user, which is imported only where its path is given
        given["context"] = saved.context
        if saved.context_kwargs:
            given["context_kwargs"] = write_json(saved.context_kwargs)
    words = [f"--{name} {'true' if value is True else shlex.quote(str(value))}" for name, value in given.items()]
    what = "tests it" if options.environment else "tests it on more objectives"
    same = ", on what it was trained on" if options.tests_on_what_it_trains() else ""
    return f"`mem1 eval {' '.join(words)}` {what}{same}"
