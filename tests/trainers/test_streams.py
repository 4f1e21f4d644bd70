"""Tasks that come as a stream: evaluated in their order, and too few of them to train on."""

from __future__ import annotations

import re

import pytest
from datasets import IterableDataset
from support.ppo_helpers import make

from mem1_trl.evaluation import Evaluation, compare


def stream(rows: int) -> IterableDataset:
    return IterableDataset.from_generator(lambda: ({"prompt": f"q{i}?", "secret": "1"} for i in range(rows)))


def test_a_stream_is_evaluated_in_its_order_whatever_the_seed(tmp_path, tokenizer, actor_path):
    found = []
    for seed in (0, 1):
        trainer = make(
            tmp_path / str(seed), actor_path, tokenizer, eval_dataset={"all": stream(6)}, save_eval_trajectories=True, seed=seed,
            per_device_eval_batch_size=4,
        )  # fmt: skip
        trainer.evaluate()
        trainer.predict(stream(6))
        folder = tmp_path / str(seed) / "evaluation"
        found.append([Evaluation.load(folder, name) for name in ("eval_all-0", "test-0")])
    for one in (*found[0], *found[1]):
        assert [task.task["prompt"] for task in one.tasks] == [f"q{i}?" for i in range(6)]
    assert compare(found[0][0], found[1][0]).count == 6


def test_each_row_of_a_stream_is_sampled_as_often_as_is_asked_for(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, eval_dataset=stream(3), num_generations_eval=2, eval_temperature=1.0, per_device_eval_batch_size=4,
    )  # fmt: skip
    played, start = [], trainer.prepare_rows

    def prepare_rows(rows):
        played.extend(row["prompt"] for row in rows)
        return start(rows)

    trainer.prepare_rows = prepare_rows
    trainer.evaluate()
    trainer.predict(stream(3))
    assert played == ["q0?", "q0?", "q1?", "q1?", "q2?", "q2?"] * 2


def test_a_stream_may_be_shuffled_before_and_after(tmp_path, tokenizer, actor_path):
    given = stream(6)
    trainer = make(tmp_path, actor_path, tokenizer, eval_dataset=given)
    trainer.get_eval_dataloader()
    assert "shuffle" not in vars(given) and given.shuffle(seed=1) is not given
    mixed = [row["prompt"] for row in given.shuffle(seed=1)]
    assert mixed != [f"q{i}?" for i in range(6)]
    assert [row["prompt"] for row in trainer.get_eval_dataloader(given.shuffle(seed=1)).dataset] == mixed


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (1, "The train dataset has 1 row, but one generation batch takes 4 tasks: add rows"),
        (0, "The train dataset must have at least one row, got none"),
    ],
)
def test_a_stream_with_too_few_rows_for_a_batch_is_an_error(tmp_path, tokenizer, actor_path, rows, words):
    trainer = make(tmp_path, actor_path, tokenizer, train_dataset=stream(rows), max_steps=1)
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer.train()


def test_a_finished_run_that_is_resumed_makes_no_step(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, train_dataset=stream(8), max_steps=1, save_strategy="steps", save_steps=1
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 1
    # Finished, and gone on with; its stream may have come to its end
    trainer = make(tmp_path, actor_path, tokenizer, train_dataset=stream(1), max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.began_at, trainer.state.global_step) == (1, 1)
