"""Long worlds in text: each adapter's behaviour, and episodes of fifty turns and more whose context stays flat."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.corridor import Corridor, read_the_wall
from support.ports import held_port
from support.trainer_helpers import SHORT, ScriptedGenerator

from mem1_trl import StopReason, Trajectory
from mem1_trl.environment_runtime.actions import ActionSet, action_methods
from mem1_trl.environments import (
    GymnasiumEnvironment,
    OpenEnvEnvironment,
    ScienceWorldEnvironment,
    TextWorldExpressEnvironment,
)
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout


def needs(package: str, *programs: str) -> pytest.MarkDecorator:
    missing = [package] if importlib.util.find_spec(package) is None else []
    missing += [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "worlds.md"
MARKER = "<!-- PYTHONPATH=tests python tests/environments/test_text_worlds.py -->"

needs_gymnasium = needs("gymnasium")
needs_textworld_express = needs("textworld_express", "java")
needs_scienceworld = needs("scienceworld", "java")
needs_openenv = needs("openenv")


def play(
    tokenizer: Any,
    environment: Any,
    choose: Callable[[int, str], str],
    context: str = "mem1",
    max_turns: int = 150,
    **row: Any,
) -> Trajectory:
    """An episode in which `choose(turn, text of the context)` says what to do, through the real turn loop."""
    prompt = "Go." + environment.reset(prompt="Go.", **row)
    (tag,) = action_methods(environment)

    def script(call: int, index: int, text: str) -> str:
        return f"<think>turn {call}</think><{tag}>{choose(call, text)}</{tag}>"

    settings = AgentSettings(max_turns=max_turns, max_observation_length=1500, context=context)
    rollout = Rollout(tokenizer, SHORT, settings, ScriptedGenerator(tokenizer, script))
    episode = Episode(tokenizer(prompt)["input_ids"], environment, ActionSet(environment, SHORT))
    [trajectory] = rollout.run([episode])
    return trajectory


def assert_flat(trajectory: Trajectory, twin: Trajectory, turns: int = 50) -> None:
    """The episode is long, its contexts hold the prompt and one turn, and its full-history twin grows with every turn."""
    # Worlds with chance in them (plants that grow) do not play out the same twice: each is held against itself
    assert min(len(trajectory.turns), len(twin.turns)) >= turns
    assert all(one.action_input == other.action_input for one, other in zip(trajectory.turns, twin.turns))
    prompt = len(trajectory.turns[0].prompt_ids)
    flat = [len(turn.prompt_ids) - prompt for turn in trajectory.turns[1:]]
    grown = [len(turn.prompt_ids) - prompt for turn in twin.turns[1:]]
    left, left_by_twin = (
        [len(turn.completion_ids) + turn.observation_tokens for turn in played.turns[:-1]]
        for played in (trajectory, twin)
    )
    assert flat == left  # what the last turn left behind, and nothing else
    assert grown == [sum(left_by_twin[: i + 1]) for i in range(len(left_by_twin))]
    middle = len(flat) // 2
    assert max(flat[middle:]) < 1.5 * max(flat[:middle])
    assert grown[-1] > 20 * sum(flat) / len(flat)


# --- Gymnasium ------------------------------------------------------------------------------------------------------------


def corridor_env(length: int = 60, space: str = "text") -> Any:
    """The corridor as a Gymnasium environment."""
    import string

    import gymnasium
    from gymnasium.spaces import Dict, Discrete, Text

    class CorridorEnv(gymnasium.Env):
        action_space = Text(32)
        closed = False

        def __init__(self):
            line = Text(200, charset=string.printable)
            self.observation_space = Dict({"seen": line, "door": Discrete(100)}) if space == "dict" else line
            self.corridor = Corridor(length)

        def see(self, text: str) -> Any:
            return {"seen": text, "door": self.corridor.passed} if space == "dict" else text

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.see(self.corridor.begin(seed)), {}

        def step(self, action):
            text, reward = self.corridor.say(action)
            return self.see(text), reward, self.corridor.done, False, {}

        def close(self):
            self.closed = True

    return CorridorEnv()


def play_gymnasium(tokenizer: Any) -> list[Trajectory]:
    played = []
    for context in ("mem1", "full"):
        environment = GymnasiumEnvironment.factory(corridor_env)()
        played.append(play(tokenizer, environment, lambda turn, text: read_the_wall(text), context, seed=5))
        assert environment.get_reward() == pytest.approx(1.0) and environment.done
    return played


@needs_gymnasium
def test_sixty_turns_of_gymnasium_at_flat_context(tokenizer):
    played = play_gymnasium(tokenizer)
    assert_flat(*played)
    assert played[0].stop_reason == StopReason.DONE


@needs_gymnasium
def test_text_spaces_need_nothing():
    environment = GymnasiumEnvironment(lambda: corridor_env(2))
    first = environment.reset(seed=1)
    assert first.startswith("You stand before door 1 of 2. On the wall you read: ")
    assert environment.reset(prompt=[{"role": "user", "content": "Go."}], seed=1) == f"\n\n{first}"
    assert environment.act("nonsense").startswith("Nothing happens.")
    assert (environment.get_reward(), environment.done) == (0.0, False)
    second = environment.act(read_the_wall(first))
    assert environment.get_reward() == 0.5
    assert environment.act(f" {read_the_wall(second)} ") == "The door opens. You are outside."
    assert (environment.get_reward(), environment.done) == (1.0, True)
    assert environment.act("x") == "The episode is over." and environment.get_reward() == 1.0
    environment.reset(seed=1)
    assert (environment.get_reward(), environment.done) == (0.0, False)


@needs_gymnasium
def test_dictionaries_with_text_are_told_line_by_line():
    environment = GymnasiumEnvironment(lambda: corridor_env(2, "dict"))
    lines = environment.reset(seed=1).splitlines()
    assert [line.split(":")[0] for line in sorted(lines)] == ["door", "seen"]
    assert "door: 0" in lines


@needs_gymnasium
def test_named_actions_and_what_the_environment_renders():
    pytest.importorskip("gymnasium.envs.toy_text")
    names = ["left", "down", "right", "up"]
    make = GymnasiumEnvironment.factory(
        "FrozenLake-v1", actions=names, render_mode="ansi", is_slippery=False, map_name="4x4"
    )
    environment = make()
    first = environment.reset(seed=0)
    assert "FFFH" in first and first.endswith("Actions: left, down, right, up.")
    assert environment.act("sideways") == "There is no action 'sideways'. Actions: left, down, right, up."
    for action in ("Down", "down", "right", "right", "down", "right"):
        assert not environment.done
        seen = environment.act(action)
    assert "(Right)" in seen
    assert environment.done and environment.get_reward() == 1.0


@needs_gymnasium
def test_numbers_with_a_describer(tokenizer):
    places = ("red", "green", "yellow", "blue", "taxi")

    import gymnasium

    taxi = max(name for name in gymnasium.registry if name.startswith("Taxi-"))
    decoder = gymnasium.make(taxi).unwrapped

    def describe(observation, info):
        row, column, passenger, goal = decoder.decode(observation)
        return f"row {row}, column {column}, passenger at {places[passenger]}, going to {places[goal]}"

    environment = GymnasiumEnvironment(taxi, describe=describe, actions={"Wait here": 4, "south": 0})
    first = environment.reset(seed=3)
    assert first.startswith("row ") and first.endswith("Actions: wait here, south.")
    assert environment.reset(seed=3) == first
    row = int(first.split()[1].strip(","))
    assert environment.act("SOUTH").startswith(f"row {min(row + 1, 4)},")
    assert environment.get_reward() == -1.0
    environment.act("wait here")  # a pick-up where nobody is
    assert environment.get_reward() == -11.0
    unnamed = GymnasiumEnvironment(taxi, describe=describe)
    assert unnamed.reset(seed=3).endswith("Actions: 0, 1, 2, 3, 4, 5.")
    # A time limit ends an episode too: Taxi's is 200 steps
    trajectory = play(tokenizer, environment, lambda turn, text: "south", max_turns=250, seed=3)
    assert len(trajectory.turns) == 200 and trajectory.stop_reason == StopReason.DONE


@needs_gymnasium
def test_an_environment_without_words_is_refused():
    with pytest.raises(
        ValueError, match="observations of this environment are a Discrete, not text: pass `describe=`"
    ):
        GymnasiumEnvironment("FrozenLake-v1")
    with pytest.raises(
        ValueError, match="`actions` must name every action of the environment, got 2 names for 4 actions"
    ):
        GymnasiumEnvironment("FrozenLake-v1", render_mode="ansi", actions=["left", "right"])
    with pytest.raises(ValueError, match="actions of this environment are a Box and have no names"):
        GymnasiumEnvironment("Pendulum-v1", describe=lambda observation, info: "x")
    with pytest.raises(TypeError, match=r"'render_mode' is an argument of gymnasium\.make"):
        GymnasiumEnvironment(corridor_env, render_mode="ansi")
    with pytest.raises(RuntimeError, match="call `reset` first"):
        GymnasiumEnvironment(corridor_env).act("x")


@needs_gymnasium
def test_close_is_no_action_and_closes():
    environment = GymnasiumEnvironment(corridor_env)
    assert set(action_methods(environment)) == {"act"}
    environment.close()
    assert environment._env.closed
    assert callable(type(environment).close)  # how a pool knows that there is something to close


# --- TextWorldExpress -----------------------------------------------------------------------------------------------------

KITCHEN = "numLocations=11,numIngredients=5,numDistractorItems=10,includeDoors=1,limitInventorySize=1"


@pytest.fixture(scope="module")
def textworld():
    environment = TextWorldExpressEnvironment("cookingworld", KITCHEN, max_steps=120)
    yield environment
    environment.close()


def play_textworld_express(tokenizer: Any, environment: TextWorldExpressEnvironment) -> list[Trajectory]:
    solution = environment.solution(seed=3)
    played = []
    for context in ("mem1", "full"):
        played.append(play(tokenizer, environment, lambda turn, text: solution[turn], context, seed=3))
        assert environment.get_reward() == 1.0 and environment.done
    return played


@needs_textworld_express
def test_fifty_turns_of_cooking_at_flat_context(tokenizer, textworld):
    played = play_textworld_express(tokenizer, textworld)
    assert_flat(*played)
    assert played[0].stop_reason == StopReason.DONE


@needs_textworld_express
def test_credit_grows_with_the_meal(textworld):
    solution = textworld.solution(seed=3)
    textworld.reset(seed=3)
    rewards = []
    for command in solution:
        textworld.act(command)
        rewards.append(textworld.get_reward())
    assert rewards[0] == 0.0 and rewards[-1] == 1.0
    assert len(set(rewards)) > 5 and rewards == sorted(rewards)
    assert textworld.act("dance") == "The episode is over."


@needs_textworld_express
def test_a_game_is_told_with_its_task_and_what_can_be_done(textworld):
    first = textworld.reset(prompt="Cook.", seed=3)
    assert first.startswith("\n\nYou are hungry! Let's cook a delicious meal.")
    assert "\nValid actions: " in first and "take cookbook" in first.split("Valid actions: ")[1]
    assert textworld.reset(seed=3) == first.strip("\n")  # equal seeds are equal games
    coins = textworld.reset(game="coin", game_params="numLocations=2,numDistractorItems=0,includeDoors=0", seed=1)
    assert "coin" in coins.split("\n")[0]
    assert "hungry" in textworld.reset(seed=3)  # a row that names no game gets the instance's again
    with pytest.raises(ValueError, match=r"Unknown game \(chess\)"):
        textworld.reset(game="chess")
    with pytest.raises(ValueError, match="fold must be one of 'train', 'dev', 'test', got 'all'"):
        TextWorldExpressEnvironment(fold="all")
    assert set(action_methods(textworld)) == {"act"}


@needs_textworld_express
def test_a_dead_process_is_replaced_and_a_closed_one_is_gone(caplog):
    environment = TextWorldExpressEnvironment(
        "coin", "numLocations=2,numDistractorItems=0,includeDoors=0", max_steps=2
    )
    with pytest.raises(RuntimeError, match="call `reset` first"):
        environment.act("look around")
    first = environment.reset(seed=1)
    process = environment._simulator._gateway.java_process
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="Java process of TextWorldExpressEnvironment has died"):
        environment.act("look around")
    assert environment.reset(seed=1) == first
    for _ in range(3):
        environment.act("inventory")
    assert environment.done and environment.get_reward() == 0.0  # out of steps
    process = environment._simulator._gateway.java_process
    environment.close()
    assert process.poll() is not None
    environment.close()  # once more does no harm
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- ScienceWorld ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def science():
    environment = ScienceWorldEnvironment("find-animal", max_steps=150)
    yield environment
    environment.close()


def play_scienceworld(tokenizer: Any, environment: ScienceWorldEnvironment) -> list[Trajectory]:
    solution = environment.solution(task="grow-fruit")
    played = []
    for context in ("mem1", "full"):
        played.append(play(tokenizer, environment, lambda turn, text: solution[turn], context, task="grow-fruit"))
        assert environment.get_reward() == 1.0 and environment.done
    return played


@pytest.mark.slow
@needs_scienceworld
def test_fifty_turns_of_gardening_at_flat_context(tokenizer, science):
    assert_flat(*play_scienceworld(tokenizer, science))


# The solution of find-animal, variation 1, as ScienceWorld gives it; finding it takes seconds
TO_THE_DOVE = [
    *("open door to hallway", "go to hallway", "open door to greenhouse", "go to greenhouse", "open door to outside"),
    *("go to outside", "look around", "focus on dove", "pick up dove", "open door to kitchen", "go to kitchen"),
    "move egg dove egg in inventory to green box",
]


@needs_scienceworld
def test_partial_credit_and_rows(science):
    first = science.reset(prompt="Do it.", variation=1)
    assert first.startswith("\n\nYour task is to find a(n) animal.")
    assert "open OBJ" in first and "This room is called" in first
    assert science.get_reward() == 0.0
    rewards = [(science.act(command), science.get_reward())[1] for command in TO_THE_DOVE]
    assert rewards == sorted(rewards) and rewards[-5] == 0.67 and rewards[-1] == 1.0
    assert science.done and science.act("look around") == "The episode is over."


@needs_scienceworld
def test_a_fatal_mistake_ends_the_episode_without_reward(science):
    science.reset(variation=0)
    seen = science.act("focus on agent")
    assert science.done and science.get_reward() == 0.0, seen


@needs_scienceworld
def test_unknown_tasks_and_variations_are_refused(science):
    with pytest.raises(ValueError, match="Unknown taskName"):
        science.reset(task="bake")
    with pytest.raises(ValueError, match=r"variation must be between 0 and 299 for the task .*, got 300"):
        science.reset(variation=300)
    with pytest.raises(ValueError, match="Unknown simplification"):
        science.reset(simplifications="free")
    assert set(action_methods(science)) == {"act"}


# --- OpenEnv --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve_corridor() -> Iterator[str]:
    """The address of a real OpenEnv server in a process of its own."""
    script = Path(__file__).parents[1] / "scripts" / "openenv_corridor.py"
    with held_port() as port:
        process = subprocess.Popen([sys.executable, str(script), str(port)])
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def openenv_server():
    with serve_corridor() as address:
        yield address


def play_openenv(tokenizer: Any, address: str) -> list[Trajectory]:
    make = OpenEnvEnvironment.factory(address, action="word", describe="text")
    played = []
    for context in ("mem1", "full"):
        environment = make()
        played.append(play(tokenizer, environment, lambda turn, text: read_the_wall(text), context, seed=5))
        assert environment.get_reward() == pytest.approx(1.0) and environment.done
        environment.close()
    return played


@pytest.mark.slow
@needs_openenv
def test_sixty_turns_over_a_real_server_at_flat_context(tokenizer, openenv_server):
    assert_flat(*play_openenv(tokenizer, openenv_server))


@pytest.mark.slow
@needs_openenv
def test_sessions_do_not_meet_and_columns_reach_the_server(openenv_server):
    make = OpenEnvEnvironment.factory(openenv_server, action="word", reset_columns=("seed", "length"), reward="last")
    one, other = make(), make()
    first = one.reset(prompt="Go.", seed=1, length=2, irrelevant=object())
    assert first.startswith(
        "\n\nYou stand before door 1 of 2."
    )  # the only field that is no bookkeeping, without its name
    assert other.reset(seed=2, length=3).startswith("You stand before door 1 of 3.")
    second = one.act(read_the_wall(first))
    assert "door 2 of 2" in second and one.get_reward() == 0.5
    assert other.act("wrong").startswith("Nothing happens.") and other.get_reward() == 0.0
    one.act(read_the_wall(second))
    assert one.done and one.get_reward() == 0.5 and one.act("x") == "The episode is over."  # the last, not the sum
    for environment in (one, other):
        environment.close()
    assert one.reset(seed=1, length=2) == first.strip("\n")  # a closed one connects again
    one.close()


@needs_openenv
def test_a_server_that_does_not_answer():
    with held_port() as port, pytest.raises(ConnectionError, match="Failed to connect"):
        OpenEnvEnvironment(f"http://127.0.0.1:{port}", action="word").reset()


class Result:
    def __init__(self, observation, reward=None, done=False):
        self.observation, self.reward, self.done = observation, reward, done


class CountingClient:
    """A client in OpenEnv's form that is none of OpenEnv's."""

    def reset(self, **kwargs):
        self.kwargs, self.count = kwargs, 0
        return Result({"count": 0, "note": "start", "reward": None})

    def step(self, action):
        self.count += action["add"]
        return Result({"count": self.count, "note": None, "done": False}, reward=0.5, done=self.count > 3)


def test_any_client_of_that_form_will_do():
    environment = OpenEnvEnvironment(CountingClient, action=lambda text: {"add": int(text)})
    assert environment.reset(seed=4, other=1) == "count: 0\nnote: start"
    assert environment._client.kwargs == {"seed": 4}
    assert environment.act("2") == "2"
    environment.act("2")
    assert environment.done and environment.get_reward() == 1.0
    environment.close()  # a client without `close` has nothing to close
    told = OpenEnvEnvironment(
        CountingClient, action=lambda text: {"add": 1}, describe=lambda seen: f"<{seen['count']}>"
    )
    assert (told.reset(), told.act("x")) == ("<0>", "<1>")
    with pytest.raises(ValueError, match=r"no field 'text' \(it has 'count', 'note', 'reward'\)"):
        OpenEnvEnvironment(CountingClient, "add", describe="text").reset()
    with pytest.raises(ValueError, match="reward must be 'sum' or 'last', got 'mean'"):
        OpenEnvEnvironment(CountingClient, "add", reward="mean")
    with pytest.raises(RuntimeError, match="call `reset` first"):
        OpenEnvEnvironment(CountingClient, "add").act("1")
    assert set(action_methods(environment)) == {"act"}


def test_an_asynchronous_client_is_made_synchronous():
    class Asynchronous:
        async def reset(self, **kwargs):
            await asyncio.sleep(0)
            return Result("hello")

    with pytest.raises(TypeError, match=r"Asynchronous is asynchronous and has no `sync\(\)`"):
        OpenEnvEnvironment(Asynchronous, "add").reset()

    class Wrapped(Asynchronous):
        def sync(self):
            return CountingClient()

    assert OpenEnvEnvironment(Wrapped, "add").reset() == "count: 0\nnote: start"


# --- Without the extras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "make", "match"),
    [
        ("gymnasium", lambda: GymnasiumEnvironment("x"), r"needs the package gymnasium.*mem1-trl\[gymnasium\]"),
        ("textworld_express", TextWorldExpressEnvironment, r"mem1-trl\[textworld-express\]"),
        ("scienceworld", ScienceWorldEnvironment, r"mem1-trl\[scienceworld\]"),
        ("openenv", lambda: OpenEnvEnvironment("http://x", "y"), r"mem1-trl\[openenv\]"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, package, make, match):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=match):
        make()


@needs("textworld_express")
def test_missing_java_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs Java 17 or later"):
        TextWorldExpressEnvironment()


def write_page() -> None:
    """Play all long episodes and write the table of docs/worlds.md."""
    from support.trainer_helpers import chat_tokenizer

    tokenizer = chat_tokenizer()
    played = {"Gymnasium, a corridor of 60 doors": play_gymnasium(tokenizer)}
    kitchen = TextWorldExpressEnvironment("cookingworld", KITCHEN, max_steps=120)
    played["TextWorldExpress, `cookingworld` with 11 rooms"] = play_textworld_express(tokenizer, kitchen)
    kitchen.close()
    garden = ScienceWorldEnvironment(max_steps=150)
    played["ScienceWorld, `grow-fruit`"] = play_scienceworld(tokenizer, garden)
    garden.close()
    with serve_corridor() as address:
        played["OpenEnv, the corridor behind a server"] = play_openenv(tokenizer, address)
    rows = ["| world | turns | mean | peak | peak with the whole history |", "|---|---|---|---|---|"]
    for name, pair in played.items():
        sizes = [[len(turn.prompt_ids) - len(t.turns[0].prompt_ids) for turn in t.turns[1:]] for t in pair]
        mean = statistics.mean(sizes[0])
        rows.append(f"| {name} | {len(pair[0].turns)} | {mean:,.0f} | {max(sizes[0]):,} | {max(sizes[1]):,} |")
    before, after = PAGE.read_text(encoding="utf-8").split(MARKER)
    PAGE.write_text(f"{before}{MARKER}\n" + "\n".join(rows) + "\n" + after[after.find("\n\n") + 1 :], encoding="utf-8")


if __name__ == "__main__":
    write_page()


@pytest.mark.parametrize("actions", [["Up", "up"], {"Up": 0, "up ": 1}, ["", "up"], "ab"])
def test_names_of_actions_that_cannot_be_told_apart_are_refused(actions):
    gym = pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match="`actions` must be names of which no two differ in case or space alone"):
        GymnasiumEnvironment(lambda: two_doors(gym), actions=actions)


def test_a_named_action_is_one_of_the_environment_and_space_around_it_does_not_matter():
    gym = pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"The action 'left' must be one of Discrete.2., got 2"):
        GymnasiumEnvironment(lambda: two_doors(gym), actions={"left": 2})
    with pytest.raises(ValueError, match="`actions` must name at least one action, got none"):
        GymnasiumEnvironment(lambda: two_doors(gym), actions={})
    environment = GymnasiumEnvironment(lambda: two_doors(gym), actions=["left ", " Right"])
    assert environment.reset().endswith("Actions: left, right.")
    assert environment.act("right") == "door 1" and environment.act(" LEFT ") == "door 0"


def two_doors(gym):
    """An environment with two actions, which says which one was taken."""

    class Doors(gym.Env):
        action_space = gym.spaces.Discrete(2)
        observation_space = gym.spaces.Text(10)
        render_mode = None

        def reset(self, *, seed=None, options=None):
            return "doors", {}

        def step(self, action):
            return f"door {action}", 0.0, False, False, {}

    return Doors()


def test_a_row_that_names_the_game_of_the_instance_keeps_its_parameters(monkeypatch):
    asked = []
    environment = object.__new__(TextWorldExpressEnvironment)  # without the package
    environment._game, environment._params, environment._fold = "cookingworld", KITCHEN, "train"
    stub = type(
        "Stub", (), {"seed": None, "reset": lambda self, **given: asked.append(given["gameParams"]) or ("", {})}
    )
    monkeypatch.setattr(TextWorldExpressEnvironment, "_running", lambda self: stub())
    for game in (None, "cookingworld", "coin"):
        environment._begin(1, game, None, None, solve=False)
    assert asked == [KITCHEN, KITCHEN, ""]
