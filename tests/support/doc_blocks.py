"""Finds the code blocks, commands and links of Markdown pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")]
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line of the page where the text begins."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """The line that names the block in the tables of the test."""
        return self.text.strip().splitlines()[0].strip()


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    language, start, lines = None, 0, []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if not line.lstrip().startswith("```"):
            lines.append(line)
        elif language is None:
            language, start, lines = line.strip().strip("`"), number + 1, []
        else:
            found.append(Block(page, start, language, "\n".join(lines) + "\n"))
            language = None
    assert language is None, f"{page}: the block in line {start - 1} is not closed"
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block as lists of words, without comments, one for each side of an `&&`."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                commands.append(words)
                words = []
    return commands


def inline_commands_of(page: str) -> list[str]:
    """Commands in the running text of a page, such as `mem1 index`."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"`((?:python|mem1) [^`]+)`", text)


def links_of(page: str) -> list[Path]:
    """Files of the repository that a page links to or shows."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [((ROOT / page).parent / t).resolve() for t in targets if t and not t.startswith(("http://", "https://"))]
