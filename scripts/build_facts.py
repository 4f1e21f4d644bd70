"""
Build `src/mem1_trl/data/facts.jsonl.gz`, the bundled corpus of real facts with questions.

Sources: countryinfo (countries) and mendeleev (chemical elements), both MIT, both read from the installed packages and
never changed. The same package versions yield the same file, byte for byte up to the gzip header.

    pip install countryinfo mendeleev
    python scripts/build_facts.py            # writes the file
    python scripts/build_facts.py --check    # only compares, exit status 1 on a difference
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import re
import sqlite3
import sys
import unicodedata
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "mem1_trl" / "data" / "facts.jsonl.gz"
TEST_SHARE = 0.2
MAX_ANSWER_WORDS = 5

# --- Countries -------------------------------------------------------------------------------------------------------

# States that no longer exist, and duplicate entries of places that have a more complete entry.
COUNTRY_DROPPED = {
    "Antilles néerlandaises",
    "Holy See (Vatican City State)",
    "Palestine, State of",
    "Serbia and Montenegro",
}
# Current or more common names.
COUNTRY_RENAMED = {
    "Cocos (Keeling) Islands": "Cocos Islands",
    "Republic of Macedonia": "North Macedonia",
    "Saint Martin (French part)": "Saint Martin",
    "Sint Maarten (Dutch part)": "Sint Maarten",
    "Swaziland": "Eswatini",
    "The Bahamas": "Bahamas",
    "The Gambia": "Gambia",
    "Vatican City State": "Vatican City",
    "Virgin Islands, British": "British Virgin Islands",
    "Virgin Islands, U.S.": "United States Virgin Islands",
}
# Names that take "the" in a sentence, in addition to those that `with_article` recognises.
COUNTRY_WITH_ARTICLE = {"Bahamas", "Comoros", "Gambia", "Maldives", "Netherlands", "Philippines", "Seychelles"}
# Names that take a plural verb, in addition to those that end in "Islands" or "Lands".
COUNTRY_PLURAL = {"Bahamas", "Comoros", "Maldives", "Philippines", "Seychelles"}
# More than one seat of government, a dispute, no official capital, or a move since the source was written.
CAPITAL_UNCERTAIN = {
    "Bolivia",
    "Bonaire, Sint Eustatius and Saba",
    "British Indian Ocean Territory",
    "Burundi",
    "Equatorial Guinea",
    "Eswatini",
    "Hong Kong",
    "Israel",
    "Kazakhstan",
    "Montserrat",
    "Nauru",
    "Palestine",
    "South Africa",
    "Sri Lanka",
    "Tokelau",
    "Vatican City",
    "Western Sahara",
}
# Replaced by another code since the source was written.
CURRENCY_OUTDATED = {"BGN", "BYR", "HRK", "MRO", "SLL", "STD", "VEF", "ZMK"}
CURRENCY_UNCERTAIN = {"Zimbabwe"}
# Misspelt in the source, or the name of the sovereign state's people rather than of the place's.
DEMONYM_UNCERTAIN = {
    "British Indian Ocean Territory",
    "Cape Verde",
    "Christmas Island",
    "French Southern and Antarctic Lands",
    "Hong Kong",
    "Macau",
    "Maldives",
    "Martinique",
    "Mayotte",
    "Northern Mariana Islands",
    "Reunion",
    "Saint Kitts and Nevis",
    "Saint Pierre and Miquelon",
    "Svalbard and Jan Mayen",
    "Vatican City",
}
CALLING_CODE_UNCERTAIN = {"Svalbard and Jan Mayen", "Vatican City"}
# The source lists one neighbour, but there is none by land, or more than one.
NEIGHBOUR_UNCERTAIN = {"Canada", "Cyprus", "Denmark", "Sri Lanka", "United Kingdom"}

COUNTRY_QUESTIONS = {
    "capital": ("What is the capital of {name}?", "Which city is the capital of {name}?"),
    "country_of_capital": ("{capital} is the capital of which country?", "Which country has the capital {capital}?"),
    "currency": ("What is the currency code of {name}?", "Which currency code is used in {name}?"),
    "demonym": ("What is the demonym for a person from {name}?", "What is a native of {name} called?"),
    "region": ("What is the world region of {name}?", "Which world region contains {name}?"),
    "subregion": ("What is the subregion of {name}?", "Which subregion contains {name}?"),
    "alpha2": ("What is the two-letter country code of {name}?", "Which two-letter country code stands for {name}?"),
    "alpha3": (
        "What is the three-letter country code of {name}?",
        "Which three-letter country code stands for {name}?",
    ),
    "calling_code": ("What is the calling code of {name}?", "Which calling code reaches {name} by phone?"),
    "neighbour": ("Which is the only country that borders {name}?", "What is the only neighbour of {name} by land?"),
}

# --- Elements --------------------------------------------------------------------------------------------------------

SERIES = {
    "Nonmetals": "nonmetal",
    "Noble gases": "noble gas",
    "Alkali metals": "alkali metal",
    "Alkaline earth metals": "alkaline earth metal",
    "Metalloids": "metalloid",
    "Halogens": "halogen",
    "Poor metals": "post-transition metal",
    "Transition metals": "transition metal",
    "Lanthanides": "lanthanide",
    "Actinides": "actinide",
}
# Textbooks place these differently (group 3, group 12, polonium and astatine), or their chemistry was never measured.
SERIES_UNCERTAIN = {"La", "Lu", "Ac", "Lr", "Zn", "Cd", "Hg", "Cn", "Po", "At", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"}
BLOCK_UNCERTAIN = {"La", "Lu", "Ac", "Lr"}
# The source contradicts the usual date by decades, or itself.
DISCOVERY_UNCERTAIN = {"Co", "Nd", "Pt", "V"}

ELEMENT_QUESTIONS = {
    "symbol": ("What is the chemical symbol of {name}?", "Which chemical symbol stands for {name}?"),
    "atomic_number": ("What is the atomic number of {name}?", "Which atomic number does {name} have?"),
    "element_of_number": (
        "Which element has the atomic number {atomic_number}?",
        "What is the element with atomic number {atomic_number}?",
    ),
    "period": ("In which period of the periodic table is {name}?", "Which period does {name} belong to?"),
    "group": ("In which group of the periodic table is {name}?", "Which group number does {name} have?"),
    "block": ("In which block of the periodic table is {name}?", "Which block does {name} belong to?"),
    "series": ("What kind of element is {name}?", "Which series of elements does {name} belong to?"),
    "discovery_year": ("In which year was {name} discovered?", "What is the year of discovery of {name}?"),
    "discovery_place": ("In which country was {name} discovered?", "Which country was {name} discovered in?"),
}


def draw(key: str, n: int) -> int:
    """A number in `[0, n)` that depends only on `key`, so that adding an entity does not change the others."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % n


