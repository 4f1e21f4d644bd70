"""Differences of two agents, against numbers known without a bootstrap."""

from __future__ import annotations

import dataclasses
import math
import tempfile

import numpy as np
import pytest
from PIL import Image

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.evaluation import EvaluatedTask, Evaluation, compare
from mem1_trl.evaluation.evaluate import tasks_checksum


def evaluation(scores, label="a", metric="success", prefix="q", rows=None):
    tasks = [
        EvaluatedTask(
            i,
            {"prompt": f"{prefix}{i}"} if rows is None else rows[i],
            f"{prefix}{i}",
            Trajectory((Turn((1,), (2,)),), stop_reason=StopReason.ANSWER),
            {metric: float(score)},
        )
        for i, score in enumerate(scores)
    ]
    return Evaluation.from_tasks(tasks, agent=label, resamples=10)


def test_the_difference_of_one_pair_by_hand():
    found = compare(evaluation([1, 1, 0, 1, 0]), evaluation([0, 1, 0, 0, 1]))
    assert (found.metric, found.a, found.b) == ("success", pytest.approx(0.6), pytest.approx(0.4))
    assert found.difference == pytest.approx(0.2) and found.by_seed == (pytest.approx(0.2),)
    assert (found.better, found.worse, found.count) == (2, 1, 5)
    assert str(found) == (
        f"success: 0.600 - 0.400 = +0.200 [{found.low:+.3f}, {found.high:+.3f}], 2 better and 1 worse of 5 pairs"
    )


def test_pairing_takes_out_how_hard_a_task_is():
    """Scores that vary much from task to task, and a difference that does not."""
    hard = np.random.default_rng(0).normal(size=200)
    found = compare(evaluation(hard + 0.1), evaluation(hard))
    assert found.low == pytest.approx(0.1) == found.high and found.is_clear
    assert not compare(evaluation(hard), evaluation(hard)).is_clear


def test_the_difference_is_that_of_the_means_where_tasks_were_played_unequally_often():
    """One task eight times, on which `a` is better, and two once, on which it is worse: each episode weighs the same, as in the means."""
    rows = [{"prompt": "often"}] * 8 + [{"prompt": "p"}, {"prompt": "q"}]
    first, second = evaluation([1] * 8 + [0, 0], rows=rows), evaluation([0] * 8 + [1, 1], rows=rows)
    for a, b in ((first, second), ([first] * 3, [second] * 3)):
        found = compare(a, b)
        assert (found.a, found.b, found.count) == (pytest.approx(0.8), pytest.approx(0.2), 3 * len(found.by_seed))
        assert found.difference == pytest.approx(0.6) and found.by_seed[0] == pytest.approx(0.6)
        assert found.low == pytest.approx(-1.0) and found.high == pytest.approx(1.0)


def test_the_interval_of_tasks_played_unequally_often_is_that_of_the_mean():
    """A comparison with an agent that scores 0 everywhere has the interval of the scores themselves."""
    generator = np.random.default_rng(2)
    rows = [{"prompt": f"q{number}"} for number in generator.integers(0, 60, size=200)]
    scores = generator.integers(0, 2, size=200)
    one = evaluation(scores, rows=rows)
    of_scores = Evaluation.from_tasks(one.tasks, resamples=2000).statistics["success"]
    found = compare(one, evaluation([0] * 200, rows=rows), resamples=2000)
    assert (found.difference, found.low, found.high) == (of_scores.mean, of_scores.low, of_scores.high)


def test_rows_that_differ_in_a_long_column_are_not_the_same_task(tmp_path):
    """As fresh ones, and after they were saved and read."""
    texts = ["a" * 18_000, "b" * 18_000]
    rows = [{"prompt": "What is the title?", "document": text} for text in texts * 3]
    one = evaluation([1, 0] * 3, rows=rows)
    other = evaluation([0, 0] * 3, rows=rows)
    swapped = evaluation([0, 0] * 3, rows=rows[::-1])
    for number, each in enumerate((one, other, swapped)):
        each.save(tmp_path, str(number))
    saved = [Evaluation.load(tmp_path, str(number)) for number in range(3)]
    assert (tmp_path / "0.jsonl").stat().st_size < 10_000
    for a, b, c in ((one, other, swapped), saved, (one, saved[1], saved[2])):
        found = compare(a, b)
        assert (found.count, found.better) == (2, 1)
        with pytest.raises(ValueError, match="must have played the same tasks in the same order, but task 0"):
            compare(a, c)


