"""Evaluation of an agent, and what a person is shown of an episode."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from rich.console import Console
from support.helpers import tiny_tokenizer
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    trainer_arguments,
)

from mem1_trl import (
    ContextRule,
    Mem1Agent,
    Mem1GRPOConfig,
    Mem1GRPOTrainer,
    Mem1Protocol,
    StopReason,
    Trajectory,
    Turn,
)
from mem1_trl.context_rules import RULES, NextTurn
from mem1_trl.display import print_trajectory
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import Evaluation, evaluate_agent, evaluate_objectives
from mem1_trl.evaluation.result import slug
from mem1_trl.retrieval import Bm25Index
from mem1_trl.tasks import sample_objectives
from mem1_trl.update.rows import build_row
from mem1_trl.web import LocalWeb


def make_agent(model, tokenizer, **kwargs):
    settings = {"max_turns": 4, "max_completion_length": 64, "max_observation_length": 40, "conversational": False}
    return Mem1Agent(model, tokenizer, SHORT, **settings, **kwargs)


def rows(count: int) -> list[dict]:
    return [{"prompt": f"q{i}?", "secret": str(i % 3), "answers": [[str(i % 3)]]} for i in range(count)]


def search(corpus, top_k):
    return RetrievalQAEnvironment.factory(corpus, top_k=top_k)


def solved(row, trajectory) -> bool:
    return True


def test_every_row_is_played_in_order_and_scored(actor, tokenizer):
    batches = []
    result = evaluate_agent(
        make_agent(actor, tokenizer), rows(7), LookupEnvironment, batch_size=3, on_batch=batches.append
    )
    assert batches == [3, 3, 1]
    assert [tokenizer.decode(t.prompt_ids) for t in result.trajectories] == [row["prompt"] for row in rows(7)]
    right = [float(t.answer == row["answers"][0][0]) for t, row in zip(result.trajectories, rows(7))]
    assert [t.metrics["exact_match"] for t in result.trajectories] == right == [t.reward for t in result.trajectories]
    assert result.metrics["exact_match"] == pytest.approx(sum(right) / 7)
    assert result.metrics["seconds"] > 0
    assert result.metrics["turns"] == pytest.approx(sum(len(t.turns) for t in result.trajectories) / 7)


def test_greedy_episodes_do_not_depend_on_the_batch(actor, tokenizer):
    one = evaluate_agent(make_agent(actor, tokenizer), rows(6), LookupEnvironment, batch_size=6)
    other = evaluate_agent(make_agent(actor, tokenizer), rows(6), LookupEnvironment, batch_size=1)
    assert [[t.completion_ids for t in e.turns] for e in one.trajectories] == [
        [t.completion_ids for t in e.turns] for e in other.trajectories
    ]


def test_a_score_is_a_sum_over_objectives_and_a_share_of_them(actor, tokenizer):
    task = {"prompt": "q0?", "secret": "0", "answers": [["0"], ["1"]]}
    metrics = evaluate_agent(make_agent(actor, tokenizer), [task], LookupEnvironment).metrics
    assert metrics["exact_match"] == 0.0, "one answer to two questions is none"
    assert metrics["exact_match_per_objective"] == metrics["f1_per_objective"] == 0.0


def test_nothing_to_evaluate_is_an_error(actor, tokenizer):
    with pytest.raises(ValueError, match="no rows"):
        evaluate_agent(make_agent(actor, tokenizer), [], LookupEnvironment)


@pytest.mark.parametrize("prompt", [None, 5, [], ["capital of France"]])
def test_a_prompt_that_is_none_is_refused_before_anything_is_played(prompt, actor, tokenizer):
    agent = make_agent(actor, tokenizer)
    agent.run_batch = None
    with pytest.raises(ValueError, match=r"Row 1 has prompt=.*A task must be a text or a list of messages, got"):
        evaluate_agent(agent, [*rows(1), {"prompt": prompt}], LookupEnvironment)


@pytest.mark.parametrize("found", [float("nan"), None, "yes"])
def test_a_success_that_is_no_number_is_named(found, actor, tokenizer):
    with pytest.raises(
        ValueError, match=rf"success must return true, false or a finite number, but gave '?{found}'? for row 0"
    ):
        evaluate_agent(make_agent(actor, tokenizer), rows(2), LookupEnvironment, success=lambda row, trajectory: found)


def test_a_success_may_be_a_number_of_an_array(actor, tokenizer):
    scored = evaluate_agent(
        make_agent(actor, tokenizer), rows(2), LookupEnvironment, success=lambda row, trajectory: torch.tensor(0.5)
    )
    assert scored.metrics["success"] == 0.5


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_played(tmp_path, actor, tokenizer):
    (tmp_path / "file").write_text("")
    agent = make_agent(actor, tokenizer)
    agent.run_batch = None
    with pytest.raises(NotADirectoryError):
        evaluate_objectives(agent, QUESTIONS, LookupEnvironment, [1], 2, output_dir=tmp_path / "file" / "evaluation")


def test_rows_and_environments_must_match(actor, tokenizer):
    with pytest.raises(ValueError, match="2 rows and 1 environments"):
        make_agent(actor, tokenizer).run_batch(rows(2), [LookupEnvironment()])


def test_agent_without_a_saved_protocol_says_so(tmp_path, actor, tokenizer):
    actor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no mem1_protocol.json .* pass `protocol=`"):
        Mem1Agent.from_pretrained(str(tmp_path))
    agent = Mem1Agent.from_pretrained(str(tmp_path), protocol=Mem1Protocol())
    assert agent.protocol == Mem1Protocol()


def test_an_episode_is_shown_with_what_was_kept_and_forgotten():
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text)["input_ids"])

    first, second, third = ids("<think>a</think>"), ids("<think>bb</think>"), ids("<think>c</think>")
    prompt, seen = ids("task"), ids("observed")
    trajectory = Trajectory(
        turns=[
            Turn(prompt, first, text="<think>a</think>", observation="observed", observation_tokens=len(seen)),
            Turn(
                prompt + first + seen,
                second,
                text="<think>bb</think>",
                observation="observed",
                observation_tokens=len(seen),
            ),
            Turn(prompt + second + seen, third, text="<think>c</think>"),
        ],
        reward=1.0,
        stop_reason=StopReason.ANSWER,
        answer="[b]42[/b]",
    )
    console = Console(record=True, width=100, force_terminal=False)
    print_trajectory(trajectory, tokenizer, console)
    text = console.export_text()
    assert "turn 1 · reads 4 tokens: prompt 4" in text
    assert "turn 2 · reads 15 tokens: prompt 4 + kept 11, forgotten 0" in text
    # Turn 1 left 3 tokens of its own and 8 it observed
    assert "turn 3 · reads 16 tokens: prompt 4 + kept 12, forgotten 11" in text
    assert "answer: [b]42[/b] · ended by answer · reward 1" in text, "text of the agent is not markup"
    assert "<think>bb</think>" in text and text.count("observed") == 2


def test_an_environment_may_score_asynchronously_or_not_at_all(actor, tokenizer):
    class Judged(LookupEnvironment):
        async def get_reward(self):
            return 0.5

    class Unscored(LookupEnvironment):
        def get_reward(self):
            return None

    agent = make_agent(actor, tokenizer)
    assert agent.run("q0?", Judged()).reward == 0.5
    assert agent.run("q0?", Unscored()).reward is None


# Failures, files, sweeps


class Fragile(LookupEnvironment):
    """Fails where the row says."""

    def reset(self, fails: str = "", **row):
        self.fails = fails
        if fails == "reset":
            raise RuntimeError("no such task")
        return super().reset(**row)

    @property
    def done(self):
        if self.fails == "done":
            raise OSError("game crashed")
        return False

    def search(self, query: str) -> str:
        """Look the secret up."""
        if self.fails == "search":
            raise TimeoutError("no answer")
        return super().search(query)

    def get_reward(self):
        if self.fails == "reward":
            raise ValueError("judge is down")
        return float("nan") if self.fails == "nan" else super().get_reward()


WHERE = ("", "reset", "reward", "done", "search", "nan", "", "")


def test_two_hundred_tasks_in_two_hundred_out(actor, tokenizer, caplog):
    tasks = [{**row, "fails": WHERE[i % 8]} for i, row in enumerate(rows(200))]
    made = []

    def factory():
        made.append(Fragile())
        return made[-1]

    result = evaluate_agent(make_agent(actor, tokenizer), tasks, factory, batch_size=40)
    sound = evaluate_agent(make_agent(actor, tokenizer), rows(200), LookupEnvironment, batch_size=40)
    assert [task.index for task in result.tasks] == list(range(200)) and len(result.trajectories) == 200
    assert [task.task for task in result.tasks] == tasks
    by_fault = {fault: [t for t in result.tasks if t.task["fails"] == fault] for fault in WHERE}
    texts = {
        "": None, "search": None, "reset": "RuntimeError: no such task", "reward": "ValueError: judge is down",
        "done": "OSError: game crashed", "nan": "ValueError: get_reward gave nan",
    }  # fmt: skip
    assert {fault: {task.error for task in found} for fault, found in by_fault.items()} == {
        fault: {text} for fault, text in texts.items()
    }
    assert result.errors == 100 / 200
    assert "100 of 200 episodes failed and count 0, the first of them (row 1) with: RuntimeError" in caplog.text
    # A failed episode counts 0; the others count what they count without failures around them
    names = ("exact_match", "f1", "success", "reward")
    for task, other in zip(result.tasks, sound.tasks):
        if task.error is not None:
            assert all(task.scores[name] == 0.0 for name in names) and task.objectives_detail == ()
        elif not task.task["fails"]:
            assert {name: task.scores[name] for name in names} == {name: other.scores[name] for name in names}
            assert task.objectives_detail == other.objectives_detail != ()
    assert all(result.statistics[name].count == 200 for name in names)
    assert result.statistics["peak_tokens"].count == 175  # no turn, no costs
    assert result.stop_reasons["error"] == 50 / 200 and sum(result.stop_reasons.values()) == pytest.approx(1.0)
    assert not by_fault["reset"][0].trajectory.turns and by_fault["reset"][0].prompt_text == "q1?"
    assert len(by_fault["done"][0].trajectory.turns) == 1
    # An action that raises is read by the agent
    read = [
        task
        for task in by_fault["search"]
        if "TimeoutError: no answer" in (task.trajectory.turns[0].observation or "")
    ]
    assert read and all(task.scores["failed_actions"] >= 1 for task in read)
    assert len(made) > 40, "an environment that failed is replaced"


def test_a_failure_is_an_error_where_it_is_not_asked_for(actor, tokenizer):
    task = {"prompt": "q?", "fails": "reset"}
    with pytest.raises(RuntimeError, match="no such task"):
        make_agent(actor, tokenizer).run_batch([task], [Fragile()])
    with pytest.raises(ValueError, match="judge is down"):
        make_agent(actor, tokenizer).run_batch([{**task, "fails": "reward"}], [Fragile()])


def test_a_prompt_that_is_too_long_fails_alone(actor, tokenizer):
    agent = make_agent(actor, tokenizer, max_context_length=100)
    result = evaluate_agent(agent, [{"prompt": "q0?"}, {"prompt": "q" * 101}], LookupEnvironment)
    assert result.tasks[0].error is None and "at most 100 tokens" in result.tasks[1].error


def test_a_trajectory_without_turns_is_a_failed_one_only():
    with pytest.raises(ValueError, match="at least one turn"):
        Trajectory([])
    failed = Trajectory([], stop_reason=StopReason.ERROR, error="boom")
    assert Trajectory.from_dict(failed.to_dict()) == failed and failed.prompt_ids == ()
    with pytest.raises(ValueError, match=r"no turns \(boom\)"):
        build_row(failed, "packed")
    old = {key: value for key, value in failed.to_dict().items() if key != "error"}
    assert Trajectory.from_dict(old).error is None


class ScriptedBackend(ScriptedGenerator):
    """A script in the place of a [`TransformersGenerator`]."""

    max_completion_length, temperature, batch_size = 64, 0.0, 32

    def release(self) -> None:
        pass


def played(script, tokenizer, actor, row, **kwargs):
    """One episode of a script, evaluated."""
    agent = make_agent(actor, tokenizer, **kwargs)
    agent.generate = ScriptedBackend(tokenizer, [[text] for text in script])
    return evaluate_agent(agent, [row], LookupEnvironment)


SCRIPT = [
    "<think>none</think><search>x</search>",
    "<think>got 7</think><search>y</search>",
    "<think>lost</think><answer>7; 8</answer>",
]
ROW = {"prompt": "q?", "secret": "7", "answers": [["7", "seven"], ["9"]], "long": "x" * 20_000, "kept": {"a": 1}}


def test_every_score_by_hand(tokenizer, actor):
    result = played(SCRIPT, tokenizer, actor, ROW)
    (task,) = result.tasks
    ids = [len(tokenizer(text)["input_ids"]) for text in SCRIPT]
    seen = [len(tokenizer(f"<information>{hint}7</information>")["input_ids"]) for hint in ("3;", "2;")]
    contexts = [2, 2 + ids[0] + seen[0], 2 + ids[1] + seen[1]]
    expected = {
        "exact_match": 1.0, "exact_match_per_objective": 0.5, "f1": 1.0, "f1_per_objective": 0.5, "success": 0.0,
        "reward": 0.0, "turns": 3.0, "generated_tokens": float(sum(ids)),
        "peak_tokens": float(max(c + g for c, g in zip(contexts, ids))),
        "peak_tokens_without_prompt": float(max(c + g for c, g in zip(contexts, ids)) - 2),
        "dependency_length": sum((c + g / 2) * g for c, g in zip(contexts, ids)),
        "valid_action_rate": 1.0, "repeated_actions": 0.0, "failed_actions": 0.0,
        "state_tokens": sum(len(tokenizer(text.split("<s")[0].split("<a")[0])["input_ids"]) for text in SCRIPT) / 3,
    }  # fmt: skip
    assert {name: value for name, value in result.metrics.items() if "/" not in name and name != "seconds"} == expected
    assert {name: value for name, value in task.scores.items() if name != "seconds"} == expected
    assert task.scores["seconds"] > 0 and result.objectives == 2
    seven, nine = task.objectives_detail
    assert (seven.first_seen_turn, seven.kept, seven.outcome) == (1, (True, False), "correct")
    assert (nine.first_seen_turn, nine.kept, nine.outcome, nine.given) == (None, (), "never_found", "8")
    assert [(p.age, p.kept, p.count) for p in result.retention] == [(1, 1.0, 1), (2, 0.0, 1)]
    assert result.failures == {"never_found": 1, "forgotten": 0, "misreported": 0, "correct": 1}


def test_a_full_history_does_not_forget(tokenizer, actor):
    result = played(SCRIPT, tokenizer, actor, ROW, context="full")
    assert result.tasks[0].objectives_detail[0].kept == (True, True)
    assert result.settings["memory"] == "context" and result.settings["context"] == "full"


class LastTurn(ContextRule):
    """MEM1's own rule, by another hand."""

    last_turn_only = True

    def next(self, past):
        return NextTurn(range(max(len(past) - 1, 0), len(past)))


