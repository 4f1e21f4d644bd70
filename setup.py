"""The description on the package page; everything else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?://)([^)]+)\)")


def package_page(readme: str) -> str:
    """
    The README as the package page shows it, where no file lies beside it: a link or picture becomes the name of its file.

    Example: `[faults](docs/faults.md)` becomes "faults (`docs/faults.md`)", and `[docs/faults.md](docs/faults.md)` its name alone.
    """

    def name(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if picture:
            return f"(Picture: {text}, `{path}`.)"
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return _LINK.sub(name, readme)


if __name__ == "__main__":
    setup(
        long_description=package_page((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
