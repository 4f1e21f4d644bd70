"""Agents of an OpenAI-compatible endpoint, over real HTTP: requests, trajectories made of the answers, failures."""

from __future__ import annotations

import logging

import pytest
import torch
from huggingface_hub import InferenceClient
from support.chat_server import serve
from support.helpers import oracle_logprobs
from support.ports import held_port
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason, score_trajectories
from mem1_trl.evaluation.evaluate import evaluate_agent
from mem1_trl.protocol.turn_text import close_action, encode_closed
from mem1_trl.retrying import Cancellation
from mem1_trl.rollout.chat_client import ChatEndpoint

pytestmark = pytest.mark.usefixtures("rollout_mode")

SEARCH = "<think>s</think><search>key</search>"
ANSWER = "<think>7</think><answer>7</answer> and more"


def searcher(searches: int):
    """Searches so many times, then answers; counts by what it is shown."""
    turns: dict[str, int] = {}

    def reply(messages):
        task = messages[0]["content"].split("\n")[0]
        turns[task] = turns.get(task, 0) + 1
        return (
            ANSWER if turns[task] > searches else f"<think>s{turns[task]}</think><search>key{turns[task]}</search> <b>"
        )

    return reply


def agent_for(server, tokenizer, protocol=SHORT, **kwargs):
    return Mem1Agent(
        "m",
        tokenizer,
        protocol,
        **{"client": server.url, "max_observation_length": 60, "conversational": False, **kwargs},
    )


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture
def no_waiting(monkeypatch):
    """Records the pauses instead of making them."""
    pauses: list[float] = []
    monkeypatch.setattr(Cancellation, "wait", lambda self, seconds: pauses.append(seconds))
    return pauses


# What is asked, and what is kept


@pytest.mark.parametrize("include_stop", [False, True])
def test_the_episode_of_an_endpoint_is_that_of_a_student_who_said_the_same(actor, tokenizer, include_stop):
    with serve(searcher(2), include_stop=include_stop) as server:
        trajectory = agent_for(server, tokenizer).run("q0?", LookupEnvironment(), secret="7")
    first, second = "<think>s1</think><search>key1</search>", "<think>s2</think><search>key2</search>"
    # Without a chat template of its own a task is one user message; older turns are gone
    assert [request["messages"] for request in server.requests] == [
        [user("q0?")],
        [user(f"q0?\n\n{first}<information>5;7</information>")],
        [user(f"q0?\n\n{second}<information>4;7</information>")],
    ]
    assert [list(turn.messages) for turn in trajectory.turns] == [one["messages"] for one in server.requests]
    assert all(r["stop"] == ["</search>", "</answer>"] and r["model"] == "m" for r in server.requests)
    assert all(r["temperature"] == 0.0 and r["max_tokens"] == 1000 for r in server.requests)

    assert [turn.completion_ids for turn in trajectory.turns] == [
        tuple(tokenizer(text)["input_ids"]) for text in (first, second, "<think>7</think><answer>7</answer>")
    ]
    assert [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns] == [
        "q0?",
        "q0?" + first + "<information>5;7</information>",
        "q0?" + second + "<information>4;7</information>",
    ]
    assert trajectory.answer == "7" and trajectory.reward == 1.0 and trajectory.stop_reason is StopReason.ANSWER
    assert trajectory.turns[0].state == "s1" and trajectory.turns[0].logprobs is None
    assert trajectory.metrics["turns"] == 3
    (scores,) = score_trajectories(actor, [trajectory])
    for ours, oracle in zip(scores, oracle_logprobs(actor, trajectory), strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=0)


def test_the_student_reads_a_chat_task_through_its_own_template(tokenizer):
    task = [{"role": "system", "content": "be brief"}, user("q0?")]
    with serve(searcher(0)) as server:
        trajectory = agent_for(server, tokenizer).run(task, LookupEnvironment(), secret="7")
    assert server.requests[0]["messages"] == task
    assert tokenizer.decode(trajectory.prompt_ids) == "system:be brief;user:q0?;assistant:"


