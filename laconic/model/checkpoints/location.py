"""Find and read the files of a model, in a folder or in a hub repository at one commit.

The content of a file may not match its name: Git LFS leaves a text in place of a file that it did not fetch, and an
archive must be unpacked first.
"""

import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.hub import cached_file

from laconic.errors import UserError, quote, reason_of
from laconic.files import system_reason
from laconic.hub import out_of_reach

T = TypeVar("T")
POINTER = b"version https://git-lfs.github.com/spec/"
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")
"""The first bytes of zip, gzip, bzip2, xz, 7z, rar and zstandard files."""
TAR = (b"ustar", 257)
"""The magic bytes of a tar file, and their offset."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file at `path` is the text that Git LFS leaves in place of a file."""
    return _read_start(path, len(POINTER)) == POINTER


def is_archive(path: Path) -> bool:
    """Whether the file at `path` begins like an archive. Files written by torch.save are zip archives too."""
    start = _read_start(path, TAR[1] + len(TAR[0]))
    return start.startswith(ARCHIVES) or start[TAR[1] :] == TAR[0]


def _read_start(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        # The caller reads the file next and reports the error.
        return b""


MARKER_FILES = ("config.json", "adapter_config.json", "modules.json")
"""Each model repository has at least one of these files."""


@dataclass(frozen=True)
class Location:
    """A folder, or a repository of the hub.

    Args:
        source: the name that the user gave; errors use it.
        folder: the folder; None for a repository.
        revision: a branch, tag or commit of the repository.
        downloads: whether files of a repository that are not in the cache are downloaded.
        subfolder: the subfolder of a repository that the files are in. The subfolder of a folder is part of `folder`.
    """

    source: str
    folder: Path | None = None
    revision: str | None = None
    downloads: bool = True
    subfolder: str = ""

    @property
    def name(self) -> str:
        """The argument for `from_pretrained`: the path of the folder, or the name of the repository."""
        return self.source if self.folder is None else str(self.folder)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for `from_pretrained` that belong to `name`."""
        return {
            "revision": self.revision,
            "subfolder": self.subfolder,
            "local_files_only": not self.downloads,
            "trust_remote_code": False,
        }

    def file(self, name: str) -> Path | None:
        """The path of a file, which is downloaded if needed; None if it does not exist.

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

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file; None if the file does not exist.

        Raises:
            UserError: the file does not contain a JSON object.
        """
        path = self.file(name)
        return None if path is None else read_json(path, _subject(name, self.source), dict)

    def check_json(self, name: str) -> None:
        """Check that a file has a JSON object, if it exists. A file that has not changed is read once.

        Raises:
            UserError: the file does not contain a JSON object.
        """
        path = self.file(name)
        if path is not None:
            status = path.stat()
            _check_json(path, self.source, (status.st_ino, status.st_size, status.st_mtime_ns))

    def listing(self, name: str) -> list[Any] | None:
        """The JSON list in a file; None if the file does not exist."""
        path = self.file(name)
        return None if path is None else read_json(path, _subject(name, self.source), list)


def find_location(source: str, revision: str | None = None) -> Location | Path:
    """Find the folder, the repository or the file that `source` names.

    Args:
        source: a path or the name of a hub repository.
        revision: a branch, tag or commit of the repository.

    Returns:
        The location, or the path of a file.

    Raises:
        UserError: the name is empty, a broken link or a path that does not exist; or it is the name of a repository
            that is not in the cache, and the hub does not have it or cannot be reached.
    """
    if not source.strip():
        raise UserError("The model is named by an empty text; give a folder with a config.json or a hub name.")
    try:
        path = Path(source).expanduser()
        is_folder, is_link, exists = path.is_dir(), path.is_symlink(), path.exists()
        if is_folder:
            os.listdir(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The model folder {quote(source)} cannot be read: {_reason(error)}; give another path."
        ) from error
    if is_folder:
        return Location(source, path)
    if exists and not path.is_file():
        # Reading a pipe would wait, and a device may have no end.
        raise UserError(f"{quote(source)} is neither a folder nor a file; give a folder with a config.json.")
    if exists:
        return path
    if is_link:
        raise UserError(f"The model folder {quote(source)} is a link that leads nowhere; give the folder itself.")
    archive = next((parent for parent in path.parents if parent.is_file() and is_archive(parent)), None)
    if archive is not None:
        raise UserError(f"'{archive}' is an archive; unpack it, and give the folder with the config.json.")
    if "://" in source:
        raise UserError(f"{quote(source)} is a web address; give the model's name on the hub, as 'owner/name'.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"There is no model folder {quote(source)}; give a folder with a config.json or a hub name.")
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise UserError(
            f"There is no model folder {quote(source)}, and no model of the hub can have that name; "
            "give a folder with a config.json or a hub name."
        ) from error
    return _find_repository(source, revision)


def _find_repository(name: str, revision: str | None) -> Location:
    """The repository `name`; its files are read from the cache if the hub cannot be reached."""
    reason = out_of_reach(name, revision=revision)
    if reason is None:
        return Location(name, revision=revision)
    if not any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in MARKER_FILES):
        at = "" if revision is None else f" at the revision '{revision}'"
        raise UserError(
            f"There is no loadable model '{name}'{at}: there is no such folder, the cache of the hub does not have it, "
            f"and the hub cannot be asked ({reason}); check the name and the network, or give a folder."
        )
    return Location(name, revision=revision, downloads=False)


@lru_cache(maxsize=16)
def _check_json(path: Path, source: str, _identity: tuple[int, int, int]) -> None:
    """Check that a file of a model has a JSON object. The result is kept until the identity of the file changes."""
    read_json(path, _subject(path.name, source), dict)


def _subject(name: str, source: str) -> str:
    return f"The file '{name}' of the model '{source}'"


def read_json(path: Path, subject: str, kind: type[T]) -> T:
    """Read a JSON file.

    Args:
        path: the file.
        subject: the file as errors name it, at the beginning of the sentence.
        kind: `dict` for a JSON object, `list` for a JSON list.

    Raises:
        UserError: it cannot be read, or has a value of another kind.
    """
    if is_lfs_pointer(path):
        raise UserError(f"{subject} is a pointer of Git LFS, not the file itself; fetch the file by `git lfs pull`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{subject} cannot be read: {_reason(error)}; take the one that was saved with the weights."
        ) from error
    if not isinstance(content, kind):
        text = json.dumps(content)
        name = "a JSON object" if kind is dict else "a JSON list"
        raise UserError(f"{subject} must be {name}; got {text if len(text) <= 60 else f'{text[:60]}…'}.")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg} in line {error.lineno}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text"
    return system_reason(error)
