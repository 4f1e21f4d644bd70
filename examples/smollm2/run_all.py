"""
The whole experiment, the most informative stages first; stopped at any point, it goes on when it is started again.

    OMP_NUM_THREADS=1 nice -n 19 python examples/smollm2/run_all.py --output_dir runs/smollm2
    python examples/smollm2/run_all.py --list                              # the stages
    python examples/smollm2/run_all.py --stages start grpo-2 --seeds 0     # a part of it; other parts may run beside it
    python examples/smollm2/run_all.py --short --base PATH --output_dir runs/short   # every kind of stage, a few steps each

A stage is a command of another script here; it is over once its output is complete.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from model import BASE, prepare
from runs import TOGETHER, UNFINISHED, count, rate

HERE = Path(__file__).parent
# Memory that a step gives back is kept for the next one: a third of the time else goes into fetching it from the system
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
SHORT = {"start": ["--steps", "2"], "scalar": ["--tasks", "2"]}
OF_TRAINING = {
    "batch_size": count,
    "played": count,
    "generations": count,
    "learning_rate": rate,
    "num_iterations": count,
    "temperature": rate,
    "top_entropy_quantile": rate,
    "tokens_per_pass": count,
    "save_steps": count,
}
"""Numbers that are handed on to `train.py`, whose defaults hold."""
FIRST, SECOND, EXACT, LEARNED = "grpo-mixed", "grpo-counted", "grpo-exact", "grpo-anchored"
SMALL, MORE = "grpo-small", "grpo-four"
"""
The second goes on from the first; the next two, and `SMALL`, from what supervised training for as long as both has made of the start; the last
from imitation, with more objectives.
"""
LABELS = (
    "start", FIRST, SECOND, "supervised", EXACT, LEARNED, "supervised-longer", "scalar", "imitation", SMALL, MORE, "imitation-longer", "grpo-2", "ppo-2", "again", "taught",
    "twin-start", "twin-imitation", "truncation", "twin", "last",
)  # fmt: skip
OTHER_TASKS = {SECOND: 10, EXACT: 20, LEARNED: 30, SMALL: 30, MORE: 40, "twin": 30}
"""Added to the seed of a run, so that it draws other tasks than those before it."""
LAST_TASKS = 2
"""Seed of the test tasks by which nothing was chosen."""
TWIN_SECONDS, TWIN_TASKS = 1200, 50
"""
Processor seconds of the warm-up by which the twin that appends goes on from the same supervised training as the agent, and what is added to
its seed: it has learned format, searching and reading already, and reads its earlier turns now.
"""


def stages(out, seeds, labels, options):
    """`(name, script, arguments)` in order; `options` are those of the command line."""
    objectives = [1, 2] if options.short else [2, 4, 8, 1, 3, 6]
    on_all = ("--objectives", *([1, 2] if options.short else [1, 2, 3, 4]))
    on_fewer = ("--objectives", *([1, 2] if options.short else [1, 2, 3]))
    exact = ("--reward", "exact", "--advantage_level", "state")
    held = (*exact, "--beta", 0.1)
    on_more = ("--objectives", *([1, 2] if options.short else [2, 3, 4]))
    full = ("--context", "full")

    def test(label, adapter, seed, *more, numbers=objectives, tasks_of=None):
        arguments = ["--label", f"{label}-seed{seed}", "--tasks", options.tasks]
        arguments += [] if adapter is None else ["--adapter", adapter]
        return (
            f"test {label} seed {seed}{'' if tasks_of is None else f' on tasks of {tasks_of}'}: {', '.join(map(str, numbers))} {' '.join(map(str, more))}".strip(),
            "evaluate_tasks",
            [*arguments, "--output_dir", out / "evaluation", "--seed", seed if tasks_of is None else tasks_of, "--together", options.together,
             "--objectives", *numbers, *more],
        )  # fmt: skip

    def learn(label, start, seed, *more, steps=options.steps):
        given = {
            name: getattr(options, name) for name in (*OF_TRAINING, "layout") if getattr(options, name) is not None
        }
        sizes = [part for name, value in given.items() for part in (f"--{name}", value)]
        return (
            f"{label} seed {seed}, {steps} steps",
            "train",
            ["--start", start / "adapter", "--output_dir", out / f"{label}-seed{seed}",
             "--seed", seed + OTHER_TASKS.get(label, 0), "--steps", steps, *sizes, *more],
        )  # fmt: skip

    for seed in seeds:
        start, first, second, learned = (out / f"{name}-seed{seed}" for name in ("start", FIRST, SECOND, LEARNED))
        before, imitated = (out / f"{name}-seed{seed}" for name in ("twin-start", "twin-imitation"))
        copying, imitating = out / f"supervised-{second.name}", out / f"imitation-{learned.name}"
        for label in labels:
            if label == "start":
                yield f"start seed {seed}", "start", ["--output_dir", start, "--seed", seed]
                yield test("demonstrations", None, seed, "--demonstrator")
                yield test("start", start / "adapter", seed)
                yield test("start", start / "adapter", seed, "--temperature", "1", numbers=objectives[:2])
            elif label == FIRST:
                yield learn(label, start, seed, *on_all, "--reward", "positional", "--advantage_level", "state")
            elif label == SECOND:
                yield learn(label, first, seed, *on_all, "--reward", "counted", "--advantage_level", "state")
            elif label == EXACT:
                yield learn(label, copying, seed, *on_all, *exact)
            elif label == LEARNED:
                yield learn(label, copying, seed, *on_fewer, *held)
            elif label == SMALL:  # as many episodes, a group in each step
                group = ("--batch_size", options.generations or 8)
                yield learn(label, copying, seed, *on_fewer, *held, *group, steps=3 * options.steps)
            elif label == MORE:
                yield learn(label, _adapter_of(imitating).parent, seed, *on_more, *held)
            elif label == "imitation-longer":
                more = out / f"{MORE}-seed{seed}"
                like = ["--like", more, "--start", _adapter_of(imitating), "--seed", seed + OTHER_TASKS[MORE]]
                yield f"{label} seed {seed}", "imitate", ["imitation", *like, "--together", options.together]
                yield test(label, _adapter_of(out / f"imitation-{more.name}"), seed)
            elif label == "grpo-2":
                yield learn(label, start, seed, "--objectives", 2, "--advantage_level", "state")
            elif label == "ppo-2":
                yield learn(label, start, seed, "--objectives", 2, "--algorithm", "ppo")
            elif label == "supervised":
                like = ["--like", second, first, "--start", start / "adapter", "--seed", seed]
                yield f"{label} seed {seed}", "imitate", [label, *like]
                yield test(label, copying / "adapter", seed)
            elif label in ("supervised-longer", "imitation", "again", "taught"):
                control = label.removesuffix("-longer")
                # The demonstrations of the start are beside it, and follow from its seed
                begin, drawn = (start, seed) if label == "again" else (copying, seed + OTHER_TASKS[LEARNED])
                like = ["--like", learned, "--start", begin / "adapter", "--seed", drawn]
                yield f"{label} seed {seed}", "imitate", [control, *like, "--together", options.together]
                yield test(label, _adapter_of(out / f"{control}-{learned.name}"), seed)
            elif label == "scalar":
                place = out / f"scalar-seed{seed}"
                search = ["--start", copying / "adapter", "--seed", seed, "--together", options.together]
                yield (
                    f"scalar seed {seed}",
                    "scalar",
                    [*search, "--output_dir", place, "--objectives", *objectives[:2]],
                )
                yield test("scalar", copying / "adapter", seed, "--control", place / "control.json")
            elif label == "last":
                for name, folder in (
                    (LEARNED, learned),
                    (SMALL, out / f"{SMALL}-seed{seed}"),
                    (MORE, out / f"{MORE}-seed{seed}"),
                    ("supervised-longer", out / f"supervised-{learned.name}"),
                    ("imitation", imitating),
                    ("imitation-longer", out / f"imitation-{MORE}-seed{seed}"),
                    ("supervised", copying),
                ):
                    adapter = _adapter_of(folder)
                    yield test(name, adapter, seed, numbers=objectives[:1], tasks_of=LAST_TASKS)
            elif label == "twin-start":
                seconds = 2 if options.short else TWIN_SECONDS
                warm_up = ["--start", copying / "adapter", "--cpu_seconds", seconds, "--seed", seed + TWIN_TASKS]
                yield f"{label} seed {seed}", "imitate", ["supervised", *warm_up, *full, "--output_dir", before]
                yield test(label, before / "adapter", seed, *full)
            elif label == "twin-imitation":
                like = ["--like", learned, "--start", before / "adapter", "--seed", seed + OTHER_TASKS[LEARNED]]
                more = (*full, "--together", options.together, "--output_dir", imitated)
                yield f"{label} seed {seed}", "imitate", ["imitation", *like, *more]
                yield test(label, _adapter_of(imitated), seed, *full)
            elif label == "truncation":
                yield test(label, _adapter_of(imitated), seed, "--context", "truncate")
            else:
                yield learn(label, before, seed, *on_fewer, *held, *full)
                yield test(label, out / f"{label}-seed{seed}" / "adapter", seed, *full)
            if label in (FIRST, SECOND, EXACT, LEARNED, SMALL, MORE, "grpo-2", "ppo-2"):
                yield test(label, out / f"{label}-seed{seed}" / "adapter", seed)


def _adapter_of(folder):
    """Adapter of a control; that of imitation is the one of its last round, which is known when it is done."""
    record = folder / "done.json"
    named = json.loads(record.read_text()).get("adapter") if record.is_file() else None
    return Path(named) if named else folder / "adapter"


def only_one(folder, seeds, labels):
    """Locks that the running stage holds, too, so that no second driver writes into the same files; others may run beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    locks = []
    for name in (f"{label}-seed{seed}" for seed in seeds for label in labels):
        locks.append((folder / f"{name}.lock").open("w"))
        try:
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"{name} in {folder} must be written by one run at a time, but another one, or a stage of it, is still running."
            ) from None
    return locks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--stages", nargs="+", choices=LABELS, default=list(LABELS), help="those of other stages must be done"
    )
    parser.add_argument("--steps", type=count, default=50, help="of reinforcement")
    for name, kind in OF_TRAINING.items():
        parser.add_argument(f"--{name}", type=kind, default=None, help="of reinforcement, as in train.py")
    parser.add_argument("--layout", choices=["packed", "per_turn"], default=None, help="of the update, as in train.py")
    parser.add_argument("--tasks", type=count, default=150, help="tasks of a test")
    parser.add_argument("--together", type=count, default=TOGETHER, help="episodes that are played at once in tests")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    parser.add_argument(
        "--short", action="store_true", help="a few steps and tasks of every stage; the numbers mean nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the stages")
    args = parser.parse_args()
    began = time.monotonic()
    if args.short:
        args.steps, args.batch_size, args.played, args.generations, args.tasks = 2, 4, 4, 2, 3
    planned = stages(args.output_dir, args.seeds, args.stages, args)
    if args.list:
        for name, script, arguments in planned:
            print(f"{name}: {script}.py {' '.join(map(str, arguments))}")
        return
    locks = only_one(args.output_dir, args.seeds, args.stages)
    held = [lock.fileno() for lock in locks]
    base = prepare(args.base)
    environment = {"OMP_NUM_THREADS": str(args.threads), **KEEP_MEMORY, **os.environ}
    for name, script, arguments in planned:
        print(f"== {name}, {time.strftime('%H:%M:%S')}", flush=True)
        command = [sys.executable, HERE / f"{script}.py", *arguments, "--base", base, "--threads", str(args.threads)]
        command += SHORT.get(script, []) if args.short else []
        if args.minutes is not None:
            left = args.minutes - (time.monotonic() - began) / 60
            command += ["--minutes", f"{max(left, 0):.2f}"]
        status = subprocess.run(list(map(str, command)), env=environment, pass_fds=held).returncode
        if status == UNFINISHED:
            print(f"The time is up during {name}: start again to go on.", flush=True)
            raise SystemExit(UNFINISHED)
        if status:
            raise SystemExit(f"{name} failed with status {status}, see above; start again to go on from there.")


if __name__ == "__main__":
    main()
