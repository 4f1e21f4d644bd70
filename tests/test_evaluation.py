"""Evaluation of an agent, and what a person is shown of an episode."""

from __future__ import annotations

import pytest
from helpers import tiny_tokenizer
from rich.console import Console
from trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason, Trajectory, Turn
from mem1_trl.display import print_trajectory
from mem1_trl.evaluation import evaluate_agent


def make_agent(model, tokenizer, **kwargs):
    return Mem1Agent(
        model, tokenizer, SHORT, max_turns=4, max_completion_length=64, max_observation_length=40, **kwargs
    )


def rows(count: int) -> list[dict]:
    return [{"prompt": f"q{i}?", "secret": str(i % 3), "answers": [[str(i % 3)]]} for i in range(count)]


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
