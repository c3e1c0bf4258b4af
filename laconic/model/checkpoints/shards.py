"""Weights in several files, and the list of them: model.safetensors.index.json, or pytorch_model.bin.index.json."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from laconic.errors import UserError, must_be, shown
from laconic.model.checkpoints.place import Place, read_object


class MissingWeightsError(UserError):
    """Weights, or some shards of them, are missing."""


def shards_of(place: Place, listing: Path) -> tuple[Path, ...]:
    """The files that the list at `listing` names, fetched where they have to be.

    Raises:
        MissingWeightsError: one is missing.
        UserError: it is no list of files, or names two for one tensor.
    """
    what = f"The file '{listing.name}' of the model '{place.source}'"
    said = read_object(listing, what)
    names = said.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise must_be(f"{what}: weight_map", "an object that maps tensors to files", names)
    if not isinstance(said.get("metadata"), dict):
        raise must_be(f"{what}: metadata", "an object", said.get("metadata"))
    if (name := _named_twice(listing)) is not None:
        raise UserError(f"{what} names {shown(name)} twice; use the list that was saved with the weights.")
    return tuple(_shard(place, listing.name, name) for name in sorted(set(names.values())))


def check_apart(shapes: Mapping[Path, Iterable[str]], source: str) -> None:
    """Raise UserError where two files hold a tensor of one name: which of them is meant, nothing says.

    shapes: the names of the tensors in each file.
    """
    places: dict[str, Path] = {}
    for file, names in shapes.items():
        for name in names:
            if name in places:
                raise UserError(
                    f"The weights of '{source}' hold '{name}' twice, in '{places[name].name}' and in '{file.name}'; "
                    "use files that were saved together."
                )
            places[name] = file


def _shard(place: Place, listing: str, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise must_be(f"A file that '{listing}' of the model '{place.source}' names", "one in the same folder", name)
    try:
        found = place.file(name)
    except (OSError, ValueError):
        # No file can have such a name.
        found = None
    if found is None:
        raise MissingWeightsError(
            f"The weights of '{place.source}' are incomplete: '{listing}' names the file {shown(name)}, which is not "
            "there; fetch the missing files."
        )
    return found


def _named_twice(listing: Path) -> str | None:
    """A name that some object in the file has twice: of two values a reader takes the last, and says nothing."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        twice.extend(name for name, times in Counter(name for name, _ in items).items() if times > 1)
        return dict(items)

    json.loads(listing.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    return twice[0] if twice else None
