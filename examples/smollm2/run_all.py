"""
The whole experiment, the most informative stages first; stopped at any point, it goes on when it is started again.

    OMP_NUM_THREADS=1 nice -n 19 python examples/smollm2/run_all.py --output_dir runs/smollm2
    python examples/smollm2/run_all.py --list                              # the stages
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
from runs import UNFINISHED

HERE = Path(__file__).parent
# Memory that a step gives back is kept for the next one: a third of the time else goes into fetching it from the system
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
SHORT = {"start": ["--steps", "2"], "train": ["--batch_size", "4", "--generations", "2"]}


def stages(out, seeds, short):
    """`(name, script, arguments)` in order."""
    few, many = (2, 3) if short else (50, 150)
    steps, first = ("2", "1") if short else ("60", "20")

    def test(label, adapter, objectives, tasks, seed, *more):
        numbers = [str(n) for n in objectives]
        arguments = ["--label", f"{label}-seed{seed}", "--adapter", adapter, "--objectives", *numbers]
        return (
            f"test {label} seed {seed}: {', '.join(numbers)} ({tasks} tasks) {' '.join(more)}".strip(),
            "evaluate_tasks",
            [*arguments, "--tasks", str(tasks), "--output_dir", out / "evaluation", "--seed", str(seed), *more],
        )

    def learn(label, seed, steps, *more):
        arguments = ["--start", out / f"start-seed{seed}" / "adapter", "--output_dir", out / f"{label}-seed{seed}"]
        return (
            f"{label} seed {seed}, {steps} steps",
            "train",
            [*arguments, "--seed", str(seed), "--steps", steps, *more],
        )

    all_objectives = [1, 2] if short else [2, 4, 8, 1, 3, 6]
    for seed in seeds:
        start, grpo = (out / f"{name}-seed{seed}" for name in ("start", "grpo-2"))
        yield f"start seed {seed}", "start", ["--output_dir", start, "--seed", str(seed)]
        yield test("start", start / "adapter", [2, 1] if short else [2, 1, 4], few, seed)
        yield learn("grpo-2", seed, first, "--objectives", "2")
        yield test(f"grpo-2-step{first}", grpo / "adapter", [2], few, seed)
        yield learn("grpo-2", seed, steps, "--objectives", "2")
        yield test("grpo-2", grpo / "adapter", [2] if short else [2, 4], many, seed)
        yield test("start", start / "adapter", [2] if short else [2, 4], many, seed)
        like = ["--like", grpo, "--start", start / "adapter", "--seed", str(seed)]
        for control in ("supervised", "imitation"):
            yield f"{control} seed {seed}", "imitate", [control, *like]
            yield test(control, _adapter_of(out / f"{control}-grpo-2-seed{seed}"), all_objectives[:2], many, seed)
        yield test("start", start / "adapter", all_objectives[:2], many, seed, "--temperature", "1")
        mixed = [] if short else ["3", "4"]
        yield learn("grpo-mixed", seed, steps, "--objectives", "1", "2", *mixed)
        yield test("grpo-mixed", out / f"grpo-mixed-seed{seed}" / "adapter", all_objectives, many, seed)
        yield learn("ppo-2", seed, steps, "--objectives", "2", "--algorithm", "ppo")
        yield test("ppo-2", out / f"ppo-2-seed{seed}" / "adapter", all_objectives, many, seed)
        for label in ("start", "grpo-2"):
            yield test(label, out / f"{label}-seed{seed}" / "adapter", all_objectives, many, seed)
        twin = out / f"twin-start-seed{seed}"
        yield f"twin start seed {seed}", "start", ["--output_dir", twin, "--seed", str(seed), "--context", "full"]
        yield (
            f"twin seed {seed}",
            "train",
            ["--start", twin / "adapter", "--output_dir", out / f"twin-seed{seed}", "--seed", str(seed), "--steps", steps,
             "--context", "full"],
        )  # fmt: skip
        for label, context in (("twin", "full"), ("truncation", "truncate")):
            yield test(label, out / f"twin-seed{seed}" / "adapter", all_objectives, many, seed, "--context", context)


def _adapter_of(folder):
    """Adapter of a control; that of imitation is the one of its last round, which is known when it is done."""
    record = folder / "done.json"
    named = json.loads(record.read_text()).get("adapter") if record.is_file() else None
    return Path(named) if named else folder / "adapter"


def only_one(folder):
    """A lock that the running stage holds, too, so that a second driver does not write into the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "run_all.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"{folder} must be written by one run at a time, but another one, or a stage of it, is still running."
        ) from None
    return lock


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    parser.add_argument(
        "--short", action="store_true", help="a few steps and tasks of every stage; the numbers mean nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the stages")
    args = parser.parse_args()
    began = time.monotonic()
    if args.list:
        for name, script, arguments in stages(args.output_dir, args.seeds, args.short):
            print(f"{name}: {script}.py {' '.join(map(str, arguments))}")
        return
    lock = only_one(args.output_dir)
    base = prepare(args.base)
    environment = {"OMP_NUM_THREADS": str(args.threads), **KEEP_MEMORY, **os.environ}
    for name, script, arguments in stages(args.output_dir, args.seeds, args.short):
        print(f"== {name}, {time.strftime('%H:%M:%S')}", flush=True)
        command = [sys.executable, HERE / f"{script}.py", *arguments, "--base", base, "--threads", str(args.threads)]
        command += SHORT.get(script, []) if args.short else []
        if args.minutes is not None:
            left = args.minutes - (time.monotonic() - began) / 60
            command += ["--minutes", f"{max(left, 0):.2f}"]
        status = subprocess.run(list(map(str, command)), env=environment, pass_fds=[lock.fileno()]).returncode
        if status == UNFINISHED:
            print(f"The time is up during {name}: start again to go on.", flush=True)
            raise SystemExit(UNFINISHED)
        if status:
            raise SystemExit(f"{name} failed with status {status}, see above; start again to go on from there.")


if __name__ == "__main__":
    main()
