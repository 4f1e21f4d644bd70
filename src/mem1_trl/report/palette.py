"""Colours of the report, the same in every plot and on the page. Safe for colour-blind readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Okabe and Ito, "Color Universal Design" (2008), without the yellow and the black, which vanish on one of the backgrounds
_AGENTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":", "-.")

PARTS = {
    "prompt": "#8A8F98",
    "state": "#0072B2",
    "action": "#E69F00",
    "observation": "#009E73",
    "other": "#CC79A7",
    "generated": "#D55E00",
}
"""Part of a turn -> colour. `other` is context that is not from the agent's past, `generated` is the text that the turn writes."""

OUTCOMES = {
    "correct": "#009E73",
    "misreported": "#E69F00",
    "forgotten": "#D55E00",
    "never_found": "#8A8F98",
    "episode_failed": "#56B4E9",
}
"""Outcome of an objective -> colour, best first."""

FAILED = "episode_failed"
"""The outcome of the objectives of an episode whose environment failed. It is not among the `failures` of an evaluation."""


def agent_style(agent: str, agents: Sequence[str]) -> dict[str, str]:
    """
    Colour, marker and line of an agent. No two of the first 24 agents share all three, so that colour is not the only difference.

    Args:
        agent (`str`):
            One of `agents`.
        agents (`Sequence[str]`):
            All agents of the report, in a fixed order.

    Returns:
        `dict[str, str]`: `color`, `marker` and `linestyle`, in matplotlib's format.
    """
    place = list(agents).index(agent)
    return {
        "color": _AGENTS[place % len(_AGENTS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place // len(_AGENTS) % len(_LINES)],
    }