class WithNotes(LastTurn):
    recalls = True


def test_a_rule_of_ones_own_says_where_its_agents_remember(tokenizer, actor):
    own, built_in = (played(SCRIPT, tokenizer, actor, ROW, context=rule) for rule in (LastTurn(), "mem1"))
    assert own.settings["memory"] == built_in.settings["memory"] == "state"
    assert own.tasks[0].objectives_detail == built_in.tasks[0].objectives_detail
    assert own.failures == built_in.failures and own.tasks[0].objectives_detail[0].kept == (True, False)
    kinds = {name: RULES[name]().memory for name in RULES}
    assert kinds == {**dict.fromkeys(RULES, "context"), "mem1": "state"}
    assert WithNotes().memory == "context"  # what is recalled is in the context, whatever the state holds


def test_the_files_hold_all_and_give_it_back(tmp_path, tokenizer, actor):
    result = played(SCRIPT, tokenizer, actor, ROW)
    path = result.save(tmp_path / "new", "a-2")
    record = json.loads(path.read_text())
    assert list(record) == [
        "format", "name", "agent", "objectives", "settings", "count", "metrics", "stop_reasons", "errors", "retention",
        "failures", "environment", "memory_value",
    ]  # fmt: skip
    assert record["format"] == 1 and record["name"] == "a-2" and record["count"] == 1 and record["errors"] == 0.0
    assert record["metrics"]["f1"] == {"mean": 1.0, "stderr": 0.0, "low": 1.0, "high": 1.0, "count": 1}
    assert record["settings"]["max_turns"] == 4 and record["settings"]["temperature"] == 0.0
    (line,) = [json.loads(line) for line in (tmp_path / "new" / "a-2.jsonl").read_text().splitlines()]
    assert list(line) == [
        "index",
        "task",
        "prompt_text",
        "trajectory",
        "scores",
        "objectives_detail",
        "error",
        "memory_values",
    ]
    long = line["task"].pop("long")
    assert re.fullmatch(r"20002 characters, sha256 [0-9a-f]{16}", long)  # no huge columns, and which one it was
    assert line["task"] == {key: ROW[key] for key in ("prompt", "secret", "answers", "kept")}
    assert line["prompt_text"] == "q?" and line["objectives_detail"][0]["kept"] == [True, False]
    loaded = Evaluation.load(tmp_path / "new", "a-2")
    assert loaded.metrics == result.metrics and loaded.statistics == result.statistics
    assert loaded.trajectories == result.trajectories and loaded.to_dict("a-2") == result.to_dict("a-2")
    assert loaded.tasks[0].objectives_detail == result.tasks[0].objectives_detail
    assert not list((tmp_path / "new").glob("*.partial"))


def test_files_that_do_not_fit_are_refused(tmp_path, tokenizer, actor):
    played(SCRIPT, tokenizer, actor, ROW).save(tmp_path, "a")
    with pytest.raises(ValueError, match="cannot name a file"):
        Evaluation.load(tmp_path, "../a")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        Evaluation.load(tmp_path, "b")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"0 lines, but a\.json counts 1"):
        Evaluation.load(tmp_path, "a")
    (tmp_path / "a.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 2"):
        Evaluation.load(tmp_path, "a")


@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_two_runs_with_one_seed_write_the_same_files(tmp_path, actor, tokenizer, mode):
    # Who is generated together depends on time with "async", and log-probs by rounding on that
    left_out = r'"seconds": (\{[^}]*\}|[^,}]+)|"name": "."' + (r'|"logprobs": \[[^\]]*\]' if mode == "async" else "")

    def run(name, seed=1):
        torch.rand(3)  # where the caller's random numbers stand does not matter
        agent = make_agent(actor, tokenizer, temperature=1.0, rollout_mode=mode)
        result = evaluate_agent(agent, rows(12), LookupEnvironment, batch_size=5, seed=seed)
        result.save(tmp_path, name)
        return re.sub(left_out, "", "".join(
            (tmp_path / f"{name}.{suffix}").read_text() for suffix in ("json", "jsonl")
        ))  # fmt: skip

    assert run("a") == run("b")
    assert run("c", seed=2) != run("a")
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    run("d")
    torch.manual_seed(0)
    assert torch.rand(1) == before


