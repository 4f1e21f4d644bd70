"""Streams of tasks, of which it is known only after a run how many there were."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset

from .checks import check_rows, check_size


def check_stream(dataset: Any, args: Any) -> None:
    """
    Say of a stream that it has too few rows for a generation batch, as is said of other data sets when the trainer is built.

    Args:
        dataset (`Any`):
            What a run was to train on that has made no step. A stream is read once more, so far as one generation batch can take it.
        args ([`Mem1GRPOConfig`]):
            The size of a generation batch.

    Raises:
        `ValueError`: If it has too few rows, or none.
    """
    if not isinstance(dataset, IterableDataset):
        return
    rows = sum(1 for _ in dataset.take(args.generation_batch_size))
    counted = Dataset.from_dict({"row": list(range(rows))})
    check_rows("train dataset", counted, None, None)
    check_size(counted, args)
