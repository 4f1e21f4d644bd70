"""The supervised stage: collection that can be stopped, selection by reward, and rows whose loss is on sampled tokens only."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.chat_server import serve
from support.helpers import oracle_logprobs
from support.trainer_helpers import SHORT, LookupEnvironment
from trl import SFTConfig, SFTTrainer

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason, Trajectory, Turn, load_trajectories
from mem1_trl.cli import main
from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset, read_trajectories, select_trajectories
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.report.run_directory import read_episode
from mem1_trl.rollout.draws import seed_of_episode


def make_agent(model, tokenizer, **kwargs):
    kwargs = {"max_turns": 4, "max_completion_length": 32, "max_observation_length": 40, "temperature": 1.0, **kwargs}
    return Mem1Agent(model, tokenizer, SHORT, **{"conversational": False, **kwargs})


def rows(count: int = 3) -> list[dict]:
    return [{"prompt": f"q{i}?", "secret": str(i % 3)} for i in range(count)]


def collect(agent, path, count=3, **kwargs):
    kwargs = {"samples": 2, "batch_size": 2, "disable_tqdm": True, **kwargs}
    return collect_trajectories(agent, rows(count), LookupEnvironment, path, **kwargs)


def trajectory(reward, task=(5, 6), stop_reason=StopReason.ANSWER):
    return Trajectory(turns=[Turn(task, (7, 8))], reward=reward, stop_reason=stop_reason)


# Collection


def test_every_row_is_played_as_often_as_asked_and_written_down(actor, tokenizer, tmp_path):
    path = tmp_path / "new" / "episodes.jsonl"
    played = collect(make_agent(actor, tokenizer), path)
    prompts = [tokenizer.decode(t.prompt_ids) for t in played]
    assert prompts == ["q0?", "q0?", "q1?", "q1?", "q2?", "q2?"]
    assert read_trajectories(path) == played, "ids, log-probs and rewards survive the file to the last digit"
    assert all(t.reward == float(t.answer == str(i // 2)) for i, t in enumerate(played))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["row"], line["sample"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_collection_that_was_stopped_goes_on_where_it_was(actor, tokenizer, tmp_path, monkeypatch):
    path, agent = tmp_path / "episodes.jsonl", make_agent(actor, tokenizer)
    reset = LookupEnvironment.reset

    def dies(self, prompt=None, **row):
        if prompt == "q2?":
            raise KeyboardInterrupt
        return reset(self, prompt, **row)

    monkeypatch.setattr(LookupEnvironment, "reset", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(agent, path)
    monkeypatch.undo()
    before = path.read_text()
    assert before.count("\n") == 4
    path.write_text(before + '{"row": 2, "sample": 0, "tra')  # the process died in the middle of a line
    played = collect(agent, path)
    assert len(played) == 6 and path.read_text().startswith(before) and path.read_text().count("\n") == 6
    assert read_trajectories(path) == played

    agent.run_batch = None  # nothing is left to play
    assert collect(agent, path) == played
    assert collect(agent, path, samples=1) == played[::2] and collect(agent, path, count=2) == played[:4]


def sampled(trajectories):
    """The token ids of each episode."""
    return [tuple(turn.completion_ids for turn in trajectory.turns) for trajectory in trajectories]


@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_a_collection_samples_the_same_however_often_it_is_cut(actor, tokenizer, tmp_path, mode):
    """A script that sets its seed and is run again drew the numbers of the first batch again: added samples were copies."""
    agent = make_agent(actor, tokenizer, rollout_mode=mode)
    torch.manual_seed(3)
    whole = sampled(collect(agent, tmp_path / "whole.jsonl", samples=3))
    assert all(len(set(whole[3 * row : 3 * row + 3])) == 3 for row in range(3)), "all samples of a row differ"
    for count, samples in ((1, 1), (3, 2), (3, 3)):
        torch.manual_seed(3)
        cut = collect(agent, tmp_path / "cut.jsonl", count=count, samples=samples, batch_size=3)
    assert sampled(cut) == whole
    torch.manual_seed(4)
    assert not set(sampled(collect(agent, tmp_path / "other.jsonl", samples=3))) & set(whole)


def test_a_collection_that_is_killed_samples_what_it_would_have(actor, tokenizer, tmp_path, monkeypatch):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    torch.manual_seed(3)
    whole = sampled(collect(agent, tmp_path / "whole.jsonl"))
    run_batch = agent.run_batch

    def dies(tasks, *args, **kwargs):
        if path.read_text():
            raise KeyboardInterrupt
        return run_batch(tasks, *args, **kwargs)

    monkeypatch.setattr(agent, "run_batch", dies)
    for _ in range(2):
        torch.manual_seed(3)
        with pytest.raises(KeyboardInterrupt):
            collect(agent, path)
    monkeypatch.undo()
    assert path.read_text().count("\n") == 2
    torch.manual_seed(3)
    assert sampled(collect(agent, path)) == whole


def test_added_samples_are_no_copies_where_the_sampler_takes_no_seeds(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer, generation_kwargs={"typical_p": 0.99}), tmp_path / "episodes.jsonl"
    for samples in (1, 2):
        torch.manual_seed(3)
        played = sampled(collect(agent, path, samples=samples, batch_size=3))
    assert len(set(played)) == 6


def test_the_seed_is_in_the_file_beside_the_episodes(actor, tokenizer, tmp_path):
    agent, beside = make_agent(actor, tokenizer), tmp_path / "episodes.json"
    played = collect(agent, tmp_path / "episodes.jsonl", seed=7)
    torch.manual_seed(5)
    assert json.loads(beside.read_text())["settings"]["seed"] == 7
    assert sampled(collect(agent, tmp_path / "again.jsonl", seed=7)) == sampled(played)
    with pytest.raises(ValueError, match=r"begun with another seed \(other seed\)"):
        collect(agent, tmp_path / "episodes.jsonl", seed=8)
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 9223372036854775807, got -1"):
        collect(agent, tmp_path / "episodes.jsonl", seed=-1)
    # What the caller draws afterwards does not depend on whether the file had been begun
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        collect(agent, tmp_path / "drawn.jsonl")
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


def test_seeds_of_episodes_stay_as_they_are():
    """Files are continued by later versions."""
    found = [seed_of_episode(7, *key) for key in ((0, 0), (0, 1), (1, 0))]
    assert found == [3085237330499497560, 2238280336703086180, 2023777109797189784]
    seeds = {
        seed_of_episode(seed, row, sample) for seed in (0, 2**62 - 1) for row in range(50) for sample in range(50)
    }
    assert len(seeds) == 5000 and all(0 <= seed < 2**62 for seed in seeds)


def test_a_reward_that_is_not_a_number_is_none_in_the_file(actor, tokenizer, tmp_path):
    path, agent = tmp_path / "episodes.jsonl", make_agent(actor, tokenizer)
    task = [{"prompt": "q1?", "secret": "1"}, {"prompt": "q2?", "secret": "2"}]

    def reward(trajectory, row):
        return 1.0 if row["secret"] == "2" else float("nan")

    played = collect_trajectories(agent, task, LookupEnvironment, path, reward=reward, disable_tqdm=True)
    assert [t.reward for t in played] == [None, 1.0] and "NaN" not in path.read_text(encoding="utf-8")
    again = collect_trajectories(agent, task, LookupEnvironment, path, reward=reward, disable_tqdm=True)
    assert again == played == read_trajectories(path)


class Flaky(LookupEnvironment):
    """Cannot start one of the tasks the first time."""

    broken = True

    def reset(self, prompt=None, **row):
        if prompt == "q1?" and Flaky.broken:
            raise TypeError("the site is down")
        return super().reset(prompt, **row)


def test_an_episode_whose_environment_fails_is_played_again_by_the_next_call(actor, tokenizer, tmp_path, caplog):
    path, agent = tmp_path / "episodes.jsonl", make_agent(actor, tokenizer)
    played = collect_trajectories(agent, rows(), Flaky, path, disable_tqdm=True)
    assert [t.error for t in played] == [None, "TypeError: the site is down", None]
    assert "1 of 3 episodes failed, the first of them with: TypeError: the site is down" in caplog.text
    assert path.read_text().count("\n") == 2 and len(select_trajectories(played, min_reward=0.0)) == 2
    Flaky.broken = False
    assert [t.error for t in collect_trajectories(agent, rows(), Flaky, path, disable_tqdm=True)] == [None] * 3
    assert path.read_text().count("\n") == 3


def test_the_bar_counts_what_was_there_before(actor, tokenizer, tmp_path, capsys):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    collect(agent, path, count=2)
    capsys.readouterr()
    collect(agent, path, count=3, disable_tqdm=False)
    shown = capsys.readouterr().err
    assert "4/6" in shown and "6/6" in shown and "reward=" in shown


def test_two_collections_into_one_file_are_refused(actor, tokenizer, tmp_path):
    """They played the same episodes, which then stood in it twice."""
    agent, path, refused = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl", []

    class Meanwhile(LookupEnvironment):
        def reset(self, prompt=None, **row):
            if not refused:
                with pytest.raises(RuntimeError, match="must be written by one collection at a time") as error:
                    collect_trajectories(agent, rows(), Meanwhile, path, samples=3, disable_tqdm=True)
                refused.append(str(error.value))
            return super().reset(prompt, **row)

    played = collect_trajectories(agent, rows(), Meanwhile, path, samples=2, disable_tqdm=True)
    assert refused and read_trajectories(path) == played and len(played) == 6


def test_more_samples_and_rows_are_added_to_what_is_there(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    first = collect(agent, path, count=2, samples=1)
    more = collect(agent, path, count=3, samples=2)
    assert [more[0], more[2]] == first and len(more) == 6


def test_a_model_that_is_named_by_another_path_is_the_same(actor, tokenizer, tmp_path):
    """`runs/model/` after tab completion, or an absolute path: the weights say which it is."""
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    first = collect(agent, path)
    named = copy.deepcopy(actor)
    named.config._name_or_path = "elsewhere/"
    assert collect(make_agent(named, tokenizer), path) == first
    with torch.no_grad():
        next(named.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"begun with another agent \(other model, weights\)"):
        collect(make_agent(named, tokenizer), path)


def test_which_task_was_played_is_known_wherever_episodes_are_read(actor, tokenizer, tmp_path):
    path = tmp_path / "episodes.jsonl"
    played = collect(make_agent(actor, tokenizer), path)
    assert len({trajectory.task for trajectory in played}) == len(rows()) and None not in {t.task for t in played}
    assert load_trajectories(path) == read_trajectories(path) == played
    flat = tmp_path / "flat.jsonl"
    flat.write_text("".join(json.dumps(trajectory.to_dict()) + "\n" for trajectory in played))
    assert load_trajectories(flat) == played
    earlier(path)
    assert {trajectory.task for trajectory in load_trajectories(path)} == {None}


def test_collected_episodes_are_printed(actor, tokenizer, tmp_path, capsys):
    collect(make_agent(actor, tokenizer), tmp_path / "episodes.jsonl")
    record = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])
    episode = read_episode(record)
    assert episode["task"] == {"prompt": record["prompt"]} and episode["trajectory"].turns
    assert main(["trajectories", str(tmp_path / "episodes.jsonl"), "--limit", "1"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_is_refused(actor, tokenizer, tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {batch_size}"):
        collect_trajectories(
            make_agent(actor, tokenizer),
            [{"prompt": "q"}],
            LookupEnvironment,
            tmp_path / "a.jsonl",
            batch_size=batch_size,
        )
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_agent_or_other_rows_is_refused(actor, tokenizer, tmp_path):
    path = tmp_path / "episodes.jsonl"
    collect(make_agent(actor, tokenizer), path)
    with pytest.raises(ValueError, match=r"begun with another agent \(other context, temperature\)"):
        collect(make_agent(actor, tokenizer, context="full", temperature=0.5), path)
    other = rows()
    other[1]["prompt"] = "other?"
    with pytest.raises(ValueError, match=r"holds an episode about row 1, 'q1\?', which is another row now"):
        collect_trajectories(make_agent(actor, tokenizer), other, LookupEnvironment, path, disable_tqdm=True)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"exists, but not episodes\.json with the settings"):
        collect(make_agent(actor, tokenizer), path)


def earlier(path, *settings):
    """Makes of a file what an earlier version wrote, which knew neither the rows nor these settings."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "task"}) + "\n" for line in lines))
    record = json.loads(path.with_suffix(".json").read_text())
    for name in settings:
        del record["settings"][name]
    path.with_suffix(".json").write_text(json.dumps(record))


