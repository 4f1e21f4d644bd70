"""Keys and values of tokens that a model has already read, kept from one call of `generate` to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..model_traits import cache_argument, forward_takes, why_not_masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from .step_graphs import StepGraphs

_READS_SEQUENCES = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "prefix_allowed_tokens_fn", "watermarking_config",
)  # fmt: skip

_SPARE = 64  # minimum number of spare tokens in the buffer of a layer


class GrowingLayer(DynamicLayer):
    """
    A cache layer that appends in place, into a buffer with spare room.

    `DynamicLayer` copies all keys and values for every token that it appends, which takes longer than a small model itself.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._room: list[torch.Tensor] = []
        self._views: tuple[Any, Any] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        in_place = (
            self.keys is self._views[0] and self.values is self._views[1]
        )  # else the caller selected or reordered rows
        if not in_place or after > self._room[0].shape[-2]:
            room = []
            held: Any
            for held, new in ((self.keys, key_states), (self.values, value_states)):
                # A quarter more, so that the copies of a long text add up to a few times its length
                buffer = new.new_empty(*new.shape[:-2], after + max(_SPARE, after // 4), new.shape[-1])
                if before:
                    buffer[..., :before, :] = held
                room.append(buffer)
            self._room = room
        for buffer, new in zip(self._room, (key_states, value_states)):
            buffer[..., before:after, :] = new
        self.keys, self.values = (buffer[..., :after, :] for buffer in self._room)
        self._views = (self.keys, self.values)
        return self.keys, self.values

    def let_go(self) -> None:
        """Forget the buffers, since what they hold was copied to where the caller keeps it; the next token that is appended gets new ones."""
        self._room, self._views = [], (None, None)


@dataclass(slots=True, eq=False)
class _Block:
    """
    Keys and values that one call of the model has left.

    Attributes:
        cache ([`~transformers.DynamicCache`]):
            `R` rows of keys and values.
        ids, columns (`numpy.ndarray`):
            Tokens read by each row, followed by -1, and the column of each in `cache`, shape `(R, longest)`.
        wanted (`numpy.ndarray`):
            Which rows no later call has gone on from, shape `(R,)`.
    """

    cache: DynamicCache
    ids: np.ndarray
    columns: np.ndarray
    wanted: np.ndarray


class PrefixCache:
    """
    Finds, for each context, the longest prefix that was read before, and passes its keys and values to `generate`.

    An agent reads its task prompt in every turn, the samples of a group read the same one, and a full history is read again in
    every turn. All of these are computed once. In MEM1, the second turn continues where the first one ended, and later turns
    continue after the task prompt.

    Keys depend on the weights: [`~PrefixCache.clear`] must be called whenever the weights may have changed.

    Args:
        pad_token_id (`int`):
            Token that pads contexts that are read together; it is masked.
        parked (`int`, *optional*, defaults to `0`):
            Maximum number of contexts whose keys are kept while calls go on without them. `0` keeps those of the last call alone, which is
            enough where all episodes take part in each call.
        graphs ([`StepGraphs`], *optional*):
            CUDA graphs of the steps of `generate`, which are kept as long as the keys and values. `None` makes none.
    """

    def __init__(self, pad_token_id: int, parked: int = 0, graphs: StepGraphs | None = None):
        self.pad_token_id = pad_token_id
        self.parked = parked
        self.graphs = graphs
        self.reused_tokens = 0  # since the last `clear`
        self._blocks: list[_Block] = []  # the newest last
        self._next_columns: list[np.ndarray] = []  # columns in the new cache, for each context of the last `prepare`

    def clear(self) -> None:
        """Drop all keys and values, and graphs."""
        if self.graphs is not None:
            self.graphs.clear()
        self.__init__(self.pad_token_id, self.parked, self.graphs)  # type: ignore[misc]

    @staticmethod
    def fits(model: PreTrainedModel, options: dict[str, Any]) -> bool:
        """
        Whether keys and values of a model can be kept, cut and joined: plain attention over all tokens, plain sampling, and no processor
        that looks for several tokens in a row, between which there may be a gap.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model.
            options (`dict`):
                Arguments of the call of `generate`: `generation_config`, and options that override it.
        """
        config = options.get("generation_config") or model.generation_config

        def option(name: str) -> Any:
            return options.get(name, getattr(config, name, None))

        plain = (
            option("use_cache") is not False
            and not option("cache_implementation")
            and (option("num_beams") or 1) == 1
            and (option("num_return_sequences") or 1) == 1
            and not option("prompt_lookup_num_tokens")
            and not option("prefill_chunk_size")
            and not looks_for_sequences(option)
        )
        adapter = getattr(model, "active_peft_config", None)
        return bool(
            plain
            and not getattr(adapter, "is_prompt_learning", False)  # has its own keys and values
            and why_not_masked(model) is None
            and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        )

    def prepare(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """
        The inputs of `generate` for a batch of contexts.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model.
            contexts (`Sequence[Sequence[int]]`):
                `B` sequences of token ids, each with at least one token.

        Returns:
            `dict`: `input_ids` and `attention_mask` of shape `(B, L)`, and a cache for the first of the `L` columns, which were
            read before, by the name that [`cache_argument`] gives. Each row contains the tokens of its context in order, with masked gaps.
        """
        rows = [np.asarray(context, dtype=np.int64) for context in contexts]
        if not self._blocks:
            distinct = {row.tobytes(): row for row in rows}
            if 2 * len(distinct) <= len(rows):  # samples of a group: read the common prompt once
                self._read(model, list(distinct.values()))
        matches = [self._longest_match(row) for row in rows]
        shared = [length for _, _, length in matches]
        kept, new = max(shared), max(len(row) - length for row, length in zip(rows, shared))
        self.reused_tokens += sum(shared)

        # Gaps hold a token of the context itself: what lowers the logits of tokens in it sees them, and padding is often the end token
        ids = np.repeat([row[:1] for row in rows], kept + new, axis=1)
        mask = np.zeros_like(ids)
        columns = np.zeros((len(rows), kept), dtype=np.int64)
        self._next_columns = []
        for index, (row, (block, source, length)) in enumerate(zip(rows, matches)):
            rest = kept + new - (len(row) - length)
            places = np.concatenate([np.arange(length), np.arange(rest, kept + new)])
            ids[index, places], mask[index, places] = row, 1
            if block is not None:
                columns[index, :length] = block.columns[source, :length]
            self._next_columns.append(places)
        cache = self._select(model, [(block, source) for block, source, _ in matches], columns)
        device = model.device
        return {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(mask).to(device),
            cache_argument(model): cache,
        }

    def keep(self, contexts: Sequence[Sequence[int]], sampled: torch.Tensor, cache: DynamicCache) -> None:
        """
        Store the keys and values that a call of `generate` has computed.

        Args:
            contexts (`Sequence[Sequence[int]]`):
                The contexts that were passed to [`~PrefixCache.prepare`].
            sampled (`torch.Tensor`):
                Sampled tokens, shape `(B, new tokens)`. The last token was sampled, but not read.
            cache ([`~transformers.DynamicCache`]):
                The cache of the call.
        """
        if cache.get_seq_length() == 0:  # the model did not use the cache
            return
        tokens = sampled[:, :-1].cpu().numpy()
        begin = cache.get_seq_length() - tokens.shape[1]
        added = np.arange(begin, begin + tokens.shape[1])
        self._remember(
            [np.concatenate([np.asarray(c, dtype=np.int64), t]) for c, t in zip(contexts, tokens)],
            [np.concatenate([places, added]) for places in self._next_columns],
            cache,
        )

    def _remember(self, ids: list[np.ndarray], columns: list[np.ndarray], cache: DynamicCache) -> None:
        longest = max(map(len, ids))
        own_ids = np.full((len(ids), longest), -1, dtype=np.int64)
        own_columns = np.zeros_like(own_ids)
        for index, (row, places) in enumerate(zip(ids, columns)):
            own_ids[index, : len(row)], own_columns[index, : len(row)] = row, places
        self._blocks.append(_Block(cache, own_ids, own_columns, np.ones(len(ids), dtype=bool)))

    def _longest_match(self, row: np.ndarray) -> tuple[_Block | None, int, int]:
        """`(block, row of it, tokens in common)`; the last token of a context is always read, since it yields the logits."""
        best: tuple[_Block | None, int, int] = (None, 0, 0)
        for block in reversed(self._blocks):
            limit = min(len(row) - 1, block.ids.shape[1])
            if limit > best[2]:
                source, alike = _longest_beginning(block.ids, row[:limit])
                if alike > best[2]:
                    best = block, source, alike
        return best

    def _read(self, model: PreTrainedModel, rows: list[np.ndarray]) -> None:
        """Read all but the last token of some contexts."""
        rows = [row[:-1] for row in rows]
        longest = max(map(len, rows))
        if longest == 0:
            return
        ids = np.full((len(rows), longest), self.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        one = {"logits_to_keep": 1} if forward_takes(model, "logits_to_keep") else {}
        cache = _new_cache(model)
        with torch.no_grad():
            model(
                input_ids=torch.from_numpy(ids).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
                use_cache=True,
                **{cache_argument(model): cache},
                **one,
            )
        if cache.get_seq_length() > 0:
            self._remember(rows, [np.arange(len(row)) for row in rows], cache)

    def _select(
        self, model: PreTrainedModel, picks: list[tuple[_Block | None, int]], columns: np.ndarray
    ) -> DynamicCache:
        """A cache with the given columns of the given rows of the blocks. Blocks without a wanted row are freed."""
        selected = _new_cache(model)
        places: dict[int, list[int]] = {}
        for place, (block, source) in enumerate(picks):
            if block is not None:
                block.wanted[source] = False
                places.setdefault(id(block), []).append(place)
        kept, freed = self._sort_out()
        for block in kept + freed:
            of_block = places.get(id(block), [])
            if of_block and columns.shape[1]:
                sources = np.asarray([picks[place][1] for place in of_block])
                whole = len(of_block) == len(picks)
                _copy(
                    block,
                    sources,
                    columns[of_block],
                    selected,
                    None if whole else (of_block, len(picks)),
                    block in freed,
                )
        self._blocks = [_compact(model, block) for block in kept]
        return selected

    def _sort_out(self) -> tuple[list[_Block], list[_Block]]:
        """The blocks that are kept, as many wanted rows as may be parked, the newest first; and the others."""
        room = self.parked
        kept: list[_Block] = []
        freed: list[_Block] = []
        for block in reversed(self._blocks):
            rows = block.wanted.nonzero()[0]
            block.wanted[rows[max(room, 0) :]] = False
            room -= len(rows)
            (kept if block.wanted.any() else freed).append(block)
        return kept[::-1], freed


def _longest_beginning(ids: np.ndarray, row: np.ndarray) -> tuple[int, int]:
    """
    The row of `ids` that has the most first tokens in common with `row`, the first of equals, and how many.

    Further and further columns are compared, of the rows alone that are the same so far: few are, and each context of a batch is looked for.
    """
    alike, begin, width = np.arange(len(ids)), 0, 64
    while begin < len(row):
        end = min(begin + width, len(row))
        differs = ids[alike, begin:end] != row[begin:end]
        others = differs.any(axis=1)
        if others.all():
            common = differs.argmax(axis=1)
            best = int(common.argmax())
            return int(alike[best]), begin + int(common[best])
        alike, begin, width = alike[~others], end, 4 * width
    return int(alike[0]), len(row)


def looks_for_sequences(option: Callable[[str], Any]) -> bool:
    """Whether what changes the logits depends on which tokens follow one another in the context."""
    biases = option("sequence_bias") or ()
    sequences = [
        *(biases if isinstance(biases, Mapping) else (one[0] for one in biases)),
        *(option("bad_words_ids") or ()),
    ]
    return any(option(name) for name in _READS_SEQUENCES) or any(len(sequence) > 1 for sequence in sequences)


def _copy(
    block: _Block,
    sources: np.ndarray,
    columns: np.ndarray,
    selected: DynamicCache,
    places: tuple[list[int], int] | None,
    frees: bool,
) -> None:
    """
    Copy columns of some rows of a block into a cache.

    Args:
        block (`_Block`):
            Where they are.
        sources (`numpy.ndarray`):
            `S` of its rows.
        columns (`numpy.ndarray`):
            Columns of each of these rows, shape `(S, kept)`.
        selected ([`~transformers.DynamicCache`]):
            Where they go: its layers are empty, or hold what was copied from other blocks.
        places (`tuple[list[int], int]` or `None`):
            Rows of `selected` that they go to, and how many rows it has. `None` if they are all of its rows.
        frees (`bool`):
            Whether the block is used up: a layer of it is dropped before the next is copied.
    """
    before: Any
    after: Any
    for before, after in zip(block.cache.layers, selected.layers):
        row = torch.from_numpy(sources).to(before.keys.device)[:, None]
        column = torch.from_numpy(columns).to(before.keys.device)
        states = [held[row, :, column].transpose(1, 2) for held in (before.keys, before.values)]
        if frees:
            before.reset()
        if places is None:
            after.update(*states)
            continue
        rows, count = places
        if not after.is_initialized:
            after.update(*(new.new_zeros(count, *new.shape[1:]) for new in states))
        after.keys[rows], after.values[rows] = states


def _compact(model: PreTrainedModel, block: _Block) -> _Block:
    """The block without its unwanted rows, if they are at least half of it; else the block itself."""
    rows = block.wanted.nonzero()[0]
    if 2 * len(rows) > len(block.wanted):
        return block
    longest = int((block.ids[rows] >= 0).sum(axis=1).max())
    ids, columns = block.ids[rows, :longest], block.columns[rows, :longest]
    smaller = _new_cache(model)
    _copy(block, rows, columns, smaller, None, frees=True)
    return _Block(smaller, ids, np.tile(np.arange(longest), (len(rows), 1)), np.ones(len(rows), dtype=bool))


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache
