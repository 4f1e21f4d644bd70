"""
Make the models that `run.py` starts from: from scratch, on the CPU.

    python examples/multi_objective/warm_up.py                           # writes examples/assets/multi-objective
    python examples/multi_objective/warm_up.py --smoke --output runs/warm  # the whole path in a minute, useless models

The warm-up teaches skills; reinforcement learning teaches when to use them. The lessons:

1. to copy: random words of the whole vocabulary with repeated pieces;
2. to read: three passages, and the values of their facts;
3. single turns of a scripted demonstrator on 1 to 18 objectives, at any point of the task.

The demonstrator is hasty: whenever it has found something and more is to be found, it gives up with probability 0.58 and answers
with what it has, which is worth nothing, whatever the number of objectives. So the models do not go on searching;
reinforcement learning teaches them that.

Facts are drawn again for every row, so there is nothing to memorise. Held-out names are never asked about and in no passage:
they occur in the copying exercises, and as random words in lists of earlier findings.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `lessons` and `example_options`, shared with warm_start.py

import torch
import torch.nn.functional as F
from example_options import count, parse
from lessons import (
    Heads,
    always,
    batches,
    copying_exercise,
    logits_and_targets,
    look_back,
    rotary_frequencies,
    save_start,
    small_llama,
    train,
)
from world import (
    ATTRIBUTES,
    ATTRIBUTES_PER_ENTITY,
    LINKS,
    PROTOCOL,
    TEST_NAMES,
    TRAIN_NAMES,
    VALUE_NAMES,
    build_tokenizer,
)

HASTE = 0.58
MAX_OBJECTIVES = 18
TOKENS_PER_BATCH = 2048


class Lessons:
    """Draws training rows: `(token ids, which of them are trained)`."""

    def __init__(self, tokenizer, seed, test=False):
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        self.ids = tokenizer.get_vocab()
        self.names = TEST_NAMES if test else TRAIN_NAMES
        self.test = test
        self.least = 1  # lower bound of the longest task of a row; a small one gives many short tasks
        self.everything = [i for word, i in sorted(self.ids.items()) if word not in ("<pad>", "<eos>", "<unk>")]

    def encode(self, words):
        return [self.ids[word] for word in words]

    def copying(self):
        """Random words, then pieces of them again and again; trained from the third word of a piece on."""
        return copying_exercise(self.rng, self.everything, source=(20, 48), length=110)

    def passages(self, name, question=None):
        """Three passages as a search for `name` finds them: its own and two that mention it. `(words, facts)`."""
        rng = self.rng
        others = rng.sample(self.pool(), 6)
        titles = [name, *(other for other in others if other != name)][:3]
        links = dict(zip(titles[1:], rng.sample(LINKS, 2) if rng.random() < 0.5 else [rng.choice(LINKS)] * 2))
        documents = []
        for title in titles:
            values = {a: rng.choice(VALUE_NAMES) for a in rng.sample(ATTRIBUTES, ATTRIBUTES_PER_ENTITY)}
            values |= {link: rng.choice(self.pool()) for link in LINKS}
            if title == name and question:
                if question[0] not in values:
                    values.pop(next(a for a in values if a in ATTRIBUTES))
                values[question[0]] = question[1]
            elif title != name:
                values[links[title]] = name
            documents.append((title, rng.sample(list(values.items()), len(values))))
        if rng.random() < 0.2:
            rng.shuffle(documents)
        words = []
        for number, (title, values) in enumerate(documents, 1):
            words += ["Doc", str(number), "(", "Title", ":", title, ")"]
            for attribute, value in values:
                words += [title, attribute, value]
        return words, [(title, a, v) for title, values in documents for a, v in values]

    def pool(self):
        """Words that may be names: now and then words that are values elsewhere, so that no word is tied to one role."""
        return VALUE_NAMES if not self.test and self.rng.random() < 0.3 else self.names

    def reading(self):
        """Three passages and the values of all their facts."""
        rng = self.rng
        words, facts = self.passages(rng.choice(self.pool()))
        words = ["<information>", *words, "</information>"]
        trained = [False] * len(words)
        for name, attribute, value in rng.sample(facts, len(facts)):
            words += [name, attribute, value]
            trained += [False, False, True]
        return self.encode(words), trained

    def task(self, n):
        """`n` questions `(name, attribute, value)` about different names."""
        rng = self.rng
        names = rng.sample(self.pool(), n)
        chosen = self.names + ([] if self.test else TEST_NAMES) if rng.random() < 0.3 else VALUE_NAMES
        values = rng.sample(chosen, n) if rng.random() < 0.9 else rng.choices(chosen, k=n)
        return [(name, rng.choice(ATTRIBUTES), value) for name, value in zip(names, values)]

    def write(self, task, step):
        """What the demonstrator writes when `step` questions are settled: `(state, action)`. It may give up here."""
        pointer = [] if step == 0 else list(task[step - 1][:2])
        state = ["<think>"]
        if step:
            state += [*task[step - 1], "|", *(value for _, _, value in task[:step])]
        following = ["."] if step == len(task) else list(task[step][:2])
        state += ["/", *pointer, *following, "</think>"]
        if step == len(task) or (step and self.rng.random() < HASTE):
            answers = [word for _, _, value in task[:step] for word in (value, ";")][:-1]
            return state, ["<answer>", *answers, "</answer>"]
        return state, ["<search>", *following, "</search>"]

    def found(self, question):
        """The observation after a search for `question`; its value is in the passage of the name."""
        name, attribute, value = question
        if value not in VALUE_NAMES_SET:  # an earlier finding in a row that only copies it
            value = self.rng.choice(VALUE_NAMES)
        words, _ = self.passages(name, (attribute, value))
        return ["<information>", *words, "</information>"]

    def turn(self, most, n=None, step=None):
        """One turn as a MEM1 agent sees it."""
        rng = self.rng
        n = n or rng.randint(1, rng.randint(self.least, most))
        step = rng.randint(0, n) if step is None else step
        task = self.task(n)
        words = task_words(task)
        if step:
            self.readable(task, step - 1)
            state, _ = self.write(task, step - 1)
            words += [*state, "<search>", *task[step - 1][:2], "</search>", *self.found(task[step - 1])]
        state, action = self.write(task, step)
        return self.encode([*words, *state, *action]), [False] * len(words) + [True] * len(state + action)

    def history(self, most, n=None, step=None):
        """
        All turns up to some point, as an agent sees them that forgets nothing. Whether to give up is trained in the last turn
        only: it did not in those before.
        """
        rng = self.rng
        n = n or rng.randint(1, rng.randint(self.least, most))
        earliest = n // 2 if self.least > 1 else 0
        step = rng.randint(earliest, n) if step is None else step
        task = self.task(n)
        for earlier in range(step):
            self.readable(task, earlier)
        words = task_words(task)
        trained = [False] * len(words)
        for earlier in range(step):
            state, _ = self.write(task, earlier)
            action = ["<search>", *task[earlier][:2], "</search>"]
            observation = self.found(task[earlier])
            words += [*state, *action, *observation]
            trained += [True] * len(state) + [earlier == 0] + [True] * 3 + [False] * len(observation)
        state, action = self.write(task, step)
        return self.encode([*words, *state, *action]), trained + [True] * len(state + action)

    def readable(self, task, index):
        """Give a question that is looked up a value that passages may hold."""
        name, attribute, value = task[index]
        if value not in VALUE_NAMES_SET:
            taken = {v for _, _, v in task}
            value = next(v for v in iter(lambda: self.rng.choice(VALUE_NAMES), None) if v not in taken)
            task[index] = (name, attribute, value)


VALUE_NAMES_SET = frozenset(VALUE_NAMES)


def task_words(task):
    return ["/", *(word for name, attribute, _ in task for word in (name, attribute)), "."]


# Model and training


def build_model(tokenizer, seed):
    model = small_llama(tokenizer, seed)
    set_heads(model, tokenizer.get_vocab())
    return model


@torch.no_grad()
def set_heads(model, words):
    """
    First weights that continue repeated text by the last two tokens, and look where the format needs it.

    Layers 0 and 1 are those of [`lessons.Heads`]. Layer 2 is given outputs but nothing to look for, except that one head looks three
    tokens back.
    """
    heads = Heads(model, layers=3)
    embedding = model.model.embed_tokens.weight
    frequencies = rotary_frequencies(model.config)
    token, last, layers, everywhere = heads.token, heads.last, heads.layers, always(model.config)

    def direction(word):
        vector = embedding[words[word], : heads.half - 1]
        return F.pad(vector / vector.norm(), (0, 1))

    def content_row(head, index):
        return head * heads.dim + heads.slow[index]

    heads.remember()
    heads.continue_text()
    # After a semicolon: the token after the last answer in the list of the state, but not in the answer
    heads.look_for(1, 2, [(last, last)])
    row = content_row(2, -1)
    layers[1].q_proj.weight[row, token] = 2 * everywhere
    layers[1].k_proj.weight[row, token] = -direction(";")
    heads.pass_on(1, 2, token, token, 2)
    heads.pass_on(1, 3, token, token, 1)
    # After <search>: the name that the state ends with. Two tokens ago is its attribute, and before that the name
    pairs = torch.arange(heads.dim // 2)
    look_back(layers[2], 0, 2, (pairs < 4).float(), 2, 2 * direction("<search>"))
    heads.pass_on(2, 0, last, token, 12)
    # Where the list ended last time: the new finding, which comes before the last mark of a list
    row = content_row(1, 0)
    layers[2].q_proj.weight[row, token] = 3 * direction("/")
    layers[2].k_proj.weight[row, token] = direction("|")
    layers[2].k_proj.weight[row] *= 3
    recent = ((frequencies > 0.004) & (frequencies < 0.03)).nonzero().flatten()
    layers[2].q_proj.weight[recent + heads.dim, heads.half - 1] += 1.5
    layers[2].k_proj.weight[recent + heads.dim, heads.half - 1] += 1.5
    heads.pass_on(2, 1, last, token, 12)
    heads.pass_on(2, 2, last, token, 1)
    heads.pass_on(2, 3, token, token, 1)


def mixed(lessons, row, most, share):
    """Draws turns, and in between exercises in copying and reading."""

    def draw():
        if lessons.rng.random() < share:
            return row(most)
        return lessons.reading() if lessons.rng.random() < 0.5 else lessons.copying()

    return draw


def first_lessons(lessons):
    """Stages `(name, share of the steps, function that draws a row)`, learned one after the other."""
    return [
        ("copying", 0.04, lessons.copying),
        ("reading", 0.06, mixed(lessons, lessons.turn, 1, 0.4)),
        ("turns on up to 4", 0.30, mixed(lessons, lessons.turn, 4, 0.85)),
        (f"turns on up to {MAX_OBJECTIVES}", 0.60, mixed(lessons, lessons.turn, MAX_OBJECTIVES, 0.9)),
    ]


def histories(lessons):
    """Draws whole histories for the twin, and in between the lessons of a MEM1 agent."""
    other = mixed(lessons, lessons.turn, MAX_OBJECTIVES, 0.5)
    return lambda: lessons.history(MAX_OBJECTIVES) if lessons.rng.random() < 0.7 else other()


@torch.no_grad()
def check(model, tokenizer, context, count=40):
    """Share of rows whose every trained token is the most likely one, the decision to give up apart: held-out names."""
    lessons = Lessons(tokenizer, 1234, test=True)
    row = {"mem1": lessons.turn, "full": lessons.history}[context]
    decisions = torch.tensor(lessons.encode(["<search>", "<answer>"]))
    shares = {}
    for n, step in ((2, 0), (2, 1), (2, 2), (4, 2), (8, 4), (8, 8), (16, 1), (16, 8), (16, 15), (16, 16)):
        wrong = torch.zeros(count, dtype=torch.bool)
        for start in range(0, count, 20):
            rows = [row(0, n, step) for _ in range(min(20, count - start))]
            logits, targets, which = logits_and_targets(model, rows, tokenizer.pad_token_id)
            top = logits.argmax(-1)
            missed = (top != targets) & ~(torch.isin(targets, decisions) & torch.isin(top, decisions))
            wrong[which[missed] + start] = True
        shares[f"{n}/{step}"] = round(1 - wrong.float().mean().item(), 3)
    return shares


def teach(model, lessons, steps, context, learning_rate, stages, check_every):
    """Mean of the last losses of each stage."""
    tokenizer = lessons.tokenizer
    return train(
        model,
        stages,
        steps,
        lambda draw: batches(draw, lessons.rng, TOKENS_PER_BATCH),
        tokenizer.pad_token_id,
        learning_rate=learning_rate,
        beta2=0.98,
        final_share=0.02,
        check=lambda: f"held-out names, rows right: {check(model, tokenizer, context)}",
        check_every=check_every,
    )


def describe():
    """Description of the lessons, for the readers of the results."""
    return f"""\
