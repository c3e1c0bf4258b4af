"""The ledger of a study: a folder with one JSON file for each finished cell, and a copy of the study.

A record is written atomically when its cell is finished; its file name is the key of the cell. An invalid file of that
name (truncated, or of another version) is moved to another folder, and the cell is measured again. Other invalid files
are reported and not changed.
"""

import json
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any

from laconic.errors import Notice, UserError
from laconic.files import expand_user, system_reason
from laconic.study.cells import DONE, FAILED, VERSION, Cell
from laconic.study.shared_folder import LEASE, Folder, Leases

CELLS, RECORD = "cells", ".json"
DAMAGED = ".damaged"
"""The subfolder of the records for invalid files."""
STUDY, ABOUT, TITLE = "study.yaml", "about.json", "A study"

REQUIRED = frozenset({"key", "version", "state", "axes"})
TYPES: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("axes", "seconds", "recipe", "machine", "versions", "evaluation", "sites", "error"), dict),
    **dict.fromkeys(("dropped", "predicted_losses"), list),
    **dict.fromkeys(("key", "family", "finished"), str),
    **dict.fromkeys(("bytes", "dense_bytes", "file_bytes"), int | float),
}
"""The type of each field of a record. A field that is not required may be None or missing."""

Record = Mapping[str, Any]
"""The JSON of one cell."""


@dataclass(frozen=True)
class InvalidFile:
    """A file in the folder of records that is not a valid record, with the reason."""

    name: str
    reason: str


class Ledger:
    """The records of a study, and the leases that this runner holds.

    Args:
        location: the folder or URL of the study. Records are in its subfolder `cells`, which is created if necessary.

    Raises:
        UserError: the location cannot be accessed.

    Example:
        >>> ledger = Ledger("memory://study")
        >>> ledger.claim("cell")
        True
        >>> ledger.write({"version": 1, "key": "cell", "state": "done", "axes": {}, "seconds": {"total": 2.5}})
        >>> ledger.read("cell")["state"], ledger.claim("cell")
        ('done', False)
    """

    def __init__(self, location: str) -> None:
        self._folder = Folder(f"{location.rstrip('/')}/{CELLS}")
        self.leases = Leases(self._folder)

    @staticmethod
    def is_at(location: str) -> bool:
        """Whether a folder contains a ledger. Always True for a URL, which is not accessed."""
        return "://" in location or (expand_user(location) / CELLS).is_dir()

    def read(self, key: str) -> Record | InvalidFile | None:
        """The record of a cell, or a description of the invalid file with its name; None if there is no file."""
        return self._read(f"{key}{RECORD}")

    def keys(self) -> set[str]:
        """The keys of all cells that have a file, valid or not."""
        return {name.removesuffix(RECORD) for name in self._folder.names() if name.endswith(RECORD)}

    def all(self) -> tuple[list[Record], list[InvalidFile]]:
        """All valid records, sorted by file name, and all invalid files; leases are left out."""
        files = [self._read(name) for name in self._folder.names() if not name.endswith(LEASE)]
        invalid = [file for file in files if isinstance(file, InvalidFile)]
        return [file for file in files if file is not None and not isinstance(file, InvalidFile)], invalid

    def claim(self, key: str) -> bool:
        """Take the lease of a cell. False if another runner holds it, or has finished the cell in the meantime."""
        if not self.leases.claim(key):
            return False
        if self.read(key) is None:
            return True
        self.leases.release(key)
        return False

    def move_invalid(self, key: str) -> InvalidFile | None:
        """Move the file of a cell's record to another folder if it is invalid.

        Returns:
            The invalid file; None if the file is valid or missing.

        Raises:
            UserError: the file cannot be moved.
        """
        # Another runner may have moved the file in the meantime, and written a record.
        with self._folder.lock():
            file = self.read(key)
            if not isinstance(file, InvalidFile):
                return None
            to = f"{DAMAGED}/{key}.{secrets.token_hex(4)}{RECORD}"
            try:
                self._folder.move(file.name, to)
            except OSError as error:
                raise UserError(
                    f"'{file.name}' in '{self._folder.location}' is no valid record ({file.reason}) and cannot be "
                    f"moved: {system_reason(error)}. Remove it, and the cell is measured again."
                ) from error
        return InvalidFile(f"{CELLS}/{to}", file.reason)

    def remove_stale_leases(self) -> None:
        """Remove leases of finished cells. They remain if a runner is killed right after it wrote a record."""
        finished = self.keys()
        for name in self._folder.names():
            if name.endswith(LEASE) and name.removesuffix(LEASE) in finished:
                self._folder.remove(name)

    def write(self, record: Record) -> None:
        """Add a record, and release the lease of its cell.

        Raises:
            UserError: the disk is full or cannot be written to.
        """
        key = str(record["key"])
        try:
            self._folder.write(f"{key}{RECORD}", json.dumps(record, indent=1, allow_nan=False, default=str))
        except OSError as error:
            raise UserError(
                f"The record of cell {key} cannot be written to '{self._folder.location}': {system_reason(error)}. "
                "Free some space or name another folder; finished cells are kept."
            ) from error
        self.leases.release(key)

    def remove(self, key: str) -> None:
        """Remove the record of a cell, so that it is measured again."""
        self._folder.remove(f"{key}{RECORD}")

    def _read(self, name: str) -> Record | InvalidFile | None:
        try:
            text = self._folder.read(name)
        except (IsADirectoryError, PermissionError) as error:
            return InvalidFile(name, f"it cannot be read: {system_reason(error)}")
        if text is None:
            return None
        try:
            record = json.loads(text)
        except ValueError:
            return InvalidFile(name, "it cannot be read as JSON")
        if not _is_record(record):
            return InvalidFile(name, "it is no record of a study")
        if record["version"] != VERSION:
            return InvalidFile(name, f"it is of version {record['version']}, and this is version {VERSION}")
        return record if name == f"{record['key']}{RECORD}" else InvalidFile(name, f"it holds the cell {record['key']}")


