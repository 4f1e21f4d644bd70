"""F1 over the objectives of a task, as a metric of the `evaluate` library. Its own file, since `evaluate.load` takes a file."""

from __future__ import annotations

# `evaluate.load` takes the first metric that it finds in a file, so that the class below it may not be imported by its name
from mem1_trl.evaluate_metrics import means
from mem1_trl.rewards import f1


class F1(means.OverObjectives):
    """
    F1 over sets of words, summed over objectives, see [`mem1_trl.rewards.f1`].

    Takes `predictions`, a list of answers, and `references`, the accepted answers to the objectives of each task.
    """

    key = "f1"
    meaning = "F1 over the sets of normalised words, best alias per objective, summed over objectives; 0 unless each objective has one answer."
    score = staticmethod(f1)
