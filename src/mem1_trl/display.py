"""Prints an episode turn by turn: the context, the completion, the observation, and the number of tokens forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from .printable import printable

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

    For each turn, it shows how many tokens the turn read and wrote, how many of earlier turns it kept and forgot, the text that
    it wrote and the answer of the environment. Control characters are written out (`\\x1b`), so that no text moves the cursor.

    Args:
        trajectory ([`Trajectory`]):
            The episode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Decodes the task prompt.
        console ([`~rich.console.Console`], *optional*):
            Console to print to; `None` means standard output.
        prompt (`str`, *optional*):
            The task prompt as text, if there is no tokenizer. Without either, only its length is shown.
    """
    console = console or Console()
    if tokenizer is not None:
        prompt = str(tokenizer.decode(list(trajectory.prompt_ids)))
    elif prompt is None:
        prompt = f"{len(trajectory.prompt_ids)} tokens"
    console.print(Panel(Text(printable(prompt.strip())), title="task prompt, kept in every turn", title_align="left"))
    produced = 0  # tokens of all past turns, kept or not
    start = len(trajectory.prompt_ids)
    for number, turn in enumerate(trajectory.turns, start=1):
        kept = len(turn.prompt_ids) - start
        reads = f"turn {number} · reads {len(turn.prompt_ids)} tokens: prompt {start}"
        if number > 1:
            reads += f" + kept {kept}, forgotten {produced - kept}"
        body = Text(printable(turn.text.strip()), style="bold")
        if turn.observation is not None:
            body.append("\n" + printable(turn.observation.strip()), style="not bold dim")
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
    answer = "no answer" if trajectory.answer is None else f"answer: {printable(trajectory.answer)}"
    console.print(f"[bold]{escape(answer)}[/bold] · ended by {trajectory.stop_reason}{reward}")