def _is_record(value: object) -> bool:
    """Whether `value` has all required fields, with the right types."""
    if not isinstance(value, dict) or not value.keys() >= REQUIRED or value["axes"] is None:
        return False
    if not all(isinstance(value[name], type_) for name, type_ in TYPES.items() if value.get(name) is not None):
        return False
    if value["state"] == FAILED:
        # A cell whose worker died has no `seconds`.
        return {"kind", "sentence"} <= (value.get("error") or {}).keys()
    return value["state"] == DONE and isinstance((value.get("seconds") or {}).get("total"), (int, float))


def save_study(
    location: str, title: str | None, text: str, cells: Iterable[Cell], overrides: Sequence[str] = ()
) -> None:
    """Write the study and the keys of its cells into its folder, for reports.

    Args:
        location: the folder or URL of the study.
        title: the title in reports; None for `TITLE`.
        text: the YAML text of the study.
        cells: its cells. The folder may also contain records of other cells, from earlier versions of the study.
        overrides: the `key=value` arguments that replaced values of the YAML.
    """
    folder = Folder(location)
    folder.write(STUDY, text)
    about = {"title": title or TITLE, "overrides": list(overrides), "cells": [cell.key for cell in cells]}
    folder.write(ABOUT, json.dumps(about))


def title_of(location: str) -> str:
    """The title of the study at a folder or URL."""
    return str(_about(location).get("title", TITLE))


def of_the_study(location: str, records: Sequence[Record]) -> list[Record]:
    """The records that belong to the last run of the study; all records if the folder does not name its cells.

    An earlier run with other settings, such as fewer rows, leaves records that are not comparable.

    Args:
        location: the folder or URL of the study.
        records: records from its ledger.
    """
    keys = _about(location).get("cells")
    return [record for record in records if record["key"] in keys] if isinstance(keys, list) else list(records)


def own_records(location: str) -> list[Record]:
    """Read the records of the last run of a study. A notice names other records, and files that are not records."""
    records, invalid = Ledger(location).all()
    for file in invalid:
        warnings.warn(
            f"'{file.name}' in {location} is not a record, and is ignored: {file.reason}.", Notice, stacklevel=3
        )
    own = of_the_study(location, records)
    if others := len(records) - len(own):
        sentence = (
            f"Records in {location} that are not reported: {others}, of cells that are no longer in the study; "
            "run a study with all of these cells to have them in one report."
        )
        warnings.warn(sentence, Notice, stacklevel=3)
    return own


def _about(location: str) -> Mapping[str, Any]:
    try:
        about = json.loads(Folder(location).read(ABOUT) or b"{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
