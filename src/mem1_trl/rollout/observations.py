"""Results of actions become token ids within the budget of an observation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..protocol.encoding import decode, encode_text, first_tokens
from ..protocol.untrusted import encode_untrusted
from .settings import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol.syntax import ActionSyntax
    from .settings import AgentSettings


# Tokens that the result of an action needs to be worth showing; calls that leave less are not run
_LEAST_RESULT = 16


class ObservationIds(NamedTuple):
    """
    Token ids of one observation.

    Attributes:
        frame (`list[list[int]]`):
            The trusted pieces around the results, one more than there are results: tags, hint, and the text of the chat
            template.
        results (`list[list[int]]`):
            The results, escaped and cut.
        is_message (`bool`):
            Whether it is a message of a person instead of results, which a chat template may write in another way.
    """

    frame: list[list[int]]
    results: list[list[int]]
    is_message: bool = False

    @property
    def before(self) -> list[int]:
        """Token ids before the first result."""
        return self.frame[0]

    @property
    def body(self) -> list[int]:
        """Token ids from the first result to the last, with the pieces between them."""
        between = [*self.frame[1:-1], []]
        return [token for ids, piece in zip(self.results, between, strict=True) for token in (*ids, *piece)]

    @property
    def after(self) -> list[int]:
        """Token ids after the last result."""
        return self.frame[-1]


class ObservationEncoder:
    """
    Encodes the results of a turn as the agent reads them.

    Results are escaped and cut by tokens; tags, hint and the text of a chat template stay whole. With tags and
    `max_observation_length=60` the results `["Paris"]` become `<information>`, hint, `Paris`, `</information>`.

    Args:
        syntax ([`~mem1_trl.protocol.syntax.ActionSyntax`]):
            Frames and escapes results; gives the tokenizer and the protocol.
        settings ([`AgentSettings`]):
            Gives the budget.
    """

    def __init__(self, syntax: ActionSyntax, settings: AgentSettings):
        self.syntax = syntax
        self.tokenizer = syntax.tokenizer
        self.protocol = syntax.protocol
        self.settings = settings
        self._trusted: dict[str, list[int]] = {}

    def check(self, action_tags: Sequence[str] = ()) -> None:
        """
        Refuse a budget that some observation of an episode would not keep to: whatever its hint, and for the message after a summary.

        Args:
            action_tags (`Sequence[str]`, *optional*):
                Names of the actions in force.

        Raises:
            `ValueError`: If tags, hint and truncation marker of one take more than `max_observation_length`.
        """
        frames = [(self.syntax.frame([name]), False) for name in action_tags or ["tool"]]
        if self.settings.rule.asks:
            frames.append((self.syntax.message_frame(), True))
        for pieces, is_message in frames:
            for turns_left in self._turns_of_hints():
                self._fit([""], self._frame(pieces, turns_left, is_message), (), is_message)

    def encode(self, text: str, turns_left: int, action_tags: Sequence[str] = ()) -> list[int]:
        """
        Token ids of the observation of one result.

        Args:
            text (`str`):
                Text that the environment returned.
            turns_left (`int`):
                Turns that remain, for the hint.
            action_tags (`Sequence[str]`, *optional*):
                Tags to escape besides the protocol's own; the names of the tools, with tool calls.
        """
        observation = self.encode_results([text], [*action_tags, "tool"][:1], turns_left, action_tags)
        return [*observation.before, *observation.body, *observation.after]

    def encode_results(
        self, texts: Sequence[str], names: Sequence[str], turns_left: int, action_tags: Sequence[str]
    ) -> ObservationIds:
        """
        The observation of all results of one turn.

        Args:
            texts (`Sequence[str]`):
                Texts that the environment returned, one for each action that was run.
            names (`Sequence[str]`):
                Names of these actions.
            turns_left (`int`):
                Turns that remain, for the hint.
            action_tags (`Sequence[str]`):
                Tags to escape besides the protocol's own.
        """
        return self._fit(texts, self._frame(self.syntax.frame(names), turns_left, False), action_tags, False)

    def encode_message(
        self, text: str, turns_left: int, action_tags: Sequence[str], cut: bool = False
    ) -> ObservationIds:
        """
        The observation that is a message of a person, as a result of the turn before it.

        Args:
            text (`str`):
                What the person wrote.
            turns_left (`int`):
                Turns that remain, for the hint.
            action_tags (`Sequence[str]`):
                Tags to escape besides the protocol's own.
            cut (`bool`, *optional*, defaults to `False`):
                Whether the turn was cut; then its end belongs to the observation.
        """
        before, after = self.syntax.message_frame()
        pieces = (self.syntax.turn_end + before if cut else before, after)
        return self._fit([text], self._frame(pieces, turns_left, True), action_tags, True)

    def quote(self, text: str, action_tags: Sequence[str]) -> str:
        """
        A result as text of a message, where a chat is told again: escaped and cut to the budget like an observation, without tags and hint.

        Args:
            text (`str`):
                Text that the environment returned.
            action_tags (`Sequence[str]`):
                Tags to escape besides the protocol's own.
        """
        (ids,) = self._fit([text], [[], []], action_tags, True).results
        return decode(self.tokenizer, ids)

    def after(self, turn_ids: Sequence[int], observation: ObservationIds) -> ObservationIds:
        """
        The observation as it follows a turn: without its first token if the turn has written that.

        The models of some templates end their turn with the token that opens the next message, as GLM-4.5 does with `<|observation|>`.
        """
        first, *others = observation.frame
        if first and first[0] in self.tokenizer.all_special_ids and first[:1] == list(turn_ids[-1:]):
            return observation._replace(frame=[first[1:], *others])
        return observation

    def text(self, observation: ObservationIds) -> str:
        """The text of an observation for whoever looks for something in it: what its results say, also where a template writes them as JSON."""
        text = decode(self.tokenizer, [*observation.before, *observation.body, *observation.after])
        return text if observation.is_message else self.syntax.read_result(text)

    def _fit(
        self, texts: Sequence[str], frame: list[list[int]], action_tags: Sequence[str], is_message: bool
    ) -> ObservationIds:
        """The texts inside their frame, cut so that the whole is within the budget."""
        marker = self._encode_trusted(self._written(self.protocol.truncation_marker, is_message))
        fixed = sum(map(len, frame))
        room = self.settings.max_observation_length - fixed
        if room < len(marker) * len(texts):
            raise ValueError(
                f"max_observation_length={self.settings.max_observation_length} is less than the tags, hint and "
                f"truncation marker of an observation need ({fixed + len(marker)} tokens): raise it."
            )
        encoded = [self._encode_result(text, room, action_tags, is_message) for text in texts]
        budgets = share_budget(room, [len(ids) + len(marker) * cut for ids, cut in encoded])
        results = [
            [*self._cut(ids, budget - len(marker), is_message), *marker] if cut or len(ids) > budget else ids
            for (ids, cut), budget in zip(encoded, budgets, strict=True)
        ]
        return ObservationIds(frame, results, is_message)

    def _cut(self, ids: list[int], length: int, is_message: bool) -> list[int]:
        """At most so many of the token ids of a result, whose last character and last escape are whole."""
        kept = first_tokens(self.tokenizer, ids, length)
        while not is_message and self._breaks_escape(decode(self.tokenizer, kept)):
            kept = first_tokens(self.tokenizer, kept, len(kept) - 1)
        return kept

    def _breaks_escape(self, text: str) -> bool:
        """Whether a result ends inside of what stands for one character."""
        return self.syntax.write_result(self.syntax.read_result(text)) != text

    def _written(self, text: str, is_message: bool) -> str:
        """Text as it stands inside a result, or inside a message."""
        return text if is_message else self.syntax.write_result(text)

    def most_results(self, names: Sequence[str]) -> int:
        """How many results of these actions fit into one observation: the first always, others if each has room for some text."""
        least = len(self._encode_trusted(self._written(self.protocol.truncation_marker, False))) + _LEAST_RESULT
        most = self.settings.max_observation_length

        def fits(count: int) -> bool:
            pieces = self.syntax.frame(names[:count])
            frame = max(sum(map(len, self._frame(pieces, turns, False))) for turns in self._turns_of_hints())
            return frame + count * least <= most

        fitting, beyond = 1, min(len(names), most // least) + 1
        while beyond - fitting > 1:  # each further result needs more room, and a template takes its time with many
            middle = (fitting + beyond) // 2
            fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
        return fitting

    def _turns_of_hints(self) -> list[int]:
        """Numbers of turns left that have the longest hints: the last one, which may have a template of its own, and one for each number of digits."""
        most = self.settings.max_turns
        return sorted({1, most, *(10**digits - 1 for digits in range(1, len(str(most))))})

    def _frame(self, pieces: Sequence[str], turns_left: int, is_message: bool) -> list[list[int]]:
        """Token ids of the trusted pieces around results, one piece more than there are results, with hint and tags."""
        before, after = (self._written(part, is_message) for part in self.protocol.observation_frame(turns_left))
        first, second, *others = pieces
        texts = [first + before, after + second, *others]  # the hint is shown once
        return [self._encode_trusted(text) for text in texts]

    def _encode_result(
        self, text: str, room: int, action_tags: Sequence[str], is_message: bool
    ) -> tuple[list[int], bool]:
        """Token ids of a result, and whether a part that cannot fit was left out."""
        if self.settings.rule.recalls:  # this text may be put back later
            action_tags = [*action_tags, self.protocol.memory_tag]
        ids: list[int] = []
        whole = False
        for characters in CHARACTERS_PER_TOKEN:  # text that does not fit need not be tokenized
            part = text[: room * characters]
            whole = len(part) == len(text)
            escaped = self.syntax.escape_tags(part, action_tags)
            ids = encode_untrusted(self.tokenizer, self._written(escaped, is_message))
            if whole or len(ids) > room:
                break
        return ids, not whole

    def _encode_trusted(self, text: str) -> list[int]:
        """Token ids of a piece of the protocol or the template, encoded once since observations share it."""
        if text not in self._trusted:
            self._trusted[text] = encode_text(self.tokenizer, text)
        return self._trusted[text]


def share_budget(room: int, wanted: Sequence[int]) -> list[int]:
    """
    Tokens for each of several texts: a short one gets all it needs, the long ones share the rest in equal parts.

    Args:
        room (`int`):
            Tokens in all.
        wanted (`Sequence[int]`):
            Tokens that each text has.

    Returns:
        `list[int]`: At most `room` in sum, and for no text more than it has.
    """
    budgets = [0] * len(wanted)
    left = len(wanted)
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        budgets[index] = min(wanted[index], room // left)
        room -= budgets[index]
        left -= 1
    return budgets
