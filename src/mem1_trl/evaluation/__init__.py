"""Plays an agent over a data set, or over tasks of more and more objectives, and measures answers and costs."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .comparison import Comparison as Comparison
    from .comparison import compare as compare
    from .controls import ScalarControl as ScalarControl
    from .controls import search_scalar_control as search_scalar_control
    from .evaluate import evaluate_agent as evaluate_agent
    from .memory import measure_memory as measure_memory
    from .objectives import PAPER_OBJECTIVES as PAPER_OBJECTIVES
    from .objectives import evaluate_objectives as evaluate_objectives
    from .objectives import paper_max_turns as paper_max_turns
    from .reference import reference_metrics as reference_metrics
    from .result import EvaluatedTask as EvaluatedTask
    from .result import Evaluation as Evaluation

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Comparison": "comparison",
        "Evaluation": "result",
        "EvaluatedTask": "result",
        "PAPER_OBJECTIVES": "objectives",
        "ScalarControl": "controls",
        "compare": "comparison",
        "evaluate_agent": "evaluate",
        "evaluate_objectives": "objectives",
        "measure_memory": "memory",
        "paper_max_turns": "objectives",
        "reference_metrics": "reference",
        "search_scalar_control": "controls",
    },
)
