"""Programs that own their loop, through a real server: what they read and what was sampled, token by token."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.helpers import oracle_logprobs
from support.processes import ends
from support.trainer_helpers import chat_tokenizer

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason, score_trajectories
from mem1_trl.environment_runtime.faults import FaultSettings
from mem1_trl.environment_runtime.pool import EnvironmentPool
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.gateway import GatewayEnvironment, program

SETTINGS = {"max_completion_length": 8, "max_turns": 4, "temperature": 1.0}


@pytest.fixture
def agent(actor, tokenizer):
    return Mem1Agent(actor, tokenizer, **SETTINGS)


def ask(base_url, messages, **options):
    """A request with nothing but the standard library."""
    body = json.dumps({"model": "policy", "messages": messages, **options}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code}: {json.load(error)['error']['message']}") from None


def user(text):
    return {"role": "user", "content": text}


def appends(row, base_url):
    """Three questions, the whole chat each time."""
    messages = []
    for number in range(3):
        messages.append(user(f"{row['prompt']}{number}"))
        messages.append(ask(base_url, messages)["message"])
    return float(row["secret"])


def compacts(row, base_url):
    """Keeps the first question and the last answer only."""
    told = ""
    for number in range(3):
        told = ask(base_url, [user(f"{row['prompt']} so far: {told}")], max_tokens=4 + number)["message"]["content"]
    return 1.0


def branches(row, base_url):
    """Two conversations at once that begin alike, and one that begins otherwise."""
    together = threading.Barrier(2)

    def talk(name):
        together.wait()
        first = [user("same")]
        first.append(ask(base_url, first)["message"])
        ask(base_url, [*first, user(name)])

    threads = [threading.Thread(target=talk, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ask(base_url, [{"role": "system", "content": "other"}, user("same")])
    return 1.0


def play(agent, program, rows=1, **kwargs):
    data = [{"prompt": f"q{number}", "secret": str(number)} for number in range(rows)]
    environments = [GatewayEnvironment(program, **kwargs) for _ in data]
    return agent.run_batch(data, environments, keep_failures=True)


@pytest.mark.parametrize("program", [appends, compacts, branches])
def test_every_turn_is_what_was_read_and_sampled(agent, actor, tokenizer, program):
    """The oracle is the plain model on each turn alone; `packed` and `per_turn` must agree with it and with the sampler."""
    trajectories = play(agent, program, rows=3)
    for trajectory in trajectories:
        assert trajectory.error is None and trajectory.stop_reason is StopReason.DONE
        assert len(trajectory.turns) == {appends: 3, compacts: 3, branches: 5}[program]
        for scored, turn in zip(oracle_logprobs(actor, trajectory), trajectory.turns):
            torch.testing.assert_close(scored, torch.tensor(turn.logprobs), atol=1e-4, rtol=0)
    for layout in ("packed", "per_turn"):
        for trajectory, scored in zip(trajectories, score_trajectories(actor, trajectories, layout=layout)):
            for mine, turn in zip(scored, trajectory.turns):
                torch.testing.assert_close(mine.cpu(), torch.tensor(turn.logprobs), atol=1e-4, rtol=0)


def test_programs_run_though_the_first_environment_of_the_batch_could_not_be_made(agent):
    made = []

    def make():
        made.append(1)
        if len(made) == 2:
            raise KeyError("gone")
        return GatewayEnvironment(appends)

    pool = EnvironmentPool(make, agent.protocol, FaultSettings(retries=0, concurrency=1))
    pool.discard(pool.example()[0])
    rows = [{"prompt": "q", "secret": "1"}, {"prompt": "r", "secret": "1"}]
    failed, played = agent.run_batch(rows, pool, keep_failures=True)
    pool.close()
    assert "gone" in failed.error and failed.turns == []
    assert (played.error, played.reward, len(played.turns)) == (None, 1.0, 3)


def test_what_extends_shares_the_sampled_tokens_and_what_does_not_is_a_branch(agent, tokenizer):
    (trajectory,) = play(agent, appends)
    first, second, third = trajectory.turns
    assert tokenizer.decode(first.prompt_ids) == "user:q00;assistant:"
    for before, after in ((first, second), (second, third)):
        whole = (*before.prompt_ids, *before.completion_ids)
        if after.prompt_ids[: len(whole)] != whole:  # it was cut, so that the template writes it otherwise
            text = tokenizer.decode(after.prompt_ids)
            assert text.startswith(tokenizer.decode(before.prompt_ids)) and not text.startswith(
                tokenizer.decode(whole)
            )
    (trajectory,) = play(agent, compacts)
    assert [len(turn.completion_ids) <= 4 + number for number, turn in enumerate(trajectory.turns)] == [True] * 3
    assert tokenizer.decode(trajectory.turns[1].prompt_ids).startswith("user:q0 so far: ")


def test_a_model_stops_at_the_stop_strings_of_its_request(agent, actor, tokenizer):
    def program(row, base_url):
        told = [ask(base_url, [user("q")], stop=[letter]) for letter in "tae<"]
        assert all(letter not in one["message"]["content"] for letter, one in zip("tae<", told))
        return float(sum(one["finish_reason"] == "stop" for one in told))

    for trajectory in play(agent, program, rows=2):
        assert trajectory.error is None and trajectory.reward > 0
        for letter, turn in zip("tae<", trajectory.turns):
            *before, last = turn.completion_ids
            assert letter not in tokenizer.decode(before)
            assert len(before) == 7 or letter in tokenizer.decode(last) or last == tokenizer.eos_token_id
        for scored, turn in zip(oracle_logprobs(actor, trajectory), trajectory.turns):
            torch.testing.assert_close(scored, torch.tensor(turn.logprobs), atol=1e-4, rtol=0)


def test_sampled_ids_are_kept_where_their_text_would_be_encoded_otherwise():
    from mem1_trl.gateway.turns import ChatTurns
    from mem1_trl.rollout.settings import AgentSettings
    from mem1_trl.trajectory import Turn
    from mem1_trl.wire.requests import ChatRequest

    tokenizer = chat_tokenizer()
    chat = ChatTurns(tokenizer, AgentSettings())
    prompt = tokenizer("user:q;assistant:")["input_ids"]
    other = [tokenizer.convert_tokens_to_ids(one) for one in "<answer>"]  # the letters of a tag, which is one token
    assert tokenizer.decode(other) == "<answer>" and tokenizer("<answer>")["input_ids"] != other
    messages = (user("q"), {"role": "assistant", "content": "<answer>"}, user("more"))
    found = chat.context(ChatRequest(messages), [Turn(tuple(prompt), tuple(other))])
    assert found == [*prompt, *other, *tokenizer(";user:more;assistant:")["input_ids"]]
    assert (
        chat.context(ChatRequest(messages), [])
        == tokenizer("user:q;assistant:<answer>;user:more;assistant:")["input_ids"]
    )


def test_a_program_may_be_asynchronous(agent):
    async def program(row, base_url):
        answers = await asyncio.gather(*(asyncio.to_thread(ask, base_url, [user(text)]) for text in "ab"))
        return float(len(answers))

    for trajectory in play(agent, program, rows=2):
        assert trajectory.error is None and trajectory.reward == 2.0 and len(trajectory.turns) == 2


async def _later(result, row):
    await asyncio.sleep(0)
    return len(result)


@pytest.mark.parametrize(("reward", "expected"), [(_later, 3.0), (lambda result, row: None, None)])
def test_a_reward_may_be_asynchronous_or_missing(agent, reward, expected):
    def program(row, base_url):
        ask(base_url, [user("a")])
        return "abc"

    (trajectory,) = play(agent, program, reward=reward)
    assert trajectory.error is None and trajectory.reward == expected


def test_a_command_finds_the_model_in_its_environment(agent, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, os, sys, urllib.request
            row = json.load(sys.stdin)
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": row["prompt"]}], "stream": True}).encode()
            address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
            lines = urllib.request.urlopen(urllib.request.Request(address, body)).read().decode().splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            print("told", "".join(event["choices"][0]["delta"].get("content") or "" for event in events))
            print(row["secret"])
            """
        )
    )
    trajectories = play(agent, [sys.executable, str(script)], rows=2)
    for number, trajectory in enumerate(trajectories):
        assert trajectory.error is None and trajectory.reward == number
        told = agent.tokenizer.decode(trajectory.turns[0].completion_ids, skip_special_tokens=True)
        assert trajectory.answer.strip() == f"told {told}\n{number}".strip()


