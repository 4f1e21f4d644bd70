"""
Make the tiny model the quickstart starts from: tokenizer and weights from scratch, on one CPU core.

A MEM1 policy is mostly copying: questions into queries, findings into the state, the state into the answer. So the model
learns, in this order,

1. to copy: random tokens with repeated pieces (its first two layers start near a circuit that does it);
2. to read: a passage or two, and everything that can be asked about them;
3. the MEM1 format: single turns of a scripted demonstrator on 1 to 8 questions.

All questions are about entities of the train split. In half of the episodes' findings and most reading exercises the
facts are invented (other or made-up names and values put into the passages), so that the model reads instead of
remembering. Passages of the test split appear as distractors only.

The demonstrator is hasty on purpose: after each finding it gives up with probability 0.58 while questions remain,
answering "unknown" to those, and it sometimes forgets an answer. The warm model has every skill, but not the patience:
that is left to reinforcement learning.

    python examples/warm_start.py                            # writes examples/assets/tiny-mem1; DURATION
    python examples/warm_start.py --smoke --output smoke     # every step once, in under a minute, for a useless model

Needs mem1-trl only. The output holds the model in float16, the tokenizer, the protocol, and what was measured
(warm_start.json).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.facts import load_facts
from mem1_trl.protocol import Mem1Protocol
from mem1_trl.rewards import exact_match, normalize_answer, split_answers
from mem1_trl.tasks import compose_objectives

TAGS = [f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/")]
VOCAB_SIZE = 1024
COPY_STEPS = 100
STEPS = 1500
TOKENS_PER_BATCH = 3072
TOP_K = 2
MAX_OBSERVATION_TOKENS = 200
MAX_OBJECTIVES = 8
HASTE = 0.58  # probability of giving up after a finding, while questions remain
FORGET = 0.1  # probability of losing an earlier answer when the state is rewritten
UNKNOWN = "unknown"
REPORT_FILE = "warm_start.json"

# How the episodes below are written, for whoever runs the model with mem1-trl
PROTOCOL = Mem1Protocol(
    action_tags={"search": "search"},
    instructions="{prompt}\n",
    observation_template="\n<{tag}>{observation}</{tag}>\n",
    truncation_marker="",
)

# The query is the question without its first words, which any question could begin with.
OPENING = re.compile(r"^(What is the|What is a|What kind of|In which|Which is the|Which)(?= )")


# Tokenizer


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
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
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


# Stage 1: copying


def copying_batch(rng: random.Random, rows: int, length: int) -> torch.Tensor:
    """`(rows, length)` token ids: a random sequence, then pieces of it again and again."""
    batch = []
    for _ in range(rows):
        pool = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([10, 30, 100]))]
        source = [rng.choice(pool) for _ in range(rng.randint(4, length // 3))]
        row = list(source)
        while len(row) < length:
            start = rng.randrange(len(source))
            row += source[start : start + rng.randint(2, 14)]
        batch.append(row[:length])
    return torch.tensor(batch)


# Stage 2: the demonstrator


@dataclass(frozen=True)
class Fact:
    """One question, its answer, the search result (what `search` returns, uncut) and the query that finds it."""

    question: str
    answer: str
    result: str


def item_of(question: str, first: bool) -> str:
    """The question as the state lists it, which is also the query. A leading space unless it opens the whole prompt."""
    text = question.rstrip("?")
    shortened = OPENING.sub("", text)
    return shortened if shortened != text or first else f" {text}"


def render_state(finding: str, answers: list[str], items: list[str]) -> str:
    """`" symbol of iron: Fe | Paris; Fe | capital of Spain"`: the last finding, all answers, what is left."""
    return f"{finding} |" + ";".join(f" {answer}" for answer in answers) + " |" + ";".join(items)


def demonstrate(facts: list[Fact], step: int, rng: random.Random) -> tuple[str, str, str, str]:
    """
    Turn number `step` (from 0) of an episode about `facts`.

    Returns:
        `tuple[str, str, str, str]`: the task prompt, the previous completion and its search result (both empty in the first
        turn), and the completion.
    """
    items = [item_of(fact.question, first=i == 0) for i, fact in enumerate(facts)]
    findings = ["", *(f"{item}: {fact.answer}" for item, fact in zip(items, facts))]
    prompt = "; ".join(fact.question for fact in facts) + "\n"
    if step == 0:
        return prompt, "", "", f"<think>{render_state('', [], items)}</think><search>{items[0]}</search>"

    answers = [UNKNOWN if rng.random() < FORGET else fact.answer for fact in facts[: step - 1]]
    previous = f"<think>{render_state(findings[step - 1], answers, items[step - 1 :])}</think>"
    previous += f"<search>{items[step - 1]}</search>"
    if answers and rng.random() < FORGET:
        answers[rng.randrange(len(answers))] = UNKNOWN
    answers.append(facts[step - 1].answer)
    left = items[step:]
    completion = f"<think>{render_state(findings[step], answers, left)}</think>"
    if left and rng.random() >= HASTE:
        completion += f"<search>{left[0]}</search>"
    else:
        completion += "<answer>" + ";".join(f" {a}" for a in answers + [UNKNOWN] * len(left)) + "</answer>"
    return prompt, previous, facts[step - 1].result, completion


# Facts: the real ones, and invented ones in the same words

# Values too short to be found by themselves stand behind these words, in passages and in questions.
BEHIND = {
    "symbol": r"symbol ",
    "atomic_number": r"atomic number (?:is )?",
    "period": r"period ",
    "group": r"group ",
    "block": r"block ",
}
DIGITS = {"calling_code": (1, 4), "atomic_number": (1, 3), "period": (1, 2), "group": (1, 2), "discovery_year": (4, 4)}
LETTERS = {"alpha2": (2, 2), "alpha3": (3, 3), "currency": (3, 3), "symbol": (1, 2)}
FROM_A_FEW = ("region", "subregion", "series", "block")
TITLE, LOWER_TITLE, FIRST_SLOT = "\ue000", "\ue001", 0xE002


def invent_name(rng: random.Random) -> str:
    """One to three made-up words, some pronounceable, some not."""
    words = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        if rng.random() < 0.7:
            syllables = (
                rng.choice(["", *"bcdfghjklmnprstvwz", "br", "ch", "gr", "kh", "sh", "st", "th", "tr"])
                + rng.choice([*"aaeeiioouuy", "ai", "au", "ea", "ou"])
                + rng.choice(["", "", *"lmnrst", "nd", "ng", "rk"])
                for _ in range(rng.randint(1, 3))
            )
            word = "".join(syllables)
        else:
            word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 6)))
        words.append(word.capitalize())
    return " ".join(words)


class Entity:
    """
    A passage and its questions with a slot in place of every value, so that other values can be put in.

    Args:
        title (`str`), text (`str`):
            The passage.
        questions (`list[dict]`):
            Rows of `Facts.questions` about it.
    """

    def __init__(self, title: str, text: str, questions: list[dict]) -> None:
        self.values = {row["relation"]: row["answer"] for row in questions}
        self.values.pop("country_of_capital", None)  # these two ask for the title
        self.values.pop("element_of_number", None)
        self.title = title
        self.relations = {chr(FIRST_SLOT + i): relation for i, relation in enumerate(self.values)}
        slots = {relation: slot for slot, relation in self.relations.items()}
        rules = [
            (rf"({BEHIND[r]}){re.escape(v)}\b", rf"\g<1>{slots[r]}") for r, v in self.values.items() if r in BEHIND
        ]
        plain = {v: slots[r] for r, v in self.values.items() if r not in BEHIND} | {title: TITLE}
        if questions[0]["kind"] == "element":
            plain[title.lower()] = LOWER_TITLE
        rules += [(rf"\b{re.escape(v)}(?!\w)", plain[v]) for v in sorted(plain, key=len, reverse=True)]

        def blank(string_: str) -> str:
            for pattern, slot in rules:
                string_ = re.sub(pattern, slot, string_)
            return string_

        self.sentences = re.split(r"(?<=\.) ", blank(text))
        self.questions = []
        for row in questions:
            slot = slots.get(row["relation"], LOWER_TITLE if row["kind"] == "element" else TITLE)
            if slot in blank(text):
                self.questions.append((blank(row["question"]), slot))

    def invent(self, others: list[Entity], rng: random.Random) -> dict[str, str]:
        """Slot -> value: from another entity or made up."""
        title = rng.choice(others).title if rng.random() < 0.3 else invent_name(rng)
        filling = {TITLE: title, LOWER_TITLE: title.lower()}
        for slot, relation in self.relations.items():
            donor = rng.choice(others).values.get(relation)
            if donor is not None and rng.random() < (0.7 if relation in FROM_A_FEW else 0.3):
                filling[slot] = donor
            elif relation in DIGITS:
                filling[slot] = "".join(rng.choices(string.digits, k=rng.randint(*DIGITS[relation])))
            elif relation in LETTERS:
                code = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(*LETTERS[relation])))
                filling[slot] = code.capitalize() if relation == "symbol" else code
            elif relation == "block":
                filling[slot] = rng.choice(string.ascii_lowercase)
            else:
                filling[slot] = invent_name(rng)
        return filling

    def own(self) -> dict[str, str]:
        """Slot -> the true value."""
        values = {slot: self.values[relation] for slot, relation in self.relations.items()}
        return {TITLE: self.title, LOWER_TITLE: self.title.lower()} | values

    def shorten(self, rng: random.Random, needed: str = "") -> str:
        """The passage with its slots, some sentences left out, but none with the slot `needed`."""
        kept = [s for s in self.sentences if (needed and needed in s) or rng.random() < 0.6] or self.sentences[:1]
        return " ".join(kept)


def fill(template: str, filling: dict[str, str]) -> str:
    """Put values into slots."""
    return "".join(filling.get(character, character) for character in template)


def render_result(passages: list[tuple[str, dict[str, str]]]) -> str:
    """What the search returns for these passages, each with its slots and what to put in."""
    return "".join(
        f"Doc {i}(Title: {filling[TITLE]}) {fill(text, filling)}\n"
        for i, (text, filling) in enumerate(passages, start=1)
    )


# Token ids, and which of them are trained
Row = tuple[list[int], list[bool]]


class Demonstrations:
    """Draws training rows about the train split: single turns of the demonstrator, and reading exercises."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        facts = load_facts()
        texts = {row["title"]: row["text"] for row in facts.corpus}
        search = RetrievalQAEnvironment.factory(facts.corpus, top_k=TOP_K)().search
        by_entity: dict[str, list[dict]] = {}
        for row in facts.questions("train"):
            by_entity.setdefault(row["entity"], []).append(row)
        self.entities = [Entity(title, texts[title], rows) for title, rows in by_entity.items()]
        self.real = [
            Fact(row["question"], row["answer"], search(item_of(row["question"], first=False).strip()))
            for rows in by_entity.values()
            for row in rows
        ]
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)

    def invented_fact(self) -> Fact:
        """A question about an invented entity, with its passage and another one in either order."""
        rng = self.rng
        entity, other = rng.sample(self.entities, 2)
        filling, other_filling = entity.invent(self.entities, rng), other.invent(self.entities, rng)
        question, slot = rng.choice(entity.questions)
        passages = [(entity.shorten(rng, needed=slot), filling), (other.shorten(rng), other_filling)]
        if rng.random() < 0.2:
            passages.reverse()
        result = render_result(passages)
        return Fact(fill(question, filling), filling[slot], result)

    def reading(self, num_passages: int) -> Row:
        """
        A search result of `num_passages` passages and all that can be asked about it, in the words of the state, with only
        the answers trained: ten times as many findings per token as in a turn.
        """
        rng = self.rng
        passages, lines = [], []
        for entity in rng.sample(self.entities, num_passages):
            filling = entity.own() if rng.random() < 0.3 else entity.invent(self.entities, rng)
            text = entity.shorten(rng)
            passages.append((text, filling))
            lines += [
                (f"<think>{item_of(fill(question, filling), first=False)}:", f" {filling[slot]} |")
                for question, slot in entity.questions
                if slot in text
            ]
        ids = self.encode(f"\n<information>{render_result(passages)}</information>\n")
        trained = [False] * len(ids)
        for asked, answer in rng.sample(lines, len(lines)):
            for text, is_trained in ((asked, False), (answer, True)):
                added = self.encode(text)
                ids += added
                trained += [is_trained] * len(added)
        return ids, trained

    def turn(self, max_objectives: int) -> Row:
        """One turn of an episode with 1 to `max_objectives` objectives; its completion is trained, its context is not."""
        rng = self.rng
        n = min(rng.choices(range(1, MAX_OBJECTIVES + 1), weights=[5, 8, 4, 3, 1.5, 1.5, 1, 1])[0], max_objectives)
        facts = [rng.choice(self.real) if rng.random() < 0.5 else self.invented_fact() for _ in range(n)]
        step = rng.choice(range(n + 1)) if rng.random() < 0.85 else n
        if step:  # what the cut search result does not hold cannot be found
            found = facts[step - 1]
            shown = self.tokenizer.decode(self.encode(found.result)[:MAX_OBSERVATION_TOKENS])
            facts[step - 1] = Fact(found.question, found.answer if found.answer in shown else UNKNOWN, shown)
        prompt, previous, result, completion = demonstrate(facts, step, rng)
        context = context_ids(self.tokenizer, prompt, self.encode(previous) if previous else None, result)
        completion_ids = self.encode(completion)
        return context + completion_ids, [False] * len(context) + [True] * len(completion_ids)

    def batches(self, draw: Callable[[], Row]) -> list[list[Row]]:
        """256 rows sorted by length and split where `TOKENS_PER_BATCH` is reached, in random order."""
        batches: list[list[Row]] = [[]]
        for row in sorted((draw() for _ in range(256)), key=lambda row: len(row[0])):
            if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > TOKENS_PER_BATCH:
                batches.append([])
            batches[-1].append(row)
        self.rng.shuffle(batches)
        return batches

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def context_ids(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: list[int] | None = None, result: str = ""
) -> list[int]:
    """The task prompt, then the previous completion and its search result (cut by tokens, inside its tags), if any."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    if completion is None:
        return encode(prompt)
    shown = encode(result)[:MAX_OBSERVATION_TOKENS]
    return encode(prompt) + completion + encode("\n<information>") + shown + encode("</information>\n")


# Model and training


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """
    A Llama of 0.98 M parameters, random but for its first two attention layers, see [`start_with_induction`].
    """
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
    start_with_induction(model)
    return model


@torch.no_grad()
def start_with_induction(model: LlamaForCausalLM) -> None:
    """
    Start near a circuit that continues repeated text (Olsson et al., "In-context learning and induction heads", 2022).

    The first half of the residual stream holds the token. Layer 0 looks one token back and writes what it saw into the
    second half; layer 1 looks for positions whose second half matches the current token, and passes on the token there.
    From random weights that circuit takes most of an hour of one core to appear; from here, training has to sharpen it.
    """
    config = model.config
    half, dim, heads = config.hidden_size // 2, config.head_dim, config.num_attention_heads
    scale = 0.1  # standard deviation of an embedding
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(dim // 2) / (dim // 2))
    projection = torch.cat([torch.nn.init.orthogonal_(torch.empty(half, half)) for _ in range(heads * dim // half)])
    back, match = (layer.self_attn for layer in model.model.layers[:2])
    for attention in (back, match):
        for matrix in (attention.v_proj, attention.o_proj):
            matrix.weight *= 0.05

    # The last number of the first half is the same for all tokens: it lets layer 0 attend by position alone
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, scale)[:, half - 1 :] = 0
    embedding[:, half - 1] = 6 * scale

    fast = (torch.arange(dim // 2) < 4).float()  # these rotary pairs tell neighbours apart
    key = torch.cat([fast, 0 * fast])
    query = torch.cat([fast * torch.cos(frequencies), -fast * torch.sin(frequencies)])  # the key, one position earlier
    back.k_proj.weight[:, half - 1] += 1.5 * key.repeat(heads)
    back.q_proj.weight[:, half - 1] += 1.5 * query.repeat(heads)
    back.v_proj.weight[:, :half] = projection
    back.o_proj.weight[half:] = 0.5 * scale * projection.T

    slow = (frequencies < 0.02).float() * 3 + 0.2  # these barely turn within a context: they compare content
    content = projection * slow.repeat(2 * heads)[:, None]
    content[:, half - 1] = 0
    match.q_proj.weight[:, :half] += content
    match.k_proj.weight[:, half:] += content
    match.v_proj.weight[:, :half] = projection
    match.o_proj.weight[:half] = 6 * scale * projection.T


def masked_loss(model: LlamaForCausalLM, input_ids: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the tokens where `trained` (bool, same shape as `input_ids`) holds."""
    # Rows are padded on the right, so that causal attention needs no padding mask
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    predicting = trained[:, 1:]
    logits = model.lm_head(hidden[:, :-1][predicting])
    return F.cross_entropy(logits, input_ids[:, 1:][predicting])


