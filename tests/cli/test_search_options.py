"""Passages of one search: as saved with the model, the same for every command that plays it."""

from __future__ import annotations

import json
import shutil

import pytest
from support.doc_blocks import ROOT

from mem1_trl.cli import main
from mem1_trl.cli.chat import ChatArguments
from mem1_trl.cli.evaluate import EvalArguments
from mem1_trl.cli.serve import ServeArguments

COMMANDS = {"eval": EvalArguments, "chat": ChatArguments, "serve": ServeArguments}


@pytest.fixture
def saved(tmp_path):
    """Makes a folder with the bundled model and what its environment was made with."""

    def save(environment):
        folder = tmp_path / "model"
        shutil.copytree(ROOT / "examples" / "assets" / "tiny-mem1", folder)
        (folder / "mem1_agent.json").write_text(json.dumps({"environment": environment}))
        return str(folder)

    return save


@pytest.mark.parametrize(
    ("environment", "given", "passages"),
    [({"top_k": 1}, {}, 1), ({"top_k": 1}, {"top_k": 2}, 2), ({}, {}, 3), ({}, {"top_k": 1}, 1)],
)
@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_conversation_searches_as_the_model_was_trained(monkeypatch, saved, command, environment, given, passages):
    monkeypatch.setattr("mem1_trl.cli.conversation_options.open_agent", lambda *given, **more: None)
    options = COMMANDS[command](model_name_or_path=saved(environment), corpus="facts", **given)
    _, factory = options.open()
    assert factory().mem1_settings == {"top_k": passages}


def test_every_command_takes_what_was_saved(saved):
    folder = saved({"top_k": 2})
    assert {name: kind(model_name_or_path=folder).passages() for name, kind in COMMANDS.items()} == dict.fromkeys(
        COMMANDS, 2
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_where_the_number_comes_from(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Passages per search. `None` takes what the model was trained with, or else 3. (default: None)" in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("top_k", ["many", 0, True, None])
def test_what_is_not_a_number_of_passages_is_one_sentence(capsys, saved, command, top_k):
    folder = saved({"top_k": top_k})
    assert main([command, "--model_name_or_path", folder, "--corpus", "facts"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        f"mem1 {command}: top_k of the environment saved with {folder} must be a number of passages, 1 or more, but is {top_k!r}: give --top_k"
    )


def test_an_environment_of_ones_own_may_have_another_top_k(saved):
    """It is made without arguments, as in training, and its settings are not those of a search."""
    folder = saved({"top_k": 0.5})
    assert ChatArguments(model_name_or_path=folder, environment="my_shop.Shop").passages() == 3