def to_ascii(text: str) -> str:
    """`text` without accents, so that small tokenizers and typed queries use the same spelling."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if not folded.isascii():
        raise ValueError(f"{text!r} has no plain ASCII form: rename it in this script.")
    return " ".join(folded.split())


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"The package {name} is not installed: run `pip install countryinfo mendeleev`.")
    return Path(spec.origin).parent


def with_article(name: str) -> str:
    plural_or_common_noun = re.search(r"Islands$|Territory$|Lands$|Republic|^United|^Isle of|States of", name)
    return f"the {name}" if plural_or_common_noun or name in COUNTRY_WITH_ARTICLE else name


def single(values: Any) -> str | None:
    """The only value of a list; `None` if there are none or several, since the answer would be ambiguous."""
    if isinstance(values, str):
        return values.strip() or None
    if values and len(values) == 1 and str(values[0]).strip():
        return str(values[0]).strip()
    return None


def read_countries() -> list[dict[str, str | None]]:
    """One mapping per country; a value is `None` if the source has none, several, or one known to be doubtful."""
    folder = package_folder("countryinfo") / "data"
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    records = [record for record in records if record["name"] not in COUNTRY_DROPPED]

    names: dict[str, str] = {}  # two- or three-letter code -> name
    for record in records:
        record["title"] = to_ascii(COUNTRY_RENAMED.get(record["name"], record["name"]))
        names[record["ISO"]["alpha2"]] = names[record["ISO"]["alpha3"]] = record["title"]

    countries: dict[str, dict[str, str | None]] = {}
    for record in records:
        title = record["title"]
        if not record.get("capital") or not record.get("subregion"):  # uninhabited, too little to say
            continue
        demonym = single(record.get("demonym"))
        if title in DEMONYM_UNCERTAIN or demonym == title or (demonym and re.search(r"[,/]", demonym)):
            demonym = None
        calling_code = single(record.get("callingCodes"))
        if title in CALLING_CODE_UNCERTAIN or (calling_code and not calling_code.isdigit()):
            calling_code = None
        currency = single(record.get("currencies"))
        if title in CURRENCY_UNCERTAIN or currency in CURRENCY_OUTDATED:
            currency = None
        neighbour = single(record.get("borders"))
        countries[title] = {  # a repeated title is the same record again
            "title": title,
            "name": with_article(title),
            "capital": None if title in CAPITAL_UNCERTAIN else to_ascii(single(record["capital"]) or "") or None,
            "currency": currency,
            "demonym": to_ascii(demonym) if demonym else None,
            "region": record["region"],
            "subregion": record["subregion"],
            "alpha2": record["ISO"]["alpha2"],
            "alpha3": record["ISO"]["alpha3"],
            "calling_code": calling_code,
            "neighbour": None if neighbour is None or title in NEIGHBOUR_UNCERTAIN else with_article(names[neighbour]),
        }
    capitals = [country["capital"] for country in countries.values()]
    for country in countries.values():
        capital = country["capital"]
        unique = capital is not None and capitals.count(capital) == 1 and capital != country["title"]
        country["country_of_capital"] = country["name"] if unique else None
    return [countries[title] for title in sorted(countries)]


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def country_passage(country: dict[str, str | None]) -> str:
    """Two to five sentences that contain every fact about the country, worded in one of three ways."""
    title, name = country["title"] or "", country["name"]
    style = draw(f"{title}/style", 3)
    plural = title in COUNTRY_PLURAL or title.endswith(("Islands", "Lands"))
    region = "{name} {are} in {subregion}, in the world region {region}."
    sentences = [region.format(are="are" if plural else "is", **country)]
    if country["capital"]:
        wordings = (
            "the capital of {name} is {capital}.",
            "{capital} is the capital of {name}.",
            "{name} {have} the capital {capital}.",
        )
        # The position in the passage varies as well, so that it does not reveal the answer.
        sentences.insert(0 if style != 1 else 1, wordings[style].format(have="have" if plural else "has", **country))
    if country["neighbour"]:
        wordings = (
            "its only neighbour by land is {neighbour}.",
            "the only country that borders it is {neighbour}.",
            "{neighbour} is the only country that borders it.",
        )
        sentences.append(wordings[style].format(**country))
    people = [
        part
        for part, known in (
            (f"a native is called {country['demonym']}", country["demonym"]),
            (f"the currency code is {country['currency']}", country["currency"]),
            (f"the calling code is {country['calling_code']}", country["calling_code"]),
        )
        if known
    ]
    if people:
        people = people[style % len(people) :] + people[: style % len(people)]
        sentences.append(f"in {name}, " + join_parts(people) + ".")
    wordings = (
        "the two-letter country code is {alpha2} and the three-letter country code is {alpha3}.",
        "the two-letter country code is {alpha2}, the three-letter one {alpha3}.",
        "the country code is {alpha2} in its two-letter and {alpha3} in its three-letter form.",
    )
    sentences.append(wordings[style].format(**country))
    return " ".join(capitalised(sentence) for sentence in sentences)


def join_parts(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def read_elements() -> list[dict[str, str | None]]:
    """One mapping per element; a value is `None` if the source has none, or one known to be doubtful."""
    database = sqlite3.connect(f"{(package_folder('mendeleev') / 'elements.db').as_uri()}?mode=ro", uri=True)
    rows = database.execute(
        "select e.atomic_number, e.symbol, e.name, e.period, e.group_id, e.block, s.name, e.discovery_year, "
        "e.discovery_location from elements e join series s on s.id = e.series_id order by e.atomic_number"
    ).fetchall()
    database.close()
    elements = []
    for number, symbol, name, period, group, block, series, year, place in rows:
        doubtful_discovery = symbol in DISCOVERY_UNCERTAIN
        elements.append(
            {
                "title": to_ascii(name),
                "name": to_ascii(name).lower(),
                "symbol": symbol,
                "atomic_number": str(number),
                "element_of_number": to_ascii(name).lower(),
                "period": str(period),
                "group": None if group is None or symbol in BLOCK_UNCERTAIN else str(group),
                "block": None if symbol in BLOCK_UNCERTAIN else block,
                "series": None if symbol in SERIES_UNCERTAIN else SERIES[series],
                "discovery_year": None if year is None or doubtful_discovery else str(year),
                # Several countries, or a name that no longer identifies the place: ambiguous.
                "discovery_place": None if not place or "/" in place or doubtful_discovery else to_ascii(place),
            }
        )
    return elements


def element_passage(element: dict[str, str | None]) -> str:
    """Two to four sentences that contain every fact about the element, worded in one of three ways."""
    style = draw(f"{element['title']}/style", 3)
    article = "an" if (element["series"] or "element")[0] in "aeiou" else "a"
    kind = f"{article} {element['series']}" if element["series"] else "a chemical element"
    openings = (
        "{name} is {kind} with the chemical symbol {symbol} and the atomic number {atomic_number}.",
        "the chemical symbol {symbol} stands for {name}, {kind} whose atomic number is {atomic_number}.",
        "{name}, atomic number {atomic_number} and chemical symbol {symbol}, is {kind}.",
    )
    sentences = [openings[style].format(kind=kind, **element)]
    order = ("group", "block", "period") if style == 1 else ("period", "group", "block")
    places = [f"{word} {element[word]}" for word in order if element[word]]
    sentences.append(
        (
            "in the periodic table it belongs to ",
            "the element {name} stands in ",
            "its place in the periodic table is ",
        )[style].format(**element)
        + join_parts(places)
        + "."
    )
    if element["discovery_year"] and element["discovery_place"]:
        wordings = (
            "{name} was discovered in {discovery_year} in {discovery_place}.",
            "it was discovered in {discovery_place}, the year of discovery was {discovery_year}.",
            "the discovery of {name} was made in {discovery_place} in the year {discovery_year}.",
        )
        sentences.append(wordings[style].format(**element))
    elif element["discovery_year"]:
        sentences.append("{name} was discovered in the year {discovery_year}.".format(**element))
    elif element["discovery_place"]:
        sentences.append("{name} was discovered in {discovery_place}.".format(**element))
    return " ".join(capitalised(sentence) for sentence in sentences)


def ask(entity: dict[str, str | None], templates: dict[str, tuple[str, str]]) -> list[dict[str, str]]:
    """One question per known relation of the entity, in one of two wordings."""
    questions = []
    for relation, wordings in templates.items():
        answer = entity[relation]
        if answer is None:
            continue
        if len(answer.split()) > MAX_ANSWER_WORDS or ";" in answer:
            continue  # the answers of a task are separated by semicolons
        wording = wordings[draw(f"{entity['title']}/{relation}", len(wordings))]
        questions.append({"relation": relation, "question": capitalised(wording.format(**entity)), "answer": answer})
    return questions


def build_records() -> list[dict[str, Any]]:
    """All entities in file order: countries by name, then elements by atomic number."""
    records = []
    for kind, entities, passage, templates in (
        ("country", read_countries(), country_passage, COUNTRY_QUESTIONS),
        ("element", read_elements(), element_passage, ELEMENT_QUESTIONS),
    ):
        for entity in entities:
            is_test = draw(f"{entity['title']}/split", 1000) < TEST_SHARE * 1000
            records.append(
                {
                    "kind": kind,
                    "title": entity["title"],
                    "text": passage(entity),
                    "split": "test" if is_test else "train",
                    "questions": ask(entity, templates),
                }
            )
    return records


def serialise(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records).encode("ascii")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write or, with --check, to compare")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()

    records = build_records()
    content = serialise(records)
    if args.check:
        same = args.output.is_file() and gzip.decompress(args.output.read_bytes()) == content
        print("up to date" if same else f"{args.output.name} differs from what this script builds: run it")
        return 0 if same else 1
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:  # no name, no date: reproducible
        file.write(content)
    args.output.write_bytes(buffer.getvalue())
    questions = sum(len(record["questions"]) for record in records)
    print(f"{len(records)} passages, {questions} questions, {args.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
