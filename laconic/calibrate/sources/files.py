"""Local files and folders, one reader for each format.

The formats are .txt, .jsonl, .json (a list of rows, or SQuAD's), .tsv, .csv, wikitext's .tokens, and columns of words
and their classes: .conll, .bio, .iob and .iob2.

In a folder, the file of a split is found by its name (`train.jsonl`, `wiki.valid.tokens`); for the dev split, `dev` is
preferred to `valid`, `validation` and `test`. If a folder has one file only, without a split name, both splits use it.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path

from laconic.calibrate.corpus import Example, as_json, check_fields, parse_json, read_text
from laconic.calibrate.sources.choice_records import with_labels_beside
from laconic.calibrate.sources.conll import ENDINGS, read_conll
from laconic.calibrate.sources.glue import find_glue_task, read_glue_file
from laconic.calibrate.sources.records import to_example
from laconic.calibrate.sources.squad import is_squad, squad_examples
from laconic.errors import UserError, must_be

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
    """Read one row for each line, a JSON string or object.

    Raises:
        UserError: a line is not JSON, or its row is invalid.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    rows = [to_example(parse_json(line, f"{path}:{at}"), f"{path}:{at}") for at, line in lines if line.strip()]
    return with_labels_beside(rows, path)


def read_json(path: Path) -> list[Example]:
    """Read a JSON list of strings or objects, one for each row, or a SQuAD file.

    Raises:
        UserError: the file is not JSON, holds something else, or a row is invalid.
    """
    text = read_text(path)
    if not text.strip():
        return []
    rows = parse_json(text, str(path))
    if is_squad(rows):
        return squad_examples(rows, text, path)
    if not isinstance(rows, list):
        raise must_be(str(path), "a list of texts or of objects", as_json(rows))
    return [to_example(row, f"{path}[{at}]") for at, row in enumerate(rows)]


def read_tsv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields, without quoting; in a GLUE task's folder, GLUE's own layout.

    Raises:
        UserError: a row has another number of cells than the header, or is invalid.
    """
    task = find_glue_task(path.parent.name)
    if task is not None:
        return read_glue_file(path, task)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return _table_examples(path, ((at, line.split("\t")) for at, line in lines if line.strip()))


def read_csv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields; quoted cells may hold commas and line ends.

    Raises:
        UserError: the file is not CSV, or a row has another number of cells than the header.
    """
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
    **dict.fromkeys(ENDINGS, read_conll),
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
