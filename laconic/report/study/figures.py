"""The figures of a report as files: those of an earlier report that this one has no more are removed.

Which files a report wrote is kept beside them, with a hash of each: what somebody else has put or changed there stays.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from laconic.report.study.files import put

WRITTEN = ".written.json"


def put_figures(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write each file of `contents` to `folder`, and remove what an earlier call wrote that is not among them.

    Raises:
        UserError: the disk is full, or refuses.
    """
    before, now = _written(folder), {name: _hash(content) for name, content in contents.items()}
    # First, so that a report that was killed leaves nothing that no later one knows of.
    put(folder / WRITTEN, json.dumps({**before, **now}, indent=1))
    for name, content in contents.items():
        put(folder / name, content)
    for name in before.keys() - now.keys():
        path = folder / name
        if path.is_file() and _hash(path.read_bytes()) == before[name]:
            path.unlink(missing_ok=True)
    put(folder / WRITTEN, json.dumps(now, indent=1))


def _written(folder: Path) -> dict[str, str]:
    """Names of files and their hashes; a name that leads elsewhere is none of ours."""
    try:
        said = json.loads((folder / WRITTEN).read_bytes())
    except (OSError, ValueError):
        return {}
    named = said.items() if isinstance(said, dict) else ()
    return {name: str(hashed) for name, hashed in named if Path(name).name == name}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
