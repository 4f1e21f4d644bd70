"""Exact match over the objectives of a task, as a metric of the `evaluate` library. Its own file, since `evaluate.load` takes a file."""

from __future__ import annotations

# `evaluate.load` takes the first metric that it finds in a file, so that the class below it may not be imported by its name
from mem1_trl.evaluate_metrics import means
from mem1_trl.rewards import exact_match


class ExactMatch(means.OverObjectives):
    """
    Number of objectives answered exactly, see [`mem1_trl.rewards.exact_match`].

    Takes `predictions`, a list of answers, and `references`, the accepted answers to the objectives of each task.
    """

    key = "exact_match"
    meaning = "Number of objectives answered exactly, position by position, after normalisation; 0 unless each objective has one answer."
    score = staticmethod(exact_match)
