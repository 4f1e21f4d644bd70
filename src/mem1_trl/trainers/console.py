"""One line for each step of a run, with what matters."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..hub.logged_evaluations import logged_evaluations

_STEP = (
    ("reward", "reward", ".3f"),
    ("episode/turns", "turns", ".1f"),
    ("episode/peak_tokens", "peak tokens", ",.0f"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("value/explained_variance", "critic", ".2f"),
    ("environment/error_rate", "errors", ".2f"),
)
"""Key in the log, its name in the line, and its form; a key that was not logged is left out."""

_EVALUATION = (
    ("reward", "reward", ".3f"),
    ("exact_match_per_objective", "EM per objective", ".3f"),
    ("turns", "turns", ".1f"),
    ("peak_tokens", "peak tokens", ",.0f"),
)

_ONLY_IF_ANY = ("environment/error_rate",)


class StepLines(TrainerCallback):
    """
    Prints one line for each log entry: the step, the numbers that matter, and the time that is left.

    All other numbers are in `trainer_state.json` and in the trackers of `report_to`.

    Args:
        write (`Callable[[str], None]`, *optional*):
            Takes each line. `None` prints it.

    Example:

    ```python
    >>> trainer = Mem1GRPOTrainer(..., callbacks=[StepLines()])  # doctest: +SKIP
    >>> trainer.remove_callback(PrinterCallback)  # of transformers, which prints every number (with `disable_tqdm=True`)
    >>> trainer.train()
    step 1/60: reward 0.070  turns 2.0  peak tokens 61  entropy 1.843 (0.9 s, 53 s left)
    ```
    """

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self.write = write or (lambda line: print(line, flush=True))
        self._began = self._first = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.monotonic(), state.global_step
        if state.is_world_process_zero and state.global_step:
            if state.global_step < state.max_steps:
                self.write(f"goes on after step {state.global_step} of {state.max_steps}")
            else:
                self.write(f"is finished: step {state.global_step} of {state.max_steps}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        for one in logged_evaluations([logs]):
            shown = _words(one.metrics, _EVALUATION)
            if shown:  # a metric of another kind may have a name that begins with `eval_`
                on = f" on {one.data}" if one.data else ""
                self.write(f"evaluation after step {state.global_step}{on}: {shown}")
        if "reward" in logs:
            done = state.global_step - self._first
            seconds = (time.monotonic() - self._began) / max(1, done)  # evaluations and checkpoints included
            left = (
                f", {_duration(seconds * (state.max_steps - state.global_step))} left"
                if state.global_step < state.max_steps
                else ""
            )
            self.write(
                f"step {state.global_step}/{state.max_steps}: {_words(logs, _STEP)} ({logs.get('step_time', seconds):.1f} s{left})"
            )


def _words(logs: dict[str, float], shown: Any) -> str:
    return "  ".join(
        f"{name} {logs[key]:{form}}"
        for key, name, form in shown
        if isinstance(logs.get(key), int | float) and (logs[key] or key not in _ONLY_IF_ANY)
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
