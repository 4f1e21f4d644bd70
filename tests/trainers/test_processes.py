"""Invariant 5: the gradient does not depend on how trajectories are split over micro-batches and processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def run(tmp_path, fork_server):
    """Optimizer steps of a kind of training: gradient and log of the last one, from `scripted_steps.py`."""

    def step(
        kind: str,
        processes: int,
        per_device: int,
        accumulation: int,
        *others: str,
        max_tokens: int = 0,
        steps: int = 1,
    ) -> dict:
        output = tmp_path / f"{kind}-{processes}-{per_device}-{max_tokens}.pt"
        numbers = [f"--per-device={per_device}", f"--accumulation={accumulation}"]
        numbers += [f"--max-tokens={max_tokens}"] if max_tokens else []
        numbers += [f"--steps={steps}", *others]
        done = fork_server.run(SCRIPTS / "scripted_steps.py", kind, output, *numbers, ranks=processes, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        found = torch.load(output, weights_only=False)
        return {**found, "stderr": done.stderr, "gradient": found["gradients"][-1], "log": found["logs"][-1]}

    return step


def relative_error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    a = torch.cat([one[name].flatten() for name in one])
    b = torch.cat([other[name].flatten() for name in one])
    assert a.norm() > 0
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_gradient_is_independent_of_micro_batches_and_processes(run, kind):
    whole = run(kind, processes=1, per_device=8, accumulation=1)
    assert whole["log"]["episode/turns"] > 1.5, "the episodes must have several turns, and differ"
    assert "micro_batch/parts" not in whole["log"]
    others = {
        "split": run(kind, processes=1, per_device=2, accumulation=4),
        "parallel": run(kind, processes=2, per_device=2, accumulation=2),
        "by tokens": run(kind, processes=1, per_device=8, accumulation=1, max_tokens=400),
        "parallel by tokens": run(kind, processes=2, per_device=4, accumulation=1, max_tokens=200),
    }
    assert {name: other["processes"] for name, other in others.items() if other["processes"] > 1} == {
        "parallel": 2,
        "parallel by tokens": 2,
    }
    assert whole["gradient"].keys() == ({"policy", "critic"} if kind == "ppo" else {"policy"})
    for name, other in others.items():
        assert (other["log"]["micro_batch/parts"] > 1) == ("tokens" in name)
        assert other["log"]["micro_batch/tokens_max_over_mean"] < 1.1
        assert other["gradient"].keys() == whole["gradient"].keys()
        for part in whole["gradient"]:
            assert relative_error(whole["gradient"][part], other["gradient"][part]) < 1e-5, (name, part)
        for key in ("reward", "episode/turns", "episode/dependency_length"):
            assert other["log"][key] == pytest.approx(whole["log"][key]), key


def test_a_critic_is_averaged_once_a_step(run):
    """However many passes the step takes: until the last of them its gradient stays in its process, as the policy's."""
    whole = run("ppo", processes=2, per_device=4, accumulation=1, steps=2)
    size = sum(weight.nbytes for weight in whole["weights"]["critic"].values())
    assert sum(whole["averages"]) == 2 * size
    for accumulation, budget in ((2, 0), (1, 100), (2, 100)):
        split = run(
            "ppo", processes=2, per_device=4 // accumulation, accumulation=accumulation, max_tokens=budget, steps=2
        )
        assert (split["log"]["micro_batch/parts"] > 1) == bool(budget)
        assert split["averages"] == whole["averages"], (accumulation, budget)
        assert relative_error(whole["weights"]["critic"], split["weights"]["critic"]) < 1e-6


