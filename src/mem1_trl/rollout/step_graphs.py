"""One-token steps of `generate` as CUDA graphs: what a small model spends on a GPU is the time to start its kernels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..model_traits import attention_implementation, cache_argument
from .decoding import owners_of_decoding

logger = logging.getLogger(__name__)

_ROOM = 512
"""Columns of a graph are a multiple of this."""
_WASTE = 4
"""How many times the rows that are needed a graph may have."""
_SPARE = 64
"""Columns that are free when a graph is begun."""
_KNOWN = {"use_cache": (True,), "return_dict": (True,), "logits_to_keep": (0, 1)}
"""Arguments of a step beside its tensors, with the values under which a graph computes what the model would."""

Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], Any], torch.Tensor]]


def capture_on_gpu() -> Capture:
    """Captures functions as CUDA graphs that share one pool of memory; returns what replays one, and where its result will be."""
    pool = torch.cuda.graph_pool_handle()

    def capture(function: Callable[[], torch.Tensor]) -> tuple[Callable[[], Any], torch.Tensor]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = function()
        return graph.replay, result

    return capture


class _FixedLayer(DynamicLayer):
    """Keys and values of fixed shape, of which each step writes one column."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor):
        super().__init__()
        self.keys, self.values, self.column = keys, values, column
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            assert held is not None
            held.index_copy_(2, self.column, new)
        return self.keys, self.values


