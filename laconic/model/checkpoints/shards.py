"""Weights in several files: the index that names them, model.safetensors.index.json or pytorch_model.bin.index.json.

`weight_map` of the index maps the name of each tensor to its file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from laconic.errors import UserError, must_be, quote
from laconic.model.checkpoints.location import Location, read_object


class MissingWeightsError(UserError):
    """Weight files, or some shards of them, are missing."""


def find_shards(location: Location, listing: Path) -> tuple[Path, ...]:
    """Find the shards that an index names, and download them where needed.

    Args:
        location: the model's folder or repository.
        listing: the index file in it.

    Returns:
        The files, sorted by name.

    Raises:
        MissingWeightsError: a shard is missing.
        UserError: the index is invalid, or names a tensor twice.
    """
    what = f"The file '{listing.name}' of the model '{location.source}'"
    index = read_object(listing, what)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise must_be(f"{what}: weight_map", "an object that maps tensors to files", files)
    if not isinstance(index.get("metadata"), dict):
        raise must_be(f"{what}: metadata", "an object", index.get("metadata"))
    if (name := _duplicate_key(listing)) is not None:
        raise UserError(f"{what} names {quote(name)} twice; use the list that was saved with the weights.")
    return tuple(_find_shard(location, listing.name, name) for name in sorted(set(files.values())))


def _find_shard(location: Location, listing: str, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise must_be(f"A file that '{listing}' of the model '{location.source}' names", "one in the same folder", name)
    try:
        found = location.file(name)
    except (OSError, ValueError):
        # No file can have such a name.
        found = None
    if found is None:
        raise MissingWeightsError(
            f"The weights of '{location.source}' are incomplete: '{listing}' names the file {quote(name)}, which is "
            "not there; fetch the missing files."
        )
    return found


def _duplicate_key(listing: Path) -> str | None:
    """A key that some object in the JSON file has twice; json.loads would silently keep the last value."""
    twice: list[str] = []

    def collect(items: list[tuple[str, object]]) -> dict[str, object]:
        twice.extend(name for name, times in Counter(name for name, _ in items).items() if times > 1)
        return dict(items)

    json.loads(listing.read_text(encoding="utf-8"), object_pairs_hook=collect)
    return twice[0] if twice else None


def check_unique(names: Mapping[Path, Iterable[str]], source: str) -> None:
    """Raise UserError where two files hold a tensor of the same name.

    Args:
        names: the names of the tensors in each file.
        source: the model, as errors name it.
    """
    files: dict[str, Path] = {}
    for file, tensors in names.items():
        for name in tensors:
            if name in files:
                raise UserError(
                    f"The weights of '{source}' hold '{name}' twice, in '{files[name].name}' and in '{file.name}'; "
                    "use files that were saved together."
                )
            files[name] = file