@pytest.mark.parametrize("given", [None, lambda result, row: result == "Paris"])
def test_only_a_result_that_is_not_the_reward_is_an_answer(agent, given):
    """A program that returned the reward 1.0 had the answer "1.0", which was wrong."""

    def program(row, base_url):
        ask(base_url, [user("a")])
        return 1.0 if given is None else "Paris"

    rows = [{"prompt": "q", "answers": [["Paris"]]}] * 2
    found = evaluate_agent(agent, rows, GatewayEnvironment.factory(program, reward=given))
    assert found.statistics["reward"].mean == 1.0
    assert ("exact_match" in found.statistics) == ("success" in found.statistics) == (given is not None)
    assert sum(found.failures.values()) == (0 if given is None else 2)
    if given is not None:
        assert found.statistics["success"].mean == 1.0


def hangs(row, base_url):
    ask(base_url, [user("a")])
    time.sleep(3)


def dies(row, base_url):
    ask(base_url, [user("a")])
    raise KeyError("lost")


def never_calls(row, base_url):
    return 1.0


def wrong(row, base_url):
    return ask(base_url, [])


def no_number(row, base_url):
    return ask(base_url, [user("a")])["message"]["content"] + "x"


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (hangs, "it did not end within 1 seconds"),
        (dies, "KeyError"),
        (never_calls, "ended without a request to the model"),
        (wrong, "400: 'messages' must be a list of at least one message"),
        (no_number, "the result of the program must be a number"),
        ([sys.executable, "-c", "import sys; sys.exit('broken')"], "the command ended with status 1: broken"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "it did not end within 1 seconds"),
        (["/no/such/program"], "FileNotFoundError"),
    ],
)
def test_a_program_that_fails_costs_its_own_episode(agent, program, sentence):
    def good(row, base_url):
        ask(base_url, [user("a")])
        return 1.0

    environments = [GatewayEnvironment(good), GatewayEnvironment(program, timeout=1.0), GatewayEnvironment(good)]
    found = agent.run_batch([{"prompt": "q"}] * 3, environments, keep_failures=True)
    assert [one.error is None for one in found] == [True, False, True]
    assert sentence in found[1].error and [found[0].reward, found[2].reward] == [1.0, 1.0]


