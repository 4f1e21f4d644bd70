"""What a chat endpoint's model reads, rendered by templates that drop thoughts: the state of the last turn is always there."""

from __future__ import annotations

import copy
import json
import re

import pytest
from support.chat_server import serve
from support.tool_helpers import TEMPLATES, Library, template_text, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.protocol.turn_text import join_thought
from mem1_trl.rollout.endpoint import check_rendering

pytestmark = pytest.mark.usefixtures("rollout_mode")

# Thoughts of assistant messages before the last question of the user are dropped, and fields of reasoning with them
DROPS_EARLIER = """
{%- set ns = namespace(question=0) %}
{%- for message in messages if message.role == 'user' %}{% set ns.question = ns.question + 1 %}{% endfor %}
{%- set seen = namespace(questions=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set seen.questions = seen.questions + 1 %}{% endif %}
{%- set text = message.content or '' %}
{%- if message.role == 'assistant' and '</think>' in text and seen.questions < ns.question %}
{%- set text = text.split('</think>')[-1] %}{% endif %}
{{- '<' + message.role + '>' + text }}
{%- for call in message.tool_calls or [] %}{{ '[call ' + call.function.name + ']' }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

# Everything before the end of the thought is dropped from every assistant message, and all text beside a call
DROPS_ALL = """
{%- for message in messages %}
{%- set text = message.content or '' %}
{%- if message.role == 'assistant' %}{% set text = '' if message.tool_calls else text.split('</think>')[-1] %}{% endif %}
{{- '<' + message.role + '>' + text }}
{%- for call in message.tool_calls or [] %}{{ '[call ' + call.function.name + ']' }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<assistant><think>
{% endif %}"""

DROPPING = {"earlier thoughts": DROPS_EARLIER, "all thoughts": DROPS_ALL}


@pytest.fixture(params=list(DROPPING))
def dropping(request, tokenizer):
    """A tokenizer whose chat template drops thoughts."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = DROPPING[request.param]
    return changed


def read_by(tokenizer, messages):
    """The text that a server makes of messages, by its own template."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def counter(tokenizer, apart):
    """A model that counts its turns in its state, and knows nothing else; its server may keep thoughts apart."""

    def reply(messages):
        states = re.findall(r"<think>(\d+)</think>", read_by(tokenizer, messages))
        count = int(states[-1]) + 1 if states else 1
        action = f"<answer>{count}</answer>" if count == 3 else "<search>k</search>"
        if apart:
            return {"role": "assistant", "content": action, "reasoning_content": str(count)}
        return f"<think>{count}</think>{action}"

    return reply


@pytest.mark.parametrize("apart", [False, True], ids=["in the text", "reasoning_content"])
def test_the_state_reaches_a_model_whose_template_drops_thoughts(tokenizer, dropping, apart):
    with serve(counter(dropping, apart)) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, max_observation_length=60, max_turns=4)
        trajectory = agent.run("q0?", LookupEnvironment())
    assert [turn.state for turn in trajectory.turns] == ["1", "2", "3"]
    assert (trajectory.answer, trajectory.stop_reason) == ("3", StopReason.ANSWER)
    # The trajectory holds what was sent, and in the student's format the same text
    for turn, request in zip(trajectory.turns, server.requests, strict=True):
        assert list(turn.messages) == request["messages"]
    second = trajectory.turns[1]
    past = "<think>1</think><search>k</search><information>3;7</information>"
    assert second.messages[0]["content"] == f"q0?\n\n{past}"
    assert tokenizer.decode(second.prompt_ids) == f"user:q0?;assistant:{past}"


def test_the_state_beside_tool_calls_reaches_such_a_model(dropping):
    tokenizer = template_tokenizer()

    def reply(messages):
        for message in messages:
            for call in message.get("tool_calls", []):
                assert isinstance(call["function"]["arguments"], str)
        states = re.findall(r"<think>(\d+)</think>", read_by(dropping, messages))
        count = int(states[-1]) + 1 if states else 1
        if count == 4:
            return {"role": "assistant", "content": f"<think>{count}</think>It is {count}."}
        arguments = json.dumps({"query": "k"}) if count != 2 else "["  # a call that cannot be read
        call = {"id": "x", "type": "function", "function": {"name": "search", "arguments": arguments}}
        return {"role": "assistant", "content": f"<think>{count}</think>", "tool_calls": [call]}

    with serve(reply) as server:
        agent = Mem1Agent("m", tokenizer, Mem1Protocol.tool_calls(), client=server.url, max_observation_length=120)
        trajectory = agent.run("secret?", Library())
    assert [turn.state for turn in trajectory.turns] == ["1", "2", "3", "4"] and trajectory.answer == "It is 4."


@pytest.mark.parametrize("rule", ["full", "mem1"])
def test_calls_that_cannot_be_read_keep_their_text_and_result(rule):
    """Such a turn has no call to answer to, so all of it stands in the message of the user."""
    tokenizer = template_tokenizer()
    replies = iter(["<think>a</think><tool_call>{broken", "<think>b</think>done"])
    with serve(lambda messages: next(replies)) as server:
        agent = Mem1Agent(
            "m", tokenizer, Mem1Protocol.tool_calls(), client=server.url, max_observation_length=120, context=rule
        )
        agent.run("secret?", Library())
    (message,) = server.requests[1]["messages"]
    assert message["role"] == "user"
    assert "<think>a</think>" in message["content"] and "the tool call cannot be read" in message["content"]


WANT_PICTURES = ("idefics3", "llava_next", "smolvlm")  # and write no message that is a text


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.startswith(WANT_PICTURES))
)
def test_no_template_that_trl_knows_drops_what_is_sent(tokenizer, name):
    """Those of Qwen3, R1 distills, GLM, LFM2 and others drop the thoughts of assistant messages."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template, changed.bos_token = template_text(name), "<pad>"
    for protocol in (Mem1Protocol(), Mem1Protocol.paper(), Mem1Protocol.webshop()):
        check_rendering(protocol.syntax(changed))


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "qwen3_5_think", "llama3_1", "glm4moe", "gptoss"])
def test_no_template_that_calls_tools_drops_what_is_sent(name):
    check_rendering(Mem1Protocol.tool_calls().syntax(template_tokenizer(name)))


