"""
All rules of context on one task at an equal budget of tokens: what each rewards, reads and computes.

    python examples/context_rules.py                # 7 rules, about 30 minutes of one CPU core; started again, it goes on where it stopped
    python examples/context_rules.py --short        # a few steps of each, to see that it runs

The world is that of `multi_objective/`: questions of two words, looked up one by one in invented passages. Every agent starts from its model that forgets
nothing. It first imitates episodes in which the rule is used as it is meant (played by a script, through the chat interface); then GRPO trains it under
the rule. In both, every rule has the same budget of tokens that turns read and write. All rules have the same window (`max_context_length`) and are tested
greedily on the same tasks about held-out names: of as many questions as in training, and of twice as many. Written to --output_dir: `RESULTS.md`, its
picture, and `results.json`.
"""

import argparse
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "multi_objective")]

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)

import torch
from context_rules_page import write_results
from datasets import disable_progress_bars
from example_options import count, parse
from lessons import completion_row, step, whole_loss
from long_runs import write_json
from result_pages import commit
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging
from world import PROTOCOL, World

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent

MODEL = Path(__file__).parent / "assets" / "multi-objective" / "full"
RULES = {
    "mem1": {},
    "full": {},
    "truncate": {},
    "external": {"memory_top_k": 1},
    "compact": {"context_kwargs": {"every": 2}},
    "on_demand": {},
    "fold": {},
}
TAGS = {
    "rewrite": "answer",
    "branch": "search",
    "close_branch": "answer",
}  # of new actions, and the known ones that they start like
BUDGETS = {"max_completion_length": 48, "max_observation_length": 110, "conversational": False}
NOISE = 0.5  # of the embedding of a new tag, in standard deviations of the known one
LEARNING_RATE = 1e-3  # of imitation; falls to a twentieth of it


def script(rule, questions, values):
    """
    What an agent says that uses the rule as it is meant, turn by turn.

    Every state holds what was found last, all values found so far, and a pointer: the question that was settled and the next one.
    """

    def state(done):
        found = f"{questions[done - 1]} {values[done - 1]} | {' '.join(values[:done])} " if done else ""
        pointer = f"{questions[done - 1]} " if done else ""
        following = questions[done] if done < len(questions) else "."
        return f"<think> {found}/ {pointer}{following} </think>"

    texts = []
    for done, question in enumerate(questions):
        if rule == "fold":
            texts.append(f"{state(done)} <branch> {question} </branch>")
            texts.append(f"<think> / {question} </think> <search> {question} </search>")
            texts.append(f"<think> {question} {values[done]} </think> <close_branch> {values[done]} </close_branch>")
            continue
        if rule == "on_demand" and done and done % 2 == 0:
            texts.append(f"{state(done)} <rewrite> {' '.join(values[:done])} </rewrite>")
        texts.append(f"{state(done)} <search> {question} </search>")
        if rule == "compact" and done % 2:  # it is asked for a summary after every second turn
            texts.append(state(done + 1))
    return [*texts, f"{state(len(questions))} <answer> {' ; '.join(values)} </answer>"]


def reciting(texts):
    """A chat client that says `texts`, one for each request."""
    remaining = iter(texts)

    def create(**request):
        message = SimpleNamespace(content=next(remaining), tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def demonstrate(rule, rows, make_env, tokenizer, settings):
    """Contexts and completions of scripted episodes."""
    turns = []
    for row in rows:
        client = reciting(script(rule, row["questions"], [accepted[0] for accepted in row["answers"]]))
        agent = Mem1Agent("script", tokenizer, PROTOCOL, client=client, **settings)
        turns += agent.run(row["prompt"], make_env(), answers=row["answers"]).turns
    return [(list(turn.prompt_ids), list(turn.completion_ids)) for turn in turns]


def imitate(model, turns, tokens, seed):
    """Train on the completions until turns of so many tokens were read. Returns the mean loss of the last tenth, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng, read, losses = random.Random(seed), 0, []
    while read < tokens:
        rows = [completion_row(*turn) for turn in rng.sample(turns, min(8, len(turns)))]
        read += sum(len(ids) for ids, _ in rows)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(0.05, 1 - read / tokens)
        losses.append(step(model, whole_loss(model, rows, model.config.pad_token_id), optimizer, 1.0))
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


class Budget(TrainerCallback):
    """Counts the tokens that turns read and write, and ends training when they are spent."""

    def __init__(self, tokens):
        self.tokens, self.spent = tokens, 0

    def count(self, completions, trajectories, **kwargs):
        """A reward function that scores nothing."""
        self.spent += sum(tokens_of(trajectory) for trajectory in trajectories)
        return [None] * len(completions)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.spent >= self.tokens


def tokens_of(trajectory):
    return sum(len(turn.prompt_ids) + len(turn.completion_ids) for turn in trajectory.turns)


def load():
    """
    The model that all rules start from, and its tokenizer, with the tags of the rules' actions.

    Imitation is too short to learn six tokens from nothing: a new tag starts near one that is opened and closed for the same reason.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pairs = {f"<{slash}{new}>": f"<{slash}{known}>" for new, known in TAGS.items() for slash in ("", "/")}
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in pairs])
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedding = model.get_input_embeddings().weight.data
    for tag, known in pairs.items():
        start = embedding[tokenizer.convert_tokens_to_ids(known)]
        embedding[tokenizer.convert_tokens_to_ids(tag)] = start + NOISE * start.std() * torch.randn_like(start)
    return model, tokenizer


