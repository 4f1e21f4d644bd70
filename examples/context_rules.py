"""
All rules of context on one task at an equal budget of tokens: what each rewards, reads and computes.

    python examples/context_rules.py                # 7 rules, about an hour on 2 CPU cores
    python examples/context_rules.py --short        # a few steps of each, to see that it runs

Questions are looked up one by one in the bundled facts. The tiny model of the quickstart first imitates episodes in which the rule is used as it is meant
(played by a script, through the chat interface); then GRPO trains it under the rule until `--tokens` tokens were in its updates. All rules have the same window
(`max_context_length`) and are tested greedily on the same tasks. Written to --output_dir: `context_rules.json`, `context_rules.md`, `context_rules.png`.
"""

import argparse
import json
import os
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.utils import logging

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1Protocol, compose_objectives
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.facts import KEYWORDS, load_facts

MODEL = Path(__file__).parent / "assets" / "tiny-mem1"
RULES = {
    "mem1": {},
    "full": {},
    "truncate": {},
    "external": {"memory_top_k": 2},
    "compact": {"context_kwargs": {"every": 2}},
    "on_demand": {},
    "fold": {},
}
BUDGETS = {"max_completion_length": 64, "max_observation_length": 160, "conversational": False}
COLUMNS = {
    "exact_match_per_objective": ("answers right", ".2f"),
    "peak_tokens": ("peak tokens", ",.0f"),
    "total_tokens": ("total tokens", ",.0f"),
    "dependency_length": ("attention pairs", ",.0f"),
    "turns": ("calls", ".1f"),
    "summaries": ("summaries", ".1f"),
    "summary_saved_tokens": ("tokens saved", ",.0f"),
    "summary_lost_answers": ("answers lost", ".2f"),
}


def script(rule, items, answers):
    """What an agent says that uses the rule as it is meant, turn by turn."""
    texts, found, last = [], [], " none"
    keeps = rule in ("mem1", "external", "truncate")  # the state has to hold all that was found
    for number, (item, answer) in enumerate(zip(items, answers)):
        think = f"<think>{last}</think>"
        if rule == "fold":
            texts += [f"{think}<branch> {item}</branch>", f"{think}<search> {item}</search>"]
            texts.append(f"<think> {item}: {answer}</think><close_branch> {answer}</close_branch>")
            last = " none"
        else:
            texts.append(f"{think}<search> {item}</search>")
            last = f" {item}: {answer}"
        found.append(answer)
        if keeps:
            last += f" | {'; '.join(found)}"
        elif number % 2 and rule in ("compact", "on_demand"):
            gathered = f" {'; '.join(found)}"
            texts.append(
                f"<think>{gathered}</think>"
                if rule == "compact"
                else f"<think>{last}</think><rewrite>{gathered}</rewrite>"
            )
            last = " none"
    return [*texts, f"<think>{last}</think><answer> {'; '.join(found)}</answer>"]


