"""
Exact match and F1 of the paper as metrics of the `evaluate` library, which can be combined with other metrics.

They do not need a network: `ExactMatch()` is a metric, and so is `evaluate.load(EXACT_MATCH_PATH)`.

Example:

```python
>>> import evaluate
>>> from mem1_trl.evaluate_metrics import F1, ExactMatch

>>> scores = evaluate.combine([ExactMatch(), F1()])
>>> scores.compute(predictions=["Paris; 25"], references=[[["Paris"], ["26", "twenty-six"]]])
{'exact_match': 1.0, 'exact_match_per_objective': 0.5, 'f1': 1.0, 'f1_per_objective': 0.5}
```
"""

from pathlib import Path

from .exact_match import ExactMatch
from .f1 import F1

EXACT_MATCH_PATH = str(Path(__file__).with_name("exact_match.py"))
"""Argument of `evaluate.load` for [`ExactMatch`]."""

F1_PATH = str(Path(__file__).with_name("f1.py"))
"""Argument of `evaluate.load` for [`F1`]."""

__all__ = ["EXACT_MATCH_PATH", "F1", "F1_PATH", "ExactMatch"]
