"""Served models that read raw contexts: token for token what the same model does here, whatever a server takes and returns."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from support.chat_server import ChatServer, serve
from support.helpers import oracle_logprobs
from support.tool_helpers import SEARCH_CALL, Library, said, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment
from tokenizers.processors import TemplateProcessing

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason, score_trajectories
from mem1_trl.evaluation.evaluate import evaluate_agent

pytestmark = pytest.mark.usefixtures("rollout_mode")

ROWS = [{"prompt": f"{'ab' * (i % 3)}q{i}?", "secret": str(i % 3), "answers": [[str(i % 3)]]} for i in range(6)]
VLLM = (
    "return_token_ids",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "top_k",
    "min_p",
    "repetition_penalty",
)
SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}


def refuse(messages):
    raise AssertionError("no chat message should be sent")


def continuation(model, tokenizer):
    """Text that a model greedily goes on with, special tokens left out, far beyond the first action."""

    def complete(text):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        sampled = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=1, pad_token_id=0)
        return tokenizer.decode(sampled[0, ids.shape[1] :], skip_special_tokens=True)

    return complete


def texts(server):
    """The prompts of all requests, as text."""
    prompts = [request["prompt"] for request in server.requests]
    return [prompt if isinstance(prompt, str) else server.tokenizer.decode(prompt) for prompt in prompts]


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("include_stop", [True, False])
def test_a_served_model_plays_as_it_does_here(actor, tokenizer, takes_ids, include_stop):
    here = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    expected = here.run_batch(ROWS, [LookupEnvironment() for _ in ROWS])
    served = {"complete": continuation(actor, tokenizer), "tokenizer": tokenizer, "takes_ids": takes_ids}
    with serve(refuse, include_stop=include_stop, **served) as server:
        there = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        played = there.run_batch(ROWS, [LookupEnvironment() for _ in ROWS])
    assert [t.stop_reason for t in expected].count(StopReason.ANSWER) > 3 and len(server.requests) > len(ROWS)
    for ours, theirs in zip(expected, played, strict=True):
        assert [turn.prompt_ids for turn in theirs.turns] == [turn.prompt_ids for turn in ours.turns]
        assert [turn.completion_ids for turn in theirs.turns] == [turn.completion_ids for turn in ours.turns]
        assert (theirs.answer, theirs.reward, theirs.stop_reason) == (ours.answer, ours.reward, ours.stop_reason)
        assert all(turn.messages is None and turn.truncated_sampling for turn in theirs.turns)
    # What was sent is what is recorded
    recorded = [tokenizer.decode(turn.prompt_ids) for trajectory in played for turn in trajectory.turns]
    assert sorted(texts(server)) == sorted(recorded)
    assert {isinstance(request["prompt"], list) for request in server.requests} == {takes_ids}
    assert all(r["stop"] == ["</search>", "</answer>"] and r["max_tokens"] == 40 for r in server.requests)


def test_a_chat_task_is_read_as_in_training(actor, tokenizer):
    """The rewritten context goes on in one message of the agent; a chat endpoint could not say that."""
    replies = iter(["<think>a</think><search>k</search>", "<think>b</think><answer>7</answer>"])
    with serve(refuse, complete=lambda text: next(replies), tokenizer=tokenizer) as server:
        server.fails = lambda request: {"choices": [{"text": "x"}]} if request["max_tokens"] == 1 else None
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, max_observation_length=60)
        trajectory = agent.run([{"role": "user", "content": "q0?"}], LookupEnvironment())
    context = "user:q0?;assistant:<think>a</think><search>k</search><information>5;7</information>"
    assert texts(server)[1] == tokenizer.decode(trajectory.turns[1].prompt_ids) == context
    (scores,) = score_trajectories(actor, [trajectory])
    for ours, oracle in zip(scores, oracle_logprobs(actor, trajectory), strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=0)


# What a server offers


class IdServer(ChatServer):
    """Returns the token ids that it sampled, as vLLM does."""

    def complete_text(self, request):
        answer = super().complete_text(request)
        if request.get("return_token_ids"):
            choice = answer["choices"][0]
            ids = self.tokenizer(choice["text"])["input_ids"]
            choice["token_ids"] = [*ids, self.end]
            choice["text"] = "what the server made of them"
        return answer


def serve_ids(tokenizer, complete, end=1):
    def make(*args, **kwargs):
        server = IdServer(*args, **kwargs)
        server.end = end
        return server

    return serve(
        refuse, make=make, complete=complete, tokenizer=tokenizer, takes_ids=True, knows=VLLM, include_stop=True
    )


def test_the_ids_that_were_sampled_are_recorded(tokenizer):
    """`</search>` in single bytes, which no tokenizer would write so: decoding and encoding would change it."""
    odd = tokenizer("<think>a</think>")["input_ids"] + [tokenizer("</search>"[i])["input_ids"][0] for i in range(9)]

    class Odd(IdServer):
        def complete_text(self, request):
            answer = super().complete_text(request)
            if request["max_tokens"] > 1:
                answer["choices"][0]["token_ids"] = [*odd, 1]
            return answer

    with serve(refuse, make=Odd, complete=lambda text: "x", tokenizer=tokenizer, takes_ids=True, knows=VLLM) as server:
        server.end = 1
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        (trajectory,) = agent.run_batch(ROWS[:1], [LookupEnvironment()], keep_failures=True)
    assert trajectory.turns[0].completion_ids == tuple(odd)
    assert server.requests[0]["skip_special_tokens"] is False and server.requests[0]["return_token_ids"] is True


@pytest.mark.parametrize("end", [1, 0], ids=["tokenizer", "model"])
def test_an_end_of_sequence_is_recorded_as_it_was_sampled(tokenizer, end):
    """A model may have end tokens beside that of the tokenizer, of which only the server knows."""
    with serve_ids(tokenizer, lambda text: "<think>a</think>", end) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        trajectory = agent.run("q0?", LookupEnvironment())
    assert trajectory.turns[0].completion_ids == (*tokenizer("<think>a</think>")["input_ids"], end)
    assert trajectory.stop_reason is StopReason.INVALID_ACTION


def test_settings_that_openai_does_not_know_are_sent_if_they_change_something(tokenizer):
    decoding = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}
    with serve_ids(tokenizer, lambda text: "<think>a</think><answer>7</answer>") as server:
        Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS, **decoding).run("q0?", LookupEnvironment())
        Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS).run("q0?", LookupEnvironment())
    assert server.requests[0] | decoding == server.requests[0]
    assert server.requests[1]["temperature"] == 0.0 and not {"top_k", "min_p", "top_p"} & set(server.requests[1])


@pytest.mark.parametrize(("backend", "sent", "kept"), [("completions", "top_k", None), ("chat", "top_p", "top_k")])
def test_arguments_of_generate_that_a_server_is_not_sent_are_refused(tokenizer, backend, sent, kept):
    def play(server, **given):
        settings = {**SETTINGS, "generation_kwargs": given, "temperature": 0.5}
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, backend=backend, **settings)
        return agent.run("q0?", LookupEnvironment())

    answer = "<think>a</think><answer>7</answer>"
    values = {"top_k": 7, "top_p": 0.5, "no_repeat_ngram_size": 3}
    with serve(lambda messages: answer, complete=lambda text: answer, tokenizer=tokenizer, knows=(sent,)) as server:
        for name in filter(None, ("no_repeat_ngram_size", kept)):
            with pytest.raises(ValueError, match=f"which a server does not take, got {name}={values[name]}: leave it"):
                play(server, **{name: values[name]})
        assert server.requests == []
        assert play(server, **{sent: values[sent]}, num_beams=1, min_p=0.0, typical_p=None).answer == "7"
        assert server.requests[0][sent] == values[sent] and not {"num_beams", "min_p"} & set(server.requests[0])


@pytest.mark.parametrize("name", ["top_k", "min_p", "repetition_penalty"])
def test_sampling_that_a_chat_server_is_not_sent_is_refused(tokenizer, name):
    value = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}[name]

    def play(server, **more):
        agent = Mem1Agent(
            "m", tokenizer, SHORT, client=server.url, temperature=0.5, **{name: value}, **SETTINGS, **more
        )
        return agent.run("q0?", LookupEnvironment())

    with serve(lambda messages: "<think>a</think><answer>7</answer>", knows=(name,)) as server:
        with pytest.raises(ValueError, match=rf"takes no {name}={value}: .*'extra_body': {{'{name}': {value}}}"):
            play(server)
        assert server.requests == []
        assert play(server, request_kwargs={"extra_body": {name: value}}).answer == "7"
        assert server.requests[0][name] == value


class World:
    """Four actions, so that with the answer's there are five stop strings, of which a server is sent four."""

    def reset(self, **row):
        return None

    def look(self, x: str) -> str:
        """
        Look.

        Args:
            x: What.
        """
        return f"saw {x}"

    go = take = drop = look


