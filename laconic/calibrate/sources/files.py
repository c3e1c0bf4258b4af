"""Local files and folders, one reader for each format: .txt, .jsonl, .json, .tsv, .csv and wikitext's .tokens.

In a folder, the file of a split is found by its name (`train.jsonl`, `wiki.valid.tokens`); for the dev split, `dev` is
preferred to `valid`, `validation` and `test`. If a folder has one file only, without a split name, both splits use it.

The nine GLUE tasks are described as data, `TASKS`: their files, columns and labels (Wang et al. 2019,
https://gluebenchmark.com).
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from laconic.calibrate.classes import find_class
from laconic.calibrate.corpus import (
    Example,
    Label,
    as_json,
    check_fields,
    label_from,
    parse_json,
    read_text,
    to_example,
)
from laconic.errors import UserError, must_be, unknown

SPLIT_NAMES = {"train": ("train", "training"), "dev": ("dev", "valid", "validation", "test")}


def read_txt(path: Path) -> list[Example]:
    """Read one row for each paragraph, or for each line if the file has no blank lines between lines of text."""
    text = read_text(path).strip("\n")
    parts = re.split(r"\n[ \t]*\n", text) if re.search(r"\n[ \t]*\n", text) else text.split("\n")
    return [Example(part.strip()) for part in parts if part.strip()]


def read_tokens(path: Path) -> list[Example]:
    """Read one row for each wikitext article; a level-one heading ` = Title = ` starts an article."""
    articles = re.split(r"^(?= = [^=].*[^=] = \n)", read_text(path), flags=re.MULTILINE)
    return [Example(article.strip()) for article in articles if article.strip()]


def read_jsonl(path: Path) -> list[Example]:
    """Read one row for each line, a JSON string or object."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [to_example(parse_json(line, f"{path}:{at}"), f"{path}:{at}") for at, line in lines if line.strip()]


def read_json(path: Path) -> list[Example]:
    """Read a JSON list of strings or objects, one for each row."""
    rows = parse_json(read_text(path), str(path))
    if not isinstance(rows, list):
        raise must_be(str(path), "a list of texts or of objects", as_json(rows))
    return [to_example(row, f"{path}[{at}]") for at, row in enumerate(rows)]


def read_tsv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields, without quoting; in a GLUE task's folder, GLUE's own layout."""
    task = find_glue_task(path.parent.name)
    if task is not None:
        return read_glue_file(path, task)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return _table_examples(path, ((at, line.split("\t")) for at, line in lines if line.strip()))


def read_csv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields; quoted cells may hold commas and line ends."""
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    try:
        return _table_examples(path, ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells))))
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num} is not CSV: {error}; fix the row, or write the data as .jsonl."
        ) from error


def _table_examples(path: Path, rows: Iterator[tuple[int, Sequence[str]]]) -> list[Example]:
    """Examples from a table whose first row is the header; `rows` are pairs of line number and cells."""
    names: Sequence[str] = next(rows, (0, ()))[1]
    check_fields(f"The header of {path}", names)
    examples: list[Example] = []
    for at, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{path}:{at} has {len(cells)} columns, its header {len(names)}; fix the row.")
        examples.append(to_example(dict(zip(names, cells, strict=True)), f"{path}:{at}"))
    return examples


READERS: dict[str, Callable[[Path], list[Example]]] = {
    ".txt": read_txt,
    ".tokens": read_tokens,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".tsv": read_tsv,
    ".csv": read_csv,
}


def find_file(path: Path, split: str) -> Path:
    """Find the file of a split.

    Args:
        path: a file, which serves every split, or a folder.
        split: `train` or `dev`.

    Raises:
        UserError: the file has an unknown format, or the folder has no file for the split.
    """
    if not path.is_dir():
        if path.suffix.lower() not in READERS:
            raise UserError(f"The file '{path}' has no known format; its name must end in {', '.join(READERS)}.")
        return path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    for name in SPLIT_NAMES[split]:
        for file in files:
            if name in _words(file):
                return file
    if len(files) == 1 and not {name for names in SPLIT_NAMES.values() for name in names} & set(_words(files[0])):
        return files[0]
    listing = ", ".join(file.name for file in files) or f"no file ending in {', '.join(READERS)}"
    raise UserError(f"The folder '{path}' has no {split} split (found: {listing}); name one of its files instead.")


