"""Episodes that are saved, and go on in another process as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from support.scripted_agent import scripted
from support.tool_helpers import Library, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.context_rules import Compact

SCRIPT = Path(__file__).parents[1] / "scripts" / "killed_conversation.py"
SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
SEARCH, ANSWER = "<think>a</think><search>tea</search>", "<think>b</think><answer>7</answer>"


class Counter:
    """Counts, so that each action depends on those before it."""

    def __init__(self):
        self.count = 0

    def search(self, query: str) -> str:
        """Count."""
        self.count += 1
        return f"{query} {self.count}"


class Resetting(Counter):
    """Starts from the row."""

    def reset(self, first: int = 0, **row):
        self.count = first


class Keeping(Counter):
    """Says what it is at."""

    @property
    def mem1_state(self):
        return {"count": self.count}

    @mem1_state.setter
    def mem1_state(self, state):
        self.count = state["count"]


def count(query: str) -> str:
    """Measure."""
    return str(len(query))


def agent_of(actor, tokenizer, **settings):
    return Mem1Agent(actor, tokenizer, SHORT, **{**SETTINGS, **settings})


def recorded(episode):
    """All that an episode is, its wall time aside."""
    record = episode.trajectory.to_dict()
    record["metrics"].pop("seconds", None)
    for turn in record["turns"]:  # a step reads its whole context again, in another order of additions
        turn["logprobs"] = [round(value, 3) for value in turn["logprobs"] or ()]
    return record, episode.memory, dataclasses.astuple(episode.cost)[:4]


@pytest.mark.parametrize("context", ["mem1", "full", "external"])
@pytest.mark.parametrize("make", [Resetting, Keeping])
def test_an_episode_goes_on_from_every_turn(actor, tokenizer, tmp_path, make, context):
    """Six turns and a message after the third; before each of them it is saved and read again with a new environment."""
    texts = [SEARCH, SEARCH.replace("tea", "milk"), ANSWER, SEARCH.replace("tea", "rye"), SEARCH, ANSWER]

    def play(saved_at):
        def fresh(rest):
            return scripted(agent_of(actor, tokenizer, context=context), tokenizer, rest)

        episode = fresh(texts).start("q?", make(), first=4)
        for number in range(len(texts)):
            if number == saved_at:
                episode.save(tmp_path / "episode.json")
                episode = fresh(texts[number:]).load(tmp_path / "episode.json", make())
            if episode.done:
                episode.add_message("tea and more")
            episode.step()
        return recorded(episode)

    expected = play(None)
    assert expected[2][0] == 6 and [turn["observation"] for turn in expected[0]["turns"]][4].endswith(
        f"tea {8 if make is Resetting else 4}</information>"
    )
    for number in range(len(texts)):
        assert play(number) == expected


def test_an_episode_goes_on_with_the_options_it_was_begun_with(actor, tokenizer, tmp_path):
    """Unless others are given; those of the agent itself are still compared."""
    options = {"max_observation_length": 12, "max_completion_length": 39}

    class Telling(Resetting):
        def search(self, query: str) -> str:
            """Count, at length."""
            return super().search(query) + " tea" * 40

    def begun():
        return scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH, SEARCH, ANSWER])

    episode = begun().start("q?", Telling(), options=options)
    episode.step()
    episode.save(tmp_path / "episode.json")
    expected = recorded(episode) and episode.run()
    loaded = {}
    for name, given in (("own", None), ("none", {}), ("other", {"max_observation_length": 30})):
        again = scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH, ANSWER])
        loaded[name] = again.load(tmp_path / "episode.json", Telling(), repeat=given is None, options=given)
        loaded[name].run()
    seen = {name: one.trajectory.turns[1].observation for name, one in loaded.items()}
    assert [one.observation for one in loaded["own"].trajectory.turns] == [one.observation for one in expected.turns]
    lengths = {name: len(tokenizer(text)["input_ids"]) for name, text in seen.items()}
    assert lengths["own"] <= 12 < lengths["other"] <= 30 < lengths["none"], seen
    loaded["own"].save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["options"] == options
    with pytest.raises(ValueError, match="chat_template_kwargs are those of the agent"):
        begun().start("q?", Telling(), options={"chat_template_kwargs": {"x": 1}})


SAMPLING = {"temperature": 1.0, "rollout_mode": "async"}
"""What an episode samples belongs to the episode."""


@pytest.mark.parametrize("decoding", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_a_real_model_goes_on_from_every_turn(actor, tokenizer, tmp_path, decoding):
    """A written memory, and messages of a person."""

    def play(saved_at):
        torch.manual_seed(0)
        episode, played = agent_of(actor, tokenizer, **decoding).start("abq3?", LookupEnvironment(), secret="2"), 0
        torch.manual_seed(saved_at or 0)  # no other draws count
        for message in ("1", "and 0?", "2", None):
            while not episode.done:
                if played == saved_at:
                    episode.save(tmp_path / "episode.json")
                    episode = agent_of(actor, tokenizer, **decoding).load(
                        tmp_path / "episode.json", LookupEnvironment()
                    )
                episode.step()
                played += 1
                if played == 1:
                    episode.memory = "k"
            if message is not None:
                episode.add_message(message)
        return recorded(episode)

    expected = play(None)
    turns = int(expected[0]["metrics"]["turns"])
    assert turns >= 5 and expected[0]["turns"][0]["edited_state"] in ("k", None)  # None if it wrote that itself
    for number in range(turns):
        assert play(number) == expected


@pytest.mark.slow  # each process imports everything and loads the model
def test_a_killed_conversation_goes_on(actor_path, fork_server, tmp_path):
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert fork_server.run(SCRIPT, actor_path, whole, 0).returncode == 0
    wanted = json.loads(whole.read_text())
    turns = len(wanted["trajectory"]["turns"])
    assert turns >= 5
    for number in range(1, turns + 1):  # killed after every turn, one process after the other
        assert fork_server.run(SCRIPT, actor_path, parts, number).returncode == -signal.SIGKILL
    assert fork_server.run(SCRIPT, actor_path, parts, 0).returncode == 0
    found = json.loads(parts.read_text())
    for record in (wanted, found):
        del record["seconds"], record["began"]
        for turn in record["trajectory"]["turns"]:
            turn["logprobs"] = [round(value, 3) for value in turn["logprobs"]]
    assert found == wanted


def test_tool_calls_go_on(actor, tmp_path):
    tokenizer = template_tokenizer("qwen3")
    call = '<think>a</think><tool_call>\n{"name": "search", "arguments": {"query": "tea"}}\n</tool_call><|im_end|>'
    texts = [call, "<think>b</think>Seven.<|im_end|>", call, "<think>c</think>Eight.<|im_end|>"]

    def play(saved_at):
        def fresh(rest):
            agent = Mem1Agent(actor, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=400, max_turns=4)
            return scripted(agent, tokenizer, rest)

        episode = fresh(texts).start("How many?", Library(), secret="9")
        for number in range(len(texts)):
            if number == saved_at:
                episode.save(tmp_path / "episode.json")
                episode = fresh(texts[number:]).load(tmp_path / "episode.json", Library())
            if episode.done:
                episode.add_message("And now?")
            episode.step()
        return recorded(episode), episode._episode.record.to_dict()

    expected = play(None)
    assert [message["role"] for message in expected[1]["exchange"]] == [
        "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    for number in range(len(texts)):
        assert play(number) == expected


def test_calls_after_any_end_token_of_the_model_are_repeated(actor, tmp_path):
    """Models have end tokens beside that of the tokenizer; here the turn after the message ends with one, too."""
    tokenizer = template_tokenizer("qwen3")
    other = tokenizer.pad_token
    call = f'<think>a</think><tool_call>\n{{"name": "search", "arguments": {{"query": "tea"}}}}\n</tool_call>{other}'
    texts = [call, f"<think>b</think>Seven.{other}", call]

    def fresh():
        agent = Mem1Agent(actor, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=400, max_turns=4)
        scripted(agent, tokenizer, texts)._shared.generator.eos_token_ids.append(tokenizer.pad_token_id)
        return agent

    episode = fresh().start("How many?", Library(), secret="9")
    episode.run()
    episode.add_message("And now?")
    episode.step()
    episode.save(tmp_path / "episode.json")
    library = Library()
    again = fresh().load(tmp_path / "episode.json", library)
    search, answer = ("search", ("tea", 1)), ("answer", library.log[1][1])
    assert library.log == [search, answer, search] and recorded(again) == recorded(episode)


@pytest.mark.parametrize("talks", [False, True], ids=["ended", "message"])
def test_a_call_of_a_turn_that_was_cut_is_not_made_when_it_is_read_again(actor, tmp_path, talks):
    tokenizer = template_tokenizer("qwen3")
    text = '<think>a</think><tool_call>\n{"name": "search", "arguments": {"query": "tea"}}\n</tool_call> and'

    def fresh():
        agent = Mem1Agent(actor, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=400, max_turns=4)
        return scripted(agent, tokenizer, [text])

    episode = fresh().start("How many?", Library(), secret="9")
    assert episode.run().stop_reason is StopReason.TRUNCATED
    if talks:
        episode.add_message("And now?")
    episode.save(tmp_path / "episode.json")
    library = Library()
    again = fresh().load(tmp_path / "episode.json", library)
    assert library.log == [] and recorded(again) == recorded(episode)


def test_functions_are_not_called_again(actor, tokenizer, tmp_path):
    called = []

    def search(query: str) -> str:
        """Search."""
        called.append(query)
        return "7"

    episode = scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH]).start("q?", tools=[search])
    episode.step()
    episode.save(tmp_path / "episode.json")
    again = scripted(agent_of(actor, tokenizer), tokenizer, [ANSWER]).load(tmp_path / "episode.json", tools=[search])
    assert again.run().answer == "7" and called == ["tea"]


def test_an_action_with_another_result_is_refused_and_may_be_left_out(actor, tokenizer, tmp_path):
    file = tmp_path / "episode.json"
    episode = scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH]).start("q?", LookupEnvironment(), secret="7")
    episode.step()
    episode.save(file)
    record = json.loads(file.read_text())
    record["row"]["secret"] = "8"
    file.write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match=r"turn 1 differs: it was '<information>3;7.* and is now '<information>3;8"):
        agent_of(actor, tokenizer).load(file, LookupEnvironment())
    environment = LookupEnvironment()
    environment.reset(secret="7")
    again = scripted(agent_of(actor, tokenizer), tokenizer, [ANSWER]).load(file, environment, repeat=False)
    assert environment.queries == [] and again.run().reward == 1.0


@pytest.mark.parametrize("past", [True, False])
def test_a_saved_episode_may_have_other_turns_from_here_on(actor, tokenizer, past):
    """Those before are repeated as they were played, with the turns that they had left then."""

    def fresh(texts, most):
        return scripted(agent_of(actor, tokenizer, max_turns=most), tokenizer, texts)

    def hints(episode):
        return [
            turn.observation and turn.observation.removeprefix("<information>")[:2]
            for turn in episode.trajectory.turns
        ]

    make = Resetting if past else Keeping  # actions are called again, or not
    episode = fresh([SEARCH] * 3, 4).start("q?", make(), first=4)
    for _ in range(3):
        episode.step()
    episode = fresh([SEARCH], 6).resume(episode.to_dict(past), make())
    episode.step()
    episode = fresh([SEARCH] * 4, 2).resume(episode.to_dict(past), make())  # fewer than were played: one is left
    episode.step()
    assert episode.done and episode.trajectory.stop_reason is StopReason.MAX_TURNS
    episode.add_message("on")
    episode = fresh([SEARCH, SEARCH, ANSWER], 3).resume(episode.to_dict(past), make())
    assert episode.run().answer == "7"
    # The fifth turn was the last one, and was answered by the message
    expected = ["3;", "2;", "la", "2;", "2;", "2;", "la", None]
    assert hints(episode) == expected[-len(hints(episode)) :] and len(hints(episode)) == (8 if past else 4)
    assert episode.trajectory.turns[-2].observation.endswith(f"tea {11 if past else 7}</information>")


def test_waiting_calls_have_the_turns_that_there_are_now(actor, tokenizer):
    schema = {
        "type": "function",
        "function": {"name": "search", "parameters": {"type": "object", "properties": {"query": {}}}},
    }
    episode = scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH]).start("q?", schemas=[schema])
    episode.step()
    for most, hint in ((4, "3;"), (6, "5;"), (1, None)):
        later = scripted(agent_of(actor, tokenizer, max_turns=most), tokenizer, [ANSWER]).resume(episode.to_dict())
        later.give(["found"])
        found = later.trajectory.turns[0].observation
        assert (found and found.removeprefix("<information>")[:2]) == hint
        assert (later.trajectory.stop_reason is StopReason.MAX_TURNS) is (hint is None)


def test_a_saved_episode_belongs_to_its_agent(actor, tokenizer, tmp_path):
    file = tmp_path / "episode.json"
    agent_of(actor, tokenizer).start("q?", tools=[count]).save(file)
    for agent, words in (
        (
            agent_of(actor, tokenizer, max_completion_length=9),
            "max_completion_length of its settings was 40 and is 9: give it what it had, or begin another.",
        ),
        (
            Mem1Agent(actor, tokenizer, dataclasses.replace(SHORT, hint_template="{n}!"), **SETTINGS),
            "hint_template of its protocol",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            agent.load(file, tools=[count])
    record = json.loads(file.read_text())
    record["prompt_ids"] = record["prompt_ids"][1:]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="the tokenizer or the tools are others now"):
        agent_of(actor, tokenizer).load(file, tools=[count])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "is not JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"turns": []}', "must have the field 'mem1_episode'"),
    ],
)
def test_a_file_that_is_no_episode_is_refused(actor, tokenizer, tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        agent_of(actor, tokenizer).load(tmp_path / "x.json")


def test_a_damaged_file_is_refused_in_one_sentence(actor, tokenizer, tmp_path):
    file = tmp_path / "episode.json"
    agent_of(actor, tokenizer).start("q?").save(file)
    whole = json.loads(file.read_text())
    for name in ("trajectory", "history", "rounds", "notes", "record", "row", "seconds"):
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(ValueError, match=name):
            agent_of(actor, tokenizer).load(file)


def test_what_json_cannot_hold_is_not_saved(actor, tokenizer, tmp_path):
    episode = agent_of(actor, tokenizer).start("q?", LookupEnvironment(), secret="7", extra={1, 2})
    with pytest.raises(
        ValueError, match=r"'extra' must be made of JSON values for the episode to be saved, got \{1, 2\}"
    ):
        episode.save(tmp_path / "episode.json")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_is_cut_short_leaves_the_earlier_file(actor, tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "episode.json"
    episode = scripted(agent_of(actor, tokenizer), tokenizer, [SEARCH]).start("q?", tools=[count])
    episode.save(file)
    before = file.read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        episode.save(file)
    assert file.read_text() == before


def test_an_episode_goes_on_though_its_chat_template_writes_another_date_by_then(actor, tmp_path):
    """Templates of Llama 3.2 and of gpt-oss write the date, which is that of the day on which the conversation began."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%H %M %S') }} " + tokenizer.chat_template
    agent = agent_of(actor, tokenizer, conversational=True)
    episode = agent.start("Who?", tools=[count])
    contexts = [tokenizer.decode(episode._episode.prompt_ids)]
    record = episode.to_dict()
    record["began"] -= 86_400.0 + 3_723.0
    record["prompt_ids"] = agent.syntax.encode_task(episode._episode.prompt, at=record["began"])
    path = tmp_path / "yesterday.json"
    path.write_text(json.dumps(record))
    scripted(agent, tokenizer, [ANSWER])
    going_on = agent.load(path, tools=[count])
    contexts.append(tokenizer.decode(going_on._episode.prompt_ids))
    assert contexts[0] != contexts[1] and contexts[0].split(" ")[3:] == contexts[1].split(" ")[3:]
    going_on.run()
    assert going_on.answer == "7"
    record["prompt_ids"][0] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="must have the token ids that it had"):
        agent.load(path, tools=[count])


def test_the_rule_of_context_that_was_saved_keeps_its_parameters_when_it_is_named_again(actor, tokenizer, tmp_path):
    agent_of(actor, tokenizer, context=Compact(every=4)).save_settings(tmp_path)
    actor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = Mem1Agent.from_pretrained(tmp_path)
    assert saved.settings.context_kwargs["every"] == 4
    assert Mem1Agent.from_pretrained(tmp_path, context="compact").settings == saved.settings
    given = Mem1Agent.from_pretrained(tmp_path, context="compact", context_kwargs={"every": 2}).settings
    assert given.context_kwargs["every"] == 2
    assert Mem1Agent.from_pretrained(tmp_path, context="mem1").settings.context_kwargs == {}
    assert (
        saved.start("Who?", tools=[count], options={"context": "full"})._player.rollout.settings.context_kwargs == {}
    )
