"""What lies beside the records of a study for those who read them: the study as it was given, its title, its cells."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laconic.study.cells import Cell
from laconic.study.folder import Folder
from laconic.study.ledger import Record

STUDY, ABOUT, TITLE = "study.yaml", "about.json", "A study"


def keep_study(place: str, title: str | None, text: str, cells: Iterable[Cell], overrides: Sequence[str] = ()) -> None:
    """Lay the study beside its records: its YAML, its title, what was given anew, and the keys of its cells."""
    folder = Folder(place)
    folder.write(STUDY, text)
    said = {"title": title or TITLE, "overrides": list(overrides), "cells": [cell.key for cell in cells]}
    folder.write(ABOUT, json.dumps(said))


def title_of(place: str) -> str:
    """The title of the study whose records are in `place`."""
    return str(_about(place).get("title", TITLE))


def of_the_study(place: str, records: Sequence[Record]) -> list[Record]:
    """Those of `records` that are cells of the study as it was last run in `place`; all where that is not known.

    A study that was tried on fewer rows before has left records there that do not compare with those that count.
    """
    keys = _about(place).get("cells")
    return [record for record in records if record["key"] in keys] if isinstance(keys, list) else list(records)


def _about(place: str) -> Mapping[str, Any]:
    try:
        said = json.loads(Folder(place).read(ABOUT) or b"{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
