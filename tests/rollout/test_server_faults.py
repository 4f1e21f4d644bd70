"""Model servers that fail: one bad answer costs one episode, what cannot be mended ends the run, and nothing is misread."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from huggingface_hub import InferenceClient
from support.chat_server import serve
from support.tool_helpers import Library, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import AgentSettings, Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.demonstrations import collect_trajectories
from mem1_trl.evaluation.evaluate import evaluate_agent
from mem1_trl.retrying import Cancellation, UnusableServer
from mem1_trl.rollout.chat_client import read_message
from mem1_trl.rollout.completions import CompletionsEndpoint, Offer
from mem1_trl.rollout.server_calls import ServerCalls
from mem1_trl.rollout.server_client import ServerClient
from mem1_trl.rollout.server_errors import FailedContext, ServerError, first_choice, has_ended
from mem1_trl.rollout.stopping import StopStrings
from mem1_trl.rollout.streamed_answers import send_streamed
from mem1_trl.rollout.turn_listener import TurnListener

pytestmark = pytest.mark.usefixtures("rollout_mode")

ANSWER = "<think>7</think><answer>7</answer>"


@pytest.fixture
def no_waiting(monkeypatch):
    """Records the pauses instead of making them."""
    pauses: list[float] = []
    monkeypatch.setattr(Cancellation, "wait", lambda self, seconds: pauses.append(seconds))
    return pauses


def good(message):
    """A whole answer with one message."""
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def agent_for(server, tokenizer, protocol=SHORT, **kwargs):
    settings = {"client": server.url, "max_observation_length": 60, "max_retries": 2, "backend": "chat", **kwargs}
    return Mem1Agent("m", tokenizer, protocol, **settings)


def rows(count=4):
    return [{"prompt": f"q{i}?", "secret": "7", "answers": [["7"]]} for i in range(count)]


def asks(number):
    """Whether a request is about a task."""
    return lambda request: f"q{number}?" in request["messages"][0]["content"]


BAD = {
    "a context that is refused": (400, "refused this context (ServerError: HTTP 400: told to fail)"),
    "422": (422, "refused this context"),
    "429 for ever": (429, "no usable answer in 3 attempts (ServerError: HTTP 429"),
    "500 for ever": (500, "no usable answer in 3 attempts"),
    "a proxy's 524": (524, "no usable answer in 3 attempts (ServerError: HTTP 524"),
    "an error in the body": ({"error": {"code": 429, "message": "slow down"}}, "an error: slow down"),
    "a refusal in the body": ({"error": {"code": "400", "message": "too long"}}, "refused this context"),
    "an error without a code": ({"error": "boom"}, "3 attempts (ServerError: its answer is an error: boom)"),
    "choices is null": ({"choices": None}, "its answer has no choices but None"),
    "no choices": ({"choices": []}, "its answer has no choices but []"),
    "a choice that is null": ({"choices": [None]}, "no choices"),
    "no message": ({"choices": [{"message": None}]}, "a choice without a message"),
    "a filter": (
        {"choices": [{"message": {"content": ANSWER}, "finish_reason": "content_filter"}]},
        "3 attempts (ServerError: its answer is not whole but ended by 'content_filter')",
    ),
    "a list": ([1], "must be a JSON object"),
    "HTML": (b"<html><body>Bad gateway</body></html>", "its answer is no JSON but '<html><body>Bad gateway"),
    "half an answer": (b'{"choices": [{"mess', "no JSON"),
    "nothing": (b"", "no JSON"),
    "bytes": (b"\xff\xfe\x00", "no JSON"),
    "deeply nested": (b"[" * 100_000, "no JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_answer_costs_one_episode(tokenizer, no_waiting, name):
    failure, sentence = BAD[name]
    with serve(lambda messages: ANSWER) as server:
        server.fails = lambda request: failure if asks(1)(request) else None
        result = evaluate_agent(agent_for(server, tokenizer), rows(), LookupEnvironment)
    assert [t.answer for t in result.trajectories] == ["7", None, "7", "7"]
    failed = result.trajectories[1]
    assert failed.stop_reason is StopReason.ERROR and sentence in failed.error and failed.turns == []
    assert result.metrics["exact_match"] == 0.75
    passing = "refused" not in sentence
    assert len(no_waiting) == (2 if passing else 0)


@pytest.mark.parametrize("library", ["huggingface_hub", "openai"])
@pytest.mark.parametrize(
    "name", ["429 for ever", "choices is null", "no choices", "HTML", "an error in the body", "422"]
)
def test_other_clients_cost_no_more(tokenizer, no_waiting, library, name):
    with serve(lambda messages: ANSWER) as server:
        if library == "openai":
            client = pytest.importorskip("openai").OpenAI(base_url=server.url, api_key="none", max_retries=0)
        else:
            client = InferenceClient(base_url=server.url)
        server.fails = lambda request: BAD[name][0] if asks(1)(request) else None
        result = evaluate_agent(agent_for(server, tokenizer, client=client), rows(), LookupEnvironment)
    assert [t.answer for t in result.trajectories] == ["7", None, "7", "7"]
    assert result.trajectories[1].error.startswith("The model server")


def test_an_error_of_the_clients_own_code_is_not_repeated(tokenizer, no_waiting):
    def create(**request):
        raise KeyError("a bug")

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    with pytest.raises(
        RuntimeError, match=r"could not be sent \(KeyError: 'a bug'\): correct the name of the model, the client"
    ):
        Mem1Agent("m", tokenizer, SHORT, client=client).run("q0?", LookupEnvironment())
    assert no_waiting == []


def test_a_failure_in_the_middle_keeps_the_turns_before_it(tokenizer, no_waiting):
    with serve(lambda messages: "<think>s</think><search>k</search>") as server:
        server.fails = lambda request: 400 if "<search>" in request["messages"][0]["content"] else None
        (trajectory,) = agent_for(server, tokenizer).run_batch(rows(1), [LookupEnvironment()], keep_failures=True)
        with pytest.raises(RuntimeError, match=r"The model gave no turn: The model server refused this context"):
            agent_for(server, tokenizer).run("q?", LookupEnvironment())
    assert len(trajectory.turns) == 1 and trajectory.stop_reason is StopReason.ERROR and trajectory.reward is None


def test_failed_episodes_are_collected_by_the_next_call(tokenizer, no_waiting, tmp_path, caplog):
    with serve(lambda messages: ANSWER) as server:
        server.fails = lambda request: 500 if asks(1)(request) else None
        agent, path = agent_for(server, tokenizer), tmp_path / "episodes.jsonl"
        with caplog.at_level(logging.WARNING):
            collect_trajectories(agent, rows(), LookupEnvironment, path, disable_tqdm=True)
        assert "1 of 4 episodes failed" in caplog.text and len(path.read_text().splitlines()) == 3
        server.fails = lambda request: None
        played = collect_trajectories(agent, rows(), LookupEnvironment, path, disable_tqdm=True)
    assert [t.answer for t in played] == ["7"] * 4 and len(server.requests) == 3 + 3 + 1


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "another key"),
        (402, "no credit left"),
        (403, "may not use this model"),
        (404, "correct the name of the model"),
    ],
)
def test_what_no_context_would_change_ends_the_run_at_once(tokenizer, no_waiting, status, advice):
    with serve(lambda messages: ANSWER) as server:
        server.fails = lambda request: status if asks(1)(request) else None
        with pytest.raises(RuntimeError, match=advice):
            evaluate_agent(agent_for(server, tokenizer), rows(), LookupEnvironment)
        refused = sum(map(asks(1), server.requests))
    assert no_waiting == [] and refused == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("backend", ["chat", None])
def test_a_server_that_has_moved_says_where(tokenizer, no_waiting, status, backend):
    """It was said that each context is too long."""
    with serve(lambda messages: ANSWER, complete=lambda text: ANSWER) as server:
        server.fails = lambda request: status
        server.headers = {"Location": "https://h.example/v1/chat/completions?key=secret"}
        agent = agent_for(server, tokenizer, backend=backend)
        with pytest.raises(
            UnusableServer,
            match=rf"redirects a request to 'https://h.example/v1/chat/completions' \(HTTP {status}\), and",
        ):
            agent.run("q0?", LookupEnvironment())
    assert no_waiting == [] and len(server.requests) <= 1


def test_nothing_is_asked_again_after_the_run_has_ended(tokenizer, no_waiting):
    """While one request is refused, another may still be running. It fails later and must not be repeated."""
    refused, under_way = threading.Event(), threading.Event()
    others = set(threading.enumerate())

    def fails(request):
        if asks(0)(request):
            under_way.set()
            refused.wait(30)
            return 503
        under_way.wait(30)
        return 404

    with serve(lambda messages: ANSWER) as server:
        server.fails = fails
        with pytest.raises(RuntimeError, match="correct the name of the model"):
            evaluate_agent(agent_for(server, tokenizer), rows(2), LookupEnvironment)
        refused.set()
        # Wait for the thread of the first request, and until the server has noted that request
        deadline = time.monotonic() + 30
        while any(thread.name.startswith("mem1-request") for thread in set(threading.enumerate()) - others) or not any(
            map(asks(0), server.requests)
        ):
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        assert no_waiting == [] and sum(map(asks(0), server.requests)) == 1


def test_a_wrong_key_is_said_while_other_requests_still_wait(tokenizer):
    """Nobody waits for the pauses of requests that will be refused as well."""
    refused = threading.Event()

    def fails(request):
        if asks(0)(request):
            refused.wait(30)
            return 401
        refused.set()
        return 429

    with serve(lambda messages: ANSWER) as server:
        server.fails, server.headers = fails, {"Retry-After": "60"}
        with pytest.raises(RuntimeError, match="another key"):
            evaluate_agent(agent_for(server, tokenizer, max_retries=1), rows(2), LookupEnvironment)


def test_a_server_that_answers_nothing_ends_the_run(tokenizer, no_waiting):
    with serve(lambda messages: ANSWER) as server:
        agent = agent_for(server, tokenizer, batch_size=2)
        server.fails = lambda request: 503
        with pytest.raises(RuntimeError, match="no usable answer in 3 attempts"):  # nothing has ever worked
            agent.run_batch(rows(2), [LookupEnvironment(), LookupEnvironment()], keep_failures=True)
        server.fails = lambda request: None
        assert agent.run("q?", LookupEnvironment()).answer == "7"
        server.fails = lambda request: 503
        for _ in range(2):
            played = agent.run_batch(rows(2), [LookupEnvironment(), LookupEnvironment()], keep_failures=True)
            assert all(t.stop_reason is StopReason.ERROR for t in played)
        with pytest.raises(RuntimeError, match="no usable answer"):
            agent.run_batch(rows(2), [LookupEnvironment(), LookupEnvironment()], keep_failures=True)
    with pytest.raises(ConnectionError, match="gave no answer in 3 attempts"):  # it is not there any more
        agent.run_batch(rows(2), [LookupEnvironment(), LookupEnvironment()], keep_failures=True)


# What a server may ask for


@pytest.mark.parametrize("library", ["huggingface_hub", "ours"])
def test_the_wait_of_a_server_is_kept(tokenizer, no_waiting, library):
    with serve(lambda messages: ANSWER) as server:
        client = server.url if library == "ours" else InferenceClient(base_url=server.url)
        server.failures, server.headers = [429, 503], {"Retry-After": "0.25"}
        agent_for(server, tokenizer, client=client).run("q0?", LookupEnvironment())
    assert no_waiting == [0.25, 0.25]


def test_an_answer_that_drips_ends_in_time(monkeypatch):
    """A server that sends a byte now and then does not hold a request for ever."""
    with serve(lambda messages: ANSWER) as server:

        def drip(handler, status, content):
            handler.send_response(200)
            handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)

        monkeypatch.setattr(server.RequestHandlerClass, "answer", drip)
        with pytest.raises(ConnectionError, match=r"did not answer within 0\.3 seconds"):
            ServerClient(server.url, timeout=0.3).chat.completions.create(messages=[{"role": "user", "content": "q"}])


# What is read


@pytest.mark.parametrize(
    ("message", "content", "thought"),
    [
        ({"content": None}, "", None),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", None),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "text", "text": "a"}]}, "a", "t"),
        ({"content": ["a", {"type": "image"}, {"type": "text", "text": None}, None]}, "a", None),
        ({"content": {"text": "a"}}, "", None),
        ({"content": "a", "reasoning": "t"}, "a", "t"),
        ({"content": "a", "reasoning_content": {"x": 1}}, "a", None),
        ({"content": "a\ud800b\x00", "reasoning_content": "\udfff"}, "a?b", "?"),
        ({}, "", None),
    ],
)  # fmt: skip
def test_every_shape_of_content_is_text(message, content, thought):
    read = read_message(json.loads(json.dumps(message)))
    assert (read["content"], read.get("reasoning_content")) == (content, thought)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"query": "a\\ud800"}', {"query": "a?"}),
        ({"query": "a\ud800"}, {"query": "a?"}),
        ("[" * 5000, {"arguments": "[" * 5000}),
        ('{"q', {"arguments": '{"q'}),
        ("[1]", {"arguments": [1]}),
        (None, {}),
        ("", {}),
    ],
)
def test_every_shape_of_arguments_is_a_dictionary(arguments, read):
    call = {"function": {"name": "search", "arguments": arguments}}
    (found,) = read_message({"content": "", "tool_calls": [call, {"function": None}, None]})["tool_calls"]
    assert found["function"] == {"name": "search", "arguments": read}


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "function_call", "eos", "eos_token", None, ""])
def test_an_answer_that_ended_by_itself(reason):
    assert has_ended({"finish_reason": reason}) and has_ended(SimpleNamespace(finish_reason=reason)) and has_ended({})
    assert not has_ended({"finish_reason": "length"})


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error", "weather"])
def test_half_an_answer_is_none(reason, tokenizer):
    choice = {"text": "<think>half a tho", "message": good("x"), "finish_reason": reason}
    settings, offer = AgentSettings(max_completion_length=50), Offer(True)
    completions = CompletionsEndpoint(lambda **request: {"choices": [choice]}, "m", tokenizer, ServerCalls(1, 0))
    with pytest.raises(ServerError, match=f"ended by '{reason}'"):
        completions.complete([5, 6], ["</search>"], settings, offer)
    pieces = [{"choices": [{"text": "<think>", "finish_reason": None}]}, {"choices": [{"finish_reason": reason}]}]
    told = []
    with pytest.raises(FailedContext, match=f"after a part of it was told .*ended by '{reason}'"):
        send_streamed(lambda **request: iter(pieces), {}, TurnListener(tokenizer, told.append))
    assert told == ["<think>"]


def test_an_answer_must_have_a_choice():
    assert first_choice({"choices": [{"text": "a"}]}) == {"text": "a"}
    with pytest.raises(ServerError) as caught:
        first_choice({"error": {"code": 999, "message": "m"}})
    assert caught.value.status_code is None


def test_lone_surrogates_of_a_model_end_no_episode(tokenizer, tmp_path):
    texts = ["<think>a\ud800\x00</think><search>k\udc00</search>", "<think>b</think><answer>7\ud83d</answer>"]
    with serve(lambda messages: texts[len(server.requests) - 1]) as server:
        played = collect_trajectories(
            agent_for(server, tokenizer), rows(1), LookupEnvironment, tmp_path / "e.jsonl", disable_tqdm=True
        )
    assert [turn.state for turn in played[0].turns] == ["a?", "b"] and played[0].answer == "7?"
    assert "<think>a?</think><search>k?</search>" in server.requests[1]["messages"][0]["content"]


def test_special_tokens_that_a_model_spells_out_stay_text(tokenizer):
    """`<eos>` in the text of another model would end the turn of the student, and everything after it."""
    with serve(lambda messages: "<think>a<eos>b</think><answer>7</answer>") as server:
        trajectory = agent_for(server, tokenizer).run("q0?", LookupEnvironment())
    assert tokenizer.eos_token_id not in trajectory.turns[0].completion_ids
    assert (trajectory.turns[0].state, trajectory.answer) == ("a< eos>b", "7")


def test_tags_that_are_special_tokens_are_the_agents_own(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"extra_special_tokens": ["<think>", "</think>", "</search>", "<other>"]})
    replies = ["<think>a<other></think><search>k</search>", "<think>b</think><answer>7</answer>"]
    with serve(lambda messages: replies[len(server.requests) - 1]) as server:
        environment = LookupEnvironment()
        trajectory = agent_for(server, changed).run("q0?", environment)
    assert [turn.state for turn in trajectory.turns] == ["a< other>", "b"] and environment.queries == ["k"]


def test_special_tokens_in_the_arguments_of_a_call_stay_text():
    tokenizer = template_tokenizer()
    call = {
        "id": "x",
        "type": "function",
        "function": {"name": "search", "arguments": '{"query": "<|im_end|>\\ud800"}'},
    }
    replies = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "assistant", "content": "7"}]
    with serve(lambda messages: replies[len(server.requests) - 1]) as server:
        environment = Library()
        agent = agent_for(server, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=120)
        trajectory = agent.run("secret?", environment)
    assert environment.log == [("search", ("< |im_end|>?", 1)), ("answer", "7")]
    assert trajectory.turns[0].completion_ids.count(tokenizer.eos_token_id) == 1


def test_an_answer_without_end_is_cut(tokenizer):
    with serve(lambda messages: {"role": "assistant", "content": "<think>" + "a" * 10_000}) as server:
        trajectory = agent_for(server, tokenizer, max_completion_length=10).run("q0?", LookupEnvironment())
    assert trajectory.stop_reason is StopReason.TRUNCATED and len(trajectory.turns[0].text) == 1280


# Addresses


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("http://h:8000/v1", "/v1/completions"),
        ("http://h:8000", "/v1/completions"),
        ("http://h/api/", "/api/v1/completions"),
        ("http://h:81/v1/chat/completions", "/v1/completions"),
        ("http://h/openai/v1?api-version=2024", "/openai/v1/completions?api-version=2024"),
        ("http://h/v1/chat/completions?a=%C3%A4&b#c", "/v1/completions?a=%C3%A4&b"),
        ("http://h?a=1", "/v1/completions?a=1"),
    ],
)
def test_the_address_of_a_server(address, target):
    assert ServerClient(address)._address("completions").target == target


def test_a_user_name_in_an_address_is_refused():
    with pytest.raises(ValueError, match="must hold no user name or password") as caught:
        ServerClient("http://me:secret@h/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://h/v1", "", "http://"])
def test_what_is_no_address_is_said(address):
    with pytest.raises(
        ValueError, match="must be a client, or the address of a server such as 'http://localhost:8000/v1'"
    ):
        ServerClient(address)


def test_the_token_of_the_hub_goes_to_the_hub_only(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    assert ServerClient("https://x.endpoints.huggingface.cloud/v1")._headers["Authorization"] == "Bearer secret"
    for other in ("https://huggingface.co.evil.com/v1", "http://localhost:8000/v1"):
        assert "Authorization" not in ServerClient(other)._headers


@pytest.mark.parametrize("whole", [False, True])
def test_a_server_that_never_says_why_it_ended_is_believed_with_a_listener_too(tokenizer, whole):
    """As without one: a whole answer, and a stream that was sent to its end."""
    choice = {"text": "<think>a</think><answer>7</answer>", "finish_reason": None}
    pieces = [{"choices": [{"text": choice["text"], "finish_reason": None}]}]
    body = json.dumps({"choices": [choice]}) if whole else "".join(f"data: {json.dumps(one)}\n\n" for one in pieces)

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            data = (body if whole else body + self.server.end).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if whole else "text/event-stream")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        create = ServerClient(f"http://127.0.0.1:{server.server_port}/v1").completions.create
        server.end, told = "data: [DONE]\n\n", []
        answer = send_streamed(create, {"model": "m", "prompt": "q"}, TurnListener(tokenizer, told.append))
        assert "".join(told) == choice["text"] and has_ended(first_choice(answer))
        if not whole:  # a connection that broke
            server.end = ""
            with pytest.raises(FailedContext, match="its answer ended without saying why"):
                send_streamed(create, {"model": "m", "prompt": "q"}, TurnListener(tokenizer, told.append))
        server.shutdown()


# Answers in pieces that end in an error


def failing_after(count):
    """Streams an answer up to so many characters and then an error, as vLLM does whose engine fails."""

    def stream(handler, answer):
        choice = answer["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.close_connection = True
        for at in range(0, count, 3):
            piece = {"text": text[at : at + 3]} if "text" in choice else {"delta": {"content": text[at : at + 3]}}
            handler.wfile.write(f"data: {json.dumps({'choices': [{'index': 0, **piece}]})}\n\n".encode())
        error = {"error": {"message": "engine restarted", "code": 500}}
        handler.wfile.write(f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode())

    return stream


@pytest.mark.parametrize("backend", ["completions", "chat"])
def test_a_stream_that_ends_in_an_error_is_not_asked_for_twice(tokenizer, no_waiting, monkeypatch, backend):
    """What had been told was told again, in front of the new answer."""
    with serve(lambda messages: ANSWER, complete=lambda text: ANSWER, tokenizer=tokenizer) as server:
        episode = agent_for(server, tokenizer, backend=backend).start("q0?", LookupEnvironment())
        whole, heard = server.RequestHandlerClass.stream, []
        monkeypatch.setattr(server.RequestHandlerClass, "stream", failing_after(12))
        with pytest.raises(RuntimeError, match=r"broke off its answer after a part of it was told .*engine restarted"):
            episode.step(heard.append)
        assert "".join(heard) == ANSWER[:12] and len(server.requests) == 1 and no_waiting == []
        monkeypatch.setattr(server.RequestHandlerClass, "stream", whole)
        assert episode.step().text == ANSWER


def test_a_stream_that_is_nothing_but_an_error_is_asked_for_again(tokenizer, no_waiting, monkeypatch):
    with serve(lambda messages: ANSWER) as server:
        episode, heard = agent_for(server, tokenizer).start("q0?", LookupEnvironment()), []
        whole, streams = server.RequestHandlerClass.stream, iter([failing_after(0)])
        monkeypatch.setattr(server.RequestHandlerClass, "stream", lambda *given: next(streams, whole)(*given))
        assert episode.step(heard.append).text == "".join(heard) == ANSWER
        assert len(server.requests) == 2 and len(no_waiting) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_thought_that_was_told_is_not_sampled_again_for_what_follows(tokenizer, no_waiting, whole):
    """The second request of a turn failed, and the whole turn was asked for again."""
    answers = iter(["a</think>", None, "b</think>", "<answer>7</answer>"])
    told: list[str] = []

    def create(**request):
        text = next(answers)
        if text is not None:
            return iter([{"choices": [{"text": text, "finish_reason": "stop"}]}])
        if whole:  # "200 OK" with an error in the body
            return {"error": {"message": "busy", "code": 503}}
        raise ServerError("busy", 503)

    calls = ServerCalls(1, 2)
    endpoint = CompletionsEndpoint(create, "m", tokenizer, calls)
    stops, listener = StopStrings(["</answer>"], "</think>"), TurnListener(tokenizer, told.append)
    answer = calls.one(
        lambda: endpoint.complete([5, 6], stops, AgentSettings(max_completion_length=90), Offer(True), listener)
    )
    assert "".join(told) == "a</think>"
    assert isinstance(answer, FailedContext) and "after a part of it was told" in str(answer) and "busy" in str(answer)