@pytest.mark.parametrize(
    ("answers", "objectives"),
    [
        (42, None),
        ("Paris", None),
        ({"text": ["Paris"]}, None),
        ([], None),
        ([["Paris"], ["26", "25"]], 2),
        (None, None),
    ],
)
def test_a_column_of_answers_that_is_none_has_no_objectives(answers, objectives):
    """A trainer's own evaluation takes any columns: it broke after everything had been played."""
    assert evaluation([1], rows=[{"prompt": "q", "answers": answers}]).objectives == objectives


def test_what_is_not_an_evaluation_is_refused():
    results = {2: evaluation([1]), 4: evaluation([0])}
    with pytest.raises(TypeError, match=r"got 2: pass one, such as `results\[2\]`\."):
        compare(results, results)
    with pytest.raises(TypeError, match=r"got 0\.5: pass one\."):
        compare([0.5], [0.4])


def test_a_handful_of_pairs_is_never_clear():
    """All of them go one way, so that every bootstrap mean does."""
    for pairs in (2, 5, 6):
        found = compare(evaluation([1] * pairs), evaluation([0] * pairs))
        assert found.low == found.high == 1.0 and found.is_clear == (pairs == 6)


def test_the_interval_of_one_seed_is_the_normal_one():
    generator = np.random.default_rng(1)
    a, b = (generator.integers(0, 2, size=400) for _ in range(2))
    found = compare(evaluation(a), evaluation(b), resamples=20_000)
    spread = 1.96 * (a - b).std() / math.sqrt(400)
    assert found.high - found.difference == pytest.approx(spread, abs=0.006)
    assert found.difference - found.low == pytest.approx(spread, abs=0.006)


def test_samples_of_a_task_are_one_pair():
    """One task of six is better, four times: no more is known than if it had been played once."""
    rows = [{"prompt": f"q{i}"} for i in range(6) for _ in range(4)]
    better, worse = ([float(row["prompt"] in won) for row in rows] for won in (("q0", "q1"), ("q0",)))
    found = compare(evaluation(better, rows=rows), evaluation(worse, rows=rows))
    once = compare(evaluation([1, 1, 0, 0, 0, 0]), evaluation([1, 0, 0, 0, 0, 0]))
    assert found == once and (found.better, found.count) == (1, 6) and not found.is_clear


@pytest.mark.parametrize("seeds", [1, 2])
def test_differences_of_tasks_that_ask_the_same_are_not_independent(seeds):
    """Forty tasks about twenty questions, each of which decides both of its tasks."""
    rows = [{"prompt": f"q{i}", "questions": [f"question {i % 20}"]} for i in range(40)]
    others = [{**row, "questions": [str(i)]} for i, row in enumerate(rows)]
    scores = [float(i % 20 < 6) for i in range(40)]
    found, alone = (
        compare([evaluation(scores, rows=of)] * seeds, [evaluation([0] * 40, rows=of)] * seeds)
        for of in (rows, others)
    )
    assert found.difference == alone.difference == pytest.approx(0.3)
    factor = math.sqrt(0.3 * 0.7 / 19) / math.sqrt(0.3 * 0.7 / 39)  # the standard error of twenty
    assert found.high - found.low == pytest.approx(factor * (alone.high - alone.low), rel=0.02)


def test_seeds_are_resampled_too():
    """Two seeds that differ in nothing but a constant: a resample holds each twice, or both."""
    zeros = [evaluation([0] * 50, prefix=f"{seed}-") for seed in range(2)]
    found = compare([evaluation([0] * 50, prefix="0-"), evaluation([1] * 50, prefix="1-")], zeros)
    assert (found.difference, found.low, found.high, found.by_seed) == (0.5, 0.0, 1.0, (0.0, 1.0))


def test_tasks_of_their_own_tell_more_than_the_same_tasks_again():
    scores = np.random.default_rng(2).integers(0, 2, size=300)
    zeros = np.zeros(300)
    one = compare(evaluation(scores), evaluation(zeros), resamples=5000)
    # The very same results in four seeds say no more than one seed
    again = compare([evaluation(scores)] * 4, [evaluation(zeros)] * 4, resamples=5000)
    assert again.high - again.low == pytest.approx(one.high - one.low, abs=0.01)
    # On four sets of other tasks they say as much as four times the tasks
    others = [evaluation(scores, prefix=f"{seed}-") for seed in range(4)]
    more = compare(others, [evaluation(zeros, prefix=f"{seed}-") for seed in range(4)], resamples=5000)
    assert more.high - more.low == pytest.approx((one.high - one.low) / 2, abs=0.01)


