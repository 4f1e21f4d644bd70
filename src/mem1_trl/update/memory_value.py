"""
What a state is worth: one branch of the tree is scored again without it.

For the state `s` that turn `k` wrote, the tree of an episode gets up to three more branches beside turn `k + 1`, whose context is
`P s a o` (task prompt, and state, action and observation of turn `k`), and whose completion is `c`:

    turn k + 1          P s a o c
    without the state   P . a o c
    the right answer    P s a o <answer> g
    and without         P . a o <answer> g

All of them are forwarded as one prefix tree, so that what they share is computed once and each token is scored exactly.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING

from ..json_text import read_json
from ..protocol.encoding import decode, encode_text
from ..protocol.tagged_text import find_whole
from ..rewards import ANSWER_SEPARATOR
from ..trajectory import Trajectory, Turn
from .scoring import score_without_training
from .state_value import StateValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel

    from ..protocol.syntax import ActionSyntax
    from ..rewards import Answers

REPLACEMENTS = ("blank", "swap")
"""What takes the place of a state: nothing between its tags, or the state that the same turn of another episode wrote."""


def memory_values(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    syntax: ActionSyntax,
    answers: Sequence[Answers | None] | None = None,
    replace: str = "blank",
    layout: str = "packed",
    temperature: float = 1.0,
    batch_size: int = 8,
) -> list[list[StateValue | None]]:
    """
    What each state of some episodes is worth to the turn that read it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Whose log-probs are compared: a causal language model. It is scored in evaluation mode, without gradient.
        trajectories (`Sequence[Trajectory]`):
            The episodes.
        syntax ([`ActionSyntax`]):
            How turns are written, see [`Mem1Protocol.syntax`].
        answers (`Sequence`, *optional*):
            For each episode, the accepted answers of each of its objectives, or `None`. The first alias of each is scored.
        replace (`str`, *optional*, defaults to `"blank"`):
            `"blank"` leaves nothing between the tags of the state, and of an action that belongs to it (`rewrite`) nothing of what it
            says; `"swap"` puts there what the same turn of the next episode in `trajectories` that wrote one, by the same kind of turn, did.
            A state without such another has no value.
        layout, temperature, batch_size (*optional*):
            As in [`score_trajectories`].

    Returns:
        `list[list[StateValue | None]]`: For each episode, one entry for each turn; `None` where a turn wrote no state, or the next
        context, if any, does not hold its tokens (the state of the last turn is read by nobody).

    Raises:
        `ValueError`: If `replace` is unknown, or `answers` has another length than `trajectories`.
    """
    if replace not in REPLACEMENTS:
        raise ValueError(f"replace must be one of {', '.join(map(repr, REPLACEMENTS))}, got {replace!r}.")
    golds = [None] * len(trajectories) if answers is None else list(answers)
    if len(golds) != len(trajectories):
        raise ValueError(f"There must be answers for each of {len(trajectories)} episodes, got {len(golds)}.")
    found: list[list[StateValue | None]] = [[None] * len(one.turns) for one in trajectories]
    probes: list[Trajectory] = []  # the states of one episode share its task prompt: their branches are one tree
    places: list[tuple[int, int, list[int]]] = []
    for index, trajectory in enumerate(trajectories):
        gold = golds[index]
        parts = [] if gold is None else _answer_parts(syntax, gold)
        branches: list[Turn] = []
        for number in range(len(trajectory.turns) - 1):
            other = None if replace == "blank" else _same_turn_elsewhere(trajectories, index, number)
            if replace == "swap" and other is None:
                continue
            contexts = _contexts(syntax, trajectory, number, other)
            if contexts is not None:
                branches += _branches(syntax, trajectory.turns[number + 1], contexts, parts)
                places.append((index, number, [len(part) for part in parts]))
        if branches:
            probes.append(Trajectory(branches))
    scored = score_without_training(model, probes, layout, temperature, batch_size)
    logprobs = iter([turn.double().cpu() for one in scored for turn in one])
    for index, number, sizes in places:
        own = list(islice(logprobs, 4 if sizes else 2))
        found[index][number] = _value(trajectories[index].turns[number + 1], number, own, sizes)
    return found


def _value(read: Turn, number: int, logprobs: list[torch.Tensor], sizes: list[int]) -> StateValue:
    """The value from the log-probs of the branches of a state."""
    gains = logprobs[0] - logprobs[1]
    acting = read.state_begin + read.state_tokens
    of_action = float(gains[acting:].sum()) if acting < len(gains) else None
    if not sizes:
        return StateValue(number + 1, float(gains.sum()), of_action)
    of_answer = logprobs[2] - logprobs[3]
    # Answers and separators in turn
    objectives = tuple(float(part.sum()) for part in of_answer.split(sizes)[::2])
    return StateValue(number + 1, float(gains.sum()), of_action, float(of_answer.sum()), objectives)


def _branches(
    syntax: ActionSyntax, read: Turn, contexts: tuple[tuple[int, ...], tuple[int, ...]], parts: list[list[int]]
) -> list[Turn]:
    """The branches of one state: the next turn with it and without it, and the answer with it and without it."""
    turns = [Turn(context, read.completion_ids) for context in contexts]
    if parts:
        begin = encode_text(syntax.tokenizer, _before_answer(syntax, read.prompt_ids))
        gold = tuple(token for part in parts for token in part)
        turns += [Turn((*context, *begin), gold) for context in contexts]
    return turns


def _contexts(
    syntax: ActionSyntax, trajectory: Trajectory, number: int, other: Turn | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The context of the turn after a state, as it was and with another text in place of the state; `None` if it is not there."""
    state = _state_ids(trajectory.turns[number])
    context = trajectory.turns[number + 1].prompt_ids
    begin = _last_place(state, context, len(trajectory.prompt_ids))
    if not state or begin is None:
        return None
    instead = _blank(syntax, trajectory.turns[number], state) if other is None else list(_state_ids(other))
    return context, (*context[:begin], *instead, *context[begin + len(state) :])