@pytest.mark.parametrize(
    ("context", "last"),
    [
        ("full", ["q0?", 1, 2]),
        ("truncate", ["q0?", 2]),
        ("external", ["q0?\n\n<memory>Seen in earlier turns:\nq0 is 1\n</memory>\n\n", 2]),
    ],
)
def test_every_rule_of_context_is_told_in_messages(tokenizer, context, last):
    class Counting(LookupEnvironment):
        def search(self, query: str) -> str:
            """Look."""
            self.queries.append(query)
            return f"q0 is {len(self.queries)}"

    def exchange(n):
        hint = {1: "5;", 2: "4;"}[n]
        return f"<think>s{n}</think><search>key{n}</search><information>{hint}q0 is {n}</information>"

    with serve(searcher(2)) as server:
        agent = agent_for(server, tokenizer, context=context, max_context_length=40 if context == "truncate" else None)
        trajectory = agent.run("q0?", Counting())
    past = "".join(map(exchange, last[1:]))
    between = "" if last[0].endswith("\n") else "\n\n"
    assert server.requests[-1]["messages"] == [user(last[0] + between + past)]
    # The student reads the same text
    assert tokenizer.decode(trajectory.turns[-1].prompt_ids) == last[0] + past


def test_scratch_and_the_end_token_are_not_sent_back(tokenizer):
    protocol = Mem1Protocol(
        **{**SHORT.to_dict(), "on_invalid_action": "observe", "state_tag": "memory_note", "scratch_tags": ("think",)}
    )
    replies = iter(["<think>long</think>hm", "<answer>7</answer>"])
    with serve(lambda messages: next(replies)) as server:
        trajectory = agent_for(server, tokenizer, protocol, max_observation_length=90).run("q0?", LookupEnvironment())
    assert trajectory.turns[0].completion_ids[-1] == tokenizer.eos_token_id, "it ended by itself"
    assert server.requests[1]["messages"][0]["content"].startswith("q0?\n\nhm<information>5;")


def test_a_batch_is_asked_at_once_and_stays_in_order(tokenizer):
    rows = [{"prompt": f"q{i}?", "secret": str(i % 3), "answers": [[str(i % 3)]]} for i in range(9)]

    def reply(messages):
        _, searched, found = messages[0]["content"].partition("<information>5;")
        if not searched:
            return SEARCH
        return f"<think>x</think><answer>{found[0]}</answer>"

    with serve(reply) as server:
        result = evaluate_agent(agent_for(server, tokenizer, batch_size=4), rows, LookupEnvironment)
    assert [t.answer for t in result.trajectories] == [row["secret"] for row in rows]
    assert result.metrics["exact_match"] == 1.0 and result.metrics["turns"] == 2.0


def test_a_reply_that_was_cut_off_is_not_completed(tokenizer):
    with serve(lambda messages: SEARCH) as server:
        trajectory = agent_for(server, tokenizer, max_completion_length=20).run("q0?", LookupEnvironment())
    assert trajectory.stop_reason is StopReason.TRUNCATED and trajectory.turns[0].text == SEARCH[:20]


@pytest.mark.parametrize("opened", [None, "think"])
def test_a_reply_that_reached_its_limit_ends_at_its_first_action_too(tokenizer, opened):
    """A server that does not know all stop strings writes on, and what it makes up after an action is never read."""
    text = "a</think><search>tea</search><information>made up</information><search>mo"
    text = text if opened else f"<think>{text}"
    ids = encode_closed(tokenizer, text, False, ["</search>", "</answer>"], opened)
    assert tokenizer.decode(ids) == text.partition("<information>")[0]
    assert close_action("<think>a</think><search>b", ["</search>"], ended=False) == (
        "<think>a</think><search>b",
        False,
    )


def test_an_empty_reply_is_a_turn(tokenizer):
    with serve(lambda messages: "") as server:
        trajectory = agent_for(server, tokenizer).run("q0?", LookupEnvironment())
    assert trajectory.stop_reason is StopReason.INVALID_ACTION
    assert trajectory.turns[0].completion_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("text", "closed", "found"),
    [
        ("<think>a</think><search>b", "<think>a</think><search>b</search>", True),
        ("<think>a</think><search>b</search><information>c", "<think>a</think><search>b</search>", True),
        ("<search>b</search> <answer>c</answer>", "<search>b</search>", True),
        ("<answer>a <search>b", "<answer>a <search>b</search>", True),
        ("<think>I shall <search> for it</think>", "<think>I shall <search> for it</think>", False),
        ("no tag", "no tag", False),
        ("", "", False),
    ],
)
def test_a_closing_tag_that_the_server_left_out_is_put_back(text, closed, found):
    assert close_action(text, ["</search>", "</answer>"]) == (closed, found)


def test_no_more_stops_than_openai_takes_and_still_cut_at_all(tokenizer):
    stops = [f"</{name}>" for name in "abcde"] + ["</answer>"]
    with serve(lambda messages: "<a>x</a><answer>y</answer>") as server:
        replies = ChatEndpoint(server.url).ask([[user("q")]], [stops])
    assert server.requests[0]["stop"] == ["</c>", "</d>", "</e>", "</answer>"]
    assert close_action(replies[0].message["content"], stops) == ("<a>x</a>", True)


