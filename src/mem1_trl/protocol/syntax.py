"""The interface of action syntaxes: how tasks, actions and results are written for one tokenizer, and how turns are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .encoding import encode_text
from .parsed_turn import ActionRequest
from .tagged_text import drop_tagged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from ..trajectory import Turn
    from .parsed_turn import ParsedTurn
    from .protocol import Mem1Protocol


class Marks(NamedTuple):
    """Texts that stand for the parts of a turn where it is looked for what becomes of them."""

    task: str = "m1task"
    state: str = "m1state"
    action: str = "m1action"
    result: str = "m1result"


MARKS = Marks()


class OfferedActions(Protocol):
    """The part of [`mem1_trl.environment_runtime.actions.ActionSet`] that a syntax uses."""

    tags: dict[str, str]
    schemas: list[dict[str, Any]]
    answer_method: str | None
    takes_answer: bool

    def arguments(self, method: str, text: str) -> dict[str, Any]: ...

    def typed_arguments(self, method: str, given: Any) -> dict[str, Any]: ...


class ActionSyntax(ABC):
    """
    How actions are written and read with one tokenizer. Made by [`Mem1Protocol.syntax`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the agent.
        protocol ([`Mem1Protocol`]):
            Tags and templates.
        chat_template_kwargs (`Mapping`, *optional*):
            Further arguments of the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    # Tasks

    @abstractmethod
    def as_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
        """The task prompt in the form that this syntax takes: a text stays one, or becomes a message of the user."""

    @abstractmethod
    def encode_task(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        schemas: Sequence[dict[str, Any]] = (),
        at: float | None = None,
    ) -> list[int]:
        """
        Token ids of a task prompt, up to where the agent begins to write. They are those of [`~trl.GRPOTrainer`].

        Args:
            prompt (`str` or `list[dict]`):
                A text, or messages for the chat template.
            schemas (`Sequence[dict]`, *optional*):
                JSON schemas of the tools, as `ActionSet.schemas` holds them.
            at (`float`, *optional*):
                The time for which a template writes the date, in seconds since the epoch. By default now.
        """

    # Turns

    def opened(self, context: Sequence[int]) -> str | None:
        """
        The tag that a context has opened for the agent, which then begins in the middle of it; `None` if there is none.

        Some chat templates end in `<think>`: those of R1 distills, Qwen3-Thinking, Qwen3.5.

        Args:
            context (`Sequence[int]`):
                Token ids that the agent reads before it writes.
        """
        return None

    @abstractmethod
    def stop_strings(self, action_tags: Sequence[str], last_turn: bool) -> list[str]:
        """
        Strings at which generation stops besides the end token.

        Args:
            action_tags (`Sequence[str]`):
                Tags of the actions in force, without the answer tag.
            last_turn (`bool`):
                Whether no turn remains after this one.
        """

    @abstractmethod
    def parse(
        self,
        ids: Sequence[int],
        text: str,
        actions: OfferedActions,
        last_turn: bool = False,
        ended: bool = True,
        opened: str | None = None,
    ) -> ParsedTurn:
        """
        Read one completion.

        Args:
            ids (`Sequence[int]`):
                Token ids that the agent wrote, its end token included.
            text (`str`):
                The same, decoded.
            actions ([`OfferedActions`]):
                Actions of the environment.
            last_turn (`bool`, *optional*, defaults to `False`):
                Whether no turn remains after this one.
            ended (`bool`, *optional*, defaults to `True`):
                Whether the completion ended by itself instead of at its length limit.
            opened (`str`, *optional*):
                What [`~ActionSyntax.opened`] says about its context.
        """

    @abstractmethod
    def state_span(self, turn: Turn) -> tuple[int, int] | None:
        """Characters of the text of a turn that hold its state, tags included where it has them; `None` if it wrote none."""

    @abstractmethod
    def requests(self, parsed: ParsedTurn, actions: OfferedActions) -> list[ActionRequest]:
        """The calls that a turn with an action asks for, in order; none for an answer that no method takes."""

    def drop_scratch(self, text: str, opened: str | None = None) -> str:
        """
        The completion without its scratch tags and their text: the part that is carried into the next context.

        Of a scratch tag that the context has opened only the text goes, since the context needs its end.
        """
        if opened in self.protocol.scratch_tags:
            _, end, rest = text.partition(f"</{opened}>")
            return end + self.drop_scratch(rest) if end else text
        for tag in self.protocol.scratch_tags:
            text = drop_tagged(text, tag)
        return text

    # Summaries and recalled notes

    adds_inside: bool = False
    """
    Whether a request for a summary, and the notes of an external memory, go inside the last result, since the agent's own turn is open
    after it.
    """

    def write_request(self, request: str) -> str:
        """The request for a summary as it stands after the last result; `{state}` becomes the tag of the state."""
        return request.replace("{state}", self.protocol.state_tag) + "\n\n"

    def encode_request(self, request: str, in_result: bool) -> list[int]:
        """Token ids of [`~ActionSyntax.write_request`] after what the agent has read last: a result, or a message of a person."""
        return self.encode_added(self.write_request(request), in_result)

    def encode_added(self, text: str, in_result: bool) -> list[int]:
        """Token ids of a text of ours that is added to a result, or to a message of a person, where requests and notes are."""
        return encode_text(self.tokenizer, self.write_result(text) if in_result else text)

    @abstractmethod
    def summary_stops(self) -> list[str]:
        """Strings at which the generation of a summary stops besides the end token."""

    @abstractmethod
    def parse_summary(self, ids: Sequence[int], text: str, ended: bool, opened: str | None = None) -> ParsedTurn:
        """
        Read a completion that was to be a summary: its state, or all of it if it wrote none. Actions in it are not read.

        Args:
            ids, text, ended, opened:
                As in [`~ActionSyntax.parse`].
        """

    # Results

    @abstractmethod
    def frame(self, names: Sequence[str]) -> tuple[str, ...]:
        """
        Texts around the results of one turn, one more than there are results.

        The first follows the agent's turn, the last ends where the agent begins to write again. The protocol's own
        observation template goes inside.

        Args:
            names (`Sequence[str]`):
                Names of the actions that the results are of.
        """

    @property
    def turn_end(self) -> str:
        """What the template writes at the end of the agent's turn, which a turn that was cut lacks."""
        return ""

    @abstractmethod
    def message_frame(self) -> tuple[str, str]:
        """Texts around a message of a person that follows the agent's turn, as [`~ActionSyntax.frame`] has them for results."""

    def write_result(self, text: str) -> str:
        """Text as it stands inside a result: some chat templates write results as JSON strings."""
        return text

    def read_result(self, text: str) -> str:
        """What [`~ActionSyntax.write_result`] wrote, or a text that holds it, as it was before."""
        return text

    @abstractmethod
    def escape_tags(self, text: str, tags: Sequence[str] = ()) -> str:
        """
        Text of the environment that cannot be read as markup of this syntax.

        Args:
            text (`str`):
                Text that the environment returned.
            tags (`Sequence[str]`, *optional*):
                Tags in force besides the protocol's own; a syntax whose actions are not tags ignores them.
        """

    # Endpoints, reward functions

    @abstractmethod
    def encode_reply(
        self, message: Mapping[str, Any], ended: bool, stops: Sequence[str], opened: str | None = None
    ) -> list[int]:
        """
        Token ids of a turn as this tokenizer's model would have written it, for the message of another model.

        Args:
            message (`Mapping`):
                With `content`, and `reasoning_content` and `tool_calls` if there are any.
            ended (`bool`):
                Whether it ended by itself or at a stop string, instead of at its length limit.
            stops (`Sequence[str]`):
                Stop strings that were asked for.
            opened (`str`, *optional*):
                What [`~ActionSyntax.opened`] says about the context that this model would have read.
        """

    @abstractmethod
    def sample_messages(self) -> list[dict[str, Any]]:
        """The messages of an episode after one turn, made of [`MARKS`]."""

    @abstractmethod
    def new_record(self) -> EpisodeRecord:
        """A record for an episode that begins."""


def read_request(name: str, method: str, arguments: Callable[[], dict[str, Any]]) -> ActionRequest:
    """
    The request to call a method. Whatever goes wrong while its arguments are read, the agent reads a refusal: it wrote them.

    Args:
        name (`str`):
            Name of the action.
        method (`str`):
            Name of the environment's method.
        arguments (`Callable[[], dict]`):
            Reads the arguments.
    """
    try:
        return ActionRequest(name, method, arguments())
    except ValueError as error:
        return ActionRequest(name, problem=str(error))
    except Exception as error:
        return ActionRequest(name, problem=f"the arguments cannot be read ({type(error).__name__}).")


class EpisodeRecord(ABC):
    """Record of one episode besides its turns, from which a syntax tells the episode as chat messages."""

    @abstractmethod
    def add_turn(self, parsed: ParsedTurn) -> None:
        """Keep a turn."""

    @abstractmethod
    def add_results(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Keep the whole results of the actions of the last turn."""

    @abstractmethod
    def add_observation(self, names: Sequence[str], bodies: Sequence[Sequence[int]], turns_left: int) -> None:
        """
        Keep these results as the agent reads them.

        Args:
            names (`Sequence[str]`):
                Names of the actions.
            bodies (`Sequence[Sequence[int]]`):
                Token ids of the results, escaped and cut.
            turns_left (`int`):
                Turns that remain, for the hint.
        """

    @abstractmethod
    def add_message(self, text: str, body: Sequence[int], turns_left: int) -> None:
        """
        Keep a message of a person that follows the last turn.

        Args:
            text (`str`):
                The whole message.
            body (`Sequence[int]`):
                Its token ids as the agent reads them, escaped and cut.
            turns_left (`int`):
                Turns that remain, for the hint.
        """

    @abstractmethod
    def to_dict(self, dropped: int = 0) -> dict[str, Any]:
        """The record, ready for JSON; without so many turns, the oldest."""

    @abstractmethod
    def restore(self, record: Mapping[str, Any]) -> None:
        """Become the record that [`~EpisodeRecord.to_dict`] returned."""

    @abstractmethod
    def completion(self, turns: Sequence[Turn], conversational: bool) -> str | list[dict[str, Any]]:
        """
        The episode as TRL's reward functions know a completion: a text, or messages.

        Args:
            turns (`Sequence[Turn]`):
                Turns of the episode.
            conversational (`bool`):
                Whether its prompt is made of messages.
        """

    @abstractmethod
    def messages(
        self,
        task: Sequence[dict[str, Any]],
        turns: Sequence[Turn],
        kept: Sequence[int],
        recalled: str,
        request: str = "",
    ) -> list[dict[str, Any]]:
        """
        The next context as messages for a chat endpoint.

        Chat templates drop what earlier messages of the assistant thought, and some all they say beside a call. So everything that
        the agent wrote and is to remember goes into a message of the user; of its own messages only calls are left.

        Args:
            task (`Sequence[dict]`):
                Messages of the task prompt.
            turns (`Sequence[Turn]`):
                Turns so far.
            kept (`Sequence[int]`):
                Indices of the turns that are kept.
            recalled (`str`):
                Text of an external memory, which goes before the turns, or inside the last result where the syntax `adds_inside`.
            request (`str`, *optional*):
                Request for a summary, which follows the last result.
        """