# The second number is one below the longest trajectory: another one in a step has as many tokens, or this is the only one that is cut
@pytest.mark.parametrize(
    ("kind", "budgets"),
    [
        ("grpo", (1, 110)),
        ("grpo_mean", (110,)),
        ("grpo_mean_kl", (110,)),
        ("ppo", (1, 82)),
        ("ppo_mean_kl", (82,)),
        ("shared", (82,)),
    ],
)
def test_trajectories_are_cut_at_their_branches_on_two_processes(run, kind, budgets):
    """Two steps of one process that cuts nothing, though a process with fewer pieces has to wait for the other."""
    whole = run(kind, processes=1, per_device=8, accumulation=1, steps=2)
    assert whole["processes"] == 1 and len(whole["trained"][0]) == 2
    for budget in budgets:
        cut = run(kind, processes=2, per_device=4, accumulation=1, max_tokens=budget, steps=2)
        passes = [log["micro_batch/parts"] for log in cut["logs"]]
        assert cut["processes"] == 2 and [len(own) for own in cut["trained"]] == [sum(passes)] * 2
        empty = [own.count(0) for own in cut["trained"]]
        if budget == 1:  # each turn by itself
            assert sum(passes) * 2 - sum(empty) == 8 * sum(log["episode/turns"] for log in whole["logs"])
        else:
            assert passes == ([4, 5] if "grpo" in kind else [5, 5])
            assert sum(empty) == sum(passes) - 2 * 4, "one process has no trajectory to cut in these steps"
        assert sum(map(sum, cut["trained"])) == sum(whole["trained"][0])
        for one, other in zip(whole["gradients"], cut["gradients"], strict=True):
            for part in one:
                assert relative_error(one[part], other[part]) < 1e-5, part
        for part in whole["weights"]:
            assert relative_error(whole["weights"][part], cut["weights"][part]) < 1e-6, part
        for one, other in zip(whole["logs"], cut["logs"], strict=True):
            of_tokens = {"kl", "entropy", "value/loss", "clip_ratio/region_mean", "clip_ratio/low_mean"} & one.keys()
            assert ("kl" in of_tokens) == ("kl" in kind) and ("value/loss" in of_tokens) == ("grpo" not in kind)
            for key in ("loss", "reward", *sorted(of_tokens)):
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("kind", ["turns", "two_levels"])
def test_credit_between_turns_has_the_same_gradient_on_two_processes(run, kind):
    """With rewards of turns and weights of states, whitened over all processes."""
    whole = run(kind, processes=1, per_device=8, accumulation=1)
    parallel = run(kind, processes=2, per_device=2, accumulation=2)
    assert parallel["processes"] == 2
    for part in ("policy", "critic"):
        assert relative_error(whole["gradient"][part], parallel["gradient"][part]) < 1e-5, part
    for key in ("reward", "value/mean", "value/return_mean", "value/explained_variance", "loss"):
        assert parallel["log"][key] == pytest.approx(whole["log"][key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("kind", ["grpo_turns", "grpo_states"])
def test_turns_are_compared_over_processes(run, kind):
    """Groups of four over two processes that hold two rows of each; some episodes are cut."""
    whole = run(kind, processes=1, per_device=8, accumulation=1)
    parallel = run(kind, processes=2, per_device=2, accumulation=2)
    assert parallel["processes"] == 2 and whole["log"]["episode/stop_reason/truncated"] > 0
    assert whole["log"]["episode/turns"] > 1.5
    assert relative_error(whole["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-5
    own = ("turn_groups/other_context",) if kind == "grpo_states" else ()
    for key in ("reward", "loss", "turn_groups/alone", *own):
        assert parallel["log"][key] == pytest.approx(whole["log"][key], rel=1e-4, abs=1e-6), key


def test_groups_that_are_played_again_are_the_same_on_two_processes(run):
    """Each process has an equal group at first, and then only the second one has, so that the first fills up its calls of rewards."""
    whole = run("grpo_again", processes=1, per_device=8, accumulation=1)
    parallel = run("grpo_again", processes=2, per_device=2, accumulation=2)
    assert parallel["processes"] == 2
    for found in (whole, parallel):
        again = {
            name: found["log"][f"dynamic_sampling/{name}"]
            for name in ("groups_played_again", "groups_left_equal", "rounds")
        }
        assert again == {"groups_played_again": 0.5, "groups_left_equal": 0.0, "rounds": 2.0}
        assert found["log"]["reward"] == pytest.approx(
            0.75
        )  # of what was played first: two groups all right, two half
    assert relative_error(whole["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-5
    plain = run("grpo", processes=1, per_device=8, accumulation=1)  # which plays what was played last there
    assert relative_error(plain["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-5


@pytest.mark.parametrize("max_tokens", [None, 60])
def test_what_is_passed_over_is_the_same_on_two_processes(run, max_tokens):
    """Two trajectories are left for four micro-batches, so that in two of them a pass over nothing is made."""
    plain = run("grpo_not_skipping", processes=1, per_device=8, accumulation=1)
    parallel = run("grpo_skipping", processes=2, per_device=2, accumulation=2, max_tokens=max_tokens)
    assert parallel["processes"] == 2
    assert parallel["log"]["micro_batch/skipped_rows"] == 0.75
    assert relative_error(plain["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-5
    assert parallel["log"]["loss"] == pytest.approx(plain["log"]["loss"], rel=1e-4, abs=1e-6)


def test_processes_may_pass_over_different_numbers_of_rows(run):
    """Episodes of one turn stay where they were played: the first process has none to train, the second two."""
    plain = run("one_turn", processes=1, per_device=8, accumulation=1)
    parallel = run("one_turn_skipping", processes=2, per_device=4, accumulation=1)
    assert parallel["processes"] == 2 and parallel["log"]["micro_batch/skipped_rows"] == 0.75
    assert relative_error(plain["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-5
    whole = run("one_turn_skipping", processes=1, per_device=8, accumulation=1)
    for key in ("loss", "entropy", "clip_ratio/low_min", "clip_ratio/high_max"):
        assert parallel["log"][key] == pytest.approx(whole["log"][key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("kind", ["grpo_taught", "grpo_taught_turns", "ppo_taught"])
def test_a_teacher_has_the_same_gaps_on_two_processes(run, kind):
    """One micro-batch for each process, since TRL averages what micro-batches log, whatever their number of tokens."""
    whole = run(kind, processes=1, per_device=8, accumulation=1)
    parallel = run(kind, processes=2, per_device=4, accumulation=1)
    assert parallel["processes"] == 2 and abs(whole["log"]["distillation/gap"]) > 1e-3
    for part in whole["gradient"]:
        assert relative_error(whole["gradient"][part], parallel["gradient"][part]) < 1e-5, part
    for key in ("distillation/gap", "reward", "loss"):
        assert parallel["log"][key] == pytest.approx(whole["log"][key], rel=1e-4, abs=1e-6), key


def test_a_curriculum_by_success_plays_the_same_tasks_on_two_processes(run):
    """Three tasks of the first stage and the first again; half of the answers are right, so the second stage follows at once."""
    whole = run("grpo_stages", processes=1, per_device=8, accumulation=1, steps=2)
    parallel = run("grpo_stages", processes=2, per_device=2, accumulation=2, steps=2)
    assert parallel["processes"] == 2
    for key in ("curriculum/stage", "reward", "episode/turns", "episode/peak_tokens"):
        assert parallel["log"][key] == pytest.approx(whole["log"][key]), key
    assert whole["log"]["curriculum/stage"] == 1.0
    assert (
        relative_error(whole["gradient"]["policy"], parallel["gradient"]["policy"]) < 1e-4
    )  # after a step that differs by rounding


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_a_critic_that_shares_weights_has_the_same_gradient_on_two_processes(run, kind):
    whole = run(kind, processes=1, per_device=8, accumulation=1)
    parallel = run(kind, processes=2, per_device=2, accumulation=2)
    assert parallel["processes"] == 2
    of_critic = {name.split(".")[0] for name in whole["gradient"]["critic"]}
    assert of_critic == ({"backbone", "head"} if kind == "adapter" else {"head"})
    for part in ("policy", "critic"):
        assert relative_error(whole["gradient"][part], parallel["gradient"][part]) < 1e-5, part
    for key in ("reward", "value/mean", "value/explained_variance", "value/grad_norm", "loss"):
        assert parallel["log"][key] == pytest.approx(whole["log"][key], rel=1e-4, abs=1e-6), key


def test_an_evaluation_that_does_not_divide_counts_every_row_once(tmp_path, actor_path, fork_server):
    """Seven rows in batches of two, on one process and on two, where accelerate fills up the last batch with the first rows."""
    found = {}
    for processes in (1, 2):
        directory = tmp_path / str(processes)
        done = fork_server.run(SCRIPTS / "evaluate_rows.py", actor_path, directory, ranks=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads((directory / "metrics.json").read_text())
        assert record["processes"] == processes
        lines = (directory / "evaluation" / "eval-0.jsonl").read_text().splitlines()
        episodes = [json.loads(line) for line in lines]
        assert [episode["index"] for episode in episodes] == list(range(7))
        prompts = [episode["trajectory"]["turns"][0]["prompt_ids"] for episode in episodes]
        assert len({tuple(prompt) for prompt in prompts}) == 7
        turns = [len(episode["trajectory"]["turns"]) for episode in episodes]
        assert record["metrics"]["eval_episode/turns"] == pytest.approx(sum(turns) / 7)
        stops = [episode["trajectory"]["stop_reason"] for episode in episodes]
        assert record["metrics"]["eval_episode/stop_reason/answer"] == pytest.approx(stops.count("answer") / 7)
        found[processes] = (prompts, turns, stops)
    assert found[1] == found[2]


def test_two_processes_go_on_in_the_middle_of_a_batch(run, tmp_path):
    kept = f"--run={tmp_path / 'run'}"
    whole = run("grpo_halves", 2, 4, 1, steps=2)
    begun = run("grpo_halves", 2, 4, 1, kept, "--stop-after=1", steps=2)
    ended = run("grpo_halves", 2, 4, 1, kept, "--resume", steps=2)
    assert len(begun["gradients"]) == len(ended["gradients"]) == 1 and "another number" not in ended["stderr"]
    assert ended["trained"] == [own[1:] for own in whole["trained"]], "the other half of what was played"
    assert relative_error(whole["gradient"]["policy"], ended["gradient"]["policy"]) < 1e-7


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(run, tmp_path, first, second):
    """In the middle of a batch, whose other half is not trained: of some processes one would have it, or one half of it only."""
    kept = f"--run={tmp_path / 'run'}"
    begun = run("grpo_halves", first, 8 // first, 1, kept, "--stop-after=1", steps=2)
    ended = run("grpo_halves", second, 8 // second, 1, kept, "--resume", steps=2)
    assert len(begun["gradients"]) == len(ended["gradients"]) == 1
    assert ended["log"]["episode/turns"] == begun["log"]["episode/turns"] > 1, "a batch is played"
    assert sum(map(len, ended["trained"])) == second and sum(map(sum, ended["trained"])) > 0
    assert f"of a run with another number of processes than {second}, so this one goes on" in ended["stderr"]


def test_a_loss_that_averages_over_rows_adds_up_over_parts(run):
    whole = run("grpo_mean", processes=1, per_device=8, accumulation=1)
    parts = run("grpo_mean", processes=1, per_device=8, accumulation=1, max_tokens=400)
    assert parts["log"]["micro_batch/parts"] > 1
    assert relative_error(whole["gradient"]["policy"], parts["gradient"]["policy"]) < 1e-5
    assert parts["log"]["loss"] == pytest.approx(whole["log"]["loss"], abs=1e-6)