def run(rule, options, world, make_env):
    """Train under a rule and test; returns what is known of it."""
    set_seed(options.seed)
    model, tokenizer = load()
    settings = {**BUDGETS, "context": rule, "max_context_length": options.window, **RULES[rule]}
    settings["max_turns"] = 4 * 2 * options.questions + 2  # folding takes three turns for a question
    rows = world.train_tasks(options.questions)
    begin = time.process_time()
    turns = demonstrate(rule, rows.select(range(options.examples)), make_env, tokenizer, settings)
    loss = imitate(model, turns, options.imitation_tokens, options.seed)
    budget = Budget(options.tokens)
    config = Mem1GRPOConfig(
        output_dir=str(Path(options.output_dir) / rule), max_steps=options.max_steps, per_device_train_batch_size=16, num_generations=4,
        learning_rate=3e-4, lr_scheduler_type="constant", beta=0.0, report_to="none", save_strategy="no", logging_steps=1, bf16=False,
        use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, seed=options.seed, **settings,
    )  # fmt: skip
    trainer = Mem1GRPOTrainer(
        model=model, args=config, reward_funcs=budget.count, train_dataset=rows, processing_class=tokenizer, environment_factory=make_env,
        protocol=PROTOCOL, callbacks=[budget],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trained = time.process_time() - begin
    agent = Mem1Agent(trainer.model.eval(), tokenizer, PROTOCOL, **settings)
    tested = {}
    for questions in (options.questions, 2 * options.questions):
        tasks = list(world.test_tasks(questions, options.tasks))
        found = evaluate_agent(agent, tasks, make_env, label=rule, seed=options.seed)
        interval = found.statistics["exact_match_per_objective"]
        totals = [tokens_of(task.trajectory) for task in found.tasks]
        tested[str(questions)] = {
            **found.metrics,
            "total_tokens": sum(totals) / len(totals),
            "interval": [interval.low, interval.high],
        }
    return {
        "commit": commit(),
        "imitation_loss": loss,
        "steps": trainer.state.global_step,
        "tokens": budget.spent,
        "cpu_seconds": {"training": trained, "all": time.process_time() - begin},
        "reward_in_training": [log["reward"] for log in trainer.state.log_history if "reward" in log],
        "tested": tested,
    }


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument(
        "--questions", type=count, default=4, help="questions of a task in training; tests ask twice as many, too"
    )
    parser.add_argument("--window", type=count, default=600, help="maximum tokens of a context")
    parser.add_argument("--examples", type=count, default=60, help="scripted episodes to imitate")
    parser.add_argument(
        "--imitation_tokens", type=count, default=240_000, help="tokens of the turns that are imitated"
    )
    parser.add_argument("--tokens", type=count, default=60_000, help="tokens of the turns that GRPO plays")
    parser.add_argument("--max_steps", type=count, default=1000)
    parser.add_argument("--tasks", type=count, default=40, help="tasks of each test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/context_rules")
    parser.add_argument("--short", action="store_true", help="a few steps of each")
    few = {"questions": 2, "examples": 4, "imitation_tokens": 8_000, "tokens": 1, "tasks": 2}
    options = parse(parser, args, short=few)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    world = World(options.seed)
    make_env = RetrievalQAEnvironment.factory(world.corpus, top_k=3)
    output = Path(options.output_dir)
    asked = {key: value for key, value in vars(options).items() if key not in ("rules", "output_dir", "short")}
    path, found = output / "results.json", {}
    if path.is_file():
        before = json.loads(path.read_text())
        found = before["rules"] if before["options"] == asked else {}  # of other options: begun again
    for rule in options.rules:
        if rule not in found:
            found[rule] = run(rule, options, world, make_env)
            shown = {n: round(one["exact_match_per_objective"], 2) for n, one in found[rule]["tested"].items()}
            print(f"{rule}: answers right by questions {shown}, {found[rule]['cpu_seconds']['all']:.0f} s", flush=True)
        found = {one: found[one] for one in RULES if one in found}
        results = {"commit": commit(), "options": asked, "rules": found}
        write_json(path, results)
        write_results(results, output)
    return found


if __name__ == "__main__":
    main()