@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_what_is_sampled_does_not_depend_on_the_size_of_a_batch(actor, tokenizer, mode):
    agent = make_agent(actor, tokenizer, temperature=1.0, rollout_mode=mode)
    whole, parts = (
        evaluate_agent(agent, rows(6), LookupEnvironment, batch_size=size, seed=3).trajectories for size in (6, 2)
    )
    assert [[turn.completion_ids for turn in one.turns] for one in whole] == [
        [turn.completion_ids for turn in one.turns] for one in parts
    ]


def test_answers_that_cannot_be_given_are_said(actor, tokenizer, caplog):
    tasks = [{"prompt": "q?", "answers": answers} for answers in ([["a"]], [["1; 2", "1;2"], ["b"]], [["1; 2", "3"]])]
    evaluate_agent(make_agent(actor, tokenizer), tasks, LookupEnvironment)
    assert "1 of 3 tasks, the first of them row 1, have an objective without an accepted answer" in caplog.text


def test_the_random_state_of_the_caller_is_left_alone(actor, tokenizer):
    torch.manual_seed(4)
    expected = torch.rand(2)[1]
    torch.manual_seed(4)
    torch.rand(1)
    evaluate_agent(make_agent(actor, tokenizer, temperature=1.0), rows(2), LookupEnvironment)
    assert torch.rand(1) == expected


