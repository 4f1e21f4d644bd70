"""
Supervised stage: collect episodes, keep the good ones, imitate them with TRL's SFTTrainer, and measure the effect.

    python examples/sft.py                                             # the tiny model in examples/assets, from itself
    python examples/sft.py --smoke                                     # the same on a few tasks, to see that it runs
    python examples/sft.py --model Qwen/Qwen2.5-0.5B-Instruct \\
        --endpoint http://localhost:8000/v1 --teacher Qwen/Qwen2.5-7B-Instruct    # another model as the teacher

Without --endpoint the model is its own teacher (rejection sampling): it plays every task several times at temperature 1 and
learns from the episodes in which all questions were answered. If it is run again, it continues where it was stopped. Written to
--output_dir: the episodes (`episodes.jsonl`), the model (`model/`, which `Mem1Agent.from_pretrained` loads), `results.json`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning)  # about names that transformers and TRL use themselves
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import torch
from datasets import concatenate_datasets, disable_progress_bars
from example_options import count, parse, rate
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from mem1_trl import Mem1Agent, Mem1Protocol, compose_objectives
from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset, select_trajectories
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.facts import KEYWORDS, load_facts

TINY_MODEL = Path(__file__).parent / "assets" / "tiny-mem1"


def tasks(split, n, count, seed):
    """`count` tasks of `n` questions such as `capital of France`; shuffled again for each further round."""
    questions = load_facts().questions(split).filter(lambda row: row["relation"] in KEYWORDS)
    rounds = []
    while sum(map(len, rounds)) < count:
        rounds.append(compose_objectives(questions, n=n, question="keywords", seed=seed + len(rounds)))
    return concatenate_datasets(rounds).select(range(count))


def evaluate(agent, args, factory, when):
    """Greedy scores for each number of objectives, on entities that no task of the collection asks about."""
    print(
        f"{when}: {args.eval_tasks} held-out tasks of {', '.join(map(str, args.eval_objectives))} objectives ...",
        flush=True,
    )
    scores = {}
    for n in args.eval_objectives:
        rows = tasks("test", n, args.eval_tasks, seed=1000)
        scores[n] = evaluate_agent(agent, rows, factory).metrics
    return scores


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY_MODEL), help="path or id of the model that learns")
    parser.add_argument("--endpoint", help="address of an OpenAI-compatible server, used as the teacher")
    parser.add_argument("--teacher", help="name of the model at the endpoint")
    parser.add_argument("--output_dir", default="runs/sft")
    parser.add_argument("--objectives", type=count, default=2, help="questions of a task to learn from")
    parser.add_argument("--tasks", type=count, default=150, help="tasks to collect")
    parser.add_argument("--samples", type=count, default=4, help="episodes for each task")
    parser.add_argument(
        "--best_per_task", type=count, default=2, help="maximum number of episodes per task to learn from"
    )
    parser.add_argument("--learning_rate", type=rate, default=None, help="(tiny model: 5e-4, else 1e-5)")
    parser.add_argument("--epochs", type=rate, default=1)
    parser.add_argument("--batch_size", type=count, default=32, help="turns per optimizer step")
    parser.add_argument(
        "--eval_objectives", type=count, nargs="+", help="(default: 1 2 4; with --smoke that of --objectives)"
    )
    parser.add_argument("--eval_tasks", type=count, default=100, help="held-out tasks for each number of objectives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few tasks and steps, to see that it runs")
    args = parse(parser, smoke={"tasks": 16, "samples": 2, "epochs": 1, "eval_tasks": 8})
    args.eval_objectives = args.eval_objectives or ([args.objectives] if args.smoke else [1, 2, 4])
    if args.teacher and not args.endpoint:
        parser.error("--teacher names a model at an endpoint and needs --endpoint")
    return args


def main():
    args = parse_arguments()
    began = time.perf_counter()
    set_seed(args.seed)
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    output = Path(args.output_dir)
    tiny = Path(args.model).resolve() == TINY_MODEL.resolve()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    protocol = Mem1Protocol.from_pretrained(TINY_MODEL) if tiny else Mem1Protocol()
    factory = RetrievalQAEnvironment.factory(load_facts().corpus, top_k=1 if tiny else 3)
    settings = {"max_completion_length": 64 if tiny else 500, "max_observation_length": 200 if tiny else 500}
    student = Mem1Agent(model, tokenizer, protocol, **settings)
    before = evaluate(student, args, factory, "before")

    settings["temperature"] = 1.0
    if args.endpoint:  # the student's tokenizer: the episodes are written in its token ids
        teacher = Mem1Agent(args.teacher, tokenizer, protocol, **settings, batch_size=8, client=args.endpoint)
    else:
        teacher = Mem1Agent(model, tokenizer, protocol, **settings)
    played = collect_trajectories(
        teacher,
        tasks("train", args.objectives, args.tasks, args.seed),
        factory,
        output / "episodes.jsonl",
        samples=args.samples,
    )
    kept = select_trajectories(played, min_reward=float(args.objectives), best_per_task=args.best_per_task)
    dataset = demonstration_dataset(kept)
    print(f"{len(played)} episodes, of which {len(kept)} are kept: {len(dataset)} turns to learn from")

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(output / "checkpoints"),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate or (5e-4 if tiny else 1e-5),
            max_length=None,  # a cut row would lose its completion
            gradient_checkpointing=not tiny,
            bf16=torch.cuda.is_available(),
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(output / "model"))
    student.save_settings(output / "model")  # so that the saved model is run as it was taught

    after = evaluate(Mem1Agent.from_pretrained(str(output / "model")), args, factory, "after")
    for n in before:
        b, a = before[n]["exact_match_per_objective"], after[n]["exact_match_per_objective"]
        print(f"{n} objectives, {args.eval_tasks} held-out tasks: EM per objective {b:.2f} -> {a:.2f}")
    results = {"arguments": vars(args), "episodes": len(played), "kept": len(kept), "turns": len(dataset)}
    results |= {"before": before, "after": after, "seconds": round(time.perf_counter() - began, 1)}
    results |= {"loss": [log["loss"] for log in trainer.state.log_history if "loss" in log]}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for what, name in (("model", "model"), ("episodes", "episodes.jsonl"), ("numbers", "results.json")):
        print(f"{what}: {output / name}")


if __name__ == "__main__":
    main()