def test_the_score_is_found_or_named():
    a, b = (evaluation([1, 0], metric="kept") for _ in range(2))
    with pytest.raises(ValueError, match="name it with `metric=`"):
        compare(a, b)
    assert compare(a, b, "kept").difference == 0.0
    with pytest.raises(ValueError, match="no task of both has 'f1'; they share kept"):
        compare(a, b, "f1")


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="the same tasks in the same order, but task 0 of 'a'"):
        compare(evaluation([1]), evaluation([1], prefix="p"))
    with pytest.raises(ValueError, match="'a' has 1 and 'b' 2"):
        compare(evaluation([1]), evaluation([1, 0], "b"))
    with pytest.raises(ValueError, match=r"seed by seed.*got 1 and 2"):
        compare(evaluation([1]), [evaluation([1])] * 2)


@pytest.mark.parametrize(
    "columns",
    [{"passages": "x" * 10_001}, {"answers": (("a",),)}, {"weights": np.arange(3)}, {"answers": [["a"]]}],
    ids=["long", "tuple", "array", "plain"],
)
def test_what_was_just_played_is_compared_with_what_was_saved(tmp_path, columns):
    def of(score, **change):
        (task,) = evaluation([score]).tasks
        return Evaluation.from_tasks(
            [dataclasses.replace(task, task={**task.task, **columns, **change})], resamples=10
        )

    of(0).save(tmp_path, "before")
    before = Evaluation.load(tmp_path, "before")
    assert compare(of(1), before).difference == compare(of(1), of(0)).difference == 1.0
    with pytest.raises(ValueError, match="must have played the same tasks"):
        compare(of(1, prompt="another"), before)


def test_an_episode_that_could_not_start_leaves_the_tasks_the_same():
    """Its prompt is not known; were the tasks drawn apart for each seed for that, the interval would be half as wide."""
    generator = np.random.default_rng(3)
    hard = generator.normal(size=100)
    seeds = [evaluation(hard + 0.1) for _ in range(5)]
    whole = compare(seeds, [evaluation(np.zeros(100))] * 5)
    lost = dataclasses.replace(seeds[2].tasks[7], prompt_text="the raw row")
    failed = Evaluation.from_tasks([*seeds[2].tasks[:7], lost, *seeds[2].tasks[8:]], agent="a", resamples=10)
    found = compare([*seeds[:2], failed, *seeds[3:]], [evaluation(np.zeros(100))] * 5)
    assert (found.low, found.high) == (whole.low, whole.high)


def test_a_task_that_all_seeds_have_played_counts_once():
    one, other = evaluation([1] * 4 + [0] * 96), evaluation([0] * 100)
    alone, seeds = compare(one, other), compare([one, one], [other, other])
    assert (alone.differing, seeds.differing, seeds.better) == (4, 4, 8)
    assert not alone.is_clear and not seeds.is_clear and seeds.low > 0
    apart = compare([one, evaluation([1] * 4 + [0] * 96, prefix="r")], [other, evaluation([0] * 100, prefix="r")])
    assert apart.differing == 8 and apart.is_clear


def test_tasks_that_lack_the_score_in_some_seeds_are_the_same_tasks_all_the_same():
    """Four equal seeds of sixty tasks, in each of which another episode could not start: the interval is that of the whole, nearly."""
    hard = np.random.default_rng(4).normal(0, 10, size=60)

    def seed(missing):
        one = evaluation(hard, metric="peak_tokens")
        tasks = [dataclasses.replace(task, scores={}) if task.index == missing else task for task in one.tasks]
        return Evaluation.from_tasks(tasks, agent="a", resamples=10)

    other = evaluation(np.zeros(60), metric="peak_tokens")
    whole, same, spread = (
        compare([seed(at) for at in missing], [other] * 4, "peak_tokens")
        for missing in ([None] * 4, [5] * 4, [0, 20, 40, 59])
    )
    width = whole.high - whole.low
    assert same.high - same.low == pytest.approx(width, rel=0.1)
    assert spread.high - spread.low == pytest.approx(width, rel=0.1)
    assert (whole.count, same.count, spread.count) == (240, 236, 236)
    assert (whole.differing, same.differing, spread.differing) == (60, 59, 60)
    assert spread.difference == pytest.approx(np.mean([np.delete(hard, at).mean() for at in (0, 20, 40, 59)]))


