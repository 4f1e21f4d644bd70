"""What a state is worth, against the plain model that reads each context on its own."""

from __future__ import annotations

import json

import pytest
import torch
from support.helpers import tiny_model, tiny_tokenizer
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator

from mem1_trl import Mem1Protocol, Trajectory, Turn
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout
from mem1_trl.update.memory_value import _contexts, memory_values

TOKENIZER = tiny_tokenizer()
SYNTAX = SHORT.syntax(TOKENIZER)
SCRIPTS = [
    ["<think>ab</think><search>u</search>", "<think>abc 7</think><search>vw</search>", "<think>c</think><answer>7; x</answer>"],
    ["<think>k</think><search>u</search>", "<search>v</search>", "<think>lmn</think><search>w</search>", "<answer>1</answer>"],
    ["<think>zz</think><answer>9</answer>"],
]  # fmt: skip
ANSWERS = [[["7", "seven"], "xyz"], None, ["9"]]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"] if text else []


def played(context: str = "mem1", scripts=SCRIPTS):
    """Episodes of three, four and one turn; one turn writes no state."""
    settings = AgentSettings(max_turns=5, max_observation_length=60, context=context)
    trajectories = []
    for number, script in enumerate(scripts):
        environment = LookupEnvironment()
        environment.reset(secret="42")
        rollout = Rollout(TOKENIZER, SHORT, settings, ScriptedGenerator(TOKENIZER, [[text] for text in script]))
        actions = rollout.contexts.actions(ActionSet(environment, SHORT))
        trajectories += rollout.run([Episode(ids(f"q{number}?"), environment, actions)])
    return trajectories


def logprobs(model, context, completion):
    """Of each token of a completion, by the plain model."""
    row = torch.tensor([[*context, *completion]])
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=row).logits[0, len(context) - 1 : -1].double(), -1)
    return scores.gather(1, row[0, len(context) :, None]).squeeze(1)


def without(context: list[int], state: str, instead: str) -> list[int]:
    """A context with another text in the last state of it that reads so; ids of tags and bytes, so that texts can be cut."""
    text = TOKENIZER.decode(context)
    begin = text.rindex(state)
    return ids(text[:begin] + instead + text[begin + len(state) :])


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("replace", ["blank", "swap"])
def test_against_the_plain_model(layout, context, replace):
    model = tiny_model("llama").train()
    trajectories = played(context)
    found = memory_values(model, trajectories, SYNTAX, ANSWERS, replace, layout)
    assert model.training
    # The state of a last turn is read by nobody, and the second turn of the second episode wrote none, to be swapped with
    assert [[value is not None for value in row] for row in found] == [
        [True, replace == "blank", False],
        [True, False, True, False],
        [False],
    ]
    swapped = {(0, 0): "<think>k</think>", (1, 0): "<think>zz</think>", (1, 2): "<think>c</think>"}
    model.eval()
    for index, trajectory in enumerate(trajectories):
        for number, value in enumerate(found[index]):
            if value is None:
                continue
            state = f"<think>{trajectory.turns[number].state}</think>"
            instead = "<think></think>" if replace == "blank" else swapped[index, number]
            read = trajectory.turns[number + 1]
            other = without(list(read.prompt_ids), state, instead)
            gains = logprobs(model, read.prompt_ids, read.completion_ids) - logprobs(model, other, read.completion_ids)
            action = len(ids(f"<think>{read.state}</think>")) if read.state is not None else 0
            assert value.turn == number + 1
            assert value.next_turn == pytest.approx(float(gains.sum()), abs=2e-4)
            assert value.next_action == pytest.approx(float(gains[action:].sum()), abs=2e-4)
            assert abs(value.next_turn) > 1e-2
            if index == 1:
                assert value.answer is None and value.objectives == ()
                continue
            tag = ids("<answer>")
            gold = ids("7; xyz")
            of_answer = logprobs(model, [*read.prompt_ids, *tag], gold) - logprobs(model, [*other, *tag], gold)
            assert value.answer == pytest.approx(float(of_answer.sum()), abs=2e-4)
            assert value.objectives == pytest.approx(
                [float(of_answer[:1].sum()), float(of_answer[3:].sum())], abs=2e-4
            )


def test_a_turn_that_samples_nothing_after_its_state_has_no_action():
    """A summary, or a state that was cut: 0 nats of its action would lower the mean of those that acted."""
    first, second = (tuple(ids(f"<think>{text}</think>")) for text in ("ab", "c"))
    prompt = tuple(ids("q?"))
    turns = [
        Turn(prompt, first, state="ab", state_tokens=len(first)),
        Turn((*prompt, *first), second, state="c", state_tokens=len(second)),
    ]
    model = tiny_model("llama").eval()
    value, last = memory_values(model, [Trajectory(turns)], SYNTAX)[0]
    blank = (*prompt, *ids("<think></think>"))
    gains = logprobs(model, turns[1].prompt_ids, second) - logprobs(model, blank, second)
    assert last is None and value.next_action is None
    assert value.next_turn == pytest.approx(float(gains.sum()), abs=2e-4) and abs(value.next_turn) > 1e-2


@pytest.mark.parametrize("replace", ["blank", "swap"])
def test_an_action_that_takes_the_place_of_the_past_says_nothing_instead(replace):
    """Its tags stay, as those of the state do; and it is swapped with another of its kind."""
    model, answer = tiny_model("llama"), "<think>c</think><answer>7</answer>"
    rewrites = "<think>k</think><rewrite>w 7</rewrite>", "<rewrite>e</rewrite>"
    scripts = [["<think>a</think><search>u</search>", rewrite, answer] for rewrite in rewrites]
    scripts.insert(1, ["<think>a</think><search>u</search>", "<think>b</think><search>v</search>", answer])
    trajectories = played("on_demand", scripts)
    found = memory_values(model, trajectories, SYNTAX, replace=replace)
    instead = {0: "<think></think><rewrite></rewrite>", 2: "<rewrite></rewrite>"}
    instead = instead if replace == "blank" else {0: rewrites[1], 2: rewrites[0]}
    for index, text in instead.items():
        written, read = trajectories[index].turns[1:]
        assert (
            written.context_action == "rewrite"
            and read.prompt_ids[: len(ids("q0?"))] == trajectories[index].prompt_ids
        )
        other = without(list(read.prompt_ids), written.text, text)
        gains = logprobs(model, read.prompt_ids, read.completion_ids) - logprobs(model, other, read.completion_ids)
        assert found[index][1].next_turn == pytest.approx(float(gains.sum()), abs=2e-4)
        assert abs(found[index][1].next_turn) > 5e-3


def test_calls_that_take_the_place_of_the_past_say_nothing_instead():
    tokenizer = template_tokenizer()
    syntax = Mem1Protocol.tool_calls().syntax(tokenizer)
    call = '<tool_call>\n{"name": "rewrite", "arguments": {"summary": "%s"}}\n</tool_call><|im_end|>'
    for said, blank in (("<think>m</think>", "<think></think>"), ("", ""), ("so", "")):
        completion = tuple(tokenizer(said + call % 'm \\"é')["input_ids"])
        turn = Turn(
            (5, 6), completion, action="rewrite", action_input=json.dumps({"summary": 'm "é'}), context_action="rewrite",
            state="m" if blank else said or None, state_tokens=len(completion),
        )  # fmt: skip
        read = Turn((5, 6, *completion, 7), (8,))
        _, other = _contexts(syntax, Trajectory([turn, read]), 0, None)
        assert tokenizer.decode(other[2:-1]) == blank + call % ""
