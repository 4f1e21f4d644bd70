"""What all tests need: one thread, no telemetry, and a model that acts."""

from __future__ import annotations

import copy
import os

# It would keep huggingface_hub's client from the servers that tests start on this machine; read when that is imported
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.setdefault("CI", "1")  # no telemetry
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; several workers share the cores
# On some processors the sums of Intel's MKL depend on where in memory a matrix lies; read with the first product
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch
from support.forking import ForkServer, processes_that_end
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


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """A process with the libraries imported, which runs scripts in forks of itself."""
    # Read when trackio is imported, which accelerate does
    with ForkServer({"TRACKIO_DIR": str(tmp_path_factory.mktemp("trackio"))}) as server:
        yield server


@pytest.fixture(autouse=True)
def _processes_end_with_their_test():
    with processes_that_end():
        yield


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With `-n auto`, one process for named files and tests, which start faster so; for folders, one for each core."""
    named = [argument for argument in config.args if "::" in argument or argument.endswith(".py")]
    return 0 if named else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no worker begins one when the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
