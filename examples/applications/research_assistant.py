"""
A research assistant: finds the facts for a briefing in a library of documents, and cites the document of each.

    python examples/applications/research_assistant.py                                   # a script plays, seconds
    python examples/applications/research_assistant.py --model Qwen/Qwen2.5-7B-Instruct  # a model plays

The documents are the bundled passages about countries and chemical elements. A briefing needs 16 facts or so from as many
documents, which no single search finds. The reward is the share of the facts that are right and cite a document that says so.
"""

import random
import re

from application import run

from mem1_trl.facts import load_facts
from mem1_trl.retrieval import Bm25Index

FACTS = load_facts()
INDEX = Bm25Index(FACTS.corpus)
LIBRARY = {passage["title"]: passage["text"] for passage in FACTS.corpus}
FACTS_PER_BRIEFING = 16
RELATIONS = ("currency", "calling_code", "demonym", "region", "atomic_number", "period", "discovery_year")
PATTERNS = {  # how the script reads a fact off a document: words of the question -> pattern
    "currency code": r"currency code is ([A-Z]{3})",
    "calling code": r"calling code is (\d+)",
    "native": r"native is called (.+?)(?: and the|, the|\.)",
    "world region": r"world region ([A-Z]\w+)",
    "atomic number": r"atomic number(?: is)? (\d+)",
    "period": r"period (\d)",
    "discovery year": r"\b(1[5-9]\d\d|20\d\d)\b",
}


class Library:
    """Documents to search and read."""

    def reset(self, prompt, facts, **row):
        """`facts`: for each line of the briefing the question and its accepted answers."""
        self.facts, self.report, self.done = facts, "", False

    def search(self, query: str) -> str:
        """Find documents; gives titles and the beginning of each."""
        found = INDEX.search([query], top_k=4)[0]
        return "\n".join(f"[{p.title}] {p.text[:60]}..." for p in found) or "Nothing found."

    def read(self, title: str) -> str:
        """Read a document by its title."""
        if title not in LIBRARY:
            return f"There is no document {title!r}. Search for its title."
        return LIBRARY[title]

    def answer(self, report: str) -> str:
        """Hand in the briefing: one line for each question, in order, as `fact [title of the document]`."""
        self.report, self.done = report, True
        return "Received."

    def get_reward(self) -> float:
        """Share of the lines whose fact is right and is in the cited document."""
        lines = [line.strip() for line in self.report.strip().splitlines()]
        right = 0
        for line, fact in zip(lines, self.facts):
            cited = re.fullmatch(r"(.*?)\s*\[(.+)\]", line)
            if cited:
                said, title = cited.groups()
                right += said in fact["answers"] and said in LIBRARY.get(title, "")
        return right / len(self.facts)


def briefings(count, seed=0):
    """Briefings on random facts."""
    rng = random.Random(seed)
    questions = [row for row in FACTS.questions("test") if row["relation"] in RELATIONS]
    for _ in range(count):
        chosen = rng.sample(questions, FACTS_PER_BRIEFING)
        asked = "\n".join(f"{number}. {row['question']} ({row['keywords']})" for number, row in enumerate(chosen, 1))
        facts = [{"question": row["question"], "answers": [row["answer"]]} for row in chosen]
        yield {"prompt": f"Write a briefing that answers, with a source for each line:\n{asked}\n", "facts": facts}


def script(task, memory, action, observation):
    """Search for the entity of each question, read the document about it, take the fact out, note it with its source."""
    asked = re.findall(r"^\d+\. .* \((.+?) of (.+)\)$", task, re.MULTILINE)
    found = memory.get("found", [])
    if action and action[0] == "search":
        titles = re.findall(r"^\[(.+?)\]", observation, re.MULTILINE)
        entity = asked[len(found)][1]
        best = next((title for title in titles if title.lower() == entity.lower()), titles[0] if titles else entity)
        return {"found": found}, "read", best
    if action and action[0] == "read":
        fact = re.search(PATTERNS[asked[len(found)][0]], observation)
        found = [*found, f"{fact[1] if fact else 'unknown'} [{action[1]}]"]
    if len(found) == len(asked):
        return {"found": found}, "answer", "\n".join(found)
    return {"found": found}, "search", asked[len(found)][1]


if __name__ == "__main__":
    run(__doc__, "research_assistant", list(briefings(4)), Library, script, max_turns=40)