def pad_batch(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(input_ids, trained)`, both `(rows, longest)`, padded on the right."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in rows])
    trained = torch.tensor([flags + [False] * (length - len(flags)) for _, flags in rows])
    return input_ids, trained


class Stage:
    """AdamW with a warm-up and a cosine down to a twentieth; one line of loss now and then."""

    def __init__(self, name: str, model: LlamaForCausalLM, steps: int, learning_rate: float) -> None:
        self.name, self.model, self.steps, self.done = name, model, steps, 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min(1.0, (s + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps)))),
        )
        self.start, self.losses = time.monotonic(), []

    def update(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.done += 1
        if self.done % 50 == 0 or self.done == self.steps:
            recent = sum(self.losses[-50:]) / len(self.losses[-50:])
            seconds = time.monotonic() - self.start
            print(f"{self.name} {self.done}/{self.steps}: loss {recent:.3f} nats, {seconds:.0f} s", flush=True)


# Evaluation


@torch.no_grad()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, contexts: list[list[int]], temperature: float
) -> list[list[int]]:
    """One completion per context, up to the first closing tag of an action. `temperature` 0 is greedy."""
    stops = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["</search>", "</answer>"])]
    width = max(map(len, contexts))
    input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(c)) + c for c in contexts])
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts])
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output = model.generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=192, eos_token_id=stops, **sampling
    )
    completions = []
    for row in output[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        completions.append(row[:end])
    return completions


COMPLETION = re.compile(r"<think>([^<>]*)</think><(search|answer)>([^<>]*)</\2>")


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: list[dict],
    temperature: float,
    persistent: bool = False,
    batch_size: int = 64,
) -> dict[str, float]:
    """
    Play MEM1 episodes, every context being the prompt, the last completion and the last search result.

    Args:
        tasks (`list[dict]`):
            Rows of `compose_objectives`.
        temperature (`float`):
            0 for greedy.
        persistent (`bool`, *optional*, defaults to `False`):
            Whether to take the answer tag away while questions remain unsearched and put the search tag there: what the
            model could reach if it only were patient.

    Returns:
        `dict[str, float]`: `exact_match` (mean sum over objectives), `copy_accuracy` (answers right among the searched
        objectives), `searched` (share of objectives searched), `valid_turns` (share in the format), and the mean and
        the maximum of the tokens in a context and in a completion.
    """
    environments = RetrievalQAEnvironment.factory(load_facts().corpus, top_k=TOP_K)
    search_id, answer_id = tokenizer.convert_tokens_to_ids(["<search>", "<answer>"])
    totals = {"exact_match": 0.0, "right": 0, "searched": 0, "turns": 0, "valid": 0}
    context_lengths, completion_lengths = [], []
    for first in range(0, len(tasks), batch_size):
        episodes = [
            {"task": task, "env": environments(), "previous": (), "searches": 0}
            for task in tasks[first : first + batch_size]
        ]
        while episodes:
            contexts = [context_ids(tokenizer, e["task"]["prompt"] + "\n", *e["previous"]) for e in episodes]
            completions = generate(model, tokenizer, contexts, temperature)
            if persistent:
                heads = {
                    i: completions[i][: completions[i].index(answer_id)] + [search_id]
                    for i, episode in enumerate(episodes)
                    if answer_id in completions[i] and episode["searches"] < len(episode["task"]["questions"])
                }
                if heads:
                    more = generate(model, tokenizer, [contexts[i] + head for i, head in heads.items()], temperature)
                    for (i, head), tail in zip(heads.items(), more):
                        completions[i] = head + tail
            going = []
            for episode, context, completion in zip(episodes, contexts, completions):
                text = tokenizer.decode(completion)
                context_lengths.append(len(context))
                completion_lengths.append(len(completion))
                totals["turns"] += 1
                match = COMPLETION.fullmatch(text)
                totals["valid"] += match is not None
                if match is None:
                    continue
                if match[2] == "search":
                    episode["searches"] += 1
                    if episode["searches"] <= len(episode["task"]["questions"]) + 1:
                        episode["previous"] = (completion, episode["env"].search(match[3].strip()))
                        going.append(episode)
                    continue
                answers = episode["task"]["answers"]
                totals["exact_match"] += exact_match(match[3], answers)
                given = split_answers(match[3], len(answers)) or [""] * len(answers)
                searched = min(episode["searches"], len(answers))
                totals["searched"] += searched
                totals["right"] += sum(
                    normalize_answer(g) in map(normalize_answer, a) for g, a in zip(given[:searched], answers)
                )
            episodes = going
    objectives = sum(len(task["questions"]) for task in tasks)
    return {
        "exact_match": totals["exact_match"] / len(tasks),
        "copy_accuracy": totals["right"] / max(totals["searched"], 1),
        "searched": totals["searched"] / objectives,
        "valid_turns": totals["valid"] / totals["turns"],
        "context_mean": sum(context_lengths) / len(context_lengths),
        "context_max": max(context_lengths),
        "completion_max": max(completion_lengths),
        "completion_mean": sum(completion_lengths) / len(completion_lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny warm-started model of the quickstart from scratch.")
    default = Path(__file__).parent / "assets" / "tiny-mem1"
    parser.add_argument("--output", type=Path, default=default, help="folder to write, replaced if it is there")
    parser.add_argument("--copy-steps", type=int, default=COPY_STEPS, help="updates of the copying stage")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of the demonstration stage")
    parser.add_argument("--tasks", type=int, default=128, help="evaluation tasks per number of objectives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few updates and tasks only, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.copy_steps, args.steps, args.tasks = 5, 10, 4
    if min(args.copy_steps, args.steps, args.tasks) < 1:
        parser.error("--copy-steps, --steps and --tasks must be at least 1.")
    if args.output.exists() and any(args.output.iterdir()) and not (args.output / REPORT_FILE).exists():
        parser.error(
            f"{args.output} holds something else than an earlier result of this script: name another --output."
        )
    torch.set_num_threads(1)
    start = time.monotonic()

    facts = load_facts()
    passages = [f"Doc 1(Title: {row['title']}) {row['text']}" for row in facts.corpus]
    tokenizer = train_tokenizer(passages + list(facts.questions("train")["question"]))
    model = build_model(tokenizer, args.seed)

    rng = random.Random(args.seed)
    stage = Stage("copying", model, args.copy_steps, learning_rate=2e-3)
    for _ in range(args.copy_steps):
        input_ids = copying_batch(rng, rows=32, length=64)
        stage.update(masked_loss(model, input_ids, torch.ones_like(input_ids, dtype=torch.bool)))

    demonstrations = Demonstrations(tokenizer, args.seed)
    curriculum: list[tuple[float, Callable[[], Row]]] = [  # until this share of the updates; the shorter rows first
        (0.3, lambda: demonstrations.reading(1)),
        (0.5, lambda: demonstrations.reading(2)),
        (0.7, lambda: demonstrations.turn(3) if rng.random() < 0.7 else demonstrations.reading(2)),
        (1.0, lambda: demonstrations.turn(MAX_OBJECTIVES) if rng.random() < 0.8 else demonstrations.reading(2)),
    ]
    stage = Stage("demonstrations", model, args.steps, learning_rate=3e-3)
    for share, draw in curriculum:
        batches: list[list[Row]] = []
        while stage.done < round(share * args.steps):
            batches = batches or demonstrations.batches(draw)
            stage.update(masked_loss(model, *pad_batch(batches.pop(), tokenizer.pad_token_id)))
    trained_seconds = time.monotonic() - start

    shutil.rmtree(args.output, ignore_errors=True)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    model.to(torch.float16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    PROTOCOL.save_pretrained(args.output)
    (args.output / "model.safetensors").chmod(0o644)

    # What was saved is what is measured: reloaded from float16
    model = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.output)
    torch.manual_seed(args.seed)
    report = {
        "copy_steps": args.copy_steps,
        "steps": args.steps,
        "seed": args.seed,
        "parameters": model.num_parameters(),
        "training_minutes": round(trained_seconds / 60, 1),
        "final_loss": round(sum(stage.losses[-50:]) / len(stage.losses[-50:]), 4),
        "tasks_per_row": args.tasks,
        "rows": [],
    }
    for n, temperature, persistent in [
        *((n, temperature, False) for n in (1, 2, 4, 8) for temperature in (0.0, 1.0)),
        (2, 0.0, True),
        (2, 1.0, True),
    ]:
        tasks = list(test_tasks(n, args.tasks))
        row = {"objectives": n, "temperature": temperature, "persistent": persistent}
        row |= {k: round(v, 3) for k, v in evaluate(model, tokenizer, tasks, temperature, persistent).items()}
        report["rows"].append(row)
        print(json.dumps(row), flush=True)
        (args.output / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")


def test_tasks(n: int, count: int) -> list[dict]:
    """`count` tasks of `n` questions about entities that no demonstration asked about."""
    questions = load_facts().questions("test")
    tasks: list[dict] = []
    seed = 0
    while len(tasks) < count:  # every pass groups all test questions anew
        tasks += list(compose_objectives(questions, n, seed=seed))
        seed += 1
    return tasks[:count]


if __name__ == "__main__":
    main()
