"""Refusals before any training starts: arguments, data sets and budgets that cannot work, each with one sentence."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping
from heapq import nlargest
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin

from ..rewards import are_answers, form_of_answers
from ..rollout.play import NO_TASK
from ..rollout.settings import AgentSettings, resolve_conversational
from ..saved_files import check_path
from .trl_seam.reference import is_partitioned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..configs import Mem1GRPOConfig
    from ..environment_runtime.pool import EnvironmentPool
    from ..rollout.play import EpisodePlayer

logger = get_logger(__name__)

_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq")
"""Beginnings of the names of LoRA initializations that take a part of the weights into the adapter."""

CHECKED_PROMPTS = 1000
"""Number of prompts whose tokens are counted in advance: the longest of each data set."""

_BATCH = 1000
"""Rows that are read from a data set at once."""

_IMAGE_COLUMNS = ("image", "images")

_ARGUMENTS = ("prompts", "completions")
"""Columns that TRL would hand to every reward function a second time, that of an environment included."""


def named_datasets(train: Any = None, evaluation: Any = None) -> Iterable[tuple[str, Any]]:
    """Data sets with the names that messages give them."""
    if train is not None:
        yield "train dataset", train
    if isinstance(evaluation, dict):
        for name, dataset in evaluation.items():
            yield f"eval dataset {name!r}", dataset
    elif evaluation is not None:
        yield "eval dataset", evaluation


def check_best_metric(args: Mem1GRPOConfig, evaluation: Any) -> None:
    """
    Refuse a metric for the best model that no evaluation will give, since those of several data sets have their names in theirs.

    Raises:
        `ValueError`: If it is of none of them.
    """
    if args.metric_for_best_model is None or not isinstance(evaluation, dict) or not evaluation:
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    if not any(name.startswith(f"{one}_") for one in evaluation):
        raise ValueError(
            f"metric_for_best_model must be that of one of the eval datasets, such as 'eval_{next(iter(evaluation))}_reward', got "
            f"{args.metric_for_best_model!r}."
        )


def refuse_unsupported(tools: Any, rollout_func: Any, processing_class: Any, *datasets: Any) -> None:
    """Raise `ValueError` for arguments of `GRPOTrainer` that have no meaning here."""
    if tools:
        raise ValueError(
            "`tools` are not supported, since a tool here belongs to an episode: make them methods of an environment "
            "and pass `environment_factory`."
        )
    if rollout_func is not None:
        raise ValueError("`rollout_func` is not supported, since the rollout is this trainer's own: use GRPOTrainer.")
    if isinstance(processing_class, ProcessorMixin):
        raise ValueError("Processors of multimodal models are not supported: pass a tokenizer.")
    for name, dataset in named_datasets(*datasets):
        columns = getattr(dataset, "column_names", None) or ()
        found = [column for column in _IMAGE_COLUMNS if column in columns]
        if found:
            raise ValueError(
                f"The column {found[0]!r} of {name} would be an image, which is not supported: remove the column."
            )


def check_reference(model: Any, args: Any, peft_config: Any) -> None:
    """
    Raise `ValueError` if the reference model can neither be a copy of the policy nor be loaded from where that came from, nor be the policy
    without its adapter.
    """
    start = str(getattr(peft_config, "init_lora_weights", True)).lower()
    if args.beta != 0.0 and start.startswith(_CHANGES_WEIGHTS):
        raise ValueError(
            f"beta={args.beta} takes the policy without its adapter as the reference, but init_lora_weights={start!r} changes the weights below "
            "the adapter, so that it would be another model: set beta=0.0, or leave init_lora_weights True."
        )
    if args.beta == 0.0 or isinstance(model, str) or peft_config is not None:
        return
    if hasattr(model, "peft_config"):
        _check_adapter_to_copy(model, args)
        return
    if is_partitioned(model) and not getattr(model.config, "_name_or_path", ""):
        raise ValueError(
            f"beta={args.beta} needs a reference model, but the weights of this one, which was made in memory, are split over "
            "processes (DeepSpeed ZeRO-3) and cannot be copied: save it and pass the path, or set beta=0.0."
        )


def _check_adapter_to_copy(model: Any, args: Any) -> None:
    """Raise `ValueError` unless the adapter that is trained is the one that TRL copies as the reference."""
    active = list(getattr(model, "active_adapters", ["default"]))
    if active != ["default"]:
        raise ValueError(
            f"beta={args.beta} needs a copy of the adapter as a reference, which TRL makes of the one that is named 'default', but the active "
            f"adapter is {', '.join(map(repr, active))}: load it without `adapter_name`, or set beta=0.0."
        )


def dataset_or_placeholder(dataset: Any, args: Any, pool: EnvironmentPool | None) -> Any:
    """The train dataset; rows without a task if the environment owns its tasks."""
    if dataset is not None:
        return dataset
    if pool is None or pool.routed:
        raise ValueError("`train_dataset` is missing: only a single environment may own its tasks.")
    if args.max_steps <= 0:
        raise ValueError("Without a `train_dataset` the length of training is unknown: set `max_steps`.")
    rows = args.generation_batch_size // args.num_generations
    return Dataset.from_dict({"prompt": [NO_TASK] * rows})


def check_model(model: Any) -> None:
    """
    Refuse what cannot be the policy, before it is loaded where that can be known.

    Raises:
        `TypeError`: If it is neither a text nor a model.
        `FileNotFoundError`: If it is a path with nothing there.
        `ValueError`: If it is an encoder-decoder, has no output head, or is a directory with an adapter alone.
    """
    if not isinstance(model, (str, nn.Module)):
        given = "None" if model is None else f"a {type(model).__name__}"
        as_text = ": pass `str(...)` of the path" if isinstance(model, os.PathLike) else ""
        raise TypeError(f"`model` must be an id, a path or a model, got {given}{as_text}.")
    config, kind = getattr(model, "config", None), type(_without_adapter(model))
    if isinstance(model, str):
        check_path("model", model)
        if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
            raise ValueError(
                f"{model!r} holds an adapter without its model: load the model, and pass `PeftModel.from_pretrained(loaded, {model!r}, "
                "is_trainable=True)` to train it on."
            )
        if Path(model).is_dir():
            with contextlib.suppress(OSError, ValueError):  # loading it says what is wrong
                config = AutoConfig.from_pretrained(model)
        kind = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], object)  # as TRL loads it
    if getattr(config, "is_encoder_decoder", False):
        name = model if isinstance(model, str) else type(model).__name__
        raise ValueError(
            f"{name} is an encoder-decoder, whose prompt and completion are not one text: pass a causal language model."
        )
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and not kind.can_generate():
        raise ValueError(
            f"`model` must have an output head, got a {kind.__name__}: load it with AutoModelForCausalLM."
        )


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """
    Refuse a tokenizer of another model.

    An embedding may have more rows than the tokenizer has tokens. A special token may lack one if no text has it, such as the place of an image in
    the tokenizer that a text model shares with a larger one; those that fill up, begin and end a text may not.

    Raises:
        `ValueError`: If the model has no embedding for a token that a text may have.
    """
    embedding = model.get_input_embeddings()
    rows = getattr(getattr(embedding, "base_layer", embedding), "num_embeddings", None)
    if not isinstance(rows, int):
        return
    used = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    unused = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special} - used
    largest = max((i for i in tokenizer.get_vocab().values() if i not in unused), default=0)
    if largest >= rows:
        raise ValueError(
            f"The model must have an embedding for each token of the tokenizer, whose largest id is {largest}, got one with {rows} rows: pass the "
            "tokenizer of the model, or call `model.resize_token_embeddings` for tokens that were added."
        )


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def name_revision(model: Any, revision: str | None) -> None:
    """Let adapters that a trainer has made say of which revision of the model below they are, so that they are loaded with it."""
    for config in getattr(model, "peft_config", {}).values():
        if config.revision is None:
            config.revision = revision


def check_rows(name: str, dataset: Any, pool: EnvironmentPool | None, processing_class: Any) -> None:
    """
    Refuse prompts that nothing can be made of, of all rows; rows of a stream are not read for it.

    Raises:
        `ValueError`: If there is no row; if a prompt is empty, is neither text nor messages, or ends with the assistant; if prompts
            are messages and the tokenizer that was passed has no chat template.
    """
    if not isinstance(dataset, Dataset):
        return
    if not len(dataset):
        raise ValueError(
            f"The {name} must have at least one row, got none: check the split or the filter it comes from."
        )
    if "prompt" not in dataset.column_names:
        return
    chat = False
    for number, prompt in enumerate(_column(dataset, "prompt")):
        messages = isinstance(prompt, list) and all(isinstance(one, dict) and "role" in one for one in prompt)
        if not isinstance(prompt, str) and not messages:
            given = "None" if prompt is None else f"a {type(prompt).__name__}"
            raise ValueError(
                f"Row {number} of the {name} must have a text or a list of messages as prompt, got {given}: a message is "
                '{"role": "user", "content": ...}.'
            )
        # With an environment a text may be empty, since `reset` may return the task
        if prompt == [] or (pool is None and not messages and not prompt.strip()):
            raise ValueError(f"Row {number} of the {name} has an empty prompt: put the task there.")
        if messages and prompt[-1]["role"] == "assistant":
            raise ValueError(
                f"The prompt of row {number} of the {name} must end with a message of the user, got one of role 'assistant': "
                "remove the answer."
            )
        chat = chat or messages
    if chat and processing_class is not None:
        resolve_conversational(AgentSettings(conversational=True), processing_class)


def check_answers(name: str, dataset: Any, needed: bool) -> None:
    """
    Say which row has `answers` that cannot be compared with an answer. A reward function may read them in a form of its own.

    Args:
        name (`str`):
            What messages call the data set.
        dataset (`Any`):
            The rows; those of a stream are not read for it.
        needed (`bool`):
            Whether rewards depend on them.

    Raises:
        `ValueError`: If they are needed.
    """
    if not isinstance(dataset, Dataset) or "answers" not in dataset.column_names:
        return
    what = _wrong_answers(name, dataset)
    if what is None:
        return
    if needed:
        raise ValueError(f"{what}. memory_value_weight needs them, or a data set without `answers`.")
    logger.warning(f"{what}. Else no metric compares answers with them; reward functions get them as they are.")


def _wrong_answers(name: str, dataset: Dataset) -> str | None:
    """What is wrong with the first `answers` that cannot be compared; `None` if all can be."""
    first = None
    for number, answers in enumerate(_column(dataset, "answers")):
        if answers is not None and not are_answers(answers):
            return f"Row {number} of the {name} has {form_of_answers(answers)}"
        if answers is not None and first is None:
            first = number
    # A format makes arrays of texts, or leaves them as they are, which no name tells
    row = {} if first is None else dataset[first]
    shown = row.get("answers") if isinstance(row, Mapping) else row  # else a table, of which nothing is read
    if shown is None or are_answers(shown):
        return None
    kind = dataset.format["type"]
    return f"The {name} gives its `answers` as arrays, since it is formatted as {kind!r}: pass `dataset.with_format(None)`"


def _column(dataset: Dataset, name: str) -> Iterator[Any]:
    """The values of a column; of a data set that makes its rows when they are read, those of the first rows only."""
    if dataset.format["type"] == "custom":
        yield from dataset.select(range(min(CHECKED_PROMPTS, len(dataset))))[name]
        return
    for batch in dataset.select_columns([name]).with_format(None).iter(_BATCH):
        yield from batch[name]


def check_columns(name: str, dataset: Any, args: Any, pool: EnvironmentPool | None) -> None:
    """Raise `ValueError` if a data set lacks a column that is needed, has one that would not arrive, or names an environment that there is not."""
    columns = getattr(dataset, "column_names", None)
    if not columns:  # a stream may not know
        return
    taken = next((column for column in _ARGUMENTS if column in columns), None)
    if taken is not None:
        raise ValueError(
            f"The {name} has a column {taken!r}, which is the name of an argument of reward functions: rename it (a task is in 'prompt')."
        )
    removed = [column for column in columns if column != "prompt"]
    if args.remove_unused_columns and removed:
        raise ValueError(
            f"remove_unused_columns=True would take {', '.join(map(repr, removed))} from the {name} before `reset` and reward functions "
            "see a row: leave it False, or remove from the data set what nothing reads."
        )
    # As in TRL, an environment may own the task: then `reset` returns it, or the first batch is an error
    if "prompt" not in columns and pool is None:
        raise ValueError(
            f"The {name} has no column 'prompt' (it has {', '.join(columns)}): rename the one that holds the task, for "
            "instance with `dataset.rename_column('question', 'prompt')`."
        )
    if pool is not None and pool.routed and "environment" not in columns:
        raise ValueError(
            f"The {name} has no column 'environment', which names the environment of each row when "
            "`environment_factory` is a dictionary: add it."
        )
    if pool is not None and pool.routed and isinstance(dataset, Dataset):
        for one in dataset.unique("environment"):  # of all rows: the last may be played hours from now
            pool.name_of({"environment": one})


def check_trainable(model: Any) -> None:
    """Raise `ValueError` if the policy has no weight that is trained, such as an adapter loaded for use."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "The policy must have weights that are trained, got none: load an adapter with "
            "`PeftModel.from_pretrained(..., is_trainable=True)`, or pass `peft_config`."
        )


