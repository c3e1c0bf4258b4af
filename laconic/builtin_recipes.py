"""Recipes and studies that come with laconic. The name of each is its file name without the suffix."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from laconic.errors import UserError, quote
from laconic.yaml_loader import NEAR

Kind = Literal["recipe", "study"]

FOLDER = Path(__file__).parent / "recipes"
STUDIES = "studies"
"""The name of the folders that contain studies; all other files are recipes."""
VERBS: Mapping[Kind, str] = {"recipe": "run", "study": "study"}
_SEPARATORS = re.compile(r"[/\\]")


def builtin_files(kind: Kind) -> dict[str, Path]:
    """The paths of all built-in recipes or studies, by name.

    >>> builtin_files("study")["quick"].name
    'quick.yaml'
    """
    # General recipes come first; recipes for a single study are in subfolders.
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {file.stem: file for file in files if (file.parent.name == STUDIES) == (kind == "study")}


def find_file(text: str, kind: Kind) -> Path:
    """Find the file of a recipe or a study.

    Text with a folder or a suffix is a path. Any other text is the name of a built-in file.

    Args:
        text: a path, or the name of a built-in file.
        kind: whether it names a recipe or a study.

    Returns:
        The path. The file may not exist if `text` is a path.

    Raises:
        UserError: no built-in file has this name (the message suggests the most similar one), or the path does not
            exist and a built-in file has the same name.

    >>> find_file("sst2-kfac-svd", "recipe").name
    'sst2-kfac-svd.yaml'
    >>> str(find_file("own/recipe", "recipe"))
    'own/recipe'
    """
    files, path = builtin_files(kind), Path(text)
    if not _is_name(text):
        if path.stem in files and not path.exists():
            raise UserError(
                f"The {kind} {quote(text)} cannot be read: there is no such file; the one that comes with laconic is "
                f"called '{path.stem}'."
            )
        return path
    if text not in files:
        raise UserError(f"There is no {kind} {quote(text)} among those that come with laconic: {_remedy(text, kind)}.")
    return files[text]


def descriptions(kind: Kind) -> dict[str, str]:
    """The description of each built-in recipe or study, by name: the first sentence of the comment in its file."""
    return {name: _first_sentence(file.read_text(encoding="utf-8")) for name, file in builtin_files(kind).items()}


def _is_name(text: str) -> bool:
    # Empty text, `.` and `..` are not names.
    return bool(text.strip(". ")) and not _SEPARATORS.search(text) and not Path(text).suffix


def _remedy(text: str, kind: Kind) -> str:
    other: Kind = "study" if kind == "recipe" else "recipe"
    if text in builtin_files(other):
        return f"it is a {other}, for `laconic {VERBS[other]}`"
    if Path(text).is_file():
        return f"the file of this name here is './{text}'"
    near = get_close_matches(text.lower(), builtin_files(kind), n=1, cutoff=NEAR)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}`laconic {VERBS[kind]} --list` names them, and a file is given with its suffix or a path"


def _first_sentence(text: str) -> str:
    lines = re.match(r"(#.*\n)*", text)
    comment = " ".join(line.removeprefix("#").strip() for line in lines[0].splitlines()) if lines else ""
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0].removesuffix(".")