def test_success_may_be_something_else(actor, tokenizer):
    tasks = [{"prompt": f"q{i}?", "secret": str(i % 3)} for i in range(6)]
    plain = evaluate_agent(make_agent(actor, tokenizer), tasks, LookupEnvironment)
    assert "success" not in plain.metrics and plain.objectives is None
    assert plain.failures == {"never_found": 0, "forgotten": 0, "misreported": 0, "correct": 0}
    won = evaluate_agent(
        make_agent(actor, tokenizer), tasks, LookupEnvironment, success=lambda row, t: t.answer == row["secret"]
    )
    assert [t.scores["success"] for t in won.tasks] == [t.reward for t in plain.trajectories]


@pytest.mark.parametrize("bad", [[], {"text": ["a"]}, [[]], "Paris", [[1]]])
def test_references_that_make_no_sense_are_refused(bad, actor, tokenizer):
    with pytest.raises(ValueError, match="Row 1 has answers="):
        evaluate_agent(
            make_agent(actor, tokenizer), [{"prompt": "a"}, {"prompt": "b", "answers": bad}], LookupEnvironment
        )


def test_a_row_without_a_prompt_is_refused(actor, tokenizer):
    splits = DatasetDict(train=Dataset.from_list([{"prompt": "q"}]), test=Dataset.from_list([{"prompt": "p"}]))
    with pytest.raises(TypeError, match="must be rows, got a DatasetDict with train, test: pass one split of it"):
        evaluate_agent(make_agent(actor, tokenizer), splits, LookupEnvironment)
    with pytest.raises(ValueError, match=r"Row 0 has no 'prompt' \(it has question\)"):
        evaluate_agent(make_agent(actor, tokenizer), [{"question": "a"}], LookupEnvironment)


def test_rows_may_choose_their_environment(actor, tokenizer):
    class Other(LookupEnvironment):
        def reset(self, prompt, secret, answers):
            return super().reset(prompt, "other")

    tasks = [{**row, "environment": name} for row, name in zip(rows(4), ("a", "b", "b", "a"))]
    result = evaluate_agent(make_agent(actor, tokenizer), tasks, {"a": LookupEnvironment, "b": Other})
    assert result.errors == 0.0
    observed = ["other" in (t.turns[0].observation or "") for t in result.trajectories]
    assert observed == [False, True, True, False]


QUESTIONS = Dataset.from_dict({"question": [f"q{i}?" for i in range(5)], "answer": [str(i % 3) for i in range(5)]})


def test_more_and_more_objectives(tmp_path, actor, tokenizer):
    agent = make_agent(actor, tokenizer)
    allowed = []
    play = agent.run_batch

    def spy(batch, environments, **kwargs):
        allowed.append((len(batch), agent.settings.max_turns))
        return play(batch, environments, **kwargs)

    agent.run_batch = spy
    arguments = dict(objectives=(1, 2, 5), tasks=6, output_dir=tmp_path, label="MEM1 tiny!", progress=False)
    results = evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **arguments)
    assert allowed == [(6, 6), (6, 6), (6, 20)] and agent.settings.max_turns == 4
    assert {n: (r.objectives, len(r.tasks), r.agent) for n, r in results.items()} == {
        n: (n, 6, "MEM1 tiny!") for n in (1, 2, 5)
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"mem1-tiny-{n}.{suffix}" for n in (1, 2, 5) for suffix in ("json", "jsonl")
    ]
    # What is finished is not played again
    (tmp_path / "mem1-tiny-2.json").unlink()
    again = evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **arguments)
    assert allowed[3:] == [(6, 6)]
    assert {n: r.trajectories == results[n].trajectories for n, r in again.items() if n != 2} == {1: True, 5: True}
    assert [t.turns for t in again[2].trajectories] == [t.turns for t in results[2].trajectories]


def test_intervals_are_by_as_many_draws_as_are_asked_for(tmp_path, actor, tokenizer):
    """Those of a finished evaluation stayed what they were, and a wrong number was refused when everything had been played."""
    agent = make_agent(actor, tokenizer)
    arguments = {"tasks": 4, "output_dir": tmp_path, "progress": False}
    few = evaluate_objectives(agent, QUESTIONS, LookupEnvironment, (1,), resamples=3, **arguments)[1]
    many = evaluate_objectives(agent, QUESTIONS, LookupEnvironment, (1,), resamples=2000, **arguments)[1]
    assert many.trajectories == few.trajectories
    fresh = Evaluation.from_tasks(few.tasks, few.agent, few.settings, resamples=2000)
    assert many.statistics == fresh.statistics != few.statistics


@pytest.mark.parametrize("resamples", [0, 100.0])
def test_a_wrong_number_of_draws_is_refused_before_anything_is_played(unplayed, resamples, tmp_path):
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, got"):
        evaluate_agent(unplayed, rows(2), LookupEnvironment, resamples=resamples)
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, got"):
        evaluate_objectives(unplayed, QUESTIONS, LookupEnvironment, (1,), tasks=2, resamples=resamples, progress=False)


