"""The record of how an agent is spoken to: tags, instructions, hints. It is saved with a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_text import read_json_object, write_json
from ..saved_files import find_saved
from ..typed_fields import check_fields
from .instructions import DEFAULT_INSTRUCTIONS, PAPER_INSTRUCTIONS, TOOL_CALL_INSTRUCTIONS, WEBSHOP_INSTRUCTIONS
from .tag_syntax import TagSyntax, parse_tags
from .tool_calls import ToolCallSyntax

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from .parsed_turn import ParsedTurn
    from .syntax import ActionSyntax


PROTOCOL_FILE = "mem1_protocol.json"
"""Name of the file with the protocol, next to a model's weights."""

_PLACEHOLDER = re.compile(r"\{(prompt|actions|state|answer|observation)\}")
_TAG_NAME = re.compile(r"[A-Za-z][\w.-]*")

ACTION_SYNTAXES = ("tags", "brackets", "tool_calls")


CALLS_LEFT_OUT = "[Only the first {run} of {all} calls were run.]"
"""What the agent reads before the last result of a turn of which not all calls were run."""


@dataclass(frozen=True, slots=True)
class Mem1Protocol:
    """
    The text format between agent and environment (MEM1, arXiv 2506.15841, section 3.1).

    One turn of the agent reads `<state>..</state><action>..</action>`; the environment's text is appended as
    `<observation>..</observation>`. The task prompt, the last turn and its observation are all the agent sees next.

    Args:
        state_tag (`str`, *optional*, defaults to `"think"`):
            Tag of the internal state.
        answer_tag (`str`, *optional*, defaults to `"answer"`):
            Tag that ends the episode. If the environment has a method of this name, it is called with the text.
        observation_tag (`str`, *optional*, defaults to `"information"`):
            Tag around the text that the environment returns.
        action_tags (`dict[str, str]`, *optional*):
            Tag -> name of the environment method it calls. `None` gives every action of the environment a tag of its
            own name. A method with several parameters takes them as one JSON object inside the tag.
        scratch_tags (`tuple[str, ...]`, *optional*):
            Tags whose text is thinking aloud: it is generated and trained, but not carried into the next context.
        instructions (`str`, *optional*):
            Template of the task prompt. `{prompt}` is the task; `{actions}`, `{state}`, `{answer}` and `{observation}`
            are the list of actions and the names of the tags. Other braces are left alone.
        observation_template (`str`, *optional*):
            Template around an observation, with `{tag}`, `{hint}` and `{observation}`.
        hint_template, last_hint_template, over_hint_template (`str`, *optional*):
            First thing inside an observation when `{n}` > 1, = 1 or = 0 turns are left after this one.
        truncation_marker (`str`, *optional*):
            Says in the observation that it was cut.
        memory_tag (`str`, *optional*, defaults to `"memory"`):
            Tag around past observations that an external memory puts back (only with `context="external"`).
        memory_template (`str`, *optional*):
            Template around them, with `{tag}` and `{memory}`. It goes between the task prompt and the last turn.
        on_invalid_action (`str`, *optional*, defaults to `"end"`):
            Effect of a turn without a complete action: `"end"` ends the episode (as in the paper), `"observe"` shows an
            error to the agent and goes on.
        answer_only_in_last_turn (`bool`, *optional*, defaults to `False`):
            Whether only an answer counts in the last turn, which then runs on through other actions. The reference
            does that; an environment that is acted on to the end (a game, a shop) needs its last action.
        action_syntax (`str`, *optional*, defaults to `"tags"`):
            How an action is written. `"tags"`: a tag for each, `<search>tea</search>`. `"brackets"`: `answer_tag` holds
            every action as `search[tea]`, and the environment's `done` ends the episode. `"tool_calls"`: the model's own
            tool calls, through its chat template; a turn without one is the answer.
    """

    state_tag: str = "think"
    answer_tag: str = "answer"
    observation_tag: str = "information"
    action_tags: Mapping[str, str] | None = None
    scratch_tags: tuple[str, ...] = ()
    instructions: str = DEFAULT_INSTRUCTIONS
    observation_template: str = "\n\n<{tag}>{hint}\n\n{observation}</{tag}>\n\n"
    hint_template: str = "[HINT]You have {n} turns left.[/HINT]"
    last_hint_template: str = "[HINT]You have {n} turn left. You must answer the question in the next turn.[/HINT]"
    over_hint_template: str = ""
    truncation_marker: str = " ... [truncated]"
    memory_tag: str = "memory"
    memory_template: str = "\n\n<{tag}>Seen in earlier turns:\n{memory}</{tag}>\n\n"
    on_invalid_action: str = "end"
    answer_only_in_last_turn: bool = False
    action_syntax: str = "tags"

    def __post_init__(self) -> None:
        if isinstance(self.scratch_tags, str):  # a tuple of one without its comma
            raise ValueError(
                f"scratch_tags must be a tuple of names, got {self.scratch_tags!r}: write ({self.scratch_tags!r},)."
            )
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_fields(given, type(self), "Mem1Protocol", "pass it so, or leave it out.")
        if self.action_syntax not in ACTION_SYNTAXES:
            raise ValueError(
                f"action_syntax={self.action_syntax!r} is unknown: use one of {', '.join(map(repr, ACTION_SYNTAXES))}."
            )
        if self.answer_only_in_last_turn and self.action_syntax != "tags":
            raise ValueError(
                f"action_syntax={self.action_syntax!r} has no tag that is only an answer: leave "
                "`answer_only_in_last_turn` out."
            )
        if self.action_tags is not None and self.action_syntax == "tool_calls":
            raise ValueError("A model calls tools by the names of the methods: leave `action_tags` out, or use tags.")
        tags = [self.state_tag, self.answer_tag, self.observation_tag, *self.scratch_tags]
        names = list(self.action_tags or {})
        if self.action_syntax == "tags":  # in brackets a name is not a tag
            tags += names
        for tag in (*tags, *names, self.memory_tag):
            if not _TAG_NAME.fullmatch(tag):
                raise ValueError(
                    f"{tag!r} cannot be a tag: use a name such as 'search', letters and digits without angle brackets."
                )
        for tag in sorted({tag for tag in tags if tags.count(tag) > 1}):
            raise ValueError(f"The tag {tag!r} has two jobs in this protocol: give every role its own tag.")
        if self.on_invalid_action not in ("end", "observe"):
            raise ValueError(
                f"`on_invalid_action` is {self.on_invalid_action!r} but must be 'end' (the episode) or 'observe' "
                "(show an error and go on)."
            )
        for name, template, needed in (
            ("instructions", self.instructions, "{prompt}"),
            ("observation_template", self.observation_template, "{observation}"),
            ("memory_template", self.memory_template, "{memory}"),
        ):
            if template.count(needed) != 1:
                raise ValueError(f"`{name}` must hold {needed} exactly once, it is where the text goes: {template!r}.")
        object.__setattr__(self, "scratch_tags", tuple(self.scratch_tags))

    # Presets

    @classmethod
    def paper(cls) -> Mem1Protocol:
        """The tags of the paper: `<IS>`, `<query>`, `<info>`, `<answer>` (section 3.1)."""
        return cls(
            state_tag="IS",
            observation_tag="info",
            action_tags={"query": "search"},
            instructions=PAPER_INSTRUCTIONS,
            answer_only_in_last_turn=True,
        )

    @classmethod
    def reference(cls, inference: bool = False) -> Mem1Protocol:
        """
        The tags, hints and white space of the released question-answering code and checkpoint: `<think>`, `<search>`,
        `<information>`, `<answer>`. The instructions have a wording of their own.

        Args:
            inference (`bool`, *optional*, defaults to `False`):
                Whether to use the layout of its inference script instead of its training loop: they differ in line
                breaks and in the last hint.
        """
        if not inference:
            return cls(
                action_tags={"search": "search"}, instructions=PAPER_INSTRUCTIONS, answer_only_in_last_turn=True
            )
        hint = "[HINT]You have {n} turn left. You must answer the question now.[/HINT]"
        return cls(
            action_tags={"search": "search"},
            instructions=PAPER_INSTRUCTIONS,
            observation_template="<{tag}>\n{hint}\n{observation}\n</{tag}>",
            last_hint_template=hint,
            over_hint_template=hint,
            answer_only_in_last_turn=True,
        )

    @classmethod
    def tool_calls(cls) -> Mem1Protocol:
        """
        The model's own tool calls, written and read by its chat template as in [`~trl.GRPOTrainer`].

        The environment's methods are the `tools` of the template. A turn is the state and one or several calls; their
        results are tool messages. The turn and its results are all that stays. A turn without a call ends the episode, its text is the
        answer. The request to keep a state follows the task in the user's message, whatever the system message says.
        """
        return cls(
            instructions=TOOL_CALL_INSTRUCTIONS,
            observation_template="{hint}\n\n{observation}",
            last_hint_template="[HINT]You have {n} turn left.[/HINT]",
            on_invalid_action="observe",
            action_syntax="tool_calls",
        )

    @classmethod
    def webshop(cls) -> Mem1Protocol:
        """
        The tags of the reference code for WebShop: `<think>` is dropped, `<summary>` is the memory, `<answer>` holds the
        action, such as `search[red shoes]` or `click[Buy Now]`, and `<state>` the page. It was run with `max_turns=10`;
        see [`mem1_trl.rewards.invalid_action_penalty`] for its reward of -1 when no action can be read.
        """
        return cls(
            state_tag="summary",
            observation_tag="state",
            action_tags={"search": "search", "click": "click"},
            scratch_tags=("think",),
            instructions=WEBSHOP_INSTRUCTIONS,
            last_hint_template="[HINT]You have {n} turn left.[/HINT]",
            action_syntax="brackets",
        )

    # Rendering

    def render_task(self, prompt: str, actions: Sequence[str] = ()) -> str:
        """
        Put a task into the instructions.

        Args:
            prompt (`str`):
                The task, for instance the questions.
            actions (`Sequence[str]`, *optional*):
                One line per action, as [`mem1_trl.environment_runtime.actions.ActionSet.describe`] returns them.

        Returns:
            `str`: The text of the user message.
        """
        values = {
            "actions": "\n".join(actions),
            "state": self.state_tag,
            "answer": self.answer_tag,
            "observation": self.observation_tag,
            "prompt": prompt,
        }
        # One pass, so that braces inside the task are never taken for placeholders
        return _PLACEHOLDER.sub(lambda m: values[m[1]], self.instructions)

    def hint(self, turns_left: int) -> str:
        """Hint for an observation after which `turns_left` turns remain."""
        if turns_left > 1:
            template = self.hint_template
        else:
            template = self.last_hint_template if turns_left == 1 else self.over_hint_template
        return template.replace("{n}", str(turns_left))

    def observation_frame(self, turns_left: int) -> tuple[str, str]:
        """
        The trusted text before and after an observation: opening tag with hint, closing tag.

        Args:
            turns_left (`int`):
                Turns that remain after the one that caused the observation.
        """
        before, after = self.observation_template.split("{observation}")
        values = {"{tag}": self.observation_tag, "{hint}": self.hint(turns_left)}
        for placeholder, value in values.items():
            before, after = before.replace(placeholder, value), after.replace(placeholder, value)
        return before, after

    def memory_frame(self) -> tuple[str, str]:
        """The trusted text before and after the notes that an external memory puts back."""
        before, after = self.memory_template.split("{memory}")
        return before.replace("{tag}", self.memory_tag), after.replace("{tag}", self.memory_tag)

    # Reading

    def syntax(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> ActionSyntax:
        """
        The syntax of this protocol for one tokenizer: it writes tasks and results, and reads turns.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the agent.
            chat_template_kwargs (`Mapping`, *optional*):
                Further arguments of the chat template.

        Raises:
            `ValueError`: With tool calls, if the chat template cannot write them, or it is not known how to read them.
        """
        kind = ToolCallSyntax if self.action_syntax == "tool_calls" else TagSyntax
        return kind(tokenizer, self, chat_template_kwargs)

    def parse(self, text: str, action_tags: Sequence[str], last_turn: bool = False) -> ParsedTurn:
        """
        Read one completion whose actions are tags or brackets: the state, and the first complete action after it.

        Args:
            text (`str`):
                The decoded completion.
            action_tags (`Sequence[str]`):
                Tags of the actions in force, without the answer tag.
            last_turn (`bool`, *optional*, defaults to `False`):
                Whether no turn remains; then only an answer is an action if `answer_only_in_last_turn`.
        """
        return parse_tags(self, text, action_tags, last_turn)

    # Saving

    def to_dict(self) -> dict[str, Any]:
        """The protocol as a JSON-ready dictionary."""
        record = dataclasses.asdict(self)
        record["action_tags"] = None if self.action_tags is None else dict(self.action_tags)
        record["scratch_tags"] = list(self.scratch_tags)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Mem1Protocol:
        """The inverse of [`~Mem1Protocol.to_dict`]; unknown keys and other types are an error."""
        check_fields(record, cls, "The saved protocol", "save the model again.")
        values = dict(record)
        if values.get("scratch_tags") is not None:
            values["scratch_tags"] = tuple(values["scratch_tags"])
        return cls(**values)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Write `mem1_protocol.json` into `directory` and return its path."""
        path = Path(directory) / PROTOCOL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_json(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], **where: Any) -> Mem1Protocol:
        """
        Read `mem1_protocol.json` from a directory, or from the repository of a model on the Hub, where `where` may say more, such as
        its `revision`.
        """
        path = find_saved(path_or_id, PROTOCOL_FILE, **where)
        if path is None:
            raise FileNotFoundError(
                f"There is no {PROTOCOL_FILE} in {str(path_or_id)!r}: pass `protocol=`, or save the model with a "
                "mem1-trl trainer."
            )
        record = read_json_object(path, "save the model again.")
        try:
            return cls.from_dict(record)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read. {error}") from None
