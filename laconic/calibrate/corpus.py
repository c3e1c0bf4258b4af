"""Read a corpus by its name: a GLUE task, a local file or folder, a hub data set, or text that ships with Python.

A source is looked for in this order: `builtin:NAME`, `glue/TASK`, a local file or folder, the same path below the
folder in the environment variable LACONIC_DATA, a hub data set `owner/name[:config]`. A source that is a single file
gives the same rows for both splits; all other sources have separate rows for `train` and `dev`.
"""

from collections.abc import Callable

from laconic.calibrate.batching import batches
from laconic.calibrate.examples import Corpus, Example, Rows, sample
from laconic.calibrate.sources import BUILTINS, SPLITS, file_of, find
from laconic.errors import UserError, must_be

__all__ = ["Corpus", "Example", "batches", "check_source", "file_of", "is_builtin", "read", "sample"]


def read(source: str, split: str = "train") -> Corpus:
    """Read all rows of one split.

    Args:
        source: `builtin:NAME`, `glue/TASK`, a file or folder, or a hub data set.
        split: `train` or `dev`.

    Raises:
        UserError: there is no such source or split, a row is malformed (the error gives its file and line), or there
            are no rows of text. Labels are not checked.

    Example:
        >>> read("builtin:pydoc", "dev").split
        'dev'
    """
    examples, classes = _find(source, split)()
    if not any(_has_text(one) for one in examples):
        raise UserError(f"The {split} split of '{source}' has no rows of text; give a source that has some.")
    return Corpus(source, split, tuple(examples), classes)


def _has_text(one: Example) -> bool:
    return any(part and not part.isspace() for part in (one.text, one.pair, one.target))


def is_builtin(source: str) -> bool:
    """Return whether the source is one that ships with Python, such as `builtin:pydoc`."""
    return source in BUILTINS


def check_source(source: str, split: str) -> None:
    """Raise UserError if the source, file, task or split does not exist; no row is read."""
    _find(source, split)


def _find(source: str, split: str) -> Callable[[], Rows]:
    if split not in SPLITS:
        raise must_be("split", f"one of {', '.join(SPLITS)}", split)
    return find(source, split)