@pytest.fixture
def unplayed(actor, tokenizer, monkeypatch):
    """An agent that must not play."""
    agent = make_agent(actor, tokenizer)
    monkeypatch.setattr(agent, "run_batch", lambda *given, **more: pytest.fail("an episode was played"))
    return agent


def test_a_number_that_was_asked_for_is_refused_before_anything_is_played(unplayed):
    with pytest.raises(ValueError, match=r"^5 usable rows do not make one task of 6 different questions"):
        evaluate_objectives(unplayed, QUESTIONS, LookupEnvironment, (1, 6), tasks=2, progress=False)


@pytest.mark.parametrize(
    ("rows", "numbers", "left_out"),
    [
        (list(range(5)), [1, 2, 3, 4], "there are 5: 6, 8, 16 objectives are left out."),
        ([0, 1, 2, 0, 1, 2, 0], [1, 2, 3], "there are 3: 4, 6, 8, 16 objectives are left out."),
        ([0], [1], "there are 1: 2, 3, 4, 6, 8, 16 objectives are left out."),
    ],
    ids=["few", "repeated", "one"],
)
def test_without_numbers_they_are_those_that_the_questions_allow(rows, numbers, left_out, actor, tokenizer, caplog):
    agent = make_agent(actor, tokenizer)
    given = dict(tasks=1, max_turns=lambda n: 1, progress=False, resamples=10)
    assert list(evaluate_objectives(agent, QUESTIONS.select(rows), LookupEnvironment, **given)) == numbers
    sentence = f"A task needs as many different questions as it has objectives, and {left_out}"
    assert [record.message for record in caplog.records if "left out" in record.message] == [sentence]


@pytest.mark.parametrize("given", ["agent", "labelled", "function"])
def test_finished_files_are_compared_before_anything_is_played(tmp_path, actor, tokenizer, unplayed, given):
    """Those of a later number were met only when the earlier ones had been played."""
    arguments = dict(output_dir=tmp_path, tasks=2, progress=False, label="tiny" if given == "labelled" else None)
    evaluate_objectives(make_agent(actor, tokenizer), QUESTIONS, LookupEnvironment, [3], **arguments)
    player = (lambda n: unplayed) if given == "function" else unplayed
    with pytest.raises(ValueError, match=r"-3.json was evaluated with other settings \(seed, tasks\)"):
        evaluate_objectives(player, QUESTIONS, LookupEnvironment, [1, 2, 3], seed=1, **arguments)
    assert len(list(tmp_path.iterdir())) == 2 and unplayed.settings.max_turns == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(tasks=4), "tasks"),
        (dict(seed=1), "seed"),
        (dict(max_turns=lambda n: 3), "max_turns"),
        (dict(label="mem1-TINY"), "label"),
    ],
)
def test_finished_files_of_other_settings_are_not_reused(change, named, tmp_path, actor, tokenizer):
    agent = make_agent(actor, tokenizer)
    arguments = dict(objectives=[1], tasks=3, output_dir=tmp_path, label="mem1 tiny", progress=False)
    evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **arguments)
    with pytest.raises(ValueError, match=rf"mem1-tiny-1.json was evaluated with other settings \(.*{named}"):
        evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **{**arguments, **change})


def test_files_of_other_weights_are_not_reused(tmp_path, actor, tokenizer):
    arguments = dict(objectives=[1], tasks=3, output_dir=tmp_path, label="tiny", progress=False)
    factory = lambda n: make_agent(actor, tokenizer)  # noqa: E731
    evaluate_objectives(factory, QUESTIONS, LookupEnvironment, **arguments)
    evaluate_objectives(factory, QUESTIONS, LookupEnvironment, **arguments)
    with torch.no_grad():
        next(actor.parameters())[3, 5] += 1e-4
    with pytest.raises(ValueError, match=r"other settings \(weights\)"):
        evaluate_objectives(factory, QUESTIONS, LookupEnvironment, **arguments)


CORPUS = [("Iron", "Iron has the symbol Fe."), ("Gold", "Gold has the symbol Au.")]
OTHER = [CORPUS[0], ("Gold", "Gold has the symbol Ag.")]


class Sized(LookupEnvironment):
    """Has a setting that it does not tell."""

    def __init__(self, size: Any = 1):
        self.size = size


class Scaled(RetrievalQAEnvironment):
    """Adds to a shipped class, whose recipe knows nothing of it."""

    def __init__(self, scale: float, web: Any, index: Any, top_k: int):
        super().__init__(index, top_k)
        self.scale = scale


def scaled(scale: float, web: Any = None) -> Any:
    return partial(Scaled, scale, web=web, index=search(CORPUS, 1)()._index, top_k=1)


def at_least(reward: float, row: Any, trajectory: Trajectory) -> bool:
    return (trajectory.reward or 0.0) >= reward


