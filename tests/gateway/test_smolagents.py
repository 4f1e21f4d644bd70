"""An agent of smolagents as the program: its loop and its tools as they are, through the gateway."""

from __future__ import annotations

import json

import pytest
import torch
from support.helpers import oracle_logprobs
from support.tool_helpers import Says, call, said, template_tokenizer, tool_policy

pytest.importorskip("smolagents")
pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from smolagents import LogLevel, OpenAIModel, ToolCallingAgent, tool

from mem1_trl import Mem1Agent
from mem1_trl.gateway import GatewayEnvironment

TEXTS = [
    said("which?", call("pull", '{"lever": "A"}')),
    said("no call", "I pull B."),  # the library answers with an error, and asks again
    said("again", f"{call('pull', json.dumps({'lever': 'B'}))}\n{call('pull', json.dumps({'lever': 'C'}))}"),
    said("done", call("final_answer", '{"answer": "B"}')),
]


@pytest.mark.parametrize("stream", [False, True])
def test_its_steps_are_turns_of_what_was_read_and_sampled(stream):
    tokenizer = template_tokenizer("qwen3")
    model = tool_policy(tokenizer)
    agent = Mem1Agent(model, tokenizer, max_turns=8, max_completion_length=200)
    agent._shared = Says(tokenizer, TEXTS, model)
    pulled, lengths = [], []

    def program(row, base_url):
        @tool
        def pull(lever: str) -> str:
            """
            Pull a lever.

            Args:
                lever: Its letter.
            """
            pulled.append(lever)
            return "open" if lever == row["right"] else "shut"

        own = ToolCallingAgent(
            [pull],
            OpenAIModel("policy", api_base=base_url, api_key="none"),
            stream_outputs=stream,
            verbosity_level=LogLevel.OFF,
        )
        answer = own.run(row["prompt"])
        lengths.extend(step.token_usage.output_tokens for step in own.memory.steps[1:])
        return float(answer == row["right"])

    row = {"prompt": "Which lever opens?", "right": "B"}
    (trajectory,) = agent.run_batch([row], [GatewayEnvironment(program)], keep_failures=True)
    assert trajectory.error is None and trajectory.reward == 1.0
    assert pulled[0] == "A" and sorted(pulled[1:]) == ["B", "C"]  # the last two in threads of the library
    assert [tokenizer.decode(turn.completion_ids) for turn in trajectory.turns] == TEXTS
    assert lengths == [len(turn.completion_ids) for turn in trajectory.turns]
    read = [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]
    assert "Pull a lever." in read[0] and "Which lever opens?" in read[0]
    # The library writes calls and results in its own words: each turn is a branch that begins like the one before
    assert (
        "Calling tools:" in read[1]
        and "Observation:\nshut" in read[1]
        and "<tool_call>\n" + '{"name": "pull"' not in read[1]
    )
    assert "Error:" in read[2] and "Observation:\nopen\nshut" in read[3].replace("shut\nopen", "open\nshut")
    for turn, oracle in zip(trajectory.turns, oracle_logprobs(model, trajectory)):
        torch.testing.assert_close(oracle, torch.tensor(turn.logprobs), atol=1e-4, rtol=0)
