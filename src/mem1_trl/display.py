"""Shows an episode to a person: turn by turn, what the agent read, what it wrote, and what it then forgot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .trajectory import Trajectory


def print_trajectory(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase | None = None,
    console: Console | None = None,
    prompt: str | None = None,
) -> None:
    """
    Print an episode turn by turn.

    Each turn shows how many tokens it read and wrote, the text it wrote and what the environment answered. Below it stands
    what is kept for the next turn and what is dropped for good, in tokens.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Decodes the task prompt.
        console ([`~rich.console.Console`], *optional*):
            Where to print; `None` is standard output.
        prompt (`str`, *optional*):
            The task prompt as text, where there is no tokenizer. Without either, only its length is shown.
    """
    console = console or Console()
    if tokenizer is not None:
        prompt = str(tokenizer.decode(list(trajectory.prompt_ids)))
    elif prompt is None:
        prompt = f"{len(trajectory.prompt_ids)} tokens"
    console.print(Panel(Text(prompt.strip()), title="task prompt, kept in every turn", title_align="left"))
    produced = 0  # tokens of past turns, had they all been kept
    start = len(trajectory.prompt_ids)
    for number, turn in enumerate(trajectory.turns, start=1):
        kept = len(turn.prompt_ids) - start
        reads = f"turn {number} · reads {len(turn.prompt_ids)} tokens: prompt {start}"
        if number > 1:
            reads += f" + kept {kept}, forgotten {produced - kept}"
        body = Text(turn.text.strip(), style="bold")
        if turn.observation is not None:
            body.append("\n" + turn.observation.strip(), style="not bold dim")
        console.print(
            Panel(
                body,
                title=escape(reads),
                title_align="left",
                subtitle=f"writes {len(turn.completion_ids)}",
                subtitle_align="right",
                border_style="cyan",
            )
        )
        produced += len(turn.completion_ids) + turn.observation_tokens
    reward = "" if trajectory.reward is None else f" · reward {trajectory.reward:g}"
    answer = "no answer" if trajectory.answer is None else f"answer: {trajectory.answer}"
    console.print(f"[bold]{escape(answer)}[/bold] · ended by {trajectory.stop_reason}{reward}")
