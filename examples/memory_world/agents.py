"""How agents of this experiment play and are trained: settings, tests, and the marks of a finished run."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `long_runs`, shared with the other examples

import torch
from long_runs import UNFINISHED
from world import ASKED, HELD_OUT, LEVELS, Passages, rows_of, tasks

from mem1_trl import Mem1Agent
from mem1_trl.evaluation import Evaluation, evaluate_agent

TRAINED_ON, TWICE = 3, 6
"""Passages of a task in training, and of a longer one in the tests."""

TOGETHER = 200
KINDS = {"asked": ASKED, "held-out": HELD_OUT}
# (level, passages, kinds that are asked for, temperature)
CELLS = [
    *((level, TRAINED_ON, kinds, temperature) for temperature in (0.0, 1.0) for kinds in KINDS for level in LEVELS),
    *((level, TWICE, "asked", 0.0) for level in LEVELS),
]


def limits(passages):
    """Budgets of an agent on tasks of so many passages: a turn holds the state and the answer, but not what was read."""
    return {
        "max_turns": passages + 3,
        "max_completion_length": 12 + 8 * passages,
        "max_observation_length": 64,
    }


def load_agent(place, context="mem1", passages=TRAINED_ON, temperature=0.0):
    return Mem1Agent.from_pretrained(
        str(place), model_init_kwargs={"dtype": torch.float32}, context=context, temperature=temperature, batch_size=TOGETHER,
        **limits(passages),
    )  # fmt: skip


def freeze_embeddings(model):
    """
    Train a model without its embeddings, which are also its output.

    Each step of a softmax pushes down the words that are not said. A kind that never occurs in training was thus learned to be unlikely, and what
    was learned for the others did not hold for it: with the start's embeddings put back by hand, a trained model kept .96 instead of .70.
    """
    model.get_input_embeddings().requires_grad_(False)


def state_rows(state):
    """The topic and the rows of a state."""
    topic, _, rows = (state or "").partition(";")
    return topic.strip(), set(rows_of(rows))


def with_memory_scores(task):
    """An evaluated task with what its last state holds: `kept`, the share of needed rows, and `topic_kept`."""
    topic, rows = state_rows(task.trajectory.turns[-1].state if task.trajectory.turns else None)
    wanted = task.task["wanted"]
    scores = {
        **task.scores,
        "kept": sum(row in rows for row in wanted) / len(wanted),
        "topic_kept": float(topic == task.task["kind"]),
    }
    return dataclasses.replace(task, scores=scores)


def cell_name(level, passages, kinds, temperature):
    return f"{level}-{passages}-{kinds}-t{temperature:g}"


def test_agent(label, place, output, seed, deadline, count, context="mem1", change=None):
    """Evaluate a model in all cells; finished ones are not played again. `change` may alter the agent's settings."""
    for level, passages, kinds, temperature in CELLS:
        name = cell_name(level, passages, kinds, temperature)
        if (output / "evaluation" / f"{name}.json").is_file():
            continue
        if not deadline.leaves(60):
            raise SystemExit(UNFINISHED)
        agent = load_agent(place, context, passages, temperature)
        if change is not None:
            agent.settings = change(agent.settings)
        rows = tasks(level, count, passages, f"test {seed}", KINDS[kinds])
        played = evaluate_agent(
            agent,
            rows,
            Passages,
            TOGETHER,
            label=label,
            seed=seed,
            success=lambda row, trajectory: trajectory.reward == 1.0,
        )
        found = Evaluation.from_tasks(
            map(with_memory_scores, played.tasks), label, {**played.settings, "cell": name}, seed
        )
        found.save(output / "evaluation", name)
        metrics = found.metrics
        print(
            f"{label}, seed {seed}, {name}: right {metrics['success']:.3f}, kept {metrics['kept']:.3f}, "
            f"topic {metrics['topic_kept']:.3f}",
            flush=True,
        )
