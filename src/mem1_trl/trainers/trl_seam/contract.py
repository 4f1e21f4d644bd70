"""The parts of TRL that this package relies on, and a check that the installed release has them."""

from __future__ import annotations

import dis
import functools
import inspect
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import trl
from trl import GRPOTrainer

from .batch_rows import BATCH_KEYS, ROW_KEYS
from .source import calls_of, returned_keys, returned_tuples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Parameters of the methods that are wrapped, in order: the private ones, and those of which more is relied on than TRL documents. A method may
# grow parameters with defaults, no others.
RELIED_METHODS: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_tokenize_prompts": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_compute_loss": ("self", "model", "inputs"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_train_sampler": ("self", "dataset"),
    "_get_eval_sampler": ("self", "eval_dataset"),
    "get_eval_dataloader": ("self", "eval_dataset"),
    "_determine_best_metric": ("self", "metrics", "trial"),
    "_evaluate": ("self", "trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_best_model": ("self",),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "_issue_warnings_after_load": ("self", "load_result"),
    "_run_epoch": (
        "self",
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
}

# Those that are replaced here by one that takes these parameters and no others, so that TRL must not call them with more
FIXED_METHODS = (
    "_generate_and_score_completions",
    "_generate",
    "_calculate_rewards",
    "_compute_loss",
    "_prepare_inputs",
    "_get_grad_norm",
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_load_best_model",
    "_push_from_checkpoint",
    "_issue_warnings_after_load",
    "_determine_best_metric",
    "get_eval_dataloader",
)

# How many values each of them returns
RETURNED_VALUES: dict[str, int] = {
    "_generate_and_score_completions": 1,
    "_generate": 8,
    "_generate_single_turn": 2,
    "_tokenize_prompts": 3,
    "_calculate_rewards": 1,
    "_get_per_token_logps_and_entropies": 3,
    "_compute_loss": 1,
    "_prepare_inputs": 1,
    "_get_grad_norm": 1,
    "_save_checkpoint": 0,
    "_get_train_sampler": 1,
    "_get_eval_sampler": 1,
    "get_eval_dataloader": 1,
    "_determine_best_metric": 1,
    "_evaluate": 1,
    "_load_from_checkpoint": 0,
    "_load_best_model": 0,
    "_push_from_checkpoint": 0,
    "_issue_warnings_after_load": 0,
    "_run_epoch": 0,
}

# Keys of the batch that TRL builds and its loss reads
RELIED_BATCH_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "advantages",
    "num_items_in_batch",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "tool_mask",
)

# Further keys of the batch, of image models, which are refused
IMAGE_KEYS = frozenset(
    {
        "pixel_values",
        "pixel_attention_mask",
        "image_grid_thw",
        "image_sizes",
        "image_position_ids",
        "spatial_shapes",
        "num_images",
        "num_tiles",
        "token_type_ids",
        "mm_token_type_ids",
    }
)

# Names that a method must use: a keyword it passes to the model, a key it looks up
RELIED_NAMES: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": RELIED_BATCH_KEYS,
    "_compute_loss": ("old_per_token_logps", "ref_per_token_logps", "tool_mask", "unsqueeze", "num_items_in_batch"),
    "_generate": ("rollout_func", "env_mask", "logprobs"),
    "_get_per_token_logps_and_entropies": ("fused_lm_head", "labels", "log_probs", "entropy"),
    "_calculate_rewards": ("environments",),
    "_prepare_inputs": ("_buffered_inputs", "_step", "steps_per_generation"),
    "get_eval_dataloader": ("shuffle",),
}

# Attributes of the trainer that are set here, each of which some method of TRL or transformers must read
RELIED_ATTRIBUTES = (
    # by resume.py, for a run that goes on
    "_step",
    "_buffered_inputs",
    "_metrics",
    "_logs",
    "_pending_extra_logs",
    "_pending_metrics",
    "_tr_loss",
    "_globalstep_last_logged",
    "_last_world_entropy",
    "entropy_coef",
    # by the other files, while a method of TRL runs
    "beta",
    "current_gradient_accumulation_steps",
    "environments",
    "generation_kwargs",
    "log_completions",
    "mask_truncated_completions",
    "reward_funcs",
    "rollout_func",
    "router_aux_loss_coef",
)


@functools.cache
def check_trl(trainer_class: type = GRPOTrainer) -> None:
    """
    Check that the installed TRL is one we can wrap.

    Raises:
        `ImportError`: If a private method of `trainer_class` is gone, takes other parameters, returns another number of values
            or no longer uses a name that is relied on, if it is called with arguments that are not known, if the batch has a key that is
            not known, or if no method reads an attribute that is set here.
    """
    problem = next((found for method in RELIED_METHODS if (found := _problem_of(trainer_class, method))), None)
    problem = problem or _problem_of_calls(trainer_class) or _problem_of_attributes(trainer_class)
    if problem is not None:
        raise unfit(f"{problem} of {trainer_class.__name__}")


