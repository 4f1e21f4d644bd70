"""`mem1 chat --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..printable import printable
from .conversation_files import ConversationFiles, check_conversation_file
from .conversation_options import ConversationArguments
from .options import CommandError, ConfigParser

if TYPE_CHECKING:
    from ..agent import Mem1Agent
    from ..agent.episode import AgentEpisode

COMMANDS = {
    "/memory": "what the agent will know at the next message; with a text after it, put that in its place",
    "/turns": "the turns of the last answer, whole",
    "/cost": "tokens and seconds so far",
    "/save": "write the conversation to a file, which must be new or hold this conversation",
    "/load": "go on with a conversation from a file, and write it there after each answer",
    "/new": "begin another conversation; if this one has a file, in a new file beside it",
    "/help": "this list",
    "/quit": "end, as Ctrl-D does",
}


@dataclass
class ChatArguments(ConversationArguments):
    """
    Arguments of `mem1 chat`: those of [`ConversationArguments`], and:

    Parameters:
        conversation (`str`, *optional*):
            File of the conversation: it goes on there if it exists, and it is written after each answer.
        show_state (`bool`, *optional*, defaults to `False`):
            Whether to print the state after each answer.
    """

    conversation: str | None = field(
        default=None,
        metadata={
            "help": "File of the conversation: it goes on there if it exists, and it is written after each answer."
        },
    )
    show_state: bool = field(default=False, metadata={"help": "Whether to print the state after each answer."})


def run(args: Sequence[str]) -> None:
    """Talk with an agent until the end of the input."""
    parser = ConfigParser(
        ChatArguments,
        prog="mem1 chat",
        usage="mem1 chat --model_name_or_path PATH_OR_ID [OPTIONS] [--config FILE.yaml]",
        description="Talk with an agent in the terminal. Its context stays as short as at the beginning; what it remembers is its "
        "state, which /memory shows. /help lists what else can be typed.",
        epilog="""examples:
  mem1 chat --model_name_or_path runs/quickstart/model --corpus facts --conversation chat.json
  mem1 chat --model_name_or_path runs/shop --environment my_shop.ShopEnvironment
""",
    )
    options = parser.read(args)
    if options.conversation is not None:
        check_conversation_file(options.conversation, "conversation")
    agent, factory = options.open()
    chat = Chat(agent, factory, options.conversation, options.show_state)
    try:
        for line in _lines():
            if not chat.take(line):
                break
    finally:
        chat.close()


def _lines() -> Iterator[str]:
    """Lines that are typed, or come from a file."""
    from ..protocol.untrusted import strip_unencodable

    while True:
        try:
            # In an ASCII or UTF-8 locale what is not UTF-8 is read as lone surrogates, which no tokenizer takes
            yield strip_unencodable(input("you> " if sys.stdin.isatty() else ""))
        except EOFError:
            return


class Chat:
    """
    A conversation in the terminal.

    Args:
        agent ([`Mem1Agent`]):
            Answers.
        factory (`Callable`, *optional*):
            Makes what it may use. `None` lets it only answer.
        path (`str`, *optional*):
            File of the conversation, which is written after each answer. `None` writes none until one is loaded.
        show_state (`bool`, *optional*, defaults to `False`):
            Whether to print the state after each answer.
    """

    def __init__(self, agent: Mem1Agent, factory: Any = None, path: str | None = None, show_state: bool = False):
        self.agent = agent
        self.factory = factory
        self.files = ConversationFiles(path)
        self.show_state = show_state
        self.episode: AgentEpisode | None = None
        self._before = 0  # turns before the last message
        if path is not None and Path(path).exists():
            self._load(path)

    def take(self, line: str) -> bool:
        """Do what a line says. Returns whether to go on."""
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        try:
            if word.startswith("/"):
                self._command(word, rest.strip())
            elif line.strip() or (self.episode is not None and not self.episode.done):
                self._say(line.strip())
        except KeyboardInterrupt:
            print("\n(stopped; an empty line lets the agent go on, /new begins again)")
        except (CommandError, ValueError, RuntimeError, OSError) as error:
            print(f"({printable(str(error))})")
        return True

    def close(self) -> None:
        """Let go of the environment."""
        if self.episode is not None:
            self.episode.close()
            self.episode = None

    def _say(self, text: str) -> None:
        from ..agent.answer_stream import AnswerStream

        if self.episode is None:
            self.episode = self.agent.start(text, environment_factory=self.factory)
            self._before = 0
        elif text:
            if not self.episode.done:
                raise RuntimeError("The agent has not answered yet: an empty line lets it go on, /new begins again")
            self._before = len(self.episode.trajectory.turns)
            self.episode.add_message(text)
        self.episode.scored = False  # the reward of training may need a row, which a conversation has none of
        print("agent> ", end="", flush=True)
        stream = AnswerStream(self.agent.protocol, _show)
        while not self.episode.done:
            stream = AnswerStream(self.agent.protocol, _show, self.episode.opened)
            turn = self.episode.step(stream.add)
            if turn.observation is not None and not stream.told:
                _show(f"[{turn.action or 'no action'}: {turn.action_input or ''}] ")
        if self.episode.answer is not None:
            stream.finish(self.episode.answer)
        else:
            reason = self.episode.trajectory.stop_reason
            print(f"(no answer: the turns ended with {reason.value if reason else reason})", end="")
        print()
        if self.show_state:
            self._command("/memory", "")
        self.files.keep(self.episode)

    def _command(self, word: str, rest: str) -> None:
        if word == "/help" or word not in COMMANDS:
            if word not in COMMANDS:
                print(f"(there is no {printable(word)})")
            print("\n".join(f"{name:9}{what}" for name, what in COMMANDS.items()))
        elif word == "/new":
            self._begin()
        elif word == "/load":
            self._load(rest or self.files.path or "chat.json")
        elif self.episode is None:
            print("(nothing was said yet)")
        elif word == "/memory":
            if rest:
                self.episode.memory = rest
            print(f"memory: {printable(self.episode.memory or '(none)')}")
        elif word == "/turns":
            for turn in self.episode.trajectory.turns[self._before :]:
                print(printable(f"{turn.text}{turn.observation or ''}"))
        elif word == "/cost":
            cost = self.episode.cost
            print(
                f"{cost.turns} turns, longest context {cost.peak_tokens} tokens, read {cost.read_tokens}, written "
                f"{cost.generated_tokens}, {cost.seconds:.1f} s"
            )
        elif word == "/save":
            path = rest or self.files.path or "chat.json"
            self.files.save(self.episode, path)
            print(f"(written to {printable(path)})")

    def _begin(self) -> None:
        self.close()
        before = self.files.path
        self.files.begin()
        if self.files.path is not None and self.files.path != before:
            print(
                f"(the next conversation is written to {printable(self.files.path)}; /load {printable(before)} goes on with this one)"
            )

    def _load(self, path: str) -> None:
        loaded = self.agent.load(path, environment_factory=self.factory)
        self.close()
        self.episode, self._before = loaded, len(loaded.trajectory.turns)
        self.files.opened(path)
        print(f"(goes on from {printable(path)}, after {self._before} turns)")


def _show(piece: str) -> None:
    print(printable(piece), end="", flush=True)
