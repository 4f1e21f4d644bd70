"""Chat templates that open `<think>` for the model: a thought is the state or nothing, and never an action."""

from __future__ import annotations

import copy

import pytest
import torch
from support.chat_server import serve
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.protocol.tag_syntax import TagSyntax
from mem1_trl.protocol.turn_text import close_action
from mem1_trl.rollout.stopping import ActionStoppingCriteria, StopStringFinder, StopStrings

pytestmark = pytest.mark.usefixtures("rollout_mode")

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{{ message['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if thinks is not defined or thinks %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THOUGHT = "maybe <search>no</search> or <answer>no</answer>"
STOPS = ["</search>", "</answer>"]


@pytest.fixture(scope="module")
def thinking(tokenizer):
    """A tokenizer whose chat template opens a thought."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE
    return changed


def play(tokenizer, actor, script, protocol=SHORT, **settings):
    """A trajectory of texts, its environment and what the generator read."""
    agent = Mem1Agent(actor, tokenizer, protocol, max_observation_length=60, **settings)
    agent.generate = ScriptedGenerator(tokenizer, [[text] for text in script], settings.get("max_completion_length"))
    agent.generate.release, agent.generate.batch_size = (lambda: None), 1
    environment = LookupEnvironment()
    return agent.run("q0?", environment), environment, agent.generate


def test_what_a_prompt_has_opened_is_the_state(thinking, actor):
    first = f"{THOUGHT}</think><search>key</search>"
    script = [first + "<b>", "<think>two</think><answer>7</answer>"]
    trajectory, environment, generator = play(thinking, actor, script)
    assert thinking.decode(trajectory.prompt_ids).endswith("assistant:<think>\n")
    assert trajectory.turns[0].text == first  # cut at the first action after the thought
    assert [turn.state for turn in trajectory.turns] == [THOUGHT, "two"]
    assert environment.queries == ["key"] and (environment.given, trajectory.answer) == ("7", "7")
    assert trajectory.turns[0].state_tokens == len(thinking(f"{THOUGHT}</think>")["input_ids"])
    # The next context goes on after the observation, where nothing is open
    context = thinking.decode(generator.prompts[1][0])
    assert context == f"user:q0?;assistant:<think>\n{first}<information>5;7</information>"
    assert isinstance(generator.stops[0][0], StopStrings) and generator.stops[0][0].after == "</think>"
    assert type(generator.stops[1][0]) is list


@pytest.mark.parametrize(("ending", "reason"), [("<eos>", StopReason.INVALID_ACTION), ("", StopReason.TRUNCATED)])
def test_a_thought_that_is_not_closed_acts_on_nothing(thinking, actor, ending, reason):
    trajectory, environment, _ = play(thinking, actor, [THOUGHT + ending])
    assert trajectory.stop_reason is reason and trajectory.answer is None
    assert environment.queries == [] and environment.given is None
    assert (trajectory.turns[0].state, trajectory.turns[0].action) == (None, None)


def test_a_thought_that_the_template_has_closed_is_not_open(thinking, actor):
    trajectory, _environment, _ = play(
        thinking, actor, ["<think>s</think><answer>7</answer>"], chat_template_kwargs={"thinks": False}
    )
    assert thinking.decode(trajectory.prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert (trajectory.turns[0].state, trajectory.answer) == ("s", "7")


def test_scratch_that_a_prompt_has_opened_is_not_kept(thinking, actor):
    """As with WebShop's format: the thought is dropped, its end stays, since the prompt has its beginning."""
    protocol = Mem1Protocol(**{**SHORT.to_dict(), "state_tag": "summary", "scratch_tags": ("think",)})
    acted = "<summary>s</summary><search>key</search>"
    script = [f"{THOUGHT}</think>\n{acted}", "<summary>t</summary><answer>7</answer>"]
    trajectory, environment, generator = play(thinking, actor, script, protocol)
    assert [turn.state for turn in trajectory.turns] == ["s", "t"] and environment.queries == ["key"]
    context = thinking.decode(generator.prompts[1][0])
    assert context == f"user:q0?;assistant:<think>\n</think>\n{acted}<information>5;7</information>"


def test_brackets_in_a_thought_are_no_action(thinking):
    shop = Mem1Protocol.webshop()
    text = "<answer>click[a]</answer></think><summary>s</summary><answer>click[b]</answer>"
    turn = TagSyntax(thinking, shop).parse((), text, _Clicks(), opened="think")
    assert (turn.state, turn.action, turn.action_input) == ("s", "click", "b")
    assert text[slice(*turn.state_span)] == "<summary>s</summary>"


class _Clicks:
    tags = {"click": "click", "search": "search"}  # noqa: RUF012


def test_another_state_tag_leaves_the_thought_alone(thinking, actor):
    protocol = Mem1Protocol(**{**SHORT.to_dict(), "state_tag": "IS"})
    trajectory, environment, _ = play(
        thinking, actor, [f"{THOUGHT}</think><IS>s</IS><search>key</search>", "<IS>t</IS><answer>7</answer>"], protocol
    )
    assert environment.queries == ["key"] and [turn.state for turn in trajectory.turns] == ["s", "t"]


def test_a_text_prompt_may_open_a_thought_too(tokenizer):
    syntax = Mem1Protocol().syntax(tokenizer)
    contexts = {
        "q <think>": "think",
        "q <think>\n": "think",
        "q <think>a": None,
        "q </think>": None,
        "q <search>": None,
    }
    assert {text: syntax.opened(tokenizer(text)["input_ids"]) for text in contexts} == contexts
    assert Mem1Protocol.webshop().syntax(tokenizer).opened(tokenizer("<summary>")["input_ids"]) == "summary"


# Generation


@pytest.mark.parametrize("again", [0, 7, 40])
def test_stop_strings_count_after_the_thought(tokenizer, again):
    """Token by token, also when `generate` was left and called again in the middle of a sequence."""
    text = f"{THOUGHT}</think><search>a</search><answer>b</answer>"
    ids, finder = tokenizer(text)["input_ids"], StopStringFinder(tokenizer)
    stops = StopStrings(STOPS, after="</think>")
    end = len(tokenizer(f"{THOUGHT}</think><search>a</search>")["input_ids"])
    assert finder.end(ids, stops) == end
    assert finder.end(ids[: end - 1], stops) is None and finder.end(tokenizer(THOUGHT)["input_ids"], stops) is None
    prompt = tokenizer("q</think>")["input_ids"]
    criteria, ended = None, []
    for count in range(1, len(ids) + 1):
        if criteria is None or count - 1 == again:
            criteria = ActionStoppingCriteria(finder, [stops, STOPS], len(prompt))
        row = torch.tensor([prompt + ids[:count]])
        ended.append(criteria(row.repeat(2, 1), None).tolist())
    assert next(place + 1 for place, (first, _) in enumerate(ended) if first) == end
    plain = len(tokenizer("maybe <search>no</search>")["input_ids"])
    if not again:
        assert next(place + 1 for place, (_, second) in enumerate(ended) if second) == plain


def test_a_local_model_goes_on_through_its_thought(thinking, actor):
    """What a real model samples after `<think>` has no action inside the thought, or no action at all."""
    agent = Mem1Agent(actor, thinking, SHORT, temperature=1.0, max_completion_length=64, max_observation_length=60)
    torch.manual_seed(0)
    rows = [{"prompt": f"q{i % 4}?"} for i in range(16)]
    trajectories = agent.run_batch(rows, [LookupEnvironment() for _ in rows])
    seen = 0
    for trajectory in trajectories:
        thought, closed, rest = trajectory.turns[0].text.partition("</think>")
        assert bool(trajectory.turns[0].action) <= bool(closed)
        if trajectory.turns[0].action:
            assert trajectory.turns[0].state == thought.strip().removeprefix("<think>").strip()
            assert rest.endswith(f"</{trajectory.turns[0].action}>")
            seen += 1
    assert seen


# Endpoints


def test_a_reply_is_read_from_after_the_opened_thought(thinking):
    """Servers return the thought with its opening tag, without it, or apart."""
    whole = f"{THOUGHT}</think><answer>7</answer>"
    replies = [
        whole,
        f"<think>{whole}",
        {"role": "assistant", "content": "<answer>7</answer>", "reasoning_content": THOUGHT},
    ]
    for reply in replies:
        with serve(lambda messages, reply=reply: reply) as server:
            agent = Mem1Agent("m", thinking, SHORT, client=server.url, max_observation_length=60)
            trajectory = agent.run("q0?", LookupEnvironment(), secret="7")
        assert (trajectory.turns[0].text, trajectory.answer, trajectory.reward) == (whole, "7", 1.0)
        assert "stop" not in server.requests[0]  # the server would stop inside the thought


def test_a_closing_tag_inside_a_thought_does_not_close_the_action():
    assert close_action(f"{THOUGHT}</think><search>a", STOPS, "think") == (
        f"{THOUGHT}</think><search>a</search>",
        True,
    )
    assert close_action(THOUGHT, STOPS, "think") == (THOUGHT, False)
