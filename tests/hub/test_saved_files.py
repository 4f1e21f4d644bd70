"""What is saved next to a model on the Hub: found, not there, or not known; and all of it from one revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError
from support.trainer_helpers import SHORT

import mem1_trl.agent.agent as agents
from mem1_trl import AgentSettings, Mem1Agent, Mem1GRPOConfig, Mem1Protocol
from mem1_trl.hub.agent_settings import find_protocol, load_agent_settings, save_agent_settings
from mem1_trl.trainers import saving

COMMIT = "0" * 40


def cached(folder: Path, *files: str, missing: str = "") -> Path:
    """A cache of the Hub with some files of `me/agent`, and one of which it is known that there is none."""
    repository = folder / "models--me--agent"
    for place, names in (("snapshots", files), (".no_exist", [missing] if missing else [])):
        (repository / place / COMMIT).mkdir(parents=True, exist_ok=True)
        for name in names:
            (repository / place / COMMIT / name).write_text("{}")
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def failing(monkeypatch, error: Exception) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


def http(kind: type) -> Exception:
    import httpx

    return kind("404 Client Error.", response=httpx.Response(404, request=httpx.Request("HEAD", "https://hub")))


def test_a_hub_that_fails_for_a_moment_gives_no_other_agent(tmp_path, monkeypatch):
    failing(monkeypatch, LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub"))
    for read, name in (
        (load_agent_settings, "mem1_agent.json"),
        (find_protocol, "mem1_protocol.json"),
        (Mem1Protocol.from_pretrained, "mem1_protocol.json"),
    ):
        with pytest.raises(ConnectionError, match=f"The Hub gave no answer about {name} of 'me/agent'"):
            read("me/agent", cache_dir=str(tmp_path))


def test_without_the_hub_a_model_that_is_here_is_run_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    where = {"cache_dir": str(cached(tmp_path / "some", "config.json"))}
    assert load_agent_settings("me/agent", **where) is None
    assert "Whether me/agent has a mem1_agent.json is not known" in caplog.text
    caplog.clear()
    where = {"cache_dir": str(cached(tmp_path / "known", "config.json", missing="mem1_agent.json"))}
    assert load_agent_settings("me/agent", **where) is None and not caplog.text
    where = {"cache_dir": str(cached(tmp_path / "all", "config.json", "mem1_agent.json"))}
    assert load_agent_settings("me/agent", **where) == AgentSettings() and not caplog.text
    assert load_agent_settings("me/agent", cache_dir=str(tmp_path / "nothing")) is None
    save_agent_settings(tmp_path, AgentSettings(max_turns=3))
    assert load_agent_settings(tmp_path) == AgentSettings(max_turns=3) and not caplog.text


def test_what_is_not_there_is_none(tmp_path, monkeypatch, caplog):
    failing(monkeypatch, http(RemoteEntryNotFoundError))
    assert load_agent_settings("me/agent") is None and find_protocol("me/agent") is None
    with pytest.raises(FileNotFoundError, match="There is no mem1_protocol\\.json in"):
        Mem1Protocol.from_pretrained("me/agent")
    error = LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")
    error.__cause__ = http(RevisionNotFoundError)
    failing(monkeypatch, error)
    assert load_agent_settings("me/agent", cache_dir=str(tmp_path)) is None  # as loading the model says
    with pytest.raises(RevisionNotFoundError):
        Mem1Protocol.from_pretrained("me/agent", cache_dir=str(tmp_path))
    assert not caplog.text


def test_everything_of_an_agent_comes_from_one_revision(tmp_path, monkeypatch, actor_path, actor, tokenizer):
    SHORT.save_pretrained(tmp_path)
    save_agent_settings(tmp_path, AgentSettings(max_turns=3, conversational=False))
    asked: dict[str, dict[str, Any]] = {}

    def download(name: str, file: str, **where: Any) -> str:
        asked[file] = where
        return str(tmp_path / file)

    class Tokenizers:
        @staticmethod
        def from_pretrained(name: str, **where: Any) -> Any:
            asked["tokenizer"] = where
            return tokenizer

    def load(name: str, **where: Any) -> Any:
        asked["weights"] = where
        return actor

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(agents, "AutoTokenizer", Tokenizers)
    monkeypatch.setattr(agents, "load_model", load)
    place = {"revision": "v1", "token": "hf_x", "cache_dir": str(tmp_path / "cache")}
    agent = Mem1Agent.from_pretrained("me/agent", model_init_kwargs={**place, "trust_remote_code": True})
    assert agent.settings.max_turns == 3 and agent.protocol == SHORT
    assert asked == {
        "mem1_protocol.json": place,
        "mem1_agent.json": place,
        "tokenizer": {**place, "trust_remote_code": True},
        "weights": {**place, "trust_remote_code": True, "dtype": "auto"},
    }


def test_a_trainer_reads_what_is_beside_its_model_from_one_revision(tmp_path, monkeypatch):
    asked = []
    for name in ("find_protocol", "load_agent_settings"):
        monkeypatch.setattr(saving, name, lambda source, name=name, **where: asked.append((name, source, where)))
    monkeypatch.setattr(
        saving.AutoTokenizer, "from_pretrained", lambda source, **where: asked.append(("tokenizer", source, where))
    )
    args = Mem1GRPOConfig(
        str(tmp_path), model_init_kwargs={"revision": "v1", "cache_dir": "there", "dtype": "float32"}, bf16=False
    )
    saving.starting_protocol(None, "me/agent", args)
    saving.saved_settings("me/agent", args)
    saving.starting_tokenizer(None, "me/agent", args)
    assert [name for name, _, _ in asked] == ["find_protocol", "load_agent_settings", "tokenizer"]
    for _, source, where in asked:
        assert source == "me/agent" and where.items() >= {"revision": "v1", "cache_dir": "there"}.items()
        assert "dtype" not in where
