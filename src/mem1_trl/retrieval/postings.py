"""
The best passages for the words of a query, without a look at the passages that cannot be among them.

An index of BM25 scores holds for each word the passages that have it, with their scores. A query adds up the lists of its
words. The lists of common words are as long as the corpus and add next to nothing, so they are not walked through: once
the words so far have found `k` passages that nothing else can overtake with the words left, those words are only looked up
for the passages found (the rule of MaxScore: Turtle and Flood, Query evaluation: strategies and optimizations, 1995).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

# Bounds are added in another order than scores; float32 sums of a few words differ by less than this
_SLACK = 1e-4
_KEPT_BUFFERS = 8


class Postings:
    """
    Scores of words in passages, as the columns of a sparse matrix.

    Args:
        scores (`numpy.ndarray`):
            Score of each entry, float32, above 0.
        passages (`numpy.ndarray`):
            Passage number of each entry, int32, rising within a word.
        starts (`numpy.ndarray`):
            Word `w` has the entries from `starts[w]` up to `starts[w + 1]`.
        best (`numpy.ndarray`):
            Largest score of each word.
        count (`int`):
            Number of passages.
    """

    def __init__(
        self, scores: np.ndarray, passages: np.ndarray, starts: np.ndarray, best: np.ndarray, count: int
    ) -> None:
        self._scores = scores
        self._passages = passages
        self._starts = starts
        self._best = best
        self._count = count
        self._buffers: list[np.ndarray] = []

    @property
    def of_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of each word begin, and its largest score."""
        return self._starts, self._best

    def top(self, words: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The passages with the largest sums.

        Args:
            words (`Sequence[int]`):
                Words of the query; a repeated word counts again.
            k (`int`):
                Most passages.

        Returns:
            `tuple[numpy.ndarray, numpy.ndarray]`: passage numbers, best first, earlier ones first among equals, and their
            scores. Passages without any of the words are left out.
        """
        times = Counter(words)
        lists = {word: slice(int(self._starts[word]), int(self._starts[word + 1])) for word in times}
        # The shortest lists first, in the order of the query among equals. Every score is summed in this one order, so that
        # equal passages have equal scores.
        order = sorted(times, key=lambda word: lists[word].stop - lists[word].start)
        left = [0.0]  # the most that the words from here on can add
        for word in reversed(order):
            left.append(left[-1] + times[word] * float(self._best[word]))
        left.reverse()

        sums = self._take_buffer()
        found = np.empty(0, dtype=self._passages.dtype)
        try:
            threshold, walked = 0.0, 0
            for walked, word in enumerate(order):
                size = lists[word].stop - lists[word].start
                if size > len(found) >= k:
                    threshold = _largest(sums[found], k)
                if threshold > left[walked] * (1 + _SLACK):
                    break
                passages = self._passages[lists[word]]
                before = sums[passages]
                sums[passages] = before + np.float32(times[word]) * self._scores[lists[word]]
                found = np.concatenate([found, passages[before == 0]])
            else:
                walked = len(order)
            totals = sums[found]
        finally:
            sums[found] = 0
            self._give_back(sums)

        for position in range(walked, len(order)):
            able = totals + np.float32(left[position]) >= threshold * (1 - _SLACK)
            found, totals = found[able], totals[able]
            passages = self._passages[lists[order[position]]]
            places = np.searchsorted(passages, found)
            places[places == len(passages)] = 0
            has = passages[places] == found
            scores = self._scores[lists[order[position]]]
            totals[has] += np.float32(times[order[position]]) * scores[places[has]]
            threshold = max(threshold, _largest(totals, k))

        if len(found) > k:
            able = totals >= _largest(totals, k)
            found, totals = found[able], totals[able]
        best = np.lexsort((found, -totals))[:k]
        return found[best], totals[best]

    def _take_buffer(self) -> np.ndarray:
        """A score of 0 for each passage. Kept between queries: clearing a few entries is cheaper than a new one."""
        try:
            return self._buffers.pop()
        except IndexError:
            return np.zeros(self._count, dtype=np.float32)

    def _give_back(self, buffer: np.ndarray) -> None:
        if len(self._buffers) < _KEPT_BUFFERS:
            self._buffers.append(buffer)


def _largest(values: np.ndarray, k: int) -> float:
    """The `k`-th largest value, or 0 if there are fewer."""
    return float(np.partition(values, -k)[-k]) if len(values) >= k else 0.0