def test_a_stop_string_that_was_not_sent_says_nothing_about_the_server(tokenizer):
    """Since it stands in a text, the server seemed to leave stop strings in, and no later answer was read."""

    def plays(episodes, *replies):
        left = iter(replies)
        with serve(refuse, complete=lambda text: next(left), tokenizer=tokenizer) as server:
            server.fails = lambda request: {"choices": [{"text": "x"}]} if request["max_tokens"] == 1 else None
            agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
            played = [agent.run("q0?", World()) for _ in range(episodes)]
            unsent = next(
                f"</{name}>"
                for name in ("look", "go", "take", "drop")
                if f"</{name}>" not in server.requests[0]["stop"]
            )
        return played, unsent

    answer = "<think>b</think><answer>7</answer>"
    (alone,), unsent = plays(1, answer)
    name = unsent[2:-1]
    played, _ = plays(2, f"<think>a</think><{name}>k{unsent}", answer, answer)
    assert [one.answer for one in (alone, played[-1])] == ["7", "7"]


def test_a_server_without_completions_is_sent_messages(tokenizer, caplog):
    with serve(lambda messages: "<think>a</think><answer>7</answer>") as server:
        with caplog.at_level(logging.INFO, logger="mem1_trl.rollout.model_server"):
            trajectory = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS).run(
                "q0?", LookupEnvironment()
            )
        assert trajectory.turns[0].messages == ({"role": "user", "content": "q0?"},)
        assert "sent as chat messages: the server offers no /v1/completions for this model" in caplog.text
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, backend="completions", **SETTINGS)
        with pytest.raises(RuntimeError, match=r"backend='completions' cannot be used: the server offers no"):
            agent.run("q0?", LookupEnvironment())


