"""The folder that several runners of a study share: files, leases of cells, and scratch folders.

A runner measures a cell only while it holds the lease of the cell, and renews the lease every few seconds. Another
runner may take over a lease if it has watched it for a minute without a change, or if the owner was a process on the
same machine that no longer exists. The minute is measured by the clock of the watching runner, as clocks of different
machines may differ. In a local folder two runners never hold the same lease. A URL has no exclusive creation of files:
the last runner that writes a lease holds it.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from laconic.errors import UserError
from laconic.files import replacing

RENEW_SECONDS, STALE_SECONDS = 10.0, 60.0
"""Seconds between two renewals of a lease, and seconds without a renewal after which a lease is stale."""
LEASE = ".lease"
SCRATCH = f".scratch-{socket.gethostname()}-"


class Folder:
    """A folder of small files, local or at a URL that fsspec supports. Files are written atomically.

    Args:
        location: a path or a URL; the folder is created if it does not exist.

    Raises:
        UserError: the location cannot be accessed.

    Example:
        >>> folder = Folder("memory://shared")
        >>> folder.write("a", "text")
        >>> folder.names(), folder.read("a"), folder.read("b")
        (['a'], b'text', None)
    """

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            self._files, self._root = url_to_fs(location)
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"The folder '{location}' cannot be used: {error}.") from error

    @property
    def is_local(self) -> bool:
        """Whether the folder is a local path, where files can be created exclusively."""
        return isinstance(self._files, LocalFileSystem)

    def names(self) -> list[str]:
        """The sorted names of files and folders in it, without hidden ones."""
        try:
            paths = self._files.ls(self._root, detail=False, refresh=True)
        except FileNotFoundError:
            # Object stores have no empty folders.
            return []
        return sorted(name for path in paths if not (name := path.rsplit("/", 1)[-1]).startswith("."))

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Write or replace a file atomically."""
        if not self.is_local:
            # In an object store a file becomes visible when it is complete.
            self._files.pipe_file(self._path(name), text.encode())
            return
        with replacing(Path(self._path(name)), flush=True) as partial:
            partial.write_text(text)

    def move(self, name: str, to: str) -> None:
        """Move a file or a folder to the path `to`, relative to this folder.

        Raises:
            OSError: it does not exist, or cannot be moved.
        """
        self._files.makedirs(self._path(to).rpartition("/")[0], exist_ok=True)
        self._files.mv(self._path(name), self._path(to), recursive=True)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an exclusive lock among the processes of this machine. Does nothing for a URL."""
        with FileLock(self._path(".lock")) if self.is_local else contextlib.nullcontext():
            yield

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class Leases:
    """The leases that one runner holds in a folder.

    Args:
        folder: the folder, which other runners share.

    Example:
        >>> folder = Folder("memory://leases")
        >>> first, second = Leases(folder), Leases(folder)
        >>> first.claim("cell"), second.claim("cell")
        (True, False)
        >>> first.release("cell")
        >>> second.claim("cell")
        True
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: set[str] = set()
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self._guard = threading.Lock()
        self._watched: dict[str, tuple[bytes, float]] = {}

    def claim(self, key: str) -> bool:
        """Take the lease of a cell; False if another runner holds it."""
        with self._folder.lock():
            lease = self._read(key)
            if lease is not None and not self._is_stale(key, lease):
                return False
            self._write(key)
            # If two runners write to a URL at the same time, the later one holds the lease.
            claimed = self._folder.is_local or self._is_own(self._read(key))
        if claimed:
            with self._guard:
                self._held.add(key)
                self._watched.pop(key, None)
        return claimed

    def release(self, key: str) -> None:
        """Give up the lease of a cell, if it is held."""
        with self._guard:
            if key in self._held:
                self._held.discard(key)
                with self._folder.lock():
                    # Another runner may have taken over the lease while this machine was suspended.
                    if self._is_own(self._read(key)):
                        self._folder.remove(f"{key}{LEASE}")

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Within the block a thread renews all held leases. They are released at the end of the block."""
        done = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            for key in tuple(self._held):
                self.release(key)

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            with self._guard:
                for key in tuple(self._held):
                    # A full disk or a lost network connection must not end the study.
                    with contextlib.suppress(OSError):
                        self._renew(key)

    def _renew(self, key: str) -> None:
        """Renew a lease, unless another runner has taken it over."""
        with self._folder.lock():
            lease = self._read(key)
            if lease is None or self._is_own(lease):
                self._write(key)
            else:
                self._held.discard(key)

    def _read(self, key: str) -> bytes | None:
        return self._folder.read(f"{key}{LEASE}")

    def _write(self, key: str) -> None:
        self._folder.write(f"{key}{LEASE}", json.dumps({"owner": self._owner, "renewed": time.time()}))

    def _is_own(self, lease: bytes | None) -> bool:
        return lease is not None and _owner(lease) == self._owner

    def _is_stale(self, key: str, lease: bytes) -> bool:
        """Whether the owner of a lease is gone. For another machine, this takes `STALE_SECONDS` of watching."""
        host, _, rest = _owner(lease).partition(" ")
        pid = rest.partition(" ")[0]
        if host == socket.gethostname() and pid.isdecimal() and not is_running(int(pid)):
            return True
        content, since = self._watched.get(key, (b"", 0.0))
        if content != lease:
            self._watched[key] = lease, time.monotonic()
            return False
        return time.monotonic() - since > STALE_SECONDS


def _owner(lease: bytes) -> str:
    """Host, process id and token of the owner; "" if the file is not a lease."""
    try:
        content = json.loads(lease)
    except ValueError:
        return ""
    return str(content.get("owner", "")) if isinstance(content, dict) else ""


def is_running(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # The process belongs to another user.
        return True
    return True


@contextlib.contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Yield an empty folder in `parent`, or in the temporary folder of the system. It is removed after the block."""
    if parent is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = parent / f"{SCRATCH}{os.getpid()}"
    # A killed process with the same id may have left the folder.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def remove_stale_scratch(parent: Path) -> None:
    """Remove the scratch folders that killed processes of this machine left in `parent`."""
    for folder in parent.glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH)
        if pid.isdecimal() and not is_running(int(pid)):
            # Another process may be removing it, too.
            shutil.rmtree(folder, ignore_errors=True)
