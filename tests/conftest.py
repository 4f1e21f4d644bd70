"""What all tests need: one thread, no telemetry, and a model that acts."""

from __future__ import annotations

import copy
import os

# It would keep huggingface_hub's client from the servers that tests start on this machine; read when that is imported
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.setdefault("CI", "1")  # no telemetry
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from support.trainer_helpers import chat_tokenizer, trained_model

from mem1_trl.environment_runtime import faults

torch.set_num_threads(1)
faults.FIRST_WAIT = 0.01  # environments fail often here


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny byte-level tokenizer with a chat template. Not to be changed."""
    return chat_tokenizer()


@pytest.fixture(scope="session")
def _actor(tokenizer):
    return trained_model(tokenizer)


@pytest.fixture
def actor(_actor):
    """A tiny model that searches and answers, fresh for each test."""
    return copy.deepcopy(_actor)


@pytest.fixture(scope="session")
def actor_path(_actor, tmp_path_factory):
    """The same model as a directory, which a reference model can be loaded from."""
    directory = tmp_path_factory.mktemp("models") / "actor"
    _actor.save_pretrained(directory)
    return str(directory)
