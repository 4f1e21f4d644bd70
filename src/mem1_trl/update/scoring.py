"""Run a model over rows in a layout, and compute one number per sampled token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..model_traits import (
    attention_implementation,
    forward_takes,
    longest_row,
    module_dtype,
    position_switch,
    text_config,
)
from .attention import interface
from .attention.masks import model_mask
from .attention.plan import plan_attention
from .attention.reach import reaches_by_configuration
from .attention.recurrent import follow_plans, recurrent_layers
from .folding import FoldedRows, fold_rows
from .layouts import resolve_layout
from .model_check import exact_layout_of
from .row_batch import RowBatch, paper_context_mask, tree_positions
from .rows import build_row
from .unfolding import unfold_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from ..trajectory import Trajectory


interface.register()

# Share of the padded tokens that must remain at most for folding to be worth another kernel
_WORTH_FOLDING = 0.9

TokenFunction = Callable[[dict[str, torch.Tensor], torch.Tensor], "list[torch.Tensor | None]"]
"""
Takes model inputs `(N, L)` and labels `(N, L)` (-100 where nothing is wanted); returns tensors `(N, L - 1)`, the value for
label `i` at place `i - 1`, as a causal language model predicts it from the token before.
"""


def forward_rows(
    rows: RowBatch, layout: str, model: PreTrainedModel, function: TokenFunction, in_one_call: bool = False
) -> list[torch.Tensor | None]:
    """
    Evaluate a per-token function of a model on rows, each token in exactly the context that the layout defines.

    Args:
        rows ([`RowBatch`]):
            `B` rows of `T` tokens.
        layout (`str`):
            `"packed"`, `"per_turn"` or `"paper"`.
        model ([`~transformers.PreTrainedModel`]):
            The model that `function` calls; asked for its attention implementation and data type only.
        function (`TokenFunction`):
            Calls the model.
        in_one_call (`bool`, *optional*, defaults to `False`):
            Whether `function` must be called once only, since it has a result for the whole batch besides.

    Returns:
        `list[torch.Tensor | None]`: The results of `function`, folded back to shape `(B, T - 1)`; zero where no token was sampled.
    """
    if layout == "packed":
        folded = _fold(rows, model)
        results = None if folded is None else _forward_folded(folded, model, function)
        if results is not None:
            return results
    if layout == "paper" or (layout == "packed" and _is_ordinary(rows, model)):
        inputs: dict[str, Any] = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,  # enough for a chain: ordinary causal attention is exact
            "position_ids": tree_positions(rows),
        }
        if layout == "paper":
            mask = paper_context_mask(rows)
            inputs["attention_mask"] = model_mask(mask, attention_implementation(model), module_dtype(model))
        return function(inputs, rows.input_ids.masked_fill(~rows.tool_mask, -100))
    return _forward_per_turn(rows, function, in_one_call)


def forwarded_tokens(rows: RowBatch, layout: str, model: PreTrainedModel) -> int:
    """
    Number of tokens, padding included, that [`forward_rows`] passes to the model.

    Args:
        rows ([`RowBatch`]):
            `B` rows of `T` tokens.
        layout (`str`):
            `"packed"` (a common beginning of several rows counts once), `"per_turn"` (each turn counts as wide as the longest of its call) or
            `"paper"`.
        model ([`~transformers.PreTrainedModel`]):
            The model, or its backbone.

    Returns:
        `int`
    """
    folded = _fold(rows, model) if layout == "packed" else None
    if folded is not None:
        return folded.tree.input_ids.numel()
    if layout == "paper" or (layout == "packed" and _is_ordinary(rows, model)):
        return rows.input_ids.numel()
    turns = unfold_turns(rows)
    return rows.input_ids.numel() if turns is None else sum(call.input_ids.numel() for call in turns.calls())


def _is_ordinary(rows: RowBatch, model: PreTrainedModel) -> bool:
    """Whether rows are chains, which the model reads as TRL's rows: padding on the left does not reach into a recurrent state."""
    return rows.is_chain() and not recurrent_layers(model)


def _fold(rows: RowBatch, model: PreTrainedModel) -> FoldedRows | None:
    """The rows as one tree, if they are forwarded as one."""
    if not interface.can_plan(model, rows.input_ids.device):
        return None
    folded = fold_rows(rows)
    limit = longest_row(model)
    if limit is not None and folded.tree.input_ids.numel() > limit:
        return None
    # One turn without a shared prompt is left to the very kernels TRL uses, so that it trains bit for bit like GRPOTrainer
    several_turns = bool((rows.turn_ids > 0).any())
    worth_it = several_turns or folded.tree.input_ids.numel() <= _WORTH_FOLDING * rows.input_ids.numel()
    return folded if worth_it else None


def _forward_folded(
    folded: FoldedRows, model: PreTrainedModel, function: TokenFunction
) -> list[torch.Tensor | None] | None:
    """Forward a batch as one tree; `None` if the model turns out not to hand the plan down to its attention."""
    tree = folded.tree
    plan = plan_attention(tree)
    if tree.input_ids.device.type != "cpu":
        plan.tree = tree
    recurrent = follow_plans(model)
    inputs: dict[str, Any] = {"input_ids": tree.input_ids, interface.PLAN_ARGUMENT: plan}
    if forward_takes(model, "position_ids"):
        inputs["position_ids"] = tree_positions(tree)
        # Should the plan not arrive, this mask turns everything into NaN instead of leaking
        inputs["attention_mask"] = torch.full((1, 1, 1, 1), torch.nan, dtype=module_dtype(model))
    else:  # nothing but recurrent layers, which are counted below
        inputs["attention_mask"] = tree.attention_mask
    reason = None
    try:
        with interface.plan_at_hand(plan, model):
            results = function(inputs, tree.input_ids.masked_fill(~tree.tool_mask, -100))
    except interface.PlanRefused as problem:
        reason = str(problem)
    else:
        if plan.used + plan.states == 0 or plan.states < recurrent:
            reason = "its layers are not handed their keyword arguments"
        elif reaches_by_configuration(text_config(model), plan.longest) - plan.reaches:
            reason = "its windowed layers do not say how far they see"
    if reason is not None:
        interface.never_plan_again(model, reason)
        return None
    return [None if result is None else folded.spread(result) for result in results]


