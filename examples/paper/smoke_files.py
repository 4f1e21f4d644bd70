"""Files of the schemas of the real ones, with the bundled facts in them: FlashRAG's questions, and Wikipedia as passages."""

import json
from pathlib import Path

from mem1_trl.facts import KEYWORDS, load_facts


def write_files(folder: Path, count: int = 40) -> None:
    """
    `wiki-18.jsonl` (`id`, `contents`), and `nq/train.jsonl`, `hotpotqa/train.jsonl`, `test.jsonl` (`id`, `question`, `golden_answers`).
    """
    facts = load_facts()
    passages = [
        {"id": str(number), "contents": f'"{passage["title"]}"\n{passage["text"]}'}
        for number, passage in enumerate(facts.corpus)
    ]
    write(folder / "wiki-18.jsonl", passages)
    known = [row for row in facts.questions("train") if row["relation"] in KEYWORDS]
    held_out = [row for row in facts.questions("test") if row["relation"] in KEYWORDS]
    for name, rows in (
        ("nq/train", known[:count]),
        ("hotpotqa/train", known[count : 2 * count]),
        ("test", held_out[:count]),
    ):
        prefix = name.replace("/", "_")
        write(
            folder / f"{name}.jsonl",
            [
                {"id": f"{prefix}_{number}", "question": row["keywords"], "golden_answers": answers(row["answer"])}
                for number, row in enumerate(rows)
            ],
        )


def answers(answer):
    return [answer] if isinstance(answer, str) else list(answer)


def write(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
