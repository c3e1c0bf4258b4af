"""Leases of cells: whoever has one measures the cell, and says every few seconds that it still does.

A lease that did not change while somebody else looked at it for a minute, or whose process is gone from this machine,
was left by a runner that was killed, and may be taken over. The minute is that of the one who looks: clocks of other
machines may be wrong. In a local folder two runners never have the same lease; at a URL, where nothing can be made by
one alone, the one that wrote last has it.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from laconic.study.folder import Folder

RENEWED, STALE = 10.0, 60.0
"""Seconds between two renewals, and after which a lease that was seen and not renewed since is void."""
SUFFIX = ".lease"


class Leases:
    """The leases of one runner in `folder`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: set[str] = set()
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self._guard = threading.Lock()
        self._seen: dict[str, tuple[bytes, float]] = {}

    def claim(self, key: str) -> bool:
        """Take the lease of a cell; False where another runner has it."""
        with self._folder.alone():
            there = self._folder.read(_file(key))
            if there is not None and not self._is_void(key, there):
                return False
            self._folder.write(_file(key), self._said())
            # Of two that write to a URL at the same time the later one stays.
            mine = self._folder.is_local or self._is_mine(self._folder.read(_file(key)))
        if mine:
            with self._guard:
                self._held.add(key)
                self._seen.pop(key, None)
        return mine

    def release(self, key: str) -> None:
        """Give up the lease of a cell, where it is held."""
        with self._guard:
            if key in self._held:
                self._held.discard(key)
                with self._folder.alone():
                    # A machine that slept may have lost it to another runner.
                    if self._is_mine(self._folder.read(_file(key))):
                        self._folder.remove(_file(key))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block every lease that is held is renewed in time; after it none is held any more."""
        done = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(done,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()
            for key in tuple(self._held):
                self.release(key)

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(RENEWED):
            with self._guard:
                for key in tuple(self._held):
                    # A full disk or a network that is away for a while ends no study.
                    with contextlib.suppress(OSError):
                        self._renew(key)

    def _renew(self, key: str) -> None:
        """Say that the cell is still worked on, unless another runner took it over."""
        with self._folder.alone():
            there = self._folder.read(_file(key))
            if there is None or self._is_mine(there):
                self._folder.write(_file(key), self._said())
            else:
                self._held.discard(key)

    def _said(self) -> str:
        return json.dumps({"owner": self._owner, "renewed": time.time()})

    def _is_mine(self, lease: bytes | None) -> bool:
        return lease is not None and _owner(lease) == self._owner

    def _is_void(self, key: str, lease: bytes) -> bool:
        """Whether it was left by a runner that is gone; of another machine's that is only known after a while."""
        host, _, rest = _owner(lease).partition(" ")
        pid = rest.partition(" ")[0]
        if host == socket.gethostname() and pid.isdecimal() and not is_running(int(pid)):
            return True
        seen, since = self._seen.get(key, (b"", 0.0))
        if seen != lease:
            self._seen[key] = lease, time.monotonic()
            return False
        return time.monotonic() - since > STALE


def _file(key: str) -> str:
    return f"{key}{SUFFIX}"


def _owner(lease: bytes) -> str:
    """Host, process and name of the runner; "" where the file is none of ours."""
    try:
        said = json.loads(lease)
    except ValueError:
        return ""
    return str(said.get("owner", "")) if isinstance(said, dict) else ""


def is_running(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is somebody else's.
        return True
    return True