def reciting(texts):
    """A chat client that says `texts`, one for each request."""
    remaining = iter(texts)

    def create(**request):
        message = SimpleNamespace(content=next(remaining), tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def demonstrate(rule, rows, make_env, tokenizer, protocol, settings):
    """Contexts and completions of scripted episodes."""
    turns = []
    for row in rows:
        client = reciting(script(rule, row["items"], [accepted[0] for accepted in row["answers"]]))
        agent = Mem1Agent("script", tokenizer, protocol, client=client, **settings)
        turns += agent.run(row["prompt"], make_env(), answers=row["answers"]).turns
    return [(list(turn.prompt_ids), list(turn.completion_ids)) for turn in turns]


def imitate(model, turns, tokens, seed):
    """Train on the completions until so many tokens were read."""
    optimizer, rng, read = torch.optim.AdamW(model.parameters(), lr=2e-3), random.Random(seed), 0
    while read < tokens:
        batch = rng.sample(turns, min(8, len(turns)))
        longest = max(len(context) + len(completion) for context, completion in batch)
        ids, labels = torch.zeros(len(batch), longest, dtype=torch.long), torch.full((len(batch), longest), -100)
        mask = torch.zeros_like(ids)
        for row, (context, completion) in enumerate(batch):
            end = len(context) + len(completion)
            ids[row, :end], mask[row, :end] = torch.tensor(context + completion), 1
            labels[row, len(context) : end] = torch.tensor(completion)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        read += int(mask.sum())


class StopAtTokens(TrainerCallback):
    """Ends training when so many tokens were in updates."""

    def __init__(self, tokens):
        self.tokens = tokens

    def on_log(self, args, state, control, logs=None, **kwargs):
        control.should_training_stop |= (logs or {}).get("num_tokens", 0) >= self.tokens


def tasks(facts, split, n, count, seed):
    """Tasks of `n` questions in search words."""
    rows = facts.questions(split).filter(lambda row: row["relation"] in KEYWORDS)
    rounds = [
        compose_objectives(rows, n=n, question="keywords", seed=seed + i) for i in range(1 + count * n // len(rows))
    ]
    found = [row for one in rounds for row in one][:count]
    return [{**row, "items": row["prompt"].split("; ")} for row in found]


def run(rule, options, facts, make_env):
    """Train under a rule and test; returns the means of the test."""
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    protocol = Mem1Protocol.from_pretrained(MODEL)
    turns = {"max_turns": 4 * options.questions + 2}
    settings = {**BUDGETS, **turns, "context": rule, "max_context_length": options.window, **RULES[rule]}
    examples = tasks(facts, "train", options.questions, options.examples, options.seed)
    imitate(
        model,
        demonstrate(rule, examples, make_env, tokenizer, protocol, settings),
        options.imitation_tokens,
        options.seed,
    )
    config = Mem1GRPOConfig(
        output_dir=str(Path(options.output_dir) / rule), max_steps=options.max_steps, per_device_train_batch_size=16, num_generations=8,
        learning_rate=1e-4, beta=0.0, report_to="none", save_strategy="no", logging_steps=1, bf16=False, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False, disable_tqdm=True, seed=options.seed, **settings,
    )  # fmt: skip
    from datasets import Dataset

    trainer = Mem1GRPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(examples), processing_class=tokenizer, environment_factory=make_env,
        protocol=protocol, callbacks=[StopAtTokens(options.tokens)],
    )  # fmt: skip
    trainer.train()
    agent = Mem1Agent(trainer.model.eval(), tokenizer, protocol, **settings)
    tested = tasks(facts, "test", options.questions, options.tasks, 1000)
    evaluation = evaluate_agent(agent, tested, make_env, label=rule, seed=options.seed)
    totals = [
        sum(len(t.prompt_ids) + len(t.completion_ids) for t in task.trajectory.turns) for task in evaluation.tasks
    ]
    means = {**evaluation.metrics, "total_tokens": sum(totals) / len(totals)}
    return {
        **means,
        "steps": trainer.state.global_step,
        "reward_in_training": [log["reward"] for log in trainer.state.log_history if "reward" in log],
    }


def table(results):
    """The results in Markdown."""
    lines = ["| rule | " + " | ".join(name for name, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for rule, means in results.items():
        cells = [f"{means[key]:{form}}" if key in means else "" for key, (_, form) in COLUMNS.items()]
        lines.append(f"| `{rule}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results, path):
    """A panel for reward, peak tokens, total tokens and attention pairs each."""
    shown = list(COLUMNS.items())[:4]
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 3.6), sharey=True)
    for axis, (key, (name, form)) in zip(axes, shown):
        values = [means[key] for means in results.values()]
        bars = axis.barh(list(results), values, color="#4477aa")
        axis.bar_label(bars, [f"{value:{form}}" for value in values], padding=3, fontsize=8)
        axis.set_xlim(0, max([*values, 1e-9]) * 1.3)
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--questions", type=int, default=4, help="questions of a task")
    parser.add_argument("--window", type=int, default=900, help="maximum tokens of a context")
    parser.add_argument("--examples", type=int, default=200, help="tasks to imitate and to train on")
    parser.add_argument("--imitation_tokens", type=int, default=2_000_000)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens in the updates of GRPO")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=64, help="tasks of the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/context_rules")
    parser.add_argument("--short", action="store_true", help="a few steps of each")
    options = parser.parse_args(args)
    if options.short:
        options.examples, options.imitation_tokens, options.tokens, options.tasks = 4, 8_000, 1, 2
    logging.set_verbosity_error()
    facts = load_facts()
    make_env = RetrievalQAEnvironment.factory(facts.corpus, top_k=1)
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    results = {}
    for rule in options.rules:
        results[rule] = run(rule, options, facts, make_env)
        print(
            f"{rule}: "
            + ", ".join(f"{name} {results[rule].get(key, 0):{form}}" for key, (name, form) in COLUMNS.items()),
            flush=True,
        )
        (output / "context_rules.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / "context_rules.md").write_text(table(results))
        plot(results, output / "context_rules.png")
    print(table(results))
    return results


if __name__ == "__main__":
    main()
