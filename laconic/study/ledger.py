"""The ledger: a folder with one JSON file for each finished cell, which appears whole once the cell is done.

A record counts under its own name alone. What is in the place of one and is none (half a file, one of another version)
is put aside when its cell is to be measured; other files that are no records are told of, and left as they are.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any

from laconic.errors import UserError
from laconic.paths import expanded
from laconic.study.folder import Folder
from laconic.study.leases import SUFFIX, Leases

VERSION = 1
CELLS, RECORD = "cells", ".json"
ASIDE = ".damaged"
"""The folder, within that of the records, for what stood in the place of one and was none."""
DONE = "done"
"""The state of a cell with a result."""
FAILED = "failed"
"""The state of a cell that ended with an error."""

NEEDED = frozenset({"key", "version", "state", "axes"})
KINDS: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("axes", "seconds", "recipe", "machine", "versions", "evaluation", "sites", "error"), dict),
    **dict.fromkeys(("dropped", "predicted_losses"), list),
    **dict.fromkeys(("key", "family", "finished"), str),
    **dict.fromkeys(("bytes", "dense_bytes", "file_bytes"), int | float),
}
"""Of what a record has; `evaluation` and the like are None or missing where there was nothing to say."""

Record = Mapping[str, Any]
"""The JSON of one cell."""


@dataclass(frozen=True)
class Strange:
    """A file among the records that is none, and why."""

    name: str
    reason: str


class Ledger:
    """The records of the study in `place`, a folder or URL, and the leases of this runner.

    Raises:
        UserError: the place cannot be used.
    """

    def __init__(self, place: str) -> None:
        self._folder = Folder(f"{place.rstrip('/')}/{CELLS}")
        self.leases = Leases(self._folder)

    @staticmethod
    def is_at(place: str) -> bool:
        """Whether there is one; of a URL nobody knows before it is read."""
        return "://" in place or (expanded(place) / CELLS).is_dir()

    def find(self, key: str) -> Record | Strange | None:
        """The record of a cell, or what is there in its place; None where there is nothing."""
        return self._read(f"{key}{RECORD}")

    def keys(self) -> set[str]:
        """Of the cells in whose place there is something."""
        return {name.removesuffix(RECORD) for name in self._folder.names() if name.endswith(RECORD)}

    def all(self) -> tuple[list[Record], list[Strange]]:
        """Every record, in the order of their names; and what else is there."""
        records: list[Record] = []
        strange: list[Strange] = []
        for name in self._folder.names():
            found = None if name.endswith(SUFFIX) else self._read(name)
            if isinstance(found, Strange):
                strange.append(found)
            elif found is not None:
                records.append(found)
        return records, strange

    def claim(self, key: str) -> bool:
        """Take the lease of a cell; False where another runner has it, or has finished the cell in the meantime."""
        if not self.leases.claim(key):
            return False
        if self.find(key) is None:
            return True
        self.leases.release(key)
        return False

    def put_aside(self, key: str) -> Strange | None:
        """What is in the place of a cell's record and is none, once it is moved away; None where no such thing is.

        Raises:
            UserError: it cannot be moved.
        """
        # Another runner may have moved it in the meantime, and put a record there.
        with self._folder.alone():
            found = self.find(key)
            if not isinstance(found, Strange):
                return None
            to = f"{ASIDE}/{key}.{secrets.token_hex(4)}{RECORD}"
            try:
                self._folder.move(found.name, to)
            except OSError as error:
                raise UserError(
                    f"'{found.name}' in '{self._folder.place}' is no record ({found.reason}) and cannot be put aside: "
                    f"{error.strerror or error}. Remove it, and the cell is measured."
                ) from error
        return Strange(f"{CELLS}/{to}", found.reason)

    def tidy(self) -> None:
        """Remove leases of cells that are finished: a runner left them that was killed right after its record."""
        done = self.keys()
        for name in self._folder.names():
            if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in done:
                self._folder.remove(name)

    def write(self, record: Record) -> None:
        """Add a record; the lease of its cell ends.

        Raises:
            UserError: the disk is full, or refuses.
        """
        key = str(record["key"])
        try:
            self._folder.write(f"{key}{RECORD}", json.dumps(record, indent=1, allow_nan=False, default=str))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"The record of cell {key} cannot be written to '{self._folder.place}': {reason}. "
                "Free some space or name another folder; what is finished stays."
            ) from error
        self.leases.release(key)

    def forget(self, key: str) -> None:
        """Remove the record of a cell, which is then measured again."""
        self._folder.remove(f"{key}{RECORD}")

    def _read(self, name: str) -> Record | Strange | None:
        try:
            text = self._folder.read(name)
        except (IsADirectoryError, PermissionError) as error:
            return Strange(name, f"it cannot be read: {error.strerror or error}")
        if text is None:
            return None
        try:
            record = json.loads(text)
        except ValueError:
            return Strange(name, "it cannot be read as JSON")
        if not _is_record(record):
            return Strange(name, "it is no record of a study")
        if record["version"] != VERSION:
            return Strange(name, f"it is of version {record['version']}, and this is version {VERSION}")
        return record if name == f"{record['key']}{RECORD}" else Strange(name, f"it holds the cell {record['key']}")


def _is_record(found: object) -> bool:
    """Whether it has what every reader of records counts on, of the kinds that these have."""
    if not isinstance(found, dict) or not found.keys() >= NEEDED:
        return False
    if found["state"] == FAILED and not (
        isinstance(found.get("error"), dict) and {"kind", "sentence"} <= found["error"].keys()
    ):
        return False
    if not all(isinstance(found[name], kind) for name, kind in KINDS.items() if found.get(name) is not None):
        return False
    # A cell whose worker was lost has no seconds.
    timed = found["state"] == FAILED or isinstance((found.get("seconds") or {}).get("total"), (int, float))
    return found["axes"] is not None and found["state"] in (DONE, FAILED) and timed