def check_optimizer(model: Any, optimizer: Any) -> None:
    """Raise `ValueError` if an optimizer that was passed holds none of the weights that the policy trains."""
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError(
            "The optimizer must hold weights that the policy trains, got none of them: make it from the parameters of the model "
            "that is passed, with its adapter if there is one (`peft_config` adds weights that no earlier optimizer knows)."
        )


def check_size(dataset: Any, args: Any) -> None:
    """TRL drops an incomplete generation batch, and a run of no batches ends silently."""
    if not isinstance(dataset, Dataset):
        return
    needed = (args.generation_batch_size or 1) // (args.num_generations or 1)
    if len(dataset) < needed:
        raise ValueError(
            f"The train dataset has {len(dataset)} row{'s' if len(dataset) > 1 else ''}, but one "
            f"generation batch takes {needed} tasks: add rows, or lower per_device_train_batch_size, "
            "gradient_accumulation_steps or steps_per_generation."
        )


def first_prompt(dataset: Any, reads_streams: bool) -> Any:
    """
    The task of the first row; `None` if there is none. Without an environment it alone says whether tasks are messages, so that a stream is
    read for it then; it begins again when it is trained on.
    """
    if reads_streams and isinstance(dataset, IterableDataset):
        first: list[dict[str, Any]] = list(dataset.take(1))
        return first[0].get("prompt") if first else None
    if not isinstance(dataset, Dataset) or "prompt" not in dataset.column_names or not len(dataset):
        return None
    return dataset[0]["prompt"]


