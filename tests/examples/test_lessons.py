"""The lessons that the models made from scratch share: batches, loss, training, and first weights that copy."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import warm_start
from lessons import batches, completion_row, masked_loss, train, whole_loss

from mem1_trl.facts import load_facts


@pytest.fixture(scope="module")
def tokenizer():
    return warm_start.train_tokenizer([row["text"] for row in load_facts().corpus])


def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed():
    rng = random.Random(0)
    drawn = []

    def draw():
        drawn.append((list(range(rng.randint(1, 40))), [len(drawn)]))
        return drawn[-1]

    cut = batches(draw, rng, tokens_per_batch=100, rows=60)
    assert sorted(mark[0] for batch in cut for _, mark in batch) == list(range(60))
    assert all(len(batch) * max(len(ids) for ids, _ in batch) <= 100 for batch in cut)
    assert any(len(batch) > 2 for batch in cut)


def test_the_loss_is_the_mean_over_trained_tokens_whatever_the_padding(tokenizer):
    model = warm_start.build_model(tokenizer, 0)
    rows = [([5, 6, 7, 8, 9, 10], [False, False, True, True, False, True]), ([11, 12, 13], [False, True, False])]
    expected = []
    with torch.no_grad():
        for ids, trained in rows:
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected += [-logps[i - 1, ids[i]].item() for i in range(len(ids)) if trained[i]]
        for loss in (masked_loss, whole_loss):
            assert loss(model, rows, tokenizer.pad_token_id).item() == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert completion_row([5, 6], (7,)) == ([5, 6, 7], [False, False, True])


def test_first_weights_copy_repeated_text_before_any_training(tokenizer):
    model, lessons = warm_start.build_model(tokenizer, 0), warm_start.Lessons(tokenizer, 0)
    with torch.no_grad():
        loss = masked_loss(model, [lessons.copying() for _ in range(16)], tokenizer.pad_token_id).item()
    assert loss < 0.4 * math.log(warm_start.VOCAB_SIZE)  # the loss of a model that knows nothing


def test_training_goes_through_the_stages_and_lowers_the_loss(tokenizer, capsys):
    model, lessons = warm_start.build_model(tokenizer, 0), warm_start.Lessons(tokenizer, 0)
    checked = []
    rows = [lessons.reading() for _ in range(4)]
    before = masked_loss(model, rows, tokenizer.pad_token_id).item()
    final = train(
        model,
        [("first", 0.25, lessons.copying), ("second", 0.75, lessons.reading)],
        8,
        lambda draw: [rows] * 4,
        tokenizer.pad_token_id,
        learning_rate=3e-3,
        beta2=0.95,
        final_share=0.1,
        check=lambda: checked.append(len(checked)) or "checked",
        check_every=4,
    )
    assert list(final) == ["first", "second"] and len(checked) == 2
    assert masked_loss(model, rows, tokenizer.pad_token_id).item() < before - 0.1
    assert capsys.readouterr().out == "  checked\n" * 2