def _words(file: Path) -> list[str]:
    return re.split(r"[._\-\d]+", file.name.lower())


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One GLUE task.

    Args:
        name: name of the task in `glue/NAME`.
        folder: its folder in GLUE's own distribution.
        texts: columns of the one or two texts in that distribution: names, or numbers if the files have no header
            (CoLA; its test file has one, with the names `hub_texts`).
        label: column of the label, likewise.
        classes: names of the classes in the order of their numbers on the hub; empty for a regression.
        hub: configuration of the hub data set; if empty, it is `name`.
        hub_texts: fields of the texts on the hub; if empty, they are `texts`.
        dev: name of the dev file in the distribution, without its ending.
        scale: divisor of the scores, so that they lie in [0, 1].
        drops_broken_rows: skip rows with too few columns instead of raising an error.
    """

    name: str
    folder: str
    texts: tuple[str | int, ...]
    label: str | int = "label"
    classes: tuple[str, ...]
    hub: str = ""
    hub_texts: tuple[str, ...] = ()
    dev: str = "dev"
    scale: float = 1.0
    drops_broken_rows: bool = False

    def label_from(self, value: Any) -> Label | None:
        """Convert a label as the files or the hub have it.

        Args:
            value: a class name, a class number or a score.

        Returns:
            The class number, or the score divided by `scale`; None for −1, which means that the label is hidden.
        """
        label = label_from(value)
        if label == HIDDEN:
            return None
        number = find_class(label, self.classes) if isinstance(label, str) else None
        if number is not None:
            return float(number)
        return label / self.scale if isinstance(label, float) else label


HIDDEN = -1.0
TEST_HEADER = "index\t"
"""Beginning of CoLA's test file; the other files of CoLA have no header."""
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

MNLI = GlueTask(
    name="mnli",
    folder="MNLI",
    texts=SENTENCES,
    label="gold_label",
    classes=("entailment", "neutral", "contradiction"),
    hub_texts=("premise", "hypothesis"),
    dev="dev_matched",
)
TASKS: tuple[GlueTask, ...] = (
    GlueTask(
        name="cola",
        folder="CoLA",
        texts=(3,),
        label=1,
        classes=("unacceptable", "acceptable"),
        hub_texts=("sentence",),
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        classes=("not_equivalent", "equivalent"),
        hub_texts=SENTENCES,
    ),
    GlueTask(name="qnli", folder="QNLI", texts=("question", "sentence"), classes=ENTAILMENT),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        classes=("not_duplicate", "duplicate"),
        # Some rows of the distributed file are cut off in the middle; every GLUE reader leaves them out.
        drops_broken_rows=True,
    ),
    GlueTask(name="rte", folder="RTE", texts=SENTENCES, classes=ENTAILMENT),
    GlueTask(name="sst2", folder="SST-2", texts=("sentence",), classes=("negative", "positive")),
    GlueTask(name="stsb", folder="STS-B", texts=SENTENCES, label="score", classes=(), scale=5.0),
    # In WNLI class 1 is entailment; in RTE and QNLI it is class 0.
    GlueTask(name="wnli", folder="WNLI", texts=SENTENCES, classes=ENTAILMENT[::-1]),
    MNLI,
    replace(MNLI, name="mnli-mm", hub="mnli", dev="dev_mismatched"),
)


def find_glue_task(name: str) -> GlueTask | None:
    """Return the task with this name or folder, ignoring case (`sst2`, `SST-2`); None if there is none."""
    return next((task for task in TASKS if name.lower() in (task.name, task.folder.lower())), None)


def glue_task(name: str) -> GlueTask:
    """Return the task with this name or folder, ignoring case (`sst2`, `SST-2`).

    Raises:
        UserError: there is no such task; the message suggests the nearest name.
    """
    task = find_glue_task(name)
    if task is None:
        raise unknown("GLUE task", name, [task.name for task in TASKS])
    return task


def glue_file(folder: Path, task: GlueTask, split: str) -> Path | None:
    """Return the file of a split of a GLUE task.

    Args:
        folder: the folder that contains the folders of the GLUE tasks.
        task: the task.
        split: `train` or `dev`.

    Returns:
        The path, or None if there is no such file.
    """
    path = folder / task.folder / f"{task.dev if split == 'dev' else split}.tsv"
    return path if path.is_file() else None


def read_glue_file(path: Path, task: GlueTask) -> list[Example]:
    """Read one file of GLUE's own distribution: tab-separated, without quoting.

    Args:
        path: the file.
        task: its task.

    Returns:
        The rows; their labels are None if the file has no column for them.

    Raises:
        UserError: a column is missing, or a row is too short; the message has its line.
    """
    lines = read_text(path).split("\n")
    has_header = isinstance(task.label, str) or lines[0].startswith(TEST_HEADER)
    texts, label = _columns(path, task, lines[0].split("\t") if has_header else None)
    widest = max((*texts, label or 0))
    rows: list[Example] = []
    for at, line in enumerate(lines[has_header:], start=1 + has_header):
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip() or (task.drops_broken_rows and len(cells) <= widest):
            continue
        if len(cells) <= widest:
            raise UserError(f"{path}:{at} has {len(cells)} columns, {task.folder} {widest + 1}; fix the row.")
        found = None if label is None else task.label_from(cells[label])
        rows.append(Example(*(cells[column] for column in texts), label=found, place=f"{path}:{at}"))
    return rows


def _columns(path: Path, task: GlueTask, header: list[str] | None) -> tuple[list[int], int | None]:
    """Column numbers of the texts and of the label; the latter is None if the file has no labels."""
    if header is None:
        return [column for column in task.texts if isinstance(column, int)], int(task.label)
    names = [name for name in task.texts if isinstance(name, str)] or task.hub_texts
    for name in names:
        if name not in header:
            raise UserError(f"{path} has no column '{name}', which GLUE's {task.folder} has; its header is {header}.")
    return [header.index(name) for name in names], header.index(task.label) if task.label in header else None