def check_budgets(player: EpisodePlayer, pool: EnvironmentPool | None, train: Any, evaluation: Any = None) -> None:
    """
    Refuse budgets that cannot work, instead of in the middle of training, or in its first evaluation.

    Args:
        player ([`EpisodePlayer`]):
            Renders and encodes prompts: the longest thousand of each data set, by their bytes.
        pool ([`EnvironmentPool`], *optional*):
            The environments.
        train, evaluation (`Any`):
            The data sets, as a trainer is given them; a stream is not read for it.

    Raises:
        `ValueError`: If observations have no room, a task prompt is too long, or a context might become so.
    """
    contexts = player.rollout.contexts
    if pool is not None and player.rollout.settings.max_turns > 1:
        for actions in pool.actions.values():
            player.rollout.observations.check(list(contexts.actions(actions).tags))
    if player.rollout.settings.max_context_length is None:
        return
    for name, dataset in named_datasets(train, evaluation):
        if isinstance(dataset, Dataset):
            _check_prompts(player, pool, name, dataset)


def _check_prompts(player: EpisodePlayer, pool: EnvironmentPool | None, name: str, dataset: Dataset) -> None:
    """Raise `ValueError` for a task prompt of a data set that leaves no room in a context, at once or after a turn."""
    settings, contexts = player.rollout.settings, player.rollout.contexts
    limit = settings.max_context_length
    assert limit is not None
    numbers = _longest_rows(dataset, pool is not None and pool.routed)
    lengths = []
    for row in dataset.select(numbers):
        prompt = row.get("prompt", NO_TASK)
        actions = None if pool is None else contexts.actions(pool.actions[pool.name_of(row)])
        if actions is not None:
            prompt = player.render(prompt, actions)
        lengths.append(len(player.encode(prompt, actions)))
    longest = max(lengths, default=0)
    if longest > limit:
        raise ValueError(
            f"Row {numbers[lengths.index(longest)]} of the {name} has a task prompt of {longest} tokens, but a context "
            f"may have {limit} and the task prompt is never truncated: raise max_context_length (or lower "
            "max_completion_length), or drop the row."
        )
    # What MEM1 keeps is bounded, so that it can be promised to fit
    bound = contexts.bound(longest)
    if bound is not None and settings.max_turns > 1 and bound > limit:
        raise ValueError(
            f"A context may need {bound} tokens (prompt {longest}, state and action {settings.max_completion_length}, "
            f"observation {settings.max_observation_length}{contexts.bound_beyond_a_turn}) but only {limit} are allowed, for the {name}: "
            "lower max_completion_length or max_observation_length, or raise max_context_length."
        )


def _longest_rows(dataset: Dataset, routed: bool) -> list[int]:
    """The rows with the longest prompts, ascending; of each environment its own, since prompts differ in what is said about its actions."""
    if "prompt" not in dataset.column_names and not routed:
        return [0]
    names = _column(dataset, "environment") if routed else None
    sizes: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    prompts = _column(dataset, "prompt") if "prompt" in dataset.column_names else repeat(NO_TASK, len(dataset))
    for number, prompt in enumerate(prompts):
        sizes["" if names is None else next(names)].append((_bytes(prompt), number))
    share = -(-CHECKED_PROMPTS // len(sizes))
    return sorted(number for found in sizes.values() for _, number in nlargest(share, found, key=itemgetter(0)))


def _bytes(prompt: Any) -> int:
    """Size of a prompt, which bounds its tokens better than its characters do."""
    if isinstance(prompt, str):
        return len(prompt.encode(errors="replace"))
    return sum(len(str(message.get("content") or "").encode(errors="replace")) for message in prompt)
