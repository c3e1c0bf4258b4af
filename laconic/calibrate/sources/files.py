"""Local files and folders: .txt, .jsonl, .json, .tsv, .csv and wikitext's .tokens, one reader each.

In a folder, the file of a split is found by its name (`train.jsonl`, `wiki.valid.tokens`); for the dev split, `dev` is
preferred to `valid`, `validation` and `test`. If a folder has one file only, without a split name, both splits use it.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path

from laconic.calibrate.examples import Example
from laconic.calibrate.sources.glue import glue_task_of, read_glue_file
from laconic.calibrate.sources.records import as_json, content, duplicate_field, example, json_of
from laconic.errors import UserError, must_be

SPLIT_NAMES = {"train": ("train", "training"), "dev": ("dev", "valid", "validation", "test")}


def read_txt(path: Path) -> list[Example]:
    """Read one row for each paragraph, or for each line if the file has no blank lines between lines of text."""
    text = content(path).strip("\n")
    parts = re.split(r"\n[ \t]*\n", text) if re.search(r"\n[ \t]*\n", text) else text.split("\n")
    return [Example(part.strip()) for part in parts if part.strip()]


def read_tokens(path: Path) -> list[Example]:
    """Read one row for each wikitext article; a level-one heading ` = Title = ` starts an article."""
    articles = re.split(r"^(?= = [^=].*[^=] = \n)", content(path), flags=re.MULTILINE)
    return [Example(article.strip()) for article in articles if article.strip()]


def read_jsonl(path: Path) -> list[Example]:
    """Read one row for each line, a JSON string or object."""
    lines = enumerate(content(path).split("\n"), start=1)
    return [example(json_of(line, f"{path}:{at}"), f"{path}:{at}") for at, line in lines if line.strip()]


def read_json(path: Path) -> list[Example]:
    """Read a JSON list of strings or objects, one for each row."""
    rows = json_of(content(path), str(path))
    if not isinstance(rows, list):
        raise must_be(str(path), "a list of texts or of objects", as_json(rows))
    return [example(row, f"{path}[{at}]") for at, row in enumerate(rows)]


def read_tsv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields, without quoting; in a GLUE task's folder, GLUE's own layout."""
    task = glue_task_of(path.parent.name)
    if task is not None:
        return read_glue_file(path, task)
    lines = enumerate(content(path).split("\n"), start=1)
    return _table_examples(path, ((at, line.split("\t")) for at, line in lines if line.strip()))


def read_csv(path: Path) -> list[Example]:
    """Read a table whose first line names the fields; quoted cells may hold commas and line ends."""
    reader = csv.reader(StringIO(content(path), newline=""), strict=True)
    try:
        return _table_examples(path, ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells))))
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num} is not CSV: {error}; mend the row, or write the data as .jsonl."
        ) from error


def _table_examples(path: Path, rows: Iterator[tuple[int, Sequence[str]]]) -> list[Example]:
    """Examples from a table whose first row is the header; `rows` are pairs of line number and cells."""
    names: Sequence[str] = next(rows, (0, ()))[1]
    if len(set(names)) < len(names):
        raise duplicate_field(f"The header of {path}", names)
    examples: list[Example] = []
    for at, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{path}:{at} has {len(cells)} columns, its header {len(names)}; mend the row.")
        examples.append(example(dict(zip(names, cells, strict=True)), f"{path}:{at}"))
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
    if path.is_dir():
        return _find_in_folder(path, split)
    if path.suffix.lower() not in READERS:
        raise UserError(f"The file '{path}' has no known format; its name must end in {', '.join(READERS)}.")
    return path


def read_file(path: Path) -> list[Example]:
    """Read the rows of a file that `find_file` returned.

    Raises:
        UserError: the file cannot be read, or a row is malformed; the message has its line.
    """
    return READERS[path.suffix.lower()](path)


def _find_in_folder(folder: Path, split: str) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS)
    named = [name for names in SPLIT_NAMES.values() for name in names]
    for wanted in SPLIT_NAMES[split]:
        for file in files:
            if wanted in _words(file):
                return file
    unnamed = [file for file in files if not set(named) & set(_words(file))]
    if len(unnamed) == 1 and len(files) == 1:
        return unnamed[0]
    listing = ", ".join(file.name for file in files) or f"no file ending in {', '.join(READERS)}"
    raise UserError(f"The folder '{folder}' has no {split} split (found: {listing}); name one of its files instead.")


def _words(file: Path) -> list[str]:
    return re.split(r"[._\-\d]+", file.name.lower())