def _forward_per_turn(rows: RowBatch, function: TokenFunction, in_one_call: bool) -> list[torch.Tensor | None]:
    turns = unfold_turns(rows)
    if turns is None:  # every completion is masked out: forward the rows as they are, nothing in them counts
        inputs = {"input_ids": rows.input_ids, "attention_mask": torch.ones_like(rows.attention_mask)}
        return function(inputs, torch.full_like(rows.input_ids, -100))
    spread: list[torch.Tensor | None] | None = None
    for call in [turns] if in_one_call else turns.calls():
        inputs = {"input_ids": call.input_ids, "attention_mask": call.attention_mask}
        results = function(inputs, call.input_ids.masked_fill(~call.tool_mask, -100))
        wanted = call.tool_mask[:, 1:]
        places = call.sources[:, 1:][wanted]
        if spread is None:
            spread = [None if result is None else result.new_zeros(rows.input_ids.numel()) for result in results]
        spread = [
            None if whole is None or result is None else whole.index_put((places,), result[wanted])
            for whole, result in zip(spread, results)
        ]
    assert spread is not None
    return [None if whole is None else whole.view(rows.input_ids.shape)[:, 1:] for whole in spread]


def token_logprobs(model: PreTrainedModel, temperature: float = 1.0) -> TokenFunction:
    """The per-token log-probs of a plain causal language model, float32, in nats."""

    takes_places = forward_takes(model, "logits_to_keep")

    def function(inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor | None]:
        targets = labels[:, 1:]
        # The head is the largest matrix of a small model: it is applied where a token was sampled, and nowhere else
        places = (targets != -100).any(dim=0).nonzero().flatten()
        kept = model(**inputs, logits_to_keep=places).logits if takes_places else model(**inputs).logits[:, places]
        targets = targets[:, places]
        logprobs = torch.log_softmax(kept.float() / temperature, dim=-1)
        picked = logprobs.gather(2, targets.clamp(min=0)[..., None]).squeeze(2).masked_fill(targets == -100, 0.0)
        return [picked.new_zeros(len(labels), labels.shape[1] - 1).index_copy(1, places, picked)]

    return function


def hidden_numbers(backbone: PreTrainedModel) -> TokenFunction:
    """One number for each hidden state, a fixed random direction of it; of order one. What a critic reads is as exact as this."""
    size = backbone.config.get_text_config().hidden_size
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(backbone.device) / size**0.5

    def function(inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor | None]:
        states = backbone(**inputs, use_cache=False).last_hidden_state[:, :-1].float()
        return [(states @ direction).masked_fill(labels[:, 1:] == -100, 0.0)]

    return function


def score_without_training(
    model: PreTrainedModel, trajectories: Sequence[Trajectory], layout: str, temperature: float, batch_size: int
) -> list[list[torch.Tensor]]:
    """[`score_trajectories`] in evaluation mode and without gradient; the mode of the model stays what it was."""
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            return score_trajectories(model, trajectories, layout, temperature, batch_size)
    finally:
        model.train(training)


def score_trajectories(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    layout: str = "packed",
    temperature: float = 1.0,
    batch_size: int = 8,
) -> list[list[torch.Tensor]]:
    """
    Log-probabilities of everything the agent sampled, each token under exactly the context that produced it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.
        trajectories (`Sequence[Trajectory]`):
            The trajectories to score.
        layout (`str`, *optional*, defaults to `"packed"`):
            `"packed"` and `"per_turn"` are exact and agree; `"paper"` is MEM1's stitched sequence (section 3.2), which does
            not. A model that cannot run `"packed"` is run `"per_turn"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divisor of the logits.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of trajectories in one forward pass.

    Returns:
        `list[list[torch.Tensor]]`: Per trajectory, per turn, a float32 tensor of shape `(len(completion_ids),)`. Gradients
        flow unless the caller turns them off.

    Raises:
        `ValueError`: If positions depend on the length of the batch at the length of these trajectories.
    """
    longest = max((len(t.prompt_ids) + len(t.completion_ids) for one in trajectories for t in one.turns), default=0)
    switch = position_switch(model)
    if switch is not None and longest > switch[1]:
        raise ValueError(
            f"A context and its completion must have at most {switch[1]} tokens for this model, got {longest}: its positions "
            f"({switch[0]}) depend on the longest row of a batch beyond that."
        )
    function = token_logprobs(model, temperature)
    layout = exact_layout_of(
        model,
        resolve_layout(model, layout, longest),
        longest,
        lambda rows: forward_rows(rows, "packed", model, function)[0],
        function,
    )
    scores: list[list[torch.Tensor]] = []
    for start in range(0, len(trajectories), batch_size):
        chunk = trajectories[start : start + batch_size]
        rows = RowBatch.from_rows([build_row(t, layout) for t in chunk], device=model.device)
        (logprobs,) = forward_rows(rows, layout, model, function)
        assert logprobs is not None
        for index, trajectory in enumerate(chunk):
            of_row = logprobs[index][rows.tool_mask[index, 1:]]
            scores.append(list(of_row.split([len(turn.completion_ids) for turn in trajectory.turns])))
    return scores
