"""Data sets of the hub that `LACONIC_DATA` may hold in the layout of their authors, as rows with the hub's columns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.calibrate.sources import data_folder
from laconic.calibrate.sources.records import content
from laconic.errors import UserError, must_be
from laconic.evaluate.objects import Object, objects

Rows = list[dict[str, Any]]
SPLIT = "validation"
"""The split that the files are, by its name on the hub."""


@dataclass(frozen=True)
class LocalData:
    """folder: in `LACONIC_DATA`, with all of `files`; read: the rows in it."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], Rows]

    @property
    def source(self) -> str:
        """How results call it."""
        return f"{self.folder}/{self.files[0]}"

    def rows(self) -> Rows:
        """Every row.

        Raises:
            UserError: a row that is malformed; the sentence has its file and line.
        """
        folder = data_folder()
        assert folder is not None, "a data set is local only where LACONIC_DATA is set"
        rows = self.read(folder / self.folder)
        if not rows:
            raise UserError(f"The file '{folder / self.source}' has no rows; give one that has some.")
        return rows


def local_data(dataset: str, configuration: str | None) -> LocalData | None:
    """Where `LACONIC_DATA` has the hub's `dataset`; None where it has not."""
    folder, known = data_folder(), KNOWN.get((dataset, configuration))
    if folder is None or known is None:
        return None
    return known if all((folder / known.folder / file).is_file() for file in known.files) else None


def wanted_files(dataset: str, configuration: str | None) -> str:
    """The files that would stand in for the hub's `dataset`, "" where laconic reads none."""
    known = KNOWN.get((dataset, configuration))
    return "" if known is None else " and ".join(f"LACONIC_DATA/{known.folder}/{file}" for file in known.files)


def _boolq(folder: Path) -> Rows:
    rows: Rows = []
    for at, (place, row) in enumerate(objects(folder / "dev.jsonl")):
        passage, question = _text(row, "passage", place), _text(row, "question", place)
        # SuperGLUE, which the harness reads, has put the title before the passage.
        if "label" not in row:
            passage = f"{_text(row, 'title', place)} -- {passage}"
        answer = row.get("label", row.get("answer"))
        if answer not in (True, False):
            raise must_be(f"The answer of {place}", "true or false", answer)
        rows.append({"question": question, "passage": passage, "idx": at, "label": int(answer)})
    return rows


def _piqa(folder: Path) -> Rows:
    rows: Rows = [
        {name: _text(row, name, place) for name in ("goal", "sol1", "sol2")}
        for place, row in objects(folder / "dev.jsonl")
    ]
    labels = content(folder / "dev-labels.lst").split()
    if len(labels) != len(rows):
        raise UserError(f"{folder / 'dev-labels.lst'} has {len(labels)} labels, dev.jsonl {len(rows)} rows; mend them.")
    for at, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
        if label not in ("0", "1"):
            raise must_be(f"The label {folder / 'dev-labels.lst'}:{at}", "0 or 1", label)
        row["label"] = int(label)
    return rows


def _winogrande(folder: Path) -> Rows:
    rows: Rows = []
    for place, row in objects(folder / "dev.jsonl"):
        found = {name: _text(row, name, place) for name in ("sentence", "option1", "option2", "answer")}
        if "_" not in found["sentence"]:
            raise must_be(f"The sentence of {place}", "one with a gap _", found["sentence"])
        if found["answer"] not in ("1", "2"):
            raise must_be(f"The answer of {place}", "1 or 2", found["answer"])
        rows.append(found)
    return rows


KNOWN: dict[tuple[str, str | None], LocalData] = {
    ("aps/super_glue", "boolq"): LocalData("boolq", ("dev.jsonl",), _boolq),
    ("baber/piqa", None): LocalData("piqa", ("dev.jsonl", "dev-labels.lst"), _piqa),
    ("allenai/winogrande", "winogrande_xl"): LocalData("winogrande", ("dev.jsonl",), _winogrande),
}
"""By name and configuration on the hub."""


def _text(row: Object, field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise must_be(f"The field '{field}' of {place}", "text", value)
    return value