def test_a_seed_with_a_single_scored_task_has_an_interval():
    one = evaluation([1.0, 2.0, 3.0])
    tasks = [task if task.index == 0 else dataclasses.replace(task, scores={}) for task in one.tasks]
    found = compare([one, Evaluation.from_tasks(tasks, agent="a", resamples=10)], [evaluation([0.0] * 3)] * 2)
    assert found.count == 4 and np.isfinite([found.low, found.high]).all()


def test_tasks_on_which_seeds_differ_in_opposite_ways_do_differ():
    one, other = evaluation([1] * 10 + [0] * 10), evaluation([0] * 10 + [1] * 10)
    assert compare([one, other], [other, one]).differing == 20


def test_questions_of_any_length_are_saved():
    """Tasks that ask the same were taken for independent once they were loaded, which made intervals narrower by a factor of six."""
    texts = [f"{number}: {'x' * 700}" for number in range(60)]
    order = np.random.default_rng(0)
    asked = [order.permutation(60)[:16] for _ in range(100)]
    scores = [float(np.mean(one)) / 60 for one in asked]
    rows = [{"prompt": f"t{i}", "questions": [texts[j] for j in one]} for i, one in enumerate(asked)]
    played = evaluation(scores, rows=rows)
    with tempfile.TemporaryDirectory() as folder:
        played.save(folder, "a")
        loaded = Evaluation.load(folder, "a")
    assert Evaluation.from_tasks(loaded.tasks, resamples=10).statistics == played.statistics
    alone = evaluation(scores, rows=[{"prompt": row["prompt"]} for row in rows])
    assert played.statistics["success"].stderr > 3 * alone.statistics["success"].stderr


def test_a_task_is_the_same_whatever_the_order_of_its_columns():
    rows = [{"prompt": "p", "k": 1}, {"k": 1, "prompt": "p"}, {"prompt": "r", "k": 1}, {"prompt": "r", "k": 1}]
    mixed, same = (evaluation([1, 1, 0, 0], rows=one) for one in (rows, [dict(sorted(row.items())) for row in rows]))
    assert mixed.statistics == same.statistics


def test_a_row_with_an_image_is_known_when_it_is_read_again():
    """It was told by the address of the object."""

    def row(color):
        return {"prompt": "p", "image": Image.new("RGB", (4, 4), color), "other": object()}

    assert compare(evaluation([1.0], rows=[row("red")]), evaluation([0.0], rows=[row("red")])).difference == 1.0
    with pytest.raises(ValueError, match="must have played the same tasks"):
        compare(evaluation([1.0], rows=[row("red")]), evaluation([0.0], rows=[row("blue")]))
    long = [np.zeros(2000), np.zeros(2000)]
    long[1][1000] = 1
    assert tasks_checksum([row("red")]) == tasks_checksum([row("red")]) != tasks_checksum([row("blue")])
    assert tasks_checksum([{"x": long[0]}]) != tasks_checksum([{"x": long[1]}])


def test_one_task_is_one_pair_however_often_it_was_played():
    """What is clear must be so on several tasks: six episodes of one task are not six tasks."""
    rows = [{"prompt": "x"}] * 6
    found = compare(evaluation([1.0] * 6, rows=rows), evaluation([0.0] * 6, rows=rows))
    assert (found.difference, found.count, found.better, found.differing, found.is_clear) == (1.0, 1, 1, 1, False)
    seeds = [evaluation([1.0] * 6, rows=rows)] * 2, [evaluation([0.0] * 6, rows=rows)] * 2
    assert compare(*seeds).differing == 1 and not compare(*seeds).is_clear


@pytest.mark.parametrize("seeds", [1, 2])
def test_draws_and_seed_of_a_comparison_are_checked(seeds):
    one = [evaluation([1.0, 0.0])] * seeds
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, got 0"):
        compare(one, one, resamples=0)
    with pytest.raises(ValueError, match=r"seed must be .*, got -1"):
        compare(one, one, seed=-1)