def command(tmp_path, code):
    """A command that runs code after a request to the model, with the folder as the current one."""
    script = tmp_path / "program.py"
    asks = (
        "import json, os, signal, subprocess, sys, time, urllib.request\n"
        "body = json.dumps({'messages': [{'role': 'user', 'content': 'a'}]}).encode()\n"
        "urllib.request.urlopen(urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', body)).read()\n"
        f"os.chdir({str(tmp_path)!r})\n"
    )
    script.write_text(asks + textwrap.dedent(code))
    return [sys.executable, str(script)]


def test_what_a_command_leaves_behind_ends_with_it_and_is_not_waited_for(agent, tmp_path):
    """The child holds the output of the command open."""
    began = time.monotonic()
    code = "print(subprocess.Popen(['sleep', '300']).pid)\nprint(1.0)"
    (played,) = play(agent, command(tmp_path, code), timeout=120.0)
    assert (played.error, played.reward) == (None, 1.0) and time.monotonic() - began < 100
    assert ends(int(played.answer.split()[0]))


def test_commands_that_do_not_want_to_end_stop_no_other_episode(agent, tmp_path):
    code = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(str(os.getpid()), "w").close()
        time.sleep(300)
    """
    stubborn, seen = command(tmp_path, code), []

    def good(row, base_url):
        while time.monotonic() < until:
            ask(base_url, [user("a")])
            seen.append(time.monotonic())
            time.sleep(0.25)  # fewer requests in ten seconds than an episode may make, however fast they are answered
        return 1.0

    environments = [*(GatewayEnvironment(stubborn, timeout=5.0) for _ in range(4)), GatewayEnvironment(good)]
    until = time.monotonic() + 10
    played = agent.run_batch([{"prompt": "q"}] * 5, environments, keep_failures=True)
    assert played[-1].reward == 1.0 and all("within 5 seconds" in one.error for one in played[:-1])
    assert max(later - earlier for earlier, later in pairwise(seen)) < 6.0  # each of the four had two seconds to end
    pids = [path.name for path in tmp_path.iterdir() if path.name.isdigit()]
    assert pids and all(map(ends, pids))


def test_a_command_that_is_given_up_while_it_begins_does_not_run(agent, tmp_path, monkeypatch):
    popen, begun = subprocess.Popen, []

    def late(*args, **kwargs):
        time.sleep(2.0)
        begun.append(popen(*args, **kwargs))
        return begun[-1]

    monkeypatch.setattr(program.subprocess, "Popen", late)
    (played,) = play(agent, command(tmp_path, "time.sleep(300)"), timeout=0.5)
    assert "within 0.5 seconds" in played.error
    deadline = time.monotonic() + 20
    while not begun and time.monotonic() < deadline:
        time.sleep(0.05)
    assert begun and ends(begun[0].pid)


class Slowly:
    """Takes its time for all calls of the model but the first."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls > 1:
            time.sleep(2.0)
        return self.model(*args, **kwargs)

    def playing(self):
        return self.model.playing()


