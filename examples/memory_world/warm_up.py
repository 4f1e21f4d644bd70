"""
Make the models that `run.py` starts from: supervised lessons from scratch, a few minutes of one core.

    python examples/memory_world/warm_up.py --seed 0 --output runs/memory-world/warm-up-seed0

The lessons teach the format, reading and copying, and a habit, but not the rule: with probability `HABIT` (`CUE_HABIT` for a cue) the demonstrator keeps what
stands last (the last row of a passage, the newest row for a slot, the last kind of a cue), else any with equal probability, whatever is asked for. Kinds and values are
drawn again for every lesson. The states that it reads hold rows that were picked at random.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `lessons`, shared with the other examples

import torch
from example_options import count
from lessons import Heads, batches, copying_exercise, save_start, small_llama, train
from world import EVICTED_SLOTS, LEVELS, LONGEST, PROTOCOL, build_tokenizer, draw_task

HABIT = 0.7
CUE_HABIT = 0.2  # of the kinds of a cue: a kind that is never tried there is never learned
TOKENS_PER_BATCH = 2048


def build_model(tokenizer, seed):
    """Attention heads that continue repeated text are set by hand; the rest is random."""
    model = small_llama(tokenizer, seed)
    heads = Heads(model, layers=3)
    heads.remember()
    heads.continue_text()
    for head in (2, 3):  # what followed the same token before
        heads.look_for(1, head, [(heads.token, heads.last)])
        heads.pass_on(1, head, heads.token, heads.token, 1)
    return model


class Lessons:
    """Draws training rows: `(token ids, which of them are trained)`."""

    def __init__(self, tokenizer, seed):
        self.rng, self.ids = random.Random(seed), tokenizer.get_vocab()
        self.everything = [i for word, i in sorted(self.ids.items()) if word not in ("<pad>", "<eos>", "<unk>")]

    def copying(self):
        return copying_exercise(self.rng, self.everything, source=(20, 40), length=80)

    def pick(self, choices, habit=HABIT):
        """The last with probability `habit`, else any of them."""
        return choices[-1] if self.rng.random() < habit else self.rng.choice(choices)

    def states(self, task, habits):
        """
        The state before and after each observation, as `(topic, rows)`.

        Args:
            habits: For each observation how likely the last is picked beyond chance.
        """
        rows, topic = {}, task.topic
        shown = [None, *task.passages] if task.cue else list(task.passages)
        states = [(topic, ())]
        for passage, habit in zip(shown, habits, strict=True):
            if passage is None:
                topic = self.pick(task.cue, min(habit, CUE_HABIT))
            elif task.level == "evict":
                for row in passage:
                    held = rows.get(row[0])
                    rows[row[0]] = row if held is None else self.pick([held, row], habit)
            else:
                row = self.pick(passage, habit)
                rows[row[0]] = row
            states.append((topic, tuple(rows.values())))
        return states

    def draw(self):
        rng = self.rng
        level = rng.choice(LEVELS)
        alone = level == "cue" and rng.random() < 0.3  # then there is nothing to pick
        passages = rng.randint(2 if level == "evict" else 1, rng.randint(3, LONGEST))
        task = draw_task(rng, "carry" if alone else level, passages, slots=rng.randint(1, EVICTED_SLOTS))
        at_cue = level == "cue" and rng.random() < 0.5  # one turn of many, and the only one in which a kind is picked
        return task, 1 if at_cue else rng.randint(0, len(task.observations))

    def written(self, state, is_last):
        """What an agent writes in one turn."""
        topic, rows = state
        words = [word for row in rows for word in row]
        action = ["<answer>", *words, "</answer>"] if is_last else ["<search>", "more", "</search>"]
        return ["<think>", topic, ";", *words, "</think>", *action]

    def encode(self, parts):
        """A row of `(words, whether they are trained)`."""
        words = [word for part, _ in parts for word in part]
        return [self.ids[word] for word in words], [trained for part, trained in parts for _ in part]

    def turn(self):
        """One turn as a MEM1 agent sees it. What it held before was picked at random."""
        task, step = self.draw()
        shown = task.observations
        states = self.states(
            task, [0.0] * (step - 1) + [HABIT] * (len(shown) - step + 1) if step else [0.0] * len(shown)
        )
        parts = [(["/", task.topic, "."], False)]
        if step:
            parts.append((self.written(states[step - 1], False), False))
            parts.append((["<information>", *shown[step - 1], "</information>"], False))
        parts.append((self.written(states[step], step == len(shown)), True))
        return self.encode(parts)

    def history(self):
        """All turns up to some point, as an agent sees them that forgets nothing."""
        task, step = self.draw()
        shown = task.observations
        states = self.states(task, [HABIT] * len(shown))
        parts = [(["/", task.topic, "."], False)]
        for at in range(step):
            parts.append((self.written(states[at], False), True))
            parts.append((["<information>", *shown[at], "</information>"], False))
        parts.append((self.written(states[step], step == len(shown)), True))
        return self.encode(parts)

    def reading(self):
        """
        Questions about a passage. Each asks for the row of one kind: the kind in the prompt, or the one after the question mark.

        They teach how a row is found by its kind, for all kinds. Nothing in them says what a state should hold.
        """
        rng = self.rng
        task = draw_task(rng, rng.choice(("choose", "evict")), rng.randint(2, 4), slots=rng.randint(2, EVICTED_SLOTS))
        passage = rng.choice(task.passages)
        topic = rng.choice(passage)[1]
        words = [word for row in passage for word in row]
        parts = [(["/", topic, ".", "<information>", *words, "</information>"], False)]
        for row in rng.choices(passage, k=3):
            found = next(row for row in passage if row[1] == topic) if rng.random() < 0.5 else None
            parts.append((["?"] if found else ["?", row[1], ","], False))
            parts.append((found or row, True))
        return self.encode(parts)

    def reading_marks(self):
        """
        Questions about a cue. Each names a mark, and the answer is a kind that stands right after this mark.

        Both marks are asked for alike, so nothing says which of them matters.
        """
        rng = self.rng
        task = draw_task(rng, "cue", 1)
        parts = [(["/", "go", ".", "<information>", *task.observations[0], "</information>"], False)]
        for _ in range(3):
            mark = rng.choice("!,")
            parts.append((["?", mark], False))
            parts.append(([task.kind if mark == "!" else rng.choice([k for k in task.cue if k != task.kind])], True))
        return self.encode(parts)

    def mixed(self, draw):
        """Draws lessons, and now and then exercises in copying and in reading."""
        exercises = (draw, self.copying, self.reading, self.reading_marks)
        return lambda: self.rng.choices(exercises, weights=(0.65, 0.1, 0.18, 0.07))[0]()


def warm_up(place, context, seed, steps):
    """Teach a model, write it to `place`, and give what it took."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    lessons = Lessons(tokenizer, seed)
    draw = lessons.mixed({"mem1": lessons.turn, "full": lessons.history}[context])
    began = time.monotonic()
    losses = train(
        model,
        [("copying", 0.08, lessons.copying), ("turns", 0.92, draw)],
        steps,
        lambda row: batches(row, lessons.rng, TOKENS_PER_BATCH),
        tokenizer.pad_token_id,
        learning_rate=3e-3,
        beta2=0.98,
        final_share=0.02,
    )
    save_start(model, tokenizer, PROTOCOL, place)
    return {
        "parameters": model.num_parameters(),
        "steps": steps,
        "seconds": time.monotonic() - began,
        "losses": losses,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/memory-world/warm-up"))
    parser.add_argument("--context", choices=("mem1", "full"), default="mem1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=count, default=800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(warm_up(args.output, args.context, args.seed, args.steps), indent=2))


if __name__ == "__main__":
    main()
