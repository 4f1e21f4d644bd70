"""What is relied on in TRL, and a check that the installed release has it."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import TYPE_CHECKING, Any

import trl
from trl import GRPOTrainer

if TYPE_CHECKING:
    pass


# Parameters of the private methods that are wrapped, in order. A method may grow parameters with defaults, no others.
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
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_train_sampler": ("self", "dataset"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint"),
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

# Names that a method must use: a keyword it passes to the model, a key it looks up
RELIED_NAMES: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": RELIED_BATCH_KEYS,
    "_compute_loss": ("old_per_token_logps", "ref_per_token_logps", "tool_mask", "unsqueeze", "num_items_in_batch"),
    "_generate": ("rollout_func", "env_mask", "logprobs"),
    "_get_per_token_logps_and_entropies": ("fused_lm_head", "labels", "log_probs", "entropy"),
    "_calculate_rewards": ("environments",),
    "_prepare_inputs": ("_buffered_inputs", "_step", "steps_per_generation"),
}


def _names_in(code: CodeType) -> set[str]:
    """All names and string constants of a code object, those of nested functions and constant tuples included."""
    names = {*code.co_names, *code.co_varnames}
    stack: list[Any] = list(code.co_consts)
    while stack:
        constant = stack.pop()
        if isinstance(constant, str):
            names.add(constant)
        elif isinstance(constant, (tuple, frozenset)):
            stack.extend(constant)
        elif isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


def check_trl(trainer_class: type = GRPOTrainer) -> None:
    """
    Check that the installed TRL is one we can wrap.

    Raises:
        `ImportError`: If a private method of `trainer_class` is gone, takes other parameters, or no longer uses a name that
            is relied on.
    """
    for method, parameters in RELIED_METHODS.items():
        problem = None
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
            problem = f"`{method}` wants {', '.join(required)} as well"
        elif actual[: len(parameters)] != parameters:
            problem = f"`{method}` has the parameters {', '.join(actual) or 'none'} instead of {', '.join(parameters)}"
        else:
            missing = sorted(set(RELIED_NAMES.get(method, ())) - _names_in(function.__code__))
            if missing:
                problem = f"`{method}` no longer uses {', '.join(missing)}"
        if problem is not None:
            raise ImportError(
                f"trl {trl.__version__} does not fit this version of mem1-trl: {problem} of {trainer_class.__name__}; "
                "install a TRL release that README.md lists as tested, or upgrade mem1-trl."
            )