def test_a_program_that_ended_in_time_has_its_result_though_another_was_being_answered(agent):
    def program(row, base_url):
        ask(base_url, [user("x")])
        if row["prompt"] == "q1":
            ask(base_url, [user("again")])
        else:
            time.sleep(0.3)
        return 1.0

    agent.rollout_batch_wait = 0.25
    agent._shared = Slowly(agent._shared)
    environments = [GatewayEnvironment(program, timeout=1.5), GatewayEnvironment(program, timeout=60.0)]
    played = agent.run_batch([{"prompt": "q0"}, {"prompt": "q1"}], environments, keep_failures=True)
    assert [(one.error, one.reward) for one in played] == [(None, 1.0), (None, 1.0)]


def test_requests_have_a_limit_and_an_episode_that_is_over_answers_nothing(agent):
    addresses = []

    def many(row, base_url):
        addresses.append(base_url)
        ask(base_url, [user("a")])
        with pytest.raises(RuntimeError, match="429: An episode may make at most 1 requests"):
            ask(base_url, [user("b")])
        return 1.0

    (trajectory,) = play(agent, many, max_requests=1)
    assert len(trajectory.turns) == 1 and trajectory.error is None
    with pytest.raises(RuntimeError, match="410: The episode of this address has ended"):
        ask(addresses[0], [user("a")])
    with pytest.raises(RuntimeError, match="410"):
        ask(addresses[0].replace(addresses[0].split("/")[-2], "0" * 32), [user("a")])


def test_what_is_sampled_does_not_depend_on_who_asks_first(agent):
    torch.manual_seed(5)
    first = play(agent, appends, rows=4)
    torch.manual_seed(5)
    again = play(agent, appends, rows=4)
    assert [[turn.completion_ids for turn in one.turns] for one in first] == [
        [turn.completion_ids for turn in one.turns] for one in again
    ]


def one_argument(row):
    return 1.0


COMMAND = r"`program` must be a function, or a command as a list of at least one text, got "


