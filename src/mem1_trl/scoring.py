"""Runs a model over rows under a layout, and reads off one number per sampled token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from . import flex_tree, tree_attention
from .attention import attention_implementation, forward_takes, model_mask, module_dtype, resolve_layout
from .attention_plan import plan_attention
from .folding import FoldedRows, fold_rows
from .layouts import (
    RowBatch,
    build_row,
    paper_context_mask,
    tree_context_mask,
    tree_positions,
    unfold_turns,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from .trajectory import Trajectory

tree_attention.register()

# Share of the padded tokens that must remain at most for folding to be worth another kernel
_WORTH_FOLDING = 0.9

TokenFunction = Callable[[dict[str, torch.Tensor], torch.Tensor], "list[torch.Tensor | None]"]
"""
Takes model inputs `(N, L)` and labels `(N, L)` (-100 where nothing is wanted); gives tensors `(N, L - 1)`, the value for
label `i` at place `i - 1`, as a causal language model predicts it from the token before.
"""


def forward_rows(
    rows: RowBatch, layout: str, model: PreTrainedModel, function: TokenFunction
) -> list[torch.Tensor | None]:
    """
    Evaluate a per-token function of a model on rows, each token in exactly the context the layout gives it.

    Args:
        rows ([`RowBatch`]):
            `B` rows of `T` tokens.
        layout (`str`):
            `"packed"`, `"per_turn"` or `"paper"`.
        model ([`~transformers.PreTrainedModel`]):
            The model behind `function`; asked for its attention implementation and data type only.
        function (`TokenFunction`):
            Calls the model.

    Returns:
        `list[torch.Tensor | None]`: What `function` gives, folded back to shape `(B, T - 1)`; zero where no token was sampled.
    """
    if layout == "per_turn":
        return _forward_per_turn(rows, function)
    if layout == "packed" and tree_attention.can_plan(model, rows.input_ids.device):
        folded = fold_rows(rows)
        # One turn without a shared prompt is left to the very kernels TRL uses, so that it trains bit for bit like GRPOTrainer
        several_turns = bool((rows.turn_ids > 0).any())
        if several_turns or folded.tree.input_ids.numel() <= _WORTH_FOLDING * rows.input_ids.numel():
            results = _forward_folded(folded, model, function)
            if results is not None:
                return results
    labels = rows.input_ids.masked_fill(~rows.sampled, -100)
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "position_ids": tree_positions(rows)}
    mask = None
    if layout == "paper":
        mask = paper_context_mask(rows)
    elif not rows.is_chain():
        mask = tree_context_mask(rows)
    inputs["attention_mask"] = rows.attention_mask  # enough for a chain: ordinary causal attention is exact
    if mask is not None:
        inputs["attention_mask"] = model_mask(mask, attention_implementation(model), module_dtype(model))
    return function(inputs, labels)


def _forward_folded(
    folded: FoldedRows, model: PreTrainedModel, function: TokenFunction
) -> list[torch.Tensor | None] | None:
    """Forward a batch as one tree; `None` if the model turns out not to hand the plan down to its attention."""
    tree = folded.tree
    plan = plan_attention(tree)
    if tree.input_ids.device.type != "cpu":
        plan.block_mask = flex_tree.block_mask(tree, plan)
    inputs: dict[str, Any] = {
        "input_ids": tree.input_ids,
        "position_ids": tree_positions(tree),
        # Should the plan not arrive, this mask turns everything into NaN instead of leaking
        "attention_mask": torch.full((1, 1, 1, 1), torch.nan, dtype=module_dtype(model)),
        tree_attention.PLAN_ARGUMENT: plan,
    }
    results = function(inputs, tree.input_ids.masked_fill(~tree.sampled, -100))
    if not plan.used:
        tree_attention.forget(model)
        return None
    return [None if result is None else folded.spread(result) for result in results]


def _forward_per_turn(rows: RowBatch, function: TokenFunction) -> list[torch.Tensor | None]:
    turns = unfold_turns(rows)
    if turns is None:  # every completion is masked out: forward the rows as they are, nothing in them counts
        inputs = {"input_ids": rows.input_ids, "attention_mask": torch.ones_like(rows.attention_mask)}
        return function(inputs, torch.full_like(rows.input_ids, -100))
    inputs = {"input_ids": turns.input_ids, "attention_mask": turns.attention_mask}
    results = function(inputs, turns.input_ids.masked_fill(~turns.sampled, -100))
    wanted = turns.sampled[:, 1:]
    places = turns.sources[:, 1:][wanted]
    folded: list[torch.Tensor | None] = []
    for result in results:
        if result is not None:
            flat = result.new_zeros(rows.input_ids.numel())
            result = flat.index_put((places,), result[wanted]).view(rows.input_ids.shape)[:, 1:]
        folded.append(result)
    return folded


class LayoutModel:
    """
    Stands in for a policy where TRL calls one, so that TRL's own log-prob code scores each token in its true context.

    TRL passes rows in order, in chunks; the structure of the rows is kept here, beside them.

    Args:
        model (`Callable`):
            A model with TRL's fused head, possibly wrapped for data parallelism or sharding.
        unwrapped ([`~transformers.PreTrainedModel`]):
            The same model without wrappers, asked for its attention implementation and data type.
        rows ([`RowBatch`]):
            The rows TRL is about to pass.
        layout (`str`):
            How to forward them.
        readout (`Callable[[torch.Tensor], torch.Tensor]`, *optional*):
            Reads one more number per token off the hidden states `(N, L, H)` that the log-probs are computed from: gives
            `(N, L)`, of which place `i - 1` is kept for token `i`.
        backbone ([`~torch.nn.Module`], *optional*):
            The part of `unwrapped` whose `last_hidden_state` that is; needed with `readout`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        unwrapped: PreTrainedModel,
        rows: RowBatch,
        layout: str,
        readout: Callable[[torch.Tensor], torch.Tensor] | None = None,
        backbone: torch.nn.Module | None = None,
    ):
        self.model = model
        self.unwrapped = unwrapped
        self.rows = rows
        self.layout = layout
        self.readout = readout
        self.backbone = backbone
        self.read: list[torch.Tensor] = []
        """What `readout` gave, folded back to shape `(B, T - 1)`, for each chunk that was passed; zero where no token was sampled."""
        self._next = 0

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: Any = None, **kwargs: Any
    ) -> Any:
        rows = self.rows[slice(self._next, self._next + len(input_ids))]
        self._next += len(input_ids)
        assert torch.equal(rows.input_ids, input_ids), "TRL passes other rows than the ones that were bound"
        outputs = None

        def fused(inputs: dict[str, torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor | None]:
            nonlocal outputs
            if self.readout is None:
                outputs = self.model(**inputs, labels=wanted, **kwargs)
                return [outputs.log_probs, outputs.entropy, None]
            with _last_hidden_state(self.backbone) as hidden:
                outputs = self.model(**inputs, labels=wanted, **kwargs)
            read = self.readout(hidden[0])[:, :-1].masked_fill(wanted[:, 1:] == -100, 0.0)
            return [outputs.log_probs, outputs.entropy, read]

        log_probs, entropy, read = forward_rows(rows, self.layout, self.unwrapped, fused)
        assert outputs is not None
        if read is not None:
            self.read.append(read)
        outputs.log_probs, outputs.entropy = log_probs, entropy
        return outputs


@contextmanager
def _last_hidden_state(backbone: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what a backbone gives to the head, while it is called by somebody else."""
    hidden: list[torch.Tensor] = []
    handle = backbone.register_forward_hook(lambda module, inputs, outputs: hidden.append(outputs.last_hidden_state))
    try:
        yield hidden
    finally:
        handle.remove()


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
            What to score.
        layout (`str`, *optional*, defaults to `"packed"`):
            `"packed"` and `"per_turn"` are exact and agree; `"paper"` is MEM1's stitched sequence (section 3.2), which does
            not. A model that cannot run `"packed"` is run `"per_turn"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            What the logits are divided by.
        batch_size (`int`, *optional*, defaults to `8`):
            Trajectories forwarded at once.

    Returns:
        `list[list[torch.Tensor]]`: Per trajectory, per turn, a float32 tensor of shape `(len(completion_ids),)`. Gradients
        flow unless the caller turns them off.
    """
    layout = resolve_layout(model, layout)
    scores: list[list[torch.Tensor]] = []
    for start in range(0, len(trajectories), batch_size):
        chunk = trajectories[start : start + batch_size]
        rows = RowBatch.from_rows([build_row(t, layout) for t in chunk], device=model.device)
        (logprobs,) = forward_rows(rows, layout, model, token_logprobs(model, temperature))
        assert logprobs is not None
        for index, trajectory in enumerate(chunk):
            of_row = logprobs[index][rows.sampled[index, 1:]]
            scores.append(list(of_row.split([len(turn.completion_ids) for turn in trajectory.turns])))
    return scores
