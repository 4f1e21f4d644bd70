"""`mem1 chat`: a conversation in the terminal, with the bundled model and with one that says what it is told."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
from support.doc_blocks import ROOT
from support.scripted_agent import scripted
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent
from mem1_trl.cli import main
from mem1_trl.cli.chat import Chat

TINY = str(ROOT / "examples" / "assets" / "tiny-mem1")
ARGUMENTS = [
    "chat",
    "--model_name_or_path",
    TINY,
    "--corpus",
    "facts",
    "--top_k",
    "1",
    "--max_completion_length",
    "64",
]


def typed(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))


def test_the_bundled_model_answers_and_the_conversation_is_kept(monkeypatch, capsys, tmp_path):
    path = tmp_path / "chat.json"
    typed(monkeypatch, "capital of France", "/memory", "/cost")
    assert main([*ARGUMENTS, "--conversation", str(path)]) == 0
    answered, memory, cost = capsys.readouterr().out.splitlines()
    assert answered == "agent> [search: capital of France] Paris"
    assert memory.startswith("memory: ") and "Paris" in memory
    assert cost.startswith("2 turns, longest context ")
    assert json.loads(path.read_text())["trajectory"]["answer"] == "Paris"
    typed(monkeypatch, "/memory", "/quit", "never read")
    assert main([*ARGUMENTS, "--conversation", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"(goes on from {path}, after 2 turns)", memory]


def test_a_conversation_goes_on_is_edited_and_begins_again(actor, tokenizer, capsys, tmp_path):
    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 2}
    texts = [
        "<think>a</think><search>tea</search>",
        "<think>b</think><answer>7</answer>",
        "<think>c</think><answer>8</answer>",
    ]
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, [*texts, "<think>x"])
    chat = Chat(agent, LookupEnvironment, show_state=True)
    assert chat.take("q?") and chat.take("again?")
    assert capsys.readouterr().out == "agent> [search: tea] 7\nmemory: b\nagent> 8\nmemory: c\n"
    chat.take("/turns")
    assert capsys.readouterr().out == texts[2] + "\n"
    chat.take("/memory d")
    chat.take(f"/save {tmp_path / 'c.json'}")
    chat.take("/new")
    chat.take("/memory")
    chat.take(f"/load {tmp_path / 'c.json'}")
    chat.take("/memory")
    chat.take("/load nowhere.json")
    chat.take("/bad\x1b")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "memory: d" and lines[2] == "(nothing was said yet)" and lines[4] == "memory: d"
    assert "nowhere.json" in lines[5] and lines[6] == r"(there is no /bad\x1b)" and len(lines) == 15
    assert not chat.take("/quit")
    chat.close()


def test_a_turn_without_an_answer_says_why_and_a_stopped_one_goes_on(actor, tokenizer, capsys):
    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 1}
    search, answer = "<think>a</think><search>tea</search>", "<think>b</think><answer>7</answer>"
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, [search, answer])
    chat = Chat(agent, LookupEnvironment)
    chat.take("q?")
    assert capsys.readouterr().out.splitlines() == ["agent> (no answer: the turns ended with max_turns)"]
    step = type(chat.episode).step

    def interrupt(episode, on_text=None):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(chat.episode), "step", interrupt)
        assert chat.take("and?")
    assert "stopped" in capsys.readouterr().out and type(chat.episode).step is step
    chat.take("more?")
    assert "has not answered yet" in capsys.readouterr().out
    chat.take("")
    assert capsys.readouterr().out == "agent> 7\n"


def test_a_saved_conversation_says_what_it_was_begun_with(monkeypatch, capsys, tmp_path):
    path = str(tmp_path / "chat.json")
    typed(monkeypatch, "capital of France")
    assert main([*ARGUMENTS, "--conversation", path]) == 0
    capsys.readouterr()
    assert main([*ARGUMENTS, "--conversation", path, "--max_observation_length", "99"]) == 2
    assert (
        "max_observation_length of its settings was 1000 and is 99: give it what it had, or begin another."
        in capsys.readouterr().err
    )
    typed(monkeypatch, "and of Italy?")
    assert main([*ARGUMENTS, "--conversation", path, "--max_turns", "9"]) == 0
    assert "(goes on from" in capsys.readouterr().out
    record = json.loads(Path(path).read_text())
    assert (record["settings"]["max_turns"], record["budgets"]) == (9, [[2, 6]])


@pytest.fixture
def talk(actor, tokenizer, tmp_path, monkeypatch):
    """Makes a chat whose agent answers 0, 1, 2 and so on; files are in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 2}
    texts = [f"<think>{n}</think><answer>{n}</answer>" for n in range(9)]
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, texts)

    def chat(path=None, *lines):
        made = Chat(agent, LookupEnvironment, path)
        for line in lines:
            made.take(line)
        return made

    return chat