@pytest.mark.parametrize("make", [GatewayEnvironment, GatewayEnvironment.factory])
@pytest.mark.parametrize(
    ("program", "options", "error", "sentence"),
    [
        ("python x.py", {}, TypeError, rf"{COMMAND}'python x\.py'"),
        ([], {}, TypeError, rf"{COMMAND}\[\]"),
        ((), {}, TypeError, rf"{COMMAND}\(\)"),
        ([""], {}, TypeError, rf"{COMMAND}\[''\]"),
        (["python", 1], {}, TypeError, rf"{COMMAND}\['python', 1\]"),
        ({"python"}, {}, TypeError, rf"{COMMAND}\{{'python'\}}"),
        (None, {}, TypeError, rf"{COMMAND}None"),
        (one_argument, {}, TypeError, r"`program` must be a function of \(row, base_url\), got one with \(row\)"),
        (appends, {"reward": "x"}, TypeError, r"`reward` must be a function of \(result, row\), got 'x'"),
        (
            appends,
            {"reward": one_argument},
            TypeError,
            r"`reward` must be a function of \(result, row\), got one with \(row\)",
        ),
        (appends, {"timeout": 0}, ValueError, "timeout must be a number above 0, got 0"),
        (appends, {"timeout": True}, ValueError, "timeout must be a number above 0, got True"),
        (appends, {"timeout": None}, ValueError, "timeout must be a number above 0, got None"),
        (appends, {"timeout": "60"}, ValueError, "timeout must be a number above 0, got '60'"),
        (appends, {"timeout": float("nan")}, ValueError, "timeout must be a number above 0, got nan"),
        (appends, {"max_requests": 0}, ValueError, "max_requests must be a whole number of at least 1, got 0"),
        (appends, {"max_requests": 1.5}, ValueError, r"max_requests must be a whole number of at least 1, got 1\.5"),
        (appends, {"max_requests": True}, ValueError, "max_requests must be a whole number of at least 1, got True"),
        (appends, {"timeot": 60}, TypeError, "unexpected keyword argument 'timeot'"),
    ],
)
def test_bad_arguments_are_one_sentence_before_an_episode_begins(make, program, options, error, sentence):
    with pytest.raises(error, match=sentence):
        make(program, **options)


def test_arguments_that_can_be_played_are_taken():
    class Program:
        def __call__(self, row, base_url, *, extra=1):
            return 1.0

    taken = [(Program(), {}), (print, {"reward": max}), (("python", "-c", ""), {"timeout": np.float32(2)})]
    for given, options in [*taken, (appends, {"max_requests": np.int64(3), "timeout": float("inf")})]:
        make = GatewayEnvironment.factory(given, **options)
        assert make() is not make() and isinstance(GatewayEnvironment(given, **options), GatewayEnvironment)


@pytest.mark.slow
def test_a_trainer_learns_from_a_program(actor, tokenizer, tmp_path):
    from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

    def program(row, base_url):
        messages = [user("say")]
        said = ask(base_url, messages, max_tokens=6)["message"]
        second = ask(base_url, [*messages, said, user("again")], max_tokens=6)["message"]
        text = said["content"] + second["content"]
        return text.count("t") / max(len(text), 1)

    args = Mem1GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=6,
        max_turns=4,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        seed=0,
    )
    data = Dataset.from_dict({"prompt": ["q"] * 8})
    trainer = Mem1GRPOTrainer(
        model=actor,
        processing_class=tokenizer,
        args=args,
        train_dataset=data,
        environment_factory=GatewayEnvironment.factory(program),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert all(entry.get("sampling/max_logp_difference", 0) < 1e-3 for entry in trainer.state.log_history)


@pytest.mark.parametrize("how", ["run", "start", "stream"])
def test_a_program_is_not_played_turn_by_turn(agent, how):
    """Without its program the episode would end with the reward of before it."""
    environment = GatewayEnvironment(appends)
    with pytest.raises(
        ValueError,
        match=r"GatewayEnvironment plays its episodes itself, not turn by turn: play them with `agent.run_batch",
    ):
        found = getattr(agent, how)("q", environment, secret="1")
        list(found)


def test_seconds_of_programs_are_those_of_their_batch(agent):
    began = time.perf_counter()
    trajectories = play(agent, appends, rows=2)
    spent = time.perf_counter() - began
    seconds = [one.metrics["seconds"] for one in trajectories]
    assert min(seconds) > 0 and 0.5 * spent < sum(seconds) <= spent


def test_tags_of_a_saved_protocol_have_no_meaning_for_a_program(actor, tokenizer):
    protocol = Mem1Protocol(action_tags={"search": "search"})
    (played,) = play(Mem1Agent(actor, tokenizer, protocol, **SETTINGS), appends)
    assert played.error is None and played.stop_reason is StopReason.DONE and len(played.turns) == 3
