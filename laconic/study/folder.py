"""A folder of small files, on this machine or wherever fsspec reaches: each appears whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from filelock import FileLock
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from laconic.errors import UserError

LOCK = ".lock"


class Folder:
    """The folder at `place`, a path or a URL; it is made where it is not there.

    Raises:
        UserError: the place cannot be used.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        try:
            self._files, self._root = url_to_fs(place)
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"The folder '{place}' cannot be used: {error}.") from error

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where a file can be made by one process alone."""
        return isinstance(self._files, LocalFileSystem)

    def names(self) -> list[str]:
        """Of everything in it that is not hidden, in order."""
        try:
            paths = self._files.ls(self._root, detail=False, refresh=True)
        except FileNotFoundError:
            # Where files have names and no folders, an empty one is nowhere.
            return []
        return sorted(name for path in paths if not (name := path.rsplit("/", 1)[-1]).startswith("."))

    def read(self, name: str) -> bytes | None:
        """What is in a file; None where there is none."""
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Put a file in place of whatever was there."""
        if not self.is_local:
            # What is put there appears whole.
            self._files.pipe_file(self._path(name), text.encode())
            return
        partial = self._path(f".{name}.{secrets.token_hex(4)}")
        try:
            with open(partial, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path(name))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    def move(self, name: str, to: str) -> None:
        """Have a file or a folder be at `to` below this folder, where nothing is yet.

        Raises:
            OSError: there is no such file, or it cannot be moved.
        """
        self._files.makedirs(self._path(to).rpartition("/")[0], exist_ok=True)
        self._files.mv(self._path(name), self._path(to), recursive=True)

    def remove(self, name: str) -> None:
        """Remove a file, unless it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no other process of this machine is in one of the same folder."""
        if not self.is_local:
            yield
            return
        with FileLock(self._path(LOCK)):
            yield

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