def answers(path):
    """The last answer in a file, and how many turns there are."""
    trajectory = json.loads(Path(path).read_text())["trajectory"]
    return trajectory["answer"], len(trajectory["turns"])


def test_a_conversation_that_was_loaded_is_kept_in_its_own_file(talk, capsys):
    talk("b.json", "first of b")
    talk("a.json", "first of a", "/load b.json", "second of b").close()
    assert (answers("a.json"), answers("b.json")) == (("1", 1), ("2", 2))
    talk(None, "/load a.json", "second of a", "/new", "another")
    assert (answers("a.json"), answers("b.json"), answers("a-2.json")) == (("3", 2), ("2", 2), ("4", 1))
    assert sorted(path.name for path in Path().iterdir()) == ["a-2.json", "a.json", "b.json"]


def test_another_conversation_has_a_file_of_its_own(talk, capsys):
    chat = talk("b.json", "/new", "first of b", "/new", "/new", "another", "/new", "a third")
    assert capsys.readouterr().out.splitlines() == [
        "agent> 0",
        "(the next conversation is written to b-2.json; /load b.json goes on with this one)",
        "agent> 1",
        "(the next conversation is written to b-3.json; /load b-2.json goes on with this one)",
        "agent> 2",
    ]
    assert [answers(f"b{n}.json") for n in ("", "-2", "-3")] == [("0", 1), ("1", 1), ("2", 1)]
    chat.take("/load b.json")
    chat.take("second of b")
    assert [answers(f"b{n}.json") for n in ("", "-2", "-3")] == [("3", 2), ("1", 1), ("2", 1)]


def test_a_conversation_is_not_saved_over_another_file(talk, capsys):
    Path("my_shop.py").write_text("class Shop: ...")
    Path("list.json").write_text("[1]")
    talk("a.json", "first of a")
    chat = talk("b.json", "first of b", "/save c.json")
    for line in ("/save my_shop.py", "/save list.json", "/save a.json", "/save .", "/save nowhere/a.json"):
        capsys.readouterr()
        chat.take(line)
        name = line.removeprefix("/save ")
        assert capsys.readouterr().out.rstrip("\n") == {
            "a.json": "('a.json' holds another conversation, which is not replaced: give the name of a file that is not there yet, or go on "
            "with that conversation by /load a.json)",
            ".": "(the file of a conversation must be a file in a folder that is there, but '.' is a folder)",
            "nowhere/a.json": "(the file of a conversation must be a file in a folder that is there, but 'nowhere/a.json' is in 'nowhere', "
            "which is not a folder)",
        }.get(
            name,
            f"(the file of a conversation must hold a conversation, or not be there yet, but {name!r} holds something else)",
        )
    assert (Path("my_shop.py").read_text(), Path("list.json").read_text()) == ("class Shop: ...", "[1]")
    for line in ("second of b", "/save c.json", "/save"):  # files of this conversation
        chat.take(line)
    assert [answers(f"{name}.json") for name in "abc"] == [("0", 1), ("2", 2), ("2", 2)]
    assert capsys.readouterr().out.endswith("(written to c.json)\n(written to b.json)\n")
    chat.take("/new")
    chat.take("another")
    chat.take("/save c.json")
    assert "'c.json' holds another conversation" in capsys.readouterr().out and answers("c.json") == ("2", 2)


