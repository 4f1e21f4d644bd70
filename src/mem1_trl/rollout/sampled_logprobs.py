"""Log-probs of the tokens that `generate` samples, and whether its steps are those tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from .stopping import ActionStoppingCriteria


class SampledLogprobs(LogitsProcessor):
    """
    Records the log-probability of every token that `generate` samples, holding one step of logits at a time.

    It does not change the logits. `generate` runs it after its logits processors and before temperature, top-k, top-p and min-p.
    The temperature is applied here but the truncations are not, so the log-probabilities equal those that a policy update
    computes.

    Args:
        temperature (`float`):
            Divisor of the logits.
        columns (`int`):
            Number of columns before the first sampled token.
        criteria ([`ActionStoppingCriteria`], *optional*):
            Knows which rows have ended; pass it if decoding is greedy. Then a token that is not the most likely one shows that
            tokens are chosen by something else than these logits.
    """

    def __init__(self, temperature: float, columns: int, criteria: ActionStoppingCriteria | None = None):
        self.temperature = temperature
        self.columns = columns
        self.criteria = criteria
        self.steps: list[torch.Tensor] = []
        self._previous: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None
        self._best: torch.Tensor | None = None  # the most likely token of each row, -1 of rows that have ended
        self._plain = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._settle(input_ids)
        self._previous = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        self._seen = input_ids[:, self.columns :]
        if self.criteria is not None and len(self.criteria.done) == len(scores):
            ended = torch.tensor(self.criteria.done, device=scores.device)
            self._best = scores.argmax(dim=-1).masked_fill(ended, -1)
        return scores

    def _settle(self, sequences: torch.Tensor) -> None:
        """The token after each row that was seen last is the one that was sampled, if the rows are still the same."""
        if self._previous is None or not self._plain:
            return
        seen, sampled = self._seen, sequences[:, self.columns :]
        assert seen is not None
        longer = len(sampled) == len(seen) == len(self._previous) and sampled.shape[1] == seen.shape[1] + 1
        self._plain = longer and bool((sampled[:, :-1] == seen).all())
        if self._plain and self._best is not None:
            self._plain = bool(((sampled[:, -1] == self._best) | (self._best < 0)).all())
        if self._plain:
            self.steps.append(self._previous.gather(1, sampled[:, -1:]).squeeze(1))
        self._previous = None

    def finish(self, sequences: torch.Tensor) -> list[list[float]] | None:
        """
        Log-probs of all sampled tokens, shape `(batch, new tokens)`, from the output of `generate`.

        `None` if its steps were not those of these sequences, as in beam search or in a `generate` that was replaced, or if a
        token of greedy decoding is not the most likely one.
        """
        self._settle(sequences)
        if not self._plain or len(self.steps) != sequences.shape[1] - self.columns:
            return None
        return torch.stack(self.steps, dim=1).cpu().tolist() if self.steps else [[] for _ in range(len(sequences))]
