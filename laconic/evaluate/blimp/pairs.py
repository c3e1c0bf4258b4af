"""BLiMP's minimal pairs: the acceptable sentence as the text of a row, the other as its pair.

Read from the `.jsonl` files in the folder `blimp` of LACONIC_DATA, or in its folder `data`: the release's, one for each
paradigm (`sentence_good`, `sentence_bad`, `UID`), or any with the fields `good`, `bad` and `phenomenon`.
"""

from collections.abc import Sequence
from pathlib import Path

from laconic.calibrate.corpus import Example
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.blimp.phenomena import PHENOMENON
from laconic.evaluate.objects import field, objects


def files() -> list[Path]:
    """Those with the pairs.

    Raises:
        UserError: LACONIC_DATA names no folder with BLiMP in it.
    """
    data = data_folder()
    folder = None if data is None else data / "blimp"
    found = [] if folder is None else [path for place in (folder, folder / "data") for path in place.glob("*.jsonl")]
    if not found:
        where = "LACONIC_DATA is not set" if folder is None else f"there is no .jsonl file in '{folder}'"
        raise UserError(
            f"BLiMP is read from local files, and {where}; name by LACONIC_DATA a folder that holds blimp/, with the "
            "release's data/*.jsonl in it."
        )
    return sorted(found)


def pairs(paradigms: Sequence[str]) -> list[Example]:
    """The pairs of these paradigms; `group` is `phenomenon/paradigm`.

    Raises:
        UserError: a malformed row, an unknown paradigm in it, or no pair of any of `paradigms`.
    """
    rows: list[Example] = []
    for path in files():
        for place, row in objects(path):
            paradigm = field(row, ("UID", "phenomenon"), place)
            if paradigm not in PHENOMENON:
                raise unknown("BLiMP paradigm", paradigm, PHENOMENON, f"{place} is of")
            if paradigm in paradigms:
                good, bad = field(row, ("sentence_good", "good"), place), field(row, ("sentence_bad", "bad"), place)
                rows.append(Example(good, pair=bad, group=f"{PHENOMENON[paradigm]}/{paradigm}"))
    if not rows:
        raise UserError(f"BLiMP in LACONIC_DATA has no pair of {', '.join(paradigms)}; put the release's data there.")
    return rows