def check_values(method: str, values: Any) -> Any:
    """
    What a wrapped method returned, if it is as many values as are relied on.

    Args:
        method (`str`):
            Name of the method, a key of `RETURNED_VALUES`.
        values (`Any`):
            What it returned: a tuple, or one value.

    Raises:
        `ImportError`: If it returned another number of values.
    """
    given, wanted = len(values) if isinstance(values, tuple) else 1, RETURNED_VALUES[method]
    if given != wanted:
        raise unfit(f"`{method}` returns {_count(given)} instead of {wanted}")
    return values


def check_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """
    The batch that TRL has made, if all of its keys are known.

    Raises:
        `ImportError`: If it has another key, which the loss may rely on and which would be cut, joined or left out wrongly.
    """
    unknown = _unknown_keys(batch)
    if unknown:
        raise unfit(
            f"`_generate_and_score_completions` makes a batch with {unknown}, of which it is not known what the loss does with it"
        )
    return batch


def unfit(problem: str) -> ImportError:
    """The error that says in one sentence why the installed TRL cannot be used."""
    return ImportError(
        f"trl {trl.__version__} does not fit this version of mem1-trl: {problem}; "
        "install a TRL release that README.md lists as tested, or upgrade mem1-trl."
    )


def _problem_of(trainer_class: type, method: str) -> str | None:
    """What is wrong with a wrapped method, or `None`."""
    parameters = RELIED_METHODS[method]
    function = inspect.unwrap(getattr(trainer_class, method, None) or (lambda: None))
    signature = inspect.signature(function).parameters
    actual = tuple(signature)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [
        name
        for name, parameter in list(signature.items())[len(parameters) :]
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variable
    ]
    if required:
        return f"`{method}` wants {', '.join(required)} as well"
    if actual[: len(parameters)] != parameters:
        return f"`{method}` has the parameters {', '.join(actual) or 'none'} instead of {', '.join(parameters)}"
    missing = sorted(set(RELIED_NAMES.get(method, ())) - _names_in(function.__code__))
    if missing:
        return f"`{method}` no longer uses {', '.join(missing)}"
    other = returned_tuples(function) - {RETURNED_VALUES[method]}
    if other:
        return f"`{method}` returns {_count(max(other))} instead of {RETURNED_VALUES[method]}"
    if method == "_generate_and_score_completions" and (
        unknown := _unknown_keys(returned_keys(function) - IMAGE_KEYS)
    ):
        return f"`{method}` makes a batch with {unknown}, of which it is not known what the loss does with it,"
    return None


def _unknown_keys(keys: Iterable[str]) -> str | None:
    """Keys of a batch that are in none of the tables, named in a sentence."""
    unknown = sorted(set(keys) - ROW_KEYS - BATCH_KEYS)
    return f"the key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}" if unknown else None


def _problem_of_calls(trainer_class: type) -> str | None:
    """The arguments that some method hands to a method that is replaced here, and which that would not take, or `None`."""
    for function in _functions_of(trainer_class):
        for method in sorted(_names_in(function.__code__).intersection(FIXED_METHODS)):
            known = RELIED_METHODS[method][1:]
            for count, keywords in calls_of(function, method):
                more = sorted(keywords - set(known))
                if more:
                    return f"`{function.__name__}` calls `{method}` with {', '.join(more)} as well"
                if count > len(known):
                    return f"`{function.__name__}` calls `{method}` with {count} arguments instead of {len(known)}"
    return None


def _problem_of_attributes(trainer_class: type) -> str | None:
    """The attributes that are set here and that no method of a class reads, or `None`."""
    unread = set(RELIED_ATTRIBUTES)
    for function in _functions_of(trainer_class):
        for code in _codes_in(function.__code__):
            if unread.intersection(code.co_names):
                unread -= {
                    instruction.argval
                    for instruction in dis.get_instructions(code)
                    if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")
                }
    return f"no method reads {', '.join(sorted(unread))}" if unread else None


def _functions_of(trainer_class: type) -> Iterator[FunctionType]:
    """The functions of the methods and properties of a class and its bases."""
    for base in trainer_class.__mro__:
        for value in vars(base).values():
            function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
            if isinstance(function, FunctionType):
                yield function


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions that are defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def _names_in(code: CodeType) -> set[str]:
    """All names and string constants of a code object, those of nested functions and constant tuples included."""
    names: set[str] = set()
    for part in _codes_in(code):
        names |= {*part.co_names, *part.co_varnames}
        stack: list[Any] = list(part.co_consts)
        while stack:
            constant = stack.pop()
            if isinstance(constant, str):
                names.add(constant)
            elif isinstance(constant, (tuple, frozenset)):
                stack.extend(constant)
    return names


def _count(number: int) -> str:
    return f"{number} value" if number == 1 else f"{number} values"
