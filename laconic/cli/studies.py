"""What `study` and `report` share: where a study lies, and which of the records there are its own."""

from pathlib import Path
from typing import TYPE_CHECKING

from laconic.cli.terminal import remark
from laconic.errors import must_be
from laconic.paths import expanded

if TYPE_CHECKING:
    from laconic.study import Record


def folder_of(option: str, place: str) -> Path | None:
    """The folder of this machine that an option names; None where it is a URL.

    Raises:
        UserError: it names nothing.
    """
    if not place.strip():
        raise must_be(option, "a folder or a URL", place)
    return None if "://" in place else expanded(place).absolute()


def own_records(place: str) -> "list[Record]":
    """The records of the study in `place`; whatever else is among them is told of."""
    from laconic.study import Ledger, of_the_study

    records, invalid = Ledger(place).all()
    for file in invalid:
        remark(f"'{file.name}' in {place} was left alone: {file.reason}.")
    own = of_the_study(place, records)
    if others := len(records) - len(own):
        remark(
            f"Records in {place} that are not reported: {others}, of cells that the study has no more; "
            "run it with all that belongs together to have that in one report."
        )
    return own