def pages(symbol: str) -> list[dict[str, str]]:
    return [{"url": "https://example.org", "title": "Gold", "text": f"Gold has the symbol {symbol}."}]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, dict(environment_factory=NoReward), "environments"),
        ({}, dict(environment_factory={"a": LookupEnvironment}), "environments"),
        (
            dict(environment_factory=partial(Sized, 1)),
            dict(environment_factory=partial(Sized, size=2)),
            "environments",
        ),
        (dict(environment_factory=search(CORPUS, 1)), dict(environment_factory=search(CORPUS, 2)), "environments"),
        (
            dict(environment_factory=search(CORPUS, 1)),
            dict(environment_factory=search(CORPUS[:1], 1)),
            "environments, contents of corpus",
        ),
        (
            dict(environment_factory=search(CORPUS, 1)),
            dict(environment_factory=search(OTHER, 1)),
            "contents of corpus",
        ),
        (
            dict(environment_factory=partial(Sized, LocalWeb(pages("Fe")))),
            dict(environment_factory=partial(Sized, LocalWeb(pages("Ag")))),
            "contents of argument0",
        ),
        (dict(environment_factory=scaled(1.0)), dict(environment_factory=scaled(2.0)), "environments"),
        (
            dict(environment_factory=scaled(1.0, LocalWeb(pages("Fe")))),
            dict(environment_factory=scaled(1.0, LocalWeb(pages("Ag")))),
            "contents of web",
        ),
        ({}, dict(success=solved), "success"),
        (dict(success=partial(at_least, 1.0)), dict(success=partial(at_least, 2.0)), "success"),
        ({}, dict(agent=dict(environment_retries=0)), "faults"),
    ],
    ids=[
        "class",
        "names",
        "arguments",
        "top_k",
        "corpus",
        "same size",
        "own",
        "below a shipped class",
        "own of such",
        "success",
        "arguments of success",
        "faults",
    ],
)
def test_files_of_another_environment_or_success_are_not_reused(before, after, named, tmp_path, actor, tokenizer):
    def play(agent=None, **change):
        given = {
            "environment_factory": LookupEnvironment,
            "tasks": 2,
            "output_dir": tmp_path,
            "label": "tiny",
            **change,
        }
        player = make_agent(actor, tokenizer, **(agent or {}))
        return evaluate_objectives(player, QUESTIONS, objectives=[1], progress=False, resamples=10, **given)[1]

    played = play(**before)
    assert play(**before).trajectories == played.trajectories
    with pytest.raises(ValueError, match=rf"tiny-1.json was evaluated with other settings \({named}\)"):
        play(**after)


def test_a_corpus_that_changed_at_the_same_path_is_told_apart(tmp_path, actor, tokenizer):
    file, index = tmp_path / "corpus.jsonl", tmp_path / "index"

    def play(path, corpus, label):
        if path is index:
            Bm25Index.build(corpus, index, overwrite=True, show_progress=False)
        else:
            path.write_text("".join(json.dumps({"title": title, "text": text}) + "\n" for title, text in corpus))
        agent, factory = make_agent(actor, tokenizer), search(path, 1)
        given = dict(objectives=[1], tasks=2, output_dir=tmp_path / "out", progress=False, resamples=10)
        return evaluate_objectives(agent, QUESTIONS, factory, label=label, **given)[1]

    for path, label in ((file, "file"), (index, "index")):
        played = play(path, CORPUS, label)
        assert play(path, CORPUS, label).trajectories == played.trajectories
        with pytest.raises(
            ValueError, match=rf"{label}-1.json was evaluated with other settings \(contents of corpus\)"
        ):
            play(path, OTHER, label)


def test_contents_that_nobody_can_compare_are_named(tmp_path, actor, tokenizer, caplog):
    class Silent:
        """Cannot be told from another."""

        def search(self, queries, top_k=3):
            return [[] for _ in queries]

    arguments = dict(objectives=[1], tasks=2, output_dir=tmp_path, label="tiny", progress=False, resamples=10)
    agent = make_agent(actor, tokenizer)
    for corpus, label, warned in ((Silent(), "silent", True), (CORPUS, "told", False)):
        arguments["label"] = label
        for _ in range(2):
            caplog.clear()
            evaluate_objectives(agent, QUESTIONS, search(corpus, 1), **arguments)
        assert ("nothing says whether corpus holds what it held then" in caplog.text) is warned
    # A file of before these were written down
    path = tmp_path / "told-1.json"
    summary = json.loads(path.read_text())
    del summary["settings"]["contents"]
    path.write_text(json.dumps(summary))
    evaluate_objectives(agent, QUESTIONS, search(OTHER, 1), **arguments)
    assert "nothing says whether corpus holds what it held then" in caplog.text


def test_weights_that_nobody_can_compare_are_named(tmp_path, actor, tokenizer, monkeypatch, caplog):
    agent = make_agent(actor, tokenizer)
    arguments = dict(objectives=[1], tasks=2, output_dir=tmp_path, progress=False)
    described = {**agent.describe(), "model": "served", "weights": None}
    monkeypatch.setattr(agent, "describe", lambda: {**described, "max_turns": agent.settings.max_turns})
    evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **arguments)
    assert "weights" not in caplog.text
    evaluate_objectives(agent, QUESTIONS, LookupEnvironment, **arguments)
    assert "nothing says whether served still has the weights that it had then" in caplog.text


