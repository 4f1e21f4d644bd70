"""
What an episode cost: context, compute, turns, state. Source: MEM1, arXiv 2506.15841, section on metrics.

Keys of [`trajectory_metrics`], all `float`:

| key | meaning |
|---|---|
| `turns` | calls of the model |
| `generated_tokens` | tokens sampled over all turns |
| `peak_tokens` | largest context plus output of any turn, the task prompt included |
| `peak_tokens_without_prompt` | the same without the task prompt, as the paper counts |
| `dependency_length` | attention pairs computed for the generated tokens |
| `state_tokens` | tokens of internal state per turn, averaged over the turns |
| `valid_action_rate` | share of turns that held a complete action, summary turns left out |
| `repeated_actions` | share of those actions that the episode had taken before, word for word |

Keys of [`summary_metrics`], for context rules under which a turn may take the place of earlier ones:

| key | meaning |
|---|---|
| `summaries` | turns that took the place of earlier ones |
| `summary_tokens` | tokens sampled in those turns, in sum |
| `summary_saved_tokens` | tokens by which contexts became shorter, in sum over the summaries; negative if they became longer |
| `summaries_longer` | summaries that are longer than what they replace |
| `summaries_of_one_turn` | summaries of a single turn, as where one observation exceeds the budget |
| `summaries_unfinished` | summaries that were cut at `max_completion_length`, which ends the episode |
| `summary_words_kept` | share of the different words of the replaced observations that the summary holds, averaged over the summaries; missing without any |
"""

from __future__ import annotations

from .trajectory import UNFINISHED_SUMMARY, Trajectory, Turn
from .words import words_of_passage


def peak_tokens(trajectory: Trajectory, include_prompt: bool = True) -> int:
    """
    Peak token usage: the largest `len(prompt_ids) + len(completion_ids)` over the turns.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        include_prompt (`bool`, *optional*, defaults to `True`):
            Whether the task prompt (the context of the first turn) counts. The paper leaves it out.

    Returns:
        `int`: a number of tokens; 0 for an episode that has no turn.
    """
    peak = max((len(turn.prompt_ids) + len(turn.completion_ids) for turn in trajectory.turns), default=0)
    return peak if include_prompt else peak - len(trajectory.prompt_ids)


def dependency_length(trajectory: Trajectory) -> float:
    """
    Dependency length: `sum over turns of (C + l / 2) * l`, with `C` context tokens and `l` generated ones.

    It counts the pairs of a generated token and a token it attends to, so it grows with the compute of the episode.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `float`: a number of token pairs.
    """
    lengths = [(len(turn.prompt_ids), len(turn.completion_ids)) for turn in trajectory.turns]
    return sum((context + generated / 2) * generated for context, generated in lengths)


def turns(trajectory: Trajectory) -> int:
    """Number of calls of the model."""
    return len(trajectory.turns)


def generated_tokens(trajectory: Trajectory) -> int:
    """Number of tokens the model sampled over all turns, in thoughts, actions and answers."""
    return trajectory.num_generated_tokens


def state_tokens(trajectory: Trajectory) -> float:
    """Tokens of internal state per turn, averaged over all turns (a turn without state counts as 0); 0 for an episode that has no turn."""
    return sum(turn.state_tokens for turn in trajectory.turns) / max(len(trajectory.turns), 1)


def valid_action_rate(trajectory: Trajectory) -> float:
    """Share of turns that held a complete action, between 0 and 1; turns that were to be a summary are not counted."""
    acting = [turn for turn in trajectory.turns if turn.acts]
    return sum(turn.action is not None for turn in acting) / max(len(acting), 1)


def repeated_actions(trajectory: Trajectory) -> float:
    """
    Share of the actions, between 0 and 1, that an earlier turn of the episode took word for word; 0 if there is no action.

    Where memory is a state, an agent that does not write what it has looked up looks it up again. In a world with moves, such as a
    shop with pages, the same action may be right twice.
    """
    taken = [(turn.action, turn.action_input) for turn in trajectory.turns if turn.action is not None]
    return 1.0 - len(set(taken)) / len(taken) if taken else 0.0


def trajectory_metrics(trajectory: Trajectory) -> dict[str, float]:
    """
    All numbers of this module about one episode.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `dict[str, float]`: always the same keys, listed at the top of this module.
    """
    return {
        "turns": float(turns(trajectory)),
        "generated_tokens": float(generated_tokens(trajectory)),
        "peak_tokens": float(peak_tokens(trajectory)),
        "peak_tokens_without_prompt": float(peak_tokens(trajectory, include_prompt=False)),
        "dependency_length": dependency_length(trajectory),
        "state_tokens": state_tokens(trajectory),
        "valid_action_rate": valid_action_rate(trajectory),
        "repeated_actions": repeated_actions(trajectory),
    }


def summary_metrics(trajectory: Trajectory) -> dict[str, float]:
    """
    How often the past was replaced by a summary, how long those are, what they save and what they lose.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `dict[str, float]`: listed at the top of this module.
    """
    summaries = [turn for turn in trajectory.turns if turn.replaced_turns is not None]
    kept = [share for turn in summaries if (share := words_kept(trajectory, turn)) is not None]
    return {
        "summaries": float(len(summaries)),
        "summary_tokens": float(sum(len(turn.completion_ids) for turn in summaries)),
        "summary_saved_tokens": float(sum(turn.saved_tokens for turn in summaries)),
        "summaries_longer": float(sum(turn.saved_tokens < 0 for turn in summaries)),
        "summaries_of_one_turn": float(sum(len(turn.replaced_turns or ()) == 1 for turn in summaries)),
        "summaries_unfinished": float(sum(turn.context_action == UNFINISHED_SUMMARY for turn in trajectory.turns)),
        **({"summary_words_kept": sum(kept) / len(kept)} if kept else {}),
    }


def words_kept(trajectory: Trajectory, summary: Turn) -> float | None:
    """
    Share of the different words of the observations that a summary replaces which its turn holds; `None` if they hold none.

    A sign of what was lost, not a proof: the words may stand for something else, and others may say the same.
    """
    observed = [trajectory.turns[index].observation or "" for index in summary.replaced_turns or ()]
    words = {word for text in observed for word in words_of_passage(text)}
    return None if not words else len(words & set(words_of_passage(summary.text))) / len(words)
