"""Where laconic keeps what is costly to find out again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$LACONIC_CACHE`, else `laconic` in `$XDG_CACHE_HOME`, else `~/.cache/laconic`; it may not exist yet."""
    own = os.environ.get("LACONIC_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "laconic"
