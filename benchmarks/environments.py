"""
Environments: retrieval queries per second, and what the turn loop itself costs.

    python benchmarks/environments.py --threads 1

1. `RetrievalQAEnvironment.search` with 1 and with 64 episodes at a time, on the bundled corpus and on a synthetic one of
   100,000 passages: called one after the other in a plain loop, and by `run_calls`, as the rollout does.
2. A rollout whose generator costs nothing and whose environment answers at once, so that only the loop is left: contexts,
   parsing, calls, observations. Per environment step, at 1 and 64 episodes.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from typing import Any

from options import parse_arguments
from report import Report
from scripted import make_tokenizer, word, words
from timing import compare

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionSet, run_calls
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.facts import load_facts
from mem1_trl.retrieval import Bm25Index
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.stopping import Completion
from mem1_trl.rollout.turn_loop import Rollout


def synthetic_corpus(
    passages: int, vocabulary: int = 50_000, length: int = 60, seed: int = 0
) -> list[tuple[str, str]]:
    """Passages of random words whose frequencies fall as those of a language do (Zipf)."""
    generator = random.Random(seed)
    weights = [1 / (rank + 2) for rank in range(vocabulary)]
    stock = generator.choices(range(vocabulary), weights, k=passages * (length + 2))
    corpus = []
    for index in range(passages):
        row = stock[index * (length + 2) : (index + 1) * (length + 2)]
        corpus.append((f"v{row[0]} v{row[1]}", " ".join(f"v{token}" for token in row[2:])))
    return corpus


def queries_of(corpus: list[tuple[str, str]], count: int, seed: int = 1) -> list[str]:
    """Each a title with a word of the text, in random order."""
    generator = random.Random(seed)
    chosen = generator.choices(corpus, k=count)
    return [f"{title} {generator.choice(text.split())}" for title, text in chosen]


def retrieval_cases(args: argparse.Namespace, report: Report) -> None:
    facts = [(row["title"], row["text"]) for row in load_facts().corpus]
    synthetic = synthetic_corpus(args.passages)
    for name, corpus in (("bundled facts", facts), ("synthetic", synthetic)):
        index = Bm25Index(corpus)
        for episodes in (1, 64):
            environments = [RetrievalQAEnvironment(index) for _ in range(episodes)]
            queries = queries_of(corpus, args.queries)
            batches = [queries[start : start + episodes] for start in range(0, len(queries), episodes)]

            def loop(environments: Any = environments, batches: Any = batches) -> list[str]:
                return [e.search(query=q) for batch in batches for e, q in zip(environments, batch)]

            def concurrent(environments: Any = environments, batches: Any = batches) -> list[str]:
                texts = []
                for batch in batches:
                    calls = [(e.search, {"query": q}) for e, q in zip(environments, batch)]
                    texts += [result.text for result in run_calls(calls)]
                return texts

            label = f"{len(index):,} passages ({name}), {episodes} episode{'s' if episodes > 1 else ''}"
            timings = compare({"loop": loop, "run_calls": concurrent}, args.repeats, "loop", label=label)
            if timings["loop"].result != timings["run_calls"].result:
                raise SystemExit("The results differ.")
            found = sum(not text.startswith("No passage") for text in timings["loop"].result)
            values = {
                variant: {"queries": len(queries), "found": found, "queries_per_second": len(queries) / timing.median}
                for variant, timing in timings.items()
            }
            settings = {"passages": len(index), "episodes": episodes}
            report.add(f"search in {label}", timings, "loop", settings, values)


class Echo:
    """Answers at once with a text of `length` words."""

    length = 0

    def reset(self, **row: Any) -> None:
        """Start an episode."""

    def search(self, query: str) -> str:
        """Search."""
        return words(self.length)


def loop_case(args: argparse.Namespace, report: Report) -> None:
    tokenizer = make_tokenizer()
    protocol = Mem1Protocol()
    settings = AgentSettings(max_turns=args.turns)
    text = f"<think>{words(args.completion - 5)}</think><search>{word(700)}</search>"
    completion = Completion(tuple(tokenizer(text)["input_ids"]), tuple([-1.0] * args.completion), ended=True)
    prompt = tokenizer(words(args.prompt))["input_ids"]
    Echo.length = args.observation
    actions = ActionSet(Echo(), protocol)

    def play(episodes: int) -> int:
        rollout = Rollout(tokenizer, protocol, settings, lambda prompts, stops: [completion] * len(prompts))
        played = rollout.run([Episode(list(prompt), Echo(), actions) for _ in range(episodes)])
        return sum(len(trajectory.turns) for trajectory in played)

    variants = {"1 episode": partial(play, 1), "64 episodes": partial(play, 64)}
    timings = compare(variants, args.repeats, "1 episode", label="turn loop")
    values = {
        name: {"steps": timing.result, "microseconds_per_step": 1e6 * timing.median / timing.result}
        for name, timing in timings.items()
    }
    names = ("turns", "prompt", "completion", "observation")
    settings_of = {name: getattr(args, name) for name in names}
    report.add("turn loop alone", timings, "1 episode", settings_of, values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--passages", type=int, default=100_000, help="size of the synthetic corpus")
        parser.add_argument("--queries", type=int, default=512, help="queries of one repetition")
        parser.add_argument("--turns", type=int, default=16, help="turns of an episode in the loop alone")
        parser.add_argument("--prompt", type=int, default=400, help="tokens of its task prompt")
        parser.add_argument("--completion", type=int, default=80, help="tokens of its turns")
        parser.add_argument("--observation", type=int, default=300, help="tokens of what its environment says")

    args = parse_arguments(__doc__, add, repeats=7)
    if args.smoke:
        args.passages, args.queries, args.turns = 500, 64, 2
    report = Report("environments", args, {"passages": args.passages, "queries": args.queries})
    retrieval_cases(args, report)
    loop_case(args, report)
    report.finish()


if __name__ == "__main__":
    main()
