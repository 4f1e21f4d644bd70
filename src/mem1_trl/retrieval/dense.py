"""Dense retrieval: passages and queries as vectors of any sentence encoder, searched with faiss."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..optional_packages import require
from .checksum import checksum_of
from .passages import Passage, PassageFile, PassageWriter, check_search, read_corpus, read_manifest

Encoder = Callable[[list[str]], Any]
"""Texts to an array of one vector each, such as the `encode` of a `SentenceTransformer`."""

_FORMAT = "mem1-dense"
_VERSION = 1


class TransformersEncoder:
    """
    A sentence encoder from a model of Transformers: the last hidden states, pooled to one vector.

    For a model that needs more than that, such as a projection, pass the `encode` of a `SentenceTransformer` to
    [`DenseIndex`] instead.

    Args:
        model_name_or_path (`str`):
            Id or path, such as `"intfloat/e5-base-v2"`.
        pooling (`str`, *optional*, defaults to `"mean"`):
            `"mean"` (E5, MiniLM, GTE), `"cls"` (BGE) or `"last"` (embedding models made from language models), as the
            model was trained.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of a text that are read.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts per forward pass.
        device (`str`, *optional*):
            Where to run it; `None` is the GPU if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Floating point type of the model.

    Raises:
        `ValueError`: if `pooling` is none of the three.
    """

    def __init__(
        self,
        model_name_or_path: str,
        pooling: str = "mean",
        max_length: int = 512,
        batch_size: int = 64,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if pooling not in ("mean", "cls", "last"):
            raise ValueError(f"`pooling` is {pooling!r}: it is 'mean', 'cls' or 'last', as the model was trained.")
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.model_name_or_path = str(model_name_or_path)
        self.pooling = pooling
        self.max_length = max_length
        self.batch_size = batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, padding_side="right")
        self._model = AutoModel.from_pretrained(model_name_or_path, dtype=dtype).to(self._device).eval()
        self._lock = threading.Lock()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """One float32 vector for each text."""
        import torch

        # Similar lengths together, so that little is padded
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors: list[Any] = [None] * len(texts)
        with self._lock, torch.inference_mode():  # fast tokenizers cannot be shared by threads
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = self._tokenizer(
                    [texts[index] for index in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self.max_length,
                    return_tensors="pt",
                ).to(self._device)
                hidden = self._model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"]
                if self.pooling == "cls":
                    pooled = hidden[:, 0]
                elif self.pooling == "last":
                    pooled = hidden[torch.arange(len(chosen), device=hidden.device), mask.sum(1) - 1]
                else:
                    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                for index, vector in zip(chosen, pooled.cpu().numpy(), strict=True):
                    vectors[index] = vector
        return np.stack(vectors)


class DenseIndex:
    """
    Passages by the similarity of their vectors with that of the query. Needs `pip install "mem1-trl[dense]"`.

    Args:
        corpus (`datasets.Dataset` or iterable of mappings or of pairs):
            Passages, as in [`Bm25Index`]. What is encoded is `"{title}\\n{text}"`, as in Search-R1.
        encoder (`str` or `Callable[[list[str]], array]`):
            An id or path for [`TransformersEncoder`], or any function from texts to vectors, such as
            `SentenceTransformer(id).encode`. It may be called from several threads.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title in a mapping.
        text (`str`, *optional*, defaults to `"text"`):
            Key of the text in a mapping.
        query_prefix (`str`, *optional*, defaults to `""`):
            Put before each query; E5 wants `"query: "`.
        passage_prefix (`str`, *optional*, defaults to `""`):
            Put before each passage; E5 wants `"passage: "`.
        normalize (`bool`, *optional*, defaults to `True`):
            Scale vectors to length 1, so that the score is the cosine; otherwise it is the inner product.
        index (`str`, *optional*, defaults to `"Flat"`):
            Kind of faiss index, as faiss's `index_factory` calls it: `"Flat"` is exact and keeps all vectors (4 bytes a
            number); `"HNSW32"` and `"IVF4096,PQ64"` are faster or smaller, and approximate.
        batch_size (`int`, *optional*, defaults to `1024`):
            Passages handed to the encoder at once.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.

    Raises:
        `ImportError`: if faiss is not installed.
        `ValueError`: if the corpus is empty, a passage lacks its text, or the encoder gives no vectors.

    Example:

    ```python
    >>> index = DenseIndex(corpus, "intfloat/e5-base-v2", query_prefix="query: ", passage_prefix="passage: ")
    >>> index.save("wiki-e5")
    >>> index = DenseIndex.load("wiki-e5")
    ```
    """

    def __init__(
        self,
        corpus: Iterable[Mapping[str, Any]] | Iterable[tuple[str, str]],
        encoder: str | Encoder,
        title: str = "title",
        text: str = "text",
        query_prefix: str = "",
        passage_prefix: str = "",
        normalize: bool = True,
        index: str = "Flat",
        batch_size: int = 1024,
        show_progress: bool = False,
    ) -> None:
        faiss = _faiss()
        self._encoder_name = encoder if isinstance(encoder, str) else None
        self._encoder: Encoder = TransformersEncoder(encoder) if isinstance(encoder, str) else encoder
        self._query_prefix = query_prefix
        self._normalize = normalize
        passages = list(read_corpus(corpus, title, text))
        if not passages:
            raise ValueError("The corpus is empty: pass at least one passage with a title and a text.")
        self._passages: Sequence[tuple[str, str]] | PassageFile = passages
        self._columns = (title, text)

        from tqdm import tqdm

        vectors = []
        with tqdm(total=len(passages), desc="encoding", unit=" passages", disable=not show_progress) as bar:
            remaining = iter(passages)
            while batch := list(islice(remaining, batch_size)):
                vectors.append(self._encode([f"{passage_prefix}{a}\n{b}" for a, b in batch]))
                bar.update(len(batch))
        matrix = np.concatenate(vectors)
        try:
            self._index = faiss.index_factory(matrix.shape[1], index, faiss.METRIC_INNER_PRODUCT)
            self._index.train(matrix)
        except RuntimeError as error:
            raise ValueError(
                f"faiss cannot build an index {index!r} over {len(matrix)} vectors of {matrix.shape[1]} numbers: use "
                f"'Flat', which always works ({str(error).splitlines()[-1]})."
            ) from None
        self._index.add(matrix)

    @classmethod
    def from_faiss(
        cls,
        index: Any,
        passages: Any,
        encoder: str | Encoder,
        query_prefix: str = "",
        normalize: bool = True,
        title: str = "title",
        text: str = "text",
    ) -> DenseIndex:
        """
        An index whose vectors were made elsewhere, such as the `e5_Flat.index` that Search-R1 publishes for Wikipedia.

        Args:
            index (`str`, `Path` or `faiss.Index`):
                The index or its file, which is mapped into memory where faiss can do that.
            passages (`Sequence`):
                The passages in the order of the vectors: mappings or pairs, looked up by number. A `datasets.Dataset` does
                so from disk.
            encoder, query_prefix, normalize (*optional*):
                As in [`DenseIndex`]; they must be those the vectors were made with.
            title, text (`str`, *optional*):
                Keys of a passage that is a mapping.

        Returns:
            [`DenseIndex`]: the index.

        Raises:
            `ValueError`: if there are not as many passages as vectors.
        """
        self = cls.__new__(cls)
        self._index = _read_index(Path(index)) if isinstance(index, (str, Path)) else index
        if len(passages) != self._index.ntotal:
            raise ValueError(
                f"There are {len(passages):,} passages but {self._index.ntotal:,} vectors: pass the corpus that the index "
                "was made from, in its order."
            )
        self._passages = passages
        self._columns = (title, text)
        self._encoder_name = encoder if isinstance(encoder, str) else None
        self._encoder = TransformersEncoder(encoder) if isinstance(encoder, str) else encoder
        self._query_prefix = query_prefix
        self._normalize = normalize
        return self

    def save(self, directory: str | Path) -> None:
        """
        Write the index with its passages. The directory appears when it is complete.

        Args:
            directory (`str` or `Path`):
                Where to; it must not exist.

        Raises:
            `FileExistsError`: if it does.
        """
        directory = Path(directory)
        if directory.exists():
            raise FileExistsError(f"{str(directory)!r} is there already: choose another directory.")
        directory.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.building-", dir=directory.parent))
        try:
            writer = PassageWriter(building)
            for number in range(len(self)):
                writer.add(*self._passage(number))
            writer.close()
            _faiss().write_index(self._index, str(building / "vectors.faiss"))
            manifest = {
                "format": _FORMAT,
                "version": _VERSION,
                "passages": len(self),
                "encoder": self._encoder_name,
                "query_prefix": self._query_prefix,
                "normalize": self._normalize,
            }
            (building / "index.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            building.chmod(0o755)
            building.rename(directory)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise

    @classmethod
    def load(cls, directory: str | Path, encoder: str | Encoder | None = None) -> DenseIndex:
        """
        Load an index that [`~DenseIndex.save`] wrote. Passages are mapped from disk, vectors too where faiss can do that.

        Args:
            directory (`str` or `Path`):
                Where it is.
            encoder (`str` or `Callable`, *optional*):
                The encoder that the vectors were made with; `None` takes the id it was made with, if it was one.

        Raises:
            `FileNotFoundError`: if the directory holds no index.
            `ValueError`: if it is of another kind, or the encoder is not known.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
            raise ValueError(
                f"{str(directory)!r} is not a dense index that this version of mem1-trl reads: rebuild it."
            )
        encoder = manifest.get("encoder") if encoder is None else encoder
        if encoder is None:
            raise ValueError(
                f"The index {str(directory)!r} was made with a function as encoder: pass it, "
                "`DenseIndex.load(directory, encoder=...)`."
            )
        try:
            vectors, passages = _read_index(directory / "vectors.faiss"), PassageFile(directory)
            how = {name: manifest[name] for name in ("query_prefix", "normalize")}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"The index {str(directory)!r} is damaged ({error}): build it again.") from None
        return cls.from_faiss(vectors, passages, encoder, **how)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._passages)

    @cached_property
    def checksum(self) -> str:
        """Tells the passages apart from others; vectors that another encoder has made of the same are not."""
        return checksum_of(self._passages, self._passage)

    def search(self, queries: Sequence[str], top_k: int = 3) -> list[list[Passage]]:
        """
        The most similar passages for each query.

        Args:
            queries (`Sequence[str]`):
                Any number of queries; they are encoded together.
            top_k (`int`, *optional*, defaults to `3`):
                Largest number of passages per query.

        Returns:
            `list[list[Passage]]`: one list per query, best first; empty for a query without text.

        Raises:
            `TypeError`: if `queries` is a single string, or holds something else than strings.
            `ValueError`: if `top_k` is below 1.
        """
        check_search(queries, top_k)
        asked = [number for number, query in enumerate(queries) if query.strip()]
        results: list[list[Passage]] = [[] for _ in queries]
        if not asked:
            return results
        vectors = self._encode([self._query_prefix + queries[number] for number in asked])
        if vectors.shape[1] != self._index.d:
            raise ValueError(
                f"The encoder gives vectors of {vectors.shape[1]} numbers, the index holds vectors of {self._index.d}: "
                "pass the encoder that it was made with."
            )
        scores, numbers = self._index.search(vectors, min(top_k, len(self)))
        for query, row, found in zip(asked, scores.tolist(), numbers.tolist(), strict=True):
            results[query] = [
                Passage(*self._passage(number), score) for number, score in zip(found, row, strict=True) if number >= 0
            ]
        return results

    def _passage(self, number: int) -> tuple[str, str]:
        passage = self._passages[number]
        [pair] = [passage] if isinstance(passage, tuple) else read_corpus([passage], *self._columns)
        return pair

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.ascontiguousarray(self._encoder(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"The encoder gave an array of shape {vectors.shape} for {len(texts)} texts: it must give one vector each."
            )
        if not np.isfinite(vectors).all():
            raise ValueError("The encoder gave numbers that are not finite: check its weights and its dtype.")
        if self._normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def _faiss() -> Any:
    return require("faiss", "dense", "Dense retrieval")


def _read_index(path: Path) -> Any:
    faiss = _faiss()
    if not path.is_file():
        raise FileNotFoundError(f"There is no faiss index {str(path)!r}.")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (AttributeError, RuntimeError):  # older faiss, or a kind of index that cannot be mapped
        pass
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"{str(path)!r} is not a faiss index, or was cut off ({str(error).splitlines()[-1]})."
        ) from None
