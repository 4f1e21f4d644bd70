"""`mem1 trajectories FILE.jsonl`, `mem1 trajectories DIR` or `mem1 trajectories REPO_ID`"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..json_lines import read_json_lines
from ..printable import one_line
from .options import CommandError, Parser

OUTCOMES = ("right", "partly", "wrong", "error", "unscored")


def run(args: Sequence[str]) -> None:
    """Print episodes of a file."""
    parser = Parser(
        prog="mem1 trajectories",
        description="Print episodes turn by turn: what the agent read, what it wrote, and what it then forgot.",
    )
    parser.add_argument(
        "source",
        metavar="FILE.jsonl|DIR|ID",
        help="episodes, one on a line, as `mem1 eval` writes them; a folder with one such file, also in subdirectories; or the id of a data "
        "set of them on the Hub",
    )
    parser.add_argument("--split", default="train", help="part of a data set on the Hub (default: %(default)s)")
    parser.add_argument("--index", type=int, nargs="+", metavar="N", help="only the episodes of these tasks")
    parser.add_argument("--outcome", choices=OUTCOMES, help="only episodes that went so")
    parser.add_argument(
        "--limit", type=int, default=3, help="most episodes to print; 0 prints all (default: %(default)s)"
    )
    parser.add_argument(
        "--tokenizer", help="path or id of the tokenizer, for a file that does not hold its task prompts as text"
    )
    options = parser.parse_args(args)
    if options.limit < 0:
        raise CommandError(f"--limit is {options.limit}: use 0 to print all episodes")

    from ..hub.trajectories import trajectory_file

    try:
        file = trajectory_file(_only_file(options.source), options.split)
    except (FileNotFoundError, ValueError) as error:
        text = str(error)
        raise CommandError(text[:1].lower() + text[1:]) from None

    from rich.console import Console
    from rich.text import Text

    from ..display import print_trajectory
    from ..report.browser import index_of, outcome_of

    tokenizer = None
    if options.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    console = Console()
    found = printed = 0
    unscored: list[float | None] = []  # the rewards of episodes that cannot be told to have gone so
    for position, record in enumerate(_records(file)):
        index = index_of(record, position)
        if options.index is not None and index not in options.index:
            continue
        outcome = outcome_of(record)
        if options.outcome is not None and outcome != options.outcome:
            unscored += [record["trajectory"].reward] if outcome == "unscored" else []
            continue
        found += 1
        if options.limit and printed == options.limit:
            continue
        printed += 1
        sample = f", sample {one_line(record['sample'])}" if record.get("sample") else ""
        console.rule(Text(f"episode {one_line(index)}{sample} · {outcome}"), style="dim")
        trajectory = record["trajectory"]
        failure = record.get("error") or trajectory.error
        if failure:
            console.print(Text(f"failed: {one_line(failure)}"), style="red")
        if trajectory.turns:
            prompt = record.get("prompt_text") or record.get("prompt")
            print_trajectory(trajectory, tokenizer, console, prompt=prompt if isinstance(prompt, str) else None)
        else:
            console.print("no turn was played", style="dim")
    if not found:
        raise CommandError(f"no episode of {options.source!r} is what you asked for{_why_unscored(unscored)}")
    if printed < found:
        console.print(f"{printed} of {found} episodes; --limit 0 prints all.", style="dim")


def _only_file(source: str) -> str | Path:
    """The one file of a folder; what is no folder is left as it is."""
    if not Path(source).is_dir():
        return source
    files = sorted(Path(source).rglob("*.jsonl"))
    if len(files) == 1:
        return files[0]
    if not files:
        raise CommandError(f"{source!r} holds no .jsonl file of episodes: pass the folder of an evaluation, or a file")
    shown = ", ".join(str(file.relative_to(source)) for file in files[:6]) + (", ..." if len(files) > 6 else "")
    raise CommandError(f"{source!r} holds {len(files)} files of episodes: pass one of them ({shown})")


def _why_unscored(rewards: Sequence[float | None]) -> str:
    """What `--outcome` could not find, for episodes with these rewards and no scores."""
    if not rewards:
        return ""
    rewarded = sum(reward is not None for reward in rewards)
    held = f"{rewarded} of its episodes have rewards and" if rewarded else f"{len(rewards)} of its episodes have"
    return f": {held} no scores, which an outcome is told by; leave --outcome out, or pass the file of an evaluation"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    from ..report.run_directory import read_episode

    advice = "pass the .jsonl file of an evaluation"

    def said(number: int) -> None:
        print(f"mem1 trajectories: line {number} of {one_line(path)} was cut off and is left out", file=sys.stderr)

    try:
        for number, record in read_json_lines(path, advice, skip_unfinished=True, skipped=said, read=read_episode):
            if record["trajectory"] is None:
                raise CommandError(f"line {number} of {str(path)!r} holds no trajectory: {advice}")
            yield record
    except ValueError as error:
        text = str(error)
        raise CommandError(text[:1].lower() + text[1:]) from None