@pytest.mark.parametrize(
    ("label", "name"), [("MEM1, PPO 2", "mem1-ppo-2"), ("記憶 1", "記憶-1"), ("Über_uns", "über-uns"), ("!", "agent")]
)
def test_a_label_of_any_script_names_its_files(label, name):
    """Labels of which no letter stayed shared one file."""
    assert slug(label) == name


def test_few_questions_make_many_tasks(caplog):
    tasks = sample_objectives(QUESTIONS, 2, 15, seed=3)
    asked = [tuple(task["questions"]) for task in tasks]
    assert len(asked) == len(set(asked)) == 15 and all(a != b for a, b in asked)
    assert not caplog.text
    assert sample_objectives(QUESTIONS, 2, 15, seed=3)[:] == tasks[:]
    assert sample_objectives(QUESTIONS, 2, 6, seed=3)[:] == tasks[:6]
    assert sample_objectives(QUESTIONS, 2, 15, seed=4)[:] != tasks[:]
    repeated = sample_objectives(QUESTIONS, 1, 12)
    assert len(repeated) == 12 and len({task["prompt"] for task in repeated}) == 5
    assert "Only 5 different tasks of 1 objectives" in caplog.text and "7 of 12 tasks repeat" in caplog.text


def test_seconds_are_split_among_those_that_played(actor, tokenizer, monkeypatch):
    import mem1_trl.rollout.play as module

    clock = iter([0.0, 8.0, 12.0, 13.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    agent = make_agent(actor, tokenizer, rollout_mode="lockstep")
    agent.generate = ScriptedBackend(tokenizer, planned(lambda i: (1 + (i > 0) + (i > 1), 0)))
    trajectories = agent.run_batch([{"prompt": "q?"}] * 4, [LookupEnvironment() for _ in range(4)])
    # Turn 1 takes 8 for four, turn 2 takes 4 for three, turn 3 takes 1 for two
    shares = [2.0, 2 + 4 / 3, 2 + 4 / 3 + 0.5, 2 + 4 / 3 + 0.5]
    assert [t.metrics["seconds"] for t in trajectories] == pytest.approx(shares)


def test_no_second_is_lost_where_each_episode_ends_turns_by_itself(actor, tokenizer, monkeypatch):
    import mem1_trl.rollout.play as module

    clock = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    agent = make_agent(actor, tokenizer, rollout_mode="async")
    agent.generate = ScriptedBackend(tokenizer, planned(lambda i: (1 + (i > 0) + (i > 1), 0)))
    trajectories = agent.run_batch([{"prompt": "q?"}] * 4, [LookupEnvironment() for _ in range(4)])
    ends = sum(len(t.turns) for t in trajectories)
    assert next(clock) == 1 + ends, "the clock is read at the start, and whenever a turn ends"
    assert sum(t.metrics["seconds"] for t in trajectories) == pytest.approx(ends)
    assert min(t.metrics["seconds"] for t in trajectories) > 0


def test_the_trainer_scores_and_keeps_its_evaluations(tmp_path, actor, tokenizer):
    tasks = Dataset.from_list([{**row, "answers": row["answers"] if i else None} for i, row in enumerate(rows(4))])
    trainer = Mem1GRPOTrainer(
        model=actor,
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path, beta=0.0, num_generations=2, per_device_eval_batch_size=4, num_generations_eval=1,
                max_turns=4, max_completion_length=64, max_observation_length=40, save_eval_trajectories=True,
            )
        ),
        train_dataset=lookup_dataset(4),
        eval_dataset=tasks,
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )  # fmt: skip
    logged = trainer.evaluate()
    agent = make_agent(actor, tokenizer)
    expected = evaluate_agent(
        agent, [{k: v for k, v in row.items() if v is not None} for row in tasks], LookupEnvironment
    )
    for name in ("exact_match", "f1", "success", "exact_match_per_objective", "peak_tokens", "turns"):
        assert logged[f"eval_episode/{name}"] == pytest.approx(expected.metrics[name]), name
    assert expected.statistics["exact_match"].count == 3
    saved = Evaluation.load(tmp_path / "evaluation", "eval-0")
    assert saved.agent == "step 0" and saved.settings["max_turns"] == 4 and saved.settings["temperature"] == 0.0
    # The trainer's sampler has an order of its own
    there = {task.prompt_text: task for task in saved.tasks}
    for task in expected.tasks:
        other = there.pop(task.prompt_text)
        assert [t.completion_ids for t in other.trajectory.turns] == [t.completion_ids for t in task.trajectory.turns]
        assert other.trajectory.reward == task.trajectory.reward
        assert other.objectives_detail == task.objectives_detail
    assert not there
    assert saved.metrics["exact_match"] == expected.metrics["exact_match"]
    trainer.evaluate({"one": tasks, "two": tasks.select([0, 1])})
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert names == {f"{name}-0.{s}" for name in ("eval", "eval_one", "eval_two") for s in ("json", "jsonl")}
    assert len(Evaluation.load(tmp_path / "evaluation", "eval_two-0").tasks) == 2
    trainer.args.save_eval_trajectories = False
    trainer.evaluate(metric_key_prefix="off")
    assert not (tmp_path / "evaluation" / "off-0.json").exists() and not trainer._evaluations._batches
