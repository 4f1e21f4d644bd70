"""
MEM1's main experiment in miniature: three agents trained by reinforcement on 2 objectives, tested on 1 to 16.

    python examples/multi_objective/run.py            # all of it, on 2 CPU cores; started again, it continues where it stopped
    python examples/multi_objective/run.py --smoke    # every step of it in a minute; the numbers mean nothing

The agents have the same size, the same tasks and the same budget: MEM1 by PPO, MEM1 by GRPO, and a twin by PPO that forgets
nothing. They start from the models of `warm_up.py`, which can copy, read and follow the format, but do not go on searching. Written to --output_dir: `RESULTS.md` with its plots, `results.json`, a page to browse episodes in (`report/`), and for
each run the model, the log of its training and every episode of its evaluation.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # shared with the other examples

import torch
from datasets import disable_progress_bars
from example_options import count, parse, rate
from long_runs import Deadline, scalar_control, write_json
from result_pages import commit
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from world import World
from write_results import write_results

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer, Mem1Protocol
from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset, select_trajectories
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.report import report

ASSETS = Path(__file__).parents[1] / "assets" / "multi-objective"
OBJECTIVES = (1, 2, 3, 4, 6, 8, 16)
TRAINED_ON = 2
# Tokens of one turn: on 16 objectives the last one has 60. Of one observation: three passages have 77
TRAINING = {"max_completion_length": 40, "max_observation_length": 120}
EVALUATION = {"max_completion_length": 80, "max_observation_length": 120}
AGENTS = {  # label -> trainer, rule of the context, further settings
    "MEM1 PPO": ("ppo", "mem1", {}),
    "MEM1 GRPO": ("grpo", "mem1", {}),
    "full history PPO": ("ppo", "full", {}),
}
BASELINES = {"MEM1 before RL": "mem1", "full history before RL": "full"}
# The model before RL as well: at the temperature of the training, and with the best temperature and constant on one logit
SAMPLED, CONSTANT = "MEM1 before RL, sampled", "MEM1 before RL, one constant"
BASELINES |= {SAMPLED: "mem1", CONSTANT: "mem1"}
ABLATIONS = {
    "MEM1 PPO, paper layout": ("ppo", "mem1", {"layout": "paper"}),
    "MEM1 PPO, format reward": ("ppo", "mem1", {"format_reward": 1.0}),
    "MEM1 SFT only": ("sft", "mem1", {}),  # as many episodes, and imitation of the successful ones
}


def answered(completions, trajectories, **kwargs):
    """A reward for the format, added to that of the environment: 1 if the episode ended with an answer and every turn kept a state."""
    return [float(t.answer is not None and all(turn.state is not None for turn in t.turns)) for t in trajectories]


class Progress(TrainerCallback):
    """One line every ten steps."""

    def __init__(self, label):
        self.label, self.start = label, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs and (state.global_step % 10 == 0 or state.global_step == 1):
            seconds = time.monotonic() - self.start
            print(
                f"{self.label}: step {state.global_step}/{state.max_steps}, reward {logs['reward']:.2f}, "
                f"{logs['episode/turns']:.1f} turns, {seconds:.0f} s",
                flush=True,
            )


def folder(args, label, seed):
    return args.output_dir / f"{label.lower().replace(', ', '-').replace(' ', '-')}-seed{seed}"


def train(args, label, seed, world):
    """Reinforcement learning on 2 objectives; continues from the last checkpoint if there is one."""
    algorithm, context, extra = {**AGENTS, **ABLATIONS}[label]
    if algorithm == "sft":
        return imitate(args, label, seed, world)
    extra = dict(extra)
    place = folder(args, label, seed)
    set_seed(seed)
    start = args.assets / context
    tokenizer = AutoTokenizer.from_pretrained(start)
    rewards = [answered] if extra.pop("format_reward", None) else None
    settings = dict(
        output_dir=str(place / "checkpoints"),
        max_steps=args.steps,
        max_turns=6,
        context=context,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=args.save_steps,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        **TRAINING,
        **extra,
    )
    if algorithm == "ppo":
        trainer_class, config = Mem1PPOTrainer, Mem1PPOConfig(value_learning_rate=1e-3, beta=0.001, **settings)
    else:
        trainer_class, config = Mem1GRPOTrainer, Mem1GRPOConfig(num_generations=args.group_size, beta=0.0, **settings)
    trainer = trainer_class(
        model=str(start),
        args=config,
        reward_funcs=rewards,
        train_dataset=world.train_tasks(TRAINED_ON),
        processing_class=tokenizer,
        environment_factory=RetrievalQAEnvironment.factory(world.corpus, top_k=3),
        protocol=Mem1Protocol.from_pretrained(start),
        callbacks=[Progress(f"{label}, seed {seed}")],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoints = place / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(place / "model"))
    record = {
        "agent": label,
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "resumed": last is not None,
        "commit": commit(),
        "history": trainer.state.log_history,
    }
    write_json(place / "training.json", record)


def imitate(args, label, seed, world):
    """Rejection sampling: as many episodes as reinforcement plays, and supervised learning of those with both answers right."""
    place, start = folder(args, label, seed), args.assets / "mem1"
    set_seed(seed)
    began = time.perf_counter()
    agent = Mem1Agent.from_pretrained(
        str(start),
        model_init_kwargs={"dtype": torch.float32},
        temperature=1.0,
        max_turns=6,
        batch_size=100,
        **TRAINING,
    )
    tasks = world.train_tasks(TRAINED_ON)
    tasks = tasks.select([i % len(tasks) for i in range(args.steps * args.batch_size)])
    factory = RetrievalQAEnvironment.factory(world.corpus, top_k=3)
    played = collect_trajectories(agent, tasks, factory, place / "episodes.jsonl", batch_size=100, disable_tqdm=True)
    kept = select_trajectories(played, min_reward=float(TRAINED_ON))
    config = SFTConfig(
        output_dir=str(place / "checkpoints"),
        num_train_epochs=3,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=agent.model, args=config, train_dataset=demonstration_dataset(kept), processing_class=agent.tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(place / "model"))
    agent.protocol.save_pretrained(place / "model")
    print(
        f"{label}, seed {seed}: {len(kept)} of {len(played)} episodes, {trainer.state.global_step} steps", flush=True
    )
    record = {
        "agent": label,
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "resumed": False,
        "commit": commit(),
    }
    record |= {"episodes": len(played), "kept": len(kept), "history": trainer.state.log_history}
    write_json(place / "training.json", record)


def evaluate(args, label, seed, world, model, context):
    """Greedy decoding on held-out entities; finished evaluations are not played again."""
    place = folder(args, label, seed) / "evaluation"
    missing = [n for n in args.objectives if not (place / f"{n}.json").is_file()]
    if not missing:
        return
    agent = Mem1Agent.from_pretrained(
        str(model), model_init_kwargs={"dtype": torch.float32}, context=context, batch_size=100, **EVALUATION
    )
    factory = RetrievalQAEnvironment.factory(world.corpus, top_k=3)
    settings = agent.settings
    if label == SAMPLED:
        settings = replace(settings, temperature=1.0)
    elif label == CONSTANT:
        settings = search_control(args, agent, world, factory, place.parent / "control.json", seed).apply(settings)
    for n in missing:
        began = time.perf_counter()
        agent.settings = replace(settings, max_turns=n + 4)
        result = evaluate_agent(
            agent, world.test_tasks(n, args.tasks), factory, batch_size=100, label=label, seed=seed,
            settings={"objectives": n, "seed_of_facts": seed},
        )  # fmt: skip
        result.save(place, str(n))
        print(
            f"{label}, seed {seed}: {n} objectives, EM per objective {result.metrics['exact_match_per_objective']:.2f}, "
            f"peak {result.metrics['peak_tokens']:.0f} tokens, {time.perf_counter() - began:.0f} s",
            flush=True,
        )


def search_control(args, agent, world, factory, path, seed):
    """The constant on a logit and the temperature with which a model does best on tasks like those of the training."""
    tasks = world.train_tasks(TRAINED_ON)
    tasks = tasks.select(range(min(args.tasks, len(tasks))))
    agent.settings = replace(agent.settings, max_turns=TRAINED_ON + 4)
    return scalar_control(
        agent, tasks, factory, ["<answer>", "<search>", "</think>", "|", ";"], path, Deadline(),
        values=(-1.0, 1.0, -2.0, 2.0, -4.0, 4.0), most=1, batch_size=100, seed=seed,
    )  # fmt: skip


def run_job(args, phase, label, seed):
    """Train or evaluate one agent on the facts of one seed."""
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    if is_done(args, phase, label, seed):
        return
    world = World(seed)
    if phase == "train":
        train(args, label, seed, world)
    elif label in BASELINES:
        context = BASELINES[label]
        evaluate(args, label, seed, world, args.assets / context, context)
    else:
        context = {**AGENTS, **ABLATIONS}[label][1]
        evaluate(args, label, seed, world, folder(args, label, seed) / "model", context)


def is_done(args, phase, label, seed):
    place = folder(args, label, seed)
    if phase == "train":
        return (place / "training.json").is_file()
    return all((place / "evaluation" / f"{n}.json").is_file() for n in args.objectives)


def is_ready(args, phase, label, seed):
    """An agent is evaluated when it is trained; a baseline at any time."""
    return phase == "train" or label in BASELINES or is_done(args, "train", label, seed)


def jobs(args):
    """Jobs `(phase, label, seed)`, seed by seed, so that an early end leaves whole comparisons."""
    trained = [*AGENTS, *(ABLATIONS if args.ablations else [])]
    for seed in args.seeds:
        yield from (("train", label, seed) for label in trained)
        yield from (("evaluate", label, seed) for label in [*trained, *BASELINES])


def run_all(args):
    """All jobs, one after the other, or several at the same time, each in its own process."""
    waiting, running = [job for job in jobs(args) if not is_done(args, *job)], {}
    if args.jobs == 1:
        for job in waiting:
            run_job(args, *job)
        return
    try:
        while waiting or running:
            ready = [job for job in waiting if is_ready(args, *job)]
            for job in ready[: args.jobs - len(running)]:
                waiting.remove(job)
                command = [sys.executable, __file__, *sys.argv[1:], "--only", *map(str, job)]
                running[subprocess.Popen(command)] = job
            done = next((process for process in running if process.poll() is not None), None)
            if done is None:
                time.sleep(0.2)
                continue
            job = running.pop(done)
            if done.returncode:
                raise SystemExit(f"{' '.join(map(str, job))} failed, see above; start again to continue from there.")
    finally:
        for process in running:
            process.terminate()


def settings_of(args):
    names = ("steps", "batch_size", "group_size", "learning_rate", "tasks", "objectives")
    return {name: getattr(args, name) for name in names}


def check_settings(args):
    """A run that is resumed must be the same run."""
    path = args.output_dir / "settings.json"
    wanted = json.loads(json.dumps(settings_of(args)))
    if path.is_file():
        there = json.loads(path.read_text())
        different = [name for name in wanted if there.get(name) != wanted[name]]
        if different:
            raise SystemExit(
                f"{args.output_dir} holds a run with another {', '.join(different)}: choose another --output_dir, or delete it."
            )
    write_json(path, wanted)


def hardware():
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/multi-objective"))
    parser.add_argument("--assets", type=Path, default=ASSETS, help="models written by warm_up.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=count, default=24, help="optimizer steps of each reinforcement run")
    parser.add_argument("--batch_size", type=count, default=32, help="trajectories per optimizer step")
    parser.add_argument("--group_size", type=count, default=4, help="trajectories per task with GRPO")
    parser.add_argument("--learning_rate", type=rate, default=3e-4)
    parser.add_argument("--save_steps", type=count, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--objectives", type=count, nargs="+", default=list(OBJECTIVES), help="numbers of objectives to test on"
    )
    parser.add_argument("--tasks", type=count, default=200, help="test tasks for each number of objectives")
    parser.add_argument(
        "--ablations", action="store_true", help="also the paper's layout, a format reward, and SFT only"
    )
    parser.add_argument(
        "--jobs", type=count, default=None, help="number of runs at the same time (default: 2, with --smoke 1)"
    )
    parser.add_argument("--threads", type=count, default=1, help="threads of each run")
    parser.add_argument("--smoke", action="store_true", help="the whole path in a minute; the numbers mean nothing")
    parser.add_argument(
        "--write_only", action="store_true", help="run nothing, write RESULTS.md from the finished runs"
    )
    parser.add_argument(
        "--only", nargs=3, metavar=("PHASE", "AGENT", "SEED"), help="one `train` or `evaluate`, and no more"
    )
    few = {
        "seeds": [0],
        "steps": 2,
        "save_steps": 1,
        "batch_size": 8,
        "group_size": 4,
        "objectives": [1, 2, 3],
        "tasks": 4,
    }
    args = parse(parser, smoke={**few, "output_dir": Path("runs/multi-objective-smoke")})
    if args.jobs is None:
        args.jobs = 1 if args.smoke else min(2, os.cpu_count() or 1)
    if not (args.assets / "mem1" / "config.json").is_file():
        parser.error(f"--assets must hold the models of warm_up.py, got {args.assets}")
    if args.batch_size % args.group_size:
        parser.error(f"--batch_size must be a multiple of --group_size, got {args.batch_size} and {args.group_size}")
    return args


def main():
    args = parse_arguments()
    if args.only:
        phase, label, seed = args.only
        return run_job(args, phase, label, int(seed))
    check_settings(args)
    if not args.write_only:
        run_all(args)
    facts = {"hardware": hardware(), "commit": commit(), "torch": torch.__version__}
    groups = [*AGENTS], [*BASELINES], [*ABLATIONS] if args.ablations else []
    path = write_results(args, groups, lambda label, seed: folder(args, label, seed), facts)
    page = report(args.output_dir, max_trajectories=4)
    print(path.read_text())
    print(f"results: {path}   every turn of some episodes: {page}")


if __name__ == "__main__":
    main()
