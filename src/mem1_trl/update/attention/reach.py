"""How far back an attention layer sees, counted along the path of a token."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from ...model_traits import layer_windows


class Reach(NamedTuple):
    """
    The keys that a query sees of its path: of the last `window` tokens, itself included, those in the same stretch of `chunk`.

    Attributes:
        window (`int` or `None`): Tokens of a sliding window; `None` if there is none.
        chunk (`int` or `None`): Tokens of a chunk, counted from the root; `None` if there is none.
    """

    window: int | None = None
    chunk: int | None = None

    def first(self, depth: int) -> int:
        """The depth of the first token that a token at a depth sees."""
        first = 0 if self.window is None else max(0, depth - self.window + 1)
        return first if self.chunk is None else max(first, depth // self.chunk * self.chunk)

    def holds(self, length: int) -> bool:
        """Whether a path of `length` tokens lies inside, so that it limits nothing."""
        return length <= min(self.window or length, self.chunk or length)


FULL = Reach()


def reach_of(module: Any, kwargs: dict[str, Any]) -> Reach:
    """
    The reach of an attention layer, when it calls transformers' attention.

    Nearly all layers hand their window down, since flash attention needs it. Where one does not, its type in the configuration
    says what its mask would have been.

    Args:
        module (`torch.nn.Module`):
            The layer.
        kwargs (`dict`):
            The keyword arguments of its call.
    """
    config = getattr(module, "config", None)
    if "sliding_window" in kwargs:
        return Reach(window=kwargs["sliding_window"])
    if config is None:
        return FULL
    types = getattr(config, "layer_types", None)
    kind = types[module.layer_idx] if types and getattr(module, "layer_idx", None) is not None else ""
    size = layer_windows(config).get(kind) or None
    return Reach(chunk=size) if kind == "chunked_attention" else Reach(window=size)


def reaches_by_configuration(config: Any, longest: int) -> Counter[Reach]:
    """
    How many layers of limited reach a model must call, by its configuration; windows that hold `longest` tokens are left out.

    A model whose layers call transformers' attention otherwise does not follow its own configuration in a tree.
    """
    expected: Counter[Reach] = Counter()
    types = getattr(config, "layer_types", None) or ()
    for kind, size in layer_windows(config).items():
        reach = Reach(chunk=size) if kind == "chunked_attention" else Reach(window=size)
        if size and not reach.holds(longest):
            expected[reach] = types.count(kind) if kind else 1
    return expected