@dataclass(slots=True, eq=False)
class _Step:
    """
    A step of fixed shape: `R` rows of one token, which see up to `C` columns.

    Attributes:
        ids, positions (`torch.Tensor`):
            Inputs, shape `(R, 1)`, `torch.long`.
        visible (`torch.Tensor`):
            Columns that each row sees, shape `(R, 1, 1, C)`, `torch.bool`.
        column (`torch.Tensor`):
            Where this step writes, shape `(1,)`, `torch.long`.
        cache ([`~transformers.DynamicCache`]):
            Its keys and values.
        output (`Any`):
            What the model returned when it last ran, for its type.
        logits (`torch.Tensor` or `None`):
            Where a replay leaves the logits.
        replay (`Callable` or `None`):
            Runs the graph; `None` until it is captured.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    column: torch.Tensor
    cache: Any
    output: Any = None
    logits: torch.Tensor | None = None
    replay: Callable[[], Any] | None = None


class StepGraphs:
    """
    Replaces the forward pass of a model within `generate`, for steps of one token, by one of fixed shape that is captured once.

    A step of fixed shape reads all columns of a buffer and masks those that no token has been written to. It is run by itself the
    first time and captured the second. The first of all is compared with what the model computes without it; where they differ, or
    where a model cannot be captured, one sentence is logged and the model is called as ever.

    Graphs hold on to the addresses of the weights and to memory: [`~StepGraphs.clear`] must be called before either is needed by
    something else.

    Args:
        capture (`Callable`, *optional*):
            Returns what captures a function, see [`capture_on_gpu`].
        device_type (`str`, *optional*, defaults to `"cuda"`):
            Where a model has to be.
    """

    def __init__(self, capture: Callable[[], Capture] = capture_on_gpu, device_type: str = "cuda"):
        self._new_capture = capture
        self._device_type = device_type
        self.captured = 0  # since it was made
        self.replayed = 0
        self._refused: str | None = None
        self._agrees = False
        self.clear()

    def clear(self) -> None:
        """Free graphs and buffers."""
        self._capture: Capture | None = None
        self._steps: dict[tuple[int, int], _Step] = {}
        self._stores: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._held: Any = None  # the cache whose keys are in the buffers
        self._columns = 0  # how many of its columns are written
        self._current: _Step | None = None  # the step whose buffers it is in

    def why_not(self, model: Any) -> str | None:
        """Why steps of a model are not captured; `None` if they may be."""
        if self._refused is not None:
            return self._refused
        places = {parameter.device for parameter in model.parameters()}
        if len(places) != 1 or next(iter(places)).type != self._device_type:
            return "its weights are not on one GPU"
        if attention_implementation(model) not in ("sdpa", "eager"):
            return f"its attention is {attention_implementation(model)}"
        if torch.is_autocast_enabled(self._device_type):
            return "autocast keeps copies of weights from one pass to the next"
        for module in model.modules():
            if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
                return f"a {type(module).__name__} has a hook, which a graph would pass over"
        return None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Within this context, steps of `model.generate` are graphs. A cache that it was given owns its keys afterwards."""
        if self.why_not(model) is not None:
            yield
            return
        inner = owners_of_decoding(model)[-1]
        before = inner.__dict__.get("forward")
        plain = inner.forward

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = None if args else self._one_token(inner, plain, kwargs)
            return plain(*args, **kwargs) if output is None else output

        inner.forward = forward
        try:
            yield
        finally:
            if before is None:
                del inner.forward
            else:
                inner.forward = before
            self._give_back()

    def _one_token(self, model: Any, plain: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """What the model returns for one more token of each row; `None` if this is no such step."""
        name = cache_argument(model)
        cache: Any = inputs.get(name)
        if self._refused is not None or not _is_step(inputs, cache, name):
            return None
        rows, length = len(inputs["input_ids"]), cache.get_seq_length()
        step = self._current
        if step is None or cache is not self._held or length != self._columns or length >= step.visible.shape[-1]:
            step = self._step_for(model, cache, rows, length)
            self._begin(step, cache, inputs["attention_mask"])
        step.ids[:rows] = inputs["input_ids"]
        step.positions[:rows] = inputs["position_ids"]
        step.visible[:rows, 0, 0, length] = inputs["attention_mask"][:, -1] != 0
        step.column.fill_(length)
        try:
            logits = self._run(step, lambda: _forward(model, plain, step))
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            self._refuse(f"a step of fixed shape failed: {type(error).__name__}: {error}")
            return None
        if not self._agrees:
            expected = plain(**inputs)
            gap = (logits[:rows].float() - expected.logits.float()).abs().max()
            bound = _tolerance(expected.logits)
            self._agrees = bool(gap <= bound)
            if not self._agrees:
                self._refuse(
                    f"a step of fixed shape gives logits that differ by up to {gap:.2g}, at most {bound:.2g} is rounding"
                )
            self._held = None  # the model itself has written this column
            return expected
        self._columns = length + 1
        _show(cache, step.cache, rows, self._columns)
        field = next(field for field, value in step.output.items() if value is step.cache)
        return type(step.output)(**{"logits": logits[:rows], field: cache})

    def _run(self, step: _Step, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        if step.replay is None and step.output is not None and self._agrees:
            self._capture = self._capture or self._new_capture()
            step.replay, step.logits = self._capture(function)
            self.captured += 1
        if step.replay is None:
            return function()
        step.replay()
        self.replayed += 1
        assert step.logits is not None
        return step.logits

    def _refuse(self, reason: str) -> None:
        logger.warning(f"Tokens are generated without CUDA graphs, which takes longer: {reason}.")
        self._give_back()
        self.clear()
        self._refused = reason

    def _step_for(self, model: Any, cache: Any, rows: int, length: int) -> _Step:
        """A step with room for a batch; one that was made before, if it is not much too large."""
        wanted = _rounded(rows), -(-(length + _SPARE) // _ROOM) * _ROOM
        # A step with rows that are not needed costs less than capturing another graph
        larger = [key for key in self._steps if rows <= key[0] <= _WASTE * wanted[0] and wanted[1] == key[1]]
        key = min(larger, default=wanted)
        return self._steps.get(key) or self._new_step(key, model, cache)

    def _new_step(self, key: tuple[int, int], model: Any, cache: Any) -> _Step:
        rows, room = key
        shapes = [
            [(rows, held.shape[1], room, held.shape[3]) for held in (layer.keys, layer.values)]
            for layer in cache.layers
        ]
        self._make_room(cache, shapes)
        device = cache.layers[0].keys.device
        column = torch.zeros(1, dtype=torch.long, device=device)
        fixed = DynamicCache(config=model.config)
        fixed.layers = [
            _FixedLayer(_view(keys, of_keys), _view(values, of_values), column)
            for (keys, values), (of_keys, of_values) in zip(self._stores, shapes)
        ]
        ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        visible = torch.zeros(rows, 1, 1, room, dtype=torch.bool, device=device)
        step = _Step(ids, torch.zeros_like(ids), visible, column, fixed)
        self._steps[key] = step
        return step

    def _make_room(self, cache: Any, shapes: list[Any]) -> None:
        """Buffers as large as the largest step; steps of smaller ones are dropped with them."""
        sizes = [(math.prod(of_keys), math.prod(of_values)) for of_keys, of_values in shapes]
        if self._stores and all(
            keys.numel() >= size and values.numel() >= value_size
            for (keys, values), (size, value_size) in zip(self._stores, sizes)
        ):
            return
        self._give_back()
        # A pool of memory is gone with its last graph
        self._steps, self._stores, self._capture = {}, [], None
        for layer, (size, value_size) in zip(cache.layers, sizes):
            # Zeros, since a masked column still counts 0 times what it holds
            self._stores.append((layer.keys.new_zeros(size), layer.values.new_zeros(value_size)))

    def _begin(self, step: _Step, cache: Any, mask: torch.Tensor) -> None:
        """Copy keys and values of a batch to where the step reads them."""
        self._give_back()
        rows, length = mask.shape[0], mask.shape[1] - 1
        for own, fixed in zip(cache.layers, step.cache.layers):
            fixed.keys[:rows, :, :length] = own.keys
            fixed.values[:rows, :, :length] = own.values
            if hasattr(own, "let_go"):
                own.let_go()
        step.visible.zero_()
        step.visible[rows:, ..., 0] = True  # unused rows see one column: attention to none is not a number
        step.visible[:rows, 0, 0, : length + 1] = mask != 0
        self._held, self._columns, self._current = cache, length, step

    def _give_back(self) -> None:
        """The cache that is in the buffers gets a copy of its own: the next batch will overwrite them."""
        held, self._held = self._held, None
        for layer in held.layers if held is not None else ():
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()


def _is_step(inputs: dict[str, Any], cache: Any, name: str) -> bool:
    """Whether the arguments of a forward pass are one more token for each row of a cache, and nothing else."""
    tensors = {"input_ids", "attention_mask", "position_ids"}
    ids, mask, positions = (inputs.get(one) for one in ("input_ids", "attention_mask", "position_ids"))
    if torch.is_grad_enabled() or ids is None or mask is None or positions is None or cache is None:
        return False
    others = {
        key: value
        for key, value in inputs.items()
        if key not in {*tensors, name} and value is not None and value is not False
    }
    return (
        ids.shape[1:] == (1,)
        and positions.shape == ids.shape
        and mask.shape == (len(ids), cache.get_seq_length() + 1)
        and len(cache.layers[0].keys) == len(ids)
        and all(key in _KNOWN and value in _KNOWN[key] for key, value in others.items())
        and bool(others.get("use_cache"))
    )


def _forward(model: Any, plain: Callable[..., Any], step: _Step) -> torch.Tensor:
    """Logits of a step, shape `(R, 1, vocabulary)`."""
    mask: Any = step.visible
    if attention_implementation(model) == "eager":  # adds its mask
        dtype = step.cache.layers[0].keys.dtype
        mask = torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
    step.output = plain(
        input_ids=step.ids,
        attention_mask=mask,
        position_ids=step.positions,
        use_cache=True,
        **{cache_argument(model): step.cache},
    )
    return step.output.logits


def _show(cache: Any, fixed: Any, rows: int, columns: int) -> None:
    """Let a cache show the part of the buffers that is its own."""
    own: Any
    held: Any
    for own, held in zip(cache.layers, fixed.layers):
        own.keys, own.values = held.keys[:rows, :, :columns], held.values[:rows, :, :columns]


def _tolerance(logits: torch.Tensor) -> float:
    """How far two orders of summation may lie apart, as a share of the largest logit."""
    share = 1e-3 if logits.dtype == torch.float32 else 0.1
    return float(share * logits.float().abs().max().clamp(min=1.0))


def _view(store: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return store[: math.prod(shape)].view(shape)


def _rounded(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: a graph is captured for few numbers of rows."""
    power = 1 << max(rows - 1, 0).bit_length()
    return 3 * power // 4 if power >= 4 and rows <= 3 * power // 4 else power