def test_a_teacher_with_another_tokenizer_is_sent_messages(tokenizer):
    """Its format is another one, and a student's context would be foreign text to it."""
    served = {"complete": lambda text: "x", "tokenizer": template_tokenizer(), "takes_ids": True}
    with serve(lambda messages: "<think>a</think><answer>7</answer>", **served) as server:
        Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS).run("q0?", LookupEnvironment())
        assert [set(request) & {"messages", "prompt"} for request in server.requests] == [{"messages"}]
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, backend="completions", **SETTINGS)
        with pytest.raises(
            RuntimeError, match=r"the server's model has another tokenizer \(it reads \d+ tokens where"
        ):
            agent.run("q0?", LookupEnvironment())


def test_the_server_is_asked_once(tokenizer):
    asked = []
    with serve(refuse, complete=lambda text: "<think>a</think><answer>7</answer>", tokenizer=tokenizer) as server:
        server.fails = lambda request: asked.append(request) if request["max_tokens"] == 1 else None
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        assert asked == []  # not before it is needed
        for _ in range(3):
            agent.run("q0?", LookupEnvironment())
    assert len(asked) == 1 and len(server.requests) == 3


@pytest.mark.parametrize(
    ("arguments", "error"), [({"backend": "vllm"}, ValueError), ({"client": object()}, TypeError)]
)
def test_a_backend_that_cannot_be(tokenizer, arguments, error):
    given = {"client": "http://localhost:1/v1", "backend": "completions", **arguments}
    with pytest.raises(error, match=r"backend must be one of|without `chat"):
        Mem1Agent("m", tokenizer, SHORT, **given)


