"""The end of a completion: its first complete action or its end-of-sequence token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from .turn_listener import TurnListener


@dataclass(frozen=True, slots=True)
class Completion:
    """
    The tokens that were sampled in one turn.

    Attributes:
        ids (`tuple[int, ...]`):
            Token ids as sampled, up to and including the token that ended the turn.
        logprobs (`tuple[float, ...]` or `None`):
            Log-probability in nats of each token under the sampler.
        ended (`bool`):
            Whether a stop string or an end-of-sequence token ended it; `False` if it reached its length limit.
        truncated_sampling (`bool`):
            Whether some token could not be drawn with its probability under the policy, see [`Turn`].
        prompt_ids (`tuple[int, ...]` or `None`):
            Token ids that were read, where a server was sent their text and encoded it itself. `None` if it read the context.
        messages (`tuple[dict, ...]` or `None`):
            Chat messages that were sent in place of the context.
        error (`str` or `None`):
            Why there is no completion (`ids` is empty then): the episode ends.
        unfinished (`bool`):
            Whether the backend returned before the turn had ended, since others had: it is to be asked again, with this as its beginning.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    ended: bool
    truncated_sampling: bool = False
    prompt_ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    error: str | None = None
    unfinished: bool = False


class StopStrings(list[str]):
    """
    Stop strings that count only after a text.

    A prompt that ends in `<think>` has opened a thought, and an action inside that thought is not one: generation goes on through
    `</search>` until `</think>` was written.

    Args:
        stops (`Sequence[str]`):
            Stop strings.
        after (`str`):
            Text that has to come first; empty if the stop strings count from the beginning.
    """

    def __init__(self, stops: Sequence[str], after: str = ""):
        super().__init__(stops)
        self.after = after


def text_before_stops(stops: Sequence[str]) -> str:
    """The text after which these stop strings count; empty if they count from the beginning."""
    return getattr(stops, "after", "")


class StopStringFinder:
    """
    Finds the token that completes a stop string in a growing list of token ids.

    Only tokens that contain the last character of a stop string can complete it, or if it is not ASCII the last of its bytes, so the
    ids are decoded only at those tokens, and only as far back as the string can reach.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._closers: dict[str, torch.Tensor] = {}

    def closers(self, character: str) -> torch.Tensor:
        """Whether each token id contains `character`, or may hold some of its bytes, as a bool tensor of shape `(vocabulary,)` on the CPU."""
        if character not in self._closers:
            size = len(self.tokenizer)
            texts = self.tokenizer.batch_decode([[i] for i in range(size)], skip_special_tokens=False)
            # Bytes that are not a whole character are shown as this one
            part = character if character.isascii() else "\ufffd"
            self._closers[character] = torch.tensor([character in text or part in text for text in texts])
        return self._closers[character]

    def completes(self, ids: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether the last of `ids` completes one of `stops`."""
        for stop in stops:
            token, closers = ids[-1], self.closers(stop[-1])
            if token >= len(closers) or not closers[token]:
                continue
            # Every token has at least one byte, so the string is within the last len(bytes) tokens
            tail = list(ids[-len(stop.encode()) - 1 :])
            if stop in self.tokenizer.decode(tail, skip_special_tokens=False):
                return True
        return False

    def end(self, ids: Sequence[int], stops: Sequence[str]) -> int | None:
        """Number of `ids` up to and including the first that completes one of `stops`, or `None`."""
        if not stops:
            return None
        begin, after = 0, text_before_stops(stops)
        if after:
            thought = self.end(ids, [after])
            if thought is None:
                return None
            begin = thought
        candidates = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        for stop in stops:
            candidates |= self.closers(stop[-1])
        for index in range(begin, len(ids)):
            token = ids[index]
            if token < len(candidates) and candidates[token] and self.completes(ids[begin : index + 1], stops):
                return index + 1
        return None


