"""Recipes and studies that are part of the package. The name of each is its file name without the suffix."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from laconic.errors import UserError, shown
from laconic.yaml_loader import NEAR

Kind = Literal["recipe", "study"]

FOLDER = Path(__file__).parent / "recipes"
STUDIES = "studies"
"""The name of the folders that contain studies; all other files are recipes."""
VERBS: Mapping[Kind, str] = {"recipe": "run", "study": "study"}
_SEPARATORS = re.compile(r"[/\\]")


def shipped(kind: Kind) -> dict[str, Path]:
    """The paths of all shipped recipes or studies, by name.

    >>> shipped("study")["quick"].name
    'quick.yaml'
    """
    # General recipes come first; recipes for a single study are in subfolders.
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {file.stem: file for file in files if (file.parent.name == STUDIES) == (kind == "study")}


def located(given: str, kind: Kind) -> Path:
    """The path of a recipe or a study that the user named.

    Text with a folder or a suffix is the path of a file of the user. Any other text is the name of a shipped file.

    Args:
        given: the text of the user.
        kind: whether it names a recipe or a study.

    Returns:
        The path. It may not exist if `given` is a path.

    Raises:
        UserError: no shipped file has this name (the message suggests the most similar one), or the path does not
            exist and a shipped file has the same name.

    >>> located("sst2-kfac-svd", "recipe").name
    'sst2-kfac-svd.yaml'
    >>> str(located("own/recipe", "recipe"))
    'own/recipe'
    """
    known, path = shipped(kind), Path(given)
    if not _is_name(given):
        if path.stem in known and not path.exists():
            raise UserError(
                f"The {kind} {shown(given)} cannot be read: there is no such file; the one that comes with laconic is "
                f"called '{path.stem}'."
            )
        return path
    if given not in known:
        raise UserError(
            f"There is no {kind} {shown(given)} among those that come with laconic: {_remedy(given, kind)}."
        )
    return known[given]


def described(kind: Kind) -> dict[str, str]:
    """The description of each shipped recipe or study, by name: the first sentence of the comment in its file."""
    return {name: _first_sentence(file.read_text(encoding="utf-8")) for name, file in shipped(kind).items()}


def _is_name(given: str) -> bool:
    # Empty text, `.` and `..` are not names.
    return bool(given.strip(". ")) and not _SEPARATORS.search(given) and not Path(given).suffix


def _remedy(given: str, kind: Kind) -> str:
    other: Kind = "study" if kind == "recipe" else "recipe"
    if given in shipped(other):
        return f"it is a {other}, for `laconic {VERBS[other]}`"
    if Path(given).is_file():
        return f"the file of this name here is './{given}'"
    near = get_close_matches(given.lower(), shipped(kind), n=1, cutoff=NEAR)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return f"{meant}`laconic {VERBS[kind]} --list` names them, and a file is given with its suffix or a path"


def _first_sentence(text: str) -> str:
    lines = re.match(r"(#.*\n)*", text)
    said = " ".join(line.removeprefix("#").strip() for line in lines[0].splitlines()) if lines else ""
    return re.split(r"(?<=\.)\s", said, maxsplit=1)[0].removesuffix(".")