- Copying exercises: random words of the whole vocabulary, pieces of them repeated.
- Reading exercises: three passages of {ATTRIBUTES_PER_ENTITY + len(LINKS)} facts, and the values of their facts.
- Single turns of a scripted demonstrator on 1 to {MAX_OBJECTIVES} objectives, at any point of a task, under the context of a MEM1 agent; for
  the twin then whole histories of such turns, on as many objectives, with single turns and exercises in between.
- The demonstrator is hasty: whenever it has found something and more is to be found, it gives up with probability {HASTE} and answers with
  what it has, which earns nothing. That holds for every number of objectives, so going on is learned by reinforcement alone, on 2.
- Facts are drawn again for every row. Held-out names are never asked about and in no passage; they occur in copying exercises and as
  random words in the lists of earlier findings.
- The first weights are not random: attention heads that repeat text, and that look where the format needs it, are set by hand."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "assets" / "multi-objective")
    parser.add_argument("--steps", type=count, default=1500, help="optimizer steps of the MEM1 model")
    parser.add_argument("--long_steps", type=count, default=400, help="further steps on longer tasks")
    parser.add_argument(
        "--twin_steps", type=count, default=300, help="further steps that make the full-history twin of it"
    )
    parser.add_argument("--twin_long_steps", type=count, default=350, help="and further ones on longer histories")
    parser.add_argument("--check_every", type=count, default=250, help="steps between checks on held-out names")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    # The useless models of a short run are not to replace the bundled ones
    few = {"steps": 6, "long_steps": 2, "twin_steps": 2, "twin_long_steps": 2, "output": Path("runs/warm-up-smoke")}
    args = parse(parser, smoke=few)
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.seed)
    print(f"{model.num_parameters():,} parameters", flush=True)
    models = {}

    def make(context, *phases):
        start = time.monotonic()
        losses = {}
        for steps, learning_rate, lessons, plan in phases:
            losses |= teach(model, lessons, steps, context, learning_rate, plan, args.check_every)
        models[context] = {
            "steps": sum(phase[0] for phase in phases),
            "minutes": round((time.monotonic() - start) / 60, 1),
            "final_loss_in_nats": losses,
            "rows_right_held_out": check(model, tokenizer, context, 2 if args.smoke else 40),
        }
        save_start(model, tokenizer, PROTOCOL, args.output / context)

    first, long, second, third = (Lessons(tokenizer, args.seed + part) for part in range(4))
    long.least = third.least = MAX_OBJECTIVES
    make(
        "mem1",
        (args.steps, 3e-3, first, first_lessons(first)),
        (args.long_steps, 1e-3, long, [("long lists", 1.0, mixed(long, long.turn, MAX_OBJECTIVES, 0.95))]),
    )
    # The twin has learned to copy and to read already; between its histories, single turns keep held-out names in use
    make(
        "full",
        (args.twin_steps, 1e-3, second, [("histories", 1.0, histories(second))]),
        (args.twin_long_steps, 1e-3, third, [("long histories", 1.0, histories(third))]),
    )
    report = {
        "seed": args.seed,
        "threads": args.threads,
        "parameters": model.num_parameters(),
        "description": describe(),
        "models": models,
    }
    (args.output / "warmup.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
