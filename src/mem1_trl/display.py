"""Prints an episode turn by turn: the context, the completion, the observation, and the number of tokens forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from .printable import printable
from .turn_usage import turn_usage

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

    For each turn, it shows how many tokens the turn read and wrote, how many of earlier turns it kept and forgot, how many came from
    elsewhere (such as an external memory), the text that it wrote and the answer of the environment. Control characters are written out (`\\x1b`), so that no text moves the cursor.

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
    for number, (turn, usage) in enumerate(zip(trajectory.turns, turn_usage(trajectory)), start=1):
        reads = f"turn {number} · reads {usage.context} tokens: prompt {usage.prompt}"
        if number > 1:
            added = f" + {usage.other} from elsewhere" if usage.other else ""
            kept = usage.state + usage.action + usage.observation
            reads += f" + kept {kept}{added}, forgotten {usage.dropped_tokens}"
        body = Text(printable(turn.text.strip()), style="bold")
        if turn.observation is not None:
            body.append("\n" + printable(turn.observation.strip()), style="not bold dim")
        console.print(
            Panel(
                body,
                title=Text(reads),
                title_align="left",
                subtitle=f"writes {len(turn.completion_ids)}",
                subtitle_align="right",
                border_style="cyan",
            )
        )
    reward = "" if trajectory.reward is None else f" · reward {trajectory.reward:g}"
    answer = "no answer" if trajectory.answer is None else f"answer: {printable(trajectory.answer)}"
    # A `Text`, since rich makes emojis of codes such as `:x:` in plain strings
    console.print(Text.assemble((answer, "bold"), f" · ended by {trajectory.stop_reason}{reward}"))
