"""Files of text for the tests of sources."""

from pathlib import Path


def write(path: Path, text: str) -> str:
    """Write the text to a file in a folder that may be new; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)
