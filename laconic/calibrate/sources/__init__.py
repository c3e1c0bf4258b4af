"""Read a corpus by its name: a GLUE task, a local file or folder, a hub data set, or text that ships with Python.

A source is looked for in this order: `builtin:NAME`, `glue/TASK`, a local file or folder, the same path below the
folder in the environment variable LACONIC_DATA, a hub data set `owner/name[:config]`. A source that is a single file
gives the same rows for both splits; all other sources have separate rows for `train` and `dev`.
"""

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from pydoc_data.topics import topics

from laconic.calibrate.corpus import Corpus, Example, Rows
from laconic.calibrate.sources.choice_records import check_same_choices
from laconic.calibrate.sources.files import READERS, SPLIT_NAMES, find_file
from laconic.calibrate.sources.glue import TASKS, GlueTask, find_glue_task, glue_file, glue_task, read_glue_file
from laconic.calibrate.sources.hub import hub_examples, hub_glue
from laconic.errors import UserError, must_be, unknown
from laconic.files import expand_user

__all__ = [
    "BUILTINS",
    "TASKS",
    "GlueTask",
    "check_source",
    "data_folder",
    "find_source",
    "glue_task",
    "is_builtin",
    "read",
    "source_file",
]

DATA_FOLDER = "LACONIC_DATA"

DEV_EVERY = 5
MIN_CHARACTERS = 40
MIN_PROSE = 0.85

_CODE = re.compile(r"::=|>>>|^\s*\*{3,}|={3,}|-{3,}", re.MULTILINE)
_BULLET = re.compile(r"^(\*|\d+\.)\s+")
_EMPHASIS = re.compile(r"\*{1,2}([^*\s][^*]*)\*{1,2}")


def pydoc(split: str) -> list[Example]:
    """Return the prose paragraphs of Python's built-in help topics; every fifth topic belongs to the dev split."""
    held_out = [name for index, name in enumerate(sorted(topics)) if index % DEV_EVERY == 0]
    dev = _paragraphs(held_out)
    if split == "dev":
        return [Example(text) for text in dev]
    train = _paragraphs([name for name in sorted(topics) if name not in held_out])
    return [Example(text) for text in train if text not in dev]


def _paragraphs(names: list[str]) -> dict[str, None]:
    """The prose paragraphs of these topics, as keys in order: one line each, without list markers and emphasis."""
    found: dict[str, None] = {}
    for block in (block for name in names for block in re.split(r"\n\s*\n", topics[name])):
        text = _EMPHASIS.sub(r"\1", _BULLET.sub("", " ".join(block.split())))
        letters = sum(character.isalpha() or character == " " for character in text)
        if not _CODE.search(block) and len(text) >= MIN_CHARACTERS and letters >= MIN_PROSE * len(text):
            found[text] = None
    return found


BUILTINS: dict[str, Callable[[str], list[Example]]] = {"builtin:pydoc": pydoc}


def data_folder() -> Path | None:
    """Return the folder in the environment variable LACONIC_DATA, which is searched before the hub; None if unset."""
    folder = os.environ.get(DATA_FOLDER)
    return expand_user(folder) if folder else None


def read(source: str, split: str = "train") -> Corpus:
    """Read all rows of one split.

    Args:
        source: `builtin:NAME`, `glue/TASK`, a file or folder, or a hub data set.
        split: `train` or `dev`.

    Raises:
        UserError: there is no such source or split, a row is malformed (the error gives its file and line), two rows
            have different numbers of choices, or there are no rows of text. Labels are not checked.

    Example:
        >>> read("builtin:pydoc", "dev").split
        'dev'
    """
    examples, classes = find_source(source, split)()
    if not any(text and not text.isspace() for row in examples for text in (row.text, row.pair, row.target)):
        raise UserError(f"The {split} split of '{source}' has no rows of text; give a source that has some.")
    check_same_choices(examples)
    return Corpus(source, split, tuple(examples), classes)


def check_source(source: str, split: str) -> None:
    """Raise UserError if the source, file, task or split does not exist; no row is read."""
    find_source(source, split)


def is_builtin(source: str) -> bool:
    """Return whether the source is one that ships with Python, such as `builtin:pydoc`."""
    return source in BUILTINS


def find_source(source: str, split: str) -> Callable[[], Rows]:
    """Find a source and return a function that reads its rows.

    Args:
        source: name of the source.
        split: `train` or `dev`.

    Raises:
        UserError: there is no such source, or it lacks the split.
    """
    if split not in SPLIT_NAMES:
        raise must_be("split", f"one of {', '.join(SPLIT_NAMES)}", split)
    if source.startswith("builtin:"):
        if source not in BUILTINS:
            raise unknown("built-in corpus", source, BUILTINS)
        return lambda: Rows(BUILTINS[source](split))
    if source.lower().startswith("glue/"):
        task, folder = glue_task(source[len("glue/") :].rstrip("/")), data_folder()
        glue = None if folder is None else glue_file(folder / "glue", task, split)
        return hub_glue(task, split) if glue is None else lambda: Rows(read_glue_file(glue, task), task.classes)
    path = _local(source)
    if path is not None:
        file = find_file(path, split)
        # A folder that is named like a GLUE task has the classes of the task.
        folder_task = find_glue_task((path if path.is_dir() else path.parent).name)
        classes = () if folder_task is None else folder_task.classes
        return lambda: Rows(READERS[file.suffix.lower()](file), classes)
    is_path = source.startswith((".", "/", "~")) or Path(source).suffix.lower() in READERS
    if source.count("/") == 1 and not is_path:
        return hub_examples(source, split)
    raise _not_found(source)


def source_file(source: str, split: str) -> Path | None:
    """Return the local file that `split` is read from, with symbolic links resolved; None if there is no such file."""
    path = _local(source)
    if source.lower().startswith("glue/"):
        task, folder = find_glue_task(source[len("glue/") :].rstrip("/")), data_folder()
        file = None if task is None or folder is None else glue_file(folder / "glue", task, split)
    else:
        try:
            file = None if path is None else find_file(path, split)
        except UserError:
            file = None
    return None if file is None else file.resolve()


def _local(source: str) -> Path | None:
    """The path of `source` in the working folder or the data folder; None if it does not exist."""
    folder = data_folder()
    places = [expand_user(source), *([folder / source] if folder and source else [])]
    return next((place for place in places if source and place.exists()), None)


def _not_found(source: str) -> UserError:
    folder = data_folder()
    names = [*BUILTINS, *(f"glue/{task.name}" for task in TASKS)]
    if folder and folder.is_dir():
        names += sorted(entry.name for entry in folder.iterdir())
    searched = f"the working folder and {folder} ({DATA_FOLDER})" if folder else "the working folder"
    close = get_close_matches(source.lower(), names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(
        f"There is no data '{source}' in {searched}: {hint}"
        "give a file, a folder, builtin:pydoc, glue/TASK or a hub data set owner/name."
    )
