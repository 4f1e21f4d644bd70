"""
Episodes that wait for each other, and episodes that do not: wall time under slow environments, and steps of decoding.

    python benchmarks/waiting.py --threads 1      # some minutes, nearly all of them spent waiting

1. `Mem1Agent` plays 64 episodes of 16 turns with a tiny scripted model (`scripted.py`). The time that each action takes is drawn once,
   from a log-normal distribution with the given median and 99th percentile, and is the same in all variants: `lockstep`,
   `async`, and the baseline, the episode whose actions take longest, played alone. No schedule can be faster than that one.
2. Steps of decoding, simulated: lengths of turns and times of actions are drawn from such distributions, and one step gives each
   sequence that is being generated one more token. `lockstep` and `async` as they are here (a call of the model returns when a
   quarter of its sequences have ended, and the next goes on with the others), calls that go on to the end of the longest, as of
   TRL's vLLM, and an engine that admits a sequence in any step (continuous batching), as vLLM's server does.
3. The same with a model that really decodes, whose turns are of different lengths, and actions that take no time.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from options import parse_arguments
from report import Report
from scripted import WORDS, make_model, make_tokenizer, word, words
from timing import Timing, compare
from transformers import LlamaConfig, LlamaForCausalLM

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.rollout.as_ready import LEAVE_AT
from mem1_trl.rollout.draws import uniform_draws
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.stopping import Completion

SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=4096,
)
PROTOCOL = Mem1Protocol(
    instructions="{prompt}\n{actions}", hint_template="", last_hint_template="", over_hint_template=""
)
_PERCENTILE_99 = 2.3263478740408408  # standard deviations


class Slow:
    """Answers each search after the time that was drawn for it."""

    def __init__(self, seconds: list[float]):
        self.seconds = seconds

    def reset(self, **row: Any) -> None:
        """Start an episode."""
        self.searches = 0

    def search(self, query: str) -> str:
        """
        Search.

        Args:
            query: A few keywords.
        """
        time.sleep(self.seconds[self.searches])
        self.searches += 1
        return words(20)


def draw(median: float, percentile_99: float, episodes: int, turns: int, seed: int) -> list[list[float]]:
    """Log-normal numbers, one for each turn of each episode."""
    generator = random.Random(seed)
    deviation = math.log(percentile_99 / median) / _PERCENTILE_99
    return [[generator.lognormvariate(math.log(median), deviation) for _ in range(turns)] for _ in range(episodes)]


def wall_time(args: argparse.Namespace, report: Report) -> None:
    """All variants with actions that really take their time."""
    tokenizer = make_tokenizer()
    script = f"<think>{words(args.completion - 5)}</think><search>{word(700)}</search>"
    frame = PROTOCOL.observation_frame(1)
    model = make_model(tokenizer, script, ["<|im_start|>assistant\n", frame[1]], **SIZES)
    seconds = draw(args.median, args.percentile_99, args.episodes, args.turns, seed=0)
    longest = max(seconds, key=sum)
    facts: dict[str, dict[str, Any]] = {}

    def play(name: str, mode: str, seconds: list[list[float]]) -> int:
        agent = Mem1Agent(
            model,
            tokenizer,
            PROTOCOL,
            max_turns=args.turns,
            max_completion_length=args.completion + 8,
            max_observation_length=200,
            batch_size=args.episodes,
            environment_concurrency=args.episodes,
            rollout_mode=mode,
        )
        steps = calls = 0

        def count(module: Any, inputs: Any) -> None:
            nonlocal steps
            steps += 1

        generate = agent.generate

        class Counted:
            def __call__(self, *given: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                return generate(*given, **options)

            def __getattr__(self, attribute: str) -> Any:
                return getattr(generate, attribute)

        agent.generate = Counted()  # type: ignore[assignment]
        handle = model.get_input_embeddings().register_forward_pre_hook(count)
        try:
            played = agent.run_batch([{"prompt": "Task"}] * len(seconds), [Slow(own) for own in seconds])
        finally:
            handle.remove()
        turns = sum(len(trajectory.turns) for trajectory in played)
        if turns != args.turns * len(seconds):
            raise SystemExit(f"{turns} turns are not what was planned: the script went wrong")
        facts[name] = {"turns": turns, "generations": calls, "forward_passes": steps}
        return turns

    alone = "longest episode alone"
    variants = {
        alone: partial(play, alone, "lockstep", [longest]),
        "async": partial(play, "async", "async", seconds),
        "lockstep": partial(play, "lockstep", "lockstep", seconds),
    }
    timings = compare(variants, args.repeats, alone, warmup=0, label="wall time")
    facts[alone]["actions_alone"] = sum(longest)
    settings = {
        "episodes": args.episodes,
        "turns": args.turns,
        "median": args.median,
        "percentile 99": args.percentile_99,
    }
    report.add(f"{args.episodes} episodes, {args.turns} turns", timings, alone, settings, facts)


def lockstep(lengths: list[list[int]], pauses: list[list[int]]) -> tuple[int, int]:
    """Steps of decoding, and steps until the last episode has ended: in each turn the longest sequence and the slowest action decide."""
    steps = sum(max(turn) for turn in zip(*lengths))
    return steps, steps + sum(max(turn) for turn in zip(*pauses))


def in_calls(lengths: list[list[int]], pauses: list[list[int]], share: int = 1) -> tuple[int, int]:
    """The same if a call takes all that are ready and returns when one in `share` of them has ended; the next goes on with the others."""
    ready = [
        (0, episode, 0, own[0]) for episode, own in enumerate(lengths)
    ]  # when, who, which turn, what is left of it
    now = steps = end = 0
    while ready:
        now = max(now, min(ready)[0])
        batch = [one for one in ready if one[0] <= now]
        ready = [one for one in ready if one[0] > now]
        taken = sorted(left for *_, left in batch)[-(-len(batch) // share) - 1]
        now, steps = now + taken, steps + taken
        for _, episode, turn, left in batch:
            if left > taken:
                ready.append((now, episode, turn, left - taken))
                continue
            end = max(end, now + pauses[episode][turn])
            if turn + 1 < len(lengths[episode]):
                ready.append((now + pauses[episode][turn], episode, turn + 1, lengths[episode][turn + 1]))
    return steps, end


def with_admission(lengths: list[list[int]], pauses: list[list[int]]) -> tuple[int, int]:
    """The same if sequences come and go in any step, so that each episode goes on by itself."""
    spans, last = [], 0
    for own, waits in zip(lengths, pauses):
        now = 0
        for length, wait in zip(own, waits):
            spans.append((now, now + length))
            now += length + wait
        last = max(last, now)
    steps = end = 0
    for begin, until in sorted(spans):
        steps += max(0, until - max(begin, end))
        end = max(end, until)
    return steps, last


def decoding(args: argparse.Namespace, report: Report) -> None:
    """Simulated steps of decoding, with actions that take no time and with slow ones."""
    lengths = [
        [max(1, round(length)) for length in own]
        for own in draw(args.length, args.length_99, args.episodes, args.turns, seed=1)
    ]
    latencies = draw(args.median, args.percentile_99, args.episodes, args.turns, seed=0)
    speed = args.steps_per_second
    schedules: dict[str, Callable[..., Any]] = {
        "lockstep": lockstep,
        "async": partial(in_calls, share=LEAVE_AT),
        "async, calls that go on to the longest": in_calls,
        "async, continuous admission": with_admission,
    }
    for name, factor in (("actions take no time", 0.0), ("slow actions", speed)):
        pauses = [[round(seconds * factor) for seconds in own] for own in latencies]
        found = {variant: schedule(lengths, pauses) for variant, schedule in schedules.items()}
        values = {
            variant: {"decoding_steps": steps, "lockstep_steps_over_these": found["lockstep"][0] / steps}
            for variant, (steps, _) in found.items()
        }
        timings = {variant: Timing([end / speed], [end / speed]) for variant, (_, end) in found.items()}
        settings = {"median length": args.length, "percentile 99": args.length_99, "steps per second": speed}
        report.add(f"simulated: {name}", timings, "lockstep", settings, values)


def decoded(args: argparse.Namespace, report: Report) -> None:
    """Processor time of turns of different lengths: an untrained model, each of whose tokens is one of a few that end the turn or not."""
    tokenizer = make_tokenizer()
    sizes = {
        **SIZES,
        "hidden_size": args.hidden_size,
        "intermediate_size": 2 * args.hidden_size,
        "num_hidden_layers": args.layers,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely as every other
    ends = [word(WORDS - 1 - number) for number in range(round(len(tokenizer) / args.length))]  # none begins another
    facts: dict[str, dict[str, Any]] = {}

    def play(name: str, share: int | None) -> int:
        settings = AgentSettings(max_completion_length=round(args.length_99), temperature=1.0)
        count = args.episodes
        generate = TransformersGenerator(model, tokenizer, settings, batch_size=count, parked=count)
        generator = random.Random(0)

        def some(tokens: int) -> list[int]:
            return [generator.randrange(2, len(tokenizer)) for _ in range(tokens)]

        prompts = [some(100) for _ in range(count)]
        observed = [[some(60) for _ in range(args.turns)] for _ in range(count)]
        contexts, turn = dict(enumerate(prompts)), [0] * count
        begun: dict[int, Completion] = {}
        steps = tokens = 0

        def note(*_: Any) -> None:
            nonlocal steps
            steps += 1

        handle = model.register_forward_pre_hook(note)
        while contexts:
            now = list(contexts)
            draws = [uniform_draws(one, turn[one], settings.max_completion_length) for one in now]
            early: dict[str, Any] = {}
            if share is not None:
                early = {"begun": [begun.get(one) for one in now], "leave": -(-len(now) // share)}
            found = generate([contexts[one] for one in now], [ends] * len(now), draws, **early)
            begun = {one: done for one, done in zip(now, found) if done.unfinished}
            for one, done in zip(now, found):
                if done.unfinished:
                    continue
                tokens += len(done.ids)
                turn[one] += 1
                contexts[one] = [*prompts[one], *done.ids, *observed[one][turn[one] - 1]]
                if turn[one] == args.turns:
                    del contexts[one]
        handle.remove()
        facts[name] = {"tokens": tokens, "forward_passes": steps}
        return tokens

    whole = "calls that go on to the longest"
    variants = {"async": partial(play, "async", LEAVE_AT), whole: partial(play, whole, None)}
    timings = compare(variants, args.repeats, whole, warmup=0)
    if len({one["tokens"] for one in facts.values()}) > 1:
        raise SystemExit("the variants must sample the same tokens")
    settings = {"episodes": args.episodes, "turns": args.turns, "hidden size": args.hidden_size, "layers": args.layers}
    report.add(f"decoding: width {args.hidden_size}", timings, whole, settings, facts)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--episodes", type=int, default=64)
        parser.add_argument("--turns", type=int, default=16)
        parser.add_argument("--completion", type=int, default=16, help="tokens of a turn of the scripted model")
        parser.add_argument("--median", type=float, default=0.2, help="seconds of an action")
        parser.add_argument("--percentile-99", type=float, default=5.0, help="seconds of an action")
        parser.add_argument("--length", type=float, default=100.0, help="simulation: median tokens of a turn")
        parser.add_argument("--length-99", type=float, default=500.0, help="simulation: 99th percentile")
        parser.add_argument("--hidden-size", type=int, default=256, help="of the model that decodes")
        parser.add_argument("--layers", type=int, default=4, help="of the model that decodes")
        parser.add_argument("--steps-per-second", type=float, default=40.0, help="simulation: speed of decoding")

    args = parse_arguments(__doc__, add, repeats=2)
    if args.smoke:
        args.episodes, args.turns, args.median, args.percentile_99 = 4, 2, 0.01, 0.05
        args.hidden_size, args.layers = 32, 1
    names = ("completion", "length", "length_99", "steps_per_second")
    report = Report("waiting", args, {**{name: getattr(args, name) for name in names}, "model": dict(SIZES)})
    wall_time(args, report)
    decoding(args, report)
    decoded(args, report)
    report.finish()


if __name__ == "__main__":
    main()
