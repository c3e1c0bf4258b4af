"""Sets of real data for token classification and multiple choice.

- Addresses: the training data of usaddress, addresses in the United States whose parts were labelled by people (MIT
  licence). The source distribution of the package has them, and pip downloads it.
- Goals: PIQA (Bisk et al. 2020, https://arxiv.org/abs/1911.11641), a goal and two ways to reach it. Its development
  split is divided into both splits here, and only rows of at most `LONGEST` words are kept.
"""

import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from benchmarks.fact_tasks import LONGEST, SEED, write_data
from laconic.calibrate.sources import data_folder

PACKAGE, MEMBER = "usaddress==0.5.16", "usaddress-0.5.16/training/labeled.xml"
# pip runs setup.py to learn the version, but nothing is built or installed.
DOWNLOAD = ("download", "--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest")
LABELS = (
    "AddressNumber", "AddressNumberPrefix", "AddressNumberSuffix", "BuildingName", "CornerOf", "CountryName",
    "IntersectionSeparator", "LandmarkName", "NotAddress", "OccupancyIdentifier", "OccupancyType", "PlaceName",
    "Recipient", "StateName", "StreetName", "StreetNamePostDirectional", "StreetNamePostModifier",
    "StreetNamePostType", "StreetNamePreDirectional", "StreetNamePreModifier", "StreetNamePreType",
    "SubaddressIdentifier", "SubaddressType", "USPSBoxGroupID", "USPSBoxGroupType", "USPSBoxID", "USPSBoxType",
    "ZipCode", "ZipPlus4",
)  # fmt: skip
"""The parts of an address."""
ADDRESS_TAGS = ("O", *(f"{prefix}-{label}" for label in LABELS for prefix in "BI"))
DEV_EVERY = {"addresses": 5, "goals": 3}
"""Every n-th row belongs to the development split."""


def missing_data() -> str | None:
    """The reason why nothing can be measured, as a clause; None if the data is there."""
    folder = data_folder()
    if folder is None:
        return "the environment variable LACONIC_DATA is not set"
    missing = [name for name in ("lama", "piqa/dev.jsonl", "piqa/dev-labels.lst") if not (folder / name).exists()]
    return f"'{folder}' has no {missing[0]}" if missing else None


def write_all(folder: Path) -> None:
    """Write a train and a dev file of every set into a folder; files that are there are left.

    The addresses are left out if pip cannot download them.
    """
    if not (folder / "choices" / "dev.jsonl").is_file():
        write_data(folder)
    for name, ending, rows_of in SETS:
        if (folder / name / f"dev.{ending}").is_file():
            continue
        try:
            rows = list(dict.fromkeys(rows_of()))
        except subprocess.CalledProcessError:
            print(f"'{name}' is left out: pip could not download {PACKAGE}.")
            continue
        random.Random(SEED).shuffle(rows)
        every = DEV_EVERY[name]
        splits = {"train": [row for at, row in enumerate(rows) if at % every], "dev": rows[::every]}
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, lines in splits.items():
            (folder / name / f"{split}.{ending}").write_text("\n".join(lines), encoding="utf-8")


def addresses() -> list[str]:
    """The addresses in two columns, a word and its tag."""
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", *DOWNLOAD, folder, PACKAGE], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            member = files.extractfile(MEMBER)
            assert member is not None, "the data is a file"
            collection = ElementTree.parse(member).getroot()
    return [lines for address in collection if (lines := tag_words(address))]


def tag_words(address: ElementTree.Element) -> str:
    """The lines of one address.

    Args:
        address: an element for each word, whose name is the label. Neighbours of one name are one part of the address.
    """
    lines, before = "", ""
    for part in address:
        inside = part.tag == before
        for word in (part.text or "").split():
            lines += f"{word} {'I' if inside else 'B'}-{part.tag}\n"
            inside, before = True, part.tag
    return lines


def goals() -> Iterable[str]:
    """The rows of PIQA as JSON lines with `text`, `choices` and `label`."""
    folder = data_folder()
    assert folder is not None, "LACONIC_DATA is set"
    lines = (folder / "piqa" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    labels = (folder / "piqa" / "dev-labels.lst").read_text().split()
    for line, label in zip(lines, labels, strict=True):
        row = json.loads(line)
        choices = [row["sol1"].strip(), row["sol2"].strip()]
        if all(choices) and all(len(f"{row['goal']} {choice}".split()) <= LONGEST for choice in choices):
            found = {"text": row["goal"].strip(), "choices": choices, "label": int(label)}
            yield json.dumps(found, ensure_ascii=False)


SETS: tuple[tuple[str, str, Callable[[], Iterable[str]]], ...] = (
    ("addresses", "conll", addresses),
    ("goals", "jsonl", goals),
)
"""The sets of real data: name, ending of the files, rows."""
