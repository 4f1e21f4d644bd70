"""Layers with a recurrent state (Mamba, gated delta rule, short convolutions) over a prefix tree."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..like_lengths import like_lengths
from .interface import plan_of_call

if TYPE_CHECKING:
    from .plan import Path

_OF_THE_WHOLE_ROW = ("cache", "cache_params", "past_key_values", "attention_mask", "position_ids", "cache_position")


@dataclass(slots=True)
class Segment:
    """
    Places of a row that a recurrent layer reads in one go, from the state in which another segment ended.

    Attributes:
        places (`torch.Tensor`): Shape `(L,)`, int64: places of the row, in order of the path.
        own (`int`): How many of them, from the end on, no other segment reads; the others are read again.
        parent (`int`): The segment whose state it goes on from; -1 at a root.
        inner (`bool`): Whether another goes on from it.
    """

    places: torch.Tensor
    own: int
    parent: int
    inner: bool = False


def segments_of(paths: list[Path], parents: dict[int, int]) -> list[Segment]:
    """
    The runs of a row, cut where others fork off, so that each goes on from the end of another.

    With prompt `p1 p2 p3` at 0 to 3, a completion at 3 to 5 and turn 2 at 5 to 9, which forks off after place 1:

        0-2 from nothing, 2-5 and 5-9 from the state after place 1

    A segment of one token that others go on from is read again by each of them: layers treat a single token as a step of
    generation, which changes the state in place.

    Args:
        paths (`list[Path]`):
            The runs.
        parents (`dict[int, int]`):
            Place of the predecessor of each run, by its beginning; -1 at a root.
    """
    forks = {place for place in parents.values() if place >= 0}
    segments: list[Segment] = []
    ending: dict[int, int] = {}  # last place of a segment -> its number
    for begin, end, _ in paths:
        parent = parents[begin]
        for cut in [*sorted(place + 1 for place in forks if begin <= place < end - 1), end]:
            above = ending.get(parent, -1)
            places = torch.arange(begin, cut)
            while above >= 0 and len(segments[above].places) == 1 and segments[above].parent >= 0:
                places, above = torch.cat([segments[above].places, places]), segments[above].parent
            if above >= 0:
                segments[above].inner = True
            segments.append(Segment(places, cut - begin, above))
            ending[cut - 1] = len(segments) - 1
            begin, parent = cut, cut - 1
    return segments


@dataclass(slots=True)
class _Branch:
    """
    In place of transformers' cache: the states that segments start from, and those in which they end.

    Unlike the cache, it never writes into a state, from which several segments may start and through which gradients flow.
    """

    convolutions: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    recurrences: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, branches: list[_Branch]) -> _Branch:
        """Several as one batch."""
        return cls(
            *(
                {key: torch.cat([getattr(b, kind)[key] for b in branches]) for key in getattr(branches[0], kind)}
                for kind in ("convolutions", "recurrences")
            )
        )

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.convolutions.get((layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.recurrences.get((layer_idx, state_idx))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        size = conv_kernel_size or conv_states.shape[-1]
        before = self.convolutions.get((layer_idx, state_idx))
        if before is not None:
            conv_states = torch.cat([before, conv_states], dim=-1)
        elif conv_states.shape[-1] < size:
            conv_states = torch.nn.functional.pad(conv_states, (size - conv_states.shape[-1], 0))
        self.convolutions[layer_idx, state_idx] = conv_states[..., -size:]
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        self.recurrences[layer_idx, state_idx] = recurrent_states
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return bool(self.convolutions or self.recurrences)

    def is_recording_past(self, layer_idx: int) -> bool:
        return True  # or a single token would be a step that changes the state in place


def over_segments(
    function: Callable[[torch.Tensor, Any], Any], hidden_states: torch.Tensor, segments: list[Segment]
) -> torch.Tensor:
    """
    A recurrent layer over the segments of a row: what several go on from is read once, ends are read in calls of like length.

    Args:
        function (`Callable`):
            Takes hidden states `(N, L, H)` and a cache; returns hidden states `(N, L, H)`.
        hidden_states (`torch.Tensor`):
            Shape `(1, T, H)`.
        segments (`list[Segment]`):
            Of [`segments_of`].

    Returns:
        `torch.Tensor`: Shape `(1, T, H)`.
    """
    row = hidden_states[0]
    ended: dict[int, _Branch] = {-1: _Branch()}
    places: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def read(numbers: list[int]) -> None:
        branch = _Branch.of([ended[segments[number].parent] for number in numbers])
        widest = max(len(segments[number].places) for number in numbers)
        if segments[numbers[0]].parent >= 0:
            widest = max(widest, 2)  # a token of padding keeps a single one from being a step of generation
        inputs = torch.nn.utils.rnn.pad_sequence(
            [row[segments[number].places] for number in numbers], batch_first=True
        )
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, widest - inputs.shape[1]))
        result = function(inputs, branch)
        for output, number in zip(result, numbers):
            segment = segments[number]
            length = len(segment.places)
            places.append(segment.places[length - segment.own :])
            outputs.append(output[length - segment.own : length])
            if segment.inner:
                ended[number] = branch

    for number, segment in enumerate(segments):
        if segment.inner:  # alone, since padding would be part of its state
            read([number])
    for rooted in (True, False):
        ends = [i for i, s in enumerate(segments) if not s.inner and (s.parent < 0) == rooted]
        for call in like_lengths([len(segments[i].places) for i in ends]):
            read([ends[i] for i in call])
    joined = torch.cat(outputs)
    return joined[torch.cat(places).argsort().to(joined.device)][None]


def recurrent_layers(model: Any) -> list[Any]:
    """
    The layers of a model that keep a recurrent state in transformers' cache, and nothing else in it.

    Their forward pass takes hidden states, a cache and a padding mask, by these names, and asks the cache for its state.
    """
    return [module for module in model.modules() if _keeps_a_state(_class_of(module))]


def _class_of(module: Any) -> Any:
    return type(module)


@functools.cache
def _keeps_a_state(kind: Any) -> bool:
    forward = inspect.unwrap(kind.forward)
    code = getattr(forward, "__code__", None)
    names = set(code.co_names) if code is not None else set()
    if not names & {"update_conv_state", "update_recurrent_state"} or names & {"get_interface", "update"}:
        return False
    return list(inspect.signature(forward).parameters)[1:4] == ["hidden_states", "cache", "attention_mask"]


@functools.cache
def _follow_plans(kind: Any) -> None:
    """Let the forward pass of a class of layers read segments where a call carries a plan; all other calls are as before."""
    original = kind.forward

    @functools.wraps(original)
    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        plan = plan_of_call(kwargs)
        if plan is None:
            return original(self, hidden_states, *args, **kwargs)
        plan.states += 1
        if "segments" not in plan.made:
            plan.made["segments"] = segments_of(plan.paths[0], plan.parents[0])
        rest = {name: value for name, value in kwargs.items() if name not in _OF_THE_WHOLE_ROW}
        return over_segments(
            lambda states, cache: original(self, states, cache=cache, **rest), hidden_states, plan.made["segments"]
        )

    kind.forward = forward


def follow_plans(model: Any) -> int:
    """Let the recurrent layers of a model follow plans. Returns how many there are."""
    layers = recurrent_layers(model)
    for layer in layers:
        _follow_plans(_class_of(layer))
    return len(layers)
