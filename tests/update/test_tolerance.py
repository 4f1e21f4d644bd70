"""What counts as rounding: it depends on how a GPU multiplies, which PyTorch lets one set in three ways."""

from __future__ import annotations

import pytest
import torch
from support.helpers import tiny_model
from transformers.utils.import_utils import enable_tf32

from mem1_trl.update.self_check import tolerance_of, uses_tf32


@pytest.fixture
def precisions():
    """PyTorch's settings of float32 products, as they were before the test."""
    backends = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [getattr(one, "fp32_precision", None) for one in backends]
    yield
    for one, value in zip(backends, before):
        if value is not None:
            one.fp32_precision = value


@pytest.mark.parametrize(
    ("setting", "rounds"),
    [
        (lambda: None, False),
        (lambda: enable_tf32(True), True),
        (lambda: enable_tf32(False), False),
        (lambda: torch.set_float32_matmul_precision("high"), True),
        (lambda: torch.set_float32_matmul_precision("highest"), False),
        (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), True),
    ],
    ids=["as it is", "tf32=True", "tf32=False", "high", "highest", "allow_tf32"],
)
def test_rounding_of_products_is_known_however_it_was_set(precisions, monkeypatch, setting, rounds):
    setting()
    assert not uses_tf32()  # there is no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert uses_tf32() is rounds
    assert tolerance_of(tiny_model("llama")).largest == (2e-2 if rounds else 2e-3)
