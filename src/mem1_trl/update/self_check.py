"""Whether a model computes in a layout what it computes on each turn alone, shown on a toy trajectory."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..model_traits import module_dtype, ordinary_ids
from ..trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from .scoring import TokenFunction

LONGEST_TOY = 2048
LONGEST_TOY_ON_CPU = 512
"""
Most tokens of a context of the toy trajectory, which take a few seconds for a hundred million weights on one core. What depends on
longer contexts shows in the first batch.
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """
    How far numbers of sampled tokens are from those of the plain model.

    Attributes:
        largest (`float`): Largest absolute difference; nats for log-probs.
        mean (`float`): Mean absolute difference.
        failure (`str`, *optional*): What was raised instead of numbers.
    """

    largest: float
    mean: float
    failure: str | None = None

    @classmethod
    def between(cls, values: torch.Tensor, expected: torch.Tensor) -> Gap:
        """The gap of two tensors of the same shape. What is not a number is infinitely far."""
        gap = (values.double() - expected.double()).abs().nan_to_num(torch.inf)
        return cls(float(gap.max()), float(gap.mean()))

    @classmethod
    def of(cls, compute: Callable[[], torch.Tensor], expected: torch.Tensor) -> Gap:
        """The gap of what a function returns; infinite if it raises. Memory that runs out is raised."""
        try:
            return cls.between(compute(), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # models fail in many ways on inputs that they were not written for
            return cls(torch.inf, torch.inf, f"{type(problem).__name__}: {problem}".splitlines()[0][:200])

    def within(self, tolerance: Tolerance) -> bool:
        """Whether this is rounding."""
        return self.largest <= tolerance.largest and self.mean <= tolerance.mean

    def __str__(self) -> str:
        return f"failed ({self.failure})" if self.failure else f"is off by {self.largest:.2g} nat"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What still counts as rounding, in nats: of the token that is furthest off, and on average."""

    largest: float
    mean: float


HALF_PRECISION = Tolerance(torch.inf, 0.3)


def tolerance_of(model: Any) -> Tolerance:
    """
    What still counts as rounding for a model in its data type.

    In float32 two ways to compute a log-prob differ by 1e-6 to 1e-4 nats, in half precision by up to a few tenths for an
    unlikely token; a context that is not the right one is off by 0.1 to several nats on average.
    """
    if is_single_precision(model):
        return Tolerance(2e-2, 2e-2) if uses_tf32() else Tolerance(2e-3, 2e-3)
    return HALF_PRECISION


def uses_tf32() -> bool:
    """Whether a GPU rounds the factors of float32 products to TF32, by whichever of PyTorch's settings."""
    if not torch.cuda.is_available():
        return False
    # PyTorch 2.9 has a setting for each backend, and raises where the old one is asked for after the new one was set
    own = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return own == "tf32" if own is not None else torch.get_float32_matmul_precision() != "highest"


def is_single_precision(model: Any) -> bool:
    """Whether a model computes in float32 or better, from weights of that precision."""
    quantized = getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None
    return not quantized and module_dtype(model) in (torch.float32, torch.float64)


def toy_trajectories(model: PreTrainedModel, longest: int | None, seed: int = 0) -> list[Trajectory]:
    """
    Two trajectories with a common beginning whose contexts are of very different lengths.

    The first has three turns and a state that shrinks: a context of a quarter of `longest`, one that reaches it, and one that
    is hardly longer than the prompt. The second is short, so that it is padded beside the first.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, whose ordinary tokens they are made of.
        longest (`int` or `None`):
            Most tokens of a context and its completion in the run; the toy has 2,048 (512 on a CPU) at most, and for `None`.
        seed (`int`, *optional*, defaults to `0`):
            Of the random tokens.
    """
    ids = ordinary_ids(model)
    generator = random.Random(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(generator.choice(ids) for _ in range(max(count, 1)))

    most = LONGEST_TOY_ON_CPU if model.device.type == "cpu" else LONGEST_TOY
    longest = min(longest or most, most)
    prompt = draw(longest // 4 - 8)
    state, smaller = draw(min(12, longest // 4)), draw(min(6, longest // 8))
    far = draw(longest - len(prompt) - len(state) - len(smaller))
    first = Trajectory(
        turns=[
            Turn(prompt_ids=prompt, completion_ids=state),
            Turn(prompt_ids=prompt + state + far, completion_ids=smaller),
            Turn(prompt_ids=prompt + smaller + draw(3), completion_ids=draw(3)),
        ]
    )
    common, brief = prompt[: len(prompt) // 2 + 1], draw(4)
    second = Trajectory(
        turns=[
            Turn(prompt_ids=common, completion_ids=brief),
            Turn(prompt_ids=common + brief + draw(2), completion_ids=draw(3)),
        ]
    )
    return [first, second]


def plain_values(function: TokenFunction, turns: Sequence[Turn], device: Any) -> torch.Tensor:
    """
    What a function of a model gives for the sampled tokens of turns, each turn alone: no padding, no mask, no positions.

    Returns:
        `torch.Tensor`: Shape `(sampled tokens,)`, in the order of the turns.
    """
    values = []
    for turn in turns:
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]], device=device)
        labels = ids.clone()
        labels[:, : len(turn.prompt_ids)] = -100
        (found, *_) = function({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
        assert found is not None
        values.append(found[0, len(turn.prompt_ids) - 1 :].float())
    return torch.cat(values)


def exact_layout(
    name: str, wanted: str, tolerance: Tolerance, gap_of: Callable[[str], Gap]
) -> tuple[str, dict[str, Gap]]:
    """
    The layout to use: the wanted one if it is exact, else `"per_turn"`.

    In half precision a layout may also be as far off as `"per_turn"` is, which differs from the plain model by its padding
    only.

    Args:
        name (`str`):
            Of the model, for messages.
        wanted (`str`):
            `"packed"` or `"per_turn"`.
        tolerance ([`Tolerance`]):
            What counts as rounding.
        gap_of (`Callable[[str], Gap]`):
            Measures a layout.

    Returns:
        `tuple[str, dict[str, Gap]]`: The layout, and what was measured on the way.

    Raises:
        `ValueError`: If `"per_turn"` is not exact either.
    """
    gaps = {wanted: gap_of(wanted)}
    if gaps[wanted].within(tolerance):
        return wanted, gaps
    if wanted != "per_turn":
        gaps["per_turn"] = gap_of("per_turn")
        if gaps["per_turn"].within(tolerance):
            return "per_turn", gaps
    if tolerance.largest == torch.inf and gaps["per_turn"].failure is None:
        noise = Tolerance(torch.inf, 3 * gaps["per_turn"].mean)
        return (wanted if gaps[wanted].within(noise) else "per_turn"), gaps
    found = ", ".join(f"{layout!r} {gap}" for layout, gap in gaps.items())
    raise ValueError(
        f"A layout must score the tokens of {name} as the model does on each context alone, but on a toy trajectory {found}. "
        "What can be the cause: positions that depend on the length of the batch, padding that the model does not mask, dropout, "
        "a head that is more than a matrix, or a cap on the logits, which TRL's head may leave out. `check='off'` trains anyway."
    )
