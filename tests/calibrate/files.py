"""Files of text for the tests of sources."""

import json
from pathlib import Path
from typing import Any

from laconic.calibrate.corpus import Example
from laconic.calibrate.sources import read


def write(path: Path, text: str) -> str:
    """Write the text to a file in a folder that may be new; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def rows_of(folder: Path, name: str, content: str | list[dict[str, Any]]) -> tuple[Example, ...]:
    """Write a text, or JSON lines, to a file; its rows."""
    return read(
        write(folder / name, content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
    ).examples
