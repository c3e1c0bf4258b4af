"""Data for token classification, question answering and multiple choice, made by rule from the facts of LAMA.

A fact is a sentence of Wikipedia with a subject and a masked object (Petroni et al. 2019,
https://arxiv.org/abs/1909.01066): Google-RE and T-REx. Subjects of the development split are not in the training split.

- Entities: in Google-RE's sentences the subject is a PER, and the object is a LOC or a DATE. Other names in a sentence
  are not marked.
- Questions: a template for each relation asks for the object. A question has no answer if the sentence has no digit and
  the question is when, or if no word of the sentence is about a death and the question is where somebody died.
- Choices: the sentence with a gap, its object, and two other objects of the same relation.

Sentences of more than `LONGEST` words are left out, and all rows are in random order.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from laconic.calibrate.sources import data_folder

MASK, GAP = "[MASK]", "_"
LONGEST = 25
DEV_EVERY = 5
SEED = 0
OTHERS = 2
"""The number of wrong choices."""
ENTITIES = {"place_of_birth": "LOC", "place_of_death": "LOC", "date_of_birth": "DATE"}
"""The type of the object of each relation of Google-RE."""
TAGS = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC", "DATE") for prefix in "BI"))
WHEN, WHERE_DIED = "When was {} born?", "Where did {} die?"
QUESTIONS = {
    "place_of_birth": "Where was {} born?",
    "date_of_birth": WHEN,
    "place_of_death": WHERE_DIED,
    "P19": "Where was {} born?",
    "P20": WHERE_DIED,
    "P27": "Of which country is {} a citizen?",
    "P103": "What is the native language of {}?",
    "P106": "What is the occupation of {}?",
    "P108": "Who employs {}?",
    "P127": "Who owns {}?",
    "P136": "What is the genre of {}?",
    "P140": "What is the religion of {}?",
    "P159": "Where are the headquarters of {}?",
    "P176": "Who makes {}?",
    "P178": "Who developed {}?",
    "P264": "On which label does {} record?",
    "P413": "Which position does {} play?",
    "P449": "Which network first showed {}?",
    "P740": "Where was {} founded?",
    "P937": "Where did {} work?",
    "P1303": "Which instrument does {} play?",
    "P1412": "Which language does {} speak?",
}
_WORDS = re.compile(r"\w+|[^\w\s]")
_DEATH = re.compile(r"\b(die[ds]?|dea(d|th)|kill|murder|execut|buried|assassin|†)", re.IGNORECASE)


class Fact(NamedTuple):
    """A fact of LAMA: a sentence with a gap, the relation, its subject and its object."""

    sentence: str
    relation: str
    subject: str
    object: str


def facts() -> list[Fact]:
    """The facts of Google-RE and T-REx in `LACONIC_DATA/lama`."""
    folder = data_folder()
    assert folder is not None, "LACONIC_DATA is set"
    rows = (json.loads(line) for path in sorted((folder / "lama").glob("*.jsonl")) for line in path.open())
    kept = [row for row in rows if row["source"] in ("Google_RE", "TREx") and row.get("masked_sentence")]
    known = [
        Fact(row["masked_sentence"], row["relation"].rsplit("/", 1)[-1], row["sub"], row["obj"])
        for row in kept
        if row["masked_sentence"].count(MASK) == 1 and len(row["masked_sentence"].split()) <= LONGEST
    ]
    random.Random(SEED).shuffle(known)
    return known


def write_data(folder: Path) -> None:
    """Write `entities/`, `questions/` and `choices/`, each with a train and a dev file, into a folder."""
    known = facts()
    for split, rows in (
        ("train", [fact for fact in known if not _is_dev(fact)]),
        ("dev", list(filter(_is_dev, known))),
    ):
        for name, ending, write in KINDS:
            path = folder / name / f"{split}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(rows, random.Random(SEED)), encoding="utf-8")


def _is_dev(fact: Fact) -> bool:
    return crc32(fact.subject.encode()) % DEV_EVERY == 0


def entities(rows: list[Fact], generator: random.Random) -> str:
    """Sentences in two columns, a word and its tag."""
    sentences = dict.fromkeys(text for fact in rows if fact.relation in ENTITIES and (text := _tagged(fact)))
    return "\n".join(sentences)


def _tagged(fact: Fact) -> str:
    """The lines of a sentence; empty if the subject is not in it."""
    before, after = fact.sentence.split(MASK)
    parts = [_WORDS.findall(part) for part in (before, fact.object, after)]
    words = [word for part in parts for word in part]
    tags = ["O"] * len(words)
    _tag(tags, len(parts[0]), len(parts[0]) + len(parts[1]), ENTITIES[fact.relation])
    # Punctuation in a name may be missing in the sentence.
    at = [number for number, word in enumerate(words) if word[0].isalnum()]
    name = re.findall(r"\w+", fact.subject)
    starts = [n for n in range(len(at) - len(name) + 1) if [words[m] for m in at[n : n + len(name)]] == name]
    if not starts or not name:
        return ""
    for start in starts:
        _tag(tags, at[start], at[start + len(name) - 1] + 1, "PER")
    return "".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True))


def _tag(tags: list[str], begin: int, end: int, kind: str) -> None:
    tags[begin:end] = [f"{'B' if at == begin else 'I'}-{kind}" for at in range(begin, end)]


def questions(rows: list[Fact], generator: random.Random) -> str:
    """A file of SQuAD 2.0 with one question for each sentence, or two."""
    paragraphs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, fact in enumerate(rows):
        if fact.relation not in QUESTIONS or not fact.subject:
            continue
        context, start = fact.sentence.replace(MASK, fact.object), fact.sentence.index(MASK)
        answers = [{"text": fact.object, "answer_start": start}]
        question = QUESTIONS[fact.relation].format(fact.subject)
        asked = paragraphs[context]
        if all(other["question"] != question for other in asked):
            asked.append({"id": f"{number}", "question": question, "answers": answers, "is_impossible": False})
        for extra in _unanswerable(fact, context):
            if all(other["question"] != extra for other in asked):
                asked.append({"id": f"{number}x", "question": extra, "answers": [], "is_impossible": True})
    data = [{"context": context, "qas": qas} for context, qas in paragraphs.items()]
    return json.dumps(
        {"version": "v2.0", "data": [{"title": "LAMA", "paragraphs": data}]}, indent=1, ensure_ascii=False
    )


def _unanswerable(fact: Fact, context: str) -> Iterator[str]:
    if fact.relation in ENTITIES:
        if not any(letter.isdigit() for letter in context):
            yield WHEN.format(fact.subject)
        elif not _DEATH.search(context):
            yield WHERE_DIED.format(fact.subject)


def choices(rows: list[Fact], generator: random.Random) -> str:
    """JSON lines with `text`, `choices` and `label`."""
    objects: dict[str, list[str]] = defaultdict(list)
    for fact in rows:
        if fact.object not in objects[fact.relation]:
            objects[fact.relation].append(fact.object)
    lines: list[str] = []
    for fact in rows:
        wrong = [name for name in objects[fact.relation] if name != fact.object and name not in fact.sentence]
        if len(wrong) < OTHERS or fact.object in fact.sentence:
            continue
        listed = [fact.object, *generator.sample(wrong, OTHERS)]
        generator.shuffle(listed)
        row = {"text": fact.sentence.replace(MASK, GAP), "choices": listed, "label": listed.index(fact.object)}
        lines.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(lines)


KINDS: tuple[tuple[str, str, Callable[[list[Fact], random.Random], str]], ...] = (
    ("entities", "conll", entities),
    ("questions", "json", questions),
    ("choices", "jsonl", choices),
)