def _state_ids(turn: Turn) -> tuple[int, ...]:
    """Token ids of the state of a turn, its tags included; empty if it wrote none, or a person put another in its place."""
    if turn.edited_state is not None:
        return ()
    return turn.completion_ids[turn.state_begin : turn.state_begin + turn.state_tokens]


def _blank(syntax: ActionSyntax, turn: Turn, ids: Sequence[int]) -> list[int]:
    """A state without text; it has the tags that the state has, since a context may have opened one, and its action."""
    text, tag = decode(syntax.tokenizer, ids), syntax.protocol.state_tag
    opening, closing = f"<{tag}>", f"</{tag}>"
    action = ""
    if turn.acts_as_state:
        state = turn.state or ""  # some write it without tags
        end = text.index(closing) + len(closing) if state and closing in text else text.startswith(state) * len(state)
        text, action = text[:end], _silent(turn, text[end:])
    kept = (opening if text.startswith(opening) else "") + (closing if text.rstrip().endswith(closing) else "")
    return encode_text(syntax.tokenizer, kept + action)


def _said(turn: Turn) -> list[str]:
    """The texts among the arguments of the calls of a turn."""
    try:
        inside = [read_json(turn.action_input or "")]
    except ValueError:
        return []
    said = []
    while inside:
        one = inside.pop()
        if isinstance(one, str):
            said.append(one)
        elif isinstance(one, (dict, list)):
            inside += one.values() if isinstance(one, dict) else one
    return said


def _silent(turn: Turn, text: str) -> str:
    """An action, the text of which is given, that says nothing: its tag is empty, or the texts that its calls were given are."""
    tagged = find_whole(text, turn.action or "", turn.action_input or "")
    if tagged is not None:
        return f"{text[: tagged.begin]}<{tagged.name}></{tagged.name}>{text[tagged.end :]}"
    for one in _said(turn):
        written = (one, json.dumps(one, ensure_ascii=False)[1:-1], json.dumps(one)[1:-1])
        places = [f"{begin}{form}{end}" for form in written for begin, end in ('""', "''", "><")]
        found = next((place for place in places if one and place in text), None)
        if found is not None:
            begin = text.rindex(found) + 1
            text = text[:begin] + text[begin + len(found) - 2 :]
    return text


def _last_place(piece: Sequence[int], ids: Sequence[int], first: int) -> int | None:
    """The last place from `first` on at which `piece` stands in `ids`."""
    for begin in range(len(ids) - len(piece), first - 1, -1):
        if tuple(ids[begin : begin + len(piece)]) == tuple(piece):
            return begin
    return None


def _same_turn_elsewhere(trajectories: Sequence[Trajectory], index: int, number: int) -> Turn | None:
    as_action = trajectories[index].turns[number].acts_as_state
    for step in range(1, len(trajectories)):
        turns = trajectories[(index + step) % len(trajectories)].turns
        if number < len(turns) and _state_ids(turns[number]) and turns[number].acts_as_state == as_action:
            return turns[number]
    return None


def _before_answer(syntax: ActionSyntax, context: Sequence[int]) -> str:
    """What a turn writes before the text of an answer that it gives at once."""
    opened = syntax.opened(context)
    closing = "" if opened is None else f"</{opened}>"
    return closing if syntax.protocol.action_syntax == "tool_calls" else f"{closing}<{syntax.protocol.answer_tag}>"


def _answer_parts(syntax: ActionSyntax, answers: Answers) -> list[list[int]]:
    """Token ids of the first accepted answer of each objective, with separators between them."""
    parts: list[list[int]] = []
    for aliases in answers:
        if parts:
            parts.append(encode_text(syntax.tokenizer, f"{ANSWER_SEPARATOR} "))
        parts.append(encode_text(syntax.tokenizer, aliases if isinstance(aliases, str) else aliases[0]))
    return parts if all(parts) else []
