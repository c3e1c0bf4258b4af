"""LAMA's facts as rows: a sentence with `[MASK]` in place of the object, the object, and other right objects.

Two layouts are read from `$LACONIC_DATA/lama`:

- The release of LAMA has a folder for each corpus, in `lama` or `lama/data`. T-REx and Google-RE use one template for
  each relation, from `relations.jsonl` and from the code of the authors. SQuAD and ConceptNet have a sentence for each
  fact.
- A `.jsonl` file directly in `lama` has one fact per line, with the fields `source` (the name of the folder of the
  corpus), `relation`, `sub`, `obj` and `masked_sentence`.

A corpus that exists in both layouts is read from the release.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from laconic.calibrate.corpus import Example
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import read_objects, text_field

MASK = "[MASK]"
CORPORA = {"trex": "TREx", "google_re": "Google_RE", "squad": "Squad", "conceptnet": "ConceptNet"}
"""The folder of each corpus in the release, by the name of the corpus in tasks."""
TEMPLATES = {
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}
"""Templates of Google-RE's relations, from the release's scripts/run_experiments.py."""


@dataclass(frozen=True)
class Fact:
    """One fact.

    Args:
        sentence: a sentence with `[MASK]` in place of the answer.
        subject: the subject of the fact; empty if the corpus has none.
        relation: the relation of the fact; empty if the corpus has none.
        answer: the object of the fact.
    """

    sentence: str
    subject: str
    relation: str
    answer: str


Reader = Callable[[], list[Example]]


def corpus_readers() -> dict[str, Reader]:
    """The corpora in `$LACONIC_DATA` by name, each with a function that reads it.

    `.jsonl` files directly in `lama` are read immediately, to find the names of their corpora.

    Raises:
        UserError: LACONIC_DATA is not set to a folder that contains LAMA, or a row is malformed.
    """
    data = data_folder()
    folder = None if data is None else data / "lama"
    if folder is None or not folder.is_dir():
        problem = "LACONIC_DATA is not set" if folder is None else f"there is no folder '{folder}'"
        raise UserError(
            f"LAMA is read from local files, and {problem}; set LACONIC_DATA to a folder that contains lama/ "
            "with LAMA's release or a .jsonl of facts."
        )
    readers = {name: partial(_to_examples, name, facts) for name, facts in _read_json_lines(folder).items()}
    for parent in (folder / "data", folder):
        present = [name for name, corpus in CORPORA.items() if (parent / corpus).is_dir()]
        readers |= {name: partial(_read_release, name, parent / CORPORA[name]) for name in present}
    if not readers:
        raise UserError(
            f"The folder '{folder}' has neither a corpus of LAMA's release ({', '.join(CORPORA.values())}) nor a "
            ".jsonl of facts; put one there."
        )
    return readers


def _read_json_lines(folder: Path) -> dict[str, list[Fact]]:
    """The facts in the `.jsonl` files directly in a folder, by the name of their corpus."""
    facts: dict[str, list[Fact]] = defaultdict(list)
    names = {corpus.lower(): name for name, corpus in CORPORA.items()}
    for path in sorted(path for path in folder.glob("*.jsonl") if path.name != "relations.jsonl"):
        for place, row in read_objects(path):
            source = text_field(row, ("source",), place)
            if source.lower() not in names:
                raise unknown("corpus of LAMA", source, CORPORA.values(), f"{place} is of")
            # A few facts of Google-RE have no masked sentence.
            sentence = text_field(row, ("masked_sentence",), place) if row.get("masked_sentence") else ""
            relation = str(row.get("relation") or "").rsplit("/", maxsplit=1)[-1]
            fact = Fact(sentence, str(row.get("sub") or ""), relation, text_field(row, ("obj",), place))
            facts[names[source.lower()]].append(fact)
    return facts


def _read_release(name: str, folder: Path) -> list[Example]:
    read = {"trex": _read_trex, "google_re": _read_google_re}.get(name, _read_sentences)
    return _to_examples(name, list(read(folder)))


def _read_trex(folder: Path) -> Iterator[Fact]:
    """Read the relations that are in `relations.jsonl` beside the folder and have a file."""
    relations = folder.parent / "relations.jsonl"
    if not relations.is_file():
        raise UserError(f"T-REx needs the templates in '{relations}', which is missing; put the release's file there.")
    for place, row in read_objects(relations):
        path = folder / f"{text_field(row, ('relation',), place)}.jsonl"
        if path.is_file():
            yield from _fill_template(path, path.stem, text_field(row, ("template",), place), place)


def _read_google_re(folder: Path) -> Iterator[Fact]:
    for relation, template in TEMPLATES.items():
        path = folder / f"{relation}_test.jsonl"
        if path.is_file():
            yield from _fill_template(path, relation, template, str(path))


def _fill_template(path: Path, relation: str, template: str, place: str) -> Iterator[Fact]:
    """Fill a template with each pair of subject and object, without duplicates.

    Facts that most annotators of Google-RE judged wrong are left out.
    """
    if "[X]" not in template or "[Y]" not in template:
        raise UserError(f"{place} has the template '{template}'; it must have [X] and [Y] in it.")
    pairs: set[tuple[str, str]] = set()
    for line, row in read_objects(path):
        pair = text_field(row, ("sub_label",), line), text_field(row, ("obj_label",), line)
        judgments = [judgment.get("judgment") for judgment in row.get("judgments") or ()]
        if pair not in pairs and 2 * judgments.count("yes") >= len(judgments):
            pairs.add(pair)
            # Replace the subject last, because a title may contain [Y].
            sentence = template.replace("[Y]", MASK, 1).replace("[X]", pair[0])
            yield Fact(sentence, pair[0], relation, pair[1])


def _read_sentences(folder: Path) -> Iterator[Fact]:
    """Read SQuAD or ConceptNet. SQuAD has its own name instead of a subject. The relation of ConceptNet is `pred`."""
    for place, row in read_objects(folder / "test.jsonl"):
        sentence = " ".join(row.get("masked_sentences") or ())
        subject = "" if folder.name == CORPORA["squad"] else str(row.get("sub_label") or row.get("sub") or "")
        yield Fact(sentence, subject, str(row.get("pred") or ""), text_field(row, ("obj_label",), place))


def _to_examples(name: str, facts: Sequence[Fact]) -> list[Example]:
    """Convert facts to rows. The field `also` has the other objects of the same subject and relation.

    Results on T-REx and Google-RE are averaged over relations. ConceptNet counts as one relation, as in table 2 of the
    paper.
    """
    true: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for fact in facts:
        true[fact.relation, fact.subject][fact.answer] = None
    by_relation = name in ("trex", "google_re")
    rows = []
    for fact in facts:
        group = f"{name}/{fact.relation}" if by_relation and fact.relation else f"{name}/all"
        others = true[fact.relation, fact.subject] if fact.subject else {}
        also = tuple(other for other in others if other != fact.answer)
        rows.append(Example(fact.sentence, target=fact.answer, other_targets=also, group=group))
    return rows