def test_a_client_without_completions_cannot_be_asked_for_them(tokenizer, actor):
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url="http://localhost:1/v1")
    Mem1Agent("m", tokenizer, SHORT, client=client)
    with pytest.raises(TypeError, match=r"a InferenceClient without `completions\.create`: pass an openai\.OpenAI"):
        Mem1Agent("m", tokenizer, SHORT, client=client, backend="completions")
    with pytest.raises(TypeError, match="pass the server as `client`"):
        Mem1Agent(actor, tokenizer, SHORT, backend="chat")


# Text instead of ids


def test_what_a_server_reads_of_a_text_is_recorded(tokenizer):
    """Its own token of the beginning, for one; text that is encoded piece by piece may differ from text in one piece, too."""
    begins = copy.deepcopy(tokenizer)
    begins.add_special_tokens({"bos_token": "<bos>"})
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", begins.bos_token_id)]
    )
    assert begins("a")["input_ids"][0] == begins.bos_token_id
    replies = iter(["<think>a</think><search>k</search>", "<think>b</think><answer>7</answer>"])
    with serve(refuse, complete=lambda text: next(replies), tokenizer=begins) as server:
        server.fails = lambda request: (
            {"choices": [{"text": "x"}], "usage": {"prompt_tokens": len(begins(request["prompt"])["input_ids"])}}
            if request["max_tokens"] == 1
            else None
        )
        trajectory = Mem1Agent("m", begins, SHORT, client=server.url, **SETTINGS).run("q0?", LookupEnvironment())
    assert next(request["prompt"] for request in server.requests) == "q0?"  # the server puts <bos> in front
    for turn, request in zip(trajectory.turns, server.requests, strict=True):
        assert list(turn.prompt_ids) == begins(request["prompt"])["input_ids"]
        assert turn.prompt_ids.count(begins.bos_token_id) == 1
    # A template that does not write it is no reason to leave out what the server reads
    replies = iter(["<think>a</think><answer>7</answer>"])
    with serve(refuse, complete=lambda text: next(replies), tokenizer=begins) as server:
        server.fails = lambda request: {"choices": [{"text": "x"}]} if request["max_tokens"] == 1 else None
        trajectory = Mem1Agent("m", begins, SHORT, client=server.url, max_observation_length=60).run(
            "q0?", LookupEnvironment()
        )
    assert begins.decode(trajectory.prompt_ids) == "<bos>user:q0?;assistant:"


def test_a_context_that_the_server_cuts_is_said(tokenizer, caplog):
    with serve(refuse, complete=lambda text: "<think>a</think><answer>7</answer>", tokenizer=tokenizer) as server:
        complete = server.complete_text

        def cut(request):
            answer = complete(request)
            answer["usage"]["prompt_tokens"] = min(answer["usage"]["prompt_tokens"], 200)
            return answer

        server.complete_text = cut
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        agent.run("q0?", LookupEnvironment())
        assert caplog.text == ""
        agent.run("q" * 300, LookupEnvironment())
    assert "says that it read 200 tokens of a context of 300: it cuts contexts" in caplog.text


def test_a_text_without_a_stop_string_ended_by_itself_if_the_server_leaves_them_in(tokenizer):
    replies = iter(["<think>a</think><search>k</search>", "<think>b</think><search>u"])
    with serve(refuse, include_stop=True, complete=lambda text: next(replies), tokenizer=tokenizer) as server:
        server.fails = lambda request: {"choices": [{"text": "x"}]} if request["max_tokens"] == 1 else None
        environment = LookupEnvironment()
        trajectory = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS).run("q0?", environment)
    assert environment.queries == ["k"] and trajectory.stop_reason is StopReason.INVALID_ACTION
    assert trajectory.turns[1].text == "<think>b</think><search>u<eos>"