def test_arguments_of_a_request_can_be_set_and_left_out(tokenizer):
    with serve(lambda messages: ANSWER) as server:
        kwargs = {"max_tokens": None, "stop": None, "extra_body": {"top_k": 5}}
        agent = agent_for(server, tokenizer, temperature=0.5, request_kwargs=kwargs)
        trajectory = agent.run("q0?", LookupEnvironment(), secret="7")
    assert set(server.requests[0]) >= {"model", "messages", "temperature", "top_k"}
    assert server.requests[0].get("max_tokens") is None and server.requests[0].get("stop") is None
    assert trajectory.answer == "7" and server.requests[0]["temperature"] == 0.5


# Clients


def test_clients_of_the_hub_and_of_openai_do_alike(tokenizer):
    with serve(searcher(1)) as server:
        ours = agent_for(server, tokenizer, client=InferenceClient(base_url=server.url)).run("a?", LookupEnvironment())
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=server.url, api_key="none")
        theirs = agent_for(server, tokenizer, client=client).run("b?", LookupEnvironment())
    assert [t.completion_ids for t in ours.turns] == [t.completion_ids for t in theirs.turns]


def test_what_is_no_client_is_said(tokenizer):
    with pytest.raises(TypeError, match=r"a dict without `chat\.completions\.create`: pass an openai\.OpenAI"):
        Mem1Agent("m", tokenizer, client={})


def test_model_tokenizer_and_client_must_fit(actor, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert len(Mem1Agent(str(tmp_path), client="http://localhost:1/v1").tokenizer) == len(tokenizer)
    with pytest.raises(ValueError, match="no tokenizer for the model None of the endpoint: pass `tokenizer=`"):
        Mem1Agent(client="http://localhost:1/v1")
    with pytest.raises(TypeError, match="pass one of them"):
        Mem1Agent(actor, tokenizer, client="http://localhost:1/v1")
    for arguments in ((), ("a path",), (actor,)):
        with pytest.raises(TypeError, match=r"load both with `Mem1Agent\.from_pretrained"):
            Mem1Agent(*arguments)


# Failures


@pytest.mark.parametrize("library", ["huggingface_hub", "openai"])
def test_a_busy_or_broken_server_is_asked_again(tokenizer, no_waiting, caplog, library):
    with serve(searcher(1)) as server:
        client = server.url
        if library == "openai":
            client = pytest.importorskip("openai").OpenAI(base_url=server.url, api_key="none", max_retries=0)
        server.failures = [503, 0, 429]
        with caplog.at_level(logging.WARNING, logger="mem1_trl.rollout.server_calls"):
            trajectory = agent_for(server, tokenizer, client=client).run("q0?", LookupEnvironment(), secret="7")
    assert trajectory.answer == "7"
    assert len(no_waiting) == 3
    for pause, expected in zip(no_waiting, (1, 2, 4)):
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert caplog.text.count("Trying again in") == 3 and ".." not in caplog.text


def test_the_server_says_how_long_to_wait(tokenizer, no_waiting):
    with serve(searcher(0)) as server:
        server.failures, server.headers = [429], {"Retry-After": "17"}
        agent_for(server, tokenizer).run("q0?", LookupEnvironment())
    assert no_waiting == [17.0]


def test_a_server_that_is_not_there_is_said(tokenizer, no_waiting):
    with held_port() as port:
        agent = Mem1Agent("m", tokenizer, SHORT, client=f"http://127.0.0.1:{port}/v1", max_retries=2)
        with pytest.raises(ConnectionError, match=r"gave no answer in 3 attempts .* that the server runs"):
            agent.run("q0?", LookupEnvironment())
    assert len(no_waiting) == 2


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, r"refused this context \(.*HTTP 400: told to fail\): it may be too long"),
        (401, r"refused a request \(.*HTTP 401.*\): it wants another key: pass a client with the right one"),
        (403, r"refused a request .*: the key may not use this model"),
        (404, r"refused a request .*: it does not have this model, or the address is not that of its API"),
    ],
)
def test_a_refused_request_is_not_repeated(tokenizer, no_waiting, status, advice):
    with serve(searcher(0)) as server:
        server.failures = [status] * 3
        with pytest.raises(RuntimeError, match=advice):
            agent_for(server, tokenizer).run("q0?", LookupEnvironment())
    assert len(server.requests) == 1 and no_waiting == []
