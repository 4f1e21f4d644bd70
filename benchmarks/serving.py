"""
`mem1 serve` under load, and beside the same model with its full history.

    python benchmarks/serving.py --to docs/serving             # all of it, into results.json, RESULTS.md and serving.png
    python benchmarks/serving.py --only long                   # one measurement, printed
    python benchmarks/serving.py --to docs/serving --redraw    # page and picture again from results.json

Three measurements, all over loopback with the chat API, on the CPU:

- many conversations at once, each a client that sends its whole chat: is every answer the right one, what do the states take, what the
  process;
- one conversation of 2 to 64 messages, with the context rule `mem1` and with `full`: longest context, keys and values, CPU seconds for
  the last answer;
- one conversation of 1,000 messages: does the context stay flat, and the state, and what does an answer cost at its end?

The model is random and tiny: what it says is noise, and what is measured does not depend on it. Every answer has the same length.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
from report import system_information
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.serve import AgentBackend, StateStore
from mem1_trl.wire.app import ChatApp, WireLimits
from mem1_trl.wire.server import WireServer

TURNS = (2, 4, 8, 16, 32, 64)
ANSWER = 16  # tokens of a turn
MESSAGE = "What do you remember of what I said in message {number}, and what of the one before?"


def make_agent(context: str, width: int, layers: int, answer: int = ANSWER) -> Mem1Agent:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "assets" / "tiny-mem1")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    settings: dict[str, Any] = dict(
        max_completion_length=answer, max_observation_length=160, max_turns=1, conversational=False
    )
    return Mem1Agent(model, tokenizer, Mem1Protocol(), context=context, temperature=0.0, **settings)


class Client:
    """Sends its whole chat each time, over one connection."""

    def __init__(self, url: str, name: str):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
        self.name = name
        self.messages: list[dict[str, Any]] = []

    def say(self, text: str) -> dict[str, Any]:
        self.messages.append({"role": "user", "content": text})
        body = json.dumps({"model": "mem1", "messages": self.messages})
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {found}")
        self.messages.append(found["choices"][0]["message"])
        return found


def many(sessions: int, messages: int, max_bytes: int) -> dict[str, Any]:
    """Many conversations at once; each answer's record must be that of its own conversation."""
    agent = make_agent("mem1", 64, 2)
    store = StateStore(max_bytes=max_bytes)
    backend = AgentBackend(agent, store=store)
    chat = ChatApp(backend, WireLimits(max_running=32, max_waiting=sessions))
    most = [0, 0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0], most[1] = max(most[0], store.bytes), max(most[1], chat.open)

    def talk(number: int) -> tuple[int, list[float]]:
        client, seconds = Client(server.url, str(number)), []
        barrier.wait()
        for turn in range(messages):
            begun = time.perf_counter()
            client.say(f"{number}.{turn}: " + MESSAGE.format(number=turn))
            seconds.append(time.perf_counter() - begun)
        return len(client.messages), seconds

    barrier = threading.Barrier(sessions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with WireServer(chat) as server, ThreadPoolExecutor(sessions) as pool:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        begun = time.perf_counter()
        found = list(pool.map(talk, range(sessions)))
        wall = time.perf_counter() - begun
        over.set()
        watcher.join()
        gauges = backend.gauges()
    seconds = sorted(second for _, own in found for second in own)
    return {
        "sessions": sessions,
        "messages": messages,
        "answered": sum(count // 2 for count, _ in found),
        "begun": gauges["mem1_conversations_begun"],
        "continued": gauges["mem1_conversations_continued"],
        "wall_seconds": wall,
        "answers_per_second": sessions * messages / wall,
        "median_seconds": seconds[len(seconds) // 2],
        "slowest_seconds": seconds[-1],
        "states": len(store),
        "state_bytes_most": most[0],
        "state_bytes_limit": max_bytes,
        "requests_open_most": most[1],
        "peak_tokens": gauges["mem1_peak_tokens"],
        "process_growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def one(context: str) -> list[dict[str, Any]]:
    """A conversation of up to 64 messages under a context rule."""
    agent = make_agent(context, 128, 4)
    assert agent.model is not None
    config = agent.model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    rows, peak = [], 0
    with WireServer(ChatApp(AgentBackend(agent))) as server:
        client = Client(server.url, context)
        for turn in range(1, max(TURNS) + 1):
            begun = time.process_time()  # of client and server, which other load of the machine does not change
            found = client.say(MESSAGE.format(number=turn))
            seconds = time.process_time() - begun
            peak = max(peak, found["mem1"]["peak_tokens"])
            if turn in TURNS:
                sizes = {"peak_tokens": peak, "key_value_bytes": peak * per_token, "cpu_seconds": seconds}
                rows.append({"context": context, "turns": turn, **sizes})
    return rows


def long(messages: int) -> list[dict[str, Any]]:
    """A conversation of so many messages; a row for each tenth of them, with the extremes of its answers."""
    agent = make_agent("mem1", 32, 1, answer=4)
    store, rows = StateStore(max_states=1), []
    with WireServer(ChatApp(AgentBackend(agent, store=store))) as server:
        client, share = Client(server.url, "long"), max(messages // 10, 1)
        while len(client.messages) < 2 * messages:
            peaks, states, begun = [], [], time.process_time()
            for _ in range(share):
                found = client.say(MESSAGE.format(number=len(client.messages) // 2 + 1))
                peaks.append(found["mem1"]["peak_tokens"])
                states.append(store.bytes)
            rows.append(
                {
                    "messages": len(client.messages) // 2,
                    "chat_bytes": len(json.dumps(client.messages)),
                    "peak_tokens_least": min(peaks),
                    "peak_tokens_most": max(peaks),
                    "state_bytes_most": max(states),
                    "cpu_seconds": (time.process_time() - begun) / share,
                }
            )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    names = {"mem1": "mem1 serve", "full": "full history"}
    for axis, (key, title, scale) in zip(
        axes,
        [
            ("peak_tokens", "longest context (tokens)", 1),
            ("key_value_bytes", "keys and values (MB)", 1e-6),
            ("cpu_seconds", "CPU seconds for an answer", 1),
        ],
    ):
        for context, name in names.items():
            own = [row for row in rows if row["context"] == context]
            axis.plot([row["turns"] for row in own], [row[key] * scale for row in own], marker="o", label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(TURNS, [str(turn) for turn in TURNS])
        axis.set_xlabel("messages of the person")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=9, loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_page(result: dict[str, Any], folder: Path) -> None:
    """`RESULTS.md` and its picture."""
    many, system = result["many"], result["system"]
    by_rule = {(row["context"], row["turns"]): row for row in result["one"]}
    rows = [
        [
            str(turns),
            *(f"{by_rule[context, turns]['peak_tokens']:,}" for context in ("mem1", "full")),
            *(f"{by_rule[context, turns]['key_value_bytes'] / 1e6:.1f}" for context in ("mem1", "full")),
            *(f"{by_rule[context, turns]['cpu_seconds']:.2f}" for context in ("mem1", "full")),
        ]
        for turns in TURNS
    ]
    flat = _table(
        ["messages", "longest context, tokens", "full history", "keys and values, MB", "full history", "CPU seconds for the last answer", "full history"],
        rows,
    )  # fmt: skip
    long_rows = [
        [
            f"{row['messages']:,}",
            f"{row['chat_bytes'] / 1000:,.0f}",
            f"{row['peak_tokens_least']} to {row['peak_tokens_most']}",
            f"{row['state_bytes_most'] / 1000:.1f}",
            f"{row['cpu_seconds']:.3f}",
        ]
        for row in result["long"]
    ]
    long_table = _table(
        ["messages", "chat that the client sends, kB", "context, tokens", "state, kB", "CPU seconds for an answer"],
        long_rows,
    )
    lost = many["sessions"] * many["messages"] - many["answered"]
    text = f"""# `mem1 serve`, measured

Written by `python benchmarks/serving.py --to docs/serving` at commit {system["commit"]}, on {system["cpu"]}, one thread, with torch {system["torch"]} and transformers {system["transformers"]}. The
models are tiny and random, so what they say is noise: the figures are of the server and of the contexts.

## One conversation, beside the same model with its full history

Both agents run on the same server and are asked over the chat API. Each answer has {ANSWER} tokens. The CPU seconds are those of client and server together.

{flat}

![context, keys and values, seconds](serving.png)

## {many["sessions"]} conversations at once

{many["sessions"]} clients of the chat API, {many["messages"]} messages each, all of them open at the same time ({many["requests_open_most"]} requests at most): {many["answered"]} answers, {lost} lost, {many["continued"]:.0f} of
them from a state that was kept. {many["answers_per_second"]:.1f} answers a second by the clock, whatever else the machine did; median {many["median_seconds"]:.1f} s, slowest {many["slowest_seconds"]:.1f} s. States took
{many["state_bytes_most"] / 1000:,.0f} kB at most, of a limit of {many["state_bytes_limit"] / 1000:,.0f} kB; the process, client threads included, grew by {many["process_growth_mb"]:.0f} MB; no context had more than {many["peak_tokens"]:.0f} tokens.

## A conversation of {result["long"][-1]["messages"]:,} messages

The client sends its whole chat each time. What the server reads stays as it was; the rest of the growing time goes into the chat's text.

{long_table}
"""
    (folder / "RESULTS.md").write_text(text, encoding="utf-8")
    draw(result["one"], folder / "serving.png")


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---:"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--messages", type=int, default=2)
    parser.add_argument("--max_bytes", type=int, default=2_000_000)
    parser.add_argument("--long", type=int, default=1000, help="messages of the long conversation")
    parser.add_argument("--only", choices=["many", "one", "long"], default=None, help="one of the measurements")
    parser.add_argument("--to", type=Path, default=None, help="folder for results.json, RESULTS.md and serving.png")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, read results.json in --to")
    options = parser.parse_args()
    if options.to is not None and options.only is not None:
        parser.error("--to needs all measurements, so it cannot be combined with --only")
    if options.redraw:
        if options.to is None:
            parser.error("--redraw needs --to")
        write_page(json.loads((options.to / "results.json").read_text(encoding="utf-8")), options.to)
        return
    torch.set_num_threads(1)
    measurements = {
        "many": lambda: many(options.sessions, options.messages, options.max_bytes),
        "one": lambda: one("mem1") + one("full"),
        "long": lambda: long(options.long),
    }
    result: dict[str, Any] = {
        name: measure() for name, measure in measurements.items() if options.only in (None, name)
    }
    for name, found in result.items():
        print(name, *(json.dumps(row) for row in ([found] if isinstance(found, dict) else found)), sep="\n")
    if options.to is not None:
        options.to.mkdir(parents=True, exist_ok=True)
        result["system"] = system_information("cpu")
        (options.to / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_page(result, options.to)


if __name__ == "__main__":
    main()
