"""Where the files of a model are: in a folder, or in a hub repository at one commit.

A file may not be what its name says: Git LFS leaves a text in place of a file that it did not fetch, and an archive has
to be unpacked first.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.hub import cached_file

from laconic.errors import UserError, quote, reason_of
from laconic.hub import out_of_reach

POINTER = b"version https://git-lfs.github.com/spec/"
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")
"""The first bytes of zip, gzip, bzip2, xz, 7z, rar and zstandard files."""
TAR = (b"ustar", 257)
"""Of a tar file, and where they stand."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file at `path` is the text that Git LFS leaves in place of a file."""
    return _begins(path, len(POINTER)) == POINTER


def is_archive(path: Path) -> bool:
    """Whether the file at `path` begins like an archive; files written by torch.save are zip archives too."""
    begins = _begins(path, TAR[1] + len(TAR[0]))
    return begins.startswith(ARCHIVES) or begins[TAR[1] :] == TAR[0]


def enclosing_archive(path: Path) -> Path | None:
    """The archive that `path` leads into, as `model.zip/model` does."""
    return next((parent for parent in path.parents if parent.is_file() and is_archive(parent)), None)


def _begins(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        # Whoever reads it says so.
        return b""


SNAPSHOTS = "snapshots"
"""The folder of the hub's cache that has one folder for each commit."""
MARKS = ("config.json", "adapter_config.json", "modules.json")
"""Files that mark a model repository: each has at least one of them."""


@dataclass(frozen=True)
class Location:
    """A folder, or a repository of the hub.

    Args:
        source: the name that the user gave; errors use it.
        folder: the folder; None for a repository.
        revision: a branch, tag or commit of the repository.
        downloads: whether files of a repository are downloaded where they are not in the cache.
        subfolder: the subfolder of a repository that the files are in; of a folder it is part of `folder`.
    """

    source: str
    folder: Path | None = None
    revision: str | None = None
    downloads: bool = True
    subfolder: str = ""

    @property
    def name(self) -> str:
        """What transformers loads it by: the path of the folder, or the name of the repository."""
        return self.source if self.folder is None else str(self.folder)

    def file(self, name: str) -> Path | None:
        """The path of the file called `name`, downloaded where needed; None where there is none.

        Raises:
            UserError: the hub cannot be reached.
        """
        if self.folder is not None:
            return path if (path := self.folder / name).is_file() else None
        try:
            found = cached_file(
                self.source,
                f"{self.subfolder}/{name}" if self.subfolder else name,
                revision=self.revision,
                local_files_only=not self.downloads,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_gated_repo=False,
            )
        except OSError as error:
            raise UserError(
                f"There is no loadable model '{self.source}', neither as a folder nor on the hub: {reason_of(error)}."
            ) from error
        return None if found is None else Path(found)

    def inside(self, path: str) -> "Location":
        """The location of its subfolder at `path`."""
        if not path:
            return self
        if self.folder is not None:
            return replace(self, folder=self.folder / path)
        return replace(self, subfolder=f"{self.subfolder}/{path}" if self.subfolder else path)

    def without_download(self) -> "Location":
        """The same location, from which nothing is downloaded."""
        return replace(self, downloads=False)

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file called `name`; None where there is no such file.

        Raises:
            UserError: it is no JSON object.
        """
        path = self.file(name)
        return None if path is None else read_object(path, self._called(name))

    def listing(self, name: str) -> list[Any] | None:
        """The JSON list in the file called `name`; None where there is no such file."""
        path = self.file(name)
        return None if path is None else _read(path, self._called(name), list, "a JSON list")

    def _called(self, name: str) -> str:
        return f"The file '{name}' of the model '{self.source}'"


def find_location(source: str, revision: str | None = None) -> Location | Path:
    """Find the folder, the repository or the file that `source` names.

    Args:
        source: a path or the name of a hub repository.
        revision: a branch, tag or commit of the repository.

    Returns:
        The location; the path where it is a file.

    Raises:
        UserError: it is empty, a broken link, or a path where nothing is; or it is the name of a repository that
            is not in the cache, and the hub does not have it or cannot be reached.
    """
    if not source.strip():
        raise UserError("The model is named by an empty text; give a folder with a config.json or a hub name.")
    try:
        path = Path(source).expanduser()
        is_folder, is_link, is_there = path.is_dir(), path.is_symlink(), path.exists()
        if is_folder:
            os.listdir(path)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"The model folder {quote(source)}"
        raise UserError(f"{what} cannot be read: {_why(error)}; give another path.") from error
    if is_folder:
        return Location(source, path)
    if is_there and not path.is_file():
        # A pipe would be waited for, and a device may have no end.
        raise UserError(f"{quote(source)} is neither a folder nor a file; give a folder with a config.json.")
    if is_there:
        return path
    if is_link:
        raise UserError(f"The model folder {quote(source)} is a link that leads nowhere; give the folder itself.")
    if (archive := enclosing_archive(path)) is not None:
        raise UserError(f"'{archive}' is an archive; unpack it, and give the folder with the config.json.")
    if "://" in source:
        raise UserError(f"{quote(source)} is an address of the web; give the model's name on the hub, as 'owner/name'.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"There is no model folder {quote(source)}; give a folder with a config.json or a hub name.")
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise UserError(
            f"There is no model folder {quote(source)}, and no model of the hub can have that name; "
            "give a folder with a config.json or a hub name."
        ) from error
    return _on_the_hub(source, revision)


def _on_the_hub(name: str, revision: str | None) -> Location:
    """The repository `name`; where the hub cannot be reached, its files are read from the cache."""
    why = out_of_reach(name, revision=revision)
    if why is None:
        return Location(name, revision=revision)
    if not any(isinstance(try_to_load_from_cache(name, mark, revision=revision), str) for mark in MARKS):
        at = "" if revision is None else f" at the revision '{revision}'"
        raise UserError(
            f"There is no loadable model '{name}'{at}: there is no such folder, the cache of the hub does not have it, "
            f"and the hub cannot be asked ({why}); check the name and the network, or give a folder."
        )
    return Location(name, revision=revision, downloads=False)


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: the file as errors name it.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    return _read(path, what, dict, "a JSON object")


def _read(path: Path, what: str, kind: type, called: str) -> Any:
    if is_lfs_pointer(path):
        raise UserError(f"{what} is a note that Git LFS has left; fetch the file itself, by `git lfs pull`.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{what} cannot be read: {_why(error)}; take the one that was saved with the weights."
        ) from error
    if not isinstance(said, kind):
        raise UserError(f"{what} must be {called}; got {_shown(said)}.")
    return said


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON ({error.msg} in line {error.lineno}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    return (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
