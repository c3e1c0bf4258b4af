"""BLiMP's minimal pairs, and the paradigms of its twelve phenomena.

The phenomena are defined by Warstadt et al. 2020, https://arxiv.org/abs/1912.00582. Pairs are read from the `.jsonl`
files in `$LACONIC_DATA/blimp` or `$LACONIC_DATA/blimp/data`. These are the files of the release, one for each paradigm
(with the fields `sentence_good`, `sentence_bad` and `UID`), or files with the fields `good`, `bad` and `phenomenon`.
"""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from laconic.calibrate.corpus import Example
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.json_lines import read_objects, text_field

PHENOMENA: dict[str, tuple[str, ...]] = {
    phenomenon: tuple(members)
    for phenomenon, members in json.loads(Path(__file__).with_name("phenomena.json").read_text()).items()
}
"""The paradigms of each phenomenon."""
PHENOMENON_OF = {paradigm: phenomenon for phenomenon, members in PHENOMENA.items() for paradigm in members}
"""The phenomenon of each paradigm."""


def match_paradigms(pattern: str) -> tuple[str, ...]:
    """The paradigms that match a pattern. A phenomenon matches all of its paradigms.

    Args:
        pattern: name or glob of phenomena or paradigms, in any case.

    Raises:
        UserError: no phenomenon and no paradigm matches.
    """
    glob = pattern.lower()
    found = [
        paradigm
        for phenomenon, members in PHENOMENA.items()
        for paradigm in members
        if fnmatchcase(phenomenon, glob) or fnmatchcase(paradigm.lower(), glob)
    ]
    if not found:
        close = get_close_matches(glob, [*PHENOMENA, *PHENOMENON_OF], n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(
            f"There is no BLiMP phenomenon '{pattern}': {hint}known are {', '.join(PHENOMENA)}, and the paradigms of "
            "each."
        )
    return tuple(found)


def pair_files() -> list[Path]:
    """The files with the pairs.

    Raises:
        UserError: LACONIC_DATA is not set to a folder that contains BLiMP.
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


def load_pairs(paradigms: Sequence[str]) -> list[Example]:
    """Read the pairs of some paradigms. The `group` of each row is `phenomenon/paradigm`.

    Raises:
        UserError: a row is malformed or names an unknown paradigm, or there is no pair of these paradigms.
    """
    rows: list[Example] = []
    for path in pair_files():
        for place, row in read_objects(path):
            paradigm = text_field(row, ("UID", "phenomenon"), place)
            if paradigm not in PHENOMENON_OF:
                raise unknown("BLiMP paradigm", paradigm, PHENOMENON_OF, f"{place} is of")
            if paradigm in paradigms:
                good, bad = (
                    text_field(row, ("sentence_good", "good"), place),
                    text_field(row, ("sentence_bad", "bad"), place),
                )
                rows.append(Example(good, pair=bad, group=f"{PHENOMENON_OF[paradigm]}/{paradigm}"))
    if not rows:
        raise UserError(f"BLiMP in LACONIC_DATA has no pair of {', '.join(paradigms)}; put the release's data there.")
    return rows
