"""
The evaluations of a run beside published numbers, in the paper's metrics.

    python examples/paper/table.py runs/paper/run            # as text
    python examples/paper/table.py runs/paper/run --markdown

Numbers of a run come from the files that `mem1 eval` wrote; numbers of others from `published_results.json`, with their sources.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = {"em": "EM", "f1": "F1", "peak": "peak x100", "seconds": "s"}
OBJECTIVES = (1, 2, 3, 4, 6, 8, 16)


def own_rows(folder):
    """`{label: {objectives: {"em", "f1", "peak", "seconds"}}}` of the evaluations of a run."""
    rows = {}
    for path in sorted((folder / "evaluation").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        mean = {name: statistic["mean"] for name, statistic in found["metrics"].items()}
        if found["objectives"] is None:
            continue
        rows.setdefault(f"{found['agent']} ({found['count']} tasks)", {})[found["objectives"]] = {
            "em": mean["exact_match"],
            "f1": mean["f1"],
            "peak": mean["peak_tokens_without_prompt"] / 100,
            "seconds": mean["seconds"],
        }
    return rows


def published_rows(record):
    return {
        row["model"]: {int(n): dict(zip(record["columns"], values)) for n, values in row["objectives"].items()}
        for row in record["rows"]
    }


def cell(values):
    return " / ".join("-" if values.get(key) is None else f"{values[key]:.3g}" for key in COLUMNS) if values else ""


def table(rows, numbers):
    head = ["model", *(f"{n} objective{'s'[: n > 1]}" for n in numbers)]
    lines = [[label, *(cell(by_number.get(n)) for n in numbers)] for label, by_number in rows.items()]
    return [head, *lines]


def as_text(lines, markdown):
    if markdown:
        head, *body = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run; without one, published numbers alone")
    parser.add_argument("--markdown", action="store_true", help="a table for a Markdown page")
    args = parser.parse_args()
    own = {} if args.run is None else own_rows(args.run)
    if args.run is not None and not own:
        sys.exit(
            f"table.py: there is no evaluation in {args.run / 'evaluation'}: run `mem1 eval --output_dir {args.run}` first."
        )
    record = json.loads((HERE / "published_results.json").read_text(encoding="utf-8"))
    rows = {**own, **published_rows(record)}
    numbers = [n for n in OBJECTIVES if any(n in by_number for by_number in rows.values())]
    print(f"{' / '.join(COLUMNS.values())}; EM and F1 are sums over objectives, peak is without the task prompt.\n")
    print(as_text(table(rows, numbers), args.markdown))
    print("\nPublished numbers were not run here: other searches, GPUs and test questions than those of this run.")
    print(f"Source of the rows: {record['source']}")
    for other in record["other_measures"]:
        print(f"{other['model']}: {other['finding']} ({other['source']})")


if __name__ == "__main__":
    main()
