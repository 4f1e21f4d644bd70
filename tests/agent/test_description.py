"""What is written about an agent beside what it played: who is spoken to, and how."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from support.chat_server import serve
from support.trainer_helpers import SHORT, LookupEnvironment
from transformers import AutoTokenizer

from mem1_trl import Mem1Agent
from mem1_trl.agent.checksum import tokenizer_checksum
from mem1_trl.evaluation.evaluate import evaluate_or_load

TINY = Path(__file__).parents[2] / "examples" / "assets" / "tiny-mem1"
ROWS = [{"prompt": "q1?", "secret": "1", "answers": [["1"]]}]
SECRETS = {
    "extra_headers": {"Authorization": "Bearer hidden"},
    "extra_query": {"api-key": "hidden", "version": 2},
    "extra_body": {"min_p": 0.1, "provider": [{"apiKey": "hidden", "name": "a"}], "hf_token": "hidden"},
    "timeout": 5,
    "max_tokens": None,
    "max_completion_tokens": 20,
}


def described(tokenizer, **kwargs):
    return Mem1Agent("m", tokenizer, SHORT, client="http://localhost:1/v1", backend="chat", **kwargs).describe()


def evaluated(agent, directory):
    return evaluate_or_load(agent, ROWS, LookupEnvironment, directory, "e", "m", progress=False, resamples=10)


def forget(path, *names):
    """Makes of an evaluation what an earlier version wrote."""
    summary = json.loads(path.read_text())
    for name in names:
        del summary["settings"]["contents"][name]
    path.write_text(json.dumps(summary))


# The tokenizer


def test_a_tokenizer_is_told_apart_by_what_it_does(tokenizer):
    def changed(change):
        other = copy.deepcopy(tokenizer)
        change(other)
        return tokenizer_checksum(other)

    own = tokenizer_checksum(tokenizer)
    assert changed(lambda other: None) == own
    others = {
        changed(lambda other: setattr(other, "chat_template", other.chat_template + " ")),
        changed(lambda other: setattr(other, "chat_template", None)),
        changed(lambda other: other.add_tokens(["<new>"])),
        changed(lambda other: setattr(other, "eos_token", other.convert_ids_to_tokens(5))),
        changed(lambda other: setattr(other.backend_tokenizer, "post_processor", _begins_with(other))),
    }
    assert len(others) == 5 and own not in others


def _begins_with(tokenizer):
    from tokenizers.processors import TemplateProcessing

    token = tokenizer.convert_ids_to_tokens(5)
    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, 5)])


def test_the_checksum_of_a_tokenizer_does_not_depend_on_its_place_or_its_use(tokenizer, tmp_path):
    own = tokenizer_checksum(tokenizer)
    tokenizer.save_pretrained(tmp_path / "copy")
    other = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert tokenizer_checksum(other) == own
    other.padding_side, other.truncation_side, other.model_max_length = "left", "left", 3
    other.pad_token = other.convert_ids_to_tokens(5)
    other(["a b c d", "a"], truncation=True, max_length=2, padding=True)
    assert tokenizer_checksum(other) == own
    assert other("a b c d")["input_ids"] == tokenizer("a b c d")["input_ids"]


def test_the_checksum_of_a_tokenizer_stays_as_it_is():
    """Evaluations of earlier versions are compared by it."""
    assert tokenizer_checksum(AutoTokenizer.from_pretrained(TINY)) == "2ad9a4dadbc42c1a"


def test_an_evaluation_with_another_chat_template_is_not_reused(tmp_path, actor, tokenizer, caplog):
    def agent(template):
        spoken = copy.deepcopy(tokenizer)
        spoken.chat_template = template
        return Mem1Agent(actor, spoken, SHORT, max_turns=2, max_completion_length=20, conversational=True)

    plain, other = (
        "{% for m in messages %}" + text + "{% endfor %}" for text in ("{{m.content}}", "user: {{m.content}}")
    )
    played = evaluated(agent(plain), tmp_path)
    assert played.tasks[0].prompt_text == "q1?"
    assert evaluated(agent(plain), tmp_path).trajectories == played.trajectories
    assert "nothing says" not in caplog.text
    with pytest.raises(ValueError, match=r"was evaluated with other settings \(contents of agent\.tokenizer\)"):
        evaluated(agent(other), tmp_path)
    forget(tmp_path / "e.json", "agent.tokenizer")
    assert evaluated(agent(other), tmp_path).trajectories == played.trajectories
    assert "nothing says whether agent.tokenizer holds what it held then" in caplog.text


# Requests to a server


def test_arguments_of_requests_are_told_without_secrets(actor, tokenizer):
    assert "request_kwargs" not in Mem1Agent(actor, tokenizer, SHORT).describe()
    assert described(tokenizer)["request_kwargs"] == {}
    found = described(tokenizer, request_kwargs=SECRETS)
    assert found["request_kwargs"] == {
        "extra_query": {"version": 2},
        "extra_body": {"min_p": 0.1, "provider": [{"name": "a"}]},
        "max_tokens": None,
        "max_completion_tokens": 20,
    }
    assert "hidden" not in json.dumps(found)


def test_an_evaluation_with_other_arguments_of_requests_is_not_reused(tmp_path, tokenizer, caplog):
    with serve(lambda messages: "<think>a</think><answer>1</answer>") as server:

        def play(**kwargs):
            client = dict(client=server.url, backend="chat", conversational=False)
            return evaluated(Mem1Agent("m", tokenizer, SHORT, request_kwargs=kwargs, **client), tmp_path)

        played = play(extra_body={"a": 1, "key": "b"})
        assert play(extra_body={"a": 1, "key": "c"}, timeout=9).trajectories == played.trajectories
        assert "agent.request_kwargs" not in caplog.text
        with pytest.raises(
            ValueError, match=r"was evaluated with other settings \(contents of agent\.request_kwargs\)"
        ):
            play(extra_body={"a": 2})
        forget(tmp_path / "e.json", "agent.request_kwargs")
        assert play(extra_body={"a": 2}).trajectories == played.trajectories
    assert "agent.request_kwargs holds what it held then" in caplog.text


# Seeds


def test_episodes_sample_by_the_seeds_that_are_given(actor, tokenizer):
    agent = Mem1Agent(
        actor, tokenizer, SHORT, conversational=False, max_turns=2, max_completion_length=20, temperature=2.0
    )

    def play(*seeds):
        played = agent.run_batch(ROWS * len(seeds), [LookupEnvironment() for _ in seeds], seeds=seeds)
        return [tuple(turn.completion_ids for turn in trajectory.turns) for trajectory in played]

    one, two, again = play(1, 2, 1)
    assert one == again != two and play(2) == [two]
    with pytest.raises(ValueError, match="one seed for each of 1 rows, got 2"):
        agent.run_batch(ROWS, [LookupEnvironment()], seeds=[1, 2])