# Thoughts, tools, failures


@pytest.mark.parametrize("include_stop", [True, False])
def test_a_thought_that_the_prompt_has_opened_is_finished_first(tokenizer, include_stop):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = "user:{{ messages[0].content }};assistant:{{ '<think>\n' }}"
    whole = "maybe <search>no</search></think><search>key</search> and more"

    def complete(text):
        written = text.partition("<think>\n")[2]
        return whole.removeprefix(written) if whole.startswith(written) else "<think>t</think><answer>7</answer>"

    served = {"complete": complete, "tokenizer": thinking, "takes_ids": True, "include_stop": include_stop}
    with serve(refuse, **served) as server:
        environment = LookupEnvironment()
        agent = Mem1Agent("m", thinking, SHORT, client=server.url, max_observation_length=60)
        trajectory = agent.run("q0?", environment)
    assert environment.queries == ["key"] and trajectory.answer == "7"
    assert trajectory.turns[0].text == whole.removesuffix(" and more")
    assert trajectory.turns[0].state == "maybe <search>no</search>"
    assert [request["stop"] for request in server.requests[:2]] == [["</think>"], ["</search>", "</answer>"]]
    assert texts(server)[1] == "user:q0?;assistant:<think>\nmaybe <search>no</search></think>"
    written = len(thinking("maybe <search>no</search></think>")["input_ids"])
    assert [request["max_tokens"] for request in server.requests[:2]] == [1000, 1000 - written]


def test_a_thought_that_uses_up_the_budget_is_a_cut_turn(tokenizer):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = "user:{{ messages[0].content }};assistant:{{ '<think>\n' }}"
    with serve(refuse, complete=lambda text: "a" * 99, tokenizer=thinking, takes_ids=True) as server:
        agent = Mem1Agent("m", thinking, SHORT, client=server.url, max_completion_length=20)
        trajectory = agent.run("q0?", LookupEnvironment())
    assert trajectory.stop_reason is StopReason.TRUNCATED and trajectory.turns[0].text == "a" * 20


def test_tool_calls_are_read_from_raw_text():
    tokenizer = template_tokenizer()
    replies = iter([said("looking", SEARCH_CALL), said("found", "It is 7.")])
    with serve(
        refuse, complete=lambda text: next(replies).removesuffix("<|im_end|>"), tokenizer=tokenizer, takes_ids=True
    ) as server:
        server.fails = lambda request: {"choices": [{"text": "x"}]} if request["max_tokens"] == 1 else None
        environment = Library()
        agent = Mem1Agent("m", tokenizer, Mem1Protocol.tool_calls(), client=server.url, max_observation_length=120)
        trajectory = agent.run("secret?", environment, secret="7")
    assert environment.log == [("search", ("key", 1)), ("answer", "It is 7.")] and trajectory.answer == "It is 7."
    assert [turn.state for turn in trajectory.turns] == ["looking", "found"]
    assert trajectory.turns[0].text == said("looking", SEARCH_CALL)
    assert "Look the secret up." in texts(server)[0] and "tools" not in server.requests[0]


def test_one_context_that_is_refused_costs_one_episode(tokenizer):
    with serve(refuse, complete=lambda text: "<think>a</think><answer>0</answer>", tokenizer=tokenizer) as server:
        server.fails = lambda request: 400 if "q1?" in request["prompt"] else None
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        result = evaluate_agent(agent, ROWS, LookupEnvironment)
    assert [t.answer for t in result.trajectories] == ["0", None, "0", "0", "0", "0"]
    assert "refused this context (ServerError: HTTP 400" in result.trajectories[1].error


def test_a_server_that_knows_no_limit_is_cut(tokenizer):
    with serve(refuse, complete=lambda text: "a" * 5000, tokenizer=tokenizer) as server:
        server.cut = lambda text, request: (text, "length")
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        trajectory = agent.run("q0?", LookupEnvironment())
    assert len(trajectory.turns[0].completion_ids) == 40 and trajectory.stop_reason is StopReason.TRUNCATED
