"""Where `mem1 chat` keeps a conversation: a file that holds anything else is never replaced."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..json_text import read_json_object
from ..printable import printable
from .options import CommandError, check_writable

if TYPE_CHECKING:
    from ..agent.episode import AgentEpisode


class ConversationFiles:
    """
    The file of the conversation in progress, and others that it was saved to.

    Args:
        path (`str`, *optional*):
            The file that is written after each answer. `None` writes none.
    """

    def __init__(self, path: str | None = None):
        self.path = path
        self._named = path  # the name that the user gave, which the names of later conversations are made of
        self._own: set[Path] = set()  # files that hold this conversation, which may be written again

    def opened(self, path: str) -> None:
        """The conversation of a file goes on, and is kept there."""
        self.path = self._named = path
        self._own = {Path(path).resolve()}

    def begin(self) -> None:
        """Another conversation begins. It is kept in a file that is not there yet, beside the one that the user named."""
        self._own = set()
        if self._named is not None:
            self.path = _free_name(self._named)

    def keep(self, episode: AgentEpisode) -> None:
        """Write the conversation to its file, after each answer; to another one if that file was not there before, and now is."""
        if self.path is None:
            return
        if self._is_foreign(self.path):
            made, self.path = self.path, _free_name(self._named or self.path)
            print(
                f"({printable(made)} was written by another program: this conversation is in {printable(self.path)})"
            )
        self._write(episode, self.path)

    def save(self, episode: AgentEpisode, path: str) -> None:
        """
        Write the conversation to a file that was asked for.

        Raises:
            `CommandError`: If there is a file that does not hold this conversation.
        """
        check_conversation_file(path)
        if self._is_foreign(path):
            raise CommandError(
                f"{path!r} holds another conversation, which is not replaced: give the name of a file that is not there yet, or go on with "
                f"that conversation by /load {path}"
            )
        self._write(episode, path)

    def _is_foreign(self, path: str) -> bool:
        return Path(path).exists() and Path(path).resolve() not in self._own

    def _write(self, episode: AgentEpisode, path: str) -> None:
        episode.save(path)
        self._own.add(Path(path).resolve())


def check_conversation_file(path: str, named: str = "the file of a conversation") -> None:
    """
    Refuse what no conversation can be written to, before there is one: what is there must be a conversation.

    Args:
        path (`str`):
            The file, which need not be there.
        named (`str`, *optional*, defaults to `"the file of a conversation"`):
            What it is called in errors.

    Raises:
        `CommandError`: If it is a folder, in none, in one that cannot be written, or a file that holds something else.
    """
    file = Path(path)
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"is in {str(file.parent)!r}, which is not a folder"
        raise CommandError(f"{named} must be a file in a folder that is there, but {path!r} {what}")
    check_writable(str(file.parent), f"the place of {named}")
    if file.exists() and not _holds_conversation(file):
        raise CommandError(f"{named} must hold a conversation, or not be there yet, but {path!r} holds something else")


def _holds_conversation(file: Path) -> bool:
    try:
        return "mem1_episode" in read_json_object(file, "")
    except ValueError:
        return False


def _free_name(path: str) -> str:
    """`chat.json` if there is no such file, or else `chat-2.json`, and so on."""
    file = Path(path)
    names = (path if n == 1 else str(file.with_name(f"{file.stem}-{n}{file.suffix}")) for n in count(1))
    return next(name for name in names if not Path(name).exists())
