"""Leases of cells: whoever has one measures the cell, and says every few seconds that it still does.

A lease that was not renewed for a minute, or whose process is gone from this machine, was left by a runner that was
killed, and may be taken over. In a local folder two runners never have the same lease; at a URL, where nothing can be
made by one alone, the one that wrote last has it.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from laconic.study.folder import Folder

RENEWED, STALE = 10.0, 60.0
"""Seconds between two renewals, and after which a lease that was not renewed is void."""
SUFFIX = ".lease"


class Leases:
    """The leases of one runner in `folder`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: set[str] = set()
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self._guard = threading.Lock()

    def claim(self, key: str) -> bool:
        """Take the lease of a cell; False where another runner has it."""
        with self._folder.alone():
            there = self._lease(key)
            if there is not None and not _is_void(there):
                return False
            self._folder.write(f"{key}{SUFFIX}", self._said())
            # Of two that write to a URL at the same time the later one stays.
            mine = self._folder.is_local or (self._lease(key) or {}).get("owner") == self._owner
        if mine:
            with self._guard:
                self._held.add(key)
        return mine

    def release(self, key: str) -> None:
        """Give up the lease of a cell, where it is held."""
        with self._guard:
            if key in self._held:
                self._held.discard(key)
                self._folder.remove(f"{key}{SUFFIX}")

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
                for key in self._held:
                    # A full disk or a network that is away for a while ends no study.
                    with contextlib.suppress(OSError):
                        self._folder.write(f"{key}{SUFFIX}", self._said())

    def _said(self) -> str:
        return json.dumps({"owner": self._owner, "renewed": time.time()})

    def _lease(self, key: str) -> Mapping[str, Any] | None:
        text = self._folder.read(f"{key}{SUFFIX}")
        if text is None:
            return None
        try:
            said = json.loads(text)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


def _is_void(lease: Mapping[str, Any]) -> bool:
    """Whether it was left by a runner that is gone."""
    renewed = lease.get("renewed")
    if not isinstance(renewed, (int, float)) or time.time() - renewed > STALE:
        return True
    host, _, rest = str(lease.get("owner", "")).partition(" ")
    pid = rest.partition(" ")[0]
    return host == socket.gethostname() and pid.isdecimal() and not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is somebody else's.
        return True
    return True