def test_rows_that_differ_beside_their_prompt_are_refused(actor, tokenizer, tmp_path):
    """The task may lie in other columns: the episodes of others came back."""
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    first = [{"prompt": "q?", "secret": "1", "size": (1, 2)}, {"prompt": "q?", "secret": "2", "size": (1, 2)}]
    second = [first[0], {**first[1], "secret": "0"}]

    def play(tasks):
        return collect_trajectories(agent, tasks, LookupEnvironment, path, disable_tqdm=True)

    played = play(first)
    assert play([{**row, "size": [1, 2]} for row in first]) == played, "as it comes from a file"
    with pytest.raises(
        ValueError, match=r"about row 1, 'q\?', which is another row now in columns beside its prompt: "
    ):
        play(second)
    with pytest.raises(ValueError, match=r"about row 0, 'q\?', which is another row now in columns"):
        play(first[::-1])
    earlier(path)  # nothing is known of other columns
    assert sampled(play(second)) == sampled(played)
    with pytest.raises(ValueError, match=r"about row 1, 'q\?', which is another row now: "):
        play([first[0], {**first[1], "prompt": "other?"}])


def twice(trajectory, row):
    return 2.0


def test_a_file_of_another_reward_is_refused(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    own = collect(agent, path)
    with pytest.raises(ValueError, match=r"begun with another reward \(other reward\)"):
        collect(agent, path, reward=twice)
    scored = collect(agent, tmp_path / "scored.jsonl", reward=twice)
    assert [t.reward for t in scored] == [2.0] * 6 and collect(
        agent, tmp_path / "scored.jsonl", reward=twice
    ) == scored
    earlier(path, "reward")
    assert collect(agent, path, reward=twice) == own


def times(factor, trajectory, row):
    return factor


def test_what_a_partial_gives_a_reward_tells_it_from_another(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    collect(agent, path, reward=partial(times, 1.0))
    with pytest.raises(ValueError, match=r"begun with another reward \(other reward\)"):
        collect(agent, path, reward=partial(times, 5.0))


def test_what_nothing_tells_from_another_is_named_when_a_collection_goes_on(actor, tokenizer, tmp_path, caplog):
    class Silent:
        """A search without a `checksum`."""

        def search(self, queries, top_k=3):
            return [[] for _ in queries]

    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    for samples in (1, 2):
        factory = RetrievalQAEnvironment.factory(Silent(), top_k=1)
        assert "nothing says" not in caplog.text
        collect_trajectories(agent, rows(1), factory, path, samples=samples, disable_tqdm=True)
    assert "goes on, though nothing says whether corpus holds what it held then" in caplog.text


def test_a_file_of_an_earlier_version_is_given_a_seed(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    first = collect(agent, path, samples=1)
    earlier(path, "seed", "tokenizer", "reward")
    before = json.loads(path.with_suffix(".json").read_text())["settings"]
    for samples in (2, 3):
        torch.manual_seed(3)
        more = collect(agent, path, samples=samples)
    after = json.loads(path.with_suffix(".json").read_text())["settings"]
    torch.manual_seed(3)
    assert after == {**before, "seed": torch.randint(2**62, (1,)).item()}, "the rest stays unknown"
    assert sampled(more[::3]) == sampled(first) and len(set(sampled(more))) == 9


def test_a_file_of_another_environment_is_refused(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"

    def play(symbol, top_k):
        factory = RetrievalQAEnvironment.factory([("Gold", f"Gold has the symbol {symbol}.")], top_k=top_k)
        return collect_trajectories(agent, [{"prompt": "q0?", "answers": ["Au"]}], factory, path, disable_tqdm=True)

    first = play("Au", 1)
    assert play("Au", 1) == first
    with pytest.raises(ValueError, match=r"begun with another environment \(other environments\)"):
        play("Au", 2)
    with pytest.raises(ValueError, match=r"begun with another environment \(other contents\)"):
        play("Ag", 1)
    # A file of before environments were written down goes on
    beside = path.with_suffix(".json")
    record = json.loads(beside.read_text())
    for name in ("environments", "contents"):
        del record["settings"][name]
    beside.write_text(json.dumps(record))
    assert play("Ag", 1) == first


def test_a_file_of_something_else_beside_it_is_not_overwritten(actor, tokenizer, tmp_path):
    (tmp_path / "episodes.json").write_text('[{"question": "q0?"}]')
    with pytest.raises(ValueError, match=r"are written to .*episodes.json, which holds something else"):
        collect(make_agent(actor, tokenizer), tmp_path / "episodes.jsonl")
    assert (tmp_path / "episodes.json").read_text() == '[{"question": "q0?"}]'


def test_an_episode_that_never_began_is_no_demonstration():
    failed = Trajectory([], stop_reason=StopReason.ERROR, error="no environment")
    rows = demonstration_dataset([failed, Trajectory([Turn((5, 6), (7,))], reward=1.0)], max_length=10)
    assert rows["input_ids"] == [[5, 6, 7]]


def test_a_broken_line_is_named(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    collect(agent, path)
    path.write_text("{]\n" + path.read_text())
    with pytest.raises(ValueError, match=r"Line 1 of .*episodes\.jsonl is not JSON"):
        collect(agent, path)


def test_an_episode_may_be_scored_from_outside(actor, tokenizer, tmp_path):
    played = collect(
        make_agent(actor, tokenizer),
        tmp_path / "e.jsonl",
        reward=lambda t, row: len(t.turns) + int(row["secret"]) / 10,
    )
    assert [t.reward for t in played] == [len(t.turns) + (i // 2) / 10 for i, t in enumerate(played)]
    assert read_trajectories(tmp_path / "e.jsonl") == played


def test_what_cannot_be_collected_is_said_first(actor, tokenizer, tmp_path):
    agent = make_agent(actor, tokenizer)
    with pytest.raises(ValueError, match="no rows"):
        collect(agent, tmp_path / "e.jsonl", count=0)
    with pytest.raises(ValueError, match=r"name the file e\.json\.jsonl"):
        collect(agent, tmp_path / "e.json")
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        collect(agent, tmp_path / "e.jsonl", samples=0)
    with pytest.raises(ValueError, match=r"samples must be a whole number of at least 1, got 1\.5"):
        collect(agent, tmp_path / "e.jsonl", samples=1.5)

    async def reward(trajectory, row):
        return 1.0

    with pytest.raises(TypeError, match="reward must be an ordinary function, got an asynchronous one"):
        collect(agent, tmp_path / "e.jsonl", reward=reward)
    with pytest.raises(FileNotFoundError, match="collect it with `collect_trajectories`"):
        read_trajectories(tmp_path / "e.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_reward_that_is_no_number_is_said_in_a_sentence(actor, tokenizer, tmp_path):
    agent = make_agent(actor, tokenizer)
    with pytest.raises(TypeError, match="reward gave a str: return a float, or None if there is nothing to score"):
        collect(agent, tmp_path / "e.jsonl", reward=lambda trajectory, row: "1")


# Selection


def test_episodes_are_selected_by_reward_task_and_end():
    a, b = (5, 6), (5, 9)
    played = [
        trajectory(1.0, a),
        trajectory(2.0, a),
        trajectory(0.0, b),
        trajectory(1.0, b, StopReason.MAX_TURNS),
        trajectory(2.0, a),
    ]
    assert select_trajectories(played) == played
    assert select_trajectories(played, min_reward=1.0) == [played[0], played[1], played[3], played[4]]
    best = select_trajectories(played, best_per_task=1)
    assert len(best) == 2 and best[0] is played[1] and best[1] is played[3], "the first of equals, in their old order"
    assert select_trajectories(played, best_per_task=2)[-1] is played[4]
    assert select_trajectories(played, stop_reasons=["answer"]) == [played[i] for i in (0, 1, 2, 4)]
    ended = select_trajectories(played, min_reward=0.0, best_per_task=1, stop_reasons=[StopReason.ANSWER])
    assert len(ended) == 2 and ended[1] is played[2]


def test_tasks_with_the_same_prompt_are_told_apart_by_their_rows(actor, tokenizer, tmp_path):
    agent, path = make_agent(actor, tokenizer), tmp_path / "episodes.jsonl"
    tasks = [{"prompt": "q?", "secret": secret} for secret in "01"]
    played = collect_trajectories(agent, tasks, LookupEnvironment, path, samples=3, disable_tqdm=True)
    assert (
        len({t.prompt_ids for t in played}) == 1
        and [t.task == played[0].task for t in played] == [True] * 3 + [False] * 3
    )
    for given in (played, read_trajectories(path)):
        best = select_trajectories(given, best_per_task=1)
        assert [given.index(t) // 3 for t in best] == [0, 1]
        assert [t.reward for t in best] == [max(t.reward for t in given[i : i + 3]) for i in (0, 3)]
    earlier(path)
    assert len(select_trajectories(read_trajectories(path), best_per_task=1)) == 1, "only the prompt is known"


def test_a_selection_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"None of 1 trajectories is kept; the best reward is 0\.5"):
        select_trajectories([trajectory(0.5)], min_reward=1.0)
    with pytest.raises(
        ValueError, match="No trajectory has a reward to select by: give the environment a `get_reward`"
    ):
        select_trajectories([trajectory(None), trajectory(None)], min_reward=1.0)
    for given, words in (
        ({"min_reward": math.nan}, "min_reward must be a number, got nan"),
        ({"best_per_task": 0}, "best_per_task must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            select_trajectories([trajectory(1.0)], **given)


def test_a_reward_that_is_no_number_is_not_the_best():
    given = [trajectory(reward) for reward in (float("nan"), 0.0, 1.0)]
    assert select_trajectories(given, best_per_task=1) == [given[2]]


def test_episodes_without_a_reward_are_left_out_where_one_is_needed(caplog):
    """One episode whose score was not finite made it refuse all others."""
    played = [trajectory(1.0), trajectory(None), trajectory(None, stop_reason=StopReason.TRUNCATED)]
    assert select_trajectories(played, min_reward=1.0) == played[:1]
    assert "Left out 2 of 3 trajectories, which have no reward to select by" in caplog.text
    caplog.clear()
    assert select_trajectories([played[0], played[2]], min_reward=1.0, stop_reasons="answer") == played[:1]
    assert select_trajectories(played) == played and "Left out" not in caplog.text


# Rows


def test_a_turn_becomes_a_row():
    played = Trajectory(turns=[Turn((5, 6, 7), (8, 9)), Turn((5, 6, 7, 8, 9, 4), (3,))], reward=1.0)
    dataset = demonstration_dataset([played, trajectory(None)])
    assert list(dataset) == [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, -100, 8, 9], "episode": 0, "turn": 0, "reward": 1.0},
        {"input_ids": [5, 6, 7, 8, 9, 4, 3], "labels": [-100] * 6 + [3], "episode": 0, "turn": 1, "reward": 1.0},
        {
            "input_ids": [5, 6, 7, 8],
            "labels": [-100, -100, 7, 8],
            "episode": 1,
            "turn": 0,
            "reward": pytest.approx(math.nan, nan_ok=True),
        },
    ]


def test_an_episode_whose_environment_failed_is_no_demonstration(caplog):
    failed = Trajectory(turns=[Turn((5, 6), (7, 8))], reward=1.0, stop_reason=StopReason.ERROR, error="boom")
    assert demonstration_dataset([failed, trajectory(1.0)])["episode"] == [1]
    assert "Left out 1 episodes whose environment failed" in caplog.text
    with pytest.raises(ValueError, match="There is no demonstration to learn from"):
        demonstration_dataset([failed])


def test_an_episode_with_a_turn_that_is_too_long_is_left_out_whole(caplog):
    long = Trajectory(turns=[Turn((5,), (8,)), Turn((5, 6, 7), (8, 9))], reward=1.0)
    with caplog.at_level("WARNING", logger="mem1_trl.demonstrations"):
        dataset = demonstration_dataset([long, trajectory(1.0)], max_length=4)
    assert dataset["episode"] == [1] and "Left out 1 episodes with a turn of more than 4 tokens" in caplog.text
    with pytest.raises(ValueError, match="at most max_length=4 tokens"):
        demonstration_dataset([long], max_length=4)
    with pytest.raises(ValueError, match="no demonstration to learn from: pass at least one trajectory"):
        demonstration_dataset([])


class Recording(SFTTrainer):
    """Keeps what the model is given, and the loss."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.given.append({name: value.clone() for name, value in inputs.items()})
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.losses.append(float(loss.detach()))
        return loss


def train_on(dataset, model, tokenizer, tmp_path, **kwargs):
    config = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(dataset),
        max_length=None,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        **kwargs,
    )
    trainer = Recording(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.given, trainer.losses = [], []
    trainer.train()
    return trainer


def sampled_rows(trajectories):
    """What must carry loss, in the order of no trainer: (context, completion) of each turn."""
    return sorted((t.prompt_ids, t.completion_ids) for trajectory in trajectories for t in trajectory.turns)


def rows_with_loss(given):
    """What does carry loss in a batch of a trainer."""
    found = []
    for ids, labels, mask in zip(given["input_ids"], given["labels"], given["attention_mask"]):
        ids, labels = ids[mask.bool()].tolist(), labels[mask.bool()].tolist()
        assert labels == [label if label == -100 else token for token, label in zip(ids, labels)]
        begin = labels.index(next(label for label in labels if label != -100))
        assert -100 not in labels[begin:], "what is sampled stands at the end"
        found.append((tuple(ids[:begin]), tuple(ids[begin:])))
    return sorted(found)


@pytest.mark.parametrize("completion_only_loss", [None, True, False])
def test_exactly_the_sampled_tokens_carry_loss_in_sft_trainer(actor, tokenizer, tmp_path, completion_only_loss):
    played = collect(make_agent(actor, tokenizer), tmp_path / "episodes.jsonl", count=3)
    # Ids as a model may sample them but no tokenizer writes them: a tag letter by letter, which is one token if encoded
    spelled = tuple(id for letter in "<think>a</think>" for id in tokenizer(letter)["input_ids"])
    assert tokenizer(tokenizer.decode(spelled))["input_ids"] != list(spelled)
    played.append(Trajectory(turns=[Turn((*spelled, 30), (*spelled, tokenizer.eos_token_id))], reward=1.0))
    with torch.no_grad():
        oracle = torch.cat([logprobs for trajectory in played for logprobs in oracle_logprobs(actor, trajectory)])

    trainer = train_on(
        demonstration_dataset(played), actor, tokenizer, tmp_path, completion_only_loss=completion_only_loss
    )
    (given,), (loss,) = trainer.given, trainer.losses
    assert rows_with_loss(given) == sampled_rows(played)
    assert loss == pytest.approx(float(-oracle.mean()), abs=1e-5)


def test_demonstrations_of_an_endpoint_are_in_the_ids_of_the_student(actor, tokenizer, tmp_path):
    def reply(messages):
        _, searched, found = messages[0]["content"].partition("<information>3;")
        return f"<think>x</think><answer>{found[0]}</answer>" if searched else "<think>k</think><search>u</search>"

    with serve(reply) as server:
        agent = Mem1Agent(
            "m", tokenizer, SHORT, max_turns=4, max_observation_length=40, client=server.url, conversational=False
        )
        played = collect(agent, tmp_path / "episodes.jsonl", samples=1)
    settings = json.loads((tmp_path / "episodes.json").read_text())["settings"]
    assert settings["endpoint"] is True and settings["model"] == "m" and settings["max_turns"] == 4
    kept = select_trajectories(played, min_reward=1.0)
    assert len(kept) == 3
    (given,) = train_on(demonstration_dataset(kept), actor, tokenizer, tmp_path).given
    expected = []
    for i in range(3):
        first = "<think>k</think><search>u</search>"
        for context, said in (
            (f"q{i}?", first),
            (f"q{i}?{first}<information>3;{i}</information>", f"<think>x</think><answer>{i}</answer>"),
        ):
            expected.append(tuple(tuple(tokenizer(text)["input_ids"]) for text in (context, said)))
    assert rows_with_loss(given) == sorted(expected)


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "examples" / "sft.py"), "--smoke", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["episodes"] == len(read_trajectories(tmp_path / "episodes.jsonl")) == 32
    assert 0 < results["kept"] < 32 and results["turns"] > results["kept"]
    said = done.stdout.splitlines()
    assert said[0] == "before: 8 held-out tasks of 2 objectives ..."  # evaluations of a whole run take minutes
    assert "2 objectives, 8 held-out tasks: EM per objective" in done.stdout
    assert said[-3:] == [f"{what}: {tmp_path / name}" for what, name in (("model", "model"), ("episodes", "episodes.jsonl"), ("numbers", "results.json"))]  # fmt: skip
    taught = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert taught.protocol == Mem1Protocol.from_pretrained(root / "examples" / "assets" / "tiny-mem1")
    before = load_file(root / "examples" / "assets" / "tiny-mem1" / "model.safetensors")
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        assert not torch.equal(weight, before[name].float()), f"{name} was not trained"
