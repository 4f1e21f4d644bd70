"""
Log episodes to the trackers of a run: a table of turns, and in trackio each episode as a trace.

TRL logs the numbers; this logs contexts, completions and observations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..display import print_trajectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from ..trajectory import Trajectory


def turn_rows(
    trajectories: Sequence[Trajectory], step: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """
    Episodes as a table with one row for each turn.

    Args:
        trajectories (`Sequence[Trajectory]`):
            The episodes.
        step (`int`):
            Optimizer step they were played at.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the task prompts.

    Returns:
        `list[dict]`: `step`, `episode` and `turn` (counted from 0), `prompt` (of the task), `context_tokens` and
        `generated_tokens` of the turn, `text` as generated, its `state`, `action` and `action_input`, the `observation`, and
        of the episode `reward`, `stop_reason` and `answer`.
    """
    return [
        {
            "step": step,
            "episode": episode,
            "turn": number,
            "prompt": str(tokenizer.decode(list(trajectory.prompt_ids))),
            "context_tokens": len(turn.prompt_ids),
            "generated_tokens": len(turn.completion_ids),
            "text": turn.text,
            "state": turn.state or "",
            "action": turn.action or "",
            "action_input": turn.action_input or "",
            "observation": turn.observation or "",
            "reward": trajectory.reward,
            "stop_reason": str(trajectory.stop_reason),
            "answer": trajectory.answer or "",
        }
        for episode, trajectory in enumerate(trajectories)
        for number, turn in enumerate(trajectory.turns)
    ]


def evenly_spaced(trajectories: Sequence[Trajectory], count: int | None) -> list[Trajectory]:
    """At most `count` episodes, evenly spread; all for `None`. No random number is drawn, which would change the run."""
    if count is None or count >= len(trajectories):
        return list(trajectories)
    return [trajectories[index * len(trajectories) // count] for index in range(max(count, 0))]


def print_trajectories(
    trajectories: Sequence[Trajectory], title: str, tokenizer: PreTrainedTokenizerBase, console: Console | None = None
) -> None:
    """Print episodes turn by turn under a rule with a title."""
    console = console or Console()
    for number, trajectory in enumerate(trajectories, start=1):
        console.rule(Text(f"{title} · episode {number} of {len(trajectories)}"), style="bold")
        print_trajectory(trajectory, tokenizer, console)


def log_trajectories(
    trajectories: Sequence[Trajectory],
    step: int,
    report_to: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    name: str = "trajectories",
    sample: Sequence[Trajectory] | None = None,
    writer: Any = None,
) -> None:
    """
    Log episodes to the trackers that can hold them: wandb and trackio get a table of all turns, trackio further a trace of each
    episode of the sample, TensorBoard the sample as text.

    Args:
        trajectories (`Sequence[Trajectory]`):
            The episodes.
        step (`int`):
            Optimizer step they were played at.
        report_to (`Sequence[str]`):
            Names of trackers, as in [`~transformers.TrainingArguments`]; those that hold no text are passed over.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the task prompts.
        name (`str`, *optional*, defaults to `"trajectories"`):
            Name of the table.
        sample (`Sequence[Trajectory]`, *optional*):
            Episodes for traces and text. `None` takes all.
        writer (`SummaryWriter`, *optional*):
            TensorBoard's; without it nothing goes there.
    """
    sample = trajectories if sample is None else sample
    # None at all where no environment could begin its episode
    rows = turn_rows(trajectories, step, tokenizer) if {"wandb", "trackio"} & {*report_to} else []
    if "wandb" in report_to and rows:
        import wandb

        if wandb.run is not None:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            wandb.log({name: table})
    if "trackio" in report_to and rows:
        import pandas
        import trackio

        traces = [_trace(trackio, trajectory, step, tokenizer) for trajectory in sample]
        trackio.log({name: trackio.Table(dataframe=pandas.DataFrame(rows)), f"{name}_traces": traces})
    if "tensorboard" in report_to and writer is not None:
        writer.add_text(name, "\n\n---\n\n".join(_markdown(t, tokenizer) for t in sample), step)
        writer.flush()


def _trace(trackio: Any, trajectory: Trajectory, step: int, tokenizer: PreTrainedTokenizerBase) -> Any:
    """An episode as a trace of trackio: the task, then completions and observations in turn."""
    messages = [{"role": "user", "content": str(tokenizer.decode(list(trajectory.prompt_ids)))}]
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation is not None:
            messages.append({"role": "tool", "name": turn.action or "", "content": turn.observation})
    metadata = {
        "step": step,
        "reward": trajectory.reward,
        "stop_reason": str(trajectory.stop_reason),
        "answer": trajectory.answer,
        "context_tokens": [len(turn.prompt_ids) for turn in trajectory.turns],
    }
    return trackio.Trace(messages=messages, metadata=metadata)


def _markdown(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> str:
    """An episode as TensorBoard shows text: what is indented by four spaces stays as it is."""
    reward = "not scored" if trajectory.reward is None else f"{trajectory.reward:g}"
    parts = [
        f"**reward {reward}**, ended by {trajectory.stop_reason}",
        _verbatim(str(tokenizer.decode(list(trajectory.prompt_ids)))),
    ]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts.append(f"turn {number} read {len(turn.prompt_ids)} tokens and wrote {len(turn.completion_ids)}")
        parts.append(_verbatim(turn.text + ("" if turn.observation is None else f"\n{turn.observation}")))
    return "\n\n".join(parts)


def _verbatim(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