class ActionStoppingCriteria(StoppingCriteria):
    """
    Ends each sequence of a batch of `generate` at the token that completes one of its own stop strings.

    Args:
        stop_texts ([`StopStringFinder`] or `None`):
            Finds the stop strings. `None` if there are none.
        stops (`Sequence[Sequence[str]]`):
            Stop strings of each sequence.
        prompt_length (`int`):
            Number of columns before the tokens that this call samples.
        eos_token_ids (`Sequence[int]`, *optional*):
            Token ids that also end a sequence.
        leave_at (`int`, *optional*, defaults to `0`):
            End all sequences as soon as at most this many are unfinished, so that the caller can continue with these alone.
        listeners (`Sequence[TurnListener | None]`, *optional*):
            Are told the tokens of their sequences as these are sampled, and end those that nobody wants any more.
        written (`Sequence[Sequence[int]]`, *optional*):
            Tokens of each completion that earlier calls have sampled.
        budget (`int`, *optional*):
            Maximum number of tokens of a completion, those of earlier calls included.
    """

    def __init__(
        self,
        stop_texts: StopStringFinder | None,
        stops: Sequence[Sequence[str]],
        prompt_length: int,
        eos_token_ids: Sequence[int] = (),
        leave_at: int = 0,
        listeners: Sequence[TurnListener | None] | None = None,
        written: Sequence[Sequence[int]] | None = None,
        budget: int | None = None,
    ):
        self.stop_texts = stop_texts
        self.stops = stops
        self.prompt_length = prompt_length
        self.written = [list(ids) for ids in written] if written is not None else [[] for _ in stops]
        self.budget = budget
        self.eos_token_ids = eos_token_ids
        self.leave_at = leave_at
        self.listeners = listeners
        self.done = [False] * len(stops)
        self._begin: list[int | None] = [None if text_before_stops(row) else 0 for row in stops]
        """Where the stop strings of each row begin to count, in tokens; `None` until the text before them was written."""
        self._looked = [False] * len(stops)
        self._last_characters = {stop[-1] for row in stops for stop in (*row, *filter(None, [text_before_stops(row)]))}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if len(input_ids) != len(
            self.done
        ):  # several rows for a sequence, as in beam search: each ends as `generate` says
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        last, ended = input_ids[:, -1].cpu(), list(self.done)
        for character in self._last_characters:
            finder = self.stop_texts
            assert finder is not None
            closers = finder.closers(character)
            hits = closers[last.clamp(max=len(closers) - 1)].nonzero().flatten().tolist()
            for row in hits:
                if not self.done[row]:
                    self.done[row] = self._completes(finder, row, self._sampled(input_ids, row))
        sampled = input_ids.shape[1] - self.prompt_length
        for row, token in enumerate(last.tolist()):
            spent = self.budget is not None and len(self.written[row]) + sampled >= self.budget
            self.done[row] |= spent or token in self.eos_token_ids
        for row, listener in enumerate(self.listeners or ()):
            if listener is not None and not ended[row] and not listener.read_ids(self._sampled(input_ids, row)):
                self.done[row] = True
        if len(self.done) - sum(self.done) <= self.leave_at:
            return torch.ones(len(self.done), dtype=torch.bool, device=input_ids.device)
        return torch.tensor(self.done, device=input_ids.device)

    def _sampled(self, input_ids: torch.Tensor, row: int) -> list[int]:
        return [*self.written[row], *input_ids[row, self.prompt_length :].tolist()]

    def _completes(self, finder: StopStringFinder, row: int, ids: list[int]) -> bool:
        """Whether the last token of a row completes one of its stop strings."""
        begin, after = self._begin[row], text_before_stops(self.stops[row])
        if begin is None and not self._looked[row]:  # an earlier call of `generate` may have sampled the first ids
            begin = finder.end(ids, [after])
            self._looked[row] = True
        elif begin is None and finder.completes(ids, [after]):
            begin = len(ids)
        self._begin[row] = begin
        return begin is not None and begin < len(ids) and finder.completes(ids[begin:], self.stops[row])


def finish_completion(
    ids: Sequence[int],
    logprobs: Sequence[float] | None,
    stops: Sequence[str],
    stop_texts: StopStringFinder,
    eos_token_ids: Sequence[int],
    truncated_sampling: bool = False,
) -> Completion:
    """
    The tokens that a backend returned, up to the first complete action or end-of-sequence token, whichever comes first.

    Backends differ in the tokens after it: `generate` pads until the longest sequence of its batch has stopped.

    Args:
        ids (`Sequence[int]`):
            Sampled token ids, possibly with padding after the end.
        logprobs (`Sequence[float]` or `None`):
            Log-probability of each id, or `None`. Values after the end are dropped too.
        stops (`Sequence[str]`):
            Stop strings.
        stop_texts ([`StopStringFinder`]):
            Finds the stop strings.
        eos_token_ids (`Sequence[int]`):
            Ids that end a sequence.
        truncated_sampling (`bool`, *optional*, defaults to `False`):
            Whether some token could not be drawn with its probability under the policy.
    """
    end = stop_texts.end(ids, stops)
    eos = next((index + 1 for index, token in enumerate(ids) if token in eos_token_ids), None)
    found = [length for length in (end, eos) if length is not None]
    length = min(found) if found else len(ids)
    kept = None if logprobs is None else tuple(logprobs[:length])
    return Completion(tuple(ids[:length]), kept, bool(found), truncated_sampling)
