"""
Make the tiny model that the quickstart starts from: tokenizer and weights, from scratch, on the CPU.

    python examples/warm_start.py                                # writes examples/assets/tiny-mem1
    python examples/warm_start.py --smoke                        # the whole path in a few minutes, for a useless model in runs/warm-start-smoke

A MEM1 policy mainly copies: the task into a query, a finding into the state, the state into the answer. So the model is taught,
in this order,

1. to copy: random tokens with repeated pieces;
2. to read: a passage, then the value of each of its facts;
3. single turns of a scripted demonstrator on one to eight objectives.

It only sees questions about the train split of the bundled facts, and half of all passages are made up: real ones with invented
names and values in them, so that the model has to read instead of remember.

The demonstrator is hasty: after each finding it gives up with probability 0.58 and answers "unknown" to the rest. The
model learns every skill here, but not to go on searching; reinforcement learning teaches it that.
"""

import argparse
import json
import random
import re
import string
import time
from pathlib import Path

import torch
from datasets import concatenate_datasets
from example_options import count, parse
from lessons import (
    EMBEDDING_SCALE,
    always,
    batches,
    look_back,
    rotary_frequencies,
    start_with_induction,
    train,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mem1_trl import Mem1Agent, Mem1Protocol, compose_objectives
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.facts import KEYWORDS, load_facts

TAGS = [f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/")]
VOCAB_SIZE = 1024
TOKENS_PER_BATCH = 4096
MAX_OBJECTIVES = 8
HASTE = 0.58
UNKNOWN = "unknown"
PROTOCOL = Mem1Protocol(
    action_tags={"search": "search"},
    instructions=" {prompt}\n",
    observation_template="\n<{tag}>{observation}</{tag}>\n",
)


# Tokenizer


def train_tokenizer(texts):
    """Byte-level BPE with single digits; any text survives encoding and decoding. Tags are one token each, not special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TAGS),
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


# Facts: the real ones, and invented ones in the same words

# Values too short to be found by themselves follow these words in a passage
AFTER_WORDS = {
    "symbol": r"symbol ",
    "atomic_number": r"atomic number (?:is )?",
    "period": r"period ",
    "group": r"group ",
    "block": r"block ",
}
DIGITS = {"calling_code": (1, 4), "atomic_number": (1, 3), "period": (1, 2), "group": (1, 2), "discovery_year": (4, 4)}
LETTERS = {"alpha2": (2, 2), "alpha3": (3, 3), "currency": (3, 3), "symbol": (1, 2)}
TITLE, LOWER_TITLE, FIRST_SLOT = "\ue000", "\ue001", 0xE002


def invent_name(rng):
    """One or two made-up words."""
    words = []
    for _ in range(rng.choice([1, 1, 2])):
        syllables = (
            rng.choice(["", *"bcdfghjklmnprstvwz", "br", "ch", "gr", "sh", "st", "th"])
            + rng.choice([*"aaeeiioouu", "ai", "au"])
            + rng.choice(["", "", *"lmnrst", "nd", "ng"])
            for _ in range(rng.randint(1, 3))
        )
        words.append("".join(syllables).capitalize())
    return " ".join(words)


class Entity:
    """A passage with a slot in place of every value, so that other values can be put in."""

    def __init__(self, title, text, rows):
        self.title, self.kind = title, rows[0]["kind"]
        self.values = {row["relation"]: row["answer"] for row in rows if row["relation"] in KEYWORDS}
        self.slots = {relation: chr(FIRST_SLOT + i) for i, relation in enumerate(self.values)}
        rules = [
            (rf"({AFTER_WORDS[r]}){re.escape(v)}\b", rf"\g<1>{self.slots[r]}")
            for r, v in self.values.items()
            if r in AFTER_WORDS
        ]
        plain = {v: self.slots[r] for r, v in self.values.items() if r not in AFTER_WORDS} | {title: TITLE}
        if self.kind == "element":
            plain[title.lower()] = LOWER_TITLE
        rules += [(rf"\b{re.escape(v)}(?!\w)", plain[v]) for v in sorted(plain, key=len, reverse=True)]
        for pattern, slot in rules:
            text = re.sub(pattern, slot, text)
        self.sentences = re.split(r"(?<=\.) ", text)
        self.relations = [relation for relation, slot in self.slots.items() if slot in text]

    def instance(self, others, rng, real):
        """`(title, relation -> value, sentences)`, true or invented."""
        title = self.title if real else rng.choice(others).title if rng.random() < 0.3 else invent_name(rng)
        values = dict(self.values)
        for relation in () if real else self.values:
            donor = rng.choice(others).values.get(relation)
            if relation in DIGITS:
                values[relation] = "".join(rng.choices(string.digits, k=rng.randint(*DIGITS[relation])))
            elif relation in LETTERS:
                code = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(*LETTERS[relation])))
                values[relation] = code.capitalize() if relation == "symbol" else code
            elif donor is not None and (relation in ("region", "subregion", "series", "block") or rng.random() < 0.4):
                values[relation] = donor
            else:
                values[relation] = invent_name(rng)
        filling = {self.slots[r]: v for r, v in values.items()} | {TITLE: title, LOWER_TITLE: title.lower()}
        return title, values, ["".join(filling.get(c, c) for c in sentence) for sentence in self.sentences]


class Lessons:
    """Draws training rows: token ids, and which of them are trained."""

    def __init__(self, tokenizer, seed):
        facts = load_facts()
        texts = {row["title"]: row["text"] for row in facts.corpus}
        rows = {}
        for row in facts.questions("train"):
            rows.setdefault(row["entity"], []).append(row)
        self.entities = [Entity(title, texts[title], questions) for title, questions in rows.items()]
        self.tokenizer, self.rng = tokenizer, random.Random(seed)

    def fact(self, short):
        """`(item, answer, passage)`; a short passage is little more than the sentence with the answer."""
        rng = self.rng
        entity = rng.choice(self.entities)
        title, values, sentences = entity.instance(self.entities, rng, real=rng.random() < 0.4)
        relation = rng.choice(entity.relations)
        slot = entity.slots[relation]
        keep = 0.15 if short else rng.choice([0.5, 1.0, 1.0])
        kept = [s for s, blank in zip(sentences, entity.sentences) if slot in blank or rng.random() < keep]
        passage = f"Doc 1(Title: {title}) {' '.join(kept)}\n"
        return KEYWORDS[relation].format(title), values[relation], passage

    def copying(self):
        """A random sequence, then pieces of it again and again; repeated tokens are trained."""
        rng = self.rng
        source = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(6, 28))]
        ids, trained = list(source), [False] * len(source)
        while len(ids) < 72:
            start = rng.randrange(len(source))
            piece = source[start : start + rng.randint(3, 14)]
            ids += piece
            trained += [False] + [True] * (len(piece) - 1)  # the start of a piece cannot be predicted
        return ids, trained

    def reading(self):
        """One passage and all its facts, in the words of the state."""
        rng = self.rng
        entity = rng.choice(self.entities)
        title, values, sentences = entity.instance(self.entities, rng, real=rng.random() < 0.3)
        ids = self.encode(f"\n<information>Doc 1(Title: {title}) {' '.join(sentences)}\n</information>\n")
        trained = [False] * len(ids)
        for relation in rng.sample(entity.relations, len(entity.relations)):
            asked, answer = (
                self.encode(f"<think> {KEYWORDS[relation].format(title)}:"),
                self.encode(f" {values[relation]} |"),
            )
            ids += asked + answer
            trained += [False] * len(asked) + [True] * len(answer)
        return ids, trained

    def turn(self, most, short):
        """
        One turn of the demonstrator. State: the last finding, then all answers, `capital of France: Paris | Fe; Paris`.
        """
        rng = self.rng
        n = rng.choices(range(1, most + 1), weights=[4, 8, 4, 3, 1.5, 1.5, 1, 1][:most])[0]
        facts = [self.fact(short) for _ in range(n)]
        step = rng.randint(0, n)
        prompt = PROTOCOL.render_task("; ".join(item for item, _, _ in facts))
        context = self.encode(prompt)
        answers = [answer for _, answer, _ in facts[:step]]
        if step == 0:
            completion = "<think> none</think>"
        else:
            before = state(facts[step - 2], answers[:-1]) if step > 1 else " none"
            item, _, passage = facts[step - 1]
            context += self.encode(f"<think>{before}</think><search> {item}</search>")
            context += self.encode("\n<information>") + self.encode(passage) + self.encode("</information>\n")
            completion = f"<think>{state(facts[step - 1], answers)}</think>"
        if step < n and (step == 0 or rng.random() >= HASTE):
            completion += f"<search> {facts[step][0]}</search>"
        else:
            completion += f"<answer> {'; '.join(answers + [UNKNOWN] * (n - step))}</answer>"
        ids = self.encode(completion)
        return context + ids, [False] * len(context) + [True] * len(ids)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)


def state(fact, answers):
    return f" {fact[0]}: {fact[1]} | {'; '.join(answers)}"


# Model and training


def build_model(tokenizer, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    set_induction_heads(model)
    return model


@torch.no_grad()
def set_induction_heads(model):
    """
    First weights that continue repeated text: layer 0 looks one token back and writes that token into the second half of the
    residual stream; layer 1 looks for positions whose second half matches the current token, and passes on the token there.
    """
    config = model.config
    half, dim, heads = config.hidden_size // 2, config.head_dim, config.num_attention_heads
    projection = torch.cat([torch.nn.init.orthogonal_(torch.empty(half, half)) for _ in range(heads * dim // half)])
    back, match = start_with_induction(model, layers=2)

    fast = (torch.arange(dim // 2) < 4).float()  # these rotary pairs tell neighbours apart
    for head in range(heads):
        look_back(back, head, 1, fast, 1.5, 1.5 * always(config))
    back.v_proj.weight[:, :half] = projection
    back.o_proj.weight[half:] = 0.5 * EMBEDDING_SCALE * projection.T

    # These barely turn within a context: they compare content
    slow = (rotary_frequencies(config) < 0.02).float() * 3 + 0.2
    content = projection * slow.repeat(2 * heads)[:, None]
    content[:, half - 1] = 0
    match.q_proj.weight[:, :half] += content
    match.k_proj.weight[:, half:] += content
    match.v_proj.weight[:, :half] = projection
    match.o_proj.weight[:half] = 6 * EMBEDDING_SCALE * projection.T


def teach(model, lessons, steps):
    """Mean of the last losses of each stage."""
    rng = lessons.rng
    stages = [  # name, share of the steps, function that draws a row
        ("copying", 0.03, lessons.copying),
        ("reading", 0.25, lessons.reading),
        ("short turns", 0.30, lambda: lessons.turn(4, True) if rng.random() < 0.85 else lessons.reading()),
        ("turns", 0.42, lambda: lessons.turn(MAX_OBJECTIVES, False) if rng.random() < 0.9 else lessons.reading()),
    ]
    return train(
        model,
        stages,
        steps,
        lambda draw: batches(draw, rng, TOKENS_PER_BATCH),
        lessons.tokenizer.pad_token_id,
        learning_rate=3e-3,
        beta2=0.95,
        final_share=0.03,
    )


def measure(directory, count):
    """Exact match on held-out entities, greedy and sampled."""
    facts = load_facts()
    factory = RetrievalQAEnvironment.factory(facts.corpus, top_k=1)
    known = facts.questions("test").filter(lambda row: row["relation"] in KEYWORDS)
    table = []
    for temperature in (0.0, 1.0):
        for n in (1, 2, 4, 8):
            rounds = []
            while sum(map(len, rounds)) < count:
                rounds.append(compose_objectives(known, n=n, question="keywords", seed=len(rounds)))
            agent = Mem1Agent.from_pretrained(
                str(directory),
                model_init_kwargs={"dtype": torch.float32},
                temperature=temperature,
                max_turns=n + 2,
                max_completion_length=96,
                max_observation_length=200,
            )
            metrics = evaluate_agent(agent, concatenate_datasets(rounds).select(range(count)), factory).metrics
            keys = ("exact_match", "turns", "valid_action_rate", "peak_tokens", "generated_tokens")
            table.append({"objectives": n, "temperature": temperature} | {k: round(metrics[k], 3) for k in keys})
            print(json.dumps(table[-1]), flush=True)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "assets" / "tiny-mem1", help="folder of the model"
    )
    parser.add_argument("--steps", type=count, default=2600, help="optimizer steps over all stages")
    parser.add_argument("--tasks", type=count, default=100, help="evaluation tasks per number of objectives")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps and tasks, to see that it runs")
    # The useless model of a short run is not to replace the bundled one
    args = parse(parser, smoke={"steps": 10, "tasks": 4, "output": Path("runs/warm-start-smoke")})
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    facts = load_facts()
    passages = [f"Doc 1(Title: {row['title']}) {row['text']}" for row in facts.corpus]
    tokenizer = train_tokenizer([*passages, *(f" {text}" for text in facts.questions("train")["keywords"])])
    model = build_model(tokenizer, args.seed)
    losses = teach(model, Lessons(tokenizer, args.seed), args.steps)
    minutes = (time.monotonic() - start) / 60

    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.float16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    PROTOCOL.save_pretrained(args.output)
    torch.manual_seed(args.seed)
    report = {
        "steps": args.steps,
        "seed": args.seed,
        "parameters": model.num_parameters(),
        "training_minutes": round(minutes, 1),
        "threads": args.threads,
        "final_loss_in_nats": losses,
        "tasks_per_row": args.tasks,
        "held_out_entities": measure(args.output, args.tasks),
    }
    (args.output / "warm_start.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