def test_a_template_that_drops_even_this_is_refused_when_the_agent_is_made(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{% for message in messages %}{{ message.content.split('</think>')[-1] }}{% endfor %}"
    sentence = r"drops the task, state of earlier turns, so the model would have no memory: use a server with .*paper"
    with pytest.raises(ValueError, match=sentence):
        Mem1Agent("m", changed, SHORT, client="http://localhost:1/v1", backend="chat")
    Mem1Agent("m", changed, Mem1Protocol.paper(), client="http://localhost:1/v1", backend="chat")
    changed.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match=r"cannot write an episode after its first turn \(no\): use a server"):
        Mem1Agent("m", changed, SHORT, client="http://localhost:1/v1", backend="chat")


@pytest.mark.parametrize(
    ("message", "opened", "text"),
    [
        ({"content": "<search>b</search>", "reasoning_content": "a"}, None, "<think>a</think><search>b</search>"),
        ({"content": "a</think><search>b</search>"}, None, "<think>a</think><search>b</search>"),
        ({"content": "<think>a</think>b"}, None, "<think>a</think>b"),
        ({"content": "<think>a</think>b", "reasoning_content": "a"}, None, "<think>a</think>b"),
        ({"content": "b", "reasoning_content": "a"}, "think", "a</think>b"),
        ({"content": "a</think>b"}, "think", "a</think>b"),
        ({"content": None, "reasoning_content": None}, None, ""),
    ],
)
def test_a_thought_is_put_back_where_the_model_wrote_it(message, opened, text):
    assert join_thought(SHORT, message, opened) == text


def test_a_thought_is_no_action_wherever_the_server_puts_it(tokenizer):
    """The state is another tag here, and the model only thought of a search."""
    protocol = Mem1Protocol(**{**SHORT.to_dict(), "state_tag": "note", "scratch_tags": ("think",)})
    thought = "I could <search>no</search>"
    replies = [
        {"content": "<note>n</note><search>yes</search>", "reasoning_content": thought},
        {"content": f"<think>{thought}</think><note>n</note><answer>7</answer>"},
    ]
    with serve(lambda messages: {"role": "assistant", **replies[len(server.requests) - 1]}) as server:
        environment = LookupEnvironment()
        agent = Mem1Agent("m", tokenizer, protocol, client=server.url, max_observation_length=60)
        trajectory = agent.run("q0?", environment)
    assert environment.queries == ["yes"] and trajectory.answer == "7"
    assert [turn.state for turn in trajectory.turns] == ["n", "n"]
    assert trajectory.turns[0].text == f"<think>{thought}</think><note>n</note><search>yes</search>"
    assert "I could" not in server.requests[1]["messages"][0]["content"]


def test_a_stop_string_inside_a_thought_does_not_end_the_turn(tokenizer):
    """A server that keeps thoughts apart stops in them, too; the turn is asked for without stop strings then."""

    def reply(messages):
        stopped = "stop" in server.requests[-1]
        content = "" if stopped else "<search>yes</search>"
        return {
            "role": "assistant",
            "content": content,
            "reasoning_content": "maybe <search>no" + "</search>" * (not stopped),
        }

    with serve(reply) as server:
        environment = LookupEnvironment()
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, max_observation_length=60, max_turns=1)
        trajectory = agent.run("q0?", environment)
    assert environment.queries == ["yes"] and trajectory.turns[0].state == "maybe <search>no</search>"
    assert ["stop" in request for request in server.requests] == [True, False]