def test_a_file_that_another_program_wrote_meanwhile_stays(talk, capsys):
    chat = talk("a.json")
    Path("a.json").write_text("of another")
    chat.take("first")
    assert (
        capsys.readouterr().out
        == "agent> 0\n(a.json was written by another program: this conversation is in a-2.json)\n"
    )
    assert Path("a.json").read_text() == "of another" and answers("a-2.json") == ("0", 1)


def test_a_file_that_is_not_a_conversation_is_refused_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("mem1_trl.cli.conversation_options.open_agent", lambda *given, **more: pytest.fail("loaded"))
    path = tmp_path / "my_shop.py"
    path.write_text("class Shop: ...")
    assert main([*ARGUMENTS, "--conversation", str(path)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        f"mem1 chat: conversation must hold a conversation, or not be there yet, but {str(path)!r} holds something else"
    )


def test_a_line_that_is_not_utf8_is_read_with_marks_in_place_of_it(monkeypatch, capsys):
    """As Python reads it in the locale of a container: with lone surrogates, which no tokenizer takes."""
    typed(monkeypatch, "capitale du Br\udce9sil?", "/memory Br\udce9sil", "/memory")
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("agent> ") and out[-1] == "memory: Br?sil"


def test_wrong_options_are_one_sentence(capsys):
    assert main(["chat", "--model_name_or_path", TINY, "--backend", "chat"]) == 2
    assert "backend is about a server: give its address with --endpoint" in capsys.readouterr().err


def test_a_chat_needs_no_reward(actor, tokenizer, tmp_path, capsys):
    """That of training may need a row, which a conversation has none of; the conversation is kept."""

    class Strict(LookupEnvironment):
        def get_reward(self):
            raise KeyError("answers")

    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 2}
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, ["<think>0</think><answer>0</answer>"])
    made = Chat(agent, Strict, str(tmp_path / "chat.json"))
    assert made.take("a?") and "agent> 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "chat.json").read_text())["trajectory"]["answer"] == "0"


class Opened(LookupEnvironment):
    """Belongs to the thread in which it was made, as a connection of sqlite does, and counts what is open."""

    open = 0

    def __init__(self):
        super().__init__()
        self.home = threading.get_ident()
        Opened.open += 1

    def reset(self, prompt=None, **row):
        assert threading.get_ident() == self.home

    def close(self):
        assert threading.get_ident() == self.home
        Opened.open -= 1


def test_environments_of_a_chat_are_made_used_and_closed_in_one_thread(actor, tokenizer, tmp_path, capsys):
    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 2}
    texts = [f"<think>{n}</think><answer>{n}</answer>" for n in range(9)]
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, texts)
    made = Chat(agent, Opened, str(tmp_path / "chat.json"))
    assert made.take("a?") and made.take("/save") and "agent> 0" in capsys.readouterr().out and Opened.open == 1
    made.take("/new")
    assert Opened.open == 0
    made.take(f"/load {tmp_path / 'chat.json'}")
    made.take("b?")
    assert "agent> 1" in capsys.readouterr().out and Opened.open == 1
    (tmp_path / "other.json").write_text("{}")
    made.take(f"/load {tmp_path / 'other.json'}")
    assert "must have the field" in capsys.readouterr().out and Opened.open == 1
    made.close()
    assert Opened.open == 0


def test_a_file_that_cannot_be_written_is_named_as_it_was_typed(talk, capsys):
    chat = talk("a.json", "first")
    capsys.readouterr()
    chat.take("/save /proc/x.json")
    assert capsys.readouterr().out == "([Errno 2] No such file or directory: '/proc/x.json')\n"
